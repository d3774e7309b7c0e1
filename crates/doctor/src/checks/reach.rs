//! What answers at other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::some;
use crate::facts::Facts;
use crate::facts::cluster::{Answer, Member, Probe, Site};
use crate::finding::{Finding, Severity};

/// A port that nodes have open for each other.
pub struct Port {
    /// The TCP port.
    pub number: u16,
    /// What it is.
    pub name: &'static str,
    /// It is on control plane nodes alone, and who needs it.
    pub of: Of,
    /// How bad it is when it is closed.
    severity: Severity,
    /// What happens then.
    why: &'static str,
}

/// Where a port is, and who needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// On every node, for every node.
    Every,
    /// On the control plane, for every node.
    ControlPlane,
    /// On the control plane, for the control plane.
    Within,
}

const fn port(
    number: u16,
    name: &'static str,
    of: Of,
    severity: Severity,
    why: &'static str,
) -> Port {
    Port { number, name, of, severity, why }
}

/// The ports that are tried ("Ports and Protocols" of Kubernetes' documentation). Of the range of
/// NodePorts the ends stand for all.
pub const PORTS: &[Port] = &[
    port(KUBELET, "kubelet", Of::Every, Severity::Error, "no logs, exec and metrics from there"),
    port(6443, "API server", Of::ControlPlane, Severity::Error, "no API by that server"),
    port(2379, "etcd", Of::Within, Severity::Error, "no API where it needs that member of etcd"),
    port(2380, "etcd, peers", Of::Within, Severity::Error, "etcd loses that member"),
    port(10257, "controller manager", Of::Within, Severity::Note, "no metrics of it from here"),
    port(10259, "scheduler", Of::Within, Severity::Note, "no metrics of it from here"),
    port(30000, "NodePorts, first", Of::Every, Severity::Note, NODE_PORTS),
    port(32767, "NodePorts, last", Of::Every, Severity::Note, NODE_PORTS),
];

/// The kubelet's port unless its Node says another.
pub const KUBELET: u16 = 10250;
const NODE_PORTS: &str = "Services of type NodePort are not reached there from other nodes";

/// The ports of a node that another one should reach.
pub fn ports_of(from: Option<&Member>, to: &Member) -> Vec<u16> {
    let within = to.control_plane && from.is_some_and(|m| m.control_plane);
    let counts = |p: &&Port| match p.of {
        Of::Every => true,
        Of::ControlPlane => to.control_plane,
        Of::Within => within,
    };
    let number = |p: &Port| match p.number {
        KUBELET => to.kubelet_port.unwrap_or(KUBELET),
        number => number,
    };
    PORTS.iter().filter(counts).map(number).collect()
}

fn known(site: &Site, probe: &Probe) -> Option<&'static Port> {
    let kubelet = site.members.iter().find(|m| m.name == probe.node).and_then(|m| m.kubelet_port);
    let number = if Some(probe.port) == kubelet { KUBELET } else { probe.port };
    PORTS.iter().find(|p| p.number == number)
}

/// Addresses of nodes at which nothing answers at all.
fn dark(site: &Site) -> BTreeSet<(&str, IpAddr)> {
    let key = |p: &'_ Probe| (p.node.clone(), p.address);
    let there: BTreeSet<_> = site.probes.iter().filter(|p| p.answer.is_there()).map(key).collect();
    let all = site.probes.iter().filter(|p| !there.contains(&(p.node.clone(), p.address)));
    all.map(|p| (p.node.as_str(), p.address)).collect()
}

/// Nodes that do not answer.
pub(super) fn nodes(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let finding = |(node, address): (&str, IpAddr)| {
        // A node of a view that was kept may be gone by now.
        let sure = site.members.iter().any(|m| m.name == node && m.ready == Some(true));
        let severity = if sure { Severity::Error } else { Severity::Warning };
        let mut probes = site.probes.iter().filter(|p| p.node == node && p.address == address);
        let what = match probes.all(|p| p.answer == Answer::Unreachable) {
            true => "there is no way to it",
            false => "nothing comes back from any port",
        };
        Finding::new("node-unreachable", severity, format!("node {node}, {address}"))
            .says(
                format!("node {node} is not reached at {address}: {what}"),
                "pods here do not reach pods there",
            )
            .fix([
                format!("ip route get {address}"),
                "# a firewall drops everything, or the host is down: causeway doctor there, and causeway \
                 doctor --firewall nft --role ROLE for what to open"
                    .to_owned(),
            ])
    };
    dark(site).into_iter().map(finding).collect()
}

/// Ports that something is in the way of, at nodes that answer otherwise.
pub(super) fn ports(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let dark = dark(site);
    let mut closed: BTreeMap<(usize, bool), Vec<&Probe>> = BTreeMap::new();
    for probe in &site.probes {
        let open = matches!(probe.answer, Answer::Open | Answer::Closed);
        if open || dark.contains(&(probe.node.as_str(), probe.address)) {
            continue;
        }
        let Some(at) =
            known(site, probe).and_then(|port| PORTS.iter().position(|p| p.number == port.number))
        else {
            continue;
        };
        closed.entry((at, probe.answer == Answer::Rejected)).or_default().push(probe);
    }
    closed
        .into_iter()
        .map(|((at, rejected), probes)| closed_port(&PORTS[at], rejected, &probes))
        .collect()
}

fn closed_port(port: &Port, rejected: bool, probes: &[&Probe]) -> Finding {
    let places: Vec<String> =
        probes.iter().map(|p| format!("{} ({})", p.node, p.address)).collect();
    let number = probes.first().map_or(port.number, |p| p.port);
    let how = if rejected { "rejects it (ICMP)" } else { "drops it: nothing comes back" };
    let place = format!("TCP {number} of {}", some(&places));
    let role = if port.of == Of::Every { "worker" } else { "control-plane" };
    Finding::new("port-closed", port.severity, place)
        .says(
            format!(
                "TCP {number} ({}) of {} is closed to this node: a firewall {how}",
                port.name,
                some(&places)
            ),
            port.why,
        )
        .fix([
            format!("causeway doctor --firewall nft --role {role}"),
            "# run there, it prints what to open; or open it in the cloud's security group: causeway \
             doctor --firewall table"
                .to_owned(),
        ])
}

/// Tunnels through which nothing comes back, to nodes that answer beside them.
pub(super) fn tunnels(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let there = |node: &str| site.probes.iter().any(|p| p.node == node && p.answer.is_there());
    let silent = site.tunnels.iter().filter(|t| !t.answered && there(&t.node));
    let finding = |tunnel: &crate::facts::cluster::Tunnel| {
        let asked: Vec<String> = tunnel.asked.iter().map(IpAddr::to_string).collect();
        Finding::new("tunnel-silent", Severity::Error, format!("node {}", tunnel.node))
            .says(
                format!(
                    "nothing comes back through the tunnel from {} ({})",
                    tunnel.node,
                    some(&asked)
                ),
                "pods of this node and of that one do not reach each other",
            )
            .fix([
                format!(
                    "# open UDP {} between all nodes, both ways, in the nodes' firewalls and the cloud's \
                     security groups",
                    facts.vxlan_port
                ),
                "causeway doctor --firewall nft --role worker".to_owned(),
                format!("# on both nodes: tcpdump -ni any udp port {}", facts.vxlan_port),
            ])
    };
    silent.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::cluster::Tunnel;

    fn probe(node: &str, port: u16, answer: Answer) -> Probe {
        let address = "192.168.1.12".parse().unwrap();
        Probe { node: node.into(), address, port, answer }
    }

    fn facts(probes: Vec<Probe>) -> Facts {
        let mut facts = Facts { vxlan_port: 8472, ..Facts::default() };
        let member = |n: &str| Member { name: n.into(), ready: Some(true), ..Member::default() };
        facts.site.members = ["a", "b"].map(member).to_vec();
        facts.site.probes = probes;
        facts
    }

    fn all(facts: &Facts) -> Vec<Finding> {
        crate::judge(facts)
    }

    #[test]
    fn what_nobody_listens_on_is_fine() {
        let open = [Answer::Open, Answer::Closed];
        for answer in open {
            assert_eq!(all(&facts(vec![probe("a", 10250, answer)])), []);
        }
    }

    #[test]
    fn filtered_ports_of_a_node_that_answers() {
        let silent = probe("a", 10250, Answer::Silent);
        let there = probe("a", 30000, Answer::Closed);
        let found = all(&facts(vec![there.clone(), silent]));
        assert_eq!(
            (found.len(), found[0].id, found[0].severity),
            (1, "port-closed", Severity::Error)
        );
        assert!(found[0].what.contains("TCP 10250 (kubelet)") && found[0].what.contains("drops"));
        let found = all(&facts(vec![there, probe("a", 32767, Answer::Rejected)]));
        assert!(found[0].what.contains("rejects") && found[0].severity == Severity::Note);
    }

    #[test]
    fn a_node_that_does_not_answer_is_one_finding() {
        let both = |n| vec![probe(n, 10250, Answer::Silent), probe(n, 30000, Answer::Unreachable)];
        let mut facts = facts(both("a"));
        facts.site.tunnels = vec![Tunnel { node: "a".into(), asked: vec![], answered: false }];
        let found = all(&facts);
        assert_eq!(
            (found.len(), found[0].id, found[0].severity),
            (1, "node-unreachable", Severity::Error)
        );
        facts.site.members[0].ready = None;
        assert_eq!(all(&facts)[0].severity, Severity::Warning);
    }

    #[test]
    fn tunnels() {
        let mut facts = facts(vec![probe("a", 10250, Answer::Closed)]);
        let asked = vec!["10.244.2.1".parse().unwrap()];
        let mut tunnel = Tunnel { node: "a".into(), asked, answered: true };
        facts.site.tunnels = vec![tunnel.clone()];
        assert_eq!(all(&facts), []);
        tunnel.answered = false;
        facts.site.tunnels = vec![tunnel];
        let found = all(&facts);
        assert_eq!(found[0].id, "tunnel-silent");
        assert!(found[0].todo[0].contains("UDP 8472"));
    }

    #[test]
    fn who_needs_what() {
        let worker = Member::default();
        let control = Member { control_plane: true, kubelet_port: Some(7), ..Member::default() };
        assert_eq!(ports_of(Some(&control), &worker), [10250, 30000, 32767]);
        assert_eq!(ports_of(Some(&worker), &control), [7, 6443, 30000, 32767]);
        assert!(ports_of(Some(&control), &control).contains(&2380));
        assert!(!ports_of(None, &control).contains(&2380));
    }
}
