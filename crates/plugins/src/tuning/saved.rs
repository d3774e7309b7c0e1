//! What the interface had before, in the reference's form, so that each puts back what the other
//! changed. Three keys more, which the reference passes over, say of which network and attachment it
//! is: GC of one network must not remove the files of another, nor that of an ADD that has not ended.

use std::path::{Path, PathBuf};

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_kernel::tune::Attributes;
use serde_json::Value;

use crate::call::Call;
use crate::files;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    attributes: Attributes,
    network: String,
    owner: Owner,
}

impl Saved {
    /// What is to be put back of what is to be changed.
    pub(super) fn new(call: &Call, have: &Attributes, changes: &Attributes) -> Self {
        let attributes = Attributes {
            mac: have.mac.filter(|_| changes.mac.is_some()),
            promisc: have.promisc.filter(|_| changes.promisc.is_some()),
            mtu: have.mtu.filter(|_| changes.mtu.is_some()),
            allmulti: have.allmulti.filter(|_| changes.allmulti.is_some()),
            tx_queue_len: have.tx_queue_len.filter(|_| changes.tx_queue_len.is_some()),
        };
        Self { attributes, network: call.conf.name.clone(), owner: call.owner() }
    }

    /// What an ADD saved that was killed counts more: what is there now may be its doing.
    pub(super) fn or_later(self, later: Saved) -> Self {
        let (first, then) = (self.attributes, later.attributes);
        let attributes = Attributes {
            mac: first.mac.or(then.mac),
            promisc: first.promisc.or(then.promisc),
            mtu: first.mtu.or(then.mtu),
            allmulti: first.allmulti.or(then.allmulti),
            tx_queue_len: first.tx_queue_len.or(then.tx_queue_len),
        };
        Self { attributes, ..later }
    }

    pub(super) fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Of this network, by its own word.
    pub(super) fn is_of(&self, network: &str) -> bool {
        self.network == network
    }

    /// The attachment, by its own word: of nobody where an earlier version wrote it.
    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Writes it in place of what is there.
    ///
    /// # Errors
    /// Code 5.
    pub(super) fn write(&self, path: &Path) -> Result<(), CniError> {
        if let Some(dir) = path.parent() {
            files::make_dir(dir, 0o755)?;
        }
        files::replace(path, self.to_json().to_string().as_bytes())
    }

    /// Reads it; `None` also for what cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CniError> {
        let text = files::read_state(path)?;
        let value = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        Ok(value.and_then(|value| Self::from_json(&value)))
    }

    fn to_json(&self) -> Value {
        let Attributes { mac, mtu, promisc, allmulti, tx_queue_len } = self.attributes;
        let values = [
            ("mac", mac.map(|mac| Value::from(mac.to_string()))),
            ("promisc", promisc.map(Value::from)),
            ("mtu", mtu.map(Value::from)),
            ("allmulti", allmulti.map(Value::from)),
            ("txQLen", tx_queue_len.map(Value::from)),
            ("network", Some(Value::from(self.network.as_str()))),
            ("containerId", Some(Value::from(self.owner.container_id.as_str()))),
            ("ifname", Some(Value::from(self.owner.ifname.as_str()))),
        ];
        let given = values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Value::Object(given.collect())
    }

    /// `None` when it is no object, or a value makes no sense.
    fn from_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let number = |key: &str| match object.get(key) {
            None => Some(None),
            Some(value) => u32::try_from(value.as_u64()?).ok().map(Some),
        };
        let switch = |key: &str| match object.get(key) {
            None => Some(None),
            Some(value) => value.as_bool().map(Some),
        };
        let attributes = Attributes {
            mac: match object.get("mac") {
                None => None,
                Some(mac) => Some(mac.as_str()?.parse().ok()?),
            },
            promisc: switch("promisc")?,
            mtu: number("mtu")?,
            allmulti: switch("allmulti")?,
            tx_queue_len: number("txQLen")?,
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let owner = Owner::new(text("containerId"), text("ifname"));
        Some(Self { attributes, network: text("network").to_owned(), owner })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let all = Attributes {
            mac: Some(causeway_types::Mac::derived("x")),
            mtu: Some(1400),
            promisc: Some(false),
            allmulti: Some(true),
            tx_queue_len: Some(0),
        };
        for attributes in [all, Attributes { mac: None, mtu: None, ..all }, Attributes::default()] {
            let owner = Owner::new("c1", "eth0");
            let saved = Saved { attributes, network: "net".to_owned(), owner };
            assert_eq!(Saved::from_json(&saved.to_json()), Some(saved));
        }
        for bad in
            [r#"{"mac":"x"}"#, r#"{"mtu":-1}"#, r#"{"promisc":1}"#, r#"{"txQLen":"1"}"#, "[]"]
        {
            assert_eq!(Saved::from_json(&serde_json::from_str(bad).unwrap()), None, "{bad}");
        }
        let theirs = serde_json::from_str(r#"{"mac":"02:00:00:00:00:01","mtu":1500}"#).unwrap();
        let saved = Saved::from_json(&theirs).unwrap();
        assert!(saved.attributes.mac.is_some() && !saved.is_of("net"));
    }
}
