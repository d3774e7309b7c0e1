//! Lookup of routes, tracked connections, kernel parameters.

mod common;

use std::net::{IpAddr, UdpSocket};
use std::path::Path as FilePath;

use causeway_kernel::{Conntrack, Handle, Scope, Without, netns};
use causeway_model::{Object, Sysctl};
use causeway_plan::Op;
use causeway_types::Mtu;
use common::*;

fn with_pair() -> Handle {
    let mut h = start();
    create(
        &mut h,
        &[
            Object::Link(veth("cw-a", "cw-b")),
            Object::Link(second_end("cw-b")),
            addr("cw-a", "192.168.9.1/24"),
            addr("cw-a", "fd09::1/64"),
        ],
    );
    h
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_way_to_an_address() {
    let mut h = with_pair();
    let any = Without::default();
    for (own, peer, gateway, net, far) in [
        ("192.168.9.1", "192.168.9.2", "192.168.9.9", "10.0.0.0/8", "10.1.2.3"),
        ("fd09::1", "fd09::2", "fd09::9", "fd10::/32", "fd10::3"),
    ] {
        let path = h.route_get(ip(peer), &any).unwrap().unwrap();
        assert_eq!((path.dev, path.via, path.src), (name("cw-a"), None, Some(ip(own))));
        assert!(!path.local);
        assert!(h.route_get(ip(own), &any).unwrap().unwrap().local);
        assert_eq!(h.route_get(ip(far), &any).unwrap(), None);

        run(&format!("ip route add {net} via {gateway} proto static mtu 1400"));
        let path = h.route_get(ip(far), &any).unwrap().unwrap();
        assert_eq!((path.via, path.protocol), (Some(ip(gateway)), 4));
        assert_eq!(path.mtu, Some(Mtu::new(1400).unwrap()));

        // A route of ours that is better, and does not count.
        let ours = route_via(
            &cidr(&format!("{far}/{}", path.src.map_or(0, bits))).to_string(),
            peer,
            "cw-a",
        );
        create(&mut h, &[Object::Route(ours)]);
        let with = h.route_get(ip(far), &any).unwrap().unwrap();
        assert_eq!((with.via, with.protocol), (Some(ip(peer)), 203));
        let not_ours = Without { protocols: vec![203], devices: vec![] };
        let without = h.route_get(ip(far), &not_ours).unwrap().unwrap();
        assert_eq!((without.via, without.protocol), (Some(ip(gateway)), 4));
        let not_there = Without { protocols: vec![], devices: vec![name("cw-a")] };
        assert_eq!(h.route_get(ip(far), &not_there).unwrap(), None);
        run(&format!("ip route add unreachable {net} metric 5 table 254"));
    }
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// How many connections are tracked that begin at an address.
fn entries(own: &str) -> usize {
    let own = format!("src={own} ").replace("fd09::1 ", "fd09:0000:0000:0000:0000:0000:0000:0001 ");
    let all = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    all.lines().filter(|l| l.split_once(&own).is_some_and(|(b, _)| !b.contains("src="))).count()
}

#[test]
fn connections_of_an_address_are_forgotten() {
    let mut h = with_pair();
    run("nft add table inet cw_test");
    run("nft add chain inet cw_test c { type filter hook output priority 0 ; }");
    run("nft add rule inet cw_test c ct state new counter");
    run("nft add chain inet cw_test n { type nat hook output priority -100 ; }");
    run("nft add rule inet cw_test n ip daddr 192.168.9.50 dnat ip to 192.168.9.2");
    run("nft add rule inet cw_test n ip6 daddr fd09::50 dnat ip6 to fd09::2");
    for (own, peer, other, service) in [
        ("192.168.9.1", "192.168.9.2", "192.168.9.3", "192.168.9.50"),
        ("fd09::1", "fd09::2", "fd09::3", "fd09::50"),
    ] {
        // By the kernel, looked through here, and found by the kernel one by one.
        type Way = fn(&mut Conntrack, &[IpAddr]) -> Result<(), causeway_kernel::Error>;
        let ways: [Way; 3] = [
            |tracked, addrs| tracked.delete_for(addrs, 0),
            |tracked, addrs| tracked.delete_found(addrs, 0),
            |tracked, addrs| tracked.delete_found(addrs, u64::MAX),
        ];
        for way in ways {
            let socket = UdpSocket::bind((ip(own), 0)).unwrap();
            for (to, port) in [(peer, 1000), (peer, 1001), (other, 1000), (service, 1002)] {
                socket.send_to(b"x", (ip(to), port)).unwrap();
            }
            // Two plain ones, and one that is translated to the address.
            let mut tracked = Conntrack::open().unwrap();
            assert_eq!(entries(own), 4);
            let nobodys = [ip("192.168.9.99"), ip("fd09::99")];
            way(&mut tracked, &nobodys).unwrap();
            assert_eq!(entries(own), 4, "none of them is of {nobodys:?}");
            way(&mut tracked, &[ip(peer), nobodys[0], nobodys[1]]).unwrap();
            assert_eq!(entries(own), 1, "the one to {other} is left");
            h.forget_connections(&[ip(own)]).unwrap();
            assert_eq!(entries(own), 0);
        }
    }
}

#[test]
fn kernel_parameters_belong_to_the_namespace() {
    let mut here = start();
    let file = FilePath::new("/run/netns/cw-there");
    let ns = netns::create_named(file).unwrap();
    let mut there = Handle::open_in(&ns).unwrap();
    let path = "net/ipv4/ip_forward".to_owned();
    let on = Object::Sysctl(Sysctl { path: path.clone(), value: "1".to_owned() });
    let off = Object::Sysctl(Sysctl { path: path.clone(), value: "0".to_owned() });
    let scope = Scope { sysctls: vec![path, "net/ipv4/cw_none".to_owned()], ..Scope::default() };
    for (h, value) in [(&mut here, &off), (&mut there, &on)] {
        apply(h, &[Op::Create(value.clone())]);
    }
    for (h, value) in [(&mut here, &off), (&mut there, &on)] {
        assert_eq!(h.observe(&scope).unwrap().get(&value.key()), Some(value));
        assert_eq!(
            h.observe(&scope)
                .unwrap()
                .iter()
                .filter(|(_, o)| matches!(o, Object::Sysctl(_)))
                .count(),
            1
        );
    }
    let dev = Object::Sysctl(Sysctl {
        path: "net/ipv6/conf/cw-br/accept_ra".to_owned(),
        value: "0".to_owned(),
    });
    let err = there.apply(&[Op::Create(dev.clone())]).remove(0).unwrap_err();
    assert!(err.to_string().contains("there is no interface cw-br"), "{err}");
    assert!(err.is_gone());
    // A link and its parameters in one apply.
    create(&mut there, &[Object::Link(bridge("cw-br")), dev, addr("cw-br", "10.0.0.1/24")]);
    netns::delete_named(file).unwrap();
}

/// Some go by rtnetlink, with what comes before and after them.
#[test]
fn parameters_of_an_interface_by_name_or_by_message() {
    let mut h = with_pair();
    let path = |dev: &str| format!("net/ipv4/conf/{dev}/arp_notify");
    let set = |dev: &str, value: &str| {
        Object::Sysctl(Sysctl { path: path(dev), value: value.to_owned() })
    };
    let scope = Scope {
        sysctls: ["cw-a", "cw-b", "cw-c", "all", "default"].map(path).to_vec(),
        ..Scope::default()
    };
    create(&mut h, &[set("cw-a", "1"), addr("cw-b", "192.168.9.2/24"), set("all", "1")]);
    // With the link that it is of.
    create(
        &mut h,
        &[
            Object::Link(veth("cw-c", "cw-d")),
            Object::Link(second_end("cw-d")),
            set("cw-c", "1"),
            addr("cw-c", "192.168.10.1/24"),
        ],
    );
    for (dev, value) in
        [("cw-a", "1"), ("cw-b", "0"), ("cw-c", "1"), ("all", "1"), ("default", "0")]
    {
        let wanted = set(dev, value);
        assert_eq!(h.observe(&scope).unwrap().get(&wanted.key()), Some(&wanted), "{dev}");
    }
    let back = Op::Change { from: set("cw-a", "1"), to: set("cw-a", "0") };
    apply(&mut h, &[back]);
    let off = set("cw-a", "0");
    assert_eq!(h.observe(&scope).unwrap().get(&off.key()), Some(&off));
    let err = h.apply(&[Op::Create(set("cw-none", "1"))]).remove(0).unwrap_err();
    assert!(err.to_string().contains("cw-none"), "{err}");
    assert!(err.is_gone());
}
