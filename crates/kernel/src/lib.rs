//! The only part of Causeway that changes anything: network namespaces, links, addresses, routes,
//! neighbours, forwarding entries, kernel parameters, nftables and connection tracking.
//!
//! Blocking, without threads of its own beside the short ones that enter a namespace, and without
//! a notion of why an object exists. [`Handle`] is bound to one namespace: [`Handle::observe`]
//! says what is there and [`Handle::apply`] does what a plan says, in the words of
//! `causeway-model`.

mod apply;
pub mod byte_lock;
pub mod conntrack;
pub mod device;
mod devices;
pub mod error;
pub mod features;
#[cfg(test)]
mod fuzz;
pub mod handle;
mod ifreq;
pub mod log;
pub mod memory;
pub mod monitor;
mod neighbours;
pub mod netns;
pub mod nft;
pub mod probe;
pub mod route_get;
mod rtnl;
pub mod rule;
pub mod sched;
pub mod signals;
pub mod sock;
pub mod sysctl;
pub mod tc;
pub mod tune;
pub mod vlan;

pub use conntrack::Conntrack;
pub use error::{Error, OpError, Refusal};
pub use handle::{Handle, Pair, Routes, Scope};
pub use log::Log;
pub use monitor::Monitor;
pub use netns::NetNs;
pub use route_get::{Path, Without};
