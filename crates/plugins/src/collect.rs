//! Leases and attachments that outlived their pods: found by a fresh process from the disk and the
//! kernel, and released after two observations.
//!
//! A node that reboots or crashes gets no DEL for the pods that it had, and few runtimes call GC. So
//! the agent looks by itself (at its start and from time to time), and `causeway ipam gc` for people.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use causeway_cni_spec::CniError;
use causeway_ipam::{Owner, Suspect, Suspects};
use causeway_kernel::NetNs;
use causeway_types::state::AttachmentRecord;
use causeway_types::{IfName, PodRef, names};

use crate::attachment::{self, Kept};
use crate::causeway::remembered;
use crate::leases::{Leases, is_of};
use crate::names::Derived;
use crate::paths::Paths;
use crate::record::{self, Attachments, LeaseRecords};
use crate::space::Space;
use crate::store::{LeaseDir, Loaded};

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The address.
    pub ip: IpAddr,
    /// The container and interface that it was given to.
    pub owner: Owner,
    /// The pod, where that was told.
    pub pod: Option<PodRef>,
    /// Whether somebody needs it.
    pub verdict: Verdict,
    generation: u64,
    /// A record goes with it.
    noted: bool,
}

/// Whether a lease is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its interface or its namespace is there.
    Live,
    /// Nobody can use it; and why that is so.
    Stale(String),
    /// Others made it: it is kept, and why.
    Kept(String),
}

/// A network's leases, and where everything is.
#[derive(Clone, Debug)]
pub struct Network {
    /// Files of the plugins.
    pub paths: Paths,
    /// The network's name.
    pub name: String,
    /// No other plugin gives out addresses of this network (type `causeway`): a lease without a
    /// record is then the trace of a plugin that was killed.
    pub own: bool,
}

/// Takes observations, and releases what two in a row found stale.
#[derive(Debug)]
pub struct Collector {
    network: Network,
    suspects: Suspects,
    attachments: BTreeSet<Owner>,
}

/// What an observation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Released now: address, owner, and why.
    pub released: Vec<(IpAddr, Owner, String)>,
    /// Stale at this observation for the first time.
    pub suspects: usize,
    /// What could not be released; it is tried again at the next observation.
    pub failed: Vec<String>,
}

impl Network {
    fn leases(&self) -> Leases {
        Leases {
            dir: self.paths.leases.join(&self.name),
            records: LeaseRecords::at(&self.paths, &self.name),
            record: None,
        }
    }

    /// All leases of the network.
    ///
    /// # Errors
    /// Code 5 when the disk, code 999 when the kernel cannot be read: then nothing is known.
    pub fn look(&self) -> Result<Vec<Held>, CniError> {
        let leases = self.leases();
        let Some(dir) = LeaseDir::open_existing(&leases.dir)? else { return Ok(Vec::new()) };
        let loaded = leases.load_repaired(&dir)?;
        self.judge(&leases, dir, loaded)
    }

    /// All leases of the network, without a change of anything: damaged leases are judged by what
    /// records tell of them and stay as they are, and nobody is kept waiting, so that what changes
    /// meanwhile may be judged wrongly.
    ///
    /// # Errors
    /// As [`Network::look`].
    pub fn peek(&self) -> Result<Vec<Held>, CniError> {
        let leases = self.leases();
        if !leases.dir.is_dir() {
            return Ok(Vec::new());
        }
        let dir = LeaseDir::unlocked(&leases.dir);
        let loaded = leases.load_told(&dir, |_, _| {})?;
        self.judge(&leases, dir, loaded)
    }

    fn judge(&self, leases: &Leases, dir: LeaseDir, loaded: Loaded) -> Result<Vec<Held>, CniError> {
        let busy = |ip: &IpAddr| dir.is_in_flight(*ip);
        let in_flight: BTreeSet<IpAddr> =
            loaded.state.leases().map(|(ip, _)| ip).filter(busy).collect();
        drop(dir);
        let witness = Witness::call(self)?;
        let mut all = Vec::new();
        for (ip, owner) in loaded.state.leases() {
            let path = leases.dir.join(ip.to_string());
            // Gone meanwhile.
            let Some(generation) = generation(&path) else { continue };
            let mut held = witness.judge(self, leases, ip, owner.clone(), generation)?;
            if in_flight.contains(&ip) {
                held.verdict = Verdict::Live;
            }
            all.push(held);
        }
        let unread = |ip, verdict| Held {
            ip,
            owner: Owner::unknown(),
            pod: None,
            verdict,
            generation: generation(&leases.dir.join(ip.to_string())).unwrap_or(0),
            noted: false,
        };
        let why = "its file holds nothing that can be read";
        all.extend(loaded.old.into_iter().map(|ip| unread(ip, Verdict::Stale(why.to_owned()))));
        // A pod from before the agent has no record to tell that it is its.
        let torn = match self.own {
            true => Verdict::Stale(why.to_owned()),
            false => Verdict::Kept(format!("{why}: remove it if no pod has the address")),
        };
        all.extend(loaded.torn.into_iter().map(|ip| unread(ip, torn.clone())));
        Ok(all)
    }

    /// Attachment records that speak of interfaces that are gone for good, and why that is so.
    ///
    /// # Errors
    /// Code 5 when the disk, code 999 when the kernel cannot be read.
    pub fn gone(&self) -> Result<Vec<(AttachmentRecord, String)>, CniError> {
        let mut witness = Witness::call(self)?;
        let records = std::mem::take(&mut witness.records);
        let mut gone = Vec::new();
        for record in records.into_values() {
            if let Some(why) = witness.end_of(&record)? {
                gone.push((record, why));
            }
        }
        Ok(gone)
    }
}

/// A number that changes when a lease is written anew; compared with others of its kind only, so
/// that a clock which is set does no harm.
fn generation(path: &std::path::Path) -> Option<u64> {
    let meta = path.symlink_metadata().ok()?;
    Some(meta.ino() ^ (meta.mtime_nsec().unsigned_abs() << 20) ^ meta.mtime().unsigned_abs())
}

/// What the disk and the kernel say at one moment.
struct Witness {
    boot_id: String,
    links: BTreeSet<IfName>,
    records: BTreeMap<Owner, AttachmentRecord>,
}

impl Witness {
    fn call(network: &Network) -> Result<Self, CniError> {
        let all = Attachments::at(&network.paths).list()?;
        let own = all.into_iter().filter(|r| r.network == network.name);
        // After the records: an interface that is made meanwhile is seen.
        Ok(Self {
            boot_id: record::boot_id(&network.paths)?,
            records: own.map(|r| (Owner::new(&r.container_id, r.ifname.as_str()), r)).collect(),
            links: Space::node()?.links()?,
        })
    }

    /// Why an attachment is over; `None` while it is not.
    ///
    /// # Errors
    /// Code 999 when it cannot be told.
    fn end_of(&self, record: &AttachmentRecord) -> Result<Option<String>, CniError> {
        if record.boot_id != self.boot_id {
            return Ok(Some("it is from before the last boot".to_owned()));
        }
        let (host, netns) = (&record.host_ifname, &record.netns);
        let unknown = |e: causeway_kernel::Error| CniError::internal(e.to_string());
        let there = self.links.contains(host) || NetNs::find(netns).map_err(unknown)?.is_some();
        Ok((!there).then(|| format!("interface {host} and namespace {netns} are gone")))
    }

    fn judge(
        &self,
        network: &Network,
        leases: &Leases,
        ip: IpAddr,
        owner: Owner,
        generation: u64,
    ) -> Result<Held, CniError> {
        let noted = leases.records.read(ip)?.filter(|r| is_of(r, &owner));
        let record = self.records.get(&owner);
        let pod = record
            .and_then(|r| r.pod.clone())
            .or_else(|| noted.as_ref().and_then(|n| n.pod.clone()));
        let verdict = match (record, &noted) {
            (Some(record), _) => self.end_of(record)?.map_or(Verdict::Live, Verdict::Stale),
            (None, Some(n)) if n.boot_id != self.boot_id => {
                Verdict::Stale("it is from before the last boot".to_owned())
            }
            (None, _) if self.has_derived(&owner) || self.has_unknown(network, &owner)? => {
                Verdict::Live
            }
            (None, noted) if !network.own && noted.as_ref().is_none_or(|n| n.seen) => {
                Verdict::Kept(
                    "it has no record of ours: another plugin may have given it".to_owned(),
                )
            }
            (None, _) => Verdict::Stale("no attachment and no interface go with it".to_owned()),
        };
        Ok(Held { ip, owner, pod, verdict, generation, noted: noted.is_some() })
    }

    /// Another version attached the owner, in a way that is not known here, and its namespace is there.
    ///
    /// # Errors
    /// Code 5; code 999 when it cannot be told.
    fn has_unknown(&self, network: &Network, owner: &Owner) -> Result<bool, CniError> {
        let vital = Attachments::at(&network.paths).vital(owner)?;
        let Some(vital) = vital.filter(|v| v.boot_id == self.boot_id) else { return Ok(false) };
        let found = NetNs::find(&vital.netns).map_err(|e| CniError::internal(e.to_string()))?;
        Ok(found.is_some())
    }

    /// The interface that we would have made for this owner is there.
    fn has_derived(&self, owner: &Owner) -> bool {
        self.links.contains(&names::host_veth(&owner.container_id, &owner.ifname))
    }
}

impl Collector {
    /// A collector that has seen nothing yet.
    pub fn new(network: Network) -> Self {
        Self { network, suspects: Suspects::new(), attachments: BTreeSet::new() }
    }

    /// Looks once. What the look before found stale, too, and has not changed since, is released:
    /// rules, neighbours and connections of the address first, then the lease, then the record.
    ///
    /// # Errors
    /// When too little can be read to judge; nothing is released then, and the next look begins
    /// anew.
    pub fn observe(&mut self) -> Result<Collected, CniError> {
        let (held, gone) = match (self.network.look(), self.network.gone()) {
            (Ok(held), Ok(gone)) => (held, gone),
            (held, gone) => {
                self.suspects = Suspects::new();
                self.attachments.clear();
                return Err(held.err().or(gone.err()).unwrap_or_else(|| CniError::internal("")));
            }
        };
        let mut done = Collected { failed: self.note(&held), ..Collected::default() };
        let mut whys: BTreeMap<IpAddr, String> = BTreeMap::new();
        let stale = held.into_iter().filter_map(|h| match h.verdict {
            Verdict::Stale(why) => {
                whys.insert(h.ip, why);
                Some(Suspect { ip: h.ip, owner: h.owner, generation: h.generation })
            }
            Verdict::Live | Verdict::Kept(_) => None,
        });
        let due = self.suspects.observe(stale.collect::<Vec<_>>());
        done.suspects = whys.len() - due.len();
        for suspect in due {
            let why = whys.remove(&suspect.ip).unwrap_or_default();
            match self.release(&suspect) {
                Ok(()) => done.released.push((suspect.ip, suspect.owner, why)),
                Err(e) => done.failed.push(format!("lease of {}: {e}", suspect.ip)),
            }
        }
        self.records(gone, &mut done);
        Ok(done)
    }

    /// Notes leases of other plugins, so that they are known to be from before the next boot. A
    /// lease's own time would not do: clocks are set, often after the first pods of a boot.
    fn note(&self, held: &[Held]) -> Vec<String> {
        let boot_id = match record::boot_id(&self.network.paths) {
            Ok(id) => id,
            Err(e) => return vec![e.to_string()],
        };
        let leases = self.network.leases();
        let kept = held.iter().filter(|h| matches!(h.verdict, Verdict::Kept(_)) && !h.noted);
        kept.filter_map(|h| leases.note(h.ip, &h.owner, &boot_id).err())
            .map(|e| e.to_string())
            .collect()
    }

    /// Records whose leases are gone already.
    fn records(&mut self, gone: Vec<(AttachmentRecord, String)>, done: &mut Collected) {
        let before = std::mem::take(&mut self.attachments);
        for (record, _) in gone {
            let owner = Owner::new(&record.container_id, record.ifname.as_str());
            if before.contains(&owner)
                && let Err(e) = self.detach(&record, true)
            {
                done.failed.push(format!("attachment of {owner}: {e}"));
            }
            self.attachments.insert(owner);
        }
    }

    fn release(&self, suspect: &Suspect) -> Result<(), CniError> {
        let paths = &self.network.paths;
        let owner = &suspect.owner;
        let leases = self.network.leases();
        let Ok(ifname) = IfName::new(&owner.ifname) else {
            return leases.release_if(suspect.ip, owner);
        };
        match Attachments::at(paths).read(&owner.container_id, &owner.ifname)? {
            Some(record) => self.detach(&record, true),
            None => {
                let ends = Derived::new(&owner.container_id, ifname);
                let held = vec![suspect.ip];
                self.detach(&remembered(paths, &self.network.name, ends, owner, held), false)?;
                leases.release_if(suspect.ip, owner)
            }
        }
    }

    fn detach(&self, record: &AttachmentRecord, noted: bool) -> Result<(), CniError> {
        let owner = Owner::new(&record.container_id, record.ifname.as_str());
        let leases = self.network.leases();
        let kept = Kept { record: noted, ..Kept::SERVED };
        let named = attachment::addresses_of(record);
        let release = || if noted { leases.release(&owner, &named) } else { Ok(()) };
        attachment::detach(&self.network.paths, &mut Space::node()?, record, kept, release)
    }
}
