//! What a lab looks like: its nodes, addresses and names. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

pub use causeway_desired::input::{PluginType as Plugin, Road};
use causeway_types::state::Attach;
use causeway_types::{Cidr, Family, Mtu};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use crate::api::KubernetesVersion;

/// Address families of nodes and pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both.
    Dual,
}

impl Families {
    /// The families, IPv4 first.
    pub fn list(self) -> &'static [Family] {
        match self {
            Families::Ipv4 => &[Family::V4],
            Families::Ipv6 => &[Family::V6],
            Families::Dual => &Family::BOTH,
        }
    }
}

/// How the nodes are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// One switch.
    #[default]
    Flat,
    /// Two switches with a router between them; workers of even number are on the second.
    TwoSubnets,
}

/// What a lab is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Name: 1 to 12 lower-case letters and digits.
    pub name: String,
    /// Number of workers, 1 to 200.
    pub nodes: u8,
    /// How pods are attached.
    pub attach: Attach,
    /// Plugin type.
    pub plugin: Plugin,
    /// Road between nodes.
    pub road: Road,
    /// Families.
    pub families: Families,
    /// Underlay.
    pub topology: Topology,
    /// MTU of the underlay in bytes.
    pub mtu: Mtu,
    /// How long a kubelet waits before it writes a running pod's status, in milliseconds: a real
    /// one is seldom quick, and who watches pods learns of an address that late.
    #[serde(default)]
    pub status_delay_ms: u64,
    /// The version of Kubernetes that the API plays.
    #[serde(default)]
    pub kubernetes: KubernetesVersion,
    /// Workers are machines with a Node object and no more: no agent and no kubelet of the lab's.
    /// Whoever wants pods there brings a container runtime.
    #[serde(default)]
    pub bare: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "demo".into(),
            nodes: 3,
            attach: Attach::Routed,
            plugin: Plugin::Causeway,
            road: Road::Auto,
            families: Families::Ipv4,
            topology: Topology::Flat,
            mtu: Mtu::new(1500).expect("in range"),
            status_delay_ms: 0,
            kubernetes: KubernetesVersion::default(),
            bare: false,
        }
    }
}

/// The server of the outside world listens here.
pub const OUTSIDE_PORT: u16 = 8080;
/// The API's port inside the control-plane node.
pub(crate) const API_PORT: u16 = 6443;

impl Spec {
    /// Checks what types do not.
    ///
    /// # Errors
    /// A line that says what to change.
    pub fn check(&self) -> anyhow::Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if self.name.is_empty() || self.name.len() > 12 || !self.name.chars().all(plain) {
            anyhow::bail!("lab name {:?}: use 1 to 12 lower-case letters and digits", self.name);
        }
        if !(1..=200).contains(&self.nodes) {
            anyhow::bail!("{} nodes: a lab has 1 to 200 workers", self.nodes);
        }
        if self.plugin == Plugin::Bridge && self.attach == Attach::Routed {
            anyhow::bail!("plugin bridge attaches pods to a bridge: use --attach bridge with it");
        }
        let least = if self.families == Families::Ipv4 { 576 } else { 1350 };
        if self.mtu.get() < least {
            anyhow::bail!("an underlay MTU of {} is too small; use at least {least}", self.mtu);
        }
        Ok(())
    }

    /// Names of the nodes in the order in which they register: `cp`, `node-1`, ….
    pub fn node_names(&self) -> Vec<String> {
        let workers = (1..=self.nodes).map(|i| format!("node-{i}"));
        std::iter::once("cp".to_owned()).chain(workers).collect()
    }

    /// The nodes that the lab runs an agent and a kubelet for.
    pub fn served(&self) -> Vec<String> {
        let all = self.node_names();
        if self.bare { all.into_iter().take(1).collect() } else { all }
    }

    /// A node of the lab?
    ///
    /// # Errors
    /// When it is none: with those that there are.
    pub fn check_node(&self, node: &str) -> anyhow::Result<()> {
        let all = self.node_names();
        if !all.iter().any(|name| name == node) {
            anyhow::bail!("there is no node {node:?}; there are: {}", all.join(", "));
        }
        Ok(())
    }

    /// Number of a node in [`Spec::node_names`]: 0 for `cp`.
    fn number(node: &str) -> u8 {
        node.strip_prefix("node-").and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Which switch a node hangs on: 1 or 2.
    pub fn subnet_of(&self, node: &str) -> u8 {
        let number = Self::number(node);
        match self.topology {
            Topology::TwoSubnets if number > 0 && number.is_multiple_of(2) => 2,
            _ => 1,
        }
    }

    /// The switches.
    pub fn subnets(&self) -> &'static [u8] {
        match self.topology {
            Topology::Flat => &[1],
            Topology::TwoSubnets => &[1, 2],
        }
    }

    /// The address of a host on a switch, with the subnet's length.
    fn host(subnet: u8, host: u8, family: Family) -> IpNet {
        let text = match family {
            Family::V4 => format!("192.168.{subnet}.{host}/24"),
            // The same digits in both families.
            Family::V6 => format!("fd00:192:168:{subnet}::{host}/64"),
        };
        text.parse().expect("a valid address")
    }

    /// A node's address.
    pub fn node_addr(&self, node: &str, family: Family) -> IpNet {
        Self::host(self.subnet_of(node), 10 + Self::number(node), family)
    }

    /// Addresses that a node could have instead, with the subnet's length: no node has them to
    /// begin with.
    pub fn spare_addrs(&self, node: &str, family: Family) -> impl Iterator<Item = IpNet> {
        let subnet = self.subnet_of(node);
        (211..=254).map(move |host| Self::host(subnet, host, family))
    }

    /// The router's address on a switch.
    pub fn router_addr(subnet: u8, family: Family) -> IpNet {
        Self::host(subnet, 1, family)
    }

    /// The outside world: the server's address and the router's.
    pub fn outside(family: Family) -> (IpNet, IpNet) {
        let (server, router) = match family {
            Family::V4 => ("203.0.113.10/24", "203.0.113.1/24"),
            Family::V6 => ("2001:db8:ffff::10/64", "2001:db8:ffff::1/64"),
        };
        (server.parse().expect("a valid address"), router.parse().expect("a valid address"))
    }

    /// Whether an address is the lab's own, or no host's: nobody else can have it there.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        let switches = self.subnets().iter().flat_map(|subnet| {
            Family::BOTH.map(|family| Self::router_addr(*subnet, family).trunc())
        });
        let pods = self.cluster_cidrs().into_iter().map(|cidr| cidr.net());
        let outside = Family::BOTH.map(|family| Self::outside(family).1);
        let special = match ip {
            IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        special
            || ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || switches.chain(pods).any(|net| net.contains(&ip))
            || outside.iter().any(|router| router.addr() == ip)
    }

    /// All pod addresses of the cluster, a range a family.
    pub fn cluster_cidrs(&self) -> Vec<Cidr> {
        let cidr = |f: &Family| match f {
            Family::V4 => "10.244.0.0/16".parse().expect("a valid prefix"),
            Family::V6 => "fd00:10:244::/48".parse().expect("a valid prefix"),
        };
        self.families.list().iter().map(cidr).collect()
    }

    /// The configuration file of every agent.
    pub fn agent_config(&self) -> String {
        let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let cidrs: Vec<String> = self.cluster_cidrs().iter().map(Cidr::to_string).collect();
        format!(
            "road: {}\nattach: {}\nplugin: {}\nclusterCIDRs: [{}]\nkubeconfig: \
             /etc/causeway/kubeconfig\n",
            word(serde_json::json!(self.road)),
            word(serde_json::json!(self.attach)),
            word(serde_json::json!(self.plugin)),
            cidrs.iter().map(|c| format!("'{c}'")).collect::<Vec<_>>().join(", "),
        )
    }

    /// Where everything of the lab lies.
    pub fn dirs(&self) -> Dirs {
        Dirs::of(&self.name)
    }
}

/// Paths and names of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    name: String,
}

/// Where labs keep their state.
pub(crate) const ROOT: &str = "/run/causeway-lab";
/// Where namespaces have their names.
pub(crate) const NETNS: &str = "/run/netns";

impl Dirs {
    /// Those of the lab of a name.
    pub fn of(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// State of the lab.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(ROOT).join(&self.name)
    }

    /// State of one node.
    pub fn node(&self, node: &str) -> PathBuf {
        self.root().join(node)
    }

    /// The kubeconfig for people, on the caller's loopback.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root().join("kubeconfig")
    }

    /// The record of the lab.
    pub fn record(&self) -> PathBuf {
        self.root().join("lab.json")
    }

    /// The bearer token of the API.
    pub fn token(&self) -> PathBuf {
        self.root().join("token")
    }

    /// The API's unix socket.
    pub fn api(&self) -> PathBuf {
        self.root().join("api.sock")
    }

    /// The lab's own unix socket.
    pub fn control(&self) -> PathBuf {
        self.root().join("control.sock")
    }

    /// What the lab's process writes.
    pub fn log(&self) -> PathBuf {
        self.root().join("lab.log")
    }

    /// The plugin binaries by their names.
    pub fn bin(&self) -> PathBuf {
        self.root().join("bin")
    }

    /// How the names of the lab's namespaces begin.
    pub fn ns_prefix(&self) -> String {
        format!("cw-{}-", self.name)
    }

    /// The namespace of a node, of the underlay (`net`) or of the outside world (`outside`).
    pub fn netns(&self, what: &str) -> PathBuf {
        PathBuf::from(NETNS).join(format!("{}{what}", self.ns_prefix()))
    }

    /// The namespace of a pod.
    pub fn pod_netns(&self, node: &str, namespace: &str, pod: &str) -> PathBuf {
        match namespace {
            "default" => self.netns(&format!("{node}-{pod}")),
            other => self.netns(&format!("{node}-{other}.{pod}")),
        }
    }

    /// What a node sees under fixed paths: (below the node's directory, fixed path).
    pub fn views() -> [(&'static str, &'static str); 5] {
        [
            ("run-causeway", "/run/causeway"),
            ("lib-causeway", "/var/lib/causeway"),
            ("lib-cni", "/var/lib/cni"),
            ("etc-cni", "/etc/cni"),
            ("etc-causeway", "/etc/causeway"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_tutorials() {
        let spec = Spec { topology: Topology::TwoSubnets, ..Spec::default() };
        let addr = |n: &str, f| spec.node_addr(n, f).to_string();
        assert_eq!(addr("cp", Family::V4), "192.168.1.10/24");
        assert_eq!(addr("node-1", Family::V4), "192.168.1.11/24");
        assert_eq!(addr("node-2", Family::V4), "192.168.2.12/24");
        assert_eq!(addr("node-3", Family::V6), "fd00:192:168:1::13/64");
        assert_eq!(spec.node_names(), ["cp", "node-1", "node-2", "node-3"]);
    }

    #[test]
    fn addresses_of_the_lab_are_nobody_elses() {
        let spec = Spec { families: Families::Dual, ..Spec::default() };
        let own = |ip: &str| spec.is_own(ip.parse().unwrap());
        for ip in [
            "192.168.1.77",
            "10.244.9.9",
            "203.0.113.1",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "169.254.0.1",
            "fd00:192:168:1::5",
            "fd00:10:244:7::1",
            "2001:db8:ffff::1",
            "::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(own(ip), "{ip}");
        }
        for ip in [
            "192.0.2.1",
            "203.0.113.10",
            "192.168.2.1",
            "10.0.0.1",
            "2001:db8::1",
            "2001:db8:ffff::10",
        ] {
            assert!(!own(ip), "{ip}");
        }
    }

    #[test]
    fn bad_specs_are_refused() {
        let bad = |change: fn(&mut Spec)| {
            let mut spec = Spec::default();
            change(&mut spec);
            spec.check().unwrap_err().to_string()
        };
        assert!(bad(|s| s.name = "No".into()).contains("lower-case"));
        assert!(bad(|s| s.nodes = 0).contains("1 to 200"));
        assert!(bad(|s| s.plugin = Plugin::Bridge).contains("--attach bridge"));
        assert!(bad(|s| s.mtu = Mtu::new(100).unwrap()).contains("too small"));
    }
}
