//! What is known of a node. Everything that is not known has the value that gives no finding.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::nft::foreign::{Dropping, Legacy, Place};
use causeway_types::Family;
use causeway_types::state::{Attach, NodeFile};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub mod cluster;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Facts {
    /// What the node is in the cluster.
    pub node: Node,
    /// Chains of others through which packets are forwarded.
    pub dropping: Vec<Dropping>,
    /// Tables of the old iptables.
    pub legacy: Vec<Legacy>,
    /// All chains of IP tables but ours.
    pub chains: Vec<Place>,
    /// Kernel parameters by their path below `/proc/sys`; those that are there.
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces but the loopback's.
    pub interfaces: Vec<Interface>,
    /// Routing rules of others that look at the mark of packets.
    pub marks: Vec<MarkRule>,
    /// Kernel features that were tried and are not there.
    pub lacking: Vec<Lacking>,
    /// The agent.
    pub agent: Agent,
    /// Files of the plugins.
    pub cni: Cni,
    /// Programs that manage interfaces.
    pub managers: Managers,
    /// The clock.
    pub clock: Clock,
    /// The API; absent where it was not asked.
    pub api: Option<cluster::Api>,
    /// The other nodes.
    pub site: cluster::Site,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// What could not be looked at.
    pub unread: Vec<Unread>,
}

/// What the node is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    /// An agent serves this node, or should: its configuration, list, socket or table is there.
    pub served: bool,
    /// What the agent says of the node; absent where that cannot be read.
    pub file: Option<NodeFile>,
    /// How pods are attached: the node file's word, or the configuration's.
    pub attach: Attach,
    /// A VXLAN device is there.
    pub tunnel: bool,
    /// Other nodes that the last view of the cluster knows.
    pub peers: usize,
    /// Addresses that pods of this node hold, by attachment records and leases.
    pub pods: Vec<IpAddr>,
}

impl Node {
    /// What has to pass the node: its pod subnets and extra ranges, else the addresses of its pods.
    pub fn nets(&self) -> Vec<IpNet> {
        match &self.file {
            Some(file) => file.ranges().map(|cidr| cidr.net()).collect(),
            None => self.pods.iter().map(|ip| IpNet::from(*ip)).collect(),
        }
    }

    /// Families that pods use.
    pub fn families(&self) -> Vec<Family> {
        let nets = self.nets();
        let used = |f: &Family| nets.iter().any(|net| Family::of(net.addr()) == *f);
        Family::BOTH.into_iter().filter(used).collect()
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's name for its kind, empty for a plain device.
    pub kind: String,
    /// A default route out of it came from a router advertisement that the kernel took in.
    pub advertised: bool,
}

/// A routing rule that looks at the mark of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MarkRule {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its place among the rules.
    pub priority: u32,
    /// The mark that it asks for.
    pub mark: u32,
    /// The bits of the mark that it looks at.
    pub mask: u32,
}

/// A kernel feature that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lacking {
    /// Its name: `veth`, `bridge`, `vxlan`, `nf_tables`, `nf_conntrack`.
    pub feature: String,
    /// The kernel's words.
    pub why: String,
}

/// The agent, asked by its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Agent {
    /// Why it does not answer; `None`: it does.
    pub silent: Option<String>,
    /// What it says is wrong: whom or what it concerns, and what is wrong.
    pub reports: Vec<(String, String)>,
}

/// Files of the plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cni {
    /// Path of the node file.
    pub node_file: String,
    /// Why the node file cannot be understood.
    pub node_file_error: Option<String>,
    /// The node file was written before the machine was started.
    pub node_file_old: bool,
    /// The directory of configuration lists.
    pub conf_dir: String,
    /// Its files as a container runtime sees them, in its order.
    pub lists: Vec<List>,
    /// The file name of our list.
    pub own_list: String,
    /// Where plugins are looked for.
    pub path: Vec<String>,
    /// Plugins that our list names.
    pub plugins: Vec<PluginFile>,
    /// Leases that outlived their pods, or cannot be read.
    pub leases: Vec<BadLease>,
    /// Attachment records that cannot be read.
    pub unreadable_records: Vec<String>,
    /// Attachment records of interfaces that are gone: path, and why.
    pub dead_records: Vec<(String, String)>,
    /// Addresses that several live pods of a network have: address, network, and the pods.
    pub shared: Vec<(IpAddr, String, Vec<String>)>,
}

/// A configuration list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct List {
    /// File name.
    pub file: String,
    /// Name of the network.
    pub network: String,
    /// Why a container runtime would pass it over.
    pub error: Option<String>,
}

/// A plugin's binary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PluginFile {
    /// The type.
    pub name: String,
    /// Where it is; `None`: nowhere.
    pub path: Option<String>,
    /// It can be run.
    pub executable: bool,
    /// It is `causeway-cni`.
    pub ours: bool,
}

/// A lease that something is wrong with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BadLease {
    /// Its file.
    pub file: String,
    /// The network.
    pub network: String,
    /// Whose it is; empty where its file does not tell.
    pub owner: String,
    /// What is wrong.
    pub why: String,
    /// Its file holds nothing that can be read.
    pub unreadable: bool,
}

/// Programs that manage interfaces, running in the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Managers {
    /// NetworkManager runs.
    pub network_manager: bool,
    /// It is told to leave our interfaces alone.
    pub network_manager_told: bool,
    /// systemd-networkd runs.
    pub networkd: bool,
    /// It is told to leave our interfaces alone.
    pub networkd_told: bool,
    /// It is told to leave the routes of others in place.
    pub networkd_keeps_routes: bool,
}

/// The clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Clock {
    /// The time, in seconds since 1970.
    pub now: u64,
    /// The youngest of our files, and its time.
    pub youngest: Option<(String, u64)>,
}

/// What could not be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Unread {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}
