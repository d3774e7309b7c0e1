//! What desired state is computed from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, IfName, Mac, Mtu, NodeName, PodRef, Vni};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The cluster as this node needs to know it. Also what is kept on disk as the last good view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// All nodes of the cluster by name.
    pub nodes: BTreeMap<NodeName, NodeInfo>,
    /// The pods of this node, by `NAMESPACE/NAME`.
    #[serde(default)]
    pub pods: BTreeMap<String, PodInfo>,
    /// Namespaces with policies: pods there may start only after the agent confirmed theirs; `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_namespaces: Vec<String>,
}

/// One node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Addresses of type InternalIP, in the order of the Node object.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, at most one a family.
    pub pod_cidrs: Vec<Cidr>,
    /// Ranges that the node is to have besides, in the order in which they are used up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_cidrs: Vec<Cidr>,
    /// What the node's agent says that its pods have addresses of, or may get, beside `pod_cidrs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claimed_cidrs: Vec<Cidr>,
    /// MTU of its pods in bytes, as its agent says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_mtu: Option<Mtu>,
    /// The ends of flannel's tunnels, as the Node's annotations tell them, at most one a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flannel: Vec<FlannelEnd>,
    /// What of the Node object could not be read, in words for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The same of its ranges, which is for its own agent to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub range_problems: Vec<String>,
}

impl NodeInfo {
    /// The first InternalIP of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(*a) == family)
    }

    /// The end of flannel's tunnel whose outer packets are of a family, in a certain network.
    pub fn flannel_end(&self, outer: Family, vni: Vni) -> Option<FlannelEnd> {
        let mut ends = self.flannel.iter().copied();
        ends.find(|end| Family::of(end.address) == outer && end.vni == vni)
    }

    /// The pod subnet of a family.
    pub fn pod_cidr(&self, family: Family) -> Option<Cidr> {
        self.pod_cidrs.iter().copied().find(|c| c.family() == family)
    }
}

/// Where a node takes packets of flannel's tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlannelEnd {
    /// Network identifier.
    pub vni: Vni,
    /// MAC of the tunnel device (`VtepMAC`).
    pub mac: Mac,
    /// The node's address on the underlay; its family is that of the pods, too.
    pub address: IpAddr,
}

/// What was taken over of another network ([`causeway_types::names::TAKEN_OVER`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenOver {
    /// Whose it was.
    pub from: Former,
    /// The boot in which it was taken over.
    pub boot_id: String,
    /// The bridge, which keeps its MAC until the next boot: the pods of then know it by that.
    pub bridge: TakenBridge,
    /// Tunnel devices. They keep name and MAC, also over a boot: peers know them by these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<TakenTunnel>,
    /// Files in the directory of CNI configurations that make runtimes call the former network's
    /// plugins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<String>,
}

/// A network that can be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Former {
    /// flannel with the backend `vxlan`.
    Flannel,
    /// The plugin `bridge` with `host-local`, and routes between nodes that somebody made by hand.
    Bridge,
}

/// A bridge that was taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenBridge {
    /// Name.
    pub name: IfName,
    /// Ethernet address.
    pub mac: Mac,
}

/// A tunnel device that was taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenTunnel {
    /// The family of its outer packets, and of the pods' packets in it.
    pub family: Family,
    /// Name.
    pub name: IfName,
    /// Ethernet address.
    pub mac: Mac,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// VXLAN UDP port.
    pub port: u16,
}

impl TakenOver {
    /// The tunnel device whose outer packets are of a family.
    pub fn tunnel(&self, outer: Family) -> Option<&TakenTunnel> {
        self.tunnels.iter().find(|t| t.family == outer)
    }

    /// Whether an interface was taken over.
    pub fn has(&self, name: &IfName) -> bool {
        self.bridge.name == *name || self.tunnels.iter().any(|t| t.name == *name)
    }
}

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodInfo {
    /// Which pod.
    pub pod: PodRef,
    /// True for pods that use the node's own network.
    pub host_network: bool,
    /// True once the pod has ended for good (phase Succeeded or Failed).
    pub finished: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// The addresses that it is to have, as written (annotation `causeway.dev/ip`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_ip: Option<String>,
    /// The object stands for a pod that the kubelet read from a file, whose UID is another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirror: bool,
}

/// The road to other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Road {
    /// `direct` to peers in the same subnet, `vxlan` to the others.
    #[default]
    Auto,
    /// A route by the peer's address; refused for a peer behind a router.
    Direct,
    /// VXLAN to every peer.
    Vxlan,
}

/// What the administrator chose. Parsed once; never changed in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Road to other nodes.
    pub road: Road,
    /// How type `causeway` attaches pods, and how the configuration list is rendered.
    pub attach: Attach,
    /// Plugin type in the configuration list.
    pub plugin: PluginType,
    /// The network's name in the configuration list.
    pub network: String,
    /// The bridge of [`Attach::Bridge`].
    pub bridge: IfName,
    /// Pod MTU in bytes; `None`: the underlay's less the overhead.
    pub mtu: Option<Mtu>,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// VXLAN UDP port.
    pub vxlan_port: u16,
    /// Pods' packets that leave the cluster get the node's address.
    pub masquerade: bool,
    /// Destinations outside the cluster that see pods' own addresses all the same.
    pub masquerade_except: Vec<Cidr>,
    /// All pod addresses of the cluster; empty: found from the nodes.
    pub cluster_cidrs: Vec<Cidr>,
    /// The route protocol number that marks our routes.
    pub route_protocol: u8,
    /// Addresses that no pod gets.
    pub reserved: Vec<Cidr>,
    /// Seconds for which an address that was given back is not given out again.
    pub cool_down: u32,
}

/// The plugin type that the agent writes into the configuration list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginType {
    /// Type `causeway`: everything comes from the node file.
    #[default]
    Causeway,
    /// The classic: type `bridge` with IPAM `host-local`, `ipam.subnet` being the node's.
    Bridge,
}

impl Default for Config {
    fn default() -> Self {
        use causeway_types::names;
        Self {
            road: Road::default(),
            attach: Attach::default(),
            plugin: PluginType::default(),
            network: names::NETWORK.to_owned(),
            bridge: IfName::new(names::BRIDGE).expect("a valid name"),
            mtu: None,
            vni: Vni::DEFAULT,
            vxlan_port: names::VXLAN_PORT,
            masquerade: true,
            masquerade_except: Vec::new(),
            cluster_cidrs: Vec::new(),
            route_protocol: names::ROUTE_PROTOCOL,
            reserved: Vec::new(),
            cool_down: 0,
        }
    }
}

/// What the agent found on its node and cannot choose: the underlay as routing sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// How the kernel would send to each peer's address (`ip route get`, our own routes left
    /// out). A peer that is missing cannot be reached.
    pub paths: BTreeMap<IpAddr, Path>,
    /// All addresses on the node's interfaces other than our own devices.
    pub addresses: Vec<(IfName, IpNet)>,
    /// Interfaces that live by router advertisements: `accept_ra` is 1, and a route or an address
    /// came from one. With forwarding on the kernel would stop listening.
    pub accept_ra: Vec<IfName>,
    /// MTU in bytes of the interfaces that hold the node's addresses.
    pub mtus: BTreeMap<IfName, Mtu>,
    /// br_netfilter hands bridged packets to the forward hook (bridge-nf-call-iptables=1), or
    /// `None` where the module is not there.
    pub bridge_nf_call: Option<bool>,
    /// Tunnel devices of others with the configured network identifier and port, beside which the
    /// kernel makes none of ours.
    pub tunnels_of_others: Vec<IfName>,
}

/// How packets to a peer leave the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// Outgoing interface.
    pub dev: IfName,
    /// True when the peer is a neighbour on the link (no gateway in between).
    pub on_link: bool,
    /// The lesser of the interface's and the route's MTU in bytes.
    pub mtu: Mtu,
}

/// Everything that the desired state of a node depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The node's own name.
    pub me: Option<NodeName>,
    /// The cluster.
    pub view: ClusterView,
    /// The node.
    pub facts: NodeFacts,
    /// The administrator's choices.
    pub config: Config,
    /// The pod interfaces that the plugins made on this node.
    pub attachments: Vec<AttachmentRecord>,
    /// What was taken over of another network, if anything.
    pub taken: Option<TakenOver>,
    /// The boot ID; what was taken over in another boot has pods no more.
    pub boot_id: String,
}
