//! The words that every part of Causeway shares: checked names, addresses and numbers, the names
//! fixed for paths and devices, and the files that the agent and the plugins hand to each other.
//!
//! Nothing here does anything: no sockets, no files, no clocks.

mod addr;
mod ifname;
mod mac;
mod node;
mod number;

pub mod names;
pub mod state;

pub use addr::{Cidr, Family, parse_if_addr};
pub use ifname::IfName;
pub use mac::Mac;
pub use node::{NodeName, PodRef};
pub use number::{Mark, Mtu, Vni};

/// A value that does not fit its type: what was given, and what would have been right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?}: {why}")]
pub struct Invalid {
    /// The kind of value, as a person calls it (`interface name`, `cidr`).
    pub what: &'static str,
    /// The text as it came in.
    pub given: String,
    /// What is wrong with it and what is expected.
    pub why: String,
}

impl Invalid {
    /// Builds an error from the kind of value, the text given and the reason.
    pub fn new(what: &'static str, given: impl ToString, why: impl Into<String>) -> Self {
        Self { what, given: given.to_string(), why: why.into() }
    }
}

/// Implements `Display`-based serde for a type that has `FromStr` and `Display`.
macro_rules! serde_by_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_by_text;
