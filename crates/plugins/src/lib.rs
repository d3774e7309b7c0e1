//! The CNI plugins: `bridge`, `ptp`, `macvlan`, `host-device`, `host-local`, `static`, `loopback` and
//! `causeway`, in one file that acts by the name it is called by. Called by any other name (its own is `causeway-cni`) it acts as the
//! `type` of the configuration says.
//!
//! Blocking and single-threaded, because it lives for about a millisecond. It needs neither the
//! agent nor the API: what it must know of the cluster is in the node file
//! (`causeway_types::state::NodeFile`), and only where a pod's namespace has policies does an ADD
//! wait for the agent's word.

mod adds;
mod attachment;
mod bandwidth;
mod bridge;
pub mod call;
mod causeway;
mod chain;
pub mod collect;
#[cfg(test)]
mod faults;
mod files;
mod firewall;
mod foreign_chains;
pub mod garbage;
mod host_device;
mod host_local;
mod inside;
mod install;
pub mod ipam;
pub mod leases;
pub mod leave;
pub mod leftovers;
mod loopback;
mod macvlan;
mod names;
mod node;
mod notes;
pub mod notify;
mod owned;
mod paths;
mod portmap;
mod ptp;
pub mod record;
pub mod restore;
pub mod rollback;
mod sbr;
mod space;
mod static_ipam;
pub mod store;
mod tuning;
#[cfg(test)]
mod walk;

use std::io::{Read, Write};
use std::path::Path;

use causeway_cni_spec::{CniError, CniResult, Command, Env, NetConf, Version, version};

use crate::adds::Adds;
use crate::call::Call;
pub use crate::paths::Paths;

/// What each type does on each command. VERSION needs no type.
trait Plugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError>;
    fn del(&self, call: &Call) -> Result<(), CniError>;
    fn check(&self, call: &Call) -> Result<(), CniError>;
    fn status(&self, call: &Call) -> Result<(), CniError>;
    fn gc(&self, call: &Call) -> Result<(), CniError>;

    /// GC of this type removes what it finds of attachments, and must not take an ADD that has not
    /// ended for one that is over. Leases have locks of their own.
    fn is_collected(&self) -> bool {
        true
    }

    /// The versions of the specification that it takes.
    fn versions(&self) -> &'static [Version] {
        &Version::ALL
    }
}

/// The types, by the names of their files.
const TYPES: &[(&str, &dyn Plugin)] = &[
    ("bandwidth", &bandwidth::BandwidthPlugin),
    ("bridge", &bridge::BridgePlugin),
    ("causeway", &causeway::CausewayPlugin),
    ("firewall", &firewall::FirewallPlugin),
    (ipam::HOST_LOCAL, &host_local::HostLocalPlugin),
    ("loopback", &loopback::LoopbackPlugin),
    ("sbr", &sbr::SbrPlugin),
    ("tuning", &tuning::TuningPlugin),
    (host_device::KIND, &host_device::HostDevicePlugin),
    (macvlan::KIND, &macvlan::MacvlanPlugin),
    ("ptp", &ptp::PtpPlugin),
    (ipam::STATIC, &static_ipam::StaticPlugin),
    ("portmap", &portmap::PortmapPlugin),
];

fn plugin(name: &str) -> Option<&'static dyn Plugin> {
    TYPES.iter().find(|(n, _)| *n == name).map(|(_, plugin)| *plugin)
}

/// A call by hand, `install` and `uninstall`: carried out, with what is to be said. `None` for words
/// that are neither.
///
/// # Errors
/// What failed, where and why.
pub fn by_hand(words: &[String]) -> Option<Result<String, String>> {
    let types: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
    install::run(words, &types)
}

/// Runs one call: reads `env` and `stdin`, acts, writes a result or an error object to `stdout`.
/// Without `CNI_COMMAND` in the environment it says on `stderr` what it is. Answers the exit code.
pub fn run(
    program: &str,
    env: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    mut stdout: impl Write,
    mut stderr: impl Write,
) -> u8 {
    if !Env::is_plugin_call(&env) {
        return u8::from(writeln!(stderr, "{}", about(program)).is_err());
    }
    let (text, code) = match answer(program, env, stdin, Paths::default()) {
        Ok(text) => (text, 0),
        Err(error) => (error.to_json(), 1),
    };
    if text.is_empty() {
        return code;
    }
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    if written.is_ok() { code } else { 1 }
}

/// The text for standard output.
fn answer(
    program: &str,
    env: impl Fn(&str) -> Option<String>,
    mut stdin: impl Read,
    paths: Paths,
) -> Result<String, CniError> {
    let env = Env::parse(env)?;
    let mut input = Vec::new();
    stdin.read_to_end(&mut input).map_err(|e| {
        CniError::io(format!("cannot read the configuration on standard input: {e}"))
    })?;
    let command = env.command;
    let versions = plugin(file_name(program)).map_or(&Version::ALL[..], |plugin| plugin.versions());
    if command == Command::Version {
        return Ok(version::reply(&input, versions).to_string());
    }
    let conf = NetConf::parse(&input, command, versions)?;
    let version = conf.cni_version;
    act(program, env, conf, paths, version).map_err(|e| e.in_version(version))
}

fn act(
    program: &str,
    env: Env,
    conf: NetConf,
    paths: Paths,
    version: Version,
) -> Result<String, CniError> {
    let plugin = chosen(program, &conf.plugin_type)?;
    let call = Call::new(env, conf, paths)?;
    let none = String::new();
    match call.env.command {
        Command::Add => {
            if plugin.is_collected() {
                Adds::at(&call.paths).begin(&call.owner())?;
            }
            plugin.add(&call)?.to_json(version)
        }
        Command::Del => plugin.del(&call).map(|()| none),
        Command::Check => plugin.check(&call).map(|()| none),
        Command::Status => plugin.status(&call).map(|()| none),
        Command::Gc => plugin.gc(&call).map(|()| none),
        Command::Version => Ok(none),
    }
}

/// The type by the program's name, else by the configuration.
fn chosen(program: &str, plugin_type: &str) -> Result<&'static dyn Plugin, CniError> {
    let name = file_name(program);
    plugin(name).or_else(|| plugin(plugin_type)).ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"type\" is {plugin_type:?} and the program is called {name:?}: neither is one of {}",
            type_names()
        ))
    })
}

fn file_name(program: &str) -> &str {
    Path::new(program).file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

fn type_names() -> String {
    TYPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// The reference whose behaviour the types follow: programs compare it with what they need
/// (nerdctl reads it off `firewall`).
const REFERENCE: &str = "1.9.0";

/// Called by the name of a type: the two lines that the reference prints.
fn about(program: &str) -> String {
    let versions = |all: &[Version]| all.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ");
    let name = file_name(program);
    if let Some(plugin) = plugin(name) {
        return format!(
            "CNI {name} plugin v{REFERENCE}+causeway.{}\nCNI protocol versions supported: {}",
            env!("CARGO_PKG_VERSION"),
            versions(plugin.versions())
        );
    }
    let versions = versions(&Version::ALL);
    format!(
        "causeway-cni {}: CNI plugins {}; CNI versions {versions}. Container runtimes call it; it \
         acts by the name it is called by, or by \"type\" of the configuration. To put it in their \
         place: causeway-cni install DIR.",
        env!("CARGO_PKG_VERSION"),
        type_names()
    )
}
