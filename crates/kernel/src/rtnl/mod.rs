//! Model objects to and from rtnetlink messages.
//!
//! Requests are built from the typed messages of `netlink-packet-route`. Answers are read
//! attribute by attribute, and only those that the model knows: an attribute that a newer kernel
//! adds, or gives another length, cannot make a whole dump unreadable.

pub(crate) mod addr;
pub(crate) mod fdb;
pub(crate) mod link;
pub(crate) mod neigh;
pub(crate) mod read;
pub(crate) mod route;

use std::net::IpAddr;

use causeway_types::Family;
use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;

use crate::sock::Request;

/// A request of a kind (`RTM_*`) with its typed message. Not by the type of all messages: whoever uses
/// that carries the code of those that nobody sends.
pub(crate) fn request(kind: u16, message: &impl Emitable, flags: u16) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request::new(kind, flags, body)
}

/// `AF_INET` or `AF_INET6`.
pub(crate) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family of an address as netlink says it.
pub(crate) fn family_of(addr: IpAddr) -> AddressFamily {
    address_family(Family::of(addr))
}

#[cfg(test)]
mod tests {
    use causeway_model::{
        Addr, Fdb, Link, LinkKind, Neigh, PortFlags, Route, RouteKind, RouteScope, Vxlan,
    };
    use causeway_types::{IfName, Mac, Mtu, Vni};

    use super::*;
    use crate::rtnl::read::Names;
    use crate::sock::Reply;

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    /// One request of each kind, for an object with everything in it. What we send has the form of
    /// what the kernel sends.
    fn samples() -> Vec<Request> {
        let vxlan = Vxlan { vni: Vni::DEFAULT, port: 8472, local: "fd09::1".parse().unwrap() };
        let link = Link {
            mtu: Some(Mtu::new(1400).unwrap()),
            mac: Some(Mac::derived("test")),
            master: Some(name("cw-br")),
            port: Some(PortFlags::SERVED),
            ..Link::up(name("cw-vx"), LinkKind::Vxlan(vxlan))
        };
        let place =
            link::Surroundings { index: 7, peer_index: 0, master: Some(8), peer_netns: None };
        let mut all = link::create(&link, &place);
        for (net, ip) in [("10.0.0.0/8", "10.0.0.1"), ("fd00::/8", "fd00::1")] {
            let ip: IpAddr = ip.parse().unwrap();
            let dev = name("cw-vx");
            let mac = Mac::derived("test");
            let route = Route {
                dst: net.parse().unwrap(),
                table: 1000,
                metric: 5,
                kind: RouteKind::Unicast,
                dev: Some(dev.clone()),
                via: Some(ip),
                onlink: true,
                src: Some(ip),
                scope: RouteScope::Link,
                protocol: 203,
                mtu: Some(Mtu::new(1400).unwrap()),
                advmss: None,
            };
            let addr = Addr { dev: dev.clone(), addr: ip.into(), noprefixroute: true, dad: false };
            let neigh =
                Neigh { dev: dev.clone(), ip, mac: Some(mac), proxy: false, permanent: true };
            let fdb = Fdb { dev, mac, dst: Some(ip), permanent: true };
            all.extend([
                route::create(&route, Some(7)),
                addr::create(&addr, 7),
                neigh::create(&neigh, 7),
                fdb::create(&fdb, 7),
            ]);
        }
        all
    }

    fn decode_all(reply: Reply<'_>, names: &Names) -> usize {
        let found = [
            link::decode(reply).is_some(),
            route::decode(reply, names).is_some(),
            addr::decode(reply, names).is_some(),
            neigh::decode(reply, names).is_some(),
            fdb::decode(reply, names).is_some(),
        ];
        found.into_iter().filter(|found| *found).count()
    }

    #[test]
    fn torn_and_foreign_messages_are_no_danger() {
        let names = Names::from([(7, name("cw-vx"))]);
        let mut read = 0;
        for request in samples() {
            for len in 0..=request.body.len() {
                let body = &request.body[..len];
                read += decode_all(
                    Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body },
                    &names,
                );
            }
            for at in 0..request.body.len() {
                let mut body = request.body.clone();
                body[at] ^= 0xff;
                let body = body.as_slice();
                read += decode_all(
                    Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body },
                    &names,
                );
            }
        }
        assert!(read > 0);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let names = Names::from([(7, name("cw-vx"))]);
        let all = samples();
        let first = Reply { kind: all[0].kind, flags: 0, seq: 0, port: 0, body: &all[0].body };
        let seen = link::decode(first).unwrap();
        assert_eq!((seen.index, seen.master), (7, Some(8)));
        assert!(matches!(seen.link.kind, LinkKind::Vxlan(_)));
        let routes: Vec<Route> = all
            .iter()
            .filter(|r| r.kind == libc::RTM_NEWROUTE)
            .filter_map(|r| {
                route::decode(
                    Reply { kind: r.kind, flags: 0, seq: 0, port: 0, body: &r.body },
                    &names,
                )
            })
            .collect();
        assert_eq!(routes.len(), 2);
        for route in routes {
            assert_eq!((route.table, route.metric, route.protocol), (1000, 5, 203));
            assert!(route.onlink && route.via.is_some() && route.via == route.src);
        }
    }
}
