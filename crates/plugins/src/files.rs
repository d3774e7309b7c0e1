//! Small files: written aside and renamed into place, read and removed without fuss over what is
//! not there.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;

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
    let open = || {
        about_to_change()?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)
    };
    let write = || {
        let mut file = match open() {
            // Left by one that was killed. Removed rather than truncated: file systems write a
            // truncated file to disk at once.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                remove_file(aside)?;
                open()?
            }
            other => other?,
        };
        about_to_change()?;
        file.write_all(content)?;
        drop(file);
        about_to_change()?;
        fs::rename(aside, path)
    };
    write().map_err(|e| {
        let _ = remove_file(aside);
        io_error("cannot write", path, &e)
    })
}

/// The name beside a file under which its next content is written.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{ASIDE}"))
}

/// Reads a file; `None` when it is not there.
///
/// # Errors
/// Code 5.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, CniError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(io_error("cannot read", path, &e)),
    }
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// Code 5.
pub(crate) fn remove(path: &Path) -> Result<(), CniError> {
    match remove_file(path) {
        Err(e) if !is_absent(&e) => Err(io_error("cannot remove", path, &e)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    about_to_change()?;
    fs::remove_file(path)
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
        io::ErrorKind::StorageFull => "; free space on its file system",
        _ => "",
    };
    CniError::io(format!("{what} {}: {error}{hint}", path.display()))
}
