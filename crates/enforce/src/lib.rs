//! Policies in nftables: what a node's table holds for the pods that are attached there, and what changes in it
//! when a pod, a namespace, a node or a policy does. Nothing here touches a kernel.
//!
//! A packet takes a number of look-ups that does not grow with policies, pods or blocks:
//!
//! 1. the address of the pod on this node, in a map of such pods: its program;
//! 2. in the program the other end's address, in up to three sets and a map of single addresses, then in up to
//!    three groups of pods, then in ranges: a set of ports;
//! 3. the port, in that set.
//!
//! Programs are shared by pods that policies cannot tell apart, sets of ports by programs. Names tell contents, so
//! that what is new is complete before anything leads to it, and an agent that starts finds what is right in
//! place.

mod draft;
mod enforcer;
mod frame;
mod part;
pub mod trace;

pub use draft::Transaction;
pub use enforcer::{Cause, Change, Enforcer, Realised, Sizes};
pub use frame::{LOG_BYTES, LOG_GROUP, Reason, Way};
