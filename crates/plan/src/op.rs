//! Operations on the kernel, as values.

use std::collections::BTreeMap;
use std::fmt;

use causeway_model::nft::{Base, Element, ElementKey, NftFamily, NftTable, Rule, Set};
use causeway_model::{Key, Object};
use serde::Serialize;

use crate::dependency::turns_forwarding_on;

/// One operation. It succeeds or fails as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Makes an object that is not there. Never holds a table.
    Create(Object),
    /// Gives an object what it lacks; `from` is what was observed. Never holds a table.
    Change {
        /// As observed.
        from: Object,
        /// As desired.
        to: Object,
    },
    /// Removes an object, as observed. Never holds a table.
    Remove(Object),
    /// One nftables transaction: all of it happens or nothing (`NFNL_MSG_BATCH_BEGIN`). All
    /// operations are on the same table.
    Nft {
        /// The table.
        table: TableId,
        /// In order.
        ops: Vec<NftOp>,
    },
}

/// Which nftables table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableId {
    /// Family.
    pub family: NftFamily,
    /// Name.
    pub name: String,
}

/// One step of an nftables transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NftOp {
    /// Makes the table; it may be there (`NLM_F_CREATE` without `NLM_F_EXCL`).
    AddTable,
    /// Removes the table with all that it holds.
    DelTable,
    /// Makes a set without elements; it may be there with the same type.
    AddSet {
        /// Name.
        name: String,
        /// Type; elements are not looked at.
        set: Set,
    },
    /// Removes a set, which nothing may refer to.
    DelSet {
        /// Name.
        name: String,
    },
    /// Makes a chain without rules; it may be there with the same base.
    AddChain {
        /// Name.
        name: String,
        /// Hook, for a base chain.
        base: Option<Base>,
    },
    /// Removes all rules of a chain.
    FlushChain {
        /// Name.
        name: String,
    },
    /// Removes a chain, which nothing may refer to, with its rules.
    DelChain {
        /// Name.
        name: String,
    },
    /// Adds a rule at the end of a chain.
    AddRule {
        /// Chain.
        chain: String,
        /// Rule.
        rule: Rule,
    },
    /// Puts a rule in the place of the last one of a chain, of which nothing else changes.
    SetLastRule {
        /// Chain, which has a rule.
        chain: String,
        /// Rule.
        rule: Rule,
    },
    /// Adds elements; those that are there stay.
    AddElements {
        /// Set or map.
        set: String,
        /// Its type, which the encoding of elements needs; its own elements are not looked at.
        of: Set,
        /// Elements.
        #[serde(serialize_with = "pairs")]
        elements: BTreeMap<ElementKey, Element>,
    },
    /// Removes elements, which must be there.
    DelElements {
        /// Set or map.
        set: String,
        /// Its type.
        of: Set,
        /// Elements.
        #[serde(serialize_with = "pairs")]
        elements: BTreeMap<ElementKey, Element>,
    },
}

fn pairs<S: serde::Serializer>(
    map: &BTreeMap<ElementKey, Element>,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.iter())
}

impl TableId {
    /// The identity of a table value.
    pub fn of(table: &NftTable) -> Self {
        Self { family: table.family, name: table.name.clone() }
    }
}

impl Op {
    /// The key of the object that the operation is about.
    pub fn key(&self) -> Key {
        match self {
            Op::Create(object) | Op::Remove(object) | Op::Change { to: object, .. } => object.key(),
            Op::Nft { table, .. } => Key::Table { family: table.family, name: table.name.clone() },
        }
    }

    /// True for a table that closes what others open: it must be in place before them.
    pub fn closes(&self) -> bool {
        matches!(self, Op::Nft { table, ops }
            if table.family == NftFamily::Inet && ops.last() != Some(&NftOp::DelTable))
    }

    /// True when packets can flow by what the operation makes: a tunnel device that comes up, and
    /// forwarding. It has to wait while an operation that [`Op::closes`] is not done.
    pub fn opens(&self) -> bool {
        let (from, to) = match self {
            Op::Create(to) => (None, to),
            Op::Change { from, to } => (Some(from), to),
            Op::Remove(_) | Op::Nft { .. } => return false,
        };
        match to {
            Object::Link(to) => {
                let was_up = matches!(from, Some(Object::Link(from)) if from.up);
                to.kind.is_tunnel() && to.up && !was_up
            }
            Object::Sysctl(s) => turns_forwarding_on(&s.path),
            _ => false,
        }
    }
}

impl fmt::Display for Op {
    /// One line: `+ route 10.244.2.0/24`, `~ link cni0`, `- fdb …`, `~ table inet causeway (3 steps)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create(o) => write!(f, "+ {}", o.key()),
            Op::Change { to, .. } => write!(f, "~ {}", to.key()),
            Op::Remove(o) => write!(f, "- {}", o.key()),
            Op::Nft { ops, .. } => write!(f, "~ {} ({} steps)", self.key(), ops.len()),
        }
    }
}
