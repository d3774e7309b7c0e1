//! The record of what we made ([`causeway_types::names::OWNED_FILE`]).
//!
//! A key is written down before the kernel is asked to make the object, and erased after a later
//! observation no longer shows it. The file lives below `/run`, as long as the kernel's state.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use causeway_model::Key;
use serde::{Deserialize, Serialize};

use crate::files;

/// The keys, and the file that holds them.
#[derive(Debug)]
pub(crate) struct Owned {
    path: PathBuf,
    keys: BTreeSet<Key>,
    /// What the file holds, to write it only when needed. `None`: not known to hold anything.
    on_disk: Option<BTreeSet<Key>>,
    /// Why the file could not be used at the start.
    pub(crate) problem: Option<String>,
}

#[derive(Deserialize)]
struct File {
    keys: BTreeSet<Key>,
}

#[derive(Serialize)]
struct FileRef<'a> {
    keys: &'a BTreeSet<Key>,
}

impl Owned {
    /// Reads the file. One that is missing or torn means that nothing is recorded: what carries
    /// our marks and is wanted will be adopted, and nothing else is touched.
    pub(crate) fn load(path: PathBuf) -> Self {
        let (on_disk, problem) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) => (Some(file.keys), None),
                Err(e) => {
                    let text = format!(
                        "{}: {e}; what we made and no longer want may stay until it is removed by \
                         hand",
                        path.display()
                    );
                    (None, Some(text))
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, None),
            Err(e) => (None, Some(format!("{}: {e}", path.display()))),
        };
        Self { path, keys: on_disk.clone().unwrap_or_default(), on_disk, problem }
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &BTreeSet<Key> {
        &self.keys
    }

    /// Writes further keys down. Nothing may be made before this has succeeded.
    ///
    /// # Errors
    /// When the file cannot be written. The keys are then not taken in.
    pub(crate) fn record(&mut self, keys: impl IntoIterator<Item = Key>) -> io::Result<()> {
        let before = self.keys.clone();
        self.keys.extend(keys);
        self.save().inspect_err(|_| self.keys = before)
    }

    /// Forgets keys whose objects are confirmed to be gone. A file that cannot be written now is
    /// written with the next change: a key too many does no harm.
    pub(crate) fn erase(&mut self, gone: impl Fn(&Key) -> bool) {
        self.keys.retain(|key| !gone(key));
        if let Err(error) = self.save() {
            tracing::warn!(%error, "cannot shorten the record of what we made");
        }
    }

    fn save(&mut self) -> io::Result<()> {
        if self.on_disk.as_ref() == Some(&self.keys) {
            return Ok(());
        }
        let text = serde_json::to_vec(&FileRef { keys: &self.keys })?;
        files::replace(&self.path, &text, 0o600)?;
        self.on_disk = Some(self.keys.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_model::nft::NftFamily;

    fn keys() -> Vec<Key> {
        vec![
            Key::Link("cw-vxlan".parse().unwrap()),
            Key::Route { table: 254, dst: "10.244.2.0/24".parse().unwrap(), metric: 0 },
            Key::Table { family: NftFamily::Inet, name: "causeway".to_owned() },
            Key::Neigh {
                dev: "cw-vxlan".parse().unwrap(),
                ip: "fd00::1".parse().unwrap(),
                proxy: false,
            },
            Key::Addr { dev: "cni0".parse().unwrap(), addr: "10.244.1.1/24".parse().unwrap() },
        ]
    }

    #[test]
    fn survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owned.json");
        let mut owned = Owned::load(path.clone());
        assert!(owned.keys().is_empty() && owned.problem.is_none());
        owned.record(keys()).unwrap();
        let mut again = Owned::load(path.clone());
        assert_eq!(again.keys(), owned.keys());
        again.erase(|k| matches!(k, Key::Link(_)));
        assert_eq!(Owned::load(path).keys().len(), keys().len() - 1);
    }

    #[test]
    fn a_torn_file_is_a_problem_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owned.json");
        std::fs::write(&path, "{\"keys\":[{\"li").unwrap();
        let mut owned = Owned::load(path.clone());
        assert!(owned.problem.as_ref().unwrap().contains("owned.json"));
        owned.record(keys()).unwrap();
        assert!(Owned::load(path).problem.is_none());
    }

    #[test]
    fn intent_that_cannot_be_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mut owned = Owned::load(dir.path().join("file/owned.json"));
        assert!(owned.record(keys()).is_err());
        assert!(owned.keys().is_empty());
    }
}
