//! What a firewall of a node has to let in, by the node's role.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_types::Family;
use ipnet::IpNet;

/// What a node is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// API server, etcd, scheduler, controller manager.
    ControlPlane,
    /// Pods alone.
    Worker,
}

/// What is known of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Addresses of all nodes; empty: not known.
    pub nodes: Vec<IpAddr>,
    /// Pod subnets that this node forwards for.
    pub pods: Vec<IpNet>,
    /// UDP port of the tunnel, where there may be one.
    pub vxlan_port: Option<u16>,
    /// TCP port of the agent's metrics, where they are served to others.
    pub metrics_port: Option<u16>,
}

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Nodes,
    Anyone,
}

/// One opening.
struct Opening {
    /// `None`: every role.
    role: Option<Role>,
    protocol: &'static str,
    ports: String,
    from: From,
    what: &'static str,
}

/// Ports of Kubernetes, as its documentation lists them ("Ports and Protocols"), and ours.
fn openings(site: &Site) -> Vec<Opening> {
    use Role::ControlPlane;
    let fixed = [
        (Some(ControlPlane), "tcp", "6443", From::Anyone, "API server"),
        (Some(ControlPlane), "tcp", "2379-2380", From::Nodes, "etcd"),
        (Some(ControlPlane), "tcp", "10257", From::Nodes, "controller manager"),
        (Some(ControlPlane), "tcp", "10259", From::Nodes, "scheduler"),
        (None, "tcp", "10250", From::Nodes, "kubelet"),
        (None, "tcp", "10256", From::Anyone, "kube-proxy, health for load balancers"),
        (None, "tcp", "30000-32767", From::Anyone, "NodePorts"),
        (None, "udp", "30000-32767", From::Anyone, "NodePorts"),
    ];
    let own = [
        ("udp", site.vxlan_port, "VXLAN between nodes (Causeway)"),
        ("tcp", site.metrics_port, "metrics (Causeway)"),
    ];
    let fixed = fixed.map(|(role, protocol, ports, from, what)| Opening {
        role,
        protocol,
        ports: ports.to_owned(),
        from,
        what,
    });
    let own = own.into_iter().filter_map(|(protocol, port, what)| {
        let ports = port?.to_string();
        Some(Opening { role: None, protocol, ports, from: From::Nodes, what })
    });
    fixed.into_iter().chain(own).collect()
}

fn for_role(site: &Site, role: Role) -> impl Iterator<Item = Opening> {
    openings(site).into_iter().filter(move |o| o.role.is_none_or(|r| r == role))
}

impl Site {
    /// Sources in the words of nft and ufw, a family each. Without known nodes a word stands for
    /// them.
    fn sources(&self, from: From) -> Vec<(Option<Family>, Vec<String>)> {
        if from == From::Anyone {
            return vec![(None, Vec::new())];
        }
        if self.nodes.is_empty() {
            return vec![(Some(Family::V4), vec!["NODES".to_owned()])];
        }
        let mut by_family: BTreeMap<Family, Vec<String>> = BTreeMap::new();
        for ip in &self.nodes {
            by_family.entry(Family::of(*ip)).or_default().push(ip.to_string());
        }
        by_family.into_iter().map(|(family, all)| (Some(family), all)).collect()
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// For security groups: role, protocol, ports, from, what.
pub fn table(site: &Site) -> Vec<[String; 5]> {
    let mut rows = vec![["ROLE", "PROTOCOL", "PORTS", "FROM", "WHAT"].map(str::to_owned)];
    for o in openings(site) {
        let role = match o.role {
            Some(Role::ControlPlane) => "control plane",
            Some(Role::Worker) => "worker",
            None => "every node",
        };
        let from = match o.from {
            From::Nodes => "nodes",
            From::Anyone => "whoever uses it",
        };
        rows.push([role, o.protocol, &o.ports, from, o.what].map(str::to_owned));
    }
    rows
}

/// Commands for a node of a role whose filter is `table inet filter` with chains `input` and
/// `forward`, as distributions ship it.
pub fn nft(site: &Site, role: Role) -> Vec<String> {
    // Without neighbour discovery nothing comes by IPv6, without the rest large packets do not.
    let mut all = vec![
        "nft insert rule inet filter input meta l4proto '{ icmp, ipv6-icmp }' accept".to_owned(),
    ];
    for o in for_role(site, role) {
        for (family, sources) in site.sources(o.from) {
            let source = match family {
                Some(family) => format!("{} saddr '{{ {} }}' ", word(family), sources.join(", ")),
                None => String::new(),
            };
            all.push(format!(
                "nft insert rule inet filter input {source}{} dport {} accept comment '\"{}\"'",
                o.protocol, o.ports, o.what
            ));
        }
    }
    for net in &site.pods {
        let family = word(Family::of(net.addr()));
        for way in ["saddr", "daddr"] {
            all.push(format!("nft insert rule inet filter forward {family} {way} {net} accept"));
        }
    }
    all
}

/// Commands of ufw for a node of a role.
pub fn ufw(site: &Site, role: Role) -> Vec<String> {
    let mut all = Vec::new();
    for o in for_role(site, role) {
        let ports = o.ports.replace('-', ":");
        let sources = site.sources(o.from).into_iter().flat_map(|(_, sources)| sources);
        let mut sources: Vec<String> = sources.collect();
        if o.from == From::Anyone {
            sources.push("any".to_owned());
        }
        for source in sources {
            all.push(format!(
                "ufw allow proto {} from {source} to any port {ports} comment '{}'",
                o.protocol, o.what
            ));
        }
    }
    for net in &site.pods {
        all.extend(["from", "to"].map(|way| format!("ufw route allow {way} {net}")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        Site {
            nodes: ["192.168.1.10", "fd00::10", "192.168.1.11"]
                .map(|n| n.parse().unwrap())
                .to_vec(),
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            vxlan_port: Some(8472),
            metrics_port: None,
        }
    }

    #[test]
    fn roles_differ() {
        let cp = nft(&site(), Role::ControlPlane);
        let worker = nft(&site(), Role::Worker);
        let has = |all: &[String], what: &str| all.iter().any(|line| line.contains(what));
        assert!(has(&cp, "dport 6443 accept") && !has(&worker, "6443"));
        assert!(has(&cp, "tcp dport 10250") && has(&worker, "tcp dport 10250"));
        let vxlan = "ip saddr '{ 192.168.1.10, 192.168.1.11 }' udp dport 8472 accept";
        assert!(has(&worker, vxlan), "{worker:#?}");
        assert!(has(&worker, "ip6 saddr '{ fd00::10 }' udp dport 8472"));
        assert!(has(&worker, "forward ip daddr 10.244.1.0/24 accept"));
    }

    #[test]
    fn ufw_has_one_source_a_line() {
        let all = ufw(&site(), Role::Worker);
        let vxlan = all.iter().filter(|l| l.contains("proto udp") && l.contains("port 8472"));
        assert_eq!(vxlan.count(), 3, "{all:#?}");
        let ports = "ufw allow proto tcp from any to any port 30000:32767 comment 'NodePorts'";
        assert!(all.iter().any(|l| l == ports), "{all:#?}");
        assert!(all.contains(&"ufw route allow from 10.244.1.0/24".to_owned()));
    }

    #[test]
    fn unknown_nodes_are_a_word() {
        let site = Site { vxlan_port: Some(4789), metrics_port: Some(9471), ..Site::default() };
        assert!(
            nft(&site, Role::Worker)
                .iter()
                .any(|l| l.contains("ip saddr '{ NODES }' udp dport 4789"))
        );
        let rows = table(&site);
        assert!(rows.iter().any(|r| r[2] == "9471" && r[3] == "nodes"), "{rows:?}");
        assert!(!table(&Site::default()).iter().any(|r| r[4].contains("Causeway")));
    }
}
