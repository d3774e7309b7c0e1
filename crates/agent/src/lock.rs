//! One agent a node.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// Held as long as the value lives; the kernel lets go of it when the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

/// Takes the lock.
///
/// # Errors
/// When another agent holds it; its process ID is named.
pub(crate) fn take(path: &Path) -> anyhow::Result<Lock> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        let pid = pid.trim();
        let who = if pid.is_empty() { "another one".to_owned() } else { format!("process {pid}") };
        anyhow::bail!(
            "an agent runs on this node already ({who} holds {}); stop it first",
            path.display()
        );
    }
    // For the message above; nothing depends on it.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = writeln!(file, "{}", std::process::id());
    Ok(Lock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/agent.lock");
        let first = take(&path).unwrap();
        let error = take(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains("agent.lock"), "{error}");
        drop(first);
        take(&path).unwrap();
    }
}
