//! What agent, plugins and container runtime keep in files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use causeway_cni_spec::CniError;
use causeway_cni_spec::runtime::NetworkList;
use causeway_doctor::Facts;
use causeway_doctor::facts::{BadLease, List, PluginFile};
use causeway_plugins::Paths;
use causeway_plugins::collect::{Held, Network, Verdict};
use causeway_plugins::record::{self, Attachments};
use causeway_types::names;
use causeway_types::state::AttachmentRecord;

use super::cluster::kept;
use super::gather::known;

/// What looks left behind may be a pod on its way: it is looked at again after this time.
const SECOND_LOOK: Duration = Duration::from_millis(700);
/// What container runtimes take for configuration.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// What every build of `causeway-cni` has in it: the name of its tables.
const OURS: &[u8] = names::NFT_PLUGINS.as_bytes();

/// Looks at the node file, the configuration, the plugins, leases and records.
pub(super) fn look(facts: &mut Facts, cni_path: &[PathBuf]) {
    let paths = Paths::default();
    node_file(facts, &paths);
    facts.node.peers = kept().len().saturating_sub(1);
    lists(facts);
    plugins(facts, cni_path);
    let files = Attachments::at(&paths);
    let found = files.list().and_then(|records| Ok((records, files.unreadable()?)));
    let (records, unreadable) = known(facts, "attachment records", found);
    facts.cni.unreadable_records = unreadable.iter().map(|p| p.display().to_string()).collect();
    pods(facts, &paths, &records);
    facts.cni.shared = shared(facts, &files);
}

fn node_file(facts: &mut Facts, paths: &Paths) {
    facts.cni.node_file = paths.node_file.display().to_string();
    match record::node_file(paths) {
        Ok(file) => facts.node.file = file,
        Err(error) => facts.cni.node_file_error = Some(words(&error)),
    }
    let written = paths.node_file.metadata().and_then(|meta| meta.modified()).ok();
    facts.cni.node_file_old = written.zip(started()).is_some_and(|(file, boot)| file < boot);
}

fn words(error: &CniError) -> String {
    error.to_string().replace('\n', " ")
}

/// When the machine was started, by its present clock.
fn started() -> Option<SystemTime> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The configuration as a container runtime sees it.
fn lists(facts: &mut Facts) {
    let dir = Path::new(names::CNI_CONF_DIR);
    facts.cni.conf_dir = dir.display().to_string();
    facts.cni.own_list = names::CNI_CONFLIST.to_owned();
    facts.node.served |= dir.join(names::CNI_CONFLIST).exists();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| is_conf(p)).collect();
    files.sort();
    facts.cni.lists = files.iter().map(|path| list(path)).collect();
}

fn is_conf(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| EXTENSIONS.contains(&e))
}

fn list(path: &Path) -> List {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match NetworkList::load(path) {
        Ok(list) => List { file, network: list.name, error: None },
        Err(error) => List { file, network: String::new(), error: Some(words(&error)) },
    }
}

/// The plugins that our list names.
fn plugins(facts: &mut Facts, cni_path: &[PathBuf]) {
    facts.cni.path = cni_path.iter().map(|p| p.display().to_string()).collect();
    let Ok(list) = NetworkList::load(&Path::new(names::CNI_CONF_DIR).join(names::CNI_CONFLIST))
    else {
        return;
    };
    let mut types = BTreeSet::new();
    for plugin in &list.plugins {
        types.insert(plugin.plugin_type.clone());
        let ipam = plugin.raw.get("ipam").and_then(|ipam| ipam.get("type"));
        types.extend(ipam.and_then(|t| t.as_str()).map(str::to_owned));
    }
    facts.cni.plugins = types.into_iter().map(|name| binary(name, cni_path)).collect();
}

fn binary(name: String, cni_path: &[PathBuf]) -> PluginFile {
    let mut found = cni_path.iter().map(|dir| dir.join(&name));
    let Some(path) = found.find(|path| path.is_file()) else {
        return PluginFile { name, ..PluginFile::default() };
    };
    let mode = path.metadata().map_or(0, |meta| meta.permissions().mode());
    PluginFile {
        name,
        executable: mode & 0o111 != 0,
        ours: fs::read(&path).is_ok_and(|bytes| bytes.windows(OURS.len()).any(|w| w == OURS)),
        path: Some(path.display().to_string()),
    }
}

/// Addresses of pods, and leases and records that nobody needs.
fn pods(facts: &mut Facts, paths: &Paths, records: &[AttachmentRecord]) {
    let mut all: BTreeSet<IpAddr> =
        records.iter().flat_map(|r| &r.addresses).map(|net| net.addr()).collect();
    let mut networks: BTreeSet<String> = records.iter().map(|r| r.network.clone()).collect();
    let dirs = fs::read_dir(&paths.leases).into_iter().flatten().flatten();
    networks.extend(dirs.filter_map(|dir| dir.file_name().into_string().ok()));
    for name in networks {
        let network = Network { paths: paths.clone(), own: is_own(facts, &name), name };
        let what = format!("leases of network {}", network.name);
        let Left { held, dead } = known(facts, &what, left(&network));
        all.extend(held.iter().filter(|h| !is_bad(h)).map(|h| h.ip));
        let bad = held.iter().filter(|h| is_bad(h)).map(|h| lease(&network, h));
        facts.cni.leases.extend(bad);
        facts.cni.dead_records.extend(dead);
    }
    facts.node.pods = all.into_iter().collect();
}

/// Addresses that several pods have at two looks: DEL lets a lease go before the record, and the
/// address may be another's by then.
fn shared(facts: &mut Facts, files: &Attachments) -> Vec<(IpAddr, String, Vec<String>)> {
    let mut look = || {
        let records = known(facts, "attachment records", files.list());
        let dead = |r: &AttachmentRecord| {
            let file = files.file(r).display().to_string();
            facts.cni.dead_records.iter().any(|(path, _)| *path == file)
        };
        let live = records.iter().filter(|r| !dead(r));
        let mut owners: BTreeMap<(IpAddr, String), Vec<String>> = BTreeMap::new();
        for record in live {
            for net in &record.addresses {
                let key = (net.addr(), record.network.clone());
                owners.entry(key).or_default().push(record.owner_name());
            }
        }
        let several = owners.into_iter().filter(|(_, pods)| pods.len() > 1);
        several.map(|((ip, network), pods)| (ip, network, pods)).collect::<Vec<_>>()
    };
    let mut found = look();
    if !found.is_empty() {
        std::thread::sleep(SECOND_LOOK);
        let again = look();
        found.retain(|one| again.contains(one));
    }
    found
}

/// No other plugin gives out addresses of it.
fn is_own(facts: &Facts, network: &str) -> bool {
    let file = facts.node.file.as_ref();
    network == names::NETWORK && file.is_some_and(|f| !f.served.iter().any(|s| s == network))
}

fn is_bad(held: &Held) -> bool {
    match held.verdict {
        Verdict::Live => false,
        Verdict::Stale(_) => true,
        // What another plugin may have given is no fault, unless nobody can read it.
        Verdict::Kept(_) => held.owner.container_id.is_empty(),
    }
}

/// What a network holds.
#[derive(Default)]
struct Left {
    held: Vec<Held>,
    /// Paths of records that nobody needs, and why.
    dead: Vec<(String, String)>,
}

/// Leases, and records that nobody needs; what seems left behind does so at two looks in a row.
fn left(network: &Network) -> Result<Left, CniError> {
    let look = || Ok::<_, CniError>((network.peek()?, network.gone()?));
    let (held, gone) = look()?;
    if gone.is_empty() && !held.iter().any(is_bad) {
        return Ok(Left { held, dead: Vec::new() });
    }
    std::thread::sleep(SECOND_LOOK);
    let (mut again, mut still) = look()?;
    again.retain(|h| !is_bad(h) || held.contains(h));
    still.retain(|record| gone.contains(record));
    let files = Attachments::at(&network.paths);
    let named = |(record, why): (AttachmentRecord, String)| {
        (files.file(&record).display().to_string(), why)
    };
    Ok(Left { held: again, dead: still.into_iter().map(named).collect() })
}

fn lease(network: &Network, held: &Held) -> BadLease {
    let (Verdict::Stale(why) | Verdict::Kept(why)) = &held.verdict else {
        return BadLease::default();
    };
    let owner = match &held.pod {
        Some(pod) => pod.to_string(),
        None => held.owner.to_string(),
    };
    BadLease {
        file: network
            .paths
            .leases
            .join(&network.name)
            .join(held.ip.to_string())
            .display()
            .to_string(),
        network: network.name.clone(),
        unreadable: held.owner.container_id.is_empty(),
        owner,
        why: why.clone(),
    }
}
