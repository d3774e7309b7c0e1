//! ADDs that have not ended, and GC beside them.
//!
//! The specification wants runtimes to let no ADD run beside GC. Where one does it all the same, GC
//! must not take what an ADD has just made for left over. Each ADD holds one byte of one file locked,
//! which stands for its attachment, from before it does anything until its process ends, however that
//! is. GC locks the byte of an attachment alone before it removes what belongs to it, and passes over
//! one whose byte it does not get; what it goes by it reads once more behind the lock. The lock of a
//! byte leaves nothing that anybody would have to remove, and costs an ADD two system calls.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_kernel::byte_lock::{self, Hold};
use causeway_types::names;
use rustix::fs::OFlags;

use crate::files;
use crate::paths::Paths;

/// The file, among locks whose names begin with those of containers. It stays empty.
const FILE: &str = ".adds";
/// GC is done with one attachment within some tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
/// The longest name that is written out where it has to fit into an alias (255 bytes).
const LONGEST: usize = 100;
/// The longest name of an interface (`IFNAMSIZ` in `linux/if.h`, less the end).
const IFNAME: usize = 15;

/// A name, or a digest of one that is too long. No name begins with `#`.
pub(crate) fn short(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    format!("#{}", &names::ifb(name, "", "").as_str()[3..])
}

/// An ADD is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    _file: Option<File>,
}

/// The ADDs of this node.
#[derive(Clone, Debug)]
pub(crate) struct Adds {
    file: PathBuf,
}

/// No ADD of an attachment is under way, and none begins, until this is dropped.
#[derive(Debug)]
pub(crate) struct Quiet {
    _file: Option<File>,
}

impl Adds {
    pub(crate) fn at(paths: &Paths) -> Self {
        Self { file: paths.locks.join(FILE) }
    }

    /// `None` where it cannot be made (a disk without room, or one that is read-only): nobody is
    /// kept out then.
    fn open(&self) -> Option<File> {
        let open = || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
            files::open_plain(&self.file, flags)
        };
        match open() {
            Err(e) if files::is_absent(&e) => {
                files::make_dir(self.file.parent()?, 0o700).ok()?;
                open().ok()
            }
            other => other.ok(),
        }
    }

    /// An ADD begins.
    ///
    /// # Errors
    /// Code 11 when GC is not done with the attachment for too long.
    pub(crate) fn begin(&self, owner: &Owner) -> Result<UnderWay, CniError> {
        let Some(file) = self.open() else { return Ok(UnderWay { _file: None }) };
        let (byte, start) = (byte(owner), Instant::now());
        // A file system without locks keeps nobody out.
        while let Ok(false) = byte_lock::try_lock(&file, byte, Hold::Shared) {
            if start.elapsed() > PATIENCE {
                return Err(CniError::try_again(format!(
                    "the removal of what an earlier attachment of container {} ({}) left has been \
                     under way for more than {PATIENCE:?}, by a GC that has {} open (`fuser` shows \
                     the process)",
                    owner.container_id,
                    owner.ifname,
                    self.file.display()
                )));
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        Ok(UnderWay { _file: Some(file) })
    }

    /// Keeps ADDs of an attachment out; `None` while one is under way.
    pub(crate) fn keep_out(&self, owner: &Owner) -> Option<Quiet> {
        let Some(file) = self.open() else { return Some(Quiet { _file: None }) };
        let taken = byte_lock::try_lock(&file, byte(owner), Hold::Alone);
        (!matches!(taken, Ok(false))).then_some(Quiet { _file: Some(file) })
    }

    /// Removes what an ADD left in a directory that was killed before the first file of its attachment
    /// had its name. Beside a file that is there somebody else may be writing, and what removes that
    /// one removes the other as well.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn sweep(&self, dir: &Path) -> Result<(), CniError> {
        files::names(dir)?.iter().try_for_each(|name| self.sweep_one(dir, name))
    }

    /// The same for one name in the directory.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn sweep_one(&self, dir: &Path, name: &str) -> Result<(), CniError> {
        let Some(of) = files::of_beside(name) else { return Ok(()) };
        let Some(whose) = of.strip_suffix(".json") else { return Ok(()) };
        // Container IDs may have the characters in them that part them from the interface.
        let quiet: Option<Vec<Quiet>> =
            attachments(whose).map(|owner| self.keep_out(&owner)).collect();
        if quiet.is_none() || dir.join(of).symlink_metadata().is_ok() {
            return Ok(());
        }
        files::remove(&dir.join(name))
    }
}

/// All attachments that a file can be of, which is called by them.
fn attachments(name: &str) -> impl Iterator<Item = Owner> + '_ {
    let parted = name.rmatch_indices(['-', '_']).map(|(at, _)| (&name[..at], &name[at + 1..]));
    parted
        .take_while(|(_, ifname)| ifname.len() <= IFNAME)
        .map(|(id, ifname)| Owner::new(id, ifname))
}

/// The byte that stands for an attachment, one of 2^44. Where two share one, GC passes over both while
/// an ADD of one is under way.
fn byte(owner: &Owner) -> u64 {
    let name = names::host_veth(&short(&owner.container_id), &owner.ifname);
    u64::from_str_radix(&name.as_str()[2..], 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gc_passes_over_an_add() {
        let tmp = tempfile::tempdir().unwrap();
        let adds = Adds { file: tmp.path().join("locks").join(FILE) };
        let (one, other) = (Owner::new("c1", "eth0"), Owner::new("c1", "eth1"));
        let quiet = adds.keep_out(&one).unwrap();
        assert!(adds.keep_out(&one).is_none());
        drop(quiet);
        let (under_way, again) = (adds.begin(&one).unwrap(), adds.begin(&one).unwrap());
        assert!(adds.keep_out(&one).is_none());
        assert!(adds.keep_out(&other).is_some());
        drop(under_way);
        assert!(adds.keep_out(&one).is_none());
        drop(again);
        assert!(adds.keep_out(&one).is_some());
    }

    #[test]
    fn an_add_waits_for_gc() {
        let tmp = tempfile::tempdir().unwrap();
        let adds = Adds { file: tmp.path().join(FILE) };
        let owner = Owner::new("c1", "eth0");
        let quiet = adds.keep_out(&owner).unwrap();
        let (again, of) = (adds.clone(), owner.clone());
        let add = std::thread::spawn(move || again.begin(&of).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!add.is_finished());
        drop(quiet);
        let _under_way = add.join().unwrap();
        assert!(adds.keep_out(&owner).is_none());
    }

    #[test]
    fn what_an_add_was_writing_is_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        let adds = Adds { file: tmp.path().join("locks").join(FILE) };
        let dir = tmp.path().join("notes");
        std::fs::create_dir(&dir).unwrap();
        let (half, others) = (dir.join(".a-b_c-eth0.json.new"), [".new", ".a-eth0.json", "a.new"]);
        others.iter().for_each(|name| std::fs::write(dir.join(name), "{").unwrap());
        for (id, ifname) in [("a-b_c", "eth0"), ("a-b", "c-eth0"), ("a", "b_c-eth0")] {
            std::fs::write(&half, "{").unwrap();
            let under_way = adds.begin(&Owner::new(id, ifname)).unwrap();
            adds.sweep(&dir).unwrap();
            assert!(half.exists(), "an ADD of {id} and {ifname} is under way");
            drop(under_way);
            adds.sweep(&dir).unwrap();
            assert!(!half.exists(), "no ADD of {id} and {ifname} is under way");
        }
        // An interface may be called like a file.
        let odd = dir.join(".a-b.json.json.new");
        std::fs::write(&odd, "{").unwrap();
        let under_way = adds.begin(&Owner::new("a", "b.json")).unwrap();
        adds.sweep(&dir).unwrap();
        assert!(odd.exists());
        drop(under_way);
        adds.sweep(&dir).unwrap();
        assert!(!odd.exists());
        // Who writes anew what is there may be no ADD.
        let file = dir.join("a-b_c-eth0.json");
        for path in [&half, &file] {
            std::fs::write(path, "{").unwrap();
        }
        adds.sweep(&dir).unwrap();
        assert!(half.exists() && file.exists());
        assert!(others.iter().all(|name| dir.join(name).exists()));
    }

    #[test]
    fn a_byte_tells_attachments_apart() {
        let (long, longer) = ("a".repeat(250), "a".repeat(251));
        let of = |id: &str, ifname: &str| byte(&Owner::new(id, ifname));
        assert_ne!(of("c", "eth0"), of("c", "eth1"));
        assert_ne!(of(&long, "eth0"), of(&longer, "eth0"));
        assert_eq!(of(&long, "eth0"), of(&short(&long), "eth0"));
    }
}
