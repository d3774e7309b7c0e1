//! Policies of both kinds as they are evaluated: who is subject to them, and their rules in order.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::labels::{Selector, Text};
use crate::ports::{PortSet, Protocol};

/// Which policy. Ordered by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyName {
    /// A NetworkPolicy.
    Network {
        /// Its namespace.
        namespace: Text,
        /// Its name.
        name: Text,
    },
    /// A ClusterNetworkPolicy.
    Cluster(Text),
}

impl PolicyName {
    /// The namespace of a NetworkPolicy; `None`: it is of none.
    #[must_use]
    pub fn namespace(&self) -> Option<&Text> {
        match self {
            Self::Network { namespace, .. } => Some(namespace),
            Self::Cluster(_) => None,
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { namespace, name } => write!(f, "NetworkPolicy {namespace}/{name}"),
            Self::Cluster(name) => write!(f, "ClusterNetworkPolicy {name}"),
        }
    }
}

/// Seen from the pod that a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The order in which policies are asked. What one decides no later one is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// ClusterNetworkPolicies of tier `Admin`.
    Admin,
    /// NetworkPolicies: where one selects a pod they decide.
    Network,
    /// ClusterNetworkPolicies of tier `Baseline`.
    Baseline,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Network => "NetworkPolicy",
            Self::Baseline => "Baseline",
        })
    }
}

/// What becomes of what a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is allowed. All rules of NetworkPolicies are of this kind.
    Accept,
    /// It is dropped.
    Deny,
    /// The next tier decides.
    Pass,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        })
    }
}

/// A policy of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which.
    pub name: PolicyName,
    /// When it is asked.
    pub tier: Tier,
    /// Among those of its tier: 0 to 1000, the lowest first. 0 for NetworkPolicies, which have none.
    pub priority: u16,
    /// Whom it applies to; `None` where that cannot be understood: nobody.
    pub subject: Option<Pods>,
    /// The rules for what comes to its subjects, in order; `None`: it says nothing of that.
    pub ingress: Option<Vec<Rule>>,
    /// The rules for what its subjects send, in order; `None`: it says nothing of that.
    pub egress: Option<Vec<Rule>>,
    /// What makes no sense in it, and what was made of that.
    pub problems: Vec<Problem>,
}

impl Policy {
    /// Its rules for a direction; `None` where it says nothing of it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Something in a policy that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where, as `kubectl explain` writes it (`spec.ingress[0].ports[1].endPort`).
    pub at: String,
    /// What, and what it means for the policy.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// Pods by their labels and those of their namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pods {
    /// Of which namespaces.
    pub namespaces: Namespaces,
    /// Which of their pods.
    pub pods: Selector,
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The one of this name.
    Named(Text),
    /// By their labels.
    Selected(Selector),
}

impl fmt::Display for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pods.is_everything() {
            true => f.write_str("all pods")?,
            false => write!(f, "pods with {}", self.pods)?,
        }
        match &self.namespaces {
            Namespaces::Named(name) => write!(f, " of namespace {name}"),
            Namespaces::Selected(s) if s.is_everything() => f.write_str(" of all namespaces"),
            Namespaces::Selected(s) => write!(f, " of namespaces with {s}"),
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, where it has one.
    pub name: Option<Text>,
    /// What becomes of what it matches.
    pub action: Action,
    /// The other ends.
    pub peers: Peers,
    /// To which ports.
    pub ports: Ports,
}

/// The other ends of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Whoever it is.
    Everybody,
    /// Any of these.
    AnyOf(Vec<Peer>),
}

/// One kind of other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods that live, are not in their node's network, and are selected.
    Pods(Pods),
    /// Addresses, be they pods' or not.
    Block(Block),
    /// The addresses of nodes, and with that of pods in their nodes' networks.
    Nodes(Selector),
    /// Nobody: it could not be understood.
    Nobody,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(pods) => pods.fmt(f),
            Self::Block(block) => block.fmt(f),
            Self::Nodes(s) if s.is_everything() => f.write_str("all nodes"),
            Self::Nodes(s) => write!(f, "nodes with {s}"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

/// A block of addresses without some of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The block.
    pub cidr: IpNet,
    /// What is not meant.
    pub except: Vec<IpNet>,
}

impl Block {
    /// Whether an address is meant.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.cidr.contains(&ip) && !self.except.iter().any(|net| net.contains(&ip))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr.fmt(f)?;
        for (i, net) in self.except.iter().enumerate() {
            write!(f, "{}{net}", if i == 0 { " without " } else { ", " })?;
        }
        Ok(())
    }
}

/// To which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// To all, and by protocols that have none.
    All,
    /// To any of these.
    AnyOf(Vec<PortMatch>),
}

/// Ports of the destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// By number.
    Numbers(PortSet),
    /// What the destination pod's containers call so, by one protocol or by any.
    Named {
        /// `None`: by any.
        protocol: Option<Protocol>,
        /// The name.
        name: Text,
    },
}
