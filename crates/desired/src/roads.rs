//! Which way leads to each peer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::{Fdb, Neigh, Object, Owner, Route, RouteKind, RouteScope};
use causeway_types::{Cidr, Family, IfName, Mac, NodeName, names};

use crate::input::{Config, Inputs, NodeInfo, Path, Road};
use crate::node::Problem;

/// The way to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerRoad {
    /// By the peer's address, a family each.
    Direct(BTreeMap<Family, (IpAddr, IfName)>),
    /// Through the tunnel, to the peer's outer address.
    Vxlan(IpAddr),
}

/// A peer with its subnets and the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: NodeName,
    pub(crate) cidrs: Vec<Cidr>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) road: PeerRoad,
}

/// MAC of a node's VXLAN device: known to every node, published by none.
pub(crate) fn vtep_mac(node: &NodeName) -> Mac {
    Mac::derived(&format!("vtep/{node}"))
}

/// The family of outer packets: IPv4 where this node has it. One for all peers, because a VXLAN
/// device has one local address.
pub(crate) fn outer_family(me: &NodeInfo) -> Option<Family> {
    Family::BOTH.into_iter().find(|f| me.address(*f).is_some())
}

/// All peers that can be reached, and what is wrong with the others: every peer has one road or
/// one problem. `own` holds only addresses that are on this node's interfaces.
pub(crate) fn peers(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> (Vec<Peer>, Vec<Problem>) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut problems = Vec::new();
    let mut taken: Vec<(Cidr, NodeName)> = own.pod_cidrs.iter().map(|c| (*c, me.clone())).collect();
    for (name, info) in inputs.view.nodes.iter().filter(|(name, _)| *name != me) {
        let problem = |message: String| Problem { owner: Owner::Peer(name.to_string()), message };
        problems.extend(info.problems.iter().map(|p| problem(p.clone())));
        let way = subnets(own, name, info, &taken)
            .and_then(|cidrs| Ok((road(inputs, own, name, info, &cidrs)?, cidrs)));
        match way {
            Ok((road, cidrs)) => {
                taken.extend(cidrs.iter().map(|c| (*c, name.clone())));
                let addresses = info.addresses.clone();
                peers.push(Peer { name: name.clone(), cidrs, addresses, road });
            }
            Err(message) => problems.push(problem(message)),
        }
    }
    (peers, problems)
}

/// The peer's pod subnets, of the families that this node's pods use.
fn subnets(
    own: &NodeInfo,
    name: &NodeName,
    info: &NodeInfo,
    taken: &[(Cidr, NodeName)],
) -> Result<Vec<Cidr>, String> {
    for cidr in &info.pod_cidrs {
        if let Some((other, whose)) = taken.iter().find(|(other, _)| other.overlaps(*cidr)) {
            return Err(format!(
                "pod CIDR {cidr} of node {name} overlaps {other} of node {whose}; node {name} is \
                 left out: delete the Node object of one of them and let it register again"
            ));
        }
    }
    let used = |c: &&Cidr| own.pod_cidr(c.family()).is_some();
    let cidrs: Vec<Cidr> = info.pod_cidrs.iter().filter(used).copied().collect();
    if !cidrs.is_empty() {
        return Ok(cidrs);
    }
    Err(match info.pod_cidrs.first() {
        None => format!(
            "node {name} has no spec.podCIDRs, so its pods cannot be reached; start \
             kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr"
        ),
        Some(cidr) => format!(
            "node {name} has only {} pods and this node has none of that family; give all nodes \
             pod CIDRs of the same families",
            cidr.family()
        ),
    })
}

fn road(
    inputs: &Inputs,
    own: &NodeInfo,
    name: &NodeName,
    info: &NodeInfo,
    cidrs: &[Cidr],
) -> Result<PeerRoad, String> {
    let direct = || direct(inputs, own, name, info, cidrs);
    match inputs.config.road {
        Road::Direct => direct(),
        Road::Vxlan => vxlan(inputs, own, name, info),
        Road::Auto => direct().or_else(|_| vxlan(inputs, own, name, info)),
    }
}

/// How the node sends to a peer's address.
fn path<'a>(
    inputs: &'a Inputs,
    own: &NodeInfo,
    name: &NodeName,
    to: IpAddr,
) -> Result<&'a Path, String> {
    if own.addresses.contains(&to) {
        return Err(format!(
            "node {name} has the InternalIP {to}, which is this node's own; delete the Node object \
             that is out of date"
        ));
    }
    inputs.facts.paths.get(&to).ok_or_else(|| {
        format!("no route to node {name} at {to}; check the node's network and its InternalIP")
    })
}

fn direct(
    inputs: &Inputs,
    own: &NodeInfo,
    name: &NodeName,
    info: &NodeInfo,
    cidrs: &[Cidr],
) -> Result<PeerRoad, String> {
    let mut ways = BTreeMap::new();
    for family in cidrs.iter().map(|c| c.family()) {
        if own.address(family).is_none() {
            return Err(format!(
                "this node has {family} pods but no {family} InternalIP: a direct road to node \
                 {name} needs one; add it, or use road vxlan"
            ));
        }
        let to = info.address(family).ok_or_else(|| {
            format!(
                "node {name} has {family} pods but no {family} InternalIP: a direct road needs \
                 one; add it, or use road vxlan"
            )
        })?;
        let path = path(inputs, own, name, to)?;
        if !path.on_link {
            return Err(format!(
                "node {name} at {to} is behind a router: a direct road needs it on the same link; \
                 use road auto or vxlan"
            ));
        }
        ways.insert(family, (to, path.dev.clone()));
    }
    Ok(PeerRoad::Direct(ways))
}

fn vxlan(
    inputs: &Inputs,
    own: &NodeInfo,
    name: &NodeName,
    info: &NodeInfo,
) -> Result<PeerRoad, String> {
    let family = outer_family(own)
        .ok_or_else(|| "this node has no InternalIP; set kubelet's --node-ip".to_owned())?;
    let to = info.address(family).ok_or_else(|| {
        format!(
            "node {name} has no {family} InternalIP, and this node's tunnel uses {family}; give \
             all nodes an address of one family"
        )
    })?;
    path(inputs, own, name, to)?;
    Ok(PeerRoad::Vxlan(to))
}

/// Routes, neighbours and forwarding entries to a peer.
pub(crate) fn objects(peer: &Peer, own: &NodeInfo, config: &Config) -> Vec<(String, Object)> {
    let mut all = Vec::new();
    let tunnel = IfName::new(names::VXLAN_DEV).expect("a valid name");
    let mac = vtep_mac(&peer.name);
    for cidr in &peer.cidrs {
        let mut route = Route {
            dst: *cidr,
            table: Route::MAIN,
            metric: Route::default_metric(cidr.family()),
            kind: RouteKind::Unicast,
            dev: None,
            via: None,
            onlink: false,
            src: None,
            scope: RouteScope::Universe,
            protocol: config.route_protocol,
            mtu: None,
            advmss: None,
        };
        match &peer.road {
            PeerRoad::Direct(ways) => {
                let Some((via, dev)) = ways.get(&cidr.family()) else { continue };
                route.via = Some(*via);
                route.dev = Some(dev.clone());
                all.push((format!("pods of {} by its address", peer.name), Object::Route(route)));
            }
            PeerRoad::Vxlan(_) => {
                let gateway = cidr.gateway();
                route.via = Some(gateway);
                route.dev = Some(tunnel.clone());
                route.onlink = true;
                route.src = own.pod_cidr(cidr.family()).map(Cidr::gateway);
                all.push((
                    format!("pods of {} through the tunnel", peer.name),
                    Object::Route(route),
                ));
                let neigh = Neigh {
                    dev: tunnel.clone(),
                    ip: gateway,
                    mac: Some(mac),
                    proxy: false,
                    permanent: true,
                };
                all.push((format!("the tunnel's end on {}", peer.name), Object::Neigh(neigh)));
            }
        }
    }
    if let PeerRoad::Vxlan(to) = peer.road {
        let fdb = Fdb { dev: tunnel, mac, dst: Some(to), permanent: true };
        let why = format!("packets for the tunnel's end on {} go to {to}", peer.name);
        all.push((why, Object::Fdb(fdb)));
    }
    all
}
