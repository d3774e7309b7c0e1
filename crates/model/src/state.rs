//! Maps of objects: what should be, with who wants it, and what is.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::{Key, Object};

/// Who wants an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The node itself.
    Node,
    /// The road to a peer, by the peer's node name.
    Peer(String),
    /// A pod of this node, `NAMESPACE/NAME`, or the container's ID where no pod is known.
    Pod(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Node => f.write_str("node"),
            Owner::Peer(name) => write!(f, "peer {name}"),
            Owner::Pod(name) => write!(f, "pod {name}"),
        }
    }
}

/// A desired object and who wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What is wanted.
    pub object: Object,
    /// Who wants it.
    pub owner: Owner,
    /// Why it is there, in a sentence for people (comments of `node script`, status).
    pub why: String,
}

/// What a namespace should hold, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Desired {
    entries: BTreeMap<Key, Entry>,
}

impl Desired {
    /// Adds an object. Two wishes for the same table (partial ones) are merged; for any other key
    /// the first wish stays, and the function answers false when a later one differs.
    pub fn add(&mut self, owner: Owner, why: impl Into<String>, object: Object) -> bool {
        let key = object.key();
        match self.entries.get_mut(&key) {
            None => {
                self.entries.insert(key, Entry { object, owner, why: why.into() });
                true
            }
            Some(entry) => match (&mut entry.object, object) {
                (Object::Table(have), Object::Table(more)) => have.merge(more),
                (have, object) => *have == object,
            },
        }
    }

    /// The entry of a key.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in all of another map, as by [`Desired::add`]; false when any wish clashed.
    pub fn extend(&mut self, other: Desired) -> bool {
        let mut agree = true;
        for entry in other.entries.into_values() {
            agree &= self.add(entry.owner, entry.why, entry.object);
        }
        agree
    }
}

/// What a namespace holds, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Observed {
    objects: BTreeMap<Key, Object>,
}

impl Observed {
    /// Puts an object in, in place of an older one of the same key.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        self.objects.insert(object.key(), object)
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        self.objects.remove(key)
    }

    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// All objects in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects.iter()
    }

    /// Keeps the objects for which the function answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, &Object) -> bool) {
        self.objects.retain(|k, o| keep(k, o));
    }
}

impl FromIterator<Object> for Observed {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Observed::default();
        for object in objects {
            all.insert(object);
        }
        all
    }
}
