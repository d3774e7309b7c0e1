//! Routes.

use std::net::IpAddr;

use causeway_model::{Route, RouteKind, RouteScope};
use causeway_types::{Cidr, Family, Mtu};
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia,
};

use super::read::{self, Names};
use super::{address_family, request};
use crate::sock::{CREATE, EXCL, REPLACE, Reply, Request, attributes};

/// `struct rtmsg`.
const HEADER: usize = 12;
/// `RTAX_MTU`.
const METRIC_MTU: u16 = 2;
/// `RTAX_ADVMSS`.
const METRIC_ADVMSS: u16 = 8;
/// `RTM_F_CLONED`: an entry of the cache.
const CLONED: u32 = 0x200;
/// `RTA_NH_ID`.
const NEXTHOP_ID: u16 = 30;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
/// Stands for what the model does not say (several next hops, an encapsulation): a unicast route
/// under its own key that never equals one of ours.
const OTHER_UNICAST: RouteKind = RouteKind::Other(libc::RTN_UNICAST);

/// The request for a dump of one family's routes: of one table, or of all.
pub(crate) fn dump(family: Family, table: Option<u32>) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.attributes.extend(table.map(RouteAttribute::Table));
    request(libc::RTM_GETROUTE, &message, 0)
}

/// The request that adds a route.
pub(crate) fn create(route: &Route, index: Option<u32>) -> Request {
    request(libc::RTM_NEWROUTE, &whole(route, index), CREATE | EXCL)
}

/// The request that puts a route in place of another of the same destination, table and metric,
/// with no moment between them at which neither is there.
pub(crate) fn change(route: &Route, index: Option<u32>) -> Request {
    request(libc::RTM_NEWROUTE, &whole(route, index), CREATE | REPLACE)
}

/// The request that removes a route, and only one that leads as this one does and has its
/// protocol.
pub(crate) fn remove(route: &Route, index: Option<u32>) -> Request {
    let mut message = whole(route, index);
    // Anywhere, so that a scope that the kernel chose does not bar the way.
    message.header.scope = libc::RT_SCOPE_NOWHERE.into();
    message.header.flags = RouteFlags::empty();
    message
        .attributes
        .retain(|a| !matches!(a, RouteAttribute::Metrics(_) | RouteAttribute::PrefSource(_)));
    request(libc::RTM_DELROUTE, &message, 0)
}

pub(crate) fn address(addr: IpAddr) -> RouteAddress {
    match addr {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

fn whole(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = address_family(route.family());
    header.destination_prefix_length = route.dst.prefix_len();
    header.protocol = route.protocol.into();
    header.kind = kind_number(route.kind).into();
    header.scope = scope_number(route).into();
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    match u8::try_from(route.table) {
        Ok(table) => header.table = table,
        Err(_) => attributes.push(RouteAttribute::Table(route.table)),
    }
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(address(route.dst.addr())));
    }
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(index.map(RouteAttribute::Oif));
    attributes.extend(route.via.map(|via| gateway(route.family(), via)));
    attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(address(src))));
    let mtu = route.mtu.map(|mtu| RouteMetric::Mtu(mtu.get()));
    let metrics: Vec<RouteMetric> =
        mtu.into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// A gateway of the other family goes by an attribute of its own (RFC 5549 routes).
fn gateway(family: Family, via: IpAddr) -> RouteAttribute {
    match via {
        IpAddr::V6(a) if family == Family::V4 => RouteAttribute::Via(RouteVia::Inet6(a)),
        via => RouteAttribute::Gateway(address(via)),
    }
}

fn kind_number(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => libc::RTN_UNICAST,
        RouteKind::Unreachable => libc::RTN_UNREACHABLE,
        RouteKind::Other(number) => number,
    }
}

/// IPv6 has no scopes: the kernel takes any and shows 0.
fn scope_number(route: &Route) -> u8 {
    match route.scope {
        _ if route.family() == Family::V6 => libc::RT_SCOPE_UNIVERSE,
        RouteScope::Universe => libc::RT_SCOPE_UNIVERSE,
        RouteScope::Link => libc::RT_SCOPE_LINK,
        RouteScope::Other(number) => number,
    }
}

/// Reads a route message. `None` for what is not a route of the kind that an administrator sets:
/// local, broadcast and multicast entries, the cache, and routes that also ask for a source
/// prefix or a type of service, because those never stand in the way of one that does not.
pub(crate) fn decode(reply: Reply<'_>, names: &Names) -> Option<Route> {
    let header = reply.body.get(..HEADER)?;
    let family = read::family(header)?;
    let [_, dst_len, src_len, tos, table, protocol, scope, kind] = *header.first_chunk()?;
    let flags = read::number_at(header, 8)?;
    let shown = matches!(kind, libc::RTN_UNICAST) || kind > libc::RTN_MULTICAST;
    if !shown || src_len != 0 || tos != 0 || flags & CLONED != 0 {
        return None;
    }
    let mut route = Route {
        dst: Cidr::new(IpNet::new(family.unspecified(), 0).ok()?).ok()?,
        table: u32::from(table),
        metric: 0,
        kind: match kind {
            libc::RTN_UNICAST => RouteKind::Unicast,
            libc::RTN_UNREACHABLE => RouteKind::Unreachable,
            other => RouteKind::Other(other),
        },
        dev: None,
        via: None,
        onlink: flags & ONLINK != 0,
        src: None,
        scope: match scope {
            libc::RT_SCOPE_UNIVERSE => RouteScope::Universe,
            libc::RT_SCOPE_LINK => RouteScope::Link,
            other => RouteScope::Other(other),
        },
        protocol,
        mtu: None,
        advmss: None,
    };
    let mut dst = family.unspecified();
    for (attribute, value) in attributes(&reply.body[HEADER..]) {
        match attribute {
            libc::RTA_DST => dst = read::ip(value)?,
            libc::RTA_TABLE => route.table = read::number(value)?,
            libc::RTA_PRIORITY => route.metric = read::number(value)?,
            libc::RTA_OIF => route.dev = names.get(&read::number(value)?).cloned(),
            libc::RTA_GATEWAY => route.via = read::ip(value),
            libc::RTA_VIA => route.via = value.get(2..).and_then(read::ip),
            libc::RTA_PREFSRC => route.src = read::ip(value),
            libc::RTA_METRICS => {
                route.mtu = decode_mtu(value);
                route.advmss = metric(value, METRIC_ADVMSS);
            }
            libc::RTA_MULTIPATH | NEXTHOP_ID | libc::RTA_ENCAP
                if route.kind == RouteKind::Unicast =>
            {
                route.kind = OTHER_UNICAST;
            }
            _ => {}
        }
    }
    if route.kind == RouteKind::Unreachable {
        // IPv6 hangs such routes on the loopback device; they send nothing there.
        route.dev = None;
    }
    route.dst = Cidr::of(IpNet::new(dst, dst_len).ok()?);
    Some(route)
}

/// The MTU among a route's metrics.
pub(crate) fn decode_mtu(metrics: &[u8]) -> Option<Mtu> {
    metric(metrics, METRIC_MTU).and_then(|mtu| Mtu::new(mtu).ok())
}

/// One of a route's metrics.
fn metric(metrics: &[u8], kind: u16) -> Option<u32> {
    let found = attributes(metrics).find(|(k, _)| *k == kind);
    found.and_then(|(_, value)| read::number(value))
}
