//! What has to be unique among the nodes: addresses, names, machines, subnets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_types::Mac;
use ipnet::IpNet;

use super::some;
use crate::facts::Facts;
use crate::facts::cluster::{Member, Site};
use crate::finding::{Finding, Severity};

/// This node's addresses by the API have to be on it.
pub(super) fn own_address(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let Some(own) = site.own().filter(|_| !site.addresses.is_empty()) else { return Vec::new() };
    let here = |ip: &&IpAddr| site.addresses.iter().any(|a| a.net.addr() == **ip);
    let missing = own.addresses.iter().filter(|ip| !here(ip));
    let finding = |ip: &IpAddr| {
        Finding::new("node-address-missing", Severity::Error, format!("Node {}", own.name))
            .says(
                format!("its InternalIP {ip} is on no interface of this node"),
                "other nodes send to that address, and pods here are not reached",
            )
            .fix([
                "ip -br addr".to_owned(),
                "# give the kubelet the address that is there (--node-ip), and start it again"
                    .to_owned(),
            ])
    };
    missing.map(finding).collect()
}

/// What several members have in common, with their names.
fn twice<K: Ord + Clone>(
    site: &Site,
    of: impl Fn(&Member) -> Vec<K>,
) -> impl Iterator<Item = (K, Vec<String>)> {
    let mut all: BTreeMap<K, BTreeSet<&str>> = BTreeMap::new();
    for member in &site.members {
        for key in of(member) {
            all.entry(key).or_default().insert(&member.name);
        }
    }
    let several = all.into_iter().filter(|(_, names)| names.len() > 1);
    let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
    several.map(move |(key, names)| (key, owned(names))).collect::<Vec<_>>().into_iter()
}

/// Nodes with the same address.
pub(super) fn addresses(facts: &Facts) -> Vec<Finding> {
    let finding = |(ip, names): (IpAddr, Vec<String>)| {
        Finding::new("node-address-twice", Severity::Error, format!("address {ip}"))
            .says(
                format!("nodes {} have the same InternalIP {ip}", some(&names)),
                "what is meant for pods of the one is sent to the other",
            )
            .fix(["# give each host an address of its own; delete Nodes whose machines are gone: \
                 kubectl delete node NAME"
                .to_owned()])
    };
    twice(&facts.site, |m| m.addresses.clone()).map(finding).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Pod subnets that overlap each other, or the network that the nodes are in.
pub(super) fn subnets(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let mut all: Vec<(&str, &IpNet)> = Vec::new();
    for member in &site.members {
        all.extend(member.pod_cidrs.iter().map(|net| (member.name.as_str(), net)));
    }
    // In this order a subnet comes right before those that it contains.
    all.sort_by_key(|(name, net)| (net.network(), net.prefix_len(), *name));
    let mut found = Vec::new();
    let mut widest: Option<(&str, &IpNet)> = None;
    for (name, net) in all.iter().copied() {
        match widest {
            Some((other, wide)) if overlap(wide, net) => {
                if other != name {
                    found.push(overlapping((other, wide), (name, net)));
                }
            }
            _ => widest = Some((name, net)),
        }
    }
    found.extend(all.iter().filter_map(|(name, net)| on_underlay(site, name, net)));
    found
}

fn overlapping(a: (&str, &IpNet), b: (&str, &IpNet)) -> Finding {
    let place = format!("Nodes {} and {}", a.0, b.0);
    Finding::new("pod-subnets-overlap", Severity::Error, place)
        .says(
            format!("pod subnets {} of {} and {} of {} overlap", a.1, a.0, b.1, b.0),
            "pods of the two nodes get the same addresses, and one of them is not reached",
        )
        .fix([format!(
            "# a Node keeps its subnet for life: kubectl drain {0}, kubectl delete node {0}, and start its \
             kubelet again",
            b.0
        )])
}

fn on_underlay(site: &Site, name: &str, net: &IpNet) -> Option<Finding> {
    let nodes = site.members.iter().flat_map(|m| m.addresses.iter().map(move |ip| (m, ip)));
    let mut within = nodes.filter(|(_, ip)| net.contains(*ip));
    // The subnet of the interface that has this node's address.
    let own: &[IpAddr] = site.own().map_or(&[], |own| &own.addresses);
    let mut links =
        site.addresses.iter().filter(|a| own.contains(&a.net.addr()) && overlap(&a.net, net));
    let what = match (within.next(), links.next()) {
        (Some((member, ip)), _) => format!("contains address {ip} of node {}", member.name),
        (None, Some(link)) => format!("overlaps {} of {}", link.net.trunc(), link.dev),
        (None, None) => return None,
    };
    let finding = Finding::new("pod-subnet-on-underlay", Severity::Error, format!("Node {name}"))
        .says(
            format!("pod subnet {net} of {name} {what}"),
            "what is meant for hosts of that network goes to pods, or the other way round",
        );
    Some(finding.fix([
        "# give the cluster pod subnets that no other network has (kubeadm: podSubnet; controller \
         manager: --cluster-cidr)"
            .to_owned(),
    ]))
}

/// Pods with the same address, by the API.
pub(super) fn pods(facts: &Facts) -> Vec<Finding> {
    let finding = |(ip, pods): &(IpAddr, Vec<String>)| {
        Finding::new("pod-address-twice", Severity::Error, format!("address {ip}"))
            .says(
                format!("pods {} have the same address {ip}", some(pods)),
                "packets for it reach one of them, and the other none",
            )
            .fix(pods.iter().take(4).map(|pod| match pod.split_once('/') {
                Some((namespace, name)) => format!("kubectl -n {namespace} delete pod {name}"),
                None => format!("kubectl delete pod {pod}"),
            }))
    };
    facts.site.shared.iter().map(finding).collect()
}

/// Machines that were copied, and two machines under one name.
pub(super) fn machines(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let known = |text: &str| (!text.is_empty()).then(|| text.to_lowercase());
    let ids = twice(site, |m| known(&m.machine_id).into_iter().collect());
    let uuids = twice(site, |m| known(&m.system_uuid).into_iter().collect());
    let finding = |what: &str, (id, names): (String, Vec<String>), fix: &str| {
        Finding::new("machine-id-twice", Severity::Warning, format!("{what} {id}"))
            .says(
                format!("nodes {} have the same {what}: one is a copy of the other", some(&names)),
                "DHCP may give both the same address, and whatever names machines by it takes them \
                 for one",
            )
            .fix([fix.to_owned()])
    };
    let new_id = "rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; reboot";
    let new_uuid = "# give the virtual machine a UUID of its own, where it is defined";
    let mut found: Vec<Finding> = ids.map(|t| finding("machine ID", t, new_id)).collect();
    found.extend(uuids.map(|t| finding("hardware UUID", t, new_uuid)));
    found.extend(site.own().and_then(|own| taken(site, own)));
    found
}

/// This boot and the one that the Node's kubelet tells of differ: another machine says that it is
/// this node.
fn taken(site: &Site, own: &Member) -> Option<Finding> {
    let known = !own.boot_id.is_empty() && !site.boot_id.is_empty();
    if !known || own.boot_id.eq_ignore_ascii_case(&site.boot_id) || own.ready != Some(true) {
        return None;
    }
    let finding =
        Finding::new("node-name-taken", Severity::Error, format!("Node {}", own.name)).says(
            format!(
                "the Node is told of by another boot than this one ({}): another machine has the same \
                 name, or the kubelet has not spoken since this one was started",
                own.boot_id
            ),
            "two machines fight for one Node: its addresses, its subnet and its pods",
        );
    Some(finding.fix([
        "# see that the kubelet runs here; if it does, find the other machine and give it another name: \
         hostnamectl set-hostname NAME"
            .to_owned(),
    ]))
}

/// Host names that several nodes have.
pub(super) fn host_names(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let lower = |m: &Member| m.hostnames.iter().map(|h| h.to_lowercase()).collect();
    let finding = |name: &str, what: String| {
        Finding::new("host-name-twice", Severity::Warning, format!("host name {name}"))
            .says(
                what,
                "a kubelet that is started without a name takes its host's, and with it another \
                 machine's Node",
            )
            .fix(["hostnamectl set-hostname NAME".to_owned()])
    };
    let mut found: Vec<Finding> = twice(site, lower)
        .map(|(name, nodes)| {
            finding(&name, format!("nodes {} have the host name {name}", some(&nodes)))
        })
        .collect();
    let host = site.hostname.to_lowercase();
    // Nodes may have names of their own, and that is fine.
    let other = site.own().and_then(|own| {
        let differs = |m: &&Member| m.name != own.name && m.name.to_lowercase() == host;
        site.members.iter().find(differs).map(|m| (own, m))
    });
    found.extend(other.map(|(own, other)| {
        let what = format!("this host, which is node {}, is called {}", own.name, other.name);
        finding(&host, format!("{what} as is another node"))
    }));
    found
}

/// MACs that two nodes have, as far as this one sees them.
pub(super) fn macs(facts: &Facts) -> Vec<Finding> {
    let site = &facts.site;
    let mut found = Vec::new();
    let of_node = |ip: &IpAddr| site.members.iter().find(|m| m.addresses.contains(ip));
    let mut by_mac: BTreeMap<(&str, Mac), BTreeSet<&str>> = BTreeMap::new();
    let mut others: BTreeSet<(&str, Mac)> = BTreeSet::new();
    for (dev, ip, mac) in &site.neighbours {
        match of_node(ip) {
            Some(member) if member.name == site.me => {}
            Some(member) => {
                let own = site.addresses.iter().find(|a| a.dev == *dev && a.mac == Some(*mac));
                if own.is_some() {
                    found.push(same_mac(dev, mac, &[site.me.clone(), member.name.clone()]));
                } else {
                    by_mac.entry((dev, *mac)).or_default().insert(&member.name);
                }
            }
            // A router that answers for all, as in many clouds, also has an address of its own, which
            // is no node's. One of IPv6 that is made from the MAC says nothing.
            None if !is_link_local(ip) => drop(others.insert((dev, *mac))),
            None => {}
        }
    }
    by_mac.retain(|key, names| names.len() > 1 && !others.contains(key));
    found.extend(by_mac.into_iter().map(|((dev, address), names)| {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        same_mac(dev, &address, &names)
    }));
    found.dedup();
    found
}

fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn same_mac(dev: &str, mac: &Mac, names: &[String]) -> Finding {
    Finding::new("mac-twice", Severity::Error, format!("{dev}, MAC {mac}"))
        .says(
            format!("nodes {} have the same MAC {mac}", some(names)),
            "the switch sends what is meant for one of them to whoever spoke last",
        )
        .fix(["# give each machine's interface a MAC of its own, where the machine is defined"
            .to_owned()])
}

#[cfg(test)]
mod tests;
