//! Names and indexes of interfaces.
//!
//! The model names interfaces, the kernel numbers them. Within one [`crate::Handle::apply`] this
//! table is filled by asking for exactly the names that the operations mention, in one exchange,
//! and by the links that they make: those get an index chosen here, so that requests that refer
//! to a link can go out together with the one that makes it.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use causeway_types::IfName;

use crate::error::{Error, Refusal};
use crate::rtnl::link;
use crate::sock::Socket;

/// Chosen indexes lie above those that the kernel hands out one by one, and stay below 2^24, so
/// that they are short to read.
const CHOSEN: std::ops::Range<u32> = 1 << 20..1 << 24;

/// What is known of the namespace's interfaces.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    by_name: HashMap<IfName, Option<u32>>,
    fresh: Vec<u32>,
    /// Those that are there, to be looked up without a lock.
    there: Vec<IfName>,
}

impl Devices {
    /// Nothing is known yet but that these interfaces are there.
    pub(crate) fn expecting(there: Vec<IfName>) -> Self {
        Self { there, ..Self::default() }
    }

    /// Asks for the names that are not known yet, and for `make` free indexes.
    pub(crate) fn learn(
        &mut self,
        socket: &mut Socket,
        names: &[&IfName],
        make: usize,
    ) -> Result<(), Error> {
        let mut unknown: Vec<&IfName> =
            names.iter().copied().filter(|n| !self.by_name.contains_key(*n)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for name in unknown.iter().filter(|name| self.there.contains(name)) {
            if let Some(index) = socket.index_of(name) {
                self.by_name.insert((*name).clone(), Some(index));
            }
        }
        unknown.retain(|name| !self.by_name.contains_key(*name));
        if !unknown.is_empty() {
            let requests = unknown.iter().map(|n| link::get_by_name(n)).collect();
            let answers = socket.get_all("look up interfaces", requests, link::decode)?;
            for (name, seen) in unknown.into_iter().zip(answers) {
                self.by_name.insert(name.clone(), seen.map(|s| s.index));
            }
        }
        while self.fresh.len() < make {
            let drawn = candidates(make - self.fresh.len());
            // An index that is taken already is not ours to use.
            self.fresh.extend(drawn.into_iter().filter(|index| !socket.is_index_taken(*index)));
        }
        Ok(())
    }

    /// The index of a name.
    pub(crate) fn index(&self, name: &IfName) -> Result<u32, Error> {
        self.by_name
            .get(name)
            .copied()
            .flatten()
            .ok_or_else(|| Error::NoLink { name: name.to_string() })
    }

    /// Gives an index to a link that is about to be made.
    pub(crate) fn add(&mut self, name: &IfName) -> Result<u32, Error> {
        let index = self.fresh.pop().ok_or_else(|| {
            Error::refused("choose an interface index", Refusal::new(libc::EBUSY))
        })?;
        self.by_name.insert(name.clone(), Some(index));
        Ok(index)
    }

    /// Forgets a link that is about to be removed.
    pub(crate) fn remove(&mut self, name: &IfName) {
        self.by_name.insert(name.clone(), None);
    }
}

/// Indexes drawn at random, so that two processes hardly ever draw the same.
fn candidates(count: usize) -> Vec<u32> {
    let mut drawn = Vec::with_capacity(count);
    let random = RandomState::new();
    let mut step = 0u64;
    while drawn.len() < count {
        let mut hasher = random.build_hasher();
        hasher.write_u64(step);
        step += 1;
        let span = u64::from(CHOSEN.end - CHOSEN.start);
        let index = CHOSEN.start + (hasher.finish() % span) as u32;
        if !drawn.contains(&index) {
            drawn.push(index);
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_indexes_are_in_range_and_differ() {
        let mut drawn = candidates(500);
        assert!(drawn.iter().all(|i| CHOSEN.contains(i)));
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 500);
    }
}
