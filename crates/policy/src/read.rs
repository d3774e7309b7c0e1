//! Objects of the API as policies go by them. What the API would have refused, and what a newer version
//! of it may say, is taken so that nothing is allowed by it that its owner may not have meant; it is
//! noted in the policy's problems.

mod cluster;
mod network;

use std::net::IpAddr;

use causeway_types::Cidr;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::labels::{Labels, Selector, Text, Written};
use crate::ports::{PortSet, Protocol};
use crate::rule::{Namespaces, Policy, Problem};
use crate::world::{NamedPort, Node, Pod, PodName, World};

/// An object that is not what its kind says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {at}: {why}")]
pub struct Unreadable {
    /// Its kind.
    pub kind: &'static str,
    /// Its name, with its namespace where it has one.
    pub name: String,
    /// The key.
    pub at: String,
    /// What is wrong with it.
    pub why: String,
}

/// An object that policies go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Namespace.
    Namespace(Text, Labels),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Node.
    Node(Text, Node),
    /// A NetworkPolicy or a ClusterNetworkPolicy.
    Policy(Box<Policy>),
}

impl Object {
    /// Reads an object of whatever kind; `None` for kinds that policies do not go by.
    ///
    /// # Errors
    /// When the object is not what its kind says.
    pub fn read(value: &Value) -> Result<Option<Self>, Unreadable> {
        let group = value["apiVersion"].as_str().unwrap_or_default();
        let object = match (value["kind"].as_str().unwrap_or_default(), group) {
            ("Namespace", "v1") => {
                let meta = Meta::read("Namespace", value)?;
                Self::Namespace(meta.name.clone(), meta.labels())
            }
            ("Pod", "v1") => Self::Pod(Box::new(pod(value)?)),
            ("Node", "v1") => {
                let (name, node) = node(value)?;
                Self::Node(name, node)
            }
            ("NetworkPolicy", "networking.k8s.io/v1") => {
                Self::Policy(Box::new(network_policy(value)?))
            }
            ("ClusterNetworkPolicy", api) if api.starts_with("policy.networking.k8s.io/") => {
                Self::Policy(Box::new(cluster_policy(value)?))
            }
            _ => return Ok(None),
        };
        Ok(Some(object))
    }

    /// Puts it into a world.
    pub fn put(self, world: &mut World) {
        match self {
            Self::Namespace(name, labels) => world.set_namespace(name, labels),
            Self::Pod(pod) => world.set_pod(*pod),
            Self::Node(name, node) => world.set_node(name, node),
            Self::Policy(policy) => world.set_policy(*policy),
        }
    }
}

/// Reads a NetworkPolicy (`networking.k8s.io/v1`).
///
/// # Errors
/// When it is none.
pub fn network_policy(value: &Value) -> Result<Policy, Unreadable> {
    network::read(value)
}

/// Reads a ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`).
///
/// # Errors
/// When it is none.
pub fn cluster_policy(value: &Value) -> Result<Policy, Unreadable> {
    cluster::read(value)
}

#[derive(Debug, Deserialize)]
struct WithMeta {
    metadata: Meta,
}

#[derive(Debug, Deserialize)]
struct Meta {
    name: Text,
    namespace: Option<Text>,
    labels: Option<Labels>,
}

impl Meta {
    fn read(kind: &'static str, value: &Value) -> Result<Self, Unreadable> {
        Ok(parse::<WithMeta>(kind, "", value)?.metadata)
    }

    /// Manifests leave it out where they mean this one.
    fn namespace(&self) -> Text {
        self.namespace.clone().unwrap_or_else(|| "default".into())
    }

    fn labels(&self) -> Labels {
        self.labels.clone().unwrap_or_default()
    }
}

fn parse<T: DeserializeOwned>(
    kind: &'static str,
    name: &str,
    value: &Value,
) -> Result<T, Unreadable> {
    // To keep in mind where it is costs more than to read it, and only what is wrong is somewhere.
    let again = |_| serde_path_to_error::deserialize(value);
    T::deserialize(value).or_else(again).map_err(|e| Unreadable {
        kind,
        name: match name {
            "" => value["metadata"]["name"].as_str().unwrap_or("without a name").to_owned(),
            name => name.to_owned(),
        },
        at: e.path().to_string(),
        why: e.inner().to_string(),
    })
}

#[derive(Debug, Deserialize)]
struct WrittenPod {
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<Text>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<Text>,
    container_port: u16,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// Reads a Pod.
///
/// # Errors
/// When it is none.
pub fn pod(value: &Value) -> Result<Pod, Unreadable> {
    let meta = Meta::read("Pod", value)?;
    let name = PodName::new(meta.namespace(), meta.name.clone());
    let written: WrittenPod = parse("Pod", &name.to_string(), value)?;
    let (spec, status) = (written.spec.unwrap_or_default(), written.status.unwrap_or_default());
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let all = status.pod_ips.unwrap_or_default().into_iter().filter_map(|entry| entry.ip);
    // The first of the list is the single one, which old clients alone write.
    let mut addresses: Vec<IpAddr> =
        all.chain(status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|ip| seen.insert(*ip));
    if ended {
        addresses.clear();
    }
    // Containers that run beside the others, of those that start before them.
    let beside = spec.init_containers.unwrap_or_default().into_iter();
    let beside = beside.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.unwrap_or_default().into_iter().chain(beside);
    let ports = containers.flat_map(|c| c.ports.unwrap_or_default());
    let ports = ports.filter_map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = Protocol::named(protocol)?;
        Some(NamedPort { name: port.name?, protocol, port: port.container_port })
    });
    Ok(Pod {
        labels: meta.labels().into(),
        name,
        addresses,
        ended,
        node: spec.node_name.filter(|name| !name.is_empty()),
        host_network: spec.host_network.unwrap_or_default(),
        ports: ports.collect(),
    })
}

#[derive(Debug, Deserialize)]
struct WrittenNode {
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Deserialize)]
struct NodeAddress {
    address: String,
}

/// Reads a Node: its name, labels and addresses. Host names among the addresses are passed over. The first address
/// of each of its pod subnets is the node's own: what it sends to pods of other nodes comes from there where it
/// goes through a tunnel.
///
/// # Errors
/// When it is none.
pub fn node(value: &Value) -> Result<(Text, Node), Unreadable> {
    let meta = Meta::read("Node", value)?;
    let written: WrittenNode = parse("Node", &meta.name, value)?;
    let addresses = written.status.unwrap_or_default().addresses.unwrap_or_default();
    let addresses = addresses.iter().filter_map(|entry| entry.address.parse().ok());
    let cidrs = written.spec.unwrap_or_default().pod_cidrs.unwrap_or_default();
    let inside = cidrs.iter().filter_map(|text| Some(text.parse::<Cidr>().ok()?.gateway()));
    let addresses = addresses.chain(inside).collect();
    Ok((meta.name.clone(), Node { labels: meta.labels(), addresses }))
}

/// Collects what makes no sense in a policy, with where it is.
#[derive(Debug, Default)]
struct Notes {
    problems: Vec<Problem>,
}

impl Notes {
    fn add(&mut self, at: &str, what: impl Into<String>) {
        self.problems.push(Problem { at: at.to_owned(), what: what.into() });
    }

    /// `None` where it cannot be understood, which is noted with what that means.
    fn selector(&mut self, at: &str, written: Written, means: &str) -> Option<Selector> {
        match written.read() {
            Ok(selector) => Some(selector),
            Err(why) => {
                self.add(at, format!("{why}; {means}"));
                None
            }
        }
    }

    /// `None` where it is no block of addresses. Bits behind the length are passed over.
    fn cidr(&mut self, at: &str, text: &str, means: &str) -> Option<IpNet> {
        match text.parse::<IpNet>() {
            Ok(net) => Some(net.trunc()),
            Err(_) => {
                self.add(
                    at,
                    format!("{text:?} is no block of addresses such as 10.0.0.0/8; {means}"),
                );
                None
            }
        }
    }

    /// The ports from one to another; none where there are no such.
    fn range(&mut self, at: &str, protocol: Protocol, from: i64, to: i64) -> PortSet {
        match (u16::try_from(from), u16::try_from(to)) {
            (Ok(a), Ok(b)) if 0 < a && a <= b => PortSet::of(protocol, a..=b),
            _ if from == to => {
                self.add(at, format!("{from} is no port (1 to 65535); it matches nothing"));
                PortSet::none()
            }
            _ => {
                let what = format!("{from} to {to} is no range of ports (1 to 65535)");
                self.add(at, what + "; it matches nothing");
                PortSet::none()
            }
        }
    }
}

/// All of namespaces that may not be understood.
fn of_namespaces(selector: Option<Selector>) -> Option<Namespaces> {
    selector.map(Namespaces::Selected)
}
