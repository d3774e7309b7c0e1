//! Keys of elements.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;

use serde::Serialize;

use super::KeyPart;

/// The key of an element: its parts, several of them in a concatenation. Nearly all keys have one, and there may be
/// very many of these: it is kept in place.
#[derive(Clone, PartialEq, Eq)]
pub struct ElementKey(Parts);

/// `One` is all that has one.
#[derive(Clone, PartialEq, Eq)]
enum Parts {
    One(KeyPart),
    Several(Box<[KeyPart]>),
}

impl Deref for ElementKey {
    type Target = [KeyPart];

    fn deref(&self) -> &[KeyPart] {
        match &self.0 {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Several(parts) => parts,
        }
    }
}

impl Borrow<[KeyPart]> for ElementKey {
    fn borrow(&self) -> &[KeyPart] {
        self
    }
}

impl From<KeyPart> for ElementKey {
    fn from(part: KeyPart) -> Self {
        Self(Parts::One(part))
    }
}

impl From<Vec<KeyPart>> for ElementKey {
    fn from(mut parts: Vec<KeyPart>) -> Self {
        match (parts.len(), parts.pop()) {
            (1, Some(part)) => part.into(),
            (_, last) => {
                parts.extend(last);
                Self(Parts::Several(parts.into()))
            }
        }
    }
}

impl<const N: usize> From<[KeyPart; N]> for ElementKey {
    fn from(parts: [KeyPart; N]) -> Self {
        Vec::from(parts).into()
    }
}

impl FromIterator<KeyPart> for ElementKey {
    fn from_iter<I: IntoIterator<Item = KeyPart>>(parts: I) -> Self {
        Vec::from_iter(parts).into()
    }
}

impl Ord for ElementKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl PartialOrd for ElementKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for ElementKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_parts() {
        let port = KeyPart::Port;
        assert_eq!(ElementKey::from(port(1)), ElementKey::from(vec![port(1)]));
        assert_eq!(ElementKey::from(port(1)), ElementKey::from_iter([port(1)]));
        assert_ne!(ElementKey::from(port(1)), ElementKey::from([]));
        for parts in [vec![], vec![port(1)], vec![port(1), port(2)], vec![port(2)]] {
            let key = ElementKey::from(parts.clone());
            assert_eq!(*key, parts);
            for other in [vec![], vec![port(1)], vec![port(1), port(2), port(3)]] {
                assert_eq!(key.cmp(&ElementKey::from(other.clone())), parts.cmp(&other));
            }
        }
    }

    /// What very many of them cost.
    #[test]
    fn a_key_takes_four_words() {
        assert_eq!(size_of::<ElementKey>(), 32);
    }
}
