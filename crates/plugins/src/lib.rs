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
mod cooling;
#[cfg(test)]
mod faults;
mod files;
mod firewall;
mod fixed;
mod foreign_chains;
#[cfg(test)]
mod formats;
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
mod refusal;
pub mod restore;
pub mod rollback;
mod sbr;
mod space;
mod static_ipam;
pub mod store;
mod tuning;
pub mod usage;
#[cfg(test)]
mod walk;

use std::io::{Read, Write};
use std::path::Path;

use causeway_cni_spec::{CniError, CniResult, Command, Env, NetConf, Version, version};

use crate::adds::{Adds, UnderWay};
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
/// Without `CNI_COMMAND` in the environment it says on `stderr` what it is. Answers the exit code, for
/// a process that ends with it: GC keeps off an attachment until then.
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
    let (answer, code) = match answer(program, env, stdin, Paths::default()) {
        Ok(answer) => (answer, 0),
        Err(error) => (Answer { text: error.to_json(), under_way: None }, 1),
    };
    // The runtime takes the process's end for that of the ADD: closed by that, not before.
    std::mem::forget((answer.under_way, store::kept()));
    if answer.text.is_empty() {
        return code;
    }
    let written = writeln!(stdout, "{}", answer.text).and_then(|()| stdout.flush());
    if written.is_ok() { code } else { 1 }
}

/// One call within this process, on the calling thread and in its network namespace: the text that
/// the program would write to its standard output.
///
/// # Errors
/// The error object that the program would write.
pub fn call(
    program: &str,
    env: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
    paths: Paths,
) -> Result<String, CniError> {
    let answer = answer(program, env, stdin, paths);
    // The process goes on.
    drop(store::kept());
    answer.map(|answer| answer.text)
}

/// What to say of a call.
struct Answer {
    /// For standard output.
    text: String,
    /// GC keeps off as long as this is there.
    under_way: Option<UnderWay>,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, under_way: None }
    }
}

fn answer(
    program: &str,
    env: impl Fn(&str) -> Option<String>,
    mut stdin: impl Read,
    paths: Paths,
) -> Result<Answer, CniError> {
    let env = Env::parse(env)?;
    let mut input = Vec::new();
    stdin.read_to_end(&mut input).map_err(|e| {
        CniError::io(format!("cannot read the configuration on standard input: {e}"))
    })?;
    let command = env.command;
    let versions = plugin(file_name(program)).map_or(&Version::ALL[..], |plugin| plugin.versions());
    if command == Command::Version {
        return Ok(version::reply(&input, versions).to_string().into());
    }
    let conf = NetConf::parse(&input, command, versions)?;
    let version = conf.cni_version;
    let socket = paths.agent_socket.clone();
    // Who calls a type for addresses says it itself.
    let is_called = [ipam::HOST_LOCAL, ipam::STATIC].contains(&file_name(program));
    act(program, env, conf, paths, version).map_err(|error| match command {
        Command::Add if !is_called => diagnosed(&socket, error).in_version(version),
        _ => error.in_version(version),
    })
}

fn act(
    program: &str,
    env: Env,
    conf: NetConf,
    paths: Paths,
    version: Version,
) -> Result<Answer, CniError> {
    let plugin = chosen(program, &conf.plugin_type)?;
    let call = Call::new(env, conf, paths)?;
    let none = |()| Answer::from(String::new());
    match call.env.command {
        Command::Add => {
            let collected = plugin.is_collected();
            let begin = || Adds::at(&call.paths).begin(&call.owner());
            let under_way = collected.then(begin).transpose()?;
            let text = plugin.add(&call)?.to_json(version)?;
            Ok(Answer { text, under_way })
        }
        Command::Del => plugin.del(&call).map(none),
        Command::Check => plugin.check(&call).map(none),
        Command::Status => plugin.status(&call).map(none),
        Command::Gc => plugin.gc(&call).map(none),
        Command::Version => Ok(none(())),
    }
}

/// What is most likely wrong with the node stands before what failed.
fn diagnosed(socket: &Path, mut error: CniError) -> CniError {
    if let Some(line) = notify::finding(socket) {
        error.msg = format!("{line}; ADD: {}", error.msg);
    }
    error
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

#[cfg(test)]
mod tests {
    use causeway_ipam::Owner;
    use serde_json::json;

    use super::*;

    /// A process that goes on after a call keeps nothing of it.
    #[test]
    fn a_call_within_a_process_ends() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_str().unwrap();
        let conf = json!({"cniVersion": "1.0.0", "name": "pods", "type": "host-local", "ipam": {
            "type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.1.0.0/24"}]]}});
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some("ADD".to_owned()),
            "CNI_CONTAINERID" => Some("c".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some("/run/netns/x".to_owned()),
            "CNI_PATH" => Some("/".to_owned()),
            _ => None,
        };
        let paths = Paths { lease_records: dir.path().join("records"), ..Paths::default() };
        let records = record::LeaseRecords::at(&paths, "pods");
        let text = call("host-local", env, conf.to_string().as_bytes(), paths).unwrap();
        assert!(text.contains("10.1.0.2"), "{text}");
        let leases = leases::Leases { dir: dir.path().join("pods"), records, record: None };
        let owner = Owner::new("c", "eth0");
        assert_eq!(leases.held(&owner).unwrap().len(), 1);
        assert!(!leases.is_in_flight(&owner).unwrap());
    }
}
