//! Giving out and taking back the addresses of one network: the pure allocator over the leases on
//! disk, with the records beside them where the network is served.

use std::net::IpAddr;
use std::path::PathBuf;

use causeway_cni_spec::CniError;
use causeway_ipam::{AllocError, Lease, Owner, RangeSet, State};
use causeway_types::state::LeaseRecord;

use crate::files::{Planned, is_absent};
use crate::record::LeaseRecords;
use crate::store::{InFlight, LeaseDir, Loaded};

/// How to find out whether an attachment that is to get addresses has some already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// By what all the leases say.
    Closely,
    /// The kernel knows nothing of the attachment: what it holds all the same, a mark tells. The cost
    /// hardly grows with the leases of others.
    ForMarks,
}

/// The leases of one network.
#[derive(Clone, Debug)]
pub struct Leases {
    /// The network's directory in host-local's layout.
    pub dir: PathBuf,
    /// The records beside them.
    pub records: LeaseRecords,
    /// What to write into the record of each new lease; `None` for a network that nobody serves,
    /// whose leases get none.
    pub record: Option<LeaseRecord>,
}

impl Leases {
    /// Gives an attachment one address of every set, requested ones where a set contains them.
    /// When a set is used up, leases from before the last boot are taken back first.
    ///
    /// # Errors
    /// Code 7 for a request that no set can fulfil, 999 when an address is taken or none is
    /// left, 5 when the state cannot be read or written. Nothing is held then.
    pub fn allocate(
        &self,
        sets: &[RangeSet],
        owner: &Owner,
        requested: &[IpAddr],
        look: Look,
    ) -> Result<(Vec<Lease>, InFlight), CniError> {
        let dir = LeaseDir::open(&self.dir)?;
        let cooling =
            dir.cooling(sets.iter().map(RangeSet::cool_down).max().unwrap_or_default())?;
        let cooled = |mut loaded: Loaded| {
            cooling.iter().for_each(|(ip, since)| loaded.state.set_cooling(*ip, *since));
            loaded
        };
        let all = || Ok(cooled(taken(dir.load()?)));
        let mut loaded = match look {
            // Who holds what is asked for belongs into the answer.
            Look::ForMarks if requested.is_empty() && !dir.may_hold(owner) => {
                cooled(dir.load_last(sets.len())?)
            }
            _ => all()?,
        };
        if !loaded.read && !find_free(&dir, &mut loaded.state, sets, owner) {
            loaded = all()?;
        }
        let leases = loop {
            let mut chosen = loaded.state.allocate(sets, owner, requested);
            if lacks(&chosen) && self.reclaim(&dir, &mut loaded)? > 0 {
                chosen = loaded.state.allocate(sets, owner, requested);
            }
            let leases = chosen.map_err(|e| self.refusal(&e, &loaded))?;
            if !self.restore(&dir, &mut loaded, &addresses(&leases), owner)? {
                break leases;
            }
            if !loaded.read {
                loaded = all()?;
            }
        };
        // The lease first: whoever releases an attachment's leases finds its records by them.
        let written = dir.write(&leases, owner).and_then(|in_flight| {
            self.write_records(&leases, owner)?;
            Ok(in_flight)
        });
        let in_flight = written.inspect_err(|_| {
            // On the way out with another error. What stays all the same goes with DEL or GC. A
            // record may be that of a torn lease whose place was taken.
            for ip in addresses(&leases) {
                let _ = self.records.remove(ip);
                let _ = dir.remove(ip);
            }
            let _ = dir.unmark(owner);
        })?;
        Ok((leases, in_flight))
    }

    /// Leases that are lost while the records of a living attachment have the address, as after the
    /// restore of a backup, are written anew. True when there were some.
    fn restore(
        &self,
        dir: &LeaseDir,
        loaded: &mut Loaded,
        chosen: &[IpAddr],
        owner: &Owner,
    ) -> Result<bool, CniError> {
        let mut found = Vec::new();
        for ip in chosen {
            let other = self.records.witness(*ip)?.filter(|other| other != owner);
            found.extend(other.map(|other| (*ip, other)));
        }
        if found.is_empty() {
            return Ok(false);
        }
        chosen.iter().for_each(|ip| drop(loaded.state.remove(*ip)));
        for (ip, other) in &found {
            dir.write_one(*ip, other)?;
            loaded.state.insert(*ip, other.clone());
        }
        Ok(true)
    }

    /// Where no records are written, one that the attachment had there before must not outlive the lease
    /// that it spoke of: a later boot would take it for that of the new one.
    fn write_records(&self, leases: &[Lease], owner: &Owner) -> Result<(), CniError> {
        addresses(leases).into_iter().try_for_each(|ip| match &self.record {
            Some(record) => self.records.write(ip, record),
            None => match self.records.read(ip)?.filter(|record| is_of(record, owner)) {
                Some(_) => self.records.remove(ip),
                None => Ok(()),
            },
        })
    }

    /// Takes back the leases whose record names another boot: no pod lives that could use them.
    /// A record of somebody else says nothing: it stayed behind where another plugin gave the
    /// address back, or where the file of a lease was torn.
    fn reclaim(&self, dir: &LeaseDir, loaded: &mut Loaded) -> Result<usize, CniError> {
        let Some(LeaseRecord { boot_id, .. }) = &self.record else { return Ok(0) };
        let mut stale = Vec::new();
        for (ip, owner) in loaded.state.leases() {
            // What nobody can read is from before the boot if its record is.
            let own = |r: &LeaseRecord| is_of(r, owner) || *owner == Owner::unknown();
            let record = self.records.read(ip)?.filter(own);
            if record.is_some_and(|r| r.boot_id != *boot_id) {
                stale.push((ip, owner.clone()));
            }
        }
        for (ip, owner) in &stale {
            self.remove(dir, *ip, owner)?;
            loaded.state.remove(*ip);
        }
        Ok(stale.len())
    }

    /// The addresses that an attachment holds.
    ///
    /// # Errors
    /// Code 5.
    pub fn held(&self, owner: &Owner) -> Result<Vec<IpAddr>, CniError> {
        match LeaseDir::open_existing(&self.dir)? {
            Some(dir) => Ok(dir.load()?.state.leases_of(owner)),
            None => Ok(Vec::new()),
        }
    }

    /// Notes that an attachment, be it made by others, is about to be removed: should that not come to
    /// its end, the next ADD of it looks for what it holds. `other_mac`: those of its addresses for
    /// which neighbours may remember another MAC than the address's own. A disk that takes no note
    /// must not keep it.
    pub fn begin_release(&self, owner: &Owner, other_mac: &[IpAddr]) {
        if let Ok(Some(dir)) = LeaseDir::open_existing(&self.dir) {
            let _ = dir.mark(owner);
            other_mac.iter().for_each(|ip| drop(dir.note_other_mac(*ip)));
        }
    }

    /// Notes that neighbours may remember any MAC for addresses.
    pub fn forget_macs(&self, ips: &[IpAddr]) {
        if let Ok(Some(dir)) = LeaseDir::open_existing(&self.dir) {
            ips.iter().for_each(|ip| drop(dir.note_other_mac(*ip)));
        }
    }

    /// Gives back addresses that an ADD got before it failed, and no others of its attachment: those
    /// may be in use.
    ///
    /// # Errors
    /// Code 5.
    pub fn give_back(&self, owner: &Owner, given: &[IpAddr]) -> Result<(), CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(()) };
        for ip in given {
            if dir.owner_of(*ip)?.is_some_and(|found| found == *owner) {
                self.remove(&dir, *ip, owner)?;
            }
        }
        dir.unmark(owner)
    }

    /// Gives back all addresses of an attachment. What is gone is fine. Of the addresses that
    /// others name as its own (its record, the result of ADD), those go whose files cannot be read
    /// or were overwritten.
    ///
    /// # Errors
    /// Code 5.
    pub fn release(&self, owner: &Owner, named: &[IpAddr]) -> Result<(), CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(()) };
        let loaded = dir.load()?;
        let own = self.own(&loaded, owner, named)?;
        // And those that others' records speak of: the lease goes, what protects the others stays.
        let leased = loaded.state.leases_of(owner).into_iter().filter(|ip| !own.contains(ip));
        own.iter().copied().chain(leased).try_for_each(|ip| self.remove(&dir, ip, owner))?;
        if loaded.may_hold(owner) {
            dir.unmark(owner)?;
        }
        dir.sweep(&loaded)
    }

    /// The addresses that [`Leases::release`] gives back, but for those that records say are
    /// another's: its rules and connections are to stay.
    ///
    /// # Errors
    /// Code 5.
    pub fn held_or_named(&self, owner: &Owner, named: &[IpAddr]) -> Result<Vec<IpAddr>, CniError> {
        match LeaseDir::open_existing(&self.dir)? {
            Some(dir) => self.own(&dir.load()?, owner, named),
            None => Ok(Vec::new()),
        }
    }

    fn own(
        &self,
        loaded: &Loaded,
        owner: &Owner,
        named: &[IpAddr],
    ) -> Result<Vec<IpAddr>, CniError> {
        let leased = loaded.state.leases_of(owner);
        let mut own = Vec::new();
        for ip in leased.iter().chain(named.iter().filter(|ip| !leased.contains(ip))) {
            let unread = loaded.torn.contains(ip)
                || loaded.old.contains(ip)
                || loaded.state.owner_of(*ip).is_some_and(|found| may_be_damaged(found, owner));
            if match self.records.witness(*ip)? {
                Some(witnessed) => witnessed == *owner,
                None => leased.contains(ip) || unread,
            } {
                own.push(*ip);
            }
        }
        Ok(own)
    }

    /// Removes a lease of an owner, and its record unless that is another's.
    pub(crate) fn remove(&self, dir: &LeaseDir, ip: IpAddr, owner: &Owner) -> Result<(), CniError> {
        if self.records.witness(ip)?.is_none_or(|other| other == *owner) {
            self.records.remove(ip)?;
        }
        dir.note_released(ip);
        dir.remove(ip)
    }

    /// Notes that a lease of another plugin was there in this boot, if it still is and has no record
    /// of its own: after a reboot that tells that nobody uses it.
    ///
    /// # Errors
    /// Code 5.
    pub fn note(&self, ip: IpAddr, owner: &Owner, boot_id: &str) -> Result<(), CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(()) };
        let noted = self.records.read(ip)?.is_some_and(|r| is_of(&r, owner));
        if noted || dir.load()?.state.owner_of(ip) != Some(owner) {
            return Ok(());
        }
        let record = LeaseRecord {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            pod: None,
            boot_id: boot_id.to_owned(),
            seen: true,
        };
        self.records.write(ip, &record)
    }

    /// Would an attachment get its addresses now?
    ///
    /// # Errors
    /// Code 50, with the reason.
    pub fn has_free(&self, sets: &[RangeSet]) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        // Asking makes nothing.
        if self.dir.symlink_metadata().is_err_and(|e| is_absent(&e)) {
            return Ok(());
        }
        let dir = LeaseDir::open(&self.dir).map_err(unavailable)?;
        let mut loaded = taken(dir.load().map_err(unavailable)?);
        let nobody = Owner::new("status", "");
        let mut chosen = loaded.state.allocate(sets, &nobody, &[]);
        if lacks(&chosen) && self.reclaim(&dir, &mut loaded).map_err(unavailable)? > 0 {
            chosen = loaded.state.allocate(sets, &nobody, &[]);
        }
        chosen.map(drop).map_err(|e| unavailable(self.refusal(&e, &loaded)))
    }

    /// The files that an attachment's leases need, in order to ask whether there is room.
    pub(crate) fn files(&self, sets: usize) -> Vec<Planned> {
        let records = (0..sets).filter(|_| self.record.is_some()).map(|set| self.records.file(set));
        LeaseDir::files(&self.dir, sets).into_iter().chain(records).collect()
    }
}

/// The end of the file is missing: what is there is how the owner's begins.
pub(crate) fn is_torn_from(found: &Owner, owner: &Owner) -> bool {
    if found.ifname.is_empty() {
        return !found.container_id.is_empty()
            && owner.container_id.starts_with(&found.container_id);
    }
    found.container_id == owner.container_id
        && found.ifname != owner.ifname
        && owner.ifname.starts_with(&found.ifname)
}

/// A lease that says `found` may be that of `owner`, damaged. Nobody writes leases of a single word
/// any more. What names another attachment whole is its: another plugin may have given the address
/// back and out again, and it leaves our records of before.
pub(crate) fn may_be_damaged(found: &Owner, owner: &Owner) -> bool {
    found.ifname.is_empty() || is_torn_from(found, owner)
}

/// So many addresses are looked for by their names before all are read.
const PROBES: usize = 64;

/// Notes the leases of addresses that come next until those that come next, of every set, have none:
/// nobody needs to know of the others. False when that takes too long, or none is free.
fn find_free(dir: &LeaseDir, state: &mut State, sets: &[RangeSet], owner: &Owner) -> bool {
    for _ in 0..PROBES {
        let Ok(next) = state.clone().allocate(sets, owner, &[]) else { return false };
        let taken: Vec<IpAddr> =
            addresses(&next).into_iter().filter(|ip| dir.is_there(*ip)).collect();
        if taken.is_empty() {
            return true;
        }
        taken.into_iter().for_each(|ip| drop(state.insert(ip, Owner::unknown())));
    }
    false
}

/// What nobody can read may be in use: it is not given out.
fn taken(mut loaded: Loaded) -> Loaded {
    for ip in &loaded.torn {
        loaded.state.insert(*ip, Owner::unknown());
    }
    loaded
}

/// The record speaks of this attachment's lease.
pub(crate) fn is_of(record: &LeaseRecord, owner: &Owner) -> bool {
    (&record.container_id, &record.ifname) == (&owner.container_id, &owner.ifname)
}

fn addresses(leases: &[Lease]) -> Vec<IpAddr> {
    leases.iter().map(|l| l.address.addr()).collect()
}

/// Leases that nobody needs any more may stand in the way.
fn lacks(chosen: &Result<Vec<Lease>, AllocError>) -> bool {
    matches!(chosen, Err(AllocError::Exhausted { .. } | AllocError::Taken { .. }))
}

#[cfg(test)]
mod tests;
