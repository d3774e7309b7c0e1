//! Directories in which others write, watched by inotify.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use crate::options::Paths;
use crate::records::is_record;

/// The attachment records, the two files that tell others that the node is ready, and the configuration.
pub(crate) struct Dirs {
    inotify: Inotify,
    watched: Vec<Watched>,
    records: Records,
}

/// Which attachment records have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// These files.
    Named(BTreeSet<String>),
    /// Nobody knows.
    Any,
}

struct Watched {
    dir: PathBuf,
    mode: u32,
    /// Only these files matter; none: all do.
    only: Vec<OsString>,
    watch: Option<WatchDescriptor>,
}

impl Dirs {
    /// Starts watching. Directories that are missing are made.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left for this user
    /// (`fs.inotify.max_user_instances`).
    pub(crate) fn watch(paths: &Paths) -> io::Result<Self> {
        let inotify = Inotify::init().map_err(|e| {
            io::Error::new(e.kind(), format!("inotify: {e}; see fs.inotify.max_user_instances"))
        })?;
        let file = |path: &Path, mode| Watched {
            dir: path.parent().unwrap_or(Path::new("/")).to_owned(),
            mode,
            only: path.file_name().map(Into::into).into_iter().collect(),
            watch: None,
        };
        let records =
            Watched { dir: paths.attachments.clone(), mode: 0o700, only: Vec::new(), watch: None };
        let mut watched =
            vec![records, file(&paths.node_file, 0o755), file(&paths.conflist(), 0o755)];
        if paths.config.parent().is_some_and(Path::is_dir) {
            let mut config = file(&paths.config, 0o755);
            // A ConfigMap is changed by this link (`AtomicWriter` of the kubelet).
            config.only.push("..data".into());
            watched.push(config);
        }
        let mut dirs = Self { inotify, watched, records: Records::Any };
        dirs.rewatch();
        Ok(dirs)
    }

    /// Watches again what is not watched: a directory that was removed. Called now and then.
    pub(crate) fn rewatch(&mut self) {
        let mask = WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::ONLYDIR;
        for w in self.watched.iter_mut().filter(|w| w.watch.is_none()) {
            let made = make_dir(&w.dir, w.mode);
            match made.and_then(|()| self.inotify.watches().add(&w.dir, mask)) {
                Ok(watch) => w.watch = Some(watch),
                Err(error) => {
                    tracing::warn!(
                        "cannot watch {}: {error}; it is read now and then",
                        w.dir.display()
                    );
                }
            }
        }
    }

    /// The records that have changed since this was asked last, as far as [`Dirs::changed`] has read.
    pub(crate) fn take_records(&mut self) -> Records {
        std::mem::replace(&mut self.records, Records::Named(BTreeSet::new()))
    }

    /// Reads what happened. True when anything did that matters. Never blocks.
    pub(crate) fn changed(&mut self) -> bool {
        let mut changed = false;
        let mut buffer = [0; 4096];
        // An error means that nothing is there to read.
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            let mut any = false;
            for event in events {
                any = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    changed = true;
                    self.records = Records::Any;
                }
                let same = |w: &&mut Watched| w.watch.as_ref() == Some(&event.wd);
                let ended = event.mask.contains(EventMask::IGNORED);
                // Two of our files may lie in one directory: both share a watch.
                for w in self.watched.iter_mut().filter(same) {
                    let named = |o: &OsString| event.name == Some(o);
                    if ended {
                        changed = true;
                        w.watch = None;
                        self.records = Records::Any;
                    } else if w.only.is_empty() {
                        changed |= self.records.note(event.name);
                    } else {
                        changed |= w.only.iter().any(named);
                    }
                }
            }
            if !any {
                break;
            }
        }
        if self.watched.iter().any(|w| w.watch.is_none()) {
            self.rewatch();
        }
        changed
    }
}

impl Records {
    /// True where plugins have written or removed some.
    pub(crate) fn are_named(&self) -> bool {
        matches!(self, Records::Named(names) if !names.is_empty())
    }

    /// True where it is a record: those that are being written have other names.
    fn note(&mut self, name: Option<&OsStr>) -> bool {
        let Some(name) = name.and_then(OsStr::to_str).filter(|name| is_record(name)) else {
            return false;
        };
        if let Records::Named(all) = self {
            all.insert(name.to_owned());
        }
        true
    }
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)
}

impl AsFd for Dirs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_the_files_that_matter() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let mut dirs = Dirs::watch(&paths).unwrap();
        assert!(!dirs.changed());
        let first = dirs.take_records();
        assert_eq!(first, Records::Any, "nothing has been read yet");
        assert!(!first.are_named());
        std::fs::write(paths.attachments.join(".a-eth0.json.new"), "{").unwrap();
        std::fs::write(paths.attachments.join("a-eth0.json.new"), "{").unwrap();
        assert!(!dirs.changed(), "nothing of it counts before it is whole");
        std::fs::write(paths.attachments.join("a-eth0.json"), "{}").unwrap();
        assert!(dirs.changed());
        assert!(!dirs.changed());
        let named =
            |names: &[&str]| Records::Named(names.iter().map(|name| (*name).to_owned()).collect());
        assert!(named(&["a-eth0.json"]).are_named() && !named(&[]).are_named());
        assert_eq!(dirs.take_records(), named(&["a-eth0.json"]));
        assert_eq!(dirs.take_records(), named(&[]));
        std::fs::write(paths.conf_dir.join("10-other.conflist"), "{}").unwrap();
        std::fs::write(&paths.owned, "{}").unwrap();
        assert!(!dirs.changed(), "none of these matters");
        std::fs::write(paths.conflist(), "{}").unwrap();
        assert!(dirs.changed());
        std::fs::write(&paths.config, "mtu: 1400").unwrap();
        assert!(dirs.changed());
        std::fs::write(&paths.node_file, "{}").unwrap();
        std::fs::remove_file(&paths.node_file).unwrap();
        assert!(dirs.changed());
    }

    #[test]
    fn a_directory_that_was_removed_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let mut dirs = Dirs::watch(&paths).unwrap();
        dirs.take_records();
        std::fs::remove_dir(&paths.attachments).unwrap();
        assert!(dirs.changed());
        assert_eq!(dirs.take_records(), Records::Any);
        assert!(paths.attachments.is_dir());
        std::fs::write(paths.attachments.join("a-eth0.json"), "{}").unwrap();
        assert!(dirs.changed());
    }
}
