//! Address allocation as a pure function: ranges and the present leases in, a lease out.
//!
//! Nothing here reads files or clocks. The caller loads the leases (host-local's directory, with
//! its lock held) into a [`State`], asks, and writes down what it was given.
//!
//! ```
//! use causeway_ipam::{Owner, Range, RangeSet, State};
//!
//! let range = Range::new("10.244.1.0/24".parse().unwrap(), None, None, None).unwrap();
//! let sets = [RangeSet::new(vec![range]).unwrap()];
//! let mut state = State::new();
//! let pod = Owner::new("c0ffee", "eth0");
//! let leases = state.allocate(&sets, &pod, &[]).unwrap();
//! assert_eq!(leases[0].address.to_string(), "10.244.1.2/24");
//! assert_eq!(leases[0].gateway.unwrap().to_string(), "10.244.1.1");
//! assert_eq!(state.release(&pod).len(), 1);
//! ```

mod alloc;
mod num;
mod range;
mod state;
mod suspects;

pub use alloc::{AllocError, Lease};
pub use range::{Range, RangeError, RangeSet, check_disjoint};
pub use state::{Owner, State};
pub use suspects::{Suspect, Suspects};
