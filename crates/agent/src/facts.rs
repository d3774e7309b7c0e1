//! What the node is, as far as desired state depends on it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_desired::input::{ClusterView, Config, NodeFacts, TakenOver};
use causeway_model::{Key, Object, Observed, Route};
use causeway_types::{Family, IfName, NodeName};

use crate::marks;
use crate::port::Port;

/// Who made a route: router advertisements (RTPROT_RA in `linux/rtnetlink.h`).
const RTPROT_RA: u8 = 9;

/// The part of an observation that is not of our making. Facts depend on nothing else, so that
/// they need not be found anew when only our own objects changed.
pub(crate) fn underlay(seen: &Observed, config: &Config, taken: Option<&TakenOver>) -> Observed {
    let own = |dev: &IfName| {
        dev.as_str().starts_with("cw") || *dev == config.bridge || marks::is_tunnel(taken, dev)
    };
    let foreign = |object: &Object| match object {
        Object::Link(l) => !own(&l.name),
        Object::Addr(a) => !own(&a.dev),
        Object::Route(r) => r.protocol != config.route_protocol && !r.dev.as_ref().is_some_and(own),
        _ => false,
    };
    seen.iter().map(|(_, object)| object).filter(|o| foreign(o)).cloned().collect()
}

/// Everything but the paths to peers.
pub(crate) fn gather(underlay: &Observed, config: &Config, port: &mut impl Port) -> NodeFacts {
    let mut facts = NodeFacts::default();
    let addresses = underlay.iter().filter_map(|(_, object)| match object {
        Object::Addr(a) if usable(a.addr.addr()) => Some((a.dev.clone(), a.addr)),
        _ => None,
    });
    facts.addresses.extend(addresses);
    for (dev, _) in &facts.addresses {
        if let Some(Object::Link(link)) = underlay.get(&Key::Link(dev.clone())) {
            facts.mtus.extend(link.mtu.map(|mtu| (dev.clone(), mtu)));
        }
    }
    facts.accept_ra = listening(underlay, port);
    let nf_call = port.parameter("net/bridge/bridge-nf-call-iptables");
    facts.bridge_nf_call = nf_call.map(|value| value != "0");
    facts.tunnels_of_others = flannels(underlay, config);
    facts
}

/// Devices of flannel with our network identifier, which it has in their names.
fn flannels(underlay: &Observed, config: &Config) -> Vec<IfName> {
    let vni = config.vni.get();
    let names = [format!("flannel.{vni}"), format!("flannel-v6.{vni}")];
    let named = names.iter().filter_map(|name| name.parse().ok());
    named.filter(|name: &IfName| underlay.get(&Key::Link(name.clone())).is_some()).collect()
}

/// Interfaces that listen to routers, and would not any more once the node forwards: those with a
/// route that an advertisement brought, and, while nobody has turned forwarding on yet, the uplinks,
/// whose first advertisement may be still to come.
fn listening(underlay: &Observed, port: &mut impl Port) -> Vec<IfName> {
    let routes = || {
        underlay.iter().filter_map(|(_, object)| match object {
            Object::Route(r) => Some((r, r.dev.clone()?)),
            _ => None,
        })
    };
    let brought = |r: &Route| r.protocol == RTPROT_RA && r.family() == Family::V6;
    let advertised: BTreeSet<IfName> =
        routes().filter(|(r, _)| brought(r)).map(|(_, dev)| dev).collect();
    let uplinks = routes().filter(|(r, _)| r.dst.prefix_len() == 0).map(|(_, dev)| dev);
    let all: BTreeSet<IfName> = advertised.iter().cloned().chain(uplinks).collect();
    let unforwarded = port.parameter("net/ipv6/conf/all/forwarding").as_deref() == Some("0");
    all.into_iter()
        .filter(|dev| match port.parameter(&format!("net/ipv6/conf/{dev}/accept_ra")).as_deref() {
            // What we set ourselves: the interface has to stay in the list.
            Some("2") => true,
            Some("1") => unforwarded || advertised.contains(dev),
            _ => false,
        })
        .collect()
}

/// True for addresses by which other nodes can reach this one.
fn usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

/// Addresses of all other nodes.
pub(crate) fn peer_addresses(view: &ClusterView, me: &NodeName) -> BTreeSet<IpAddr> {
    let others = view.nodes.iter().filter(|(name, _)| *name != me);
    let ends = |info: &causeway_desired::input::NodeInfo| {
        info.flannel.iter().map(|end| end.address).collect::<Vec<_>>()
    };
    others.flat_map(|(_, info)| [info.addresses.clone(), ends(info)].concat()).collect()
}

/// Finds the paths that are missing and drops those that are no longer asked for. True when
/// anything came out different; a path that could not be asked for is in `problems`.
pub(crate) fn find_paths(
    facts: &mut NodeFacts,
    asked: &mut BTreeSet<IpAddr>,
    peers: &BTreeSet<IpAddr>,
    port: &mut impl Port,
    problems: &mut Vec<String>,
) -> bool {
    let before = facts.paths.len();
    facts.paths.retain(|address, _| peers.contains(address));
    asked.retain(|address| peers.contains(address));
    let mut changed = facts.paths.len() != before;
    for address in peers {
        if asked.contains(address) {
            continue;
        }
        match port.path(*address) {
            Ok(path) => {
                asked.insert(*address);
                if let Some(path) = path {
                    changed = true;
                    facts.paths.insert(*address, path);
                }
            }
            Err(error) => problems.push(format!("path to {address}: {error}")),
        }
    }
    changed
}
