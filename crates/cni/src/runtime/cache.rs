//! Results on disk, so that DEL, CHECK and GC know after a restart what ADD did. One file per
//! attachment in `CACHE/results/NETWORK-CONTAINER-IFNAME`, in libcni's form.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attachment::Attachment;
use crate::error::CniError;
use crate::json::Object;
use crate::result::null_is_default;

/// Where libcni keeps its files.
pub const DEFAULT_CACHE_DIR: &str = "/var/lib/cni";

const KIND: &str = "cniCacheV1";

/// A directory of cached results.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// One attachment as the cache knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedAttachment {
    /// Name of the network.
    pub network: String,
    /// The attachment with its arguments.
    pub attachment: Attachment,
    /// The configuration that it was made with.
    pub config: Vec<u8>,
    /// The result of ADD, as JSON of the version of that time.
    pub result: Object,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    container_id: String,
    /// Base64, as Go prints bytes.
    #[serde(default)]
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    cni_args: Vec<(String, String)>,
    #[serde(
        default,
        skip_serializing_if = "Object::is_empty",
        deserialize_with = "null_is_default"
    )]
    capability_args: Object,
    #[serde(
        default,
        skip_serializing_if = "Object::is_empty",
        deserialize_with = "null_is_default"
    )]
    result: Object,
}

impl Cache {
    /// A cache below a directory, which is made when the first result is stored.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of an attachment.
    pub fn path(&self, network: &str, attachment: &Attachment) -> PathBuf {
        let name = format!("{network}-{}-{}", attachment.container_id, attachment.ifname);
        self.results_dir().join(name)
    }

    fn results_dir(&self) -> PathBuf {
        self.dir.join("results")
    }

    /// Remembers a result: written aside and renamed, so that nobody reads half of it.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn store(
        &self,
        network: &str,
        attachment: &Attachment,
        config: &[u8],
        result: &Value,
    ) -> Result<(), CniError> {
        let file = File {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.clone(),
            config: BASE64.encode(config),
            if_name: attachment.ifname.clone(),
            network_name: network.to_owned(),
            netns: attachment.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capability_args.clone(),
            result: result.as_object().cloned().unwrap_or_default(),
        };
        let text = serde_json::to_vec(&file).expect("text keys and values always serialize");
        let path = self.path(network, attachment);
        write_atomically(&path, &text).map_err(|e| {
            CniError::io(format!("cannot cache the result in {}: {e}", path.display()))
        })
    }

    /// What is known of an attachment; `None` if nothing.
    ///
    /// # Errors
    /// Code 5 if the file cannot be read, code 6 if it is not of the known form.
    pub fn load(
        &self,
        network: &str,
        attachment: &Attachment,
    ) -> Result<Option<CachedAttachment>, CniError> {
        match read(&self.path(network, attachment)) {
            // Names may contain the separator, so that two attachments can share a path.
            Ok(found) if found.network != network || found.attachment.id() != attachment.id() => {
                Ok(None)
            }
            Ok(found) => Ok(Some(found)),
            Err(ReadError::Missing) => Ok(None),
            Err(ReadError::Failed(error)) => Err(error),
        }
    }

    /// Forgets an attachment; one that is not known is no error.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn remove(&self, network: &str, attachment: &Attachment) -> Result<(), CniError> {
        let path = self.path(network, attachment);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(CniError::io(format!("cannot remove {}: {e}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// All attachments of a network, by container and interface. Files that are not in the known
    /// form belong to somebody else or to a write that never ended, and are passed over.
    ///
    /// # Errors
    /// Code 5 if the directory cannot be read (a missing one counts as empty).
    pub fn list(&self, network: &str) -> Result<Vec<CachedAttachment>, CniError> {
        let mut found = self.all()?;
        found.retain(|cached| cached.network == network);
        Ok(found)
    }

    /// The same of all networks.
    ///
    /// # Errors
    /// As [`Cache::list`].
    pub fn all(&self) -> Result<Vec<CachedAttachment>, CniError> {
        let dir = self.results_dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CniError::io(format!("cannot read {}: {e}", dir.display()))),
        };
        let mut found: Vec<CachedAttachment> = entries
            .filter_map(Result::ok)
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .filter_map(|entry| read(&entry.path()).ok())
            .collect();
        found.sort_by_key(|cached| cached.attachment.id());
        Ok(found)
    }
}

enum ReadError {
    Missing,
    Failed(CniError),
}

fn read(path: &Path) -> Result<CachedAttachment, ReadError> {
    let malformed = |why: String| {
        ReadError::Failed(CniError::decoding(format!("cached result {}: {why}", path.display())))
    };
    let bytes = fs::read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::Failed(CniError::io(format!("cannot read {}: {e}", path.display()))),
    })?;
    let file: File = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    if file.kind != KIND {
        return Err(malformed(format!("kind is {:?}, expected {KIND:?}", file.kind)));
    }
    let config = BASE64.decode(&file.config).map_err(|e| malformed(format!("config: {e}")))?;
    Ok(CachedAttachment {
        network: file.network_name,
        attachment: Attachment {
            container_id: file.container_id,
            netns: (!file.netns.is_empty()).then(|| file.netns.into()),
            ifname: file.if_name,
            args: file.cni_args,
            capability_args: file.capability_args,
        },
        config,
        result: file.result,
    })
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().expect("the path has a directory, it was joined to one");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The process ID keeps two writers apart; the dot keeps it apart from network names.
    let aside = dir.join(format!(".{name}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // The first error is the one to tell; a file left aside harms nobody.
        let _ = fs::remove_file(&aside);
    }
    written
}
