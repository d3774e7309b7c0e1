//! Leases on disk, in the layout of host-local, so that either of the two can take over from the
//! other.
//!
//! `DIR/lock` is held (`flock`) through every operation. Each address is a file of that name that
//! holds `CONTAINER\r\nIFNAME`; `last_reserved_ip.INDEX` remembers where round robin stands in
//! each range set. Anything else in the directory is passed over.
//!
//! Nothing is synced to disk: after a power loss no pod lives, and a file without readable content
//! is the trace of a crash. Whoever writes holds the lock, so such a file found under the lock
//! belongs to nobody and its address is free.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_cni_spec::env::is_identifier;
use causeway_ipam::{Lease, Owner, State};

use crate::files::{self, about_to_change, io_error, is_absent};

const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// The leases of one network, locked.
#[derive(Debug)]
pub struct LeaseDir {
    dir: PathBuf,
    /// Dropped last, which gives the lock back.
    _lock: File,
}

/// What the directory holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Leases, and the addresses given out last.
    pub state: State,
    /// Addresses whose files hold nothing that can be read: free, once the file is removed.
    pub torn: BTreeSet<IpAddr>,
}

impl LeaseDir {
    /// Locks a network's directory, which is made if it is not there. Waits for other plugins.
    ///
    /// # Errors
    /// Code 5.
    pub fn open(dir: &Path) -> Result<Self, CniError> {
        files::make_dir(dir, 0o755)?;
        Self::lock(dir).map_err(|e| io_error("cannot lock", &dir.join(LOCK), &e))
    }

    /// The same without making the directory: `None` when there is none, and so no lease.
    ///
    /// # Errors
    /// Code 5.
    pub fn open_existing(dir: &Path) -> Result<Option<Self>, CniError> {
        match fs::metadata(dir) {
            Ok(_) => Self::open(dir).map(Some),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(io_error("cannot open", dir, &e)),
        }
    }

    fn lock(dir: &Path) -> io::Result<Self> {
        about_to_change()?;
        let mut options = OpenOptions::new();
        let lock =
            options.write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))?;
        lock.lock()?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Reads all leases.
    ///
    /// # Errors
    /// Code 5.
    pub fn load(&self) -> Result<Loaded, CniError> {
        let mut loaded = Loaded::default();
        for name in files::names(&self.dir)? {
            if let Some(ip) = address_of(&name) {
                let Some(content) = files::read(&self.dir.join(&name))? else { continue };
                match owner_in(&content) {
                    Some(owner) => drop(loaded.state.insert(ip, owner)),
                    None => drop(loaded.torn.insert(ip)),
                }
            } else if let Some(index) = name.strip_prefix(LAST).and_then(|n| n.parse().ok()) {
                let content = files::read(&self.dir.join(&name))?.unwrap_or_default();
                let text = String::from_utf8_lossy(&content);
                if let Ok(ip) = text.trim().parse() {
                    loaded.state.set_last(index, ip);
                }
            }
        }
        Ok(loaded)
    }

    /// Writes leases down. When one fails, those before it stay: the caller takes them back.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&self, leases: &[Lease], owner: &Owner) -> Result<(), CniError> {
        for lease in leases {
            let ip = lease.address.addr();
            self.write_one(ip, owner)?;
            self.write_last(lease.set, ip)?;
        }
        Ok(())
    }

    /// Renamed into place, so that a lease is whole or not there, whenever its writer dies. The
    /// lock is held and the address was free, or its file torn.
    fn write_one(&self, ip: IpAddr, owner: &Owner) -> Result<(), CniError> {
        let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
        files::in_turn(&self.path(ip), content.as_bytes())
    }

    /// Not truncated on opening: file systems take that for the replacement of a whole file and
    /// write it to disk at once, which costs more than all the rest.
    fn write_last(&self, set: usize, ip: IpAddr) -> Result<(), CniError> {
        let path = self.dir.join(format!("{LAST}{set}"));
        let text = ip.to_string();
        let write = || {
            about_to_change()?;
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            about_to_change()?;
            file.write_all(text.as_bytes())?;
            if file.metadata()?.len() > text.len() as u64 {
                about_to_change()?;
                file.set_len(text.len() as u64)?;
            }
            Ok(())
        };
        write().map_err(|e| io_error("cannot write", &path, &e))
    }

    /// Gives one address back. What is gone is fine.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&self, ip: IpAddr) -> Result<(), CniError> {
        files::remove(&self.path(ip))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }
}

/// The address that a file is named after. Only the form in which addresses are written counts:
/// another one could not be found again.
fn address_of(name: &str) -> Option<IpAddr> {
    name.parse().ok().filter(|ip: &IpAddr| ip.to_string() == name)
}

/// Who a lease belongs to, or `None` for content that no writer completed.
fn owner_in(content: &[u8]) -> Option<Owner> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let (container, ifname) = match text.split_once("\r\n").or_else(|| text.split_once('\n')) {
        Some((container, ifname)) => (container.trim(), ifname.trim()),
        None => (text, ""),
    };
    is_identifier(container).then(|| Owner::new(container, ifname))
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_ipam::{Range, RangeSet};

    fn sets() -> Vec<RangeSet> {
        ["10.1.2.0/29", "fd00::/64"]
            .map(|s| {
                let range = Range::new(s.parse().unwrap(), None, None, None).unwrap();
                RangeSet::new(vec![range]).unwrap()
            })
            .to_vec()
    }

    fn add(dir: &LeaseDir, owner: &Owner) -> Vec<String> {
        let mut loaded = dir.load().unwrap();
        let leases = loaded.state.allocate(&sets(), owner, &[]).unwrap();
        dir.write(&leases, owner).unwrap();
        leases.iter().map(|l| l.address.to_string()).collect()
    }

    #[test]
    fn the_layout_is_host_locals() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let net = tmp.path().join("networks/pod-network");
        let dir = LeaseDir::open(&net).unwrap();
        assert_eq!(add(&dir, &Owner::new("c1", "eth0")), ["10.1.2.2/29", "fd00::2/64"]);
        let read = |name: &str| fs::read_to_string(net.join(name)).unwrap();
        assert_eq!(read("10.1.2.2"), "c1\r\neth0");
        assert_eq!(read("fd00::2"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.0"), "10.1.2.2");
        assert_eq!(read("last_reserved_ip.1"), "fd00::2");
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&net.join("10.1.2.2")), 0o600);
        assert_eq!(mode(&net), 0o755);
    }

    #[test]
    fn junk_is_passed_over_and_torn_files_are_free() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(tmp.path()).unwrap();
        let put = |name: &str, content: &[u8]| fs::write(tmp.path().join(name), content).unwrap();
        put("10.1.2.2", b"");
        put("10.1.2.3", b"\0\0\0\0");
        put("10.1.2.4", b"old-form\n");
        put("notes.txt", b"c9\r\neth0");
        put("last_reserved_ip.0", b"rubbish");
        let loaded = dir.load().unwrap();
        assert_eq!(loaded.torn.len(), 2);
        let owner = Owner::new("old-form", "eth0");
        assert_eq!(loaded.state.leases_of(&owner), ["10.1.2.4".parse::<IpAddr>().unwrap()]);
        assert_eq!(add(&dir, &Owner::new("c1", "eth0"))[0], "10.1.2.2/29");
        assert_eq!(add(&dir, &Owner::new("c2", "eth0"))[0], "10.1.2.3/29");
        assert_eq!(add(&dir, &Owner::new("c3", "eth0"))[0], "10.1.2.5/29");
    }

    #[test]
    fn a_shorter_last_address_leaves_no_tail() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(tmp.path()).unwrap();
        dir.write_last(0, "10.244.100.200".parse().unwrap()).unwrap();
        dir.write_last(0, "10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(fs::read(tmp.path().join("last_reserved_ip.0")).unwrap(), b"10.0.0.2");
    }

    #[test]
    fn the_lock_is_exclusive() {
        let tmp = tempfile::tempdir().unwrap();
        let held = LeaseDir::open(tmp.path()).unwrap();
        let other = OpenOptions::new().write(true).open(tmp.path().join("lock")).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
