//! Leases on disk, in the layout of host-local, so that either of the two can take over from the
//! other.
//!
//! `DIR/lock` is held (`flock`) through every operation. Each address is a file of that name that
//! holds `CONTAINER\r\nIFNAME`; `last_reserved_ip.INDEX` remembers where round robin stands in
//! each range set. Anything else in the directory is passed over.
//!
//! Nothing is synced to disk: after a power loss no pod lives, and a file without readable content
//! is the trace of a crash. One from before the last boot belongs to nobody, and its address is
//! free. A younger one was damaged under a pod that may live: its address is nobody's to give out
//! until the record beside it, the kernel or GC tell whose it is.
//!
//! An ADD keeps its leases locked (`flock`) until it ends: no GC takes them for left over.
//!
//! `.holds-CONTAINER-IFNAME` stands for an attachment that has leases, or may have: it is made before
//! the first and goes after the last. Where there is none, nobody needs to read all leases to know
//! that the attachment has none. The reference makes no such marks, so that what it gave is known by
//! its trace in the kernel.
//!
//! `.other-mac-ADDRESS` stands for an address whose last pod had another MAC than the address's own:
//! neighbours may remember it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_cni_spec::env::is_identifier;
use causeway_ipam::{Lease, Owner, State};
use causeway_types::state::AttachmentRecord;
use rustix::fs::OFlags;

use crate::files::{self, Planned, about_to_change, io_error, is_absent};

const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";
const HOLDS: &str = ".holds-";
const OTHER_MAC: &str = ".other-mac-";

/// The leases of one network, locked.
#[derive(Debug)]
pub struct LeaseDir {
    pub(crate) dir: PathBuf,
    /// The lock file is what other plugins lock; the directory is locked besides, because a lock
    /// file that somebody removes locks nobody out.
    _locks: [Option<File>; 2],
}

/// Leases that their ADD is not done with: while it lives, GC leaves them alone.
#[derive(Debug, Default)]
pub struct InFlight {
    _files: Vec<File>,
    other_mac: Vec<PathBuf>,
}

impl InFlight {
    /// Neighbours may remember another MAC for one of the addresses.
    pub(crate) fn had_other_mac(&self) -> bool {
        !self.other_mac.is_empty()
    }

    /// The attachment is whole, and its neighbours know it. The leases stay locked until the call ends, and with
    /// it the process, as a rule ([`kept`]): the runtime learns of the attachment at the very end.
    pub fn until_exit(mut self) {
        self.ended();
        KEPT.with_borrow_mut(|all| all.push(self));
    }

    /// Nobody remembers another MAC. A note that stays has the next pod announced too, no more.
    fn ended(&mut self) {
        for path in self.other_mac.drain(..) {
            let _ = files::remove(&path);
        }
    }
}

thread_local! {
    static KEPT: RefCell<Vec<InFlight>> = const { RefCell::new(Vec::new()) };
}

/// What calls on this thread have kept until their end.
pub(crate) fn kept() -> Vec<InFlight> {
    KEPT.take()
}

/// What the directory holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Leases, and the addresses given out last.
    pub state: State,
    /// Addresses whose files hold nothing that can be read, of this boot: they may be in use.
    pub torn: BTreeSet<IpAddr>,
    /// The same from before the last boot: free, once the file is removed.
    pub old: BTreeSet<IpAddr>,
    /// Names of marks: attachments that may hold leases.
    pub(crate) holders: BTreeSet<String>,
    /// All leases were read.
    pub(crate) read: bool,
}

impl Loaded {
    /// The attachment has a mark.
    pub(crate) fn may_hold(&self, owner: &Owner) -> bool {
        self.holders.contains(&mark(owner))
    }
}

/// The name of an attachment's mark.
fn mark(owner: &Owner) -> String {
    let file = AttachmentRecord::file_name(&owner.container_id, &owner.ifname);
    format!("{HOLDS}{}", file.trim_end_matches(".json"))
}

impl LeaseDir {
    /// Locks a network's directory, which is made if it is not there. Waits for other plugins.
    ///
    /// # Errors
    /// Code 5.
    pub fn open(dir: &Path) -> Result<Self, CniError> {
        loop {
            files::make_dir(dir, 0o755)?;
            if let Some(locked) = Self::lock(dir, true)? {
                return Ok(locked);
            }
        }
    }

    /// The same without making the directory: `None` when there is none, and so no lease.
    ///
    /// # Errors
    /// Code 5.
    pub fn open_existing(dir: &Path) -> Result<Option<Self>, CniError> {
        loop {
            match fs::metadata(dir) {
                Ok(_) => {}
                Err(e) if is_absent(&e) => return Ok(None),
                Err(e) => return Err(io_error("cannot open", dir, &e)),
            }
            if let Some(locked) = Self::lock(dir, false)? {
                return Ok(Some(locked));
            }
        }
    }

    /// The directory without its lock, only to look: what it holds may change meanwhile.
    pub(crate) fn unlocked(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _locks: [None, None] }
    }

    /// `None` when the directory was replaced while it was waited for. What only takes leases back
    /// goes on where the lock file cannot be made, or something else is in its place.
    fn lock(dir: &Path, new_leases: bool) -> Result<Option<Self>, CniError> {
        let failed = |e: io::Error| io_error("cannot lock", &dir.join(LOCK), &e);
        let itself = match File::open(dir) {
            Ok(itself) => itself,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        // Network file systems may not lock what is open for reading alone.
        let _ = itself.lock();
        let file = match open_lock(&dir.join(LOCK)) {
            Ok(file) => Some(file),
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) if !new_leases && (no_room(&e) || files::is_no_file(&e)) => None,
            Err(e) => return Err(failed(e)),
        };
        file.iter().try_for_each(File::lock).map_err(failed)?;
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let same = fs::metadata(dir)
            .is_ok_and(|now| itself.metadata().is_ok_and(|locked| id(locked) == id(now)));
        Ok(same.then(|| Self { dir: dir.to_owned(), _locks: [file, Some(itself)] }))
    }

    /// Reads all leases.
    ///
    /// # Errors
    /// Code 5.
    pub fn load(&self) -> Result<Loaded, CniError> {
        let mut loaded = Loaded { read: true, ..Loaded::default() };
        let dir = files::Dir::open(&self.dir)?;
        for name in files::names(&self.dir)? {
            if name.starts_with(HOLDS) {
                loaded.holders.insert(name);
            } else if let Some(ip) = address_of(&name) {
                let Some(content) = dir.read_state(&name)? else { continue };
                match owner_in(&content) {
                    Some(owner) => drop(loaded.state.insert(ip, owner)),
                    None if is_from_before_boot(&self.dir.join(&name)) => {
                        loaded.old.insert(ip);
                    }
                    None => drop(loaded.torn.insert(ip)),
                }
            } else if let Some(index) = name.strip_prefix(LAST).and_then(|n| n.parse().ok()) {
                let content = dir.read_state(&name)?.unwrap_or_default();
                set_last(&mut loaded, index, &content);
            }
        }
        Ok(loaded)
    }

    /// The addresses that were given out last, and no leases: those are looked for one by one
    /// ([`LeaseDir::is_there`]), so that it does not matter how many there are.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn load_last(&self, sets: usize) -> Result<Loaded, CniError> {
        let mut loaded = Loaded::default();
        for set in 0..sets {
            let content = files::read_state(&self.dir.join(format!("{LAST}{set}")))?;
            set_last(&mut loaded, set, &content.unwrap_or_default());
        }
        Ok(loaded)
    }

    /// Something has the name of the address's lease.
    pub(crate) fn is_there(&self, ip: IpAddr) -> bool {
        self.path(ip).symlink_metadata().is_ok()
    }

    /// The attachment has a mark.
    pub(crate) fn may_hold(&self, owner: &Owner) -> bool {
        self.dir.join(mark(owner)).symlink_metadata().is_ok()
    }

    /// Neighbours may remember another MAC for an address than its own.
    pub(crate) fn had_other_mac(&self, ip: IpAddr) -> bool {
        self.other_mac(ip).symlink_metadata().is_ok()
    }

    /// Marks an attachment that is about to get leases, or to give them back. Locked, so that others
    /// leave the mark alone.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn mark(&self, owner: &Owner) -> Result<InFlight, CniError> {
        let path = self.dir.join(mark(owner));
        let open = || {
            about_to_change()?;
            files::open_plain(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW)
        };
        let file = match open() {
            Err(e) if files::is_no_file(&e) => {
                files::remove(&path)?;
                open()
            }
            other => other,
        };
        let file = file.map_err(|e| io_error("cannot make", &path, &e))?;
        // Locked by another call of the same attachment it is safe too. Not waited for: that one may
        // need the lock of the directory, which is held here.
        let _ = file.try_lock();
        Ok(InFlight { _files: vec![file], other_mac: Vec::new() })
    }

    /// Notes that neighbours may remember another MAC for an address than its own.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn note_other_mac(&self, ip: IpAddr) -> Result<(), CniError> {
        let path = self.other_mac(ip);
        let open = || {
            about_to_change()?;
            files::open_plain(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW)
        };
        open().map(drop).map_err(|e| io_error("cannot make", &path, &e))
    }

    fn other_mac(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(format!("{OTHER_MAC}{ip}"))
    }

    /// Removes the mark of an attachment that holds nothing any more.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn unmark(&self, owner: &Owner) -> Result<(), CniError> {
        files::remove(&self.dir.join(mark(owner)))
    }

    /// Removes the marks of attachments that hold nothing: another plugin gave their leases back. Not
    /// those of calls that have not ended.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn sweep(&self, loaded: &Loaded) -> Result<(), CniError> {
        if loaded.holders.is_empty() {
            return Ok(());
        }
        let needed: BTreeSet<String> = loaded.state.leases().map(|(_, o)| mark(o)).collect();
        for path in loaded.holders.difference(&needed).map(|name| self.dir.join(name)) {
            if !is_locked(&path) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Writes leases down. When one fails, those before it stay: the caller takes them back.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&self, leases: &[Lease], owner: &Owner) -> Result<InFlight, CniError> {
        let mut in_flight = self.mark(owner)?;
        for lease in leases {
            let ip = lease.address.addr();
            if self.had_other_mac(ip) {
                in_flight.other_mac.push(self.other_mac(ip));
            }
            in_flight._files.push(self.write_one(ip, owner)?);
            self.write_last(lease.set, ip)?;
        }
        Ok(in_flight)
    }

    /// Renamed into place, so that a lease is whole or not there, whenever its writer dies. The
    /// lock is held and the address was free, or its file is its owner's but damaged.
    ///
    /// # Errors
    /// Code 5.
    pub fn write_one(&self, ip: IpAddr, owner: &Owner) -> Result<File, CniError> {
        let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
        files::in_turn_locked(&self.path(ip), content.as_bytes())
    }

    /// The ADD that made this lease has not ended.
    pub fn is_in_flight(&self, ip: IpAddr) -> bool {
        is_locked(&self.path(ip))
    }

    /// Who the file of an address names.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn owner_of(&self, ip: IpAddr) -> Result<Option<Owner>, CniError> {
        Ok(files::read_state(&self.path(ip))?.and_then(|content| owner_in(&content)))
    }

    /// The files that new leases of so many sets need, in order to ask whether there is room.
    pub(crate) fn files(dir: &Path, sets: usize) -> Vec<Planned> {
        let lease = |set| [(format!("new.{set}"), true), (format!("{LAST}{set}"), true)];
        let mark = (format!("{HOLDS}new"), false);
        let names = (0..sets).flat_map(lease).chain([mark, (LOCK.to_owned(), false)]);
        names.map(|(name, filled)| (dir.join(name), filled)).collect()
    }

    /// Not truncated on opening: file systems take that for the replacement of a whole file and
    /// write it to disk at once, which costs more than all the rest.
    fn write_last(&self, set: usize, ip: IpAddr) -> Result<(), CniError> {
        let path = self.dir.join(format!("{LAST}{set}"));
        let text = ip.to_string();
        let open = || {
            about_to_change()?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
            let file = files::open_plain(&path, flags)?;
            let plain = file.metadata()?.is_file();
            Ok(Some(file).filter(|_| plain))
        };
        let write = |mut file: File| {
            about_to_change()?;
            file.write_all(text.as_bytes())?;
            if file.metadata()?.len() > text.len() as u64 {
                about_to_change()?;
                file.set_len(text.len() as u64)?;
            }
            Ok(())
        };
        let failed = |e: io::Error| io_error("cannot write", &path, &e);
        let file = match open() {
            Ok(Some(file)) => file,
            Err(e) if !files::is_no_file(&e) => return Err(failed(e)),
            _ => {
                files::remove(&path)?;
                open().and_then(|f| f.ok_or(io::ErrorKind::InvalidInput.into())).map_err(failed)?
            }
        };
        write(file).map_err(failed)
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

fn is_locked(path: &Path) -> bool {
    let open = files::open_plain(path, OFlags::RDONLY | OFlags::NOFOLLOW);
    open.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn set_last(loaded: &mut Loaded, set: usize, content: &[u8]) {
    if let Ok(ip) = String::from_utf8_lossy(content).trim().parse() {
        loaded.state.set_last(set, ip);
    }
}

/// Only its descriptor is needed: where it is there already, a read-only file system will do.
fn open_lock(path: &Path) -> io::Result<File> {
    about_to_change()?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW;
    match files::open_plain(path, OFlags::RDWR | flags) {
        Err(e) if e.kind() == ReadOnlyFilesystem => {
            files::open_plain(path, OFlags::RDONLY | OFlags::NOFOLLOW).map_err(|now| match now {
                // It cannot be made.
                now if is_absent(&now) => e,
                now => now,
            })
        }
        other => other,
    }
}

fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}

fn is_from_before_boot(path: &Path) -> bool {
    let changed = path.symlink_metadata().map(|meta| meta.mtime());
    // What cannot be told is not taken for old.
    changed.is_ok_and(|then| booted().is_ok_and(|booted| then < booted))
}

/// When the kernel started, in seconds since 1970 (`btime` in proc_stat(5)).
fn booted() -> Result<i64, CniError> {
    let path = Path::new("/proc/stat");
    let text = fs::read_to_string(path).map_err(|e| io_error("cannot read", path, &e))?;
    let line = text.lines().find_map(|l| l.strip_prefix("btime "));
    line.and_then(|n| n.trim().parse().ok())
        .ok_or_else(|| CniError::io("/proc/stat has no line btime".to_owned()))
}

/// The address that a file is named after. Only the form in which addresses are written counts:
/// another one could not be found again.
pub(crate) fn address_of(name: &str) -> Option<IpAddr> {
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
    fn junk_is_passed_over_and_torn_files_are_free_after_a_boot() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(tmp.path()).unwrap();
        let put = |name: &str, content: &[u8]| fs::write(tmp.path().join(name), content).unwrap();
        put("10.1.2.2", b"");
        put("10.1.2.3", b"\0\0\0\0");
        put("10.1.2.4", b"old-form\n");
        put("notes.txt", b"c9\r\neth0");
        put("last_reserved_ip.0", b"rubbish");
        let now = dir.load().unwrap();
        assert_eq!((now.torn.len(), now.old.len()), (2, 0), "a pod of this boot may have them");
        for name in ["10.1.2.2", "10.1.2.3"] {
            let file = File::options().write(true).open(tmp.path().join(name)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let loaded = dir.load().unwrap();
        assert_eq!((loaded.torn.len(), loaded.old.len()), (0, 2));
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
        let other = File::options().write(true).open(tmp.path().join("lock")).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }

    #[test]
    fn a_lock_file_that_is_removed_lets_nobody_in() {
        let tmp = tempfile::tempdir().unwrap();
        let held = LeaseDir::open(tmp.path()).unwrap();
        fs::remove_file(tmp.path().join("lock")).unwrap();
        let dir = tmp.path().to_owned();
        let (tell, told) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let locked = LeaseDir::open(&dir).unwrap();
            tell.send(()).unwrap();
            drop(locked);
        });
        let brief = std::time::Duration::from_millis(100);
        assert!(told.recv_timeout(brief).is_err(), "two hold the same leases");
        drop(held);
        other.join().unwrap();
    }
}
