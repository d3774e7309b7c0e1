//! Address allocation as a pure function: ranges and the present leases in, a lease out.
//!
//! Nothing here reads files or clocks. The caller loads the leases (host-local's directory, with
//! its lock held), asks, and writes down what it was given.

mod num;
mod range;

pub use range::{Range, RangeError, RangeSet, check_disjoint};
