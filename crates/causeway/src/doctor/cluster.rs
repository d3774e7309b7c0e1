//! What the API tells of the cluster, or the last view of it that the agent kept.

use std::path::Path;
use std::time::Duration;

use causeway_agent::config::Settings;
use causeway_agent::status::Status;
use causeway_cluster::Connection;
use causeway_cluster::survey::{Step, Survey, Surveyed, survey};
use causeway_doctor::Facts;
use causeway_doctor::facts::cluster::{Address, Api, Kind, Member, Obstacle, Site};
use causeway_kernel::{Error, Handle};
use causeway_types::{NodeName, names};
use ipnet::IpNet;

use super::gather::known;
use super::reach;

/// How long a step on the way to the API may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Asks the API, looks at the node's place among the others, and tries what answers there.
pub(super) fn look(
    facts: &mut Facts,
    settings: &Settings,
    kubeconfig: Option<&Path>,
    status: Option<&Status>,
) {
    facts.vxlan_port = settings.config.vxlan_port;
    let connection = Connection {
        kubeconfig: kubeconfig.map(Path::to_owned).or_else(|| settings.kubeconfig.clone()),
        host: settings.k8s_service_host.clone().filter(|_| kubeconfig.is_none()),
        port: settings.k8s_service_port,
    };
    let told = survey(&connection, PATIENCE);
    let connected =
        status.is_some_and(|s| s.inputs.view == "api" && s.inputs.nodes.error.is_none());
    facts.site = site(facts, settings, status);
    facts.site.shared.clone_from(&told.shared);
    facts.site.members = match &told.nodes {
        Some(nodes) => nodes.iter().map(member).collect(),
        None => kept(),
    };
    facts.api = Some(api(told, connected));
    reach::look(facts);
    let seen = Handle::open().and_then(|mut handle| handle.neighbours());
    let seen = known(facts, "neighbours", seen).into_iter();
    facts.site.neighbours = seen.map(|(dev, ip, mac)| (dev.to_string(), ip, mac)).collect();
}

fn api(told: Survey, agent_connected: bool) -> Api {
    let obstacle = told.failure.map(|(step, why)| Obstacle { kind: kind(step), why });
    Api { server: told.server, obstacle, agent_connected, skew: told.skew }
}

fn kind(step: Step) -> Kind {
    match step {
        Step::NoCredentials => Kind::NoCredentials,
        Step::Configuration => Kind::Configuration,
        Step::Name => Kind::Name,
        Step::Refused => Kind::Refused,
        Step::Silent => Kind::Silent,
        Step::Unreachable => Kind::Unreachable,
        Step::Tls => Kind::Tls,
        Step::Broken => Kind::Broken,
        Step::Unauthorized => Kind::Unauthorized,
        Step::Forbidden => Kind::Forbidden,
        Step::Missing | Step::Answer => Kind::Answer,
    }
}

fn member(node: &Surveyed) -> Member {
    Member {
        name: node.name.clone(),
        addresses: node.info.addresses.clone(),
        hostnames: node.hostnames.clone(),
        pod_cidrs: node.info.pod_cidrs.iter().map(|cidr| cidr.net()).collect(),
        machine_id: node.machine_id.clone(),
        system_uuid: node.system_uuid.clone(),
        boot_id: node.boot_id.clone(),
        kubelet_port: node.kubelet_port,
        ready: Some(node.ready),
        network: node.network,
        control_plane: node.control_plane,
        pods: node.pods.clone(),
    }
}

/// The nodes of the last good view on disk.
pub(super) fn kept() -> Vec<Member> {
    let text = std::fs::read(names::LAST_VIEW).unwrap_or_default();
    let view: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let nodes = view.get("nodes").and_then(|n| n.as_object()).into_iter().flatten();
    let list = |node: &serde_json::Value, field: &str| {
        let texts = node.get(field).and_then(|v| v.as_array()).cloned().unwrap_or_default();
        texts.into_iter().filter_map(|v| v.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let member = |(name, node): (&String, &serde_json::Value)| Member {
        name: name.clone(),
        addresses: list(node, "addresses").iter().filter_map(|a| a.parse().ok()).collect(),
        pod_cidrs: list(node, "podCidrs").iter().filter_map(|c| c.parse::<IpNet>().ok()).collect(),
        ..Member::default()
    };
    nodes.map(member).collect()
}

/// This node: its names and addresses.
fn site(facts: &mut Facts, settings: &Settings, status: Option<&Status>) -> Site {
    let system = rustix::system::uname();
    let hostname = system.nodename().to_string_lossy().into_owned();
    let me = status
        .map(|s| s.node.clone())
        .or_else(|| Some(facts.node.file.as_ref()?.node.to_string()))
        .or_else(|| settings.node_name.as_ref().map(NodeName::to_string))
        .unwrap_or_default();
    let boot_id = std::fs::read_to_string(names::BOOT_ID).unwrap_or_default().trim().to_owned();
    let addresses = known(facts, "addresses", addresses());
    Site { me, hostname, boot_id, addresses, ..Site::default() }
}

fn addresses() -> Result<Vec<Address>, Error> {
    let mut handle = Handle::open()?;
    let mut all = Vec::new();
    for device in handle.devices()? {
        let link = device.link;
        for net in handle.addresses(&link.name)? {
            all.push(Address { dev: link.name.to_string(), mac: link.mac, net });
        }
    }
    Ok(all)
}
