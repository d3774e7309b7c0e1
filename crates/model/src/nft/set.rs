//! Sets and verdict maps.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::Serialize;

use super::{ElementKey, KeyPart, KeyType, Verdict};

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
    pub elements: BTreeMap<ElementKey, Element>,
}

fn elements<S: serde::Serializer>(
    map: &BTreeMap<ElementKey, Element>,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.iter())
}

/// What an element carries beside its key. There may be very many that carry nothing: these take no more room than
/// a pointer.
#[derive(Clone, Default)]
pub struct Element(Option<Box<Content>>);

/// What there is in an [`Element`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Content {
    /// The verdict, in a verdict map.
    pub verdict: Option<Verdict>,
    /// The data, in another map.
    pub data: Vec<KeyPart>,
    /// For people: whose element it is.
    pub comment: Option<String>,
}

static NOTHING: Content = Content { verdict: None, data: Vec::new(), comment: None };

impl From<Content> for Element {
    fn from(content: Content) -> Self {
        let Content { verdict, data, comment } = &content;
        let some = verdict.is_some() || !data.is_empty() || comment.is_some();
        Self(some.then(|| Box::new(content)))
    }
}

impl Deref for Element {
    type Target = Content;

    fn deref(&self) -> &Content {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Element {
    fn deref_mut(&mut self) -> &mut Content {
        self.0.get_or_insert_default()
    }
}

impl PartialEq for Element {
    /// Comments are for people: they do not make an element different.
    fn eq(&self, other: &Element) -> bool {
        self.verdict == other.verdict && self.data == other.data
    }
}

impl Eq for Element {}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for Element {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(s)
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
        self.elements.insert(key.into(), Content { comment, ..Content::default() }.into());
    }

    /// True when both take the same keys and give the same kind of answer.
    pub fn same_type(&self, other: &Set) -> bool {
        self.key == other.key
            && self.vmap == other.vmap
            && self.data == other.data
            && self.interval == other.interval
    }
}
