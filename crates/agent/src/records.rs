//! The attachment records that the plugins write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use causeway_types::state::AttachmentRecord;

/// The records of this node, by file name.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    boot_id: String,
    known: BTreeMap<String, AttachmentRecord>,
    problems: BTreeMap<String, String>,
    /// Files of the last complete reading by name with size and time of change, so that an
    /// unchanged file is not read again.
    stamps: BTreeMap<String, Stamp>,
    /// Why the directory could not be read.
    pub(crate) unreadable: Option<String>,
}

type Stamp = (u64, i64, i64, u64);

impl Records {
    /// Nothing read yet. Records of another boot than `boot_id` are passed over: the interfaces
    /// that they speak of went with it.
    pub(crate) fn new(dir: PathBuf, boot_id: String) -> Self {
        let unreadable = Some(format!("{}: not read yet", dir.display()));
        Self {
            dir,
            boot_id,
            known: BTreeMap::new(),
            problems: BTreeMap::new(),
            stamps: BTreeMap::new(),
            unreadable,
        }
    }

    /// Reads what changed. True when any record came out different.
    pub(crate) fn refresh(&mut self) -> bool {
        match self.names() {
            Ok(names) => {
                self.unreadable = None;
                let mut changed = false;
                let gone: Vec<String> =
                    self.stamps.keys().filter(|n| !names.contains(*n)).cloned().collect();
                for name in gone {
                    changed |= self.forget(&name);
                }
                for name in names {
                    changed |= self.read(&name);
                }
                changed
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // No pod has been made yet.
                self.unreadable = None;
                let changed = !self.known.is_empty();
                (self.known, self.problems, self.stamps) = <_>::default();
                changed
            }
            Err(e) => {
                // What is known stays: a directory that cannot be read is no empty one.
                self.unreadable = Some(format!("{}: {e}", self.dir.display()));
                false
            }
        }
    }

    /// Names of complete files: those written aside begin with a dot or do not end in `.json`.
    fn names(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if is_record(&name) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// Reads one file. True when it says something else than before.
    pub(crate) fn read(&mut self, name: &str) -> bool {
        let path = self.dir.join(name);
        let Some(stamp) = stamp(&path) else { return self.forget(name) };
        if self.stamps.get(name) == Some(&stamp) {
            return false;
        }
        let record = std::fs::read(&path).map_err(|e| e.to_string()).and_then(|bytes| {
            serde_json::from_slice::<AttachmentRecord>(&bytes).map_err(|e| e.to_string())
        });
        match record {
            Ok(record) => {
                self.stamps.insert(name.to_owned(), stamp);
                self.problems.remove(name);
                self.known.insert(name.to_owned(), record.clone()) != Some(record)
            }
            Err(error) => {
                self.stamps.insert(name.to_owned(), stamp);
                let text = format!(
                    "{}: {error}; the pod's network is left as it is; remove the file if the pod \
                     is gone",
                    path.display()
                );
                tracing::warn!("{text}");
                self.problems.insert(name.to_owned(), text);
                // A record that was readable before stays: what it speaks of is still there.
                false
            }
        }
    }

    fn forget(&mut self, name: &str) -> bool {
        self.stamps.remove(name);
        self.problems.remove(name);
        self.known.remove(name).is_some()
    }

    /// Records of interfaces that should be as they say.
    pub(crate) fn desired(&self) -> Vec<AttachmentRecord> {
        self.of_this_boot().filter(|r| !r.pending).cloned().collect()
    }

    /// Records of interfaces that a plugin is making or removing right now.
    pub(crate) fn pending(&self) -> Vec<AttachmentRecord> {
        self.of_this_boot().filter(|r| r.pending).cloned().collect()
    }

    /// Both.
    pub(crate) fn all(&self) -> Vec<AttachmentRecord> {
        self.of_this_boot().cloned().collect()
    }

    fn of_this_boot(&self) -> impl Iterator<Item = &AttachmentRecord> {
        self.known.values().filter(|r| r.boot_id == self.boot_id)
    }

    /// False while there are files that cannot be used: of the pods that they speak of nothing is known.
    pub(crate) fn all_understood(&self) -> bool {
        self.problems.is_empty()
    }

    /// One sentence for each file that cannot be used, and for the directory.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.unreadable.iter().chain(self.problems.values())
    }

    /// The record in a file, if it is of this boot.
    pub(crate) fn get(&self, file_name: &str) -> Option<&AttachmentRecord> {
        self.known.get(file_name).filter(|r| r.boot_id == self.boot_id)
    }
}

/// Whether a file of this name is a record that is whole.
pub(crate) fn is_record(name: &str) -> bool {
    name.ends_with(".json") && !name.starts_with('.')
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let m = std::fs::metadata(path).ok()?;
    Some((m.len(), m.mtime(), m.mtime_nsec(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(container: &str, boot: &str, pending: bool) -> String {
        json!({"containerId": container, "ifname": "eth0", "netns": "/run/netns/x",
            "network": "pod-network", "attach": "routed", "pending": pending,
            "hostIfname": "cw0", "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02",
            "mtu": 1450, "addresses": ["10.244.1.2/32"], "gateways": ["169.254.1.1"],
            "bootId": boot})
        .to_string()
    }

    fn put(dir: &Path, name: &str, text: &str) {
        let aside = dir.join(format!(".{name}.aside"));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, dir.join(name)).unwrap();
    }

    #[test]
    fn a_missing_directory_is_an_empty_one() {
        let mut records = Records::new("/nonexistent/records".into(), "b".into());
        assert!(records.unreadable.is_some());
        assert!(!records.refresh());
        assert!(records.unreadable.is_none() && records.desired().is_empty());
    }

    #[test]
    fn pending_and_former_boots_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "a-eth0.json", &record("a", "b", false));
        put(dir.path(), "p-eth0.json", &record("p", "b", true));
        put(dir.path(), "o-eth0.json", &record("o", "former", false));
        let mut records = Records::new(dir.path().into(), "b".into());
        assert!(records.refresh());
        let names =
            |r: Vec<AttachmentRecord>| r.into_iter().map(|r| r.container_id).collect::<Vec<_>>();
        assert_eq!(names(records.desired()), ["a"]);
        assert_eq!(names(records.pending()), ["p"]);
        assert!(records.get("p-eth0.json").is_some() && records.get("o-eth0.json").is_none());
        assert!(!records.refresh(), "nothing changed");
        put(dir.path(), "p-eth0.json", &record("p", "b", false));
        std::fs::remove_file(dir.path().join("a-eth0.json")).unwrap();
        assert!(records.refresh());
        assert_eq!(names(records.desired()), ["p"]);
    }

    #[test]
    fn a_torn_record_is_reported_and_what_was_known_stays() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "a-eth0.json", &record("a", "b", false));
        put(dir.path(), "t-eth0.json", "{\"containerId\": \"t");
        std::fs::write(dir.path().join(".x.json"), "{").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "{").unwrap();
        let mut records = Records::new(dir.path().into(), "b".into());
        records.refresh();
        let problems: Vec<&String> = records.problems().collect();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("t-eth0.json"), "{problems:?}");
        put(dir.path(), "a-eth0.json", "");
        assert!(!records.refresh());
        assert_eq!(records.desired().len(), 1);
        assert_eq!(records.problems().count(), 2);
        put(dir.path(), "t-eth0.json", &record("t", "b", false));
        assert!(records.refresh());
        assert_eq!(records.problems().count(), 1);
    }
}
