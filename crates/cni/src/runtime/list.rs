//! Network configuration lists (CNI 1.1.0, section 1), and single configurations, which count as
//! lists of one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::conf::validate_network_name;
use crate::error::CniError;
use crate::json::{self, Object, decode_key, get};
use crate::version::Version;

/// A network as the runtime sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Name of the network.
    pub name: String,
    /// The version to speak with all plugins of the list.
    pub cni_version: Version,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins in the order of ADD; at least one.
    pub plugins: Vec<PluginConf>,
    /// The text that it was read from, kept beside cached results.
    pub source: Vec<u8>,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConf {
    /// Name of its binary.
    pub plugin_type: String,
    /// Capabilities that it declares; only those that are `true` count.
    pub capabilities: BTreeMap<String, bool>,
    /// Its configuration as written.
    pub raw: Object,
}

impl NetworkList {
    /// Reads a list (`{"name", "cniVersion", "plugins": […]}`) or a single configuration
    /// (`{"name", "cniVersion", "type", …}`), told apart by the key `plugins`. Where the list has
    /// `cniVersions`, the newest of them that this crate speaks is taken.
    ///
    /// # Errors
    /// Code 6 and 7, naming key or value; code 1 if no version is known here.
    pub fn parse(source: &[u8]) -> Result<NetworkList, CniError> {
        NetworkList::parse_for(source, &Version::ALL)
    }

    /// [`NetworkList::parse`] with the versions that the runtime is willing to speak.
    ///
    /// # Errors
    /// As [`NetworkList::parse`].
    pub fn parse_for(source: &[u8], speaks: &[Version]) -> Result<NetworkList, CniError> {
        let raw = json::object_from_slice(source, "the network configuration")?;
        let name: String = decode_key(&raw, "name")?;
        validate_network_name(&name)?;
        let cni_version = negotiate(&raw, speaks)?;
        let plugins = match get(&raw, "plugins") {
            None => vec![PluginConf::of(raw.clone(), "")?],
            Some(value) => json::decode::<Vec<Object>>(value, "plugins")?
                .into_iter()
                .enumerate()
                .map(|(i, plugin)| PluginConf::of(plugin, &format!("plugins[{i}].")))
                .collect::<Result<_, _>>()?,
        };
        if plugins.is_empty() {
            return Err(CniError::invalid_config(format!(
                "key \"plugins\" of network \"{name}\" is empty: list at least one plugin"
            )));
        }
        Ok(NetworkList {
            name,
            cni_version,
            disable_check: flag(&raw, "disableCheck")?,
            disable_gc: flag(&raw, "disableGC")?,
            plugins,
            source: source.to_vec(),
        })
    }

    /// [`NetworkList::parse`] of a file.
    ///
    /// # Errors
    /// Code 5 if it cannot be read, else as `parse`, with the path before the message.
    pub fn load(path: &Path) -> Result<NetworkList, CniError> {
        let bytes = fs::read(path)
            .map_err(|e| CniError::io(format!("cannot read {}: {e}", path.display())))?;
        NetworkList::parse(&bytes).map_err(|e| e.context(path.display()))
    }
}

impl PluginConf {
    fn of(raw: Object, at: &str) -> Result<PluginConf, CniError> {
        let inside =
            |e: CniError| if at.is_empty() { e } else { e.context(at.trim_end_matches('.')) };
        let plugin_type: String = decode_key(&raw, "type").map_err(inside)?;
        if plugin_type.is_empty() {
            return Err(CniError::invalid_config(format!(
                "key \"{at}type\" is missing: name the plugin's binary"
            )));
        }
        let capabilities = decode_key(&raw, "capabilities").map_err(inside)?;
        Ok(PluginConf { plugin_type, capabilities, raw })
    }

    /// Did the plugin declare a capability?
    pub fn has_capability(&self, name: &str) -> bool {
        self.capabilities.get(name) == Some(&true)
    }
}

/// The newest version that both the configuration and the runtime name. Versions from the future
/// in `cniVersions` are there for other runtimes and passed over.
fn negotiate(raw: &Object, speaks: &[Version]) -> Result<Version, CniError> {
    let offered: Vec<String> = decode_key(raw, "cniVersions")?;
    let main: Option<String> = decode_key(raw, "cniVersion")?;
    let best = offered
        .iter()
        .chain(&main)
        .filter_map(|text| text.parse::<Version>().ok())
        .filter(|version| speaks.contains(version))
        .max();
    if let Some(best) = best {
        return Ok(best);
    }
    let version = Version::of_object(raw)?;
    if speaks.contains(&version) {
        return Ok(version);
    }
    let list = speaks.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ");
    Err(CniError::incompatible_version(format!(
        "no common CNI version: the configuration is \"{version}\", the runtime speaks {list}"
    )))
}

/// `disableCheck` is a string in the specification's text and a boolean in every example.
fn flag(raw: &Object, key: &str) -> Result<bool, CniError> {
    match get(raw, key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
        Some(other) => {
            Err(CniError::decoding(format!("key \"{key}\" is {other}: expected true or false")))
        }
    }
}

/// The configuration that a Kubernetes runtime would use from a directory: the first file in
/// lexical order that ends in `.conflist`, `.conf` or `.json`. `None` if there is none.
///
/// # Errors
/// Code 5 if the directory cannot be read (a missing one counts as empty); the first file's own
/// errors, since going on to another network in silence would surprise.
pub fn load_dir(dir: &Path) -> Result<Option<(PathBuf, NetworkList)>, CniError> {
    let failed = |e: std::io::Error| CniError::io(format!("cannot read {}: {e}", dir.display()));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut files = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    files.retain(|path| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file()
    });
    files.sort();
    match files.into_iter().next() {
        None => Ok(None),
        Some(path) => NetworkList::load(&path).map(|list| Some((path, list))),
    }
}
