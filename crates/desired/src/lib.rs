//! From the state of the cluster to the kernel objects that one node should hold.
//!
//! A pure function of its inputs: no sockets, no time, no ifindexes, no retries. The order in
//! which events arrived cannot matter, because events are not an input.

pub mod cidrs;
pub mod conflist;
pub mod flannel;
mod guard;
pub mod input;
mod mtu;
mod nft_agent;
pub mod node;
pub mod pod;
pub mod ranges;
mod roads;
pub mod script;
mod tunnels;
