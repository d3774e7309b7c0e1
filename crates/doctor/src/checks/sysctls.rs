//! Kernel parameters.

use causeway_types::{Family, names};

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

fn number(facts: &Facts, path: &str) -> Option<u64> {
    facts.sysctls.get(path)?.trim().parse().ok()
}

fn at(path: &str) -> String {
    format!("/proc/sys/{path}")
}

/// What sets a parameter now, and at the next start.
fn set(path: &str, value: impl std::fmt::Display) -> [String; 2] {
    let line = format!("{}={value}", path.replace('/', "."));
    [
        format!("sysctl -w {line}"),
        format!("# and to keep it: a line {line} in /etc/sysctl.d/99-causeway.conf"),
    ]
}

/// A node that does not forward.
pub(super) fn forwarding(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for family in facts.node.families() {
        let path = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        if number(facts, path) == Some(0) {
            let finding = Finding::new("forwarding-off", Severity::Error, at(path)).says(
                format!("the node does not forward {}", name(family)),
                "packets of pods do not leave their node",
            );
            found.push(finding.fix(set(path, 1)));
        }
    }
    found
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Strict reverse path filtering on a tunnel drops what comes from pods that are reached by another
/// road. It does no harm while all nodes see their roads alike.
pub(super) fn rp_filter(facts: &Facts) -> Vec<Finding> {
    let path = |dev: &str| format!("net/ipv4/conf/{dev}/rp_filter");
    let tunnels = facts.interfaces.iter().filter(|i| i.name == names::VXLAN_DEV);
    let strict = tunnels.filter(|i| {
        // The greater of the two counts (Documentation/networking/ip-sysctl.rst).
        let values = [number(facts, &path("all")), number(facts, &path(&i.name))];
        values.into_iter().flatten().max() == Some(1)
    });
    let finding = |dev: &str| {
        Finding::new("rp-filter-strict", Severity::Note, at(&path(dev)))
            .says(
                format!("reverse path filtering is strict on {dev}"),
                "while two nodes take different roads to each other, as when the road is changed node \
                 by node, what comes by the tunnel is dropped",
            )
            .fix(set(&path(dev), 2))
    };
    strict.map(|i| finding(&i.name)).collect()
}

/// Chains of kube-proxy, by their beginning.
const KUBE_PROXY: [&str; 2] = ["KUBE-SERVICES", "service-"];

/// A bridge that the agent does not serve, behind kube-proxy: packets between pods of one node pass
/// no rule of it.
pub(super) fn bridge_nf_call(facts: &Facts) -> Vec<Finding> {
    let proxied = |c: &causeway_model::nft::foreign::Place| {
        KUBE_PROXY.iter().any(|start| c.chain.starts_with(start))
            && (c.table == "nat" || c.table == "kube-proxy")
    };
    let bridged = !facts.node.served
        && facts.interfaces.iter().any(|i| i.kind == "bridge" && i.name == names::BRIDGE);
    if !bridged || !facts.chains.iter().any(proxied) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (family, word) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let path = format!("net/bridge/bridge-nf-call-{word}");
        if !facts.node.families().contains(&family) || number(facts, &path) == Some(1) {
            continue;
        }
        let finding = Finding::new("bridge-nf-call-off", Severity::Warning, at(&path)).says(
            format!("bridged {} packets pass no rules of netfilter", name(family)),
            "a pod that calls a Service whose pod is on the same node gets the answer from an \
             address that it did not ask",
        );
        found.push(
            finding
                .fix([vec!["modprobe br_netfilter".to_owned()], set(&path, 1).to_vec()].concat()),
        );
    }
    found
}

/// Room in the neighbour table, which all namespaces share.
pub(super) fn neighbours(facts: &Facts) -> Vec<Finding> {
    let used: Vec<Family> = facts.node.families();
    let mut found = Vec::new();
    for family in used {
        let path = format!("net/{}/neigh/default/gc_thresh3", family.sysctl_dir());
        let pods = facts.node.pods.iter().filter(|ip| Family::of(**ip) == family).count();
        // A pod has its gateway for a neighbour, and may be one itself.
        let needed = (facts.node.peers + 2 * pods) as u64;
        let Some(limit) = number(facts, &path).filter(|limit| *limit < needed) else { continue };
        let room = needed.next_power_of_two() * 2;
        let finding = Finding::new("neighbour-table-small", Severity::Warning, at(&path)).says(
            format!(
                "the neighbour table of {} takes {limit} entries; {} nodes and {pods} pods may need \
                 {needed}",
                name(family),
                facts.node.peers
            ),
            "when it is full new neighbours are not found, and packets to them are dropped",
        );
        let second = path.replace("gc_thresh3", "gc_thresh2");
        found.push(finding.fix([set(&path, room), set(&second, room / 2)].concat()));
    }
    found
}

/// Room for tracked connections.
pub(super) fn conntrack(facts: &Facts) -> Vec<Finding> {
    let path = "net/netfilter/nf_conntrack_max";
    let count = number(facts, "net/netfilter/nf_conntrack_count");
    let (Some(count), Some(limit)) = (count, number(facts, path)) else { return Vec::new() };
    // 0: no limit.
    let severity = match count.saturating_mul(100).checked_div(limit) {
        Some(95..) => Severity::Error,
        Some(80..) => Severity::Warning,
        _ => return Vec::new(),
    };
    let finding = Finding::new("conntrack-full", severity, at(path)).says(
        format!("{count} of {limit} connections are tracked"),
        "when the table is full new connections of pods are dropped",
    );
    vec![finding.fix(set(path, limit.saturating_mul(2)))]
}

/// Interfaces whose default route comes from router advertisements that nobody listens to.
pub(super) fn accept_ra(facts: &Facts) -> Vec<Finding> {
    if number(facts, "net/ipv6/conf/all/forwarding").unwrap_or(0) == 0 {
        return Vec::new();
    }
    let path = |dev: &str| format!("net/ipv6/conf/{dev}/accept_ra");
    // 0: a program takes them in by itself. 1: the kernel does while it does not forward.
    let deaf = |i: &&crate::facts::Interface| {
        i.advertised
            && number(facts, &path(&i.name)) == Some(1)
            && number(facts, &format!("net/ipv6/conf/{}/forwarding", i.name)) != Some(0)
    };
    let finding = |dev: &str| {
        Finding::new("accept-ra-off", Severity::Error, at(&path(dev)))
            .says(
                format!(
                    "{dev} has its default route from router advertisements, and does not listen \
                         to them since the node forwards"
                ),
                "the route runs out within half an hour, and the node loses its way out",
            )
            .fix(set(&path(dev), 2))
    };
    facts.interfaces.iter().filter(deaf).map(|i| finding(&i.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Interface, Node};
    use causeway_model::nft::foreign::{Layer, Place};

    fn facts(sysctls: &[(&str, &str)]) -> Facts {
        let pods = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let own = |(path, value): &(&str, &str)| ((*path).to_owned(), (*value).to_owned());
        Facts {
            sysctls: sysctls.iter().map(own).collect(),
            node: Node { pods, ..Node::default() },
            ..Facts::default()
        }
    }

    fn interface(name: &str, kind: &str) -> Interface {
        Interface { name: name.into(), kind: kind.into(), advertised: false }
    }

    #[test]
    fn forwarding_of_the_families_in_use() {
        let off = [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "0")];
        let mut facts = facts(&off);
        let found = forwarding(&facts);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].todo[0], "sysctl -w net.ipv4.ip_forward=1");
        facts.node.pods.pop();
        assert_eq!(forwarding(&facts).len(), 1);
        facts.node.pods.pop();
        assert_eq!(forwarding(&facts), []);
    }

    #[test]
    fn the_greater_rp_filter_counts() {
        for (all, dev, strict) in
            [("1", "0", 1), ("0", "1", 1), ("1", "2", 0), ("2", "1", 0), ("0", "0", 0)]
        {
            let mut facts = facts(&[
                ("net/ipv4/conf/all/rp_filter", all),
                ("net/ipv4/conf/cw-vxlan/rp_filter", dev),
            ]);
            assert_eq!(rp_filter(&facts), [], "no tunnel");
            facts.interfaces.push(interface("cw-vxlan", "vxlan"));
            assert_eq!(rp_filter(&facts).len(), strict, "{all} {dev}");
        }
    }

    #[test]
    fn services_on_an_unserved_bridge() {
        let mut facts = facts(&[("net/bridge/bridge-nf-call-ip6tables", "1")]);
        facts.interfaces.push(interface("cni0", "bridge"));
        assert_eq!(bridge_nf_call(&facts), [], "no kube-proxy");
        facts.chains.push(Place::new(Layer::Ip, "nat", "KUBE-SERVICES"));
        assert_eq!(bridge_nf_call(&facts).len(), 1);
        facts.node.served = true;
        assert_eq!(bridge_nf_call(&facts), []);
    }

    #[test]
    fn neighbours_by_nodes_and_pods() {
        let mut facts = facts(&[("net/ipv4/neigh/default/gc_thresh3", "1024")]);
        facts.node.peers = 1022;
        assert_eq!(neighbours(&facts), []);
        facts.node.peers = 1023;
        let found = neighbours(&facts);
        assert_eq!(found[0].todo[0], "sysctl -w net.ipv4.neigh.default.gc_thresh3=4096");
    }

    #[test]
    fn connections() {
        let with = |count, max| {
            conntrack(&facts(&[
                ("net/netfilter/nf_conntrack_count", count),
                ("net/netfilter/nf_conntrack_max", max),
            ]))
            .first()
            .map(|f| f.severity)
        };
        assert_eq!(with("79", "100"), None);
        assert_eq!(with("80", "100"), Some(Severity::Warning));
        assert_eq!(with("95", "100"), Some(Severity::Error));
        assert_eq!(with("95", "0"), None);
    }

    #[test]
    fn advertised_routes() {
        let mut facts =
            facts(&[("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/eth0/accept_ra", "1")]);
        facts.interfaces.push(interface("eth0", ""));
        assert_eq!(accept_ra(&facts), []);
        facts.interfaces[0].advertised = true;
        assert_eq!(accept_ra(&facts).len(), 1);
        for value in ["0", "2"] {
            facts.sysctls.insert("net/ipv6/conf/eth0/accept_ra".into(), value.into());
            assert_eq!(accept_ra(&facts), []);
        }
    }
}
