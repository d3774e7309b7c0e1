//! What a node should hold.

use std::net::IpAddr;

use causeway_model::{
    Addr, Desired, Link, LinkKind, Object, Owner, Route, RouteKind, RouteScope, Sysctl, Vxlan,
};
use causeway_types::state::{Attach, NodeFile};
use causeway_types::{Cidr, Family, IfName, Mtu, NodeName, names};
use ipnet::IpNet;
use serde::Serialize;

use crate::cidrs;
use crate::input::{Inputs, NodeInfo, PluginType, Road};
use crate::nft_agent::{self, Ground};
use crate::pod::{PodContext, bridge_mac, host_objects};
use crate::roads::{self, Peer, PeerRoad};

/// What stands in the way, for a person: what, where, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Whose.
    pub owner: Owner,
    /// One line.
    pub message: String,
}

/// What a node should hold, and what could not be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// False while the node's own part cannot be said (its Node is missing, or unlike the node):
    /// `desired` then holds the pods' part alone, and the rest that is there has to stay.
    pub known: bool,
    /// Kernel objects.
    pub desired: Desired,
    /// What plugins need to know (generation 0: the agent numbers it); absent while the node
    /// cannot take pods.
    pub node_file: Option<NodeFile>,
    /// In the order of nodes.
    pub problems: Vec<Problem>,
}

/// Bytes that VXLAN adds: outer IP, UDP and VXLAN headers and the inner Ethernet header.
pub fn vxlan_overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// Computes the desired state of the node named in the inputs.
pub fn node_objects(inputs: &Inputs) -> Outcome {
    let mut out = Outcome::default();
    node_part(inputs, &mut out);
    pods_part(inputs, &mut out);
    out
}

/// The pods' own objects: they follow from the records alone.
fn pods_part(inputs: &Inputs, out: &mut Outcome) {
    let context =
        PodContext { served: true, hairpin: false, route_protocol: inputs.config.route_protocol };
    for record in inputs.attachments.iter().filter(|r| !r.pending) {
        if !out.desired.extend(host_objects(record, &context)) {
            out.problems.push(Problem {
                owner: Owner::Pod(record.owner_name()),
                message: format!(
                    "the attachment of {} clashes with another one's; delete the older pod",
                    record.owner_name()
                ),
            });
        }
    }
}

fn node_part(inputs: &Inputs, out: &mut Outcome) {
    let Some((me, own)) = this_node(inputs, &mut out.problems) else { return };
    let own = &own;
    let families: Vec<Family> =
        Family::BOTH.into_iter().filter(|f| own.pod_cidr(*f).is_some()).collect();
    let (peers, problems) = roads::peers(inputs, me, own);
    out.problems.extend(problems);
    let Some(mtu) = pod_mtu(inputs, own, &families, &mut out.problems) else { return };
    let no_masquerade = no_masquerade(inputs, own, &peers);

    let d = &mut out.desired;
    forwarding(d, inputs, &families);
    if inputs.config.attach == Attach::Bridge {
        bridge(d, inputs, own, mtu, &families);
    } else {
        unassigned(d, inputs, own);
    }
    if peers.iter().any(|p| matches!(p.road, PeerRoad::Vxlan(_))) {
        tunnel(d, inputs, me, own, mtu, &families);
    }
    for peer in &peers {
        for (why, object) in roads::objects(peer, own, &inputs.config) {
            d.add(Owner::Peer(peer.name.to_string()), why, object);
        }
    }
    let ground = Ground {
        config: &inputs.config,
        own,
        all_cidrs: all_cidrs(inputs),
        all_nodes: inputs.view.nodes.values().flat_map(|n| n.addresses.clone()).collect(),
        peers: &peers,
        families: &families,
        no_masquerade: &no_masquerade,
    };
    let table = nft_agent::table(&ground);
    d.add(Owner::Node, "closed tunnels and masquerade", Object::Table(table));
    out.known = true;
    out.node_file = Some(NodeFile {
        generation: 0,
        node: me.clone(),
        pod_cidrs: own.pod_cidrs.clone(),
        mtu,
        attach: inputs.config.attach,
        bridge: inputs.config.bridge.clone(),
        no_masquerade: cidrs::minimal(no_masquerade),
        served: match inputs.config.plugin {
            PluginType::Bridge => vec![inputs.config.network.clone()],
            PluginType::Causeway => vec![],
        },
        policy_namespaces: vec![],
    });
}

/// This node's name and what of its Node object can be used: only addresses that are on its
/// interfaces. `None` while it cannot take pods.
fn this_node<'a>(
    inputs: &'a Inputs,
    problems: &mut Vec<Problem>,
) -> Option<(&'a NodeName, NodeInfo)> {
    let mut problem = |message: String| problems.push(Problem { owner: Owner::Node, message });
    let me = inputs.me.as_ref()?;
    let Some(own) = inputs.view.nodes.get(me) else {
        problem(format!(
            "there is no Node object {me}; the kubelet registers it: check that it runs and that \
             its name is the agent's (nodeName in the configuration)"
        ));
        return None;
    };
    for p in &own.problems {
        problem(p.clone());
    }
    if own.pod_cidrs.is_empty() {
        problem(format!(
            "Node {me} has no spec.podCIDRs; start kube-controller-manager with \
             --allocate-node-cidrs=true and --cluster-cidr, or set it when the Node is created"
        ));
        return None;
    }
    if let Some(cidr) = own.pod_cidrs.iter().find(|c| c.prefix_len() + 2 > c.family().bits()) {
        problem(format!(
            "pod CIDR {cidr} of Node {me} has no room for a gateway and pods; give nodes at least \
             a /{} (kube-controller-manager --node-cidr-mask-size)",
            cidr.family().bits() - 2
        ));
        return None;
    }
    let mut own = own.clone();
    for message in missing_addresses(inputs, me, &own) {
        problem(message);
    }
    let here = own_families(inputs, &own);
    // Peers send tunnel packets to the address of this family, whether it is here or not: another
    // one in its place would be heard by nobody.
    let outer = roads::outer_family(&own).filter(|family| here.contains(family));
    own.addresses.retain(|a| here.contains(&Family::of(*a)));
    outer.map(|_| (me, own))
}

/// Families whose first InternalIP, the one that peers send to, is on one of our interfaces.
fn own_families(inputs: &Inputs, own: &NodeInfo) -> Vec<Family> {
    let here = |ip: IpAddr| inputs.facts.addresses.iter().any(|(_, a)| a.addr() == ip);
    Family::BOTH.into_iter().filter(|f| own.address(*f).is_some_and(here)).collect()
}

fn missing_addresses(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> Vec<String> {
    let candidates = |family: Option<Family>| {
        let all = inputs.facts.addresses.iter();
        let all = all.filter(|(_, a)| family.is_none_or(|f| Family::of(a.addr()) == f));
        let all: Vec<String> = all.map(|(d, a)| format!("{} on {d}", a.addr())).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    if own.addresses.is_empty() {
        return vec![format!(
            "Node {me} has no InternalIP; set kubelet's --node-ip to one of this node's addresses \
             ({})",
            candidates(None)
        )];
    }
    let here = own_families(inputs, own);
    let away = Family::BOTH.into_iter().filter(|f| !here.contains(f));
    away.filter_map(|f| Some((f, own.address(f)?)))
        .map(|(family, ip)| {
            format!(
                "InternalIP {ip} of Node {me} is on no interface of this node, whose {family} \
                 addresses are {}; set kubelet's --node-ip to one of them",
                candidates(Some(family))
            )
        })
        .collect()
}

/// All pods of the cluster.
fn all_cidrs(inputs: &Inputs) -> Vec<Cidr> {
    let nodes = inputs.view.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied());
    cidrs::disjoint(nodes.chain(inputs.config.cluster_cidrs.iter().copied()))
}

/// Destinations that see pods' own addresses.
fn no_masquerade(inputs: &Inputs, own: &NodeInfo, peers: &[Peer]) -> Vec<Cidr> {
    let direct = peers.iter().filter(|p| matches!(p.road, PeerRoad::Direct(_)));
    let nodes = direct.flat_map(|p| p.addresses.iter()).chain(&own.addresses);
    let list = all_cidrs(inputs)
        .into_iter()
        .chain(inputs.config.masquerade_except.iter().copied())
        .chain(nodes.map(|ip| Cidr::host(*ip)))
        .chain(Family::BOTH.map(cidrs::multicast));
    cidrs::disjoint(list)
}

/// MTU of the underlay: the least of what the node's own interfaces and the ways to peers have.
fn underlay_mtu(inputs: &Inputs, own: &NodeInfo) -> Option<Mtu> {
    let holds = |dev: &IfName| {
        inputs.facts.addresses.iter().any(|(d, a)| d == dev && own.addresses.contains(&a.addr()))
    };
    let devices = inputs.facts.mtus.iter().filter(|(dev, _)| holds(dev)).map(|(_, mtu)| *mtu);
    let peers = inputs.view.nodes.values().flat_map(|n| n.addresses.iter());
    let paths = peers.filter_map(|a| inputs.facts.paths.get(a)).map(|p| p.mtu);
    devices.chain(paths).min()
}

fn pod_mtu(
    inputs: &Inputs,
    own: &NodeInfo,
    families: &[Family],
    problems: &mut Vec<Problem>,
) -> Option<Mtu> {
    let mut problem = |message: String| problems.push(Problem { owner: Owner::Node, message });
    let Some(underlay) = underlay_mtu(inputs, own) else {
        problem("the MTU of the node's interface is not known yet".to_owned());
        return None;
    };
    let overhead = match (inputs.config.road, roads::outer_family(own)) {
        (Road::Direct, _) | (_, None) => 0,
        (Road::Auto | Road::Vxlan, Some(outer)) => vxlan_overhead(outer),
    };
    let fits = match underlay.less(overhead) {
        Ok(mtu) => mtu,
        Err(e) => {
            problem(format!("the underlay's MTU of {underlay} leaves no room for pods: {e}"));
            return None;
        }
    };
    let mtu = inputs.config.mtu.unwrap_or(fits);
    if mtu > fits {
        problem(format!(
            "the configured pod MTU of {mtu} is more than the {fits} bytes that the underlay's \
             {underlay} leave; large packets will be lost: lower mtu in the configuration"
        ));
    }
    if families.contains(&Family::V6) && mtu.get() < Mtu::IPV6_MIN {
        problem(format!(
            "a pod MTU of {mtu} is less than the 1280 bytes that IPv6 needs; raise the underlay's"
        ));
    }
    Some(mtu)
}

fn sysctl(path: impl Into<String>, value: &str) -> Object {
    Object::Sysctl(Sysctl { path: path.into(), value: value.to_owned() })
}

fn forwarding(d: &mut Desired, inputs: &Inputs, families: &[Family]) {
    for family in families {
        match family {
            Family::V4 => {
                d.add(
                    Owner::Node,
                    "a node forwards its pods' packets",
                    sysctl("net/ipv4/ip_forward", "1"),
                );
            }
            Family::V6 => {
                for dev in &inputs.facts.accept_ra {
                    let why =
                        format!("{dev} keeps its router-advertised routes with forwarding on");
                    d.add(Owner::Node, why, sysctl(format!("net/ipv6/conf/{dev}/accept_ra"), "2"));
                }
                let path = "net/ipv6/conf/all/forwarding";
                d.add(Owner::Node, "a node forwards its pods' packets", sysctl(path, "1"));
            }
        }
    }
}

fn bridge(d: &mut Desired, inputs: &Inputs, own: &NodeInfo, mtu: Mtu, families: &[Family]) {
    let name = &inputs.config.bridge;
    let gateways: Vec<IpAddr> = own.pod_cidrs.iter().map(|c| c.gateway()).collect();
    let mut link = Link::up(name.clone(), LinkKind::Bridge);
    link.mtu = Some(mtu);
    link.mac = Some(bridge_mac(name, &gateways));
    d.add(Owner::Node, "the bridge that pods are ports of", Object::Link(link));
    for cidr in &own.pod_cidrs {
        let addr = Addr::new(name.clone(), cidr.gateway_net());
        d.add(Owner::Node, "the pods' gateway", Object::Addr(addr));
    }
    let why = "isolated ports: the node answers for pods and forwards between them";
    let mut set = |path: String, value: &str| d.add(Owner::Node, why, sysctl(path, value));
    for family in families {
        match family {
            Family::V4 => {
                set(format!("net/ipv4/conf/{name}/proxy_arp_pvlan"), "1");
                set(format!("net/ipv4/neigh/{name}/proxy_delay"), "0");
                set(format!("net/ipv4/conf/{name}/send_redirects"), "0");
                set("net/ipv4/conf/all/send_redirects".to_owned(), "0");
            }
            Family::V6 => {
                set(format!("net/ipv6/conf/{name}/proxy_ndp"), "1");
                set(format!("net/ipv6/neigh/{name}/proxy_delay"), "0");
                set(format!("net/ipv6/conf/{name}/accept_ra"), "0");
            }
        }
    }
}

/// Packets to addresses that no pod has end at the node, instead of going out by its default
/// route and back.
fn unassigned(d: &mut Desired, inputs: &Inputs, own: &NodeInfo) {
    for cidr in &own.pod_cidrs {
        let route = Route {
            dst: *cidr,
            table: Route::MAIN,
            metric: Route::default_metric(cidr.family()),
            kind: RouteKind::Unreachable,
            dev: None,
            via: None,
            onlink: false,
            src: None,
            scope: RouteScope::Universe,
            protocol: inputs.config.route_protocol,
            mtu: None,
            advmss: None,
        };
        d.add(
            Owner::Node,
            "addresses that no pod has are answered as unreachable",
            Object::Route(route),
        );
    }
}

fn tunnel(
    d: &mut Desired,
    inputs: &Inputs,
    me: &NodeName,
    own: &NodeInfo,
    mtu: Mtu,
    families: &[Family],
) {
    let Some(local) = roads::outer_family(own).and_then(|f| own.address(f)) else { return };
    let dev = IfName::new(names::VXLAN_DEV).expect("a valid name");
    let vxlan = Vxlan { vni: inputs.config.vni, port: inputs.config.vxlan_port, local };
    let mut link = Link::up(dev.clone(), LinkKind::Vxlan(vxlan));
    link.mac = Some(roads::vtep_mac(me));
    link.mtu = Some(mtu);
    d.add(Owner::Node, "the tunnel to nodes behind a router", Object::Link(link));
    if families.contains(&Family::V6) {
        let path = format!("net/ipv6/conf/{dev}/accept_ra");
        d.add(Owner::Node, "nobody advertises routes in the tunnel", sysctl(path, "0"));
    }
    // With a bridge too, where it is the gateway's address once more: the kernel masquerades with
    // an address of the outgoing device (kube-proxy does so for the node's own packets to
    // Services), and peers take nothing from the tunnel that is not of our pod subnet.
    for cidr in &own.pod_cidrs {
        let addr = IpNet::from(cidr.gateway());
        let addr = Addr::new(dev.clone(), addr);
        let why = "the node's own address inside the cluster";
        d.add(Owner::Node, why, Object::Addr(addr));
    }
}
