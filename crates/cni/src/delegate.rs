//! Delegation: one plugin calls another (CNI 1.1.0, section 4), as a main plugin does with an
//! IPAM plugin that is not built in.

use crate::conf::NetConf;
use crate::env::{Command, Env};
use crate::error::CniError;
use crate::exec::{Exec, judge};
use crate::result::CniResult;

/// The environment for a plugin called by this one: the call's own, with another command if
/// need be (an ADD that fails half way undoes what it delegated with DEL). `search_path` is the
/// process's `PATH`, which plugins that run programs need.
pub fn delegate_env(
    env: &Env,
    command: Command,
    search_path: Option<&str>,
) -> Vec<(String, String)> {
    let path = env.path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    let netns = env.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let mut out = vec![("CNI_COMMAND".to_owned(), command.as_str().to_owned())];
    let optional = [
        ("CNI_CONTAINERID", env.container_id.as_str()),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_IFNAME", env.ifname.as_str()),
        ("CNI_ARGS", env.args.as_str()),
        ("CNI_PATH", path.as_str()),
        ("CNI_NETNS_OVERRIDE", if env.netns_override { "1" } else { "" }),
        ("PATH", search_path.unwrap_or_default()),
    ];
    out.extend(
        optional.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| ((*k).into(), (*v).into())),
    );
    out
}

/// Runs `plugin_type` with the configuration exactly as this plugin got it.
///
/// # Errors
/// The plugin's own error with its name before the message; code 7 if it is not in `CNI_PATH`;
/// code 5 if it could not be run.
pub fn delegate(
    exec: &impl Exec,
    plugin_type: &str,
    command: Command,
    env: &Env,
    conf: &NetConf,
) -> Result<Vec<u8>, CniError> {
    let run = || {
        let binary = exec.find(plugin_type, &env.path)?;
        let search_path = std::env::var("PATH").ok();
        let output = exec
            .run(&binary, &delegate_env(env, command, search_path.as_deref()), &conf.raw_bytes())
            .map_err(|e| CniError::io(format!("cannot run plugin {}: {e}", binary.display())))?;
        judge(plugin_type, output)
    };
    run().map_err(|e: CniError| e.in_version(conf.cni_version))
}

/// ADD through an IPAM plugin: its addresses, routes and DNS.
///
/// # Errors
/// As [`delegate`]; code 6 if it printed no result.
pub fn ipam_add(
    exec: &impl Exec,
    plugin_type: &str,
    env: &Env,
    conf: &NetConf,
) -> Result<CniResult, CniError> {
    let stdout = delegate(exec, plugin_type, Command::Add, env, conf)?;
    CniResult::from_slice(&stdout, conf.cni_version)
        .map_err(|e| e.context(format!("plugin \"{plugin_type}\"")).in_version(conf.cni_version))
}
