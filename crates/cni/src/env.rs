//! The environment variables by which a runtime calls a plugin (CNI 1.1.0, section 2,
//! "Parameters").

use std::fmt;
use std::path::PathBuf;

use crate::error::CniError;

/// What the runtime asks for (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Undo an attachment; also of what is gone already.
    Del,
    /// Is the attachment still as the previous result says? Since 0.4.0.
    Check,
    /// Remove what belongs to no valid attachment. Since 1.1.0.
    Gc,
    /// Would an ADD succeed? Since 1.1.0.
    Status,
    /// Which versions does the plugin support?
    Version,
}

impl Command {
    /// All commands.
    pub const ALL: [Command; 6] = [
        Command::Add,
        Command::Del,
        Command::Check,
        Command::Gc,
        Command::Status,
        Command::Version,
    ];

    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// The first version of the specification that has the command. VERSION is answered in any.
    pub fn since(self) -> crate::version::Version {
        use crate::version::Version as V;
        match self {
            Command::Add | Command::Del | Command::Version => V::V0_1_0,
            Command::Check => V::V0_4_0,
            Command::Gc | Command::Status => V::V1_1_0,
        }
    }

    /// The command concerns one attachment (a container ID and an interface name).
    pub fn is_per_attachment(self) -> bool {
        matches!(self, Command::Add | Command::Del | Command::Check)
    }

    fn needs(self, variable: &str) -> bool {
        match variable {
            "CNI_CONTAINERID" | "CNI_IFNAME" => self.is_per_attachment(),
            "CNI_NETNS" => matches!(self, Command::Add | Command::Check),
            "CNI_PATH" => self != Command::Version,
            _ => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment of one call, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC, STATUS and VERSION.
    pub container_id: String,
    /// `CNI_NETNS`: a path to the container's network namespace. Always there for ADD and
    /// CHECK; for DEL it may be missing, when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: the interface to make in the container, at most 15 bytes; empty for GC,
    /// STATUS and VERSION.
    pub ifname: String,
    /// `CNI_ARGS` as it came; see [`crate::args::CniArgs`].
    pub args: String,
    /// `CNI_PATH`: directories in which to look for other plugins.
    pub path: Vec<PathBuf>,
    /// `CNI_NETNS_OVERRIDE` is `1` or `true`: the namespace may be the plugin's own.
    pub netns_override: bool,
}

impl Env {
    /// Was the program called as a plugin at all, that is, with `CNI_COMMAND` set? If not, a
    /// plugin says on standard error what it is and ends with success.
    pub fn is_plugin_call(lookup: impl Fn(&str) -> Option<String>) -> bool {
        lookup("CNI_COMMAND").is_some_and(|v| !v.is_empty())
    }

    /// Reads the environment through `lookup` (an empty value counts as missing).
    ///
    /// # Errors
    /// Code 4: an unknown command; variables missing, all of them named in one message; an
    /// unusable container ID or interface name.
    pub fn parse(lookup: impl Fn(&str) -> Option<String>) -> Result<Env, CniError> {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let command_text = get("CNI_COMMAND");
        let command = match &command_text {
            None => None,
            Some(text) => Some(
                Command::ALL.into_iter().find(|c| c.as_str() == text).ok_or_else(|| {
                    CniError::environment(format!(
                        "unknown CNI_COMMAND \"{text}\": expected ADD, DEL, CHECK, GC, STATUS or VERSION"
                    ))
                })?,
            ),
        };
        // Without a command nobody can say what else is needed: take the strictest.
        let strictest = command.unwrap_or(Command::Add);
        let mut missing: Vec<&str> = Vec::new();
        if command.is_none() {
            missing.push("CNI_COMMAND");
        }
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
            if strictest.needs(name) && get(name).is_none() {
                missing.push(name);
            }
        }
        let Some(command) = command.filter(|_| missing.is_empty()) else {
            return Err(missing_variables(command, &missing));
        };

        let env = Env {
            command,
            container_id: get("CNI_CONTAINERID").unwrap_or_default(),
            netns: get("CNI_NETNS").map(PathBuf::from),
            ifname: get("CNI_IFNAME").unwrap_or_default(),
            args: get("CNI_ARGS").unwrap_or_default(),
            path: split_path(&get("CNI_PATH").unwrap_or_default()),
            netns_override: get("CNI_NETNS_OVERRIDE")
                .is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")),
        };
        if command.is_per_attachment() {
            validate_container_id(&env.container_id)?;
            validate_ifname(&env.ifname)?;
        }
        Ok(env)
    }

    /// [`Env::parse`] of this process's environment.
    ///
    /// # Errors
    /// As [`Env::parse`].
    pub fn from_process() -> Result<Env, CniError> {
        Env::parse(|name| std::env::var(name).ok())
    }

    /// The namespace path, for commands that cannot do without.
    ///
    /// # Errors
    /// Code 4 if `CNI_NETNS` was not given.
    pub fn require_netns(&self) -> Result<&std::path::Path, CniError> {
        self.netns.as_deref().ok_or_else(|| missing_variables(Some(self.command), &["CNI_NETNS"]))
    }
}

fn missing_variables(command: Option<Command>, names: &[&str]) -> CniError {
    let for_command = command.map(|c| format!(" for {c}")).unwrap_or_default();
    CniError::environment(format!(
        "required env variables [{}] missing{for_command}: the container runtime sets them when it calls a plugin",
        names.join(",")
    ))
}

/// Splits `CNI_PATH` at the colons; empty parts are left out.
pub fn split_path(text: &str) -> Vec<PathBuf> {
    text.split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect()
}

/// An identifier as the specification wants it for container IDs and network names: a letter or
/// digit first, then letters, digits, `_`, `.` and `-` (ASCII).
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks a container ID.
///
/// # Errors
/// Code 4.
pub fn validate_container_id(id: &str) -> Result<(), CniError> {
    if is_identifier(id) {
        return Ok(());
    }
    Err(CniError::environment(format!(
        "invalid container ID {id:?} in CNI_CONTAINERID: it must start with a letter or digit and hold only letters, digits, \"_\", \".\" and \"-\""
    )))
}

/// Checks the name of an interface to be made, by the rules of the kernel (`dev_valid_name` in
/// `net/core/dev.c`): 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space.
///
/// # Errors
/// Code 4.
pub fn validate_ifname(name: &str) -> Result<(), CniError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > 15 {
        "it is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "\".\" and \"..\" are reserved"
    } else if name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        "\"/\", \":\" and white space are not allowed"
    } else {
        return Ok(());
    };
    Err(CniError::environment(format!("invalid interface name {name:?} in CNI_IFNAME: {why}")))
}
