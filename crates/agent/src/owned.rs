//! The record of what we made ([`causeway_types::names::OWNED_FILE`]).
//!
//! A key is written down before the kernel is asked to make the object, and erased after a later
//! observation no longer shows it. The file lives below `/run`, as long as the kernel's state.
//!
//! Keys of kinds that this version does not know were written by another one. They stay in the file, and
//! what they name stays in the kernel.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use causeway_model::Key;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files;

/// The keys, and the file that holds them.
#[derive(Debug)]
pub(crate) struct Owned {
    path: PathBuf,
    keys: BTreeSet<Key>,
    /// Keys of another version, as they are written.
    unknown: Vec<Value>,
    /// What else another version wrote.
    rest: Map<String, Value>,
    /// What the file holds, to write it only when needed. `None`: not known to hold anything.
    on_disk: Option<BTreeSet<Key>>,
    /// Why the file could not be used at the start.
    pub(crate) problem: Option<String>,
}

#[derive(Deserialize)]
struct File {
    keys: Vec<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Serialize)]
struct FileRef<'a> {
    keys: Vec<KeyRef<'a>>,
    #[serde(flatten)]
    rest: &'a Map<String, Value>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum KeyRef<'a> {
    Known(&'a Key),
    Unknown(&'a Value),
}

impl File {
    /// Tells known keys from others. One that says more than is known here means another object.
    fn sort(self) -> (BTreeSet<Key>, Vec<Value>, Map<String, Value>) {
        let (mut keys, mut unknown) = (BTreeSet::new(), Vec::new());
        for value in self.keys {
            match Key::deserialize(&value) {
                Ok(key) if serde_json::to_value(&key).is_ok_and(|same| same == value) => {
                    keys.insert(key);
                }
                _ if unknown.contains(&value) => {}
                _ => unknown.push(value),
            }
        }
        (keys, unknown, self.rest)
    }
}

impl Owned {
    /// Reads the file. One that is missing or torn means that nothing is recorded: what carries
    /// our marks and is wanted will be adopted, and nothing else is touched.
    pub(crate) fn load(path: PathBuf) -> Self {
        let (mut unknown, mut rest) = (Vec::new(), Map::new());
        let (on_disk, problem) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) => {
                    let keys;
                    (keys, unknown, rest) = file.sort();
                    (Some(keys), None)
                }
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
        let keys = on_disk.clone().unwrap_or_default();
        Self { path, keys, unknown, rest, on_disk, problem }
    }

    /// Keys that another version wrote, as they are written.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = String> + '_ {
        self.unknown.iter().map(|key| format!("{key}, noted by an agent of another version"))
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
        let known = self.keys.iter().map(KeyRef::Known);
        let keys = known.chain(self.unknown.iter().map(KeyRef::Unknown)).collect();
        let text = serde_json::to_vec(&FileRef { keys, rest: &self.rest })?;
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
    fn what_another_version_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owned.json");
        let unknown = [
            serde_json::json!({"rule": {"priority": 1000}}),
            serde_json::json!({"route": {"table": 254, "dst": "10.0.0.0/8", "metric": 0, "tos": 4}}),
        ];
        let mut keys: Vec<Value> =
            keys().iter().map(|key| serde_json::to_value(key).unwrap()).collect();
        keys.insert(1, unknown[0].clone());
        keys.push(unknown[1].clone());
        let file = serde_json::json!({"keys": keys, "since": "2030"});
        std::fs::write(&path, file.to_string()).unwrap();
        let mut owned = Owned::load(path.clone());
        assert_eq!(owned.problem, None);
        assert_eq!((owned.keys().len(), owned.unknown().count()), (5, 2));
        owned.erase(|key| matches!(key, Key::Link(_)));
        let now: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(now["since"], "2030");
        let left = now["keys"].as_array().unwrap();
        assert_eq!(left.len(), 6);
        assert!(unknown.iter().all(|key| left.contains(key)), "{now}");
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
