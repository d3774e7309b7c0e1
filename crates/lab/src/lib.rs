//! The lab: a whole multi-node pod network on one machine.

pub mod api;
