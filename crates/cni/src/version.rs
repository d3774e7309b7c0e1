//! Versions of the specification, and which command exists in which of them.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::env::Command;
use crate::error::CniError;

/// A published version of the CNI specification, in order of age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0; also what an absent `cniVersion` means.
    #[default]
    V0_1_0,
    /// 0.2.0: results still as `ip4` and `ip6`; adds VERSION.
    V0_2_0,
    /// 0.3.0: results with interfaces and any number of addresses.
    V0_3_0,
    /// 0.3.1: prevResult and chains.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: drops `version` from the addresses of a result.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and more fields of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// The newest version that this crate speaks.
    pub const NEWEST: Version = Version::V1_1_0;

    /// The version as written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Results of this version are `ip4` and `ip6`, one address each.
    pub fn is_legacy(self) -> bool {
        self <= Version::V0_2_0
    }

    /// The `cniVersion` of a JSON object; absent, `null` and empty mean 0.1.0.
    ///
    /// # Errors
    /// Code 6 if the key is not a string, code 1 if the version is none that is known.
    pub fn of_object(object: &Map<String, Value>) -> Result<Version, CniError> {
        match object.get("cniVersion") {
            None | Some(Value::Null) => Ok(Version::default()),
            Some(Value::String(text)) if text.is_empty() => Ok(Version::default()),
            Some(Value::String(text)) => {
                text.parse().map_err(|_| incompatible(text, &Version::ALL, ""))
            }
            Some(other) => Err(CniError::decoding(format!(
                "key \"cniVersion\" is {other}: expected a string such as \"{}\"",
                Version::NEWEST
            ))),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a known version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a known CNI version (known: {known})", known = list(&Version::ALL))]
pub struct UnknownVersion(pub String);

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Version::ALL
            .into_iter()
            .find(|v| v.as_str() == text)
            .ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

fn list(versions: &[Version]) -> String {
    versions.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ")
}

fn incompatible(wanted: &str, supported: &[Version], why: &str) -> CniError {
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    CniError::incompatible_version(format!(
        "incompatible CNI version: the configuration is {wanted:?}{why}; set \"cniVersion\" to one that the plugin supports"
    ))
    .with_details(format!("supported versions: {}", list(supported)))
}

/// May this command be run for a configuration of this version by a plugin that supports
/// `supported`? CHECK came with 0.4.0, GC and STATUS with 1.1.0.
///
/// # Errors
/// Code 1, with the versions that would do in the details.
pub fn gate(command: Command, version: Version, supported: &[Version]) -> Result<(), CniError> {
    let since = command.since();
    if version < since {
        let able: Vec<_> = supported.iter().copied().filter(|v| *v >= since).collect();
        let why = format!("{command} exists since {since}");
        return Err(incompatible(version.as_str(), &able, &why));
    }
    if !supported.contains(&version) {
        return Err(incompatible(version.as_str(), supported, ""));
    }
    Ok(())
}

/// The reply to VERSION: `cniVersion` as asked where it is supported, else the plugin's newest,
/// and all supported versions. `stdin` may be empty: runtimes of 0.1.0 send nothing.
///
/// # Errors
/// None for bad input: the command exists to find a common language, so it always answers.
pub fn reply(stdin: &[u8], supported: &[Version]) -> Value {
    let asked = serde_json::from_slice::<Map<String, Value>>(stdin)
        .ok()
        .filter(|object| object.contains_key("cniVersion"))
        .and_then(|object| Version::of_object(&object).ok())
        .filter(|version| supported.contains(version));
    let newest = supported.iter().copied().max().unwrap_or(Version::NEWEST);
    json!({
        "cniVersion": asked.unwrap_or(newest).as_str(),
        "supportedVersions": supported.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    })
}
