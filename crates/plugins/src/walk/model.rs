//! The model: who lives, what lies on the disk, and what each call may change of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_cni_spec::CniError;
use causeway_ipam::{Lease, Owner, Range, RangeSet};
use causeway_types::state::LeaseRecord;

use super::rng::Rng;
use crate::faults::{Fault, process};
use crate::leases::{Leases, Look};
use crate::paths::Paths;
use crate::record::LeaseRecords;
use crate::store::InFlight;

const NETWORK: &str = "pods";

/// Before the last boot.
pub(super) const BEFORE: SystemTime = UNIX_EPOCH;

/// What the file of an address says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Of(Owner),
    /// Nothing that can be read: a pod of this boot may have the address.
    Torn,
    /// The same from before the boot.
    Old,
}

impl Content {
    pub(super) fn owner(&self) -> Option<&Owner> {
        match self {
            Content::Of(owner) => Some(owner),
            Content::Torn | Content::Old => None,
        }
    }
}

pub(super) type Disk = BTreeMap<IpAddr, Content>;

/// A container for which an ADD was begun.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) boot: u32,
    /// Its leases have records.
    pub(super) recorded: bool,
    /// What ADD answered; empty when it never came to that.
    pub(super) ips: Vec<IpAddr>,
}

/// How often the walk came to what.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    killed: u64,
    refused: u64,
    made: u64,
    used_up: u64,
    retried: u64,
    twice: u64,
    collected: u64,
    pub(super) reboots: u64,
    pub(super) strangers: u64,
}

impl Counts {
    pub(crate) fn each(&self) -> [(&'static str, u64); 9] {
        [
            ("killed", self.killed),
            ("refused", self.refused),
            ("made", self.made),
            ("used up", self.used_up),
            ("tried again", self.retried),
            ("second ADD", self.twice),
            ("collected", self.collected),
            ("reboots", self.reboots),
            ("strangers", self.strangers),
        ]
    }
}

pub(crate) struct Model {
    pub(super) rng: Rng,
    tmp: tempfile::TempDir,
    sets: Vec<RangeSet>,
    /// What each set can give out.
    pub(super) usable: Vec<BTreeSet<IpAddr>>,
    pub(super) boot: u32,
    pub(super) born: u32,
    /// Their ADD succeeded, and nothing has ended them.
    pub(super) live: BTreeMap<Owner, Pod>,
    /// They hold leases, and do not live.
    pub(super) dead: BTreeMap<Owner, Pod>,
    pub(super) disk: Disk,
    /// The inodes of the files behind it.
    pub(super) inodes: BTreeMap<IpAddr, u64>,
    /// What a GC that is not at its end saw.
    pub(super) gc: Vec<(IpAddr, Owner)>,
    /// Living pods whose ADD has not ended: a runtime may not know of them yet.
    pub(super) flying: BTreeMap<Owner, InFlight>,
    /// Addresses that the reference gave back: it leaves our records.
    pub(super) orphans: BTreeSet<IpAddr>,
    pub(crate) counts: Counts,
}

impl Model {
    pub(crate) fn new(rng: Rng, subnets: &[&str]) -> Self {
        let usable: Vec<BTreeSet<IpAddr>> = subnets.iter().map(|s| usable(s)).collect();
        let set = |(subnet, usable): (&&str, &BTreeSet<IpAddr>)| {
            let (first, last) = (usable.first().copied(), usable.last().copied());
            let range = Range::new(subnet.parse().unwrap(), first, last, None).unwrap();
            RangeSet::new(vec![range]).unwrap()
        };
        let sets = subnets.iter().zip(&usable).map(set).collect();
        // In memory where there is such a place: the walk writes some ten million files.
        let shm = PathBuf::from("/dev/shm");
        let place = if shm.is_dir() { shm } else { std::env::temp_dir() };
        Self {
            rng,
            tmp: tempfile::tempdir_in(place).unwrap(),
            sets,
            usable,
            boot: 1,
            born: 0,
            live: BTreeMap::new(),
            dead: BTreeMap::new(),
            disk: Disk::new(),
            inodes: BTreeMap::new(),
            gc: Vec::new(),
            flying: BTreeMap::new(),
            orphans: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn lease_dir(&self) -> PathBuf {
        self.tmp.path().join("networks").join(NETWORK)
    }

    pub(super) fn record_dir(&self) -> PathBuf {
        self.tmp.path().join("records").join(NETWORK)
    }

    /// What a plugin that has just started knows.
    fn leases(&self, owner: &Owner, recorded: bool) -> Leases {
        let paths = Paths {
            lease_records: self.tmp.path().join("records"),
            attachments: self.tmp.path().join("attachments"),
            ..Paths::default()
        };
        let record = recorded.then(|| LeaseRecord {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            pod: None,
            boot_id: format!("boot-{}", self.boot),
            seen: false,
        });
        Leases { dir: self.lease_dir(), records: LeaseRecords::at(&paths, NETWORK), record }
    }

    fn fault(&mut self) -> Option<Fault> {
        match self.rng.below(20) {
            0..9 => Some(Fault::Kill(self.rng.below(20) as u32)),
            9..11 => Some(Fault::Refuse(self.rng.below(20) as u32)),
            _ => None,
        }
    }

    /// Runs a call, with a fault on the way if it comes to it. `None`: killed.
    fn call<T>(
        &mut self,
        fault: Option<Fault>,
        run: impl FnOnce() -> Result<T, CniError>,
    ) -> Option<Result<T, CniError>> {
        let end = process(fault, run);
        self.counts.killed += u64::from(end.is_none());
        if let (Some(Err(_)), Some(Fault::Refuse(_))) = (&end, fault) {
            self.counts.refused += 1;
        }
        end
    }

    /// One call, or one thing that happens to the node. `what` says which, for the trace.
    pub(crate) fn step(&mut self, what: &mut String) {
        if self.rng.one_in(2) {
            self.flying.clear();
        }
        match self.rng.below(1000) {
            0..380 => self.add_new(what),
            380..450 => self.add_again(what),
            450..500 => self.add_twice(what),
            500..760 => self.del_live(what),
            760..840 => self.del_dead(what),
            840..870 => self.del_unknown(what),
            870..910 => self.gc(what),
            910..935 => self.status(what),
            935..950 => self.note(what),
            950..970 => self.reference(what),
            970..990 => self.garbage(what),
            990..995 => self.reboot(what),
            _ => self.recover(what),
        }
    }

    pub(super) fn add_new(&mut self, what: &mut String) {
        self.born += 1;
        let ifname = if self.rng.one_in(4) { "net1" } else { "eth0" };
        let owner = Owner::new(format!("c{}", self.born), ifname);
        let pod = Pod { boot: self.boot, recorded: !self.rng.one_in(5), ips: Vec::new() };
        let wish: Vec<IpAddr> = match self.rng.one_in(8) {
            true => {
                let at = self.rng.below(self.usable.len());
                self.rng.pick(self.usable[at].iter().copied()).into_iter().collect()
            }
            false => Vec::new(),
        };
        let fault = self.fault();
        *what = format!("ADD {owner} wishing {wish:?}, {fault:?}");
        let (leases, sets) = (self.leases(&owner, pod.recorded), self.sets.clone());
        let look = if self.rng.one_in(4) { Look::Closely } else { Look::ForMarks };
        let end = self.call(fault, || leases.allocate(&sets, &owner, &wish, look));
        let wished = matches!(&end, Some(Err(e)) if e.msg.contains("requested"));
        self.added(&owner, pod, end, fault.is_none() && !wished);
    }

    /// The runtime tries again for a container whose ADD or DEL did not come to its end. As
    /// `attachment::addresses` does it.
    fn add_again(&mut self, what: &mut String) {
        let Some((owner, pod)) = self.rng.pick(self.dead.iter()) else { return self.add_new(what) };
        // Never while a GC is under way (CNI specification, GC).
        if self.gc.iter().any(|(_, seen)| seen == owner) {
            return self.add_new(what);
        }
        let (owner, pod) = (owner.clone(), pod.clone());
        let fault = self.fault();
        *what = format!("ADD {owner} again, {fault:?}");
        let (leases, sets) = (self.leases(&owner, pod.recorded), self.sets.clone());
        // No container comes again after a boot, which may have lost the marks.
        let look = if pod.boot < self.boot { Look::Closely } else { Look::ForMarks };
        let end = self.call(fault, || match leases.allocate(&sets, &owner, &[], look) {
            Err(_) if !leases.held(&owner)?.is_empty() => {
                leases.release(&owner, &[])?;
                leases.allocate(&sets, &owner, &[], Look::Closely)
            }
            other => other,
        });
        self.counts.retried += u64::from(matches!(end, Some(Ok(_))));
        self.added(&owner, pod, end, fault.is_none());
    }

    /// What must be true after an ADD. `surely`: only want of an address excuses a failure.
    fn added(
        &mut self,
        owner: &Owner,
        mut pod: Pod,
        end: Option<Result<(Vec<Lease>, InFlight), CniError>>,
        surely: bool,
    ) {
        let (boot, recorded) = (self.boot, pod.recorded);
        let before = self.dead.clone();
        self.look(Some(owner), |held| match held {
            Content::Of(by) => {
                by == owner || recorded && before.get(by).is_some_and(|p| p.boot < boot)
            }
            // By the record beside it.
            Content::Torn => recorded,
            Content::Old => true,
        });
        let held = self.held_by(owner);
        match end {
            None => drop(self.dead.insert(owner.clone(), pod)),
            Some(Ok((given, in_flight))) => {
                let ips: BTreeSet<IpAddr> = given.iter().map(|l| l.address.addr()).collect();
                assert_eq!(ips, held, "what was answered is what was written");
                for (usable, lease) in self.usable.iter().zip(&given) {
                    assert!(usable.contains(&lease.address.addr()), "{lease:?}");
                }
                assert_eq!(given.len(), self.sets.len());
                self.dead.remove(owner);
                self.counts.made += 1;
                pod.ips = ips.into_iter().collect();
                pod.boot = boot;
                if recorded {
                    self.orphans.retain(|ip| !pod.ips.contains(ip));
                }
                // Killed later, before the pod is attached.
                let lives = !self.rng.one_in(20);
                if lives && self.rng.one_in(8) {
                    self.flying.insert(owner.clone(), in_flight);
                }
                let to = if lives { &mut self.live } else { &mut self.dead };
                to.insert(owner.clone(), pod);
            }
            Some(Err(error)) => {
                // One failure, by want of an address or of the disk: nothing is held.
                let first = !before.contains_key(owner);
                assert!(held.is_empty() || !first, "{error}, and {owner} holds {held:?}");
                if surely {
                    assert!(self.used_up(recorded), "{error}: {:?}", self.disk);
                    self.counts.used_up += 1;
                }
                self.dead.insert(owner.clone(), pod);
            }
        }
        self.check();
    }

    /// A second ADD of a living container is refused and changes nothing.
    fn add_twice(&mut self, what: &mut String) {
        let Some((owner, pod)) = self.rng.pick(self.live.iter()) else { return self.add_new(what) };
        let (owner, recorded) = (owner.clone(), pod.recorded);
        *what = format!("ADD {owner} twice");
        let (leases, sets) = (self.leases(&owner, recorded), self.sets.clone());
        let end = self.call(None, || leases.allocate(&sets, &owner, &[], Look::Closely));
        let refused = end.is_some_and(|e| e.is_err());
        assert!(refused, "a second ADD of {owner} was answered");
        self.counts.twice += 1;
        self.look(None, |_| false);
        self.check();
    }

    fn del_live(&mut self, what: &mut String) {
        let Some(owner) = self.rng.pick(self.live.keys()).cloned() else {
            return self.add_new(what);
        };
        // A mark that the disk refused, and a kill after that, would be two failures at once.
        let fault = self.fault().filter(|fault| matches!(fault, Fault::Kill(_)));
        let leases = self.leases(&owner, false);
        *what = format!("DEL {owner} begins, {fault:?}");
        let begun = self.call(fault, || {
            leases.begin_release(&owner, &[]);
            Ok(())
        });
        if begun.is_none() {
            self.look(None, |_| false);
            return self.check();
        }
        // The interface goes first: from here on the pod is dead.
        let pod = self.live.remove(&owner).unwrap();
        self.dead.insert(owner.clone(), pod);
        self.flying.remove(&owner);
        self.del(&owner, what);
    }

    fn del_dead(&mut self, what: &mut String) {
        let Some(owner) = self.rng.pick(self.dead.keys()).cloned() else {
            return self.add_new(what);
        };
        self.del(&owner, what);
    }

    fn del_unknown(&mut self, what: &mut String) {
        let owner = Owner::new(format!("c{}x", self.born), "eth0");
        self.del(&owner, what);
    }

    fn del(&mut self, owner: &Owner, what: &mut String) {
        let fault = self.fault();
        *what = format!("DEL {owner}, {fault:?}");
        let leases = self.leases(owner, false);
        let named = self.dead.get(owner).map_or(Vec::new(), |pod| pod.ips.clone());
        let end = self.call(fault, || {
            leases.begin_release(owner, &[]);
            leases.release(owner, &named)
        });
        self.look_at(None, |ip, held| match held {
            Content::Of(by) => by == owner,
            // What the result of ADD names.
            Content::Torn | Content::Old => named.contains(&ip),
        });
        match end {
            Some(Ok(_)) => assert_eq!(self.held_by(owner), BTreeSet::new(), "{owner} is gone"),
            Some(Err(error)) => assert!(fault.is_some(), "{error}"),
            None => {}
        }
        self.check();
    }

    /// GC, at times with other calls between its look and its end.
    fn gc(&mut self, what: &mut String) {
        let fault = self.fault();
        *what = format!("GC, {fault:?}");
        let leases = self.leases(&Owner::unknown(), false);
        if self.gc.is_empty() {
            let known = self.live.keys().filter(|owner| !self.flying.contains_key(*owner));
            let stale = leases.stale(&known.cloned().collect(), self.sets.len()).unwrap();
            assert_eq!(stale.doubtful, [] as [IpAddr; 0], "every valid attachment has its leases");
            self.gc = stale.leases;
            if self.rng.one_in(2) {
                return;
            }
        }
        let seen = std::mem::take(&mut self.gc);
        let end = self
            .call(fault, || seen.iter().try_for_each(|(ip, owner)| leases.release_if(*ip, owner)));
        let seen: BTreeSet<Owner> = seen.into_iter().map(|(_, owner)| owner).collect();
        self.look(None, |held| match held {
            Content::Of(owner) => seen.contains(owner),
            Content::Torn | Content::Old => seen.contains(&Owner::unknown()),
        });
        self.counts.collected += u64::from(matches!(end, Some(Ok(()))));
        self.check();
    }

    fn status(&mut self, what: &mut String) {
        let fault = self.fault();
        *what = format!("STATUS, {fault:?}");
        let (leases, sets) = (self.leases(&Owner::new("status", ""), true), self.sets.clone());
        let end = self.call(fault, || leases.has_free(&sets));
        let (boot, before) = (self.boot, self.dead.clone());
        self.look(None, |held| match held {
            Content::Of(by) => before.get(by).is_some_and(|p| p.boot < boot),
            // By the record beside it.
            Content::Torn => true,
            Content::Old => false,
        });
        if let (Some(end), None) = (end, fault) {
            assert_eq!(end.is_err(), self.used_up(true), "{end:?}: {:?}", self.disk);
        }
        self.check();
    }

    /// The agent looks at what the reference gave.
    fn note(&mut self, what: &mut String) {
        let others = self.live.iter().filter(|(_, pod)| !pod.recorded);
        let others: Vec<Owner> = others.map(|(owner, _)| owner.clone()).collect();
        let Some(owner) = self.rng.pick(others.into_iter()) else { return self.add_new(what) };
        let fault = self.fault();
        *what = format!("look at {owner}, {fault:?}");
        let (leases, boot) = (self.leases(&owner, false), format!("boot-{}", self.boot));
        let ip = self.live[&owner].ips[0];
        self.call(fault, || leases.note(ip, &owner, &boot));
        self.look(None, |_| false);
        self.check();
    }

    /// DEL of all that are dead, or GC: then only what lives holds anything.
    pub(crate) fn recover(&mut self, what: &mut String) {
        *what = "recovery".to_owned();
        let leases = self.leases(&Owner::unknown(), false);
        self.gc.clear();
        if self.rng.one_in(2) {
            for owner in self.dead.keys() {
                leases.release(owner, &[]).unwrap();
            }
        }
        let left = self.read(true).values().filter(|c| matches!(c, Content::Of(_))).count();
        self.flying.clear();
        let valid: BTreeSet<Owner> = self.live.keys().cloned().collect();
        for (ip, owner) in leases.stale(&valid, self.sets.len()).unwrap().leases {
            leases.release_if(ip, &owner).unwrap();
        }
        // The marks of those whose leases the reference gave back.
        leases.stale(&valid, self.sets.len()).unwrap();
        self.look(None, |_| true);
        let living: usize = self.live.values().map(|p| p.ips.len()).sum();
        assert_eq!(self.disk.len(), living, "as many leases as there are addresses in use");
        assert!(left >= living);
        self.check();
        self.check_files();
    }
}

/// The first three addresses after the gateway: few enough that they are often used up.
fn usable(subnet: &str) -> BTreeSet<IpAddr> {
    let net: ipnet::IpNet = subnet.parse().unwrap();
    let nth = |n: u8| match net.network() {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() + u32::from(n)).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() + u128::from(n)).into()),
    };
    (2..5).map(nth).collect()
}
