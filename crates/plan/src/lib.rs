//! From what should be and what is to an ordered list of operations.
//!
//! Pure: planning reads neither disk nor kernel, and an operation is a value. [`Op`] says what to
//! do; crate `kernel` does it.
//!
//! # Order
//! Tables of family inet come first, because a tunnel device takes packets from the moment it is
//! up and its filter must be there by then (a tunnel device that is made anew with other parameters
//! goes before, because the new table closes the new one only); then links, their kernel
//! parameters, addresses, neighbours and forwarding entries, the guards of pod interfaces (family
//! netdev: they need the device), then routes, and the switch that turns forwarding on last of all.
//! Removals follow, in the reverse order, so that a packet never meets a half of the old state that
//! the new one replaced. Order alone does not help when a table is refused: whoever applies a plan holds back
//! what [`Op::opens`] until all that [`Op::closes`] is done.
//!
//! # Ownership
//! Only objects that are recorded as ours are removed ([`Ownership`]). What somebody else made
//! under a key that we want is a [`Conflict`], and stays as it is.

mod dependency;
mod diff;
mod nft;
mod op;
mod ownership;
pub mod sim;

pub use diff::{Conflict, Plan, create, plan, withdraw};
pub use nft::table_ops;
pub use op::{NftOp, Op, TableId};
pub use ownership::Ownership;
