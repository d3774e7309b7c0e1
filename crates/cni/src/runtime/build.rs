//! What a plugin is called with: standard input and environment, derived from the list.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::attachment::Attachment;
use super::list::{NetworkList, PluginConf};
use crate::conf::{AttachmentId, VALID_ATTACHMENTS, VALID_ATTACHMENTS_DRAFT};
use crate::env::Command;
use crate::json::Object;

/// What goes into a plugin's configuration besides its own keys.
#[derive(Default)]
pub(super) struct Extra<'a> {
    /// The result before, already in the list's version.
    pub(super) prev_result: Option<&'a Value>,
    /// The runtime's values for capabilities.
    pub(super) capability_args: Option<&'a Object>,
    /// The attachments to keep, for GC.
    pub(super) valid: Option<&'a [AttachmentId]>,
}

/// The configuration for one plugin: its own keys, name and version of the list, the previous
/// result, and `runtimeConfig` with the values for the capabilities that it declares.
pub(super) fn config(list: &NetworkList, plugin: &PluginConf, extra: &Extra<'_>) -> Vec<u8> {
    let mut conf = plugin.raw.clone();
    conf.insert("name".into(), json!(list.name));
    conf.insert("cniVersion".into(), json!(list.cni_version.as_str()));
    // Of the list, where a single configuration is one.
    conf.remove("cniVersions");
    if let Some(prev) = extra.prev_result {
        conf.insert("prevResult".into(), prev.clone());
    }
    let wanted: Object = extra
        .capability_args
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.has_capability(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        conf.insert("runtimeConfig".into(), Value::Object(wanted));
    }
    if let Some(valid) = extra.valid {
        for key in [VALID_ATTACHMENTS, VALID_ATTACHMENTS_DRAFT] {
            conf.insert(key.into(), json!(valid));
        }
    }
    Value::Object(conf).to_string().into_bytes()
}

/// The environment for a command, the same for every plugin of a list. `PATH` is passed on for
/// plugins that run programs; nothing else of the runtime's own environment is.
pub(super) fn environment(
    command: Command,
    attachment: Option<&Attachment>,
    cni_path: &[PathBuf],
    search_path: Option<&str>,
) -> Vec<(String, String)> {
    let joined = cni_path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    let mut env = vec![("CNI_COMMAND", command.as_str().to_owned()), ("CNI_PATH", joined)];
    if let Some(a) = attachment {
        let netns = a.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        let args = a.args.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";");
        env.extend([
            ("CNI_CONTAINERID", a.container_id.clone()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", a.ifname.clone()),
            ("CNI_ARGS", args),
        ]);
    }
    env.extend(search_path.map(|path| ("PATH", path.to_owned())));
    env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}
