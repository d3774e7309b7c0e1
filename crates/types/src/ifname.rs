//! Interface names.

use std::fmt;
use std::str::FromStr;

use crate::{Invalid, serde_by_text};

/// The name of a network interface: 1 to 15 bytes (IFNAMSIZ less the closing zero,
/// `linux/if.h`), no white space, `/` or `:`, and not `.` or `..` (`dev_valid_name`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// When the kernel would refuse it.
    pub fn new(name: impl Into<String>) -> Result<Self, Invalid> {
        let name = name.into();
        let why = if name.is_empty() || name.len() > 15 {
            "must have 1 to 15 bytes"
        } else if name == "." || name == ".." {
            "`.` and `..` are not names"
        } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            "must not contain `/`, `:` or white space"
        } else {
            return Ok(Self(name));
        };
        Err(Invalid::new("interface name", name, why))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IfName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        IfName::new(text)
    }
}

serde_by_text!(IfName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_kernel_takes() {
        for good in ["eth0", "cni0", "cw0123456789a", "a.b", "x-y_z", "exactly15bytes_"] {
            assert!(IfName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen_bytes_xx", "tab\tname"] {
            assert!(IfName::new(bad).is_err(), "{bad}");
        }
    }
}
