//! Chains and rules.

use std::fmt;

use causeway_types::{Family, IfName};
use serde::Serialize;

use super::{Field, MatchOp, Rhs};

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChainType {
    /// Decides over packets.
    Filter,
    /// Sees the first packet of a connection and sets its translation.
    Nat,
}

/// Where a base chain is called (`NF_INET_*`, `NF_NETDEV_INGRESS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Every packet that came in, before routing.
    Prerouting,
    /// Packets to the node itself.
    Input,
    /// Packets that pass through the node.
    Forward,
    /// Packets that the node itself sends.
    Output,
    /// Packets about to leave.
    Postrouting,
    /// Frames of one device as they come in (family netdev).
    Ingress,
}

/// What a base chain does with a packet that no rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Base {
    /// Type.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Order among chains of the hook, lowest first (−300 raw, 0 filter, 100 srcnat).
    pub priority: i32,
    /// The device of an ingress chain.
    pub device: Option<IfName>,
    /// Verdict at the end of the chain.
    pub policy: Policy,
}

/// A chain and its rules in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// `None`: called only by jump or goto.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Eq, Serialize)]
pub struct Rule {
    /// Matches and actions, left to right.
    pub stmts: Vec<Stmt>,
    /// Shown by `nft list` behind the rule (at most 128 bytes).
    pub comment: Option<String>,
}

impl PartialEq for Rule {
    /// Comments are for people: they do not make a rule different.
    fn eq(&self, other: &Rule) -> bool {
        self.stmts == other.stmts
    }
}

impl Rule {
    /// A rule with a comment.
    pub fn new(comment: impl Into<String>, stmts: impl Into<Vec<Stmt>>) -> Self {
        Self { stmts: stmts.into(), comment: Some(comment.into()) }
    }
}

/// The end of a packet's way through a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Let it pass this hook's chain.
    Accept,
    /// Drop it.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back here after it.
    Jump(String),
    /// Into a chain, and back to the caller after it.
    Goto(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stmt {
    /// Goes on only when the fields (more than one: a concatenation, matched against a set)
    /// compare as asked.
    Match {
        /// The packet's fields.
        fields: Vec<Field>,
        /// Comparison.
        op: MatchOp,
        /// With what.
        rhs: Rhs,
    },
    /// Looks the fields up in a verdict map and does what it says; goes on when nothing is found.
    Vmap {
        /// The packet's fields.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
    },
    /// Counts packets and bytes. Values are not compared.
    Counter,
    /// Goes on for so many packets a second, and for a burst of as many (`limit rate N/second burst N packets`).
    Limit {
        /// Packets.
        rate: u32,
    },
    /// Hands the packet to whoever listens at a group (`log group N`); it goes on all the same.
    Log {
        /// Number of the group.
        group: u16,
        /// Text that goes with it, at most 127 bytes.
        prefix: String,
        /// Bytes of the packet that are handed on.
        snaplen: u32,
    },
    /// Keeps the packet out of connection tracking (chains of priority raw).
    Notrack,
    /// Source translation to the outgoing interface's address.
    Masquerade {
        /// Ports are chosen at random each time (NF_NAT_RANGE_PROTO_RANDOM_FULLY).
        fully_random: bool,
    },
    /// Sets bits of the packet's mark (`meta mark set meta mark | BITS`).
    Mark {
        /// The bits.
        bits: u32,
    },
    /// Sets the connection's mark (`ct mark set MARK`), also of one whose first packet this is.
    CtMark {
        /// The mark.
        mark: u32,
    },
    /// Destination translation to the address and port that a map has for the fields; goes on when
    /// nothing is found.
    Dnat {
        /// Family of the addresses in the map.
        #[serde(serialize_with = "super::field::family")]
        family: Family,
        /// The packet's fields.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
    },
    /// Verdict.
    Verdict(Verdict),
    /// An expression that these types have no word for; only observed.
    Unknown(String),
}

impl Stmt {
    /// One field equals one value, one prefix or a member of one set.
    pub fn is(field: Field, rhs: impl Into<Rhs>) -> Self {
        Stmt::Match { fields: vec![field], op: MatchOp::Eq, rhs: rhs.into() }
    }

    /// One field differs.
    pub fn is_not(field: Field, rhs: impl Into<Rhs>) -> Self {
        Stmt::Match { fields: vec![field], op: MatchOp::Ne, rhs: rhs.into() }
    }

    /// A concatenation of fields is (not) in a set.
    pub fn lookup(fields: impl Into<Vec<Field>>, op: MatchOp, set: impl Into<String>) -> Self {
        Stmt::Match { fields: fields.into(), op, rhs: Rhs::Set(set.into()) }
    }
}
