//! What a node should hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::{
    Addr, Desired, Link, LinkKind, Neigh, Object, Owner, Route, RouteKind, RouteScope, Sysctl,
};
use causeway_types::state::{Attach, AttachmentRecord, NodeFile};
use causeway_types::{Cidr, Family, Mac, Mtu, NodeName};
use serde::Serialize;

use crate::cidrs;
use crate::flannel::{self, Annotations};
use crate::input::{Inputs, NodeInfo, PluginType};
pub use crate::mtu::vxlan_overhead;
use crate::mtu::{pod_mtu, underlay_mtu};
use crate::nft_agent::{self, Ground};
use crate::pod::{PodContext, bridge_mac, host_objects};
use crate::ranges::{self, Ranges};
use crate::roads::{self, Peer, PeerRoad};
use crate::tunnels::{self, Tunnels};

/// What stands in the way, for a person: what, where, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Whose.
    pub owner: Owner,
    /// One line.
    pub message: String,
    /// All nodes find the same in the Nodes, and those that it is about say it themselves.
    pub told_there: bool,
}

impl Problem {
    /// One that this node is to say.
    pub(crate) fn new(owner: Owner, message: String) -> Self {
        Self { owner, message, told_there: false }
    }
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
    /// What the node should say that its pods have addresses of, or may get, beside its pod subnets;
    /// absent while that cannot be told.
    pub claims: Option<Vec<Cidr>>,
    /// What the node's annotations should say to nodes of flannel; absent while that is not ours to say.
    pub flannel: Option<Annotations>,
    /// In the order of nodes.
    pub problems: Vec<Problem>,
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
    // Unless the node's own part is known, what is there stays as it is.
    let here: Option<BTreeSet<IpAddr>> = out.known.then(|| {
        let all = out.desired.iter().filter_map(|(_, entry)| match &entry.object {
            Object::Addr(addr) => Some(addr.addr.addr()),
            _ => None,
        });
        all.collect()
    });
    for record in inputs.attachments.iter().filter(|r| !r.pending) {
        let mut objects = host_objects(record, &context);
        if let Some(here) = &here {
            objects = from_here(&objects, here);
            answer_on_bridge(inputs, record, &mut objects);
        }
        if !out.desired.extend(objects) {
            let message = format!(
                "the attachment of {} clashes with another one's; delete the older pod",
                record.owner_name()
            );
            out.problems.push(Problem::new(Owner::Pod(record.owner_name()), message));
        }
    }
}

/// Pods are attached to the bridge, or some still are that were before the configuration changed.
fn has_bridge(inputs: &Inputs) -> bool {
    let config = &inputs.config;
    let at_bridge = |r: &AttachmentRecord| r.bridge.as_ref() == Some(&config.bridge);
    config.attach == Attach::Bridge || inputs.attachments.iter().any(at_bridge)
}

/// Pods at the bridge take all of the node's subnet for neighbours, also a pod that was attached otherwise
/// before the configuration changed. Of IPv4 the node answers for all addresses that it has a way to.
fn answer_on_bridge(inputs: &Inputs, record: &AttachmentRecord, objects: &mut Desired) {
    let bridge = &inputs.config.bridge;
    if !has_bridge(inputs) || record.attach == Attach::Bridge {
        return;
    }
    for addr in record.addrs_of(Family::V6) {
        let ip = addr.addr();
        let dev = bridge.clone();
        let proxy = Neigh { dev, ip, mac: None, proxy: true, permanent: true };
        let why = "pods at the bridge ask there for a pod with an interface of its own";
        objects.add(Owner::Pod(record.owner_name()), why, Object::Neigh(proxy));
    }
}

/// The node's address that its packets to a pod come from is the gateway of the pod's range. Where the
/// range is not the node's any more, it has no such address, and the kernel takes no route with it.
fn from_here(objects: &Desired, here: &BTreeSet<IpAddr>) -> Desired {
    let mut all = Desired::default();
    for (_, entry) in objects.iter() {
        let object = match entry.object.clone() {
            Object::Route(mut route) => {
                route.src = route.src.filter(|ip| here.contains(ip));
                Object::Route(route)
            }
            other => other,
        };
        all.add(entry.owner.clone(), entry.why.clone(), object);
    }
    all
}

fn node_part(inputs: &Inputs, out: &mut Outcome) {
    let Some((me, own)) = this_node(inputs, &mut out.problems) else { return };
    let own = &own;
    let families: Vec<Family> =
        Family::BOTH.into_iter().filter(|f| own.pod_cidr(*f).is_some()).collect();
    let mut ranges = ranges::of_node(inputs, me, own);
    let mut problem = |message: String| out.problems.push(Problem::new(Owner::Node, message));
    std::mem::take(&mut ranges.problems).into_iter().for_each(&mut problem);
    let tunnels = Tunnels::of(inputs, me, own);
    let (peers, problems) = roads::peers(inputs, me, own, &ranges, &tunnels);
    out.problems.extend(problems);
    let Some(mtu) = pod_mtu(inputs, own, &families, &mut out.problems) else { return };
    let local: Vec<Cidr> = own.pod_cidrs.iter().copied().chain(ranges.claims()).collect();
    let all_cidrs = all_cidrs(inputs, &local);
    let no_masquerade = no_masquerade(inputs, own, &peers, &all_cidrs);

    let d = &mut out.desired;
    forwarding(d, inputs, &families);
    if has_bridge(inputs) {
        bridge(d, inputs, own, &ranges, mtu, &families);
    } else {
        unassigned(d, inputs, own.pod_cidrs.iter().copied().chain(ranges.whole()));
    }
    let taken = inputs.taken.as_ref().is_some_and(|all| !all.tunnels.is_empty());
    if taken || peers.iter().any(|p| matches!(p.road, PeerRoad::Vxlan(_))) {
        let underlay = underlay_mtu(inputs, own);
        let fits = |outer| underlay.and_then(|mtu| mtu.less(vxlan_overhead(outer)).ok());
        tunnels::objects(d, inputs, own, &tunnels, mtu, fits);
    }
    for peer in &peers {
        for (why, object) in roads::objects(peer, own, &inputs.config) {
            d.add(Owner::Peer(peer.name.to_string()), why, object);
        }
    }
    let ground = Ground {
        config: &inputs.config,
        bridged: has_bridge(inputs),
        local: &local,
        all_cidrs,
        all_nodes: all_nodes(inputs),
        peers: &peers,
        families: &families,
        no_masquerade: &no_masquerade,
        tunnels: tunnels.names(),
    };
    let table = nft_agent::table(&ground);
    d.add(Owner::Node, "closed tunnels and masquerade", Object::Table(table));
    out.known = true;
    out.node_file = Some(NodeFile {
        generation: 0,
        node: me.clone(),
        pod_cidrs: own.pod_cidrs.clone(),
        extra_cidrs: ranges.usable(own),
        reserved: ranges::reserved(inputs, me, own),
        cool_down: inputs.config.cool_down,
        mtu,
        attach: inputs.config.attach,
        bridge: inputs.config.bridge.clone(),
        no_masquerade: cidrs::minimal(no_masquerade),
        served: match inputs.config.plugin {
            PluginType::Bridge => vec![inputs.config.network.clone()],
            PluginType::Causeway => vec![],
        },
        policy_namespaces: inputs.view.policy_namespaces.clone(),
    });
    out.claims = Some(ranges.claims());
    out.flannel = flannel::announced(inputs, me, own, &tunnels);
}

/// This node's name and what of its Node object can be used: only addresses that are on its
/// interfaces. `None` while it cannot take pods.
fn this_node<'a>(
    inputs: &'a Inputs,
    problems: &mut Vec<Problem>,
) -> Option<(&'a NodeName, NodeInfo)> {
    let mut problem = |message: String| problems.push(Problem::new(Owner::Node, message));
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
    if let Some(device) = inputs.facts.tunnels_of_others.first() {
        problem(format!(
            "tunnel device {device} is somebody else's and has the VNI {} and UDP port {} of this node's \
             own; take over what flannel left (`causeway migrate --from flannel`), remove it (`causeway \
             reset --foreign flannel`), or configure another vni",
            inputs.config.vni.get(),
            inputs.config.vxlan_port
        ));
        return None;
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
fn all_cidrs(inputs: &Inputs, local: &[Cidr]) -> Vec<Cidr> {
    let nodes = inputs.view.nodes.values().flat_map(|n| n.pod_cidrs.iter().chain(&n.claimed_cidrs));
    cidrs::disjoint(nodes.chain(&inputs.config.cluster_cidrs).chain(local).copied())
}

/// Where nodes take packets of tunnels.
fn all_nodes(inputs: &Inputs) -> Vec<IpAddr> {
    let ends = |n: &NodeInfo| n.flannel.iter().map(|end| end.address).collect::<Vec<_>>();
    inputs.view.nodes.values().flat_map(|n| [n.addresses.clone(), ends(n)].concat()).collect()
}

/// Destinations that see pods' own addresses.
fn no_masquerade(inputs: &Inputs, own: &NodeInfo, peers: &[Peer], all_cidrs: &[Cidr]) -> Vec<Cidr> {
    let direct = peers.iter().filter(|p| matches!(p.road, PeerRoad::Direct(_)));
    let nodes = direct.flat_map(|p| p.addresses.iter()).chain(&own.addresses);
    let list = all_cidrs
        .iter()
        .copied()
        .chain(inputs.config.masquerade_except.iter().copied())
        .chain(nodes.map(|ip| Cidr::host(*ip)))
        .chain(Family::BOTH.map(cidrs::multicast));
    cidrs::disjoint(list)
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

/// What a served bridge needs of `net/ipv4/conf`, because the way to its pods is not the bridge but
/// their ports: answers for addresses that are elsewhere, and no strict reverse path filter (the
/// larger of `all` and its own value counts, and 2 is loose; pods have their guard).
const SERVED_BRIDGE: [(&str, &str); 2] = [("proxy_arp", "1"), ("rp_filter", "2")];

fn bridge(
    d: &mut Desired,
    inputs: &Inputs,
    own: &NodeInfo,
    ranges: &Ranges,
    mtu: Mtu,
    families: &[Family],
) {
    let name = &inputs.config.bridge;
    let mut link = Link::up(name.clone(), LinkKind::Bridge);
    link.mtu = Some(mtu);
    link.mac = Some(own_bridge_mac(inputs, own));
    d.add(Owner::Node, "the bridge that pods are ports of", Object::Link(link));
    for cidr in own.pod_cidrs.iter().copied().chain(ranges.whole()) {
        let addr = Addr::new(name.clone(), cidr.gateway_net());
        d.add(Owner::Node, "the pods' gateway", Object::Addr(addr));
    }
    let why = "isolated ports: the node answers for pods and forwards between them";
    let mut set = |path: String, value: &str| d.add(Owner::Node, why, sysctl(path, value));
    for family in families {
        match family {
            Family::V4 => {
                for (parameter, value) in SERVED_BRIDGE {
                    set(format!("net/ipv4/conf/{name}/{parameter}"), value);
                }
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

/// Derived, or the one by which the pods of a bridge that was taken over in this boot know it.
fn own_bridge_mac(inputs: &Inputs, own: &NodeInfo) -> Mac {
    let name = &inputs.config.bridge;
    let of_this_boot = inputs.taken.iter().filter(|taken| taken.boot_id == inputs.boot_id);
    let mut taken = of_this_boot.map(|taken| &taken.bridge).filter(|bridge| bridge.name == *name);
    let gateways: Vec<IpAddr> = own.pod_cidrs.iter().map(|c| c.gateway()).collect();
    taken.next().map_or_else(|| bridge_mac(name, &gateways), |bridge| bridge.mac)
}

/// Packets to addresses that no pod has end at the node, instead of going out by its default
/// route and back.
fn unassigned(d: &mut Desired, inputs: &Inputs, cidrs: impl Iterator<Item = Cidr>) {
    for cidr in cidrs {
        let route = plain_route(cidr, RouteKind::Unreachable, inputs);
        let why = "addresses that no pod has are answered as unreachable";
        d.add(Owner::Node, why, Object::Route(route));
    }
}

fn plain_route(dst: Cidr, kind: RouteKind, inputs: &Inputs) -> Route {
    Route {
        dst,
        table: Route::MAIN,
        metric: Route::default_metric(dst.family()),
        kind,
        dev: None,
        via: None,
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: inputs.config.route_protocol,
        mtu: None,
        advmss: None,
    }
}
