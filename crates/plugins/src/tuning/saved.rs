//! What the interface had before, in the reference's form, so that each puts back what the other
//! changed. One key more, which the reference passes over, says of which network it is: GC of one
//! network must not remove the files of another.

use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_kernel::tune::Attributes;
use causeway_types::Mac;
use serde::{Deserialize, Serialize};

use crate::call::Call;
use crate::files;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_len: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
}

impl Saved {
    /// What is to be put back of what is to be changed.
    pub(super) fn new(call: &Call, have: &Attributes, changes: &Attributes) -> Self {
        Self {
            mac: have.mac.filter(|_| changes.mac.is_some()),
            promisc: have.promisc.filter(|_| changes.promisc.is_some()),
            mtu: have.mtu.filter(|_| changes.mtu.is_some()),
            allmulti: have.allmulti.filter(|_| changes.allmulti.is_some()),
            tx_queue_len: have.tx_queue_len.filter(|_| changes.tx_queue_len.is_some()),
            network: call.conf.name.clone(),
        }
    }

    /// What an ADD saved that was killed counts more: what is there now may be its doing.
    pub(super) fn or_later(self, later: Saved) -> Self {
        Self {
            mac: self.mac.or(later.mac),
            promisc: self.promisc.or(later.promisc),
            mtu: self.mtu.or(later.mtu),
            allmulti: self.allmulti.or(later.allmulti),
            tx_queue_len: self.tx_queue_len.or(later.tx_queue_len),
            network: later.network,
        }
    }

    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            mac: self.mac,
            mtu: self.mtu,
            promisc: self.promisc,
            allmulti: self.allmulti,
            tx_queue_len: self.tx_queue_len,
        }
    }

    /// Of this network, by its own word.
    pub(super) fn is_of(&self, network: &str) -> bool {
        self.network == network
    }

    /// Writes it in place of what is there.
    ///
    /// # Errors
    /// Code 5.
    pub(super) fn write(&self, path: &Path) -> Result<(), CniError> {
        if let Some(dir) = path.parent() {
            files::make_dir(dir, 0o755)?;
        }
        let text = serde_json::to_vec(self).expect("plain structs always serialize");
        files::replace(path, &text)
    }

    /// Reads it; `None` also for what cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CniError> {
        Ok(files::read_state(path)?.and_then(|text| serde_json::from_slice(&text).ok()))
    }
}

/// The name of an attachment's file, the same as the reference's.
pub(super) fn file_name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}_{ifname}.json")
}

/// The file of the call's attachment.
pub(super) fn file(call: &Call, dir: &Path) -> PathBuf {
    dir.join(file_name(&call.env.container_id, &call.env.ifname))
}

/// Removes a file, and the trace of an ADD that was killed while it wrote.
///
/// # Errors
/// Code 5.
pub(super) fn remove(path: &Path) -> Result<(), CniError> {
    files::remove(&files::beside(path))?;
    files::remove(path)
}
