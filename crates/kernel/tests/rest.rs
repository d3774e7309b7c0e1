//! Addresses, routes, neighbours and forwarding entries on the real kernel.

mod common;

use causeway_kernel::{Handle, Routes, Scope};
use causeway_model::{Fdb, Key, Neigh, Object, Route, RouteKind, RouteScope};
use causeway_plan::Op;
use causeway_types::{Family, Mtu};
use common::*;

/// A pair, both ends up, with addresses of both families.
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

#[test]
fn addresses() {
    let mut h = with_pair();
    for text in ["10.2.0.1/24", "10.3.0.1/32", "fd02::1/64", "fd03::1/128"] {
        let first = addr("cw-a", text);
        let Object::Addr(mut then) = first.clone() else { unreachable!() };
        then.noprefixroute = true;
        walk(&mut h, first, Object::Addr(then));
    }
    create(&mut h, &[addr("cw-a", "fd04::1/64")]);
    let shown = run("ip -6 addr show dev cw-a to fd04::1");
    assert!(shown.contains("nodad") && !shown.contains("tentative"), "{shown}");
    create(&mut h, &[addr("cw-a", "10.4.0.1/24")]);
    assert!(run("ip -4 addr show dev cw-a to 10.4.0.1").contains("brd 10.4.0.255"));
}

#[test]
fn routes_of_both_families() {
    let mut h = with_pair();
    for (dst, via, other) in
        [("10.244.2.0/24", "192.168.9.2", "192.168.9.3"), ("fd00:244:2::/64", "fd09::2", "fd09::3")]
    {
        let first = route_via(dst, via, "cw-a");
        let mut then = route_via(dst, other, "cw-a");
        then.mtu = Some(Mtu::new(1400).unwrap());
        walk(&mut h, Object::Route(first), Object::Route(then));
    }
}

#[test]
fn unreachable_onlink_source_table_and_metric() {
    let mut h = with_pair();
    let src = |family| match family {
        Family::V4 => "192.168.9.1",
        Family::V6 => "fd09::1",
    };
    for (dst, far) in [("10.244.1.0/24", "10.9.9.9"), ("fd00:244:1::/64", "fd99::9")] {
        let family = cidr(dst).family();
        let unreachable = Route {
            kind: RouteKind::Unreachable,
            dev: None,
            scope: RouteScope::Universe,
            ..route(dst, "lo")
        };
        let onlink = Route {
            onlink: true,
            src: Some(src(family).parse().unwrap()),
            ..route_via(dst, far, "cw-a")
        };
        walk(&mut h, Object::Route(unreachable.clone()), Object::Route(onlink.clone()));

        let elsewhere = Route { table: 1000, metric: 77, ..unreachable };
        create(&mut h, &[Object::Route(elsewhere.clone())]);
        assert_gone(&mut h, &Object::Route(elsewhere.clone()));
        for routes in [Routes::All, Routes::Table(1000)] {
            let seen = h.observe(&Scope { routes, ..Scope::default() }).unwrap();
            let have = seen.get(&Object::Route(elsewhere.clone()).key());
            assert!(have.is_some_and(|h| Object::Route(elsewhere.clone()).satisfied_by(h)));
        }
        apply(&mut h, &[Op::Remove(Object::Route(elsewhere))]);
    }
    let seen = h.observe(&Scope { routes: Routes::All, ..Scope::default() }).unwrap();
    assert!(
        seen.iter().all(|(k, _)| !matches!(k, Key::Route { table: 255 | 1000, .. })),
        "table local is not shown"
    );
}

#[test]
fn routes_are_shown_by_ip_as_ours() {
    let mut h = with_pair();
    create(&mut h, &[Object::Route(route_via("10.244.2.0/24", "192.168.9.2", "cw-a"))]);
    assert_eq!(run("ip route show proto 203").trim(), "10.244.2.0/24 via 192.168.9.2 dev cw-a");
}

#[test]
fn multipath_is_there_and_never_ours() {
    let mut h = with_pair();
    for (ip, dst, one, two) in [
        ("-4", "10.5.0.0/16", "192.168.9.2", "192.168.9.3"),
        ("-6", "fd05::/64", "fd09::2", "fd09::3"),
    ] {
        run(&format!(
            "ip {ip} route add {dst} proto 203 nexthop via {one} dev cw-a nexthop via {two} dev cw-a"
        ));
        let want = Object::Route(route_via(dst, one, "cw-a"));
        let observed = observe(&mut h);
        let Some(Object::Route(have)) = observed.get(&want.key()) else { panic!("{dst}") };
        assert!(matches!(have.kind, RouteKind::Other(_)));
        assert!(!want.satisfied_by(&Object::Route(have.clone())));
        apply(&mut h, &[Op::Remove(Object::Route(have.clone()))]);
        assert_gone(&mut h, &want);
    }
}

#[test]
fn of_several_ipv6_routes_of_one_key_ours_is_shown() {
    let mut h = with_pair();
    run("ip -6 route add unreachable fd06::/64 proto static");
    run("ip -6 route append fd06::/64 via fd09::2 dev cw-a proto 203");
    let want = Object::Route(route_via("fd06::/64", "fd09::2", "cw-a"));
    let observed = observe(&mut h);
    let Some(Object::Route(have)) = observed.get(&want.key()) else { panic!("not there") };
    assert_eq!(have.protocol, 203, "{have:?}\n{}", run("ip -6 route"));
}

#[test]
fn removing_a_route_leaves_the_route_of_somebody_else() {
    let mut h = with_pair();
    for (ip, dst, via) in [("-4", "10.7.0.0/16", "192.168.9.2"), ("-6", "fd07::/64", "fd09::2")] {
        run(&format!("ip {ip} route add {dst} via {via} proto static"));
        let ours = Object::Route(route_via(dst, via, "cw-a"));
        apply(&mut h, &[Op::Remove(ours.clone())]);
        assert!(observe(&mut h).get(&ours.key()).is_some(), "{dst}: removed another's route");
        let err = h.apply(&[Op::Create(ours)]).remove(0).unwrap_err();
        assert!(err.is_exists(), "{err}");
    }
}

#[test]
fn neighbours_and_proxies() {
    let mut h = with_pair();
    for ip in ["192.168.9.7", "fd09::7", "169.254.1.1", "fe80::1"] {
        let first = Neigh {
            dev: name("cw-a"),
            ip: ip.parse().unwrap(),
            mac: Some(mac("02:00:00:00:00:07")),
            proxy: false,
            permanent: true,
        };
        let then = Neigh { mac: Some(mac("02:00:00:00:00:08")), ..first.clone() };
        walk(&mut h, Object::Neigh(first.clone()), Object::Neigh(then));
        let proxy = Object::Neigh(Neigh { mac: None, proxy: true, ..first });
        walk(&mut h, proxy.clone(), proxy);
    }
    // A learned entry gives way.
    run("ip neigh add 192.168.9.8 lladdr 02:00:00:00:00:99 dev cw-a nud reachable");
    let ours = Object::Neigh(Neigh {
        dev: name("cw-a"),
        ip: "192.168.9.8".parse().unwrap(),
        mac: Some(mac("02:00:00:00:00:08")),
        proxy: false,
        permanent: true,
    });
    assert_gone(&mut h, &ours);
    create(&mut h, std::slice::from_ref(&ours));
    assert_there(&mut h, &ours);
}

#[test]
fn forwarding_entries_of_ports_and_tunnels() {
    let mut h = with_pair();
    let mut port = veth("cw-p", "cw-q");
    port.master = Some(name("cw-br"));
    create(
        &mut h,
        &[
            Object::Link(bridge("cw-br")),
            Object::Link(port),
            Object::Link(second_end("cw-q")),
            Object::Link(vxlan("cw-vx4", "192.168.9.1")),
        ],
    );
    let own: Vec<_> = fdb_keys(&mut h);
    assert_eq!(own, [], "the ports' own addresses are not shown");

    let entry = |dev: &str, last: u8, dst: Option<&str>| {
        Object::Fdb(Fdb {
            dev: name(dev),
            mac: mac(&format!("02:00:00:00:02:{last:02x}")),
            dst: dst.map(|d| d.parse().unwrap()),
            permanent: true,
        })
    };
    let on_port = entry("cw-p", 1, None);
    walk(&mut h, on_port.clone(), on_port.clone());
    let tunnel = |dst| entry("cw-vx4", 2, Some(dst));
    walk(&mut h, tunnel("192.168.9.2"), tunnel("192.168.9.3"));

    create(&mut h, &[on_port, tunnel("192.168.9.2")]);
    let shown = run("bridge fdb show dev cw-p");
    assert!(shown.contains("02:00:00:00:02:01 master cw-br static"), "{shown}");
    let shown = run("bridge fdb show dev cw-vx4");
    assert!(shown.contains("02:00:00:00:02:02 dst 192.168.9.2 self permanent"), "{shown}");

    apply(&mut h, &[Op::Remove(Object::Link(vxlan("cw-vx4", "192.168.9.1")))]);
    create(&mut h, &[Object::Link(vxlan("cw-vx6", "fd09::1"))]);
    walk(&mut h, entry("cw-vx6", 3, Some("fd09::2")), entry("cw-vx6", 3, Some("fd09::3")));
}

fn fdb_keys(h: &mut Handle) -> Vec<Key> {
    let observed = observe(h);
    observed.iter().map(|(k, _)| k.clone()).filter(|k| matches!(k, Key::Fdb { .. })).collect()
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    let mut h = with_pair();
    let far = Route { src: None, ..route_via("10.8.0.0/16", "172.31.0.1", "cw-a") };
    let src = Some("fd88::1".parse().unwrap());
    let foreign = Route { src, ..route_via("fd08::/64", "fd09::2", "cw-a") };
    for (route, words) in [(far, "invalid gateway"), (foreign, "Invalid source address")] {
        let dst = route.dst;
        let err = h.apply(&[Op::Create(Object::Route(route))]).remove(0).unwrap_err();
        let text = err.to_string();
        assert!(text.starts_with(&format!("route {dst}: cannot create: ")), "{text}");
        assert!(text.contains(words) && err.errno.is_some(), "{text}");
    }
    let op = Op::Create(addr("cw-none", "10.0.0.1/24"));
    let text = h.apply(&[op]).remove(0).unwrap_err().to_string();
    assert!(text.contains("no interface cw-none"), "{text}");
}

#[test]
fn a_thousand_routes_in_one_apply() {
    let mut h = with_pair();
    let routes: Vec<Object> = (0..1000)
        .map(|i| {
            let dst = format!("10.{}.{}.0/24", 100 + i / 250, i % 250);
            Object::Route(route_via(&dst, "192.168.9.2", "cw-a"))
        })
        .collect();
    // One in the middle that cannot be: the others are not held up.
    let mut ops: Vec<Op> = routes.iter().cloned().map(Op::Create).collect();
    ops.insert(500, Op::Create(Object::Route(route_via("10.99.0.0/16", "172.31.0.1", "cw-a"))));
    let outcomes = h.apply(&ops);
    let failed: Vec<usize> =
        outcomes.iter().enumerate().filter(|(_, o)| o.is_err()).map(|(i, _)| i).collect();
    assert_eq!(failed, [500]);
    let observed = observe(&mut h);
    assert!(routes.iter().all(|r| observed.get(&r.key()).is_some_and(|h| r.satisfied_by(h))));
    let removals: Vec<Op> = routes.into_iter().map(Op::Remove).collect();
    apply(&mut h, &removals);
    assert_eq!(run("ip route show proto 203").trim(), "");
}
