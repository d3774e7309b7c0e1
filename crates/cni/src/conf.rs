//! The configuration that a plugin reads from standard input (CNI 1.1.0, section 1 and
//! "Deriving execution configuration").

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::{Command, is_identifier};
use crate::error::CniError;
use crate::json::{self, Object, decode_key, get};
use crate::result::{CniResult, Dns};
use crate::runtime_config::RuntimeConfig;
use crate::version::{self, Version};

/// Key of the valid attachments that GC is given.
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// The same in the first drafts of 1.1.0; runtimes send both.
pub const VALID_ATTACHMENTS_DRAFT: &str = "cni.dev/attachments";

/// What every plugin's configuration has in common, checked, and the rest as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// Version of the configuration; results and errors answer in it.
    pub cni_version: Version,
    /// Name of the network.
    pub name: String,
    /// Name of the plugin's binary; empty for configurations that do not say.
    pub plugin_type: String,
    /// Capabilities that the configuration declares.
    pub capabilities: BTreeMap<String, bool>,
    /// Address management, if there is any.
    pub ipam: Option<Ipam>,
    /// Name resolution.
    pub dns: Dns,
    /// Result of the plugin before in the chain, or of the ADD for CHECK and DEL.
    pub prev_result: Option<CniResult>,
    /// What the runtime passes in for capabilities.
    pub runtime_config: RuntimeConfig,
    /// `args.cni`: the older way to pass in values for one attachment.
    pub args_cni: Object,
    /// Attachments that GC must leave alone. `None`: the key is missing, which is not the same
    /// as an empty list (see [`NetConf::gc_attachments`]).
    pub valid_attachments: Option<Vec<AttachmentId>>,
    /// The whole object as it came, for the plugin's own keys and for delegation.
    pub raw: Object,
}

/// The `ipam` part of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Ipam {
    /// Name of the IPAM plugin's binary.
    pub plugin_type: String,
    /// The object as it came.
    pub raw: Object,
}

/// An attachment as GC names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// Container ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface name in the container.
    pub ifname: String,
}

impl NetConf {
    /// Reads and checks a configuration for a command: JSON first, then the version against the
    /// command and the plugin's own `supported` list, then the name, then all common keys.
    ///
    /// # Errors
    /// Code 6: no JSON, or a key of the wrong type (named). Code 1: the version. Code 7: the name
    /// or a contradiction. All of them carry the configuration's version where it is known.
    pub fn parse(
        stdin: &[u8],
        command: Command,
        supported: &[Version],
    ) -> Result<NetConf, CniError> {
        let raw = json::object_from_slice(stdin, "the network configuration on standard input")?;
        let cni_version = Version::of_object(&raw)?;
        version::gate(command, cni_version, supported)
            .and_then(|()| NetConf::from_object(raw, cni_version))
            .map_err(|e| e.in_version(cni_version))
    }

    fn from_object(raw: Object, cni_version: Version) -> Result<NetConf, CniError> {
        let name: String = decode_key(&raw, "name")?;
        validate_network_name(&name)?;
        let prev_result = object_key(&raw, "prevResult")?
            .map(|o| CniResult::from_object(o, cni_version, "prevResult"))
            .transpose()?;
        Ok(NetConf {
            cni_version,
            name,
            plugin_type: decode_key(&raw, "type")?,
            capabilities: decode_key(&raw, "capabilities")?,
            ipam: Ipam::of(&raw)?,
            dns: decode_key(&raw, "dns")?,
            prev_result,
            runtime_config: decode_key(&raw, "runtimeConfig")?,
            args_cni: args_cni(&raw)?,
            valid_attachments: valid_attachments(&raw)?,
            raw,
        })
    }

    /// The plugin's own keys, read into its own struct from the whole object.
    ///
    /// # Errors
    /// Code 6 naming the key.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        let value = Value::Object(self.raw.clone());
        json::decode(&value, "").map_err(|e| e.in_version(self.cni_version))
    }

    /// One of the plugin's own keys: smaller code than a struct of its own where a plugin has few.
    ///
    /// # Errors
    /// Code 6 naming the key.
    pub fn key<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CniError> {
        get(&self.raw, key).map(|v| json::decode(v, key)).transpose()
    }

    /// One key of `args.cni`.
    ///
    /// # Errors
    /// Code 6 naming the key.
    pub fn args_cni_key<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CniError> {
        get(&self.args_cni, key).map(|v| json::decode(v, &format!("args.cni.{key}"))).transpose()
    }

    /// The previous result, for plugins that only work in a chain and for CHECK.
    ///
    /// # Errors
    /// Code 7 if it is missing.
    pub fn require_prev_result(&self) -> Result<&CniResult, CniError> {
        self.prev_result.as_ref().ok_or_else(|| {
            CniError::invalid_config(format!(
                "key \"prevResult\" is missing from the configuration of network \"{}\": plugin \"{}\" needs the result of the plugin before it (or of ADD)",
                self.name, self.plugin_type
            ))
            .in_version(self.cni_version)
        })
    }

    /// The attachments that GC must keep.
    ///
    /// # Errors
    /// Code 7 if the key is missing: to read that as "none is valid" would remove everything.
    pub fn gc_attachments(&self) -> Result<&[AttachmentId], CniError> {
        self.valid_attachments.as_deref().ok_or_else(|| {
            CniError::invalid_config(format!(
                "key \"{VALID_ATTACHMENTS}\" is missing from the configuration for GC: the runtime must list the attachments to keep, if need be as []"
            ))
            .in_version(self.cni_version)
        })
    }

    /// The configuration as bytes, for a plugin that this one delegates to.
    pub fn raw_bytes(&self) -> Vec<u8> {
        Value::Object(self.raw.clone()).to_string().into_bytes()
    }
}

impl Ipam {
    /// `ipam` of a configuration; absent, `null` and `{}` mean none.
    fn of(raw: &Object) -> Result<Option<Ipam>, CniError> {
        let Some(object) = object_key(raw, "ipam")?.filter(|o| !o.is_empty()) else {
            return Ok(None);
        };
        let plugin_type: Option<String> =
            get(object, "type").map(|v| json::decode(v, "ipam.type")).transpose()?;
        match plugin_type.filter(|t| !t.is_empty()) {
            Some(plugin_type) => Ok(Some(Ipam { plugin_type, raw: object.clone() })),
            // Go plugins print the whole struct, so `"type": ""` alone is how "none" may look.
            None if object.keys().all(|k| k == "type") => Ok(None),
            None => Err(CniError::invalid_config(
                "key \"ipam.type\" is missing: name the IPAM plugin (such as \"host-local\") or remove \"ipam\"",
            )),
        }
    }

    /// The IPAM plugin's own keys.
    ///
    /// # Errors
    /// Code 6 naming the key.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        json::decode(&Value::Object(self.raw.clone()), "ipam")
    }
}

/// Checks a network's name, which becomes part of paths.
///
/// # Errors
/// Code 7.
pub fn validate_network_name(name: &str) -> Result<(), CniError> {
    if name.is_empty() {
        return Err(CniError::invalid_config(
            "missing network name: set key \"name\" of the network configuration",
        ));
    }
    if !is_identifier(name) {
        return Err(CniError::invalid_config(format!(
            "invalid network name {name:?}: it must start with a letter or digit and hold only letters, digits, \"_\", \".\" and \"-\""
        )));
    }
    Ok(())
}

fn object_key<'a>(raw: &'a Object, key: &str) -> Result<Option<&'a Object>, CniError> {
    match get(raw, key) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => {
            // Decoding as an object cannot succeed here; it words the message as elsewhere.
            json::decode::<Object>(other, key).map(|_| None)
        }
    }
}

fn args_cni(raw: &Object) -> Result<Object, CniError> {
    let Some(args) = object_key(raw, "args")? else { return Ok(Object::new()) };
    match get(args, "cni") {
        None => Ok(Object::new()),
        Some(value) => json::decode(value, "args.cni"),
    }
}

fn valid_attachments(raw: &Object) -> Result<Option<Vec<AttachmentId>>, CniError> {
    for key in [VALID_ATTACHMENTS, VALID_ATTACHMENTS_DRAFT] {
        // `null` is Go's empty list here: the runtime did say that nothing is valid.
        match raw.get(key) {
            None => {}
            Some(Value::Null) => return Ok(Some(Vec::new())),
            Some(value) => return json::decode(value, key).map(Some),
        }
    }
    Ok(None)
}
