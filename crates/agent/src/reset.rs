//! `causeway reset`: a node as it was before Causeway came.
//!
//! First what lets pods start, then pods, interfaces, routes and, at the very end, the tables that filter:
//! nothing opens on the way. Everything is looked for again afterwards, and what is still there is said. A
//! run that is cut off is carried on by the next.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use causeway_desired::input::{Config, TakenOver};
use causeway_kernel::{Handle, Routes, Scope};
use causeway_model::nft::NftFamily;
use causeway_model::{Key, LinkKind, Object, Observed};
use causeway_plan::{NftOp, Op, TableId};
use causeway_plugins::leave;
use causeway_plugins::record::Attachments;
use causeway_types::state::{AttachmentRecord, Leaving};
use causeway_types::{IfName, names};

use crate::options::Paths;
use crate::owned::Owned;
use crate::{lock, marks, taken_over};

/// Digits of the hash in a pod interface's name, see [`names::host_veth`].
const POD_DIGITS: usize = 11;
/// What the note of a device for limits begins with, as its alias.
const LIMITS: &str = "causeway-bandwidth:";
/// Pods that a message names.
const SOME: usize = 5;

/// What to do beside the usual.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Also with pods attached, which lose their network.
    pub with_pods: bool,
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Directories of CNI plugins: what `causeway-cni install` put there goes, and what it kept comes
    /// back.
    pub bin_dirs: Vec<PathBuf>,
}

/// What came of it, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Removed, or to be removed.
    pub removed: Vec<String>,
    /// Not ours to remove, with what to do about it.
    pub left: Vec<String>,
    /// Still there.
    pub failed: Vec<String>,
}

/// Resets the node in whose network namespace the calling thread is.
///
/// # Errors
/// Before anything is changed: an agent runs, pods are attached, or the kernel cannot be looked at.
/// What fails later is in the report.
pub fn reset(paths: &Paths, config: &Config, options: &Options) -> anyhow::Result<Report> {
    let lock = lock::take(&paths.lock).context(
        "its DaemonSet must not run on this node: give it a node selector or an affinity that this \
         node does not match, or delete it",
    )?;
    let mut node = Node::open(paths, config)?;
    let records =
        Attachments::at(&paths.of_plugins()).list().map_err(|e| anyhow::anyhow!("{e}"))?;
    let seen = node.observe()?;
    let pods = node.pods(&seen, &records);
    if !pods.is_empty() && !options.with_pods && !options.dry_run {
        bail!(
            "{} pod interface{} on this node: {}. Drain the node first (`kubectl drain`), and remove the \
             pods that stay (`crictl rmp -fa`); or say --with-pods, and they lose their network",
            pods.len(),
            if pods.len() == 1 { " is" } else { "s are" },
            some(&pods, &records)
        );
    }
    let mut report = Report::default();
    let files = node.files();
    if options.dry_run {
        report.removed =
            files.first.iter().chain(&files.last).map(|p| p.display().to_string()).collect();
        report.removed.extend(node.ours(&seen)?.iter().map(ToString::to_string));
        let dirs = options.bin_dirs.iter().filter(|dir| dir.join("causeway-cni").exists());
        report.removed.extend(dirs.map(|dir| format!("what was installed into {}", dir.display())));
    } else {
        remove_files(&files.first, &mut report);
        node.remove_pods(&records, &mut report);
        node.remove_objects(&mut report)?;
        let whole = report.failed.is_empty();
        for dir in &options.bin_dirs {
            uninstall(dir, &mut report);
        }
        if whole {
            // The lock is among them: its file goes, and whoever comes next takes a new one.
            remove_files(&files.last, &mut report);
            let _ = fs::remove_file(&paths.lock);
        } else {
            let kept = files.last.iter().map(|path| path.display().to_string());
            report.left.push(format!(
                "{}: they tell the next call what of the rest is ours",
                kept.collect::<Vec<_>>().join(", ")
            ));
        }
    }
    report.left.extend(node.not_ours(&seen));
    drop(lock);
    Ok(report)
}

fn some(pods: &[IfName], records: &[AttachmentRecord]) -> String {
    let name = |dev: &IfName| {
        let record = records.iter().find(|r| r.host_ifname == *dev);
        record.map_or_else(|| dev.to_string(), |r| format!("{dev} of {}", r.owner_name()))
    };
    let first: Vec<String> = pods.iter().take(SOME).map(name).collect();
    let more = if pods.len() > SOME { ", …" } else { "" };
    first.join(", ") + more
}

struct Files {
    /// What makes runtimes call the plugins.
    first: Vec<PathBuf>,
    /// What tells what is left to do.
    last: Vec<PathBuf>,
}

struct Node<'a> {
    paths: &'a Paths,
    config: &'a Config,
    bridge: IfName,
    networks: BTreeSet<String>,
    owned: Owned,
    taken: Option<TakenOver>,
    kernel: Handle,
}

impl<'a> Node<'a> {
    fn open(paths: &'a Paths, config: &'a Config) -> anyhow::Result<Self> {
        let plugins = paths.of_plugins();
        // A file that cannot be read says nothing; it goes like the others.
        let file = causeway_plugins::record::node_file(&plugins).ok().flatten();
        let mut networks = BTreeSet::from([config.network.clone()]);
        networks.extend(file.iter().flat_map(|f| f.served.clone()));
        networks.extend(entries(&paths.lease_records));
        Ok(Self {
            paths,
            config,
            bridge: file.map_or_else(|| config.bridge.clone(), |f| f.bridge),
            networks,
            owned: Owned::load(paths.owned.clone()),
            // What of it was recorded in this boot is among what is owned.
            taken: taken_over::load(&paths.taken_over).ok().flatten(),
            kernel: Handle::open().context("the kernel's interfaces")?,
        })
    }

    fn observe(&mut self) -> anyhow::Result<Observed> {
        let scope = Scope { routes: Routes::All, tables: tables(), ..Scope::default() };
        self.kernel.observe(&scope).context("cannot look at the kernel")
    }

    /// Interfaces of pods: what has the name of one is one, with a record or without, and what a record
    /// names that was taken over.
    fn pods(&self, seen: &Observed, records: &[AttachmentRecord]) -> Vec<IfName> {
        let noted = |name: &IfName| records.iter().any(|r| r.host_ifname == *name);
        let links = seen.iter().filter_map(|(_, object)| match object {
            Object::Link(link) if matches!(link.kind, LinkKind::Veth { .. }) => Some(&link.name),
            _ => None,
        });
        links.filter(|name| is_pods(name.as_str()) || noted(name)).cloned().collect()
    }

    /// Everything of ours in the kernel, in the order in which it is to be removed.
    fn ours(&mut self, seen: &Observed) -> anyhow::Result<Vec<Key>> {
        let limits = self.kernel.devices().context("cannot look at the kernel")?;
        let limits: BTreeSet<String> = limits
            .into_iter()
            .filter(|d| d.is_ifb() && d.alias.starts_with(LIMITS))
            .map(|d| d.link.name.to_string())
            .collect();
        let is_ours = |key: &Key, object: &Object| match object {
            Object::Link(link) => {
                let name = link.name.as_str();
                is_pods(name)
                    || limits.contains(name)
                    || marks::ours(object, self.config, self.taken.as_ref())
                    || self.owned.keys().contains(key)
            }
            Object::Route(_) => {
                marks::ours(object, self.config, None) || self.owned.keys().contains(key)
            }
            Object::Table(table) => tables().contains(&TableId::of(table)),
            // What stands on an interface goes with it.
            Object::Addr(_) | Object::Neigh(_) | Object::Fdb(_) => self.owned.keys().contains(key),
            Object::Sysctl(_) => false,
        };
        let mut keys: Vec<Key> = seen
            .iter()
            .filter(|(key, object)| is_ours(key, object))
            .map(|(key, _)| key.clone())
            .collect();
        keys.sort_by_key(|key| stage(key, seen));
        Ok(keys)
    }

    /// Brings attachments to their end as DEL does, with their leases.
    fn remove_pods(&self, records: &[AttachmentRecord], report: &mut Report) {
        let plugins = self.paths.of_plugins();
        for record in records {
            let who = format!("attachment of {} ({})", record.owner_name(), record.host_ifname);
            // A DEL that was cut off knows where the leases are.
            let usual = || Leaving { lease_dir: Some(self.paths.leases.join(&record.network)) };
            let leaving = Some(record.leaving.clone().unwrap_or_else(usual));
            let record = AttachmentRecord { pending: true, leaving, ..record.clone() };
            let file = AttachmentRecord::file_name(&record.container_id, record.ifname.as_str());
            let done = Attachments::at(&plugins)
                .write(&record)
                .and_then(|()| leave::finish(&plugins, &file));
            match done {
                Ok(()) => report.removed.push(who),
                Err(error) => report.failed.push(format!("{who}: {error}")),
            }
        }
    }

    fn remove_objects(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let seen = self.observe()?;
        let ours = self.ours(&seen)?;
        for key in &ours {
            let Some(object) = seen.get(key) else { continue };
            // What stood on an interface that went before it has gone too.
            for outcome in self.kernel.apply(&[removal(object)]) {
                let Err(error) = outcome else { continue };
                if !error.is_gone() {
                    tracing::debug!("{key}: {error}");
                }
            }
        }
        let after = self.observe()?;
        let left: BTreeSet<Key> = self.ours(&after)?.into_iter().collect();
        for key in ours {
            if left.contains(&key) {
                report.failed.push(format!("{key} is still there"));
            } else {
                report.removed.push(key.to_string());
            }
        }
        Ok(())
    }

    fn files(&self) -> Files {
        let leases = self.networks.iter().map(|network| self.paths.leases.join(network));
        let last = [&self.paths.lease_records, &self.paths.attachments, &self.paths.last_view];
        let dirs = last.into_iter().filter_map(|path| path.parent());
        let run = self.paths.node_file.parent();
        // In this order: the directories of leases are known by what lies in the others.
        let mut last: Vec<PathBuf> = leases.chain(dirs.chain(run).map(Path::to_owned)).collect();
        last.dedup();
        let first = vec![self.paths.conflist()];
        let there = |paths: Vec<PathBuf>| paths.into_iter().filter(|p| holds(p, &self.paths.lock));
        Files { first: there(first).collect(), last: there(last).collect() }
    }

    fn not_ours(&self, seen: &Observed) -> Vec<String> {
        let mut left = Vec::new();
        let bridge = Key::Link(self.bridge.clone());
        if seen.get(&bridge).is_some() && !self.owned.keys().contains(&bridge) {
            left.push(format!(
                "bridge {}: no agent recorded that it made it; if nobody else uses it, `ip link del {}`",
                self.bridge, self.bridge
            ));
        }
        if self.paths.config.exists() {
            left.push(format!("{}: the configuration", self.paths.config.display()));
        }
        left.push(
            "kernel parameters (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding` and others): others \
             may rely on them by now; a restart of the node sets those of /etc/sysctl.d"
                .to_owned(),
        );
        left
    }
}

fn tables() -> Vec<TableId> {
    let id = |family, name: &str| TableId { family, name: name.to_owned() };
    vec![
        marks::table(),
        id(NftFamily::Inet, names::NFT_POLICY),
        id(NftFamily::Inet, names::NFT_PLUGINS),
        id(NftFamily::Netdev, names::NFT_PLUGINS),
    ]
}

fn is_pods(name: &str) -> bool {
    let hash = name.strip_prefix("cw").unwrap_or_default();
    hash.len() == POD_DIGITS && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Pods' interfaces first, filters last.
fn stage(key: &Key, seen: &Observed) -> u8 {
    match key {
        Key::Link(name) if is_pods(name.as_str()) => 0,
        Key::Link(name) => match seen.get(&Key::Link(name.clone())) {
            Some(Object::Link(link)) if link.kind.is_tunnel() => 1,
            _ => 2,
        },
        Key::Addr { .. } | Key::Neigh { .. } | Key::Fdb { .. } | Key::Sysctl(_) => 3,
        Key::Route { .. } => 4,
        Key::Table { .. } => 5,
    }
}

fn removal(object: &Object) -> Op {
    match object {
        Object::Table(table) => Op::Nft { table: TableId::of(table), ops: vec![NftOp::DelTable] },
        other => Op::Remove(other.clone()),
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// A file is there, or a directory with more in it than the lock that this run has made.
fn holds(path: &Path, lock: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().any(|entry| entry.path() != lock),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

fn remove_files(paths: &[PathBuf], report: &mut Report) {
    for path in paths {
        let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let done = if is_dir { remove_dir(path) } else { fs::remove_file(path) };
        match done {
            Ok(()) => report.removed.push(path.display().to_string()),
            Err(error) => report.failed.push(format!("{}: {error}", path.display())),
        }
    }
}

/// Removes a directory with all that it holds; one that something is mounted on is emptied.
fn remove_dir(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() { remove_dir(&path)? } else { fs::remove_file(&path)? }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

/// By the plugins' own command, which knows what is ours and what was kept.
fn uninstall(dir: &Path, report: &mut Report) {
    if !dir.join("causeway-cni").exists() {
        return;
    }
    let words = ["uninstall".to_owned(), dir.display().to_string()];
    match causeway_plugins::by_hand(&words) {
        Some(Ok(said)) => {
            report.removed.extend(said.lines().map(|l| format!("{}: {l}", dir.display())))
        }
        Some(Err(why)) => report.failed.push(format!("{}: {why}", dir.display())),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_pods_by_their_names() {
        for name in [names::host_veth("c1", "eth0").as_str(), "cw0123456789a"] {
            assert!(is_pods(name), "{name}");
        }
        for name in
            ["cw-vxlan", "cw", "cw0123456789", "cw0123456789ab", "cw0123456789g", "cali0123456789a"]
        {
            assert!(!is_pods(name), "{name}");
        }
    }
}
