//! What happens to a node beside calls of our plugins.

use std::fs;
use std::net::IpAddr;

use causeway_ipam::Owner;

use super::model::{BEFORE, Content, Model, Pod};

impl Model {
    /// The reference plugin on the same files: it knows no records.
    pub(super) fn reference(&mut self, what: &mut String) {
        self.counts.strangers += 1;
        let free = self.usable.iter().map(|u| u.iter().find(|ip| !self.disk.contains_key(*ip)));
        let free: Option<Vec<IpAddr>> = free.map(|ip| ip.copied()).collect();
        match free.filter(|_| self.rng.one_in(2) && self.lease_dir().exists()) {
            Some(ips) => {
                self.born += 1;
                let owner = Owner::new(format!("c{}", self.born), "eth0");
                *what = format!("ADD {owner} by the reference");
                for ip in &ips {
                    let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
                    fs::write(self.lease_dir().join(ip.to_string()), content).unwrap();
                }
                self.look(Some(&owner), |_| false);
                let pod = Pod { boot: self.boot, recorded: false, ips };
                self.live.insert(owner, pod);
            }
            None => {
                let Some(owner) = self.rng.pick(self.live.keys()).cloned() else {
                    return self.add_new(what);
                };
                *what = format!("DEL {owner} by the reference");
                self.flying.remove(&owner);
                for ip in self.live.remove(&owner).unwrap().ips {
                    fs::remove_file(self.lease_dir().join(ip.to_string())).unwrap();
                    self.orphans.insert(ip);
                }
                self.look(None, |held| *held == Content::Of(owner.clone()));
            }
        }
        self.check();
    }

    /// A file that no writer completed, at an address that nobody living has.
    pub(super) fn garbage(&mut self, what: &mut String) {
        let at = self.rng.below(self.usable.len());
        let Some(ip) = self.rng.pick(self.usable[at].iter().copied()) else { return };
        let lives = self.live.values().any(|p| p.ips.contains(&ip));
        if lives || !self.lease_dir().exists() {
            return self.add_new(what);
        }
        *what = format!("garbage at {ip}");
        self.tear(ip);
        self.disk = self.read(true);
        self.check();
    }

    fn tear(&mut self, ip: IpAddr) {
        let junk: [&[u8]; 4] = [b"", b"\0\0\0\0\0\0\0\0", b"\r\n", b"\xff\xfe/"];
        let junk = junk[self.rng.below(junk.len())];
        fs::write(self.lease_dir().join(ip.to_string()), junk).unwrap();
    }

    /// Nobody lives after it. A loss of power takes what was not written to the disk yet.
    pub(super) fn reboot(&mut self, what: &mut String) {
        let power = self.rng.one_in(2);
        *what = format!("reboot, power lost: {power}");
        self.counts.reboots += 1;
        self.boot += 1;
        self.dead.append(&mut self.live);
        self.gc.clear();
        self.flying.clear();
        if power {
            let ips: Vec<IpAddr> = self.disk.keys().copied().collect();
            for ip in ips {
                if self.rng.one_in(3) {
                    self.tear(ip);
                }
                let record = self.record_dir().join(format!("{ip}.json"));
                if self.rng.one_in(3) && record.exists() {
                    fs::write(record, "").unwrap();
                }
            }
            if self.rng.one_in(2) && self.lease_dir().exists() {
                fs::write(self.lease_dir().join("last_reserved_ip.0"), "\0\0\0").unwrap();
            }
            self.disk = self.read(true);
        }
        for (ip, _) in self.disk.iter().filter(|(_, content)| **content == Content::Torn) {
            let file = fs::File::options().write(true).open(self.lease_dir().join(ip.to_string()));
            file.unwrap().set_modified(BEFORE).unwrap();
        }
        self.disk = self.read(true);
        self.check();
    }
}
