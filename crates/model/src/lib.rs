//! Kernel objects as values: what a node should hold (desired) and what it holds (observed) are
//! said in the same types, so that planning is a comparison of two maps.
//!
//! Links are named, never numbered: an ifindex is a fact of one boot that only crate `kernel`
//! knows. A desired object leaves out what it does not care about (`None`); an observed one says
//! everything. [`Object::satisfied_by`] compares by that projection, because the kernel's answers
//! carry more than was asked for.

mod link;
pub mod nft;
mod object;
mod route;
mod state;

pub use link::{Link, LinkKind, PortFlags, Vxlan};
pub use object::{Key, Object, Sysctl};
pub use route::{Addr, Fdb, Neigh, Route, RouteKind, RouteScope};
pub use state::{Desired, Entry, Observed, Owner};
