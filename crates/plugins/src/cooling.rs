//! Addresses that were given back a moment ago: not given out again for a while, unless no other is free.
//!
//! `.released` beside the leases has a line for each: the address, and when that was, in milliseconds
//! since the boot. It is there while the node's agent wants it so: an ADD makes it, or takes it away, and what
//! gives addresses back adds to it where it is there, without having to know more. The reference reads
//! past it. What a former boot left looks as old as it looks, which is harmless.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use causeway_cni_spec::CniError;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::files::{self, about_to_change};
use crate::store::LeaseDir;

const RELEASED: &str = ".released";

/// Milliseconds since the boot, those in which the machine slept among them (CLOCK_BOOTTIME).
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or_default()
}

impl LeaseDir {
    fn released(&self) -> PathBuf {
        self.dir.join(RELEASED)
    }

    /// Notes an address that is about to be given back, where that is wanted. A disk that takes no note
    /// must not keep it.
    pub(crate) fn note_released(&self, ip: IpAddr) {
        let note = || {
            // Not made here: only ADD knows whether it is wanted.
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW;
            let mut file = files::open_plain(&self.released(), flags)?;
            about_to_change()?;
            file.write_all(line(ip, now()).as_bytes())
        };
        let _ = note();
    }

    /// The addresses that cool down for so many seconds, each with the time when it was given back.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn cooling(&self, cool_down: u64) -> Result<BTreeMap<IpAddr, u64>, CniError> {
        let path = self.released();
        if cool_down == 0 {
            if path.symlink_metadata().is_ok() {
                files::remove(&path)?;
            }
            return Ok(BTreeMap::new());
        }
        let content = files::read_state(&path)?;
        let text = String::from_utf8_lossy(content.as_deref().unwrap_or_default());
        let now = now();
        let fresh = |since: &u64| now.checked_sub(*since).is_some_and(|age| age < cool_down * 1000);
        // Of an address that is there twice the later counts.
        let cooling: BTreeMap<IpAddr, u64> =
            text.lines().filter_map(entry).filter(|(_, since)| fresh(since)).collect();
        // Written anew when most of it says nothing any more.
        if content.is_none() || text.lines().count() > 2 * cooling.len() + 16 {
            let kept: String = cooling.iter().map(|(ip, since)| line(*ip, *since)).collect();
            files::in_turn(&path, kept.as_bytes())?;
        }
        Ok(cooling)
    }
}

fn line(ip: IpAddr, since: u64) -> String {
    format!("{ip} {since}\n")
}

fn entry(line: &str) -> Option<(IpAddr, u64)> {
    // What another version may write behind is passed over.
    let mut words = line.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_is_remembered_while_that_is_wanted() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(tmp.path()).unwrap();
        let ip = |n: u8| IpAddr::from([10, 1, 2, n]);
        dir.note_released(ip(2));
        assert!(dir.cooling(60).unwrap().is_empty(), "nobody wanted it");
        dir.note_released(ip(3));
        assert_eq!(dir.cooling(60).unwrap().into_keys().collect::<Vec<_>>(), [ip(3)]);
        // Too old, of another boot, torn.
        let file = tmp.path().join(RELEASED);
        let old = now().saturating_sub(60_000);
        std::fs::write(&file, format!("10.1.2.4 {old}\n10.1.2.5 {}\n10.1.2.6 1", u64::MAX))
            .unwrap();
        assert!(dir.cooling(60).unwrap().is_empty());
        assert!(dir.cooling(0).unwrap().is_empty());
        assert!(!file.exists());
    }

    #[test]
    fn the_file_does_not_grow_for_good() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(tmp.path()).unwrap();
        dir.cooling(60).unwrap();
        for _ in 0..1000 {
            dir.note_released(IpAddr::from([10, 1, 2, 2]));
        }
        assert_eq!(dir.cooling(60).unwrap().len(), 1);
        assert!(std::fs::metadata(tmp.path().join(RELEASED)).unwrap().len() < 100);
    }
}
