//! The error object of the specification (CNI 1.1.0, section 5, "Error") and its codes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::version::Version;

/// Well-known error codes. 1 to 99 belong to the specification, 100 and above to plugins.
pub mod code {
    /// The configuration's version, or the command in that version, is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message names key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone; the runtime need not clean up after it.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed (standard input, state on disk).
    pub const IO_FAILURE: u32 = 5;
    /// Content could not be decoded: not JSON, or a key of the wrong type.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration can be read but makes no sense.
    pub const INVALID_CONFIG: u32 = 7;
    /// `CNI_NETNS` is the plugin's own namespace (used by the reference plugins).
    pub const INVALID_NETNS: u32 = 8;
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: an ADD would fail.
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    /// STATUS: an ADD would fail, and pods that run may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else.
    pub const INTERNAL: u32 = 999;
}

/// A failed CNI operation, as printed on standard output by a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// The version of the configuration that the plugin was called with, empty if it was never
    /// known.
    #[serde(rename = "cniVersion", default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// One of [`code`], or 100 and above for a plugin's own.
    pub code: u32,
    /// One line for a person: what failed, where and why.
    #[serde(default)]
    pub msg: String,
    /// More of the same, where one line does not suffice.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(msg: impl Into<String>) -> Self {
            Self::new(code::$code, msg)
        })*
    };
}

impl CniError {
    /// An error without details and without a version (see [`CniError::in_version`]).
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code, msg: msg.into(), details: String::new() }
    }

    constructors! {
        /// Code 1: see [`crate::version::gate`], which also fills in the details.
        incompatible_version => INCOMPATIBLE_VERSION;
        /// Code 3: the container is unknown or gone.
        unknown_container => UNKNOWN_CONTAINER;
        /// Code 4: an environment variable is missing or wrong.
        environment => INVALID_ENVIRONMENT;
        /// Code 5: reading or writing failed.
        io => IO_FAILURE;
        /// Code 6: content could not be decoded.
        decoding => DECODING_FAILURE;
        /// Code 7: the configuration makes no sense.
        invalid_config => INVALID_CONFIG;
        /// Code 8: `CNI_NETNS` is the plugin's own namespace.
        invalid_netns => INVALID_NETNS;
        /// Code 11: a passing condition, try again later.
        try_again => TRY_AGAIN_LATER;
        /// Code 50: STATUS, an ADD would fail.
        not_available => PLUGIN_NOT_AVAILABLE;
        /// Code 51: STATUS, an ADD would fail and running pods may suffer.
        limited_connectivity => LIMITED_CONNECTIVITY;
        /// Code 999: anything else.
        internal => INTERNAL;
    }

    /// Code 2: a field is not supported. The specification wants key and value in the message.
    pub fn unsupported_field(key: &str, value: impl fmt::Display, why: &str) -> Self {
        Self::new(code::UNSUPPORTED_FIELD, format!("{key} = {value} is not supported: {why}"))
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error with what was being done put before the message: `CONTEXT: MESSAGE`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.msg = format!("{context}: {}", self.msg);
        self
    }

    /// The same error marked with the version of the configuration that led to it.
    #[must_use]
    pub fn in_version(mut self, version: Version) -> Self {
        self.cni_version = version.as_str().to_owned();
        self
    }

    /// The error object as one line of JSON, for standard output. An error that never learned
    /// a version is printed in the newest one, because the key is required.
    pub fn to_json(&self) -> String {
        let mut printed = self.clone();
        printed.msg = one_line(&printed.msg);
        if printed.cni_version.is_empty() {
            printed.cni_version = Version::NEWEST.as_str().to_owned();
        }
        serde_json::to_string(&printed).expect("strings and a number always serialize")
    }
}

/// What came in from outside may hold anything: a message stays one line.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        write!(f, " [code {}]", self.code)
    }
}

impl std::error::Error for CniError {}
