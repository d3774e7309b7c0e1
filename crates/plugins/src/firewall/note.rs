//! What is kept for an attachment's packets through the node, on disk and in nftables.

use std::net::IpAddr;

use causeway_model::nft::{
    Base, Chain, ChainType, Content, Field, Hook, KeyPart, KeyType, MatchOp, NftTable, Policy,
    Rule, Set, Stmt, Verdict,
};
use causeway_types::{Family, IfName};
use serde::{Deserialize, Serialize};

use crate::notes::{Note, Whose};
use crate::owned;

/// The administrator's chain in our table: made empty, and never changed.
pub(crate) const ADMIN: &str = "CNI-ADMIN";
/// Bridges that take in nothing from others of their kind, and the pairs of each with itself.
pub(super) const BRIDGES: &str = "bridges";
const SAME_BRIDGE: &str = "same_bridge";
/// `NF_CT_STATE_BIT` of established and related.
const ANSWERS: u32 = 2 | 4;

/// A chain of others that holds rules for the attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inserted {
    /// `inet`, `ip` or `ip6`.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
}

/// An attachment's packets through the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Forward {
    /// Whose they are.
    pub whose: Whose,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its bridge, if others are kept from it.
    pub bridge: Option<IfName>,
    /// Chains of others that accept them, too.
    pub inserted: Vec<Inserted>,
}

impl Note for Forward {
    fn whose(&self) -> &Whose {
        &self.whose
    }
}

fn addresses(family: Family) -> String {
    format!("forward{}", if family == Family::V4 { 4 } else { 6 })
}

/// All sets, without elements.
pub(crate) fn sets() -> NftTable {
    let mut table = owned::empty();
    for family in Family::BOTH {
        table.sets.insert(addresses(family), Set::of(KeyType::Addr(family), false));
    }
    table.sets.insert(BRIDGES.to_owned(), Set::of(KeyType::IfName, false));
    let pair = vec![KeyType::IfName, KeyType::IfName];
    table.sets.insert(SAME_BRIDGE.to_owned(), Set::map(pair, Vec::new()));
    table
}

fn chains(table: &mut NftTable) {
    let set = |field, set: &str| Stmt::lookup(vec![field], MatchOp::Eq, set);
    let ends = vec![Field::IifName, Field::OifName];
    let isolation = vec![
        Rule::new(
            "within a bridge",
            vec![Stmt::lookup(ends, MatchOp::Eq, SAME_BRIDGE), Stmt::Verdict(Verdict::Return)],
        ),
        Rule::new(
            "from one bridge to another",
            vec![
                set(Field::IifName, BRIDGES),
                set(Field::OifName, BRIDGES),
                Stmt::Counter,
                Stmt::Verdict(Verdict::Drop),
            ],
        ),
    ];
    let jump = |chain: &str| Stmt::Verdict(Verdict::Jump(chain.to_owned()));
    let mut forward = vec![
        Rule::new("ingressPolicy same-bridge", vec![jump("isolation")]),
        Rule::new("the administrator's rules", vec![jump(ADMIN)]),
    ];
    for family in Family::BOTH {
        let pods = addresses(family);
        forward.push(Rule::new(
            "answers to pods",
            vec![
                set(Field::Daddr(family), &pods),
                Stmt::is(Field::CtState, KeyPart::CtState(ANSWERS)),
                Stmt::Verdict(Verdict::Accept),
            ],
        ));
        forward.push(Rule::new(
            "from pods",
            vec![set(Field::Saddr(family), &pods), Stmt::Verdict(Verdict::Accept)],
        ));
    }
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Forward,
        priority: 0,
        device: None,
        policy: Policy::Accept,
    };
    table.chains.insert("forward".to_owned(), Chain { base: Some(base), rules: forward });
    table.chains.insert("isolation".to_owned(), Chain { base: None, rules: isolation });
}

impl Forward {
    /// What our table holds for the attachment, with all chains that it needs but the
    /// administrator's.
    pub(crate) fn table(&self) -> NftTable {
        let mut table = sets();
        chains(&mut table);
        let mut insert = |set: &str, key: Vec<KeyPart>, comment: String| {
            if let Some(set) = table.sets.get_mut(set) {
                let comment = Some(comment);
                set.elements.insert(key.into(), Content { comment, ..Content::default() }.into());
            }
        };
        for ip in &self.addresses {
            insert(&addresses(Family::of(*ip)), vec![KeyPart::addr(*ip)], self.whose.tag());
        }
        if let Some(bridge) = &self.bridge {
            let name = KeyPart::IfName(bridge.clone());
            let shared = "ingressPolicy same-bridge";
            insert(BRIDGES, vec![name.clone()], shared.to_owned());
            insert(SAME_BRIDGE, vec![name.clone(), name], shared.to_owned());
        }
        table
    }
}
