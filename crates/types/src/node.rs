//! Names of nodes and pods.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Invalid, serde_by_text};

/// The name of a Node object: a DNS subdomain (RFC 1123), at most 253 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// When Kubernetes would not accept it as the name of a Node.
    pub fn new(name: impl Into<String>) -> Result<Self, Invalid> {
        let name = name.into();
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let label = |l: &str| {
            let b = l.as_bytes();
            !b.is_empty()
                && edge(b[0])
                && edge(b[b.len() - 1])
                && b.iter().all(|&c| edge(c) || c == b'-')
        };
        if name.len() <= 253 && name.split('.').all(label) {
            Ok(Self(name))
        } else {
            let why = "must be lower-case letters, digits, `-` and `.`, at most 253 bytes";
            Err(Invalid::new("node name", name, why))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        NodeName::new(text)
    }
}

serde_by_text!(NodeName);

/// Which pod: its namespace, name and, where known, the UID that tells it from a later pod of
/// the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// `metadata.uid`; runtimes before CNI_ARGS K8S_POD_UID do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        for good in ["cp", "node-1", "ip-10-0-0-1.eu-central-1.compute.internal"] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Node", "a_b", "-a", "a-", "a..b", "a b"] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
    }
}
