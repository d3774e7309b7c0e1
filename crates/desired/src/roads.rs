//! Which way leads to each peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::{Fdb, Neigh, Object, Owner, Route, RouteKind, RouteScope};
use causeway_types::{Cidr, Family, IfName, Mac, NodeName};

use crate::input::{Config, Inputs, NodeInfo, Path, Road};
use crate::node::Problem;
use crate::ranges::{self, Ranges};
use crate::tunnels::{Tunnels, vtep_mac};

/// The way to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerRoad {
    /// By the peer's address, a family each.
    Direct(BTreeMap<Family, (IpAddr, IfName)>),
    /// Through a tunnel, a family of pods each.
    Vxlan(BTreeMap<Family, Through>),
}

/// The way of one family of pods through a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Through {
    /// Our device.
    pub(crate) dev: IfName,
    /// The MAC of the peer's.
    pub(crate) mac: Mac,
    /// The peer's outer address.
    pub(crate) to: IpAddr,
}

/// A peer with its subnets and the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: NodeName,
    /// Its pod subnets.
    pub(crate) cidrs: Vec<Cidr>,
    /// What its pods have addresses of besides.
    pub(crate) claims: Vec<Cidr>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) road: PeerRoad,
}

/// The family of outer packets: IPv4 where this node has it. One for all peers that are not flannel's,
/// because a VXLAN device has one local address.
pub(crate) fn outer_family(me: &NodeInfo) -> Option<Family> {
    Family::BOTH.into_iter().find(|f| me.address(*f).is_some())
}

/// All peers that can be reached, and what is wrong with the others: every peer has one road or
/// one problem. `own` holds only addresses that are on this node's interfaces.
pub(crate) fn peers(
    inputs: &Inputs,
    me: &NodeName,
    own: &NodeInfo,
    ranges: &Ranges,
    tunnels: &Tunnels,
) -> (Vec<Peer>, Vec<Problem>) {
    let ground = Ground { inputs, own, tunnels };
    let mut claimed: BTreeSet<Cidr> = ranges.claims().into_iter().collect();
    let mut peers: Vec<Peer> = Vec::new();
    let mut problems = Vec::new();
    let own_cidrs = own.pod_cidrs.iter().map(|cidr| (*cidr, me.clone())).collect();
    let mut taken = Taken { own: own_cidrs, peers: BTreeMap::new() };
    for (name, info) in inputs.view.nodes.iter().filter(|(name, _)| *name != me) {
        let problem = |message: String, told_there: bool| {
            let owner = Owner::Peer(name.to_string());
            Problem { told_there, ..Problem::new(owner, message) }
        };
        problems.extend(info.problems.iter().map(|p| problem(p.clone(), true)));
        if let Some((message, whose)) = taken.clash(name, info) {
            problems.push(problem(message, whose != *me));
            continue;
        }
        let way = subnets(own, name, info)
            .and_then(|cidrs| Ok((ground.road(name, info, &cidrs)?, cidrs)));
        match way {
            Ok((road, cidrs)) => {
                cidrs.iter().for_each(|cidr| taken.add(*cidr, name));
                let addresses = info.addresses.clone();
                let mut claims = ranges::routed_claims(inputs, own, info);
                // Whose it is cannot be told where two say so: it stays where it is, else with the first.
                claims.retain(|c| claimed.insert(*c));
                peers.push(Peer { name: name.clone(), cidrs, claims, addresses, road });
            }
            Err(message) => problems.push(problem(message, info.pod_cidrs.is_empty())),
        }
    }
    (peers, problems)
}

/// Pod subnets that have a node, none of which overlaps another.
#[derive(Debug)]
struct Taken {
    /// This node's.
    own: Vec<(Cidr, NodeName)>,
    /// Peers', by their first address.
    peers: BTreeMap<IpAddr, (Cidr, NodeName)>,
}

impl Taken {
    fn add(&mut self, cidr: Cidr, whose: &NodeName) {
        self.peers.insert(cidr.net().network(), (cidr, whose.clone()));
    }

    /// Which of them overlaps a subnet of a peer, in words, and whose it is: this node's before others.
    fn clash(&self, name: &NodeName, info: &NodeInfo) -> Option<(String, NodeName)> {
        let own = info.pod_cidrs.iter().find_map(|cidr| {
            let mine = self.own.iter().find(|(own, _)| own.overlaps(*cidr))?;
            Some((cidr, mine))
        });
        let (cidr, (other, whose)) = own.or_else(|| {
            info.pod_cidrs.iter().find_map(|cidr| {
                // What overlaps begins within the subnet, or is the last that begins before it.
                let (_, taken) = self.peers.range(..=cidr.net().broadcast()).next_back()?;
                taken.0.overlaps(*cidr).then_some((cidr, taken))
            })
        })?;
        let message = format!(
            "pod CIDR {cidr} of node {name} overlaps {other} of node {whose}; node {name} is left out: \
             delete the Node object of one of them and let it register again"
        );
        Some((message, whose.clone()))
    }
}

/// The peer's pod subnets, of the families that this node's pods use.
fn subnets(own: &NodeInfo, name: &NodeName, info: &NodeInfo) -> Result<Vec<Cidr>, String> {
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

/// What roads depend on.
struct Ground<'a> {
    inputs: &'a Inputs,
    own: &'a NodeInfo,
    tunnels: &'a Tunnels,
}

impl Ground<'_> {
    fn road(&self, name: &NodeName, info: &NodeInfo, cidrs: &[Cidr]) -> Result<PeerRoad, String> {
        let direct = || direct(self.inputs, self.own, name, info, cidrs);
        let vni = self.inputs.config.vni;
        // flannel's node takes from its tunnel what comes from our pods, and sends there.
        let by_tunnel = info.flannel.iter().any(|end| end.vni == vni);
        match self.inputs.config.road {
            Road::Direct => direct(),
            Road::Auto if !by_tunnel => direct().or_else(|_| self.vxlan(name, info, cidrs)),
            Road::Vxlan | Road::Auto => self.vxlan(name, info, cidrs),
        }
    }

    fn vxlan(&self, name: &NodeName, info: &NodeInfo, cidrs: &[Cidr]) -> Result<PeerRoad, String> {
        let ways = cidrs.iter().map(|c| Ok((c.family(), self.through(name, info, c.family())?)));
        ways.collect::<Result<_, String>>().map(PeerRoad::Vxlan)
    }

    /// The way of a family of pods: as flannel does where the peer's annotations say so, else by the one
    /// device that carries both.
    fn through(&self, name: &NodeName, info: &NodeInfo, inner: Family) -> Result<Through, String> {
        let vni = self.inputs.config.vni;
        if let (Some(end), Some(ours)) = (info.flannel_end(inner, vni), self.tunnels.over(inner)) {
            path(self.inputs, self.own, name, end.address)?;
            return Ok(Through { dev: ours.dev.clone(), mac: end.mac, to: end.address });
        }
        let ours = self
            .tunnels
            .main()
            .ok_or_else(|| "this node has no InternalIP; set kubelet's --node-ip".to_owned())?;
        let family = ours.outer();
        let end = info.flannel_end(family, vni);
        let to = end.map(|end| end.address).or(info.address(family)).ok_or_else(|| {
            format!(
                "node {name} has no {family} InternalIP, and this node's tunnel uses {family}; give \
                 all nodes an address of one family"
            )
        })?;
        path(self.inputs, self.own, name, to)?;
        let mac = end.map_or_else(|| vtep_mac(name), |end| end.mac);
        Ok(Through { dev: ours.dev.clone(), mac, to })
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

/// Routes, neighbours and forwarding entries to a peer.
pub(crate) fn objects(peer: &Peer, own: &NodeInfo, config: &Config) -> Vec<(String, Object)> {
    let mut all = Vec::new();
    for cidr in peer.cidrs.iter().chain(&peer.claims) {
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
            PeerRoad::Vxlan(ways) => {
                // One neighbour a family, for all its ranges.
                let mut subnets = peer.cidrs.iter();
                let Some(subnet) = subnets.find(|c| c.family() == cidr.family()) else { continue };
                let Some(way) = ways.get(&cidr.family()) else { continue };
                let gateway = subnet.gateway();
                route.via = Some(gateway);
                route.dev = Some(way.dev.clone());
                route.onlink = true;
                route.src = own.pod_cidr(cidr.family()).map(Cidr::gateway);
                all.push((
                    format!("pods of {} through the tunnel", peer.name),
                    Object::Route(route),
                ));
                if cidr != subnet {
                    continue;
                }
                let (dev, to) = (way.dev.clone(), way.to);
                let mac = Some(way.mac);
                let neigh =
                    Neigh { dev: dev.clone(), ip: gateway, mac, proxy: false, permanent: true };
                all.push((format!("the tunnel's end on {}", peer.name), Object::Neigh(neigh)));
                let fdb = Fdb { dev, mac: way.mac, dst: Some(to), permanent: true };
                let why = format!("packets for the tunnel's end on {} go to {to}", peer.name);
                all.push((why, Object::Fdb(fdb)));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnet() -> impl Strategy<Value = Cidr> {
        let v4 = (0u32..64, 24u8..31).prop_map(|(n, len)| format!("10.0.0.{}/{len}", n * 4));
        let v6 = (0u32..64, 120u8..127).prop_map(|(n, len)| format!("fd00::{:x}/{len}", n * 4));
        let net = |text: String| text.parse::<ipnet::IpNet>().unwrap().trunc();
        prop_oneof![v4, v6].prop_map(move |text| net(text).to_string().parse().unwrap())
    }

    proptest! {
        #[test]
        fn a_clash_is_found_as_by_looking_at_all(
            own in subnet(),
            subnets in proptest::collection::vec(subnet(), 1..12),
        ) {
            let node = |n: usize| format!("n{n:02}").parse::<NodeName>().unwrap();
            let me: NodeName = "me".parse().unwrap();
            let mut taken = Taken { own: vec![(own, me.clone())], peers: BTreeMap::new() };
            let mut all = vec![(own, me.clone())];
            for (n, cidr) in subnets.into_iter().enumerate() {
                let info = NodeInfo { pod_cidrs: vec![cidr], ..NodeInfo::default() };
                let naive = all.iter().any(|(other, _)| other.overlaps(cidr));
                let found = taken.clash(&node(n), &info);
                prop_assert_eq!(found.is_some(), naive);
                prop_assert_eq!(found.is_some_and(|(_, whose)| whose == me), own.overlaps(cidr));
                if !naive {
                    taken.add(cidr, &node(n));
                    all.push((cidr, node(n)));
                }
            }
        }
    }
}
