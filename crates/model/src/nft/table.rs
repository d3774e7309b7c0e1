//! Tables.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Chain, Set};

/// The family of a table: which packets it sees.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum NftFamily {
    /// IPv4 and IPv6 (NFPROTO_INET).
    Inet,
    /// All frames of one device, before anything else sees them (NFPROTO_NETDEV).
    Netdev,
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NftFamily::Inet => "inet",
            NftFamily::Netdev => "netdev",
        })
    }
}

/// A table with its chains and sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NftTable {
    /// Family.
    pub family: NftFamily,
    /// Name.
    pub name: String,
    /// True: the table is ours alone; what it holds beyond this value is removed.
    /// False: it is shared between several writers; chains, sets and elements that this value
    /// does not name are left alone.
    pub exclusive: bool,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

impl NftTable {
    /// An empty table.
    pub fn new(family: NftFamily, name: impl Into<String>, exclusive: bool) -> Self {
        Self {
            family,
            name: name.into(),
            exclusive,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
        }
    }

    /// Takes in the chains, sets and elements of another wish for the same table. Answers false
    /// when the two disagree on a chain, on the type of a set or on an element's value; the first
    /// wish stays then.
    pub fn merge(&mut self, other: NftTable) -> bool {
        let mut agree = self.exclusive == other.exclusive;
        for (name, chain) in other.chains {
            agree &= *self.chains.entry(name).or_insert_with(|| chain.clone()) == chain;
        }
        for (name, set) in other.sets {
            match self.sets.get_mut(&name) {
                None => {
                    self.sets.insert(name, set);
                }
                Some(have) => {
                    agree &= have.same_type(&set);
                    for (key, element) in set.elements {
                        let e = have.elements.entry(key).or_insert_with(|| element.clone());
                        agree &= *e == element;
                    }
                }
            }
        }
        agree
    }

    /// True when `observed` holds what this table asks for: all of it and, for an exclusive
    /// table, nothing else.
    pub fn satisfied_by(&self, observed: &NftTable) -> bool {
        let chains =
            self.chains.iter().all(|(n, want)| observed.chains.get(n).is_some_and(|h| want == h));
        let sets = self.sets.iter().all(|(name, want)| {
            observed.sets.get(name).is_some_and(|have| {
                have.same_type(want)
                    && want.elements.iter().all(|(k, e)| have.elements.get(k) == Some(e))
                    && (!self.exclusive || have.elements.len() == want.elements.len())
            })
        });
        let alone = !self.exclusive
            || (self.chains.len() == observed.chains.len()
                && self.sets.len() == observed.sets.len());
        chains && sets && alone
    }
}
