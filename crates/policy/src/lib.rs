//! NetworkPolicy and ClusterNetworkPolicy, without a cluster and without a kernel: what they say is
//! read ([`read`]), asked about single connections ([`judge`]) and about all at once, and explained.
//!
//! A connection is judged at both ends: what leaves the one by its egress rules, what comes to the
//! other by its ingress rules. Answers go with the connection that they answer.

mod classes;
pub mod compare;
pub mod compile;
mod ends;
pub mod expect;
pub mod explain;
pub mod judge;
mod labels;
pub mod lint;
mod listed;
mod ports;
pub mod read;
mod rule;
mod world;

pub use classes::{Class, Members, classes};
pub use ends::{End, Ends};
pub use labels::{Labels, Selector, Text};
pub use listed::Listed;
pub use ports::{PortSet, Protocol, Transport};
pub use rule::{
    Action, Block, Direction, Namespaces, Peer, Peers, Pods, Policy, PolicyName, PortMatch, Ports,
    Problem, Rule, Tier,
};
pub use world::{NamedPort, Node, Party, Pod, PodName, Who, World};
