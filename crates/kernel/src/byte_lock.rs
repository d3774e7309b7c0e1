//! Locks of single bytes of a file. Each byte may stand for something else, so that one file does for
//! any number of locks and nothing has to be made or removed for one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Whom a lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Those alone who want it alone.
    Shared,
    /// Everybody else.
    Alone,
}

/// Locks a byte of a file that is open for reading and writing; false when another open file has it
/// locked. It stays locked until the file is closed, by the end of the process at the latest
/// (`F_OFD_SETLK`, fcntl(2)). Bytes behind the end of the file can be locked, too.
///
/// # Errors
/// What the kernel says, as on a file system without locks.
pub fn try_lock(file: &File, byte: u64, hold: Hold) -> io::Result<bool> {
    // SAFETY: a plain struct of numbers, which may all be zero.
    #[allow(unsafe_code)]
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match hold {
        Hold::Shared => libc::F_RDLCK,
        Hold::Alone => libc::F_WRLCK,
    };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off_t::try_from(byte).map_err(io::Error::other)?;
    lock.l_len = 1;
    // SAFETY: the descriptor is open as long as `file` lives, and the kernel reads `lock` during the
    // call alone.
    #[allow(unsafe_code)]
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_locked_one_by_one() {
        let tmp = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(tmp.path()).unwrap();
        let far = (1 << 44) - 1;
        let (first, second, third) = (open(), open(), open());
        assert!(try_lock(&first, far, Hold::Shared).unwrap());
        assert!(try_lock(&second, far, Hold::Shared).unwrap());
        assert!(!try_lock(&third, far, Hold::Alone).unwrap());
        assert!(try_lock(&third, far - 1, Hold::Alone).unwrap());
        drop(first);
        assert!(!try_lock(&third, far, Hold::Alone).unwrap());
        drop(second);
        assert!(try_lock(&third, far, Hold::Alone).unwrap());
        assert!(!try_lock(&open(), far, Hold::Shared).unwrap());
    }
}
