//! Giving out and taking back the addresses of one network: the pure allocator over the leases on
//! disk, with the records beside them where the network is served.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use causeway_cni_spec::CniError;
use causeway_ipam::{AllocError, Lease, Owner, RangeSet};
use causeway_types::state::LeaseRecord;

use crate::record::LeaseRecords;
use crate::store::{LeaseDir, Loaded};

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
    ) -> Result<Vec<Lease>, CniError> {
        let dir = LeaseDir::open(&self.dir)?;
        let mut loaded = dir.load()?;
        let mut chosen = loaded.state.allocate(sets, owner, requested);
        if used_up(&chosen) && self.reclaim(&dir, &mut loaded)? > 0 {
            chosen = loaded.state.allocate(sets, owner, requested);
        }
        let leases = chosen.map_err(|e| self.refusal(&e))?;
        // The lease first: whoever releases an attachment's leases finds its records by them.
        let written = dir.write(&leases, owner).and_then(|()| self.write_records(&leases));
        written.inspect_err(|_| {
            // On the way out with another error. What stays all the same goes with DEL or GC. A
            // record may be that of a torn lease whose place was taken.
            for ip in addresses(&leases) {
                let _ = self.records.remove(ip);
                let _ = dir.remove(ip);
            }
        })?;
        Ok(leases)
    }

    fn write_records(&self, leases: &[Lease]) -> Result<(), CniError> {
        let Some(record) = &self.record else { return Ok(()) };
        leases.iter().try_for_each(|lease| self.records.write(lease.address.addr(), record))
    }

    /// Takes back the leases whose record names another boot: no pod lives that could use them.
    /// A record of somebody else says nothing: it stayed behind where another plugin gave the
    /// address back, or where the file of a lease was torn.
    fn reclaim(&self, dir: &LeaseDir, loaded: &mut Loaded) -> Result<usize, CniError> {
        let Some(LeaseRecord { boot_id, .. }) = &self.record else { return Ok(0) };
        let mut stale = Vec::new();
        for (ip, owner) in loaded.state.leases() {
            let record = self.records.read(ip)?.filter(|r| is_of(r, owner));
            if record.is_some_and(|r| r.boot_id != *boot_id) {
                stale.push(ip);
            }
        }
        self.remove(dir, &stale)?;
        for ip in &stale {
            loaded.state.remove(*ip);
        }
        Ok(stale.len())
    }

    fn refusal(&self, error: &AllocError) -> CniError {
        match error {
            AllocError::Exhausted { .. } => CniError::internal(format!(
                "{error}; leases are in {}: remove those of pods that are gone (the command GC \
                 does) or enlarge the range",
                self.dir.display()
            )),
            AllocError::Duplicate { .. } | AllocError::Taken { .. } => {
                CniError::internal(error.to_string())
            }
            AllocError::Gateway(_) | AllocError::Unusable(_) | AllocError::NotInRanges(_) => {
                CniError::invalid_config(error.to_string())
            }
        }
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

    /// Gives back all addresses of an attachment. What is gone is fine.
    ///
    /// # Errors
    /// Code 5.
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>, CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(Vec::new()) };
        let ips = dir.load()?.state.leases_of(owner);
        self.remove(&dir, &ips)?;
        Ok(ips)
    }

    /// The leases of none of the valid attachments, torn files included (their owner is unknown).
    ///
    /// # Errors
    /// Code 5.
    pub fn stale(&self, valid: &BTreeSet<Owner>) -> Result<Vec<(IpAddr, Owner)>, CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(Vec::new()) };
        let loaded = dir.load()?;
        let torn = loaded.torn.into_iter().map(|ip| (ip, Owner::unknown()));
        Ok(loaded.state.stale(valid).into_iter().chain(torn).collect())
    }

    /// Gives back one address if it is still as it was seen: held by the same owner, or torn.
    ///
    /// # Errors
    /// Code 5.
    pub fn release_if(&self, ip: IpAddr, seen: &Owner) -> Result<(), CniError> {
        let Some(dir) = LeaseDir::open_existing(&self.dir)? else { return Ok(()) };
        let loaded = dir.load()?;
        let same = match loaded.state.owner_of(ip) {
            Some(owner) => owner == seen,
            None => loaded.torn.contains(&ip) && *seen == Owner::unknown(),
        };
        if same { self.remove(&dir, &[ip]) } else { Ok(()) }
    }

    fn remove(&self, dir: &LeaseDir, ips: &[IpAddr]) -> Result<(), CniError> {
        for ip in ips {
            self.records.remove(*ip)?;
            dir.remove(*ip)?;
        }
        Ok(())
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
        let Some(dir) = LeaseDir::open_existing(&self.dir).map_err(unavailable)? else {
            return Ok(());
        };
        let mut loaded = dir.load().map_err(unavailable)?;
        let nobody = Owner::new("status", "");
        let mut chosen = loaded.state.allocate(sets, &nobody, &[]);
        if used_up(&chosen) && self.reclaim(&dir, &mut loaded).map_err(unavailable)? > 0 {
            chosen = loaded.state.allocate(sets, &nobody, &[]);
        }
        chosen.map(drop).map_err(|e| unavailable(self.refusal(&e)))
    }
}

/// The record speaks of this attachment's lease.
pub(crate) fn is_of(record: &LeaseRecord, owner: &Owner) -> bool {
    (&record.container_id, &record.ifname) == (&owner.container_id, &owner.ifname)
}

fn addresses(leases: &[Lease]) -> Vec<IpAddr> {
    leases.iter().map(|l| l.address.addr()).collect()
}

fn used_up(chosen: &Result<Vec<Lease>, AllocError>) -> bool {
    matches!(chosen, Err(AllocError::Exhausted { .. }))
}

#[cfg(test)]
mod tests {
    use causeway_ipam::Range;

    use super::*;
    use crate::paths::Paths;

    fn sets() -> Vec<RangeSet> {
        let range = Range::new("10.1.2.0/30".parse().unwrap(), None, None, None).unwrap();
        vec![RangeSet::new(vec![range]).unwrap()]
    }

    fn leases(tmp: &std::path::Path, boot: Option<&str>) -> Leases {
        let paths = Paths { lease_records: tmp.join("records"), ..Paths::default() };
        let record = boot.map(|boot| LeaseRecord {
            container_id: "c".into(),
            ifname: "eth0".into(),
            pod: None,
            boot_id: boot.into(),
            seen: false,
        });
        Leases { dir: tmp.join("net"), records: LeaseRecords::at(&paths, "net"), record }
    }

    fn owner(id: &str) -> Owner {
        Owner::new(id, "eth0")
    }

    #[test]
    fn the_last_address_then_none_then_given_back() {
        let tmp = tempfile::tempdir().unwrap();
        let l = leases(tmp.path(), None);
        l.has_free(&sets()).unwrap();
        assert!(!l.dir.exists(), "asking makes nothing");
        l.allocate(&sets(), &owner("a"), &[]).unwrap();
        let err = l.allocate(&sets(), &owner("b"), &[]).unwrap_err();
        assert_eq!(err.code, 999, "{err}");
        assert_eq!(l.has_free(&sets()).unwrap_err().code, 50);
        assert_eq!(l.release(&owner("a")).unwrap().len(), 1);
        assert!(l.release(&owner("a")).unwrap().is_empty());
        l.allocate(&sets(), &owner("b"), &[]).unwrap();
        let twice = l.allocate(&sets(), &owner("b"), &[]).unwrap_err();
        assert!(twice.msg.contains("duplicate allocation is not allowed"), "{twice}");
    }

    #[test]
    fn leases_from_before_the_boot_come_back_when_needed() {
        let tmp = tempfile::tempdir().unwrap();
        leases(tmp.path(), Some("boot-1")).allocate(&sets(), &owner("c"), &[]).unwrap();
        let now = leases(tmp.path(), Some("boot-2"));
        now.allocate(&sets(), &owner("b"), &[]).unwrap();
        assert!(now.held(&owner("c")).unwrap().is_empty());
        assert!(now.allocate(&sets(), &owner("d"), &[]).is_err());
    }

    /// The reference gave the address back, which leaves our record of before the boot, and gave it
    /// to a pod of this boot: that one lives.
    #[test]
    fn a_record_of_somebody_else_takes_nothing_back() {
        let tmp = tempfile::tempdir().unwrap();
        leases(tmp.path(), Some("boot-1")).allocate(&sets(), &owner("c"), &[]).unwrap();
        let now = leases(tmp.path(), Some("boot-2"));
        std::fs::write(now.dir.join("10.1.2.2"), "by-reference\r\neth0").unwrap();
        assert!(now.allocate(&sets(), &owner("c2"), &[]).is_err());
        assert_eq!(now.held(&owner("by-reference")).unwrap().len(), 1);
    }

    #[test]
    fn gc_lets_go_only_what_it_saw() {
        let tmp = tempfile::tempdir().unwrap();
        let l = leases(tmp.path(), None);
        l.allocate(&sets(), &owner("a"), &[]).unwrap();
        let stale = l.stale(&BTreeSet::new()).unwrap();
        l.release(&owner("a")).unwrap();
        l.allocate(&sets(), &owner("b"), &[]).unwrap();
        l.release_if(stale[0].0, &stale[0].1).unwrap();
        assert_eq!(l.held(&owner("b")).unwrap().len(), 1);
    }
}
