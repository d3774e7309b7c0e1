//! The files shared with the agent: the node file, attachment records and lease records.

use std::fs::{File, TryLockError};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_types::names;
use causeway_types::state::{AttachmentRecord, LeaseRecord, NodeFile};
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{self, Planned};
use crate::paths::Paths;

/// Reads what the agent says of the node; `None` while it has said nothing.
///
/// # Errors
/// Code 5 when the file cannot be read, code 6 when it makes no sense.
pub fn node_file(paths: &Paths) -> Result<Option<NodeFile>, CniError> {
    read_json(&paths.node_file)
}

/// The kernel's boot ID.
///
/// # Errors
/// Code 5.
pub fn boot_id(paths: &Paths) -> Result<String, CniError> {
    let content = files::read(&paths.boot_id)?.ok_or_else(|| {
        CniError::io(format!("{} is not there: is /proc mounted?", paths.boot_id.display()))
    })?;
    Ok(String::from_utf8_lossy(&content).trim().to_owned())
}

/// The directory of attachment records.
#[derive(Clone, Debug)]
pub struct Attachments {
    dir: PathBuf,
    locks: PathBuf,
}

/// A removal takes some twenty milliseconds, and a few may be in line.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// The lock of one attachment. Its file goes with it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is unlocked: nobody finds it locked by nobody under another's name.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let at = path.symlink_metadata().map(id);
    at.is_ok_and(|at| file.metadata().is_ok_and(|locked| id(locked) == at))
}

impl Attachments {
    /// The records at their place.
    pub fn at(paths: &Paths) -> Self {
        Self { dir: paths.attachments.clone(), locks: paths.locks.clone() }
    }

    /// Keeps others from removing the same attachment until the lock is dropped: a plugin and the
    /// agent. Where no lock can be made (a disk without room), nobody is kept out.
    ///
    /// # Errors
    /// Code 11 when another holds it for too long.
    pub fn lock(&self, container_id: &str, ifname: &str) -> Result<Option<Lock>, CniError> {
        let path = self.lock_path(container_id, ifname);
        let start = Instant::now();
        while start.elapsed() < LOCK_PATIENCE {
            let Some(file) = self.lock_file(&path) else { return Ok(None) };
            match file.try_lock() {
                // Whoever had it before removes the file when it is done.
                Ok(()) if is_at(&file, &path) => return Ok(Some(Lock { _file: file, path })),
                Ok(()) => {}
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_LOOKS),
            }
        }
        Err(CniError::try_again(format!(
            "the removal of the attachment has been under way for more than {LOCK_PATIENCE:?}, by \
             whoever holds {} (`lslocks` shows the process)",
            path.display()
        )))
    }

    /// Somebody is removing the attachment at this moment.
    pub(crate) fn is_locked(&self, container_id: &str, ifname: &str) -> bool {
        let path = self.lock_path(container_id, ifname);
        let file = files::open_plain(&path, OFlags::RDWR | OFlags::NOFOLLOW);
        let locked = |file: &File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        file.is_ok_and(|file| locked(&file) && is_at(&file, &path))
    }

    fn lock_path(&self, container_id: &str, ifname: &str) -> PathBuf {
        let name = AttachmentRecord::file_name(container_id, ifname);
        self.locks.join(name.trim_end_matches(".json"))
    }

    fn lock_file(&self, path: &Path) -> Option<File> {
        let open = || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
            files::open_plain(path, flags)
        };
        match open() {
            Err(e) if files::is_absent(&e) => {
                files::make_dir(&self.locks, 0o700).ok()?;
                open().ok()
            }
            other => other.ok(),
        }
    }

    /// The record in a file. One that cannot be understood, or speaks of another attachment than the
    /// file's name says, counts as missing.
    ///
    /// # Errors
    /// Code 5.
    pub fn named(&self, file: &str) -> Result<Option<AttachmentRecord>, CniError> {
        // Names come from others: none of them leads elsewhere.
        if file.contains('/') || file.starts_with('.') {
            return Ok(None);
        }
        let record: Option<AttachmentRecord> = read_state(&self.dir.join(file))?;
        Ok(record.filter(|r| is_named(r, file)))
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.dir.join(AttachmentRecord::file_name(container_id, ifname))
    }

    /// The record of one attachment. One that cannot be understood, or speaks of another attachment
    /// than its name says, counts as missing: everything that DEL needs can be derived from the names.
    ///
    /// # Errors
    /// Code 5.
    pub fn read(
        &self,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<AttachmentRecord>, CniError> {
        self.named(&AttachmentRecord::file_name(container_id, ifname))
    }

    /// Writes a record in place of an older one.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&self, record: &AttachmentRecord) -> Result<(), CniError> {
        files::make_dir(&self.dir, 0o700)?;
        let path = self.path(&record.container_id, record.ifname.as_str());
        files::replace(&path, &json(record))
    }

    /// Writes a record that was read and is to say more now. What another version wrote beside it stays.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn amend(&self, record: &AttachmentRecord) -> Result<(), CniError> {
        amend(&self.path(&record.container_id, record.ifname.as_str()), record)
    }

    /// What can be told of an attachment whose record this version does not understand; `None` where
    /// there is no record, or nothing of it can be read.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn vital(&self, owner: &Owner) -> Result<Option<Vital>, CniError> {
        let file = AttachmentRecord::file_name(&owner.container_id, &owner.ifname);
        // As in `named`.
        if file.contains('/') || file.starts_with('.') {
            return Ok(None);
        }
        read_state(&self.dir.join(file))
    }

    /// Erases a record; one that is not there is fine.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let path = self.path(container_id, ifname);
        // The trace of an ADD that was killed while it wrote.
        files::remove(&files::beside(&path))?;
        files::remove(&path)
    }

    /// The files that a new record needs: its first form, and beside it the one that follows.
    pub(crate) fn files(&self) -> Vec<Planned> {
        ["new", "next"].map(|name| (self.dir.join(name), true)).to_vec()
    }

    /// All records that can be understood.
    ///
    /// # Errors
    /// Code 5.
    pub fn list(&self) -> Result<Vec<AttachmentRecord>, CniError> {
        let mut all = Vec::new();
        for name in files::names(&self.dir)? {
            if name.ends_with(".json") && !name.starts_with('.') {
                let found: Option<AttachmentRecord> = read_state(&self.dir.join(&name))?;
                all.extend(found.filter(|r| is_named(r, &name)));
            }
        }
        Ok(all)
    }
}

impl Attachments {
    /// Files that should hold a record and cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub fn unreadable(&self) -> Result<Vec<PathBuf>, CniError> {
        let mut all = Vec::new();
        for name in files::names(&self.dir)? {
            if name.ends_with(".json") && !name.starts_with('.') {
                let path = self.dir.join(&name);
                // Gone meanwhile is fine.
                let Some(content) = files::read_state(&path)? else { continue };
                let found: Option<AttachmentRecord> = serde_json::from_slice(&content).ok();
                if found.is_none_or(|record| !is_named(&record, &name)) {
                    all.push(path);
                }
            }
        }
        Ok(all)
    }

    /// The path of the record of an attachment.
    pub fn file(&self, record: &AttachmentRecord) -> PathBuf {
        self.path(&record.container_id, record.ifname.as_str())
    }
}

/// The lease records of one network.
#[derive(Clone, Debug)]
pub struct LeaseRecords {
    dir: PathBuf,
    attachments: Attachments,
}

impl LeaseRecords {
    /// The records of a network.
    pub fn at(paths: &Paths, network: &str) -> Self {
        Self { dir: paths.lease_records.join(network), attachments: Attachments::at(paths) }
    }

    /// Whose address it is by the records alone, that of the lease and that of the attachment:
    /// what they agree on counts more than the lease itself.
    ///
    /// # Errors
    /// Code 5.
    pub fn witness(&self, ip: IpAddr) -> Result<Option<Owner>, CniError> {
        let Some(LeaseRecord { container_id, ifname, boot_id, .. }) = self.read(ip)? else {
            return Ok(None);
        };
        let attachment = self.attachments.read(&container_id, &ifname)?;
        let agrees = attachment.is_some_and(|a| {
            a.boot_id == boot_id && a.addresses.iter().any(|own| own.addr() == ip)
        });
        Ok(agrees.then(|| Owner::new(container_id, ifname)))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(format!("{ip}.json"))
    }

    /// The file that a new record needs.
    pub(crate) fn file(&self, set: usize) -> Planned {
        (self.dir.join(format!("new.{set}")), true)
    }

    /// The record of an address; `None` also for one that cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub fn read(&self, ip: IpAddr) -> Result<Option<LeaseRecord>, CniError> {
        read_state(&self.path(ip))
    }

    /// Writes the record of an address. The caller holds the lock of the network's leases.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&self, ip: IpAddr, record: &LeaseRecord) -> Result<(), CniError> {
        files::make_dir(&self.dir, 0o700)?;
        files::in_turn(&self.path(ip), &json(record))
    }

    /// Erases the record of an address; one that is not there is fine.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&self, ip: IpAddr) -> Result<(), CniError> {
        files::remove(&self.path(ip))
    }
}

/// A record of one attachment under the name of another would lead to the wrong interface.
fn is_named(record: &AttachmentRecord, name: &str) -> bool {
    let (id, ifname) = (&record.container_id, record.ifname.as_str());
    name == AttachmentRecord::file_name(id, ifname)
        && (record.host_ifname == names::host_veth(id, ifname) || record.is_taken_over())
}

/// By what a record of any version tells whether its pod lives.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Vital {
    /// Boot ID under which the interface was made.
    pub boot_id: String,
    /// The path of the pod's network namespace.
    pub netns: String,
}

/// Writes what was read from a file and changed since. Keys that are not known here stay as they are:
/// another version wrote them, and may come back.
///
/// # Errors
/// Code 5.
pub(crate) fn amend(path: &Path, value: &impl Serialize) -> Result<(), CniError> {
    let old = files::read_state(path)?.and_then(|text| serde_json::from_slice(&text).ok());
    let mut all: Value = old.unwrap_or_default();
    merge(&mut all, serde_json::to_value(value).map_err(|e| CniError::internal(e.to_string()))?);
    files::replace(path, &json(&all))
}

fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CniError> {
    let Some(content) = files::read(path)? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(|e| {
        CniError::decoding(format!(
            "cannot understand {}: {e}; an agent of another version wrote it, or it is damaged: see \
             that `causeway agent` of this version runs, it writes the file anew",
            path.display()
        ))
    })
}

/// `None` also for what cannot be understood.
fn read_state<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CniError> {
    Ok(files::read_state(path)?.and_then(|content| serde_json::from_slice(&content).ok()))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain structs always serialize");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_another_version_wrote_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let records = Attachments { dir: tmp.path().into(), locks: tmp.path().join("locks") };
        let host = names::host_veth("c1", "eth0");
        let newer = json!({
            "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/x", "network": "n",
            "pod": {"namespace": "a", "name": "b", "owner": "Deployment"},
            "attach": "routed", "pending": false, "hostIfname": host.as_str(),
            "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1450,
            "addresses": ["10.244.1.2/32"], "gateways": ["169.254.1.1"], "bootId": "b",
            "qos": {"class": "gold"},
        });
        let path = tmp.path().join("c1-eth0.json");
        std::fs::write(&path, newer.to_string()).unwrap();
        let record = records.read("c1", "eth0").unwrap().expect("it is understood");
        records.amend(&AttachmentRecord { pending: true, ..record }).unwrap();
        let mut expected = newer.clone();
        expected["pending"] = json!(true);
        let now: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(now, expected);
        // In place of one that is torn, and of one of another kind of pod's end.
        std::fs::write(&path, "{").unwrap();
        records.amend(&serde_json::from_value(newer.clone()).unwrap()).unwrap();
        assert!(records.read("c1", "eth0").unwrap().is_some());
        let mut other = newer;
        other["attach"] = json!("netkit");
        std::fs::write(&path, other.to_string()).unwrap();
        assert!(records.read("c1", "eth0").unwrap().is_none());
        let vital = records.vital(&Owner::new("c1", "eth0")).unwrap().unwrap();
        assert_eq!((vital.boot_id.as_str(), vital.netns.as_str()), ("b", "/run/netns/x"));
    }
}
