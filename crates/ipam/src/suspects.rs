//! Two observations before a release: a lease that nobody seems to need may be younger than
//! the view that says so, or the view may be wrong once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::state::Owner;

/// A lease that looks stale to one observer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suspect {
    /// The address.
    pub ip: IpAddr,
    /// Who held it when it was observed.
    pub owner: Owner,
    /// Any number that changes when the lease is written anew (such as the file's change time),
    /// so that a lease given back and given out again between two observations starts afresh.
    pub generation: u64,
}

/// What earlier observations found suspicious.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    seen: BTreeMap<IpAddr, Suspect>,
}

impl Suspects {
    /// Nothing suspicious yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one complete observation of stale leases and returns those that the observation
    /// before found too, with the same owner and generation: they may be released now. All
    /// others in `stale` are suspects from now on; whatever is not in it is cleared. A returned
    /// lease that is still there next time (its release failed) is returned again.
    pub fn observe(&mut self, stale: impl IntoIterator<Item = Suspect>) -> Vec<Suspect> {
        let before = std::mem::take(&mut self.seen);
        self.seen = stale.into_iter().map(|s| (s.ip, s)).collect();
        self.seen.values().filter(|s| before.get(&s.ip) == Some(s)).cloned().collect()
    }

    /// The present suspects, by address; to be kept across restarts, collect them again with
    /// [`Suspects::observe`].
    pub fn iter(&self) -> impl Iterator<Item = &Suspect> {
        self.seen.values()
    }
}
