//! What is known of the cluster: the API, the nodes, and what answers between them.

use std::net::IpAddr;

use causeway_types::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The API server, as this node finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Api {
    /// Its URL, as the agent's configuration has it.
    pub server: String,
    /// Why it does not tell what it was asked.
    pub obstacle: Option<Obstacle>,
    /// The agent says that it is connected.
    pub agent_connected: bool,
    /// Its clock less this node's, in seconds.
    pub skew: Option<i64>,
}

/// What is in the way of a question to the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Obstacle {
    /// Its kind.
    pub kind: Kind,
    /// In more words.
    pub why: String,
}

/// Kinds of obstacles, in the order in which a connection meets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Nothing here says where the API is and who we are there.
    #[default]
    NoCredentials,
    /// What says so makes no sense.
    Configuration,
    /// The host's name is not found.
    Name,
    /// The host refuses the connection: nobody listens.
    Refused,
    /// Nothing comes back.
    Silent,
    /// There is no way to the host, or a firewall rejects the connection.
    Unreachable,
    /// TLS: certificates.
    Tls,
    /// The connection is taken, and then ended or left without an answer.
    Broken,
    /// 401: who we are is not accepted.
    Unauthorized,
    /// 403: who we are may not do this.
    Forbidden,
    /// Another answer than expected.
    Answer,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its addresses of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// Its addresses of type Hostname.
    pub hostnames: Vec<String>,
    /// Its pod subnets.
    pub pod_cidrs: Vec<IpNet>,
    /// Its machine ID, as its kubelet says; empty: not known.
    pub machine_id: String,
    /// The UUID of its hardware.
    pub system_uuid: String,
    /// The ID of its boot.
    pub boot_id: String,
    /// Its kubelet's port.
    pub kubelet_port: Option<u16>,
    /// It says that it is ready; `None`: not known, by a view that was kept.
    pub ready: Option<bool>,
    /// It says that its pod network is there.
    pub network: bool,
    /// It has the label of the control plane.
    pub control_plane: bool,
    /// Addresses of some of its pods.
    pub pods: Vec<IpAddr>,
}

/// This node among the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Site {
    /// All nodes that are known.
    pub members: Vec<Member>,
    /// This node's name in the cluster; empty: not known.
    pub me: String,
    /// The host's name.
    pub hostname: String,
    /// The ID of this boot.
    pub boot_id: String,
    /// Addresses of this node's interfaces, with the interface and its MAC.
    pub addresses: Vec<Address>,
    /// Neighbours that the kernel knows: interface, address, MAC.
    pub neighbours: Vec<(String, IpAddr, Mac)>,
    /// Addresses that several pods of the cluster have, by the API, and the pods.
    pub shared: Vec<(IpAddr, Vec<String>)>,
    /// What answered at other nodes.
    pub probes: Vec<Probe>,
    /// What answered through the tunnel.
    pub tunnels: Vec<Tunnel>,
}

impl Site {
    /// This node's own entry.
    pub fn own(&self) -> Option<&Member> {
        self.members.iter().find(|m| !self.me.is_empty() && m.name == self.me)
    }
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The interface.
    pub dev: String,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// The address with the length of its subnet.
    pub net: IpNet,
}

/// An attempt to connect to a port of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// The node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
    /// What came back.
    pub answer: Answer,
}

/// What comes back from a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Somebody listens.
    Open,
    /// The host itself says that nobody listens: nothing is in the way.
    Closed,
    /// A firewall says no (ICMP).
    Rejected,
    /// There is no way to the host.
    Unreachable,
    /// Nothing.
    Silent,
}

impl Answer {
    /// The packet came to the host, and something came back.
    pub fn is_there(self) -> bool {
        matches!(self, Answer::Open | Answer::Closed | Answer::Rejected)
    }
}

/// An attempt to reach something behind another node's end of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// The node.
    pub node: String,
    /// What was asked there: its own address inside the cluster, and pods.
    pub asked: Vec<IpAddr>,
    /// Any of them answered.
    pub answered: bool,
}
