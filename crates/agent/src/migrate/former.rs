//! What another network has on a node.

use std::path::Path;

use anyhow::Context;
use causeway_desired::input::{Config, Former};
use causeway_model::{Key, Link, LinkKind, Object, Observed};
use causeway_types::{Family, IfName, names};
use serde_json::Value;

/// Where libcni keeps results of ADD.
pub(super) const RESULTS: &str = "/var/lib/cni/results";

/// A network in words.
pub(super) fn name(former: Former) -> &'static str {
    match former {
        Former::Flannel => "flannel",
        Former::Bridge => "a network of type bridge",
    }
}

/// The configurations by which runtimes call the former network's plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    /// Names of files.
    pub(super) files: Vec<String>,
    /// Names of their networks.
    pub(super) networks: Vec<String>,
    /// Bridges that they name.
    pub(super) bridges: Vec<String>,
}

impl Lists {
    /// Those in a directory that make runtimes call plugins of a type.
    ///
    /// # Errors
    /// When the directory is there and cannot be read. A file that makes no sense is no configuration.
    pub(super) fn find(dir: &Path, from: Former) -> anyhow::Result<Self> {
        let mut lists = Self::default();
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(lists),
            Err(e) => return Err(e).context(dir.display().to_string()),
        };
        let mut all: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        all.sort();
        for path in all {
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let known = [".conf", ".conflist", ".json"].iter().any(|end| file.ends_with(end));
            if !known || file == names::CNI_CONFLIST {
                continue;
            }
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            if let Ok(list) = serde_json::from_slice::<Value>(&bytes) {
                lists.take(file, &list, from);
            }
        }
        Ok(lists)
    }

    fn take(&mut self, file: &str, list: &Value, from: Former) {
        let plugins: Vec<&Value> = match list["plugins"].as_array() {
            Some(plugins) => plugins.iter().collect(),
            None => vec![list],
        };
        let kind = match from {
            Former::Flannel => "flannel",
            Former::Bridge => "bridge",
        };
        let Some(plugin) = plugins.iter().find(|p| p["type"] == kind) else { return };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let conf = match from {
            Former::Flannel => &plugin["delegate"],
            Former::Bridge => *plugin,
        };
        self.files.push(file.to_owned());
        self.networks.push(text(&list["name"]).unwrap_or_default());
        self.bridges.push(text(&conf["bridge"]).unwrap_or_else(|| names::BRIDGE.to_owned()));
    }
}

/// An interface by its name.
pub(super) fn link<'a>(seen: &'a Observed, name: &IfName) -> Option<&'a Link> {
    match seen.get(&Key::Link(name.clone()))? {
        Object::Link(link) => Some(link),
        _ => None,
    }
}

/// Pods' ports of a bridge.
pub(super) fn ports<'a>(seen: &'a Observed, bridge: &'a IfName) -> impl Iterator<Item = &'a Link> {
    seen.iter().filter_map(move |(_, object)| match object {
        Object::Link(link)
            if link.master.as_ref() == Some(bridge)
                && matches!(link.kind, LinkKind::Veth { .. }) =>
        {
            Some(link)
        }
        _ => None,
    })
}

/// flannel's tunnel devices, which have the network identifier in their names.
pub(super) fn tunnels<'a>(
    seen: &'a Observed,
    config: &Config,
) -> impl Iterator<Item = (Family, &'a Link)> {
    let vni = config.vni.get();
    let names = [(Family::V4, format!("flannel.{vni}")), (Family::V6, format!("flannel-v6.{vni}"))];
    names
        .into_iter()
        .filter_map(move |(family, name)| Some((family, link(seen, &name.parse().ok()?)?)))
}

/// What flanneld writes for its plugin, `KEY=VALUE` a line.
pub(super) fn subnet_file(path: &Path) -> std::io::Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    Ok(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// Whether flanneld runs in the network of the calling thread; `None` where not all processes are seen.
pub(super) fn flanneld() -> Option<Option<i32>> {
    // `PROC_PID_INIT_INO` (`linux/proc_ns.h`): the first namespace of processes.
    let all =
        std::fs::read_link("/proc/self/ns/pid").is_ok_and(|l| l.as_os_str() == "pid:[4026531836]");
    let own = std::fs::read_link("/proc/thread-self/ns/net").ok()?;
    let pids = std::fs::read_dir("/proc").ok()?.flatten();
    let found =
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let net = std::fs::read_link(format!("/proc/{pid}/ns/net"));
            comm.trim() == "flanneld" && net.is_ok_and(|net| net == own)
        });
    if found.is_some() || all { Some(found) } else { None }
}
