//! What is looked at after each call. Nothing here reads by way of the store: another reader of the
//! same files must come to the same.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirEntryExt;

use causeway_ipam::Owner;
use causeway_types::state::LeaseRecord;

use super::model::{BEFORE, Content, Disk, Model};
use crate::store::LeaseDir;

impl Model {
    /// What lies on the disk. Unless `all`, a file of the same inode as before is taken to hold the
    /// same: leases are renamed into place, and now and then all are read.
    pub(super) fn read(&mut self, all: bool) -> Disk {
        let inodes = std::mem::take(&mut self.inodes);
        let Ok(entries) = fs::read_dir(self.lease_dir()) else { return Disk::new() };
        let mut disk = Disk::new();
        for entry in entries {
            let entry = entry.unwrap();
            let Ok(ip) = entry.file_name().to_str().unwrap().parse::<IpAddr>() else { continue };
            self.inodes.insert(ip, entry.ino());
            let content = match self.disk.get(&ip) {
                Some(had) if !all && inodes.get(&ip) == Some(&entry.ino()) => had.clone(),
                _ => content(&entry),
            };
            disk.insert(ip, content);
        }
        disk
    }

    /// Reads the disk: new are leases of one owner only, gone or replaced only what may be.
    #[track_caller]
    pub(super) fn look(&mut self, gains: Option<&Owner>, may_lose: impl Fn(&Content) -> bool) {
        self.look_at(gains, |_, content| may_lose(content));
    }

    #[track_caller]
    pub(super) fn look_at(
        &mut self,
        gains: Option<&Owner>,
        may_lose: impl Fn(IpAddr, &Content) -> bool,
    ) {
        let all = self.rng.one_in(16);
        let now = self.read(all);
        for (ip, had) in self.disk.iter().filter(|(ip, had)| now.get(*ip) != Some(had)) {
            assert!(may_lose(*ip, had), "{ip}: {had:?} became {:?}", now.get(ip));
        }
        for (ip, has) in now.iter().filter(|(ip, has)| self.disk.get(*ip) != Some(has)) {
            assert_eq!(Some(has), gains.cloned().map(Content::Of).as_ref(), "new at {ip}");
        }
        self.disk = now;
    }

    pub(super) fn held_by(&self, owner: &Owner) -> BTreeSet<IpAddr> {
        let of = Content::Of(owner.clone());
        self.disk.iter().filter(|(_, c)| **c == of).map(|(ip, _)| *ip).collect()
    }

    /// Every living pod has its addresses and no others, and every lease has an owner whose end can
    /// be told.
    #[track_caller]
    pub(super) fn check(&mut self) {
        for (owner, pod) in &self.live {
            let ips: BTreeSet<IpAddr> = pod.ips.iter().copied().collect();
            assert_eq!(self.held_by(owner), ips, "{owner} lives");
        }
        let held: BTreeSet<&Owner> = self.disk.values().filter_map(Content::owner).collect();
        self.dead.retain(|owner, _| held.contains(owner));
        for owner in held {
            assert!(self.live.contains_key(owner) || self.dead.contains_key(owner), "{owner}?");
        }
        if self.rng.one_in(64) {
            self.check_fresh();
        }
    }

    /// A process that starts now sees the same.
    #[track_caller]
    fn check_fresh(&self) {
        let Some(dir) = LeaseDir::open_existing(&self.lease_dir()).unwrap() else { return };
        let loaded = dir.load().unwrap();
        let torn = loaded.torn.into_iter().map(|ip| (ip, Content::Torn));
        let old = loaded.old.into_iter().map(|ip| (ip, Content::Old));
        let leases = loaded.state.leases().map(|(ip, owner)| (ip, Content::Of(owner.clone())));
        assert_eq!(leases.chain(torn).chain(old).collect::<Disk>(), self.disk);
    }

    pub(super) fn record(&self, ip: IpAddr) -> Option<LeaseRecord> {
        let text = fs::read(self.record_dir().join(format!("{ip}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// In some set every address is taken, by leases that nobody may take back now.
    pub(super) fn used_up(&self, recorded: bool) -> bool {
        let boot = format!("boot-{}", self.boot);
        let kept = |ip: &IpAddr| match self.disk.get(ip) {
            None | Some(Content::Old) => false,
            Some(content) => {
                let old = self.record(*ip).is_some_and(|r| {
                    let of =
                        |o: &Owner| (&r.container_id, &r.ifname) == (&o.container_id, &o.ifname);
                    r.boot_id != boot && content.owner().is_none_or(of)
                });
                !(recorded && old)
            }
        };
        self.usable.iter().any(|usable| usable.iter().all(kept))
    }

    /// After a recovery: records go with leases, and nothing lies about.
    #[track_caller]
    pub(super) fn check_files(&mut self) {
        for (owner, pod) in self.live.iter().filter(|(_, pod)| pod.recorded) {
            for ip in &pod.ips {
                let record = self.record(*ip).unwrap_or_else(|| panic!("{ip} has no record"));
                assert_eq!(record.container_id, owner.container_id, "{ip}");
                assert_eq!(record.boot_id, format!("boot-{}", pod.boot), "{ip}");
            }
        }
        let records = self.record_dir();
        self.orphans.retain(|ip| records.join(format!("{ip}.json")).exists());
        for entry in fs::read_dir(records).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(ip) = name.strip_suffix(".json") else {
                assert_eq!(name, ".new");
                continue;
            };
            let ip: IpAddr = ip.parse().unwrap();
            let goes_with = self.disk.contains_key(&ip) || self.orphans.contains(&ip);
            assert!(goes_with, "the record of {ip} has no lease");
        }
        let holders: Vec<String> =
            self.live.keys().map(|o| format!(".holds-{}-{}", o.container_id, o.ifname)).collect();
        for entry in fs::read_dir(self.lease_dir()).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = name.parse::<IpAddr>().is_ok()
                || name == "lock"
                || holders.contains(&name)
                || name == ".new"
                || name.starts_with("last_reserved_ip.");
            assert!(known, "{name} lies about");
        }
    }
}

fn content(entry: &fs::DirEntry) -> Content {
    let bytes = fs::read(entry.path()).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    match text.split_once("\r\n").filter(|(id, _)| id.starts_with('c')) {
        Some((id, ifname)) => Content::Of(Owner::new(id, ifname)),
        None if entry.metadata().unwrap().modified().unwrap() == BEFORE => Content::Old,
        None => Content::Torn,
    }
}
