//! Leases that nobody needs any more, told from those that are damaged under a living pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;

use crate::leases::{Leases, is_torn_from, may_be_damaged};
use crate::store::{LeaseDir, Loaded};

/// What belongs to none of the valid attachments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Leases, files that nobody can read included (their owner is unknown).
    pub leases: Vec<(IpAddr, Owner)>,
    /// Files that nobody can read while a valid attachment has no lease: one of them may be its.
    pub doubtful: Vec<IpAddr>,
}

impl Leases {
    /// Reads all leases; what records tell better is put right.
    ///
    /// # Errors
    /// Code 5.
    pub fn load_repaired(&self, dir: &LeaseDir) -> Result<Loaded, CniError> {
        // Known is known, also where it cannot be written.
        self.load_told(dir, |ip, owner| drop(dir.write_one(ip, owner)))
    }

    /// Reads all leases as they are, or as records tell better of them, which `told` is told of.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn load_told(
        &self,
        dir: &LeaseDir,
        told: impl Fn(IpAddr, &Owner),
    ) -> Result<Loaded, CniError> {
        let mut loaded = dir.load()?;
        let read = loaded.state.leases().map(|(ip, owner)| (ip, owner.clone()));
        let unread = loaded.torn.iter().chain(&loaded.old).map(|ip| (*ip, Owner::unknown()));
        for (ip, found) in read.chain(unread).collect::<Vec<_>>() {
            let Some(owner) = self.records.witness(ip)?.filter(|o| may_be_damaged(&found, o))
            else {
                continue;
            };
            told(ip, &owner);
            loaded.torn.remove(&ip);
            loaded.old.remove(&ip);
            loaded.state.insert(ip, owner);
        }
        Ok(loaded)
    }

    /// The leases of none of the valid attachments, which hold an address of so many sets each.
    /// Those of an ADD that has not ended are not among them.
    ///
    /// # Errors
    /// Code 5.
    pub fn stale(&self, valid: &BTreeSet<Owner>, sets: usize) -> Result<Stale, CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(Stale::default()) };
        let mut loaded = self.load_repaired(&dir)?;
        dir.sweep(&loaded)?;
        for (ip, found) in loaded.state.stale(valid) {
            if let Some(owner) = valid.iter().find(|owner| is_torn_from(&found, owner)) {
                let _ = dir.write_one(ip, owner);
                loaded.state.insert(ip, owner.clone());
            }
        }
        let idle = |ip: &IpAddr| !dir.is_in_flight(*ip);
        let mut leases: Vec<(IpAddr, Owner)> = loaded.state.stale(valid);
        leases.retain(|(ip, _)| idle(ip));
        let unread = |ip: IpAddr| (ip, Owner::unknown());
        leases.extend(loaded.old.into_iter().map(unread));
        if valid.iter().any(|owner| loaded.state.leases_of(owner).len() < sets) {
            // A single word may be a name of old form, or any damage.
            let (words, leases): (Vec<_>, Vec<_>) = leases
                .into_iter()
                .partition(|(_, o)| o.ifname.is_empty() && !o.container_id.is_empty());
            let doubtful = loaded.torn.into_iter().chain(words.into_iter().map(|(ip, _)| ip));
            return Ok(Stale { leases, doubtful: doubtful.collect() });
        }
        leases.extend(loaded.torn.into_iter().map(unread));
        Ok(Stale { leases, doubtful: Vec::new() })
    }

    /// What GC says when files are left that it could not judge.
    ///
    /// # Errors
    /// Code 999, if there are any.
    pub fn refuse_doubtful(&self, doubtful: &[IpAddr]) -> Result<(), CniError> {
        let Some(ip) = doubtful.first() else { return Ok(()) };
        Err(CniError::internal(format!(
            "{} files in {}, {ip} first, hold nothing that can be read, and a valid attachment has \
             no lease: they are kept, because its address may be among them; start its pod anew, \
             then remove them",
            doubtful.len(),
            self.dir.display()
        )))
    }

    /// An ADD of the attachment has not ended.
    ///
    /// # Errors
    /// Code 5.
    pub fn is_in_flight(&self, owner: &Owner) -> Result<bool, CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(false) };
        Ok(dir.load()?.state.leases_of(owner).iter().any(|ip| dir.is_in_flight(*ip)))
    }

    /// Gives back one address if it is still as it was seen: held by the same owner, or torn.
    ///
    /// # Errors
    /// Code 5.
    pub fn release_if(&self, ip: IpAddr, seen: &Owner) -> Result<(), CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(()) };
        let loaded = dir.load()?;
        let unread = loaded.torn.contains(&ip) || loaded.old.contains(&ip);
        let same = match loaded.state.owner_of(ip) {
            Some(owner) => owner == seen && !dir.is_in_flight(ip),
            None => unread && *seen == Owner::unknown(),
        };
        if !same {
            return Ok(());
        }
        self.remove(&dir, ip, seen)?;
        let last = loaded.state.leases_of(seen) == [ip];
        if last && loaded.may_hold(seen) { dir.unmark(seen) } else { Ok(()) }
    }
}
