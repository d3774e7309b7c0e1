//! What a pod's interface needs, on the node and inside the pod. The plugin makes exactly these
//! objects; the agent keeps those of the node.

use std::net::IpAddr;

use causeway_model::{
    Addr, Desired, Fdb, Link, LinkKind, Neigh, Object, Owner, PortFlags, Route, RouteKind,
    RouteScope, Sysctl,
};
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, IfName, Mac};

use crate::guard;

/// What the node knows beyond the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodContext {
    /// The agent serves the pod's network: guard, isolated port, static entries.
    pub served: bool,
    /// A packet may leave by the port it came from (unserved bridges, `hairpinMode`).
    pub hairpin: bool,
    /// The number that marks our routes.
    pub route_protocol: u8,
}

/// The gateway inside a routed pod: link-local, the same in every pod, and known by a permanent
/// neighbour entry, so that nobody has to answer for it.
pub fn routed_gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([169, 254, 1, 1]),
        Family::V6 => IpAddr::from([0xfe80u16, 0, 0, 0, 0, 0, 0, 1]),
    }
}

/// MAC of the bridge of a node: derived, so that the plugin can make it before the agent and a
/// pod's permanent neighbour entry for its gateway stays right.
pub fn bridge_mac(bridge: &IfName, gateways: &[IpAddr]) -> Mac {
    let gateways: Vec<String> = gateways.iter().map(IpAddr::to_string).collect();
    Mac::derived(&format!("bridge/{bridge}/{}", gateways.join(",")))
}

/// What the node's namespace holds for a pod.
pub fn host_objects(record: &AttachmentRecord, context: &PodContext) -> Desired {
    let mut d = Desired::default();
    let owner = Owner::Pod(record.owner_name());
    let pod = record.owner_name();
    let mut add = |why: String, object: Object| {
        d.add(owner.clone(), why, object);
    };
    add(format!("the node's end of the veth pair of {pod}"), Object::Link(veth(record, context)));
    match record.attach {
        Attach::Routed => routed_host(record, context, &pod, &mut add),
        Attach::Bridge if context.served => served_bridge(record, context, &pod, &mut add),
        Attach::Bridge => {}
    }
    if context.served || record.attach == Attach::Routed {
        add(
            format!("{pod} sends only with its own addresses"),
            Object::Table(guard::table(record)),
        );
    }
    if let Some(except) = &record.masquerade_except {
        let table = guard::masquerade(record, except);
        add(format!("{pod} reaches the outside world by the node's address"), Object::Table(table));
    }
    d
}

/// Drops what a pod sends from another MAC than its own: for bridges that nobody serves, whose pods
/// have no guard (`macspoofchk` of type `bridge`).
pub fn mac_check(record: &AttachmentRecord) -> Object {
    Object::Table(guard::mac_check(record))
}

fn veth(record: &AttachmentRecord, context: &PodContext) -> Link {
    let kind = LinkKind::Veth {
        peer: Some(record.ifname.clone()),
        peer_mac: Some(record.mac),
        peer_netns: Some(record.netns.clone()),
    };
    let mut link = Link::up(record.host_ifname.clone(), kind);
    link.mtu = Some(record.mtu);
    link.mac = Some(record.host_mac);
    if record.attach == Attach::Bridge {
        link.master = record.bridge.clone();
        link.port = Some(match context.served {
            true => PortFlags { hairpin: context.hairpin, ..PortFlags::SERVED },
            false => PortFlags { hairpin: context.hairpin, ..PortFlags::DEFAULT },
        });
    }
    link
}

fn routed_host(
    record: &AttachmentRecord,
    context: &PodContext,
    pod: &str,
    add: &mut impl FnMut(String, Object),
) {
    let dev = &record.host_ifname;
    for addr in &record.addresses {
        let ip = addr.addr();
        let route = host_route(dev, Cidr::host(ip), None, context.route_protocol);
        add(format!("{pod} is behind its own interface"), Object::Route(route));
        add(format!("{pod} needs no ARP or neighbour discovery"), neigh(dev, ip, record.mac));
    }
    if record.addrs_of(Family::V6).next().is_some() {
        let path = format!("net/ipv6/conf/{dev}/accept_ra");
        add(format!("router advertisements from {pod} change nothing"), sysctl(path, "0"));
    }
}

/// The node sends to a pod by its port, past the bridge. Where br_netfilter hands bridged packets to
/// iptables, a packet that a Service turned to a pod of this node would else be bridged to its port
/// (`br_nf_pre_routing_finish`: the new way leads out by the same bridge), and ports are isolated.
fn served_bridge(
    record: &AttachmentRecord,
    context: &PodContext,
    pod: &str,
    add: &mut impl FnMut(String, Object),
) {
    let Some(bridge) = &record.bridge else { return };
    let dev = &record.host_ifname;
    let fdb = Fdb { dev: dev.clone(), mac: record.mac, dst: None, permanent: true };
    add(format!("the bridge knows the port of {pod} without learning"), Object::Fdb(fdb));
    for addr in &record.addresses {
        let ip = addr.addr();
        // The pod sees the node by the bridge's address, whichever way it sends.
        let own = Cidr::of(*addr).gateway();
        let route = Route {
            src: record.gateways.contains(&own).then_some(own),
            ..host_route(dev, Cidr::host(ip), None, context.route_protocol)
        };
        add(format!("{pod} is behind its own port"), Object::Route(route));
        add(format!("the node knows {pod} without asking"), neigh(dev, ip, record.mac));
        // What a pod asks on the bridge would make an entry there that counts against gc_thresh.
        add(format!("the node learns nothing of {pod}"), neigh(bridge, ip, record.mac));
        if Family::of(ip) == Family::V6 {
            let proxy = Neigh { dev: bridge.clone(), ip, mac: None, proxy: true, permanent: true };
            let why =
                format!("the node answers neighbour solicitations for {pod}: ports are isolated");
            add(why, Object::Neigh(proxy));
        }
    }
}

/// What the pod's namespace holds. With the MAC of its bridge the gateway is a permanent neighbour, so
/// that nobody else on the bridge can answer for it.
pub fn pod_objects(record: &AttachmentRecord, bridge_mac: Option<Mac>) -> Desired {
    let mut d = Desired::default();
    let owner = Owner::Pod(record.owner_name());
    let mut add = |why: &str, object: Object| {
        d.add(owner.clone(), why, object);
    };
    let dev = &record.ifname;
    let kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
    let mut link = Link::up(dev.clone(), kind);
    link.mac = Some(record.mac);
    link.mtu = Some(record.mtu);
    add("the pod's interface", Object::Link(link));
    for addr in &record.addresses {
        let addr = Addr::new(dev.clone(), *addr);
        add("the pod's address", Object::Addr(addr));
    }
    for &gateway in &record.gateways {
        let family = Family::of(gateway);
        if record.addrs_of(family).next().is_none() {
            continue;
        }
        match (record.attach, bridge_mac) {
            (Attach::Routed, _) => {
                let why = "the node answers under this address for everything";
                add(why, neigh(dev, gateway, record.host_mac));
                if family == Family::V4 {
                    let link = host_route(dev, Cidr::host(gateway), None, Pod::PROTOCOL);
                    add("the gateway is on the link", Object::Route(link));
                }
            }
            (Attach::Bridge, Some(mac)) => {
                add("nobody else can answer for the gateway", neigh(dev, gateway, mac));
            }
            (Attach::Bridge, None) => {}
        }
        let route = host_route(dev, Cidr::of(family.default_route()), Some(gateway), Pod::PROTOCOL);
        add("everything else goes by the gateway", Object::Route(route));
    }
    d
}

struct Pod;
impl Pod {
    /// RTPROT_BOOT: what `ip route add` writes; inside a pod the routes are the pod's.
    const PROTOCOL: u8 = 3;
}

fn host_route(dev: &IfName, dst: Cidr, via: Option<IpAddr>, protocol: u8) -> Route {
    Route {
        dst,
        table: Route::MAIN,
        metric: Route::default_metric(dst.family()),
        kind: RouteKind::Unicast,
        dev: Some(dev.clone()),
        via,
        onlink: false,
        src: None,
        scope: match (dst.family(), via) {
            (Family::V4, None) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        protocol,
        mtu: None,
        advmss: None,
    }
}

fn neigh(dev: &IfName, ip: IpAddr, mac: Mac) -> Object {
    Object::Neigh(Neigh { dev: dev.clone(), ip, mac: Some(mac), proxy: false, permanent: true })
}

fn sysctl(path: String, value: &str) -> Object {
    Object::Sysctl(Sysctl { path, value: value.to_owned() })
}
