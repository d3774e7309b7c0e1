//! One call of a plugin, read and checked.

use std::path::Path;

use causeway_cni_spec::{CniArgs, CniError, Command, Env, NetConf};
use causeway_ipam::Owner;
use causeway_types::{Mac, PodRef};

use crate::paths::Paths;

/// What a plugin was called with.
#[derive(Clone, Debug)]
pub struct Call {
    /// The environment.
    pub env: Env,
    /// The configuration.
    pub conf: NetConf,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// Where files are.
    pub paths: Paths,
}

impl Call {
    /// Puts a call together.
    ///
    /// # Errors
    /// Code 4 for bad `CNI_ARGS` (DEL and GC pass them over: they must get on), code 8 when
    /// `CNI_NETNS` is the plugin's own namespace.
    pub fn new(env: Env, conf: NetConf, paths: Paths) -> Result<Self, CniError> {
        let args = match CniArgs::parse(&env.args) {
            Err(error) if matches!(env.command, Command::Add | Command::Check) => {
                return Err(error);
            }
            parsed => parsed.unwrap_or_default(),
        };
        let call = Self { env, conf, args, paths };
        call.refuse_own_namespace()?;
        Ok(call)
    }

    /// Who the addresses of this attachment belong to.
    pub fn owner(&self) -> Owner {
        Owner::new(&self.env.container_id, &self.env.ifname)
    }

    /// The pod, where the runtime told.
    pub fn pod(&self) -> Option<PodRef> {
        Some(PodRef {
            namespace: self.args.pod_namespace()?.to_owned(),
            name: self.args.pod_name()?.to_owned(),
            uid: self.args.pod_uid().map(str::to_owned),
        })
    }

    /// The pod's namespace path as text, as results carry it.
    ///
    /// # Errors
    /// Code 4 when it is missing, or there is no such file.
    pub fn netns(&self) -> Result<String, CniError> {
        let path = self.env.require_netns()?;
        match path.metadata() {
            Ok(_) => Ok(path.display().to_string()),
            Err(e) => Err(CniError::environment(format!(
                "cannot open the network namespace in CNI_NETNS, {}: {e}; the container may have \
                 ended, or the runtime must make the namespace first",
                path.display()
            ))),
        }
    }

    /// The hardware address asked for: the `mac` capability before `args.cni.mac` before the
    /// `MAC` of `CNI_ARGS`.
    ///
    /// # Errors
    /// Code 7 for what no interface can carry.
    pub fn mac(&self) -> Result<Option<Mac>, CniError> {
        let from_args: Option<String> = self.conf.args_cni_key("mac")?;
        let asked = [
            ("runtimeConfig.mac", self.conf.runtime_config.mac.clone()),
            ("args.cni.mac", from_args),
            ("MAC in CNI_ARGS", self.args.mac.clone()),
        ];
        let first =
            asked.into_iter().find_map(|(key, v)| Some((key, v.filter(|v| !v.is_empty())?)));
        let Some((key, text)) = first else { return Ok(None) };
        let bad = |why: &str| CniError::invalid_config(format!("{key} is {text:?}: {why}"));
        let mac: Mac =
            text.parse().map_err(|_| bad("expected six pairs of hex digits, aa:bb:…"))?;
        if mac.is_unicast() {
            Ok(Some(mac))
        } else {
            Err(bad("an interface cannot carry a multicast or zero address"))
        }
    }

    /// A runtime that passes the node's own namespace would have its interfaces changed.
    fn refuse_own_namespace(&self) -> Result<(), CniError> {
        let per_attachment = self.env.command.is_per_attachment();
        let Some(path) = self.env.netns.as_deref().filter(|_| per_attachment) else {
            return Ok(());
        };
        if self.env.netns_override || !is_own_namespace(path) {
            return Ok(());
        }
        Err(CniError::invalid_netns(format!(
            "CNI_NETNS {} is the plugin's own network namespace: pass the container's \
             (CNI_NETNS_OVERRIDE=1 lifts this check)",
            path.display()
        )))
    }
}

/// What cannot be looked at is not the own one: it may be gone, which DEL allows.
fn is_own_namespace(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let own = id(Path::new("/proc/thread-self/ns/net"));
    own.is_some() && id(path) == own
}
