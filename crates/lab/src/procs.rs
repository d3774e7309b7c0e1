//! Processes of a lab, told by the network namespace that they live in: that holds for what the
//! lab started, for what those started, and after anything was killed.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Device and inode of a namespace.
type NsId = (u64, u64);

fn ns_id(path: &Path) -> Option<NsId> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Named namespaces whose name begins so.
pub(crate) fn namespaces(prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(crate::spec::NETNS).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
        .collect();
    all.sort();
    all
}

/// Processes in any of the namespaces; never this one.
pub(crate) fn inside(namespaces: &[PathBuf]) -> Vec<Pid> {
    // A name whose namespace is not mounted any more has the identity of a plain file, which no
    // process lives in.
    let wanted: HashSet<NsId> = namespaces.iter().filter_map(|p| ns_id(p)).collect();
    let own = ns_id(Path::new("/proc/self/ns/net"));
    let me = rustix::process::getpid();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?))
        .filter(|pid| *pid != me)
        .filter(|pid| {
            let id = ns_id(Path::new(&format!("/proc/{}/ns/net", pid.as_raw_nonzero())));
            id.is_some() && id != own && id.is_some_and(|id| wanted.contains(&id))
        })
        .collect()
}

/// Ends all processes in the namespaces by force, as a power cut does, and waits until none is left.
pub(crate) fn kill_all(namespaces: &[PathBuf]) {
    let start = Instant::now();
    loop {
        let left = inside(namespaces);
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends all processes in the namespaces and waits until none is left; a second for a good end,
/// then by force. Answers how many there were.
pub(crate) fn end_all(namespaces: &[PathBuf]) -> usize {
    let first = inside(namespaces);
    for pid in &first {
        let _ = kill_process(*pid, Signal::TERM);
    }
    let start = Instant::now();
    loop {
        let left = inside(namespaces);
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            return first.len();
        }
        if start.elapsed() > Duration::from_millis(500) {
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
