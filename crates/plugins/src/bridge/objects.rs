//! What an attachment of type `bridge` puts into the two namespaces. Pure.

use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, Route as CniRoute};
use causeway_desired::pod::{PodContext, host_objects, mac_check};
use causeway_model::{
    Addr, Desired, Link, LinkKind, Neigh, Object, Owner, PortFlags, Route, RouteKind, RouteScope,
    Sysctl,
};
use causeway_types::state::AttachmentRecord;
use causeway_types::{Cidr, Family, IfName, Mac, Mtu, names};
use ipnet::IpNet;

use super::conf::BridgeConf;
use crate::attachment;

/// `RTPROT_BOOT`: what routes carry that were set up by hand, and by the reference plugins.
pub(crate) const PROTO_BOOT: u8 = 3;

/// What the kernel makes of any larger `RTAX_ADVMSS` (`ip_metrics_convert`).
const LARGEST_SEGMENT: u32 = 65535 - 40;

/// Why there is a check of MACs.
pub(crate) const MAC_CHECK: &str = "the pod sends only with its own MAC";

/// The bridge as an attachment needs it.
#[derive(Clone, Debug)]
pub(crate) struct Bridge<'a> {
    /// The configuration.
    pub conf: &'a BridgeConf,
    /// Its MAC: as found, or the one it is to get.
    pub mac: Mac,
    /// MTU that a new bridge gets; `None`: whatever it has.
    pub mtu: Option<Mtu>,
    /// What carries the gateway's address: the bridge itself, or a port of it in a VLAN.
    pub gateway_dev: IfName,
    /// The gateway addresses, with the length of their networks.
    pub gateways: Vec<IpNet>,
}

/// The port of a bridge behind which the gateway of a VLAN is.
pub(crate) fn gateway_port(gateway_dev: &IfName) -> IfName {
    names::host_veth("gateway", gateway_dev.as_str())
}

impl Bridge<'_> {
    /// The bridge, its gateway addresses and the node's forwarding. These stay when pods go.
    pub(crate) fn objects(&self) -> Desired {
        let mut all = self.alone();
        let dev = &self.conf.bridge;
        let ra = sysctl(Family::V6, dev, "accept_ra", "0");
        all.add(Owner::Node, "pods do not configure the node by router advertisements", ra);
        if let Some([port, inside]) = self.gateway_pair() {
            let ra = sysctl(Family::V6, &inside.name, "accept_ra", "0");
            let why = "the gateway of a VLAN is behind a port of its own";
            for object in [Object::Link(port), Object::Link(inside), ra] {
                all.add(Owner::Node, why, object);
            }
        }
        if self.gateways.iter().any(|g| g.addr().is_ipv6()) {
            // With its first port the bridge gets a link-local address. While the kernel looks for
            // duplicates of that, it solicits no neighbours, and nothing is forwarded to pods.
            let dad = sysctl(Family::V6, &self.gateway_dev, "accept_dad", "0");
            all.add(Owner::Node, "the node forwards to the first pod at once", dad);
        }
        for addr in &self.gateways {
            let forwarding = forwarding(Family::of(addr.addr()));
            let addr = Addr::new(self.gateway_dev.clone(), *addr);
            all.add(Owner::Node, "the gateway of the pods", Object::Addr(addr));
            all.add(Owner::Node, "the node forwards for its pods", forwarding);
        }
        all
    }
}

impl Bridge<'_> {
    /// The bridge without anything on it.
    pub(crate) fn alone(&self) -> Desired {
        let mut all = Desired::default();
        let link = Link::up(self.conf.bridge.clone(), LinkKind::Bridge);
        let link = Link { mac: Some(self.mac), mtu: self.mtu, ..link };
        all.add(Owner::Node, "the bridge that joins the pods of this node", Object::Link(link));
        all
    }

    /// The veth pair of a VLAN's gateway: the bridge's port, and the interface with the address.
    pub(crate) fn gateway_pair(&self) -> Option<[Link; 2]> {
        if self.gateways.is_empty() || self.gateway_dev == self.conf.bridge {
            return None;
        }
        let mac = |end: &str| Mac::derived(&format!("{end}/{}/{}", self.mac, self.gateway_dev));
        let kind = LinkKind::Veth {
            peer: Some(self.gateway_dev.clone()),
            peer_mac: Some(mac("gateway")),
            peer_netns: None,
        };
        let mut port = Link::up(gateway_port(&self.gateway_dev), kind);
        (port.mac, port.master) = (Some(mac("port")), Some(self.conf.bridge.clone()));
        port.mtu = self.mtu;
        let other = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
        Some([port, Link::up(self.gateway_dev.clone(), other)])
    }
}

/// The gateway addresses that the bridge carries.
pub(crate) fn gateway_addrs(conf: &BridgeConf, result: &CniResult) -> Vec<IpNet> {
    let with_gateway = result.ips.iter().filter_map(|ip| Some((ip.address, ip.gateway?)));
    let mut all: Vec<IpNet> = with_gateway
        .filter(|(address, gateway)| {
            conf.is_gateway && Family::of(address.addr()) == Family::of(*gateway)
        })
        .map(|(address, gateway)| IpNet::new_assert(gateway, address.prefix_len()))
        .collect();
    all.dedup();
    all
}

/// An address on the bridge that cannot be there beside a gateway's: another of IPv4, or one of
/// IPv6 whose network shares addresses with the gateway's. The agent puts a gateway for each of the
/// node's ranges on a bridge that it serves: there IPv4 is as IPv6.
pub(crate) fn excludes(gateway: &IpNet, present: &IpNet, served: bool) -> bool {
    if gateway == present {
        return false;
    }
    match (gateway, present) {
        (IpNet::V4(_), IpNet::V4(_)) if !served => true,
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)) => {
            gateway.contains(&present.addr()) || present.contains(&gateway.addr())
        }
        _ => false,
    }
}

/// Fills in what the IPAM plugin left open: the gateway of each address (the first address of
/// its network) where the bridge is to be one, and the default routes to it where asked for.
pub(crate) fn complete(conf: &BridgeConf, mut ipam: CniResult) -> CniResult {
    for ip in ipam.ips.iter_mut().filter(|ip| conf.is_gateway && ip.gateway.is_none()) {
        ip.gateway = Some(Cidr::of(ip.address).gateway());
    }
    if conf.is_default_gateway {
        for family in Family::BOTH {
            let gateway =
                ipam.ips.iter().filter_map(|ip| ip.gateway).find(|g| Family::of(*g) == family);
            let default = family.default_route();
            if gateway.is_some() && !ipam.routes.iter().any(|r| r.dst == default) {
                ipam.routes.push(CniRoute::new(default, gateway));
            }
        }
    }
    if !conf.dns.is_empty() {
        ipam.dns = conf.dns.clone();
    }
    ipam
}

/// What the node's namespace holds for the pod.
pub(crate) fn host(conf: &BridgeConf, record: &AttachmentRecord, served: bool) -> Desired {
    let context = PodContext { served, hairpin: conf.hairpin, ..attachment::context(served) };
    let mut all = host_objects(record, &context);
    if conf.mac_check && !served {
        all.add(Owner::Pod(record.owner_name()), MAC_CHECK, mac_check(record));
    }
    if !conf.isolated {
        return all;
    }
    let mut isolated = Desired::default();
    for (_, entry) in all.iter() {
        let mut entry = entry.clone();
        if let Object::Link(Link { port: Some(port), .. }) = &mut entry.object {
            *port = PortFlags { isolated: true, ..*port };
        }
        isolated.add(entry.owner, entry.why, entry.object);
    }
    isolated
}

/// What a configuration may ask for inside the pod.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inside {
    /// The kernel looks for duplicates of an IPv6 address before it uses it.
    pub dad: bool,
    /// The interface stays down.
    pub down: bool,
}

/// What the pod's namespace holds: the interface up, with addresses and the routes of the
/// configuration. On a served bridge the gateway is a permanent neighbour.
///
/// # Errors
/// Code 7 for routes that make no sense, code 2 for what is not supported.
pub(crate) fn pod(
    inside: Inside,
    record: &AttachmentRecord,
    bridge_mac: Mac,
    served: bool,
    routes: &[CniRoute],
) -> Result<Desired, CniError> {
    let mut all = Desired::default();
    let dev = &record.ifname;
    let mut add = |why: &str, object| {
        all.add(Owner::Pod(record.owner_name()), why, object);
    };
    let kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
    let mut link = Link::up(dev.clone(), kind);
    (link.mtu, link.mac, link.up) = (Some(record.mtu), Some(record.mac), !inside.down);
    add("the pod's interface", Object::Link(link));
    for family in Family::BOTH {
        for (name, value) in settings(family, inside.dad).iter().filter(|_| has(record, family)) {
            add("so that the address is usable at once", sysctl(family, dev, name, value));
        }
    }
    for addr in &record.addresses {
        let addr = Addr { dad: inside.dad, ..Addr::new(dev.clone(), *addr) };
        add("the pod's address", Object::Addr(addr));
    }
    for gateway in record.gateways.iter().filter(|_| served) {
        let (ip, mac) = (*gateway, Some(bridge_mac));
        let neigh = Neigh { dev: dev.clone(), ip, mac, proxy: false, permanent: true };
        add("nobody else can answer for the gateway", Object::Neigh(neigh));
    }
    for route in routes {
        add("a route of the configuration", Object::Route(pod_route(record, route)?));
    }
    Ok(all)
}

fn has(record: &AttachmentRecord, family: Family) -> bool {
    record.addrs_of(family).next().is_some()
}

fn pod_route(record: &AttachmentRecord, route: &CniRoute) -> Result<Route, CniError> {
    let dst = Cidr::new(route.dst)
        .map_err(|e| CniError::invalid_config(format!("key \"ipam.routes\": dst: {e}")))?;
    let advmss = route.advmss.filter(|a| *a != 0);
    if let Some(size) = advmss.filter(|size| *size > LARGEST_SEGMENT) {
        return Err(CniError::invalid_config(format!(
            "key \"ipam.routes\": advmss {size} is more than a packet can hold, {LARGEST_SEGMENT} bytes"
        )));
    }
    let mtu = route.mtu.filter(|m| *m != 0).map(Mtu::new).transpose();
    let mtu = mtu.map_err(|e| CniError::invalid_config(format!("key \"ipam.routes\": {e}")))?;
    let own_gateway = || record.gateways.iter().copied().find(|g| Family::of(*g) == dst.family());
    let via = route.gw.or_else(own_gateway);
    Ok(Route {
        dst,
        table: route.table.filter(|t| *t != 0).unwrap_or(Route::MAIN),
        metric: match route.priority {
            None | Some(0) => Route::default_metric(dst.family()),
            Some(metric) => metric,
        },
        kind: RouteKind::Unicast,
        dev: Some(record.ifname.clone()),
        via,
        onlink: false,
        src: None,
        scope: scope(route.scope, dst.family(), via),
        protocol: PROTO_BOOT,
        mtu,
        advmss,
    })
}

/// IPv6 has no scopes of routes.
fn scope(asked: Option<u8>, family: Family, via: Option<IpAddr>) -> RouteScope {
    match (family, asked, via) {
        (Family::V6, ..) | (Family::V4, Some(0), _) | (Family::V4, None, Some(_)) => {
            RouteScope::Universe
        }
        (Family::V4, Some(253), _) | (Family::V4, None, None) => RouteScope::Link,
        (Family::V4, Some(other), _) => RouteScope::Other(other),
    }
}

/// A parameter of one interface.
pub(crate) fn sysctl(family: Family, dev: &IfName, name: &str, value: &str) -> Object {
    let path = format!("net/{}/conf/{dev}/{name}", family.sysctl_dir());
    Object::Sysctl(Sysctl { path, value: value.to_owned() })
}

/// The switch that makes the node forward packets of a family.
pub(crate) fn forwarding(family: Family) -> Object {
    let path = match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    };
    Object::Sysctl(Sysctl { path: path.to_owned(), value: "1".to_owned() })
}

/// Parameters of the pod's interface. Neighbours learn of the address at once; an IPv6 address is
/// usable at once unless the kernel is to look for duplicates (RFC 4862, 7527), and stays when the
/// interface goes down.
fn settings(family: Family, dad: bool) -> &'static [(&'static str, &'static str)] {
    match (family, dad) {
        (Family::V4, _) => &[("arp_notify", "1")],
        (Family::V6, true) => &[
            ("disable_ipv6", "0"),
            ("enhanced_dad", "1"),
            ("accept_dad", "1"),
            ("keep_addr_on_down", "1"),
            ("ndisc_notify", "1"),
        ],
        (Family::V6, false) => &[
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("keep_addr_on_down", "1"),
            ("ndisc_notify", "1"),
        ],
    }
}

/// The MAC of a new bridge that no agent knows: fixed from birth, so that it does not follow its
/// ports, and of this boot and namespace alone, because such bridges may be joined by a cable.
pub(crate) fn own_bridge_mac(boot_id: &str, bridge: &IfName) -> Mac {
    use std::os::unix::fs::MetadataExt;
    let namespace = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |m| m.ino());
    Mac::derived(&format!("bridge/{boot_id}/{namespace}/{bridge}"))
}
