//! Sets and verdict maps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{KeyPart, KeyType, Verdict};

/// A set, or a verdict map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Set {
    /// Types of the parts of the key; more than one: a concatenation.
    pub key: Vec<KeyType>,
    /// True for a verdict map.
    pub vmap: bool,
    /// Types of the parts of an element's data, in a map that is no verdict map.
    pub data: Vec<KeyType>,
    /// Elements may be prefixes (NFT_SET_INTERVAL). Elements must not overlap.
    pub interval: bool,
    /// Elements by key.
    #[serde(serialize_with = "elements")]
    pub elements: BTreeMap<Vec<KeyPart>, Element>,
}

fn elements<S: serde::Serializer>(
    map: &BTreeMap<Vec<KeyPart>, Element>,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.iter())
}

/// What an element carries beside its key.
#[derive(Clone, Debug, Default, Eq, Serialize)]
pub struct Element {
    /// The verdict, in a verdict map.
    pub verdict: Option<Verdict>,
    /// The data, in another map.
    pub data: Vec<KeyPart>,
    /// For people: whose element it is.
    pub comment: Option<String>,
}

impl PartialEq for Element {
    /// Comments are for people: they do not make an element different.
    fn eq(&self, other: &Element) -> bool {
        self.verdict == other.verdict && self.data == other.data
    }
}

impl Set {
    /// An empty set of one key type.
    pub fn of(key: KeyType, interval: bool) -> Self {
        Self { interval, ..Self::map(vec![key], Vec::new()) }
    }

    /// An empty verdict map of one key type.
    pub fn vmap(key: KeyType) -> Self {
        Self { vmap: true, ..Self::map(vec![key], Vec::new()) }
    }

    /// An empty map from one concatenation to another; without data, a set.
    pub fn map(key: impl Into<Vec<KeyType>>, data: impl Into<Vec<KeyType>>) -> Self {
        Self {
            key: key.into(),
            vmap: false,
            data: data.into(),
            interval: false,
            elements: BTreeMap::new(),
        }
    }

    /// Adds an element of a plain set with a comment.
    pub fn add(&mut self, key: KeyPart, comment: Option<String>) {
        self.elements.insert(vec![key], Element { comment, ..Element::default() });
    }

    /// True when both take the same keys and give the same kind of answer.
    pub fn same_type(&self, other: &Set) -> bool {
        self.key == other.key
            && self.vmap == other.vmap
            && self.data == other.data
            && self.interval == other.interval
    }
}
