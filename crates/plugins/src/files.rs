//! Small files: written aside and renamed into place, read and removed without fuss over what is
//! not there.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A file with more than this is none that plugins or agent wrote.
const LARGEST: u64 = 16 << 20;

/// Every change of the disk asks here first. Tests kill the plugin at this point, or have the disk
/// refuse.
#[cfg(not(test))]
pub(crate) fn about_to_change() -> io::Result<()> {
    Ok(())
}
#[cfg(test)]
pub(crate) use crate::faults::about_to_change;

/// Makes a directory and those above it with a mode; one that is there stays as it is.
///
/// # Errors
/// Code 5.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> Result<(), CniError> {
    // As a rule it is: one call instead of two.
    if dir.is_dir() {
        return Ok(());
    }
    about_to_change()
        .and_then(|()| DirBuilder::new().recursive(true).mode(mode).create(dir))
        .map_err(|e| io_error("cannot make directory", dir, &e))
}

/// Writes a file of mode 0600 aside and renames it into place: a reader sees the old or the new
/// content, never half of one. Not synced: after a power loss no pod lives that it speaks of.
///
/// Only one writer at a time may use the same name beside it: that of a file is the attachment's
/// that the file is of, that of a directory (see [`in_turn`]) whose holds the directory's lock.
///
/// # Errors
/// Code 5; the old content is then still there.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), CniError> {
    write_aside(path, &beside(path), content)
}

/// The same for files of a directory that is written by one at a time: all are written aside under
/// one name, so that a writer that is killed leaves at most one such file, which the next one takes.
///
/// # Errors
/// As [`replace`].
pub(crate) fn in_turn(path: &Path, content: &[u8]) -> Result<(), CniError> {
    write_aside(path, &path.with_file_name(ASIDE), content)
}

/// Hidden, and no address, so that host-local passes it over.
const ASIDE: &str = ".new";

fn write_aside(path: &Path, aside: &Path, content: &[u8]) -> Result<(), CniError> {
    write_locked(path, aside, content, |_| Ok(())).map(drop)
}

/// The same as [`in_turn`], and the file is locked (`flock`) from before it has its name until it
/// is dropped or the process ends.
///
/// # Errors
/// As [`replace`].
pub(crate) fn in_turn_locked(path: &Path, content: &[u8]) -> Result<File, CniError> {
    write_locked(path, &path.with_file_name(ASIDE), content, |file| file.lock())
}

fn write_locked(
    path: &Path,
    aside: &Path,
    content: &[u8],
    lock: impl Fn(&File) -> io::Result<()>,
) -> Result<File, CniError> {
    let open = || {
        about_to_change()?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)
    };
    let failed = |e: io::Error| {
        let _ = remove_file(aside);
        io_error("cannot write", path, &e)
    };
    let mut file = match open() {
        // Left by one that was killed. Removed rather than truncated: file systems write a
        // truncated file to disk at once.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            remove(aside)?;
            open().map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let mut fill = || {
        lock(&file)?;
        about_to_change()?;
        file.write_all(content)?;
        about_to_change()?;
        match fs::rename(aside, path) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                about_to_change()?;
                fs::remove_dir(path)?;
                fs::rename(aside, path)
            }
            other => other,
        }
    };
    fill().map_err(failed)?;
    Ok(file)
}

/// The name beside a file under which its next content is written.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ASIDE}"))
}

/// The file's name of which a name is the one beside it.
pub(crate) fn of_beside(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(ASIDE)
}

/// Reads a file; `None` when it is not there.
///
/// # Errors
/// Code 5.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, CniError> {
    match read_plain(path, OFlags::empty()) {
        Ok(Some(content)) => Ok(Some(content)),
        Ok(None) => {
            let why = "it is no plain file, or larger than any that is written here; remove it";
            Err(CniError::io(format!("cannot read {}: {why}", path.display())))
        }
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(io_error("cannot read", path, &e)),
    }
}

/// Reads a file of the state that plugins keep. They make plain and small ones: a directory, a
/// link, a pipe or a giant in the place of one is read as empty, which nobody can understand.
///
/// # Errors
/// Code 5.
pub(crate) fn read_state(path: &Path) -> Result<Option<Vec<u8>>, CniError> {
    state(read_plain(path, OFlags::NOFOLLOW)).map_err(|e| io_error("cannot read", path, &e))
}

fn state(read: io::Result<Option<Vec<u8>>>) -> io::Result<Option<Vec<u8>>> {
    match read {
        Ok(content) => Ok(Some(content.unwrap_or_default())),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) if is_no_file(&e) => Ok(Some(Vec::new())),
        Err(e) => Err(e),
    }
}

/// A directory that many files are read of: the way to it is gone once.
pub(crate) struct Dir<'a> {
    path: &'a Path,
    open: OwnedFd,
}

impl<'a> Dir<'a> {
    /// # Errors
    /// Code 5.
    pub(crate) fn open(path: &'a Path) -> Result<Self, CniError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| io_error("cannot open", path, &e.into()))?;
        Ok(Self { path, open })
    }

    /// As [`read_state`].
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn read_state(&self, name: &str) -> Result<Option<Vec<u8>>, CniError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.open, name, flags, Mode::empty()).map(File::from);
        let read = file.map_err(io::Error::from).and_then(content);
        state(read).map_err(|e| io_error("cannot read", &self.path.join(name), &e))
    }
}

/// The content, or `None` for what is no plain file or too large. Waits for nobody.
///
/// An ADD reads the leases of all pods: what fits into the first block takes three system calls.
/// Directories cannot be read, and from a pipe or a device comes nothing, a little of somebody's, or
/// a whole block, after which it is looked at.
fn read_plain(path: &Path, flags: OFlags) -> io::Result<Option<Vec<u8>>> {
    content(open_plain(path, OFlags::RDONLY | flags)?)
}

fn content(mut file: File) -> io::Result<Option<Vec<u8>>> {
    let mut block = [0; 512];
    let length = match file.read(&mut block) {
        // A pipe without content.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        other => other?,
    };
    let mut content = block[..length].to_vec();
    if length < block.len() {
        return Ok(Some(content));
    }
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    Ok(Some(content).filter(|c| c.len() as u64 <= LARGEST))
}

/// Opens a file; a pipe in its place is not waited for.
pub(crate) fn open_plain(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map(File::from)?)
}

/// Something other than a plain file is there: a link (`O_NOFOLLOW`), a directory, a pipe that
/// nobody reads or a socket.
pub(crate) fn is_no_file(error: &io::Error) -> bool {
    let no_file = [Errno::LOOP, Errno::ISDIR, Errno::NXIO];
    no_file.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Removes a file, or an empty directory in its place; what is not there is fine.
///
/// # Errors
/// Code 5.
pub(crate) fn remove(path: &Path) -> Result<(), CniError> {
    unlink(path).map_err(|e| io_error("cannot remove", path, &e))
}

fn unlink(path: &Path) -> io::Result<()> {
    // A read-only file system refuses before it looks.
    let gone = |e: &io::Error| {
        is_absent(e)
            || e.kind() == io::ErrorKind::ReadOnlyFilesystem
                && path.symlink_metadata().is_err_and(|e| is_absent(&e))
    };
    match remove_file(path) {
        Err(e) if gone(&e) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(path),
        other => other,
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    about_to_change()?;
    fs::remove_file(path)
}

/// A file that is to be written, and whether it is to hold anything.
pub(crate) type Planned = (PathBuf, bool);

/// Is there room for these files, all at once? They are made without names, so that nothing is left
/// of the attempt whenever it ends. Those that are there need none.
///
/// # Errors
/// Code 5.
pub(crate) fn try_room(files: &[Planned]) -> Result<(), CniError> {
    let mut missing: BTreeSet<(&Path, bool)> = BTreeSet::new();
    for (file, filled) in files {
        let absent = |p: &&Path| p.symlink_metadata().is_err_and(|e| is_absent(&e));
        let mut names = file.ancestors().take_while(absent);
        missing.extend(names.next().map(|name| (name, *filled)));
        missing.extend(names.map(|dir| (dir, false)));
    }
    let mut all = Vec::new();
    for (path, filled) in missing {
        let Some(dir) = path.ancestors().find(|p| p.is_dir()) else { continue };
        let attempt = || {
            let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
            if filled {
                file.write_all(b"x")?;
            }
            Ok(file)
        };
        match attempt() {
            Ok(file) => all.push(file),
            // Not every file system has files without names.
            Err(e) if is_unsupported(&e) => {}
            Err(e) => return Err(io_error("cannot write below", dir, &e)),
        }
    }
    Ok(())
}

/// What file systems and old kernels answer to `O_TMPFILE` (open(2)).
fn is_unsupported(error: &io::Error) -> bool {
    let unknown = [Errno::OPNOTSUPP, Errno::ISDIR, Errno::NOENT, Errno::INVAL];
    unknown.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The names in a directory, unsorted; none when it is not there.
///
/// # Errors
/// Code 5.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, CniError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        Err(e) => return Err(io_error("cannot list directory", dir, &e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| io_error("cannot list directory", dir, &e))?;
        // A name that is no text is none of ours.
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Code 5 with what failed, where and why.
pub(crate) fn io_error(what: &str, path: &Path, error: &io::Error) -> CniError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; plugins must run as root",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        io::ErrorKind::StorageFull if has_no_inodes(path) => {
            "; its file system has no inodes left (`df -i`): remove files there"
        }
        io::ErrorKind::StorageFull => "; free space on its file system",
        io::ErrorKind::QuotaExceeded => "; free space there or raise the quota",
        io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty => {
            "; a directory is in the place of a file: remove it"
        }
        io::ErrorKind::NotADirectory => "; a file is in the place of a directory: remove it",
        _ if is_no_file(error) => "; something else is in the place of a file: remove it",
        _ => "",
    };
    CniError::io(format!("{what} {}: {error}{hint}", path.display()))
}

fn has_no_inodes(path: &Path) -> bool {
    let stat = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok());
    stat.is_some_and(|s| s.f_files > 0 && s.f_ffree == 0)
}
