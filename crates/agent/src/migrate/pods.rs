//! The pods that run: leases tell whose an address is, and the kernel where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use causeway_desired::input::Config;
use causeway_ipam::Owner;
use causeway_kernel::{Handle, NetNs, Pair, Scope};
use causeway_model::{Link, LinkKind};
use causeway_plugins::collect::Network;
use causeway_plugins::record::Attachments;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, IfName, PodRef};
use ipnet::IpNet;
use serde_json::Value;

use super::former;
use crate::options::Paths;

/// Where runtimes keep pods' namespaces.
const NAMESPACES: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// Pods come and go: what does not fit is looked at again for this long in all.
const TRIES: usize = 15;
const PAUSE: Duration = Duration::from_millis(200);

/// The node's pods that have no record yet.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// As records.
    pub(super) found: Vec<AttachmentRecord>,
    /// Leases whose pod is nowhere.
    leases: Vec<(IpAddr, Owner)>,
    /// Ports of the bridge whose pod has no lease.
    ports: Vec<IfName>,
    /// Ports with a name that the reference does not give.
    others: Vec<IfName>,
}

impl Pods {
    fn fit(&self) -> bool {
        self.leases.is_empty() && self.ports.is_empty()
    }

    /// What is in the way, a line for each lease and port.
    pub(super) fn reasons(&self, keep_leases: bool) -> Vec<String> {
        let lease = |(ip, owner): &(IpAddr, Owner)| {
            format!(
                "{ip} is leased to container {} ({}), and no pod on the bridge has it: remove the lease's \
                 file if there is no such container, or say --keep-leases",
                owner.container_id, owner.ifname
            )
        };
        let port = |name: &IfName| {
            format!(
                "{name} is a port of the bridge, and no lease tells whose: its pod would be left out; \
                 delete that pod (`ip -d link show {name}` tells the namespace)"
            )
        };
        let leases = self.leases.iter().filter(|_| !keep_leases).map(lease);
        let other = |name: &IfName| {
            format!(
                "{name} is a port of the bridge that the plugin bridge has not made: its pod would be \
                     left out; delete that pod"
            )
        };
        leases.chain(self.ports.iter().map(port)).chain(self.others.iter().map(other)).collect()
    }

    /// Leases that stay though no pod has them.
    pub(super) fn notes(&self) -> Vec<String> {
        let line = |(ip, owner): &(IpAddr, Owner)| {
            format!("the lease of {ip} stays with container {}", owner.container_id)
        };
        self.leases.iter().map(line).collect()
    }
}

/// Looks until leases and pods fit each other, for a while.
///
/// # Errors
/// Those of the look.
pub(super) fn settled(mut look: impl FnMut() -> anyhow::Result<Pods>) -> anyhow::Result<Pods> {
    let mut pods = look()?;
    for _ in 0..TRIES {
        if pods.fit() {
            break;
        }
        std::thread::sleep(PAUSE);
        pods = look()?;
    }
    Ok(pods)
}

/// An interface inside a namespace that may be a pod's.
struct Inside {
    netns: PathBuf,
    link: Link,
    pair: Pair,
    addresses: Vec<IpNet>,
}

/// A port of the bridge.
struct Port {
    link: Link,
    pair: Pair,
}

/// Finds the pods of the network that have no record.
///
/// # Errors
/// When the disk or the kernel cannot be read.
pub(super) fn look(
    kernel: &mut Handle,
    paths: &Paths,
    config: &Config,
    results: &Path,
    boot_id: &str,
) -> anyhow::Result<Pods> {
    let records = Attachments::at(&paths.of_plugins()).list().map_err(|e| anyhow!("{e}"))?;
    let noted: BTreeSet<IfName> =
        records.into_iter().filter(|r| r.boot_id == boot_id).map(|r| r.host_ifname).collect();
    let mut ports = ports(kernel, &config.bridge, &noted)?;
    let leases = leases(paths, config, boot_id)?;
    if ports.is_empty() && leases.is_empty() {
        return Ok(Pods::default());
    }
    let named = leases.keys().filter_map(|owner| Some(cached(results, &config.network, owner)?.0));
    let mut inside = Vec::new();
    let mut seen = BTreeSet::from([NetNs::current()?.id()?]);
    let known = NAMESPACES.iter().flat_map(|dir| entries(Path::new(dir)));
    // What the runtime says comes first: its path is the one that it will name again.
    for path in named.chain(known).chain(processes()) {
        inside.extend(look_inside(&path, &mut seen));
    }
    let mut pods = Pods::default();
    for (owner, ips) in leases {
        let has = |i: &&Inside| {
            let all: Vec<IpAddr> = i.addresses.iter().map(IpNet::addr).collect();
            let named = owner.ifname.is_empty() || i.link.name.as_str() == owner.ifname;
            named && ips.iter().all(|ip| all.contains(ip))
        };
        let pair = inside
            .iter()
            .filter(has)
            .find_map(|i| Some((i, ports.iter().position(|p| p.pair.is_other_end(i.pair))?)));
        match pair {
            Some((i, at)) => {
                let port = ports.remove(at);
                let pod = cached(results, &config.network, &owner).and_then(|(_, pod)| pod);
                let record = record(config, boot_id, &owner, pod, i, &port)?;
                if record.is_taken_over() {
                    pods.found.push(record);
                } else {
                    pods.others.push(record.host_ifname);
                }
            }
            None => pods.leases.extend(ips.into_iter().map(|ip| (ip, owner.clone()))),
        }
    }
    pods.ports = ports.into_iter().map(|p| p.link.name).collect();
    Ok(pods)
}

/// Ports of pods without a record. Those with a name of ours a plugin is at work on.
fn ports(
    kernel: &mut Handle,
    bridge: &IfName,
    noted: &BTreeSet<IfName>,
) -> anyhow::Result<Vec<Port>> {
    let seen = kernel.observe(&Scope::LINKS).context("cannot look at the kernel")?;
    let ours = |name: &IfName| name.as_str().starts_with("cw") || noted.contains(name);
    let mut all = Vec::new();
    for link in former::ports(&seen, bridge).filter(|l| !ours(&l.name)) {
        // It may be gone by now.
        let pair = kernel.pair(&link.name).context("cannot look at the kernel")?;
        all.extend(pair.map(|pair| Port { link: link.clone(), pair }));
    }
    Ok(all)
}

/// Leases of containers that no record names.
fn leases(
    paths: &Paths,
    config: &Config,
    boot_id: &str,
) -> anyhow::Result<BTreeMap<Owner, Vec<IpAddr>>> {
    let records = Attachments::at(&paths.of_plugins());
    let network = Network { paths: paths.of_plugins(), name: config.network.clone(), own: false };
    let mut all: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
    for held in network.peek().map_err(|e| anyhow!("{e}"))? {
        let record = records.read(&held.owner.container_id, &held.owner.ifname);
        let record = record.map_err(|e| anyhow!("{e}"))?;
        if record.is_none_or(|r| r.boot_id != boot_id) {
            all.entry(held.owner).or_default().push(held.ip);
        }
    }
    Ok(all)
}

/// What libcni keeps of an attachment: its namespace, and the pod.
fn cached(results: &Path, network: &str, owner: &Owner) -> Option<(PathBuf, Option<PodRef>)> {
    let file = results.join(format!("{network}-{}-{}", owner.container_id, owner.ifname));
    let said: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let netns = said["netns"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from);
    let argument = |name: &str| {
        let all = said["cniArgs"].as_array()?;
        let found = all.iter().find(|pair| pair[0] == name)?;
        Some(found[1].as_str()?.to_owned())
    };
    let pod = || {
        Some(PodRef {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID"),
        })
    };
    Some((netns?, pod()))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Namespaces of processes, for runtimes that give them no other name.
fn processes() -> impl Iterator<Item = PathBuf> {
    let is_process = |p: &PathBuf| {
        p.file_name().is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    entries(Path::new("/proc")).into_iter().filter(is_process).map(|p| p.join("ns/net"))
}

/// The ends of pairs in a namespace that was not looked at yet. What cannot be looked at is no pod's.
fn look_inside(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> Vec<Inside> {
    let look = |seen: &mut BTreeSet<(u64, u64)>| -> Option<Vec<Inside>> {
        let ns = NetNs::find(path).ok()??;
        if !seen.insert(ns.id().ok()?) {
            return None;
        }
        let mut pod = Handle::open_in(&ns).ok()?;
        let mut all = Vec::new();
        for device in pod.devices().ok()? {
            if !matches!(device.link.kind, LinkKind::Veth { .. }) {
                continue;
            }
            let Some(pair) = pod.pair(&device.link.name).ok()? else { continue };
            let addresses = pod.addresses(&device.link.name).ok()?;
            all.push(Inside { netns: path.to_owned(), link: device.link, pair, addresses });
        }
        Some(all)
    };
    look(seen).unwrap_or_default()
}

fn record(
    config: &Config,
    boot_id: &str,
    owner: &Owner,
    pod: Option<PodRef>,
    inside: &Inside,
    port: &Port,
) -> anyhow::Result<AttachmentRecord> {
    let lacks = |what: &str| {
        format!("{} of container {} has no {what}", port.link.name, owner.container_id)
    };
    let usable = |net: &&IpNet| match net {
        IpNet::V4(_) => true,
        IpNet::V6(net) => !net.addr().is_unicast_link_local(),
    };
    let addresses: Vec<IpNet> = inside.addresses.iter().filter(usable).copied().collect();
    let gateway = |family| {
        let own = addresses.iter().find(|a| Family::of(a.addr()) == family)?;
        Some(Cidr::of(*own).gateway())
    };
    Ok(AttachmentRecord {
        container_id: owner.container_id.clone(),
        ifname: inside.link.name.clone(),
        pod,
        netns: inside.netns.display().to_string(),
        network: config.network.clone(),
        attach: Attach::Bridge,
        pending: false,
        host_ifname: port.link.name.clone(),
        mac: inside.link.mac.with_context(|| lacks("MAC inside"))?,
        host_mac: port.link.mac.with_context(|| lacks("MAC"))?,
        mtu: port.link.mtu.with_context(|| lacks("MTU"))?,
        gateways: Family::BOTH.into_iter().filter_map(gateway).collect(),
        addresses,
        bridge: Some(config.bridge.clone()),
        // The agent's own rule covers the pods of a served network.
        masquerade_except: None,
        boot_id: boot_id.to_owned(),
        leaving: None,
    })
}
