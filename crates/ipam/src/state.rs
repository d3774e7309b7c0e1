//! The leases of one network, and the questions that are asked about them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Who holds an address: one interface of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Container ID; empty if the record of the lease could not be read.
    pub container_id: String,
    /// Interface in the container; empty in records of old host-local versions, which knew
    /// containers only.
    pub ifname: String,
}

impl Owner {
    /// An interface of a container.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into() }
    }

    /// The holder of an address whose record is empty, torn or foreign: the address is taken,
    /// nobody can be named, and only GC gives it back.
    pub fn unknown() -> Self {
        Self::default()
    }

    fn old_form(&self) -> Self {
        Self::new(self.container_id.clone(), "")
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.container_id.as_str(), self.ifname.as_str()) {
            ("", _) => f.write_str("an unknown container"),
            (id, "") => f.write_str(id),
            (id, ifname) => write!(f, "{id} ({ifname})"),
        }
    }
}

/// The leases of one network and, per range set, the address given out last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    leases: BTreeMap<IpAddr, Owner>,
    by_owner: BTreeMap<Owner, BTreeSet<IpAddr>>,
    last: BTreeMap<usize, IpAddr>,
    cooling: BTreeMap<IpAddr, u64>,
}

impl State {
    /// No leases, nothing given out.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a lease that exists. Returns whom it replaces, if the address was taken.
    pub fn insert(&mut self, ip: IpAddr, owner: Owner) -> Option<Owner> {
        let previous = self.remove(ip);
        self.by_owner.entry(owner.clone()).or_default().insert(ip);
        self.leases.insert(ip, owner);
        previous
    }

    /// Gives one address back, whoever holds it.
    pub fn remove(&mut self, ip: IpAddr) -> Option<Owner> {
        let owner = self.leases.remove(&ip)?;
        if let Some(ips) = self.by_owner.get_mut(&owner) {
            ips.remove(&ip);
            if ips.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(owner)
    }

    /// Notes the address that was given out last from a range set (by its index). An address
    /// that is no longer in the set does no harm: the search then starts from the beginning.
    pub fn set_last(&mut self, set: usize, ip: IpAddr) {
        self.last.insert(set, ip);
    }

    /// The address given out last from a range set.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        self.last.get(&set).copied()
    }

    /// Notes an address that was given back a moment ago, with a number that is the less the longer ago
    /// that was: it is given out again only where no other is free.
    pub fn set_cooling(&mut self, ip: IpAddr, since: u64) {
        self.cooling.insert(ip, since);
    }

    pub(crate) fn cooling(&self) -> impl Iterator<Item = (IpAddr, u64)> + '_ {
        self.cooling.iter().map(|(ip, since)| (*ip, *since))
    }

    pub(crate) fn is_cooling(&self, ip: IpAddr) -> bool {
        self.cooling.contains_key(&ip)
    }

    /// Who holds an address.
    pub fn owner_of(&self, ip: IpAddr) -> Option<&Owner> {
        self.leases.get(&ip)
    }

    /// All leases, by address.
    pub fn leases(&self) -> impl DoubleEndedIterator<Item = (IpAddr, &Owner)> {
        self.leases.iter().map(|(ip, owner)| (*ip, owner))
    }

    /// Number of leases.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// There are no leases.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Addresses of an attachment, in order. Where none is recorded with the interface, those
    /// recorded for the container alone (the old form) are its own.
    pub fn leases_of(&self, owner: &Owner) -> Vec<IpAddr> {
        // The empty name stands for "unreadable", so it must never match anything.
        if owner.container_id.is_empty() {
            return Vec::new();
        }
        let ips = self.by_owner.get(owner).or_else(|| self.by_owner.get(&owner.old_form()));
        ips.into_iter().flatten().copied().collect()
    }

    /// Gives back all addresses of an attachment (as [`State::leases_of`] finds them). To give
    /// back what is gone is no error: the list is then empty.
    pub fn release(&mut self, owner: &Owner) -> Vec<IpAddr> {
        let ips = self.leases_of(owner);
        for ip in &ips {
            self.remove(*ip);
        }
        ips
    }

    /// The leases that belong to none of the valid attachments. A lease in the old form is kept
    /// while any interface of its container is valid; one without a readable owner is stale.
    pub fn stale(&self, valid: &BTreeSet<Owner>) -> Vec<(IpAddr, Owner)> {
        let containers: BTreeSet<&str> = valid.iter().map(|o| o.container_id.as_str()).collect();
        let is_valid = |owner: &Owner| {
            !owner.container_id.is_empty()
                && (valid.contains(owner)
                    || owner.ifname.is_empty() && containers.contains(owner.container_id.as_str()))
        };
        self.leases().filter(|(_, o)| !is_valid(o)).map(|(ip, o)| (ip, o.clone())).collect()
    }

    /// Gives back all leases that [`State::stale`] finds, and says which they were.
    pub fn release_stale(&mut self, valid: &BTreeSet<Owner>) -> Vec<(IpAddr, Owner)> {
        let stale = self.stale(valid);
        for (ip, _) in &stale {
            self.remove(*ip);
        }
        stale
    }

    pub(crate) fn taken_between(
        &self,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = IpAddr> + '_ {
        self.leases.range(first..=last).map(|(ip, _)| *ip)
    }
}
