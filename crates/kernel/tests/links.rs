//! Links on the real kernel.

mod common;

use std::time::{Duration, Instant};

use causeway_kernel::{Handle, netns};
use causeway_model::{LinkKind, Object, PortFlags};
use causeway_types::{IfName, Mtu};
use common::*;

#[test]
fn bridge_from_birth_to_removal() {
    let mut h = start();
    let mut first = bridge("cw-br");
    first.mac = Some(mac("02:00:00:00:00:01"));
    first.mtu = Some(Mtu::new(1450).unwrap());
    let mut then = first.clone();
    then.mac = Some(mac("02:00:00:00:00:02"));
    then.mtu = Some(Mtu::new(1400).unwrap());
    then.up = false;
    walk(&mut h, Object::Link(first), Object::Link(then));
}

#[test]
fn a_bridge_keeps_its_mtu_when_a_port_joins() {
    let mut h = start();
    let mut br = bridge("cw-br");
    br.mtu = Some(Mtu::new(1450).unwrap());
    let mut port = veth("cw-a", "cw-b");
    port.mtu = Some(Mtu::new(1300).unwrap());
    port.master = Some(name("cw-br"));
    create(&mut h, &[Object::Link(br.clone()), Object::Link(port)]);
    assert_there(&mut h, &Object::Link(br));
}

#[test]
fn veth_pair_as_an_isolated_port() {
    let mut h = start();
    let mut port = veth("cw-a", "cw-b");
    port.master = Some(name("cw-br"));
    port.port = Some(PortFlags::SERVED);
    port.mac = Some(mac("02:00:00:00:00:0a"));
    port.mtu = Some(Mtu::new(1430).unwrap());
    // One apply, one datagram: bridge, pair, and the other end by name.
    create(
        &mut h,
        &[
            Object::Link(bridge("cw-br")),
            Object::Link(port.clone()),
            Object::Link(second_end("cw-b")),
            addr("cw-b", "10.1.0.2/24"),
            addr("cw-b", "fd00::2/64"),
        ],
    );
    assert_there(&mut h, &Object::Link(port.clone()));
    assert_there(&mut h, &addr("cw-b", "10.1.0.2/24"));
    let shown = run("ip -d link show cw-a");
    for word in
        ["isolated on", "learning off", "flood off", "mcast_flood off", "bcast_flood off", "cw-br"]
    {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    assert!(shown.contains("numtxqueues 1 ") && shown.contains("numrxqueues 1 "), "{shown}");
    assert!(run("ip link show cw-b").contains("mtu 1430"), "both ends have the MTU");

    let mut changed = port.clone();
    changed.port = Some(PortFlags { hairpin: true, ..PortFlags::DEFAULT });
    let from = observe(&mut h).get(&Object::Link(port).key()).unwrap().clone();
    let to = Object::Link(changed);
    apply(&mut h, &[causeway_plan::Op::Change { from, to: to.clone() }]);
    assert_there(&mut h, &to);
    apply(&mut h, &[causeway_plan::Op::Remove(to.clone())]);
    assert_gone(&mut h, &to);
    assert!(h.link_index(&name("cw-b")).unwrap().is_none(), "the other end goes too");
}

#[test]
fn a_port_joins_another_bridge() {
    let mut h = start();
    let mut port = veth("cw-a", "cw-b");
    port.port = None;
    create(
        &mut h,
        &[
            Object::Link(bridge("cw-br1")),
            Object::Link(bridge("cw-br2")),
            Object::Link(port.clone()),
        ],
    );
    for master in ["cw-br1", "cw-br2"] {
        port.master = Some(name(master));
        port.port = Some(PortFlags::SERVED);
        let to = Object::Link(port.clone());
        let from = observe(&mut h).get(&to.key()).unwrap().clone();
        apply(&mut h, &[causeway_plan::Op::Change { from, to: to.clone() }]);
        assert_there(&mut h, &to);
    }
    let (_, link) = h.link(&name("cw-a")).unwrap().unwrap();
    assert_eq!(link.master, Some(name("cw-br2")));
}

#[test]
fn a_pair_over_two_namespaces_by_one_request() {
    let mut h = start();
    let path = std::path::Path::new("/run/netns/cw-pod");
    let pod = netns::create_named(path).unwrap();
    let mut host = veth("cw-host", "eth0");
    host.mac = Some(mac("02:00:00:00:01:01"));
    host.mtu = Some(Mtu::new(1380).unwrap());
    host.kind = LinkKind::Veth {
        peer: Some(name("eth0")),
        peer_mac: Some(mac("02:00:00:00:01:02")),
        peer_netns: Some("/run/netns/cw-pod".to_owned()),
    };
    create(&mut h, &[Object::Link(host.clone()), Object::Route(route("10.1.0.2/32", "cw-host"))]);
    assert_there(&mut h, &Object::Link(host));

    let mut inside = Handle::open_in(&pod).unwrap();
    let mut eth0 = second_end("eth0");
    eth0.mac = Some(mac("02:00:00:00:01:02"));
    eth0.mtu = Some(Mtu::new(1380).unwrap());
    let objects = [
        Object::Link(eth0.clone()),
        addr("eth0", "10.1.0.2/32"),
        addr("eth0", "fd00::2/128"),
        Object::Route(route("169.254.1.1/32", "eth0")),
        Object::Route(route_via("0.0.0.0/0", "169.254.1.1", "eth0")),
        Object::Route(route_via("::/0", "fe80::1", "eth0")),
    ];
    create(&mut inside, &objects);
    for object in &objects {
        assert_there(&mut inside, object);
    }
    netns::delete_named(path).unwrap();
}

#[test]
fn vxlan_of_both_families() {
    let mut h = start();
    create(&mut h, &[Object::Link(veth("cw-a", "cw-b")), Object::Link(second_end("cw-b"))]);
    create(&mut h, &[addr("cw-a", "192.168.9.1/24"), addr("cw-a", "fd09::1/64")]);
    for local in ["192.168.9.1", "fd09::1"] {
        let first = vxlan("cw-vxlan", local);
        let mut then = first.clone();
        then.mtu = Some(Mtu::new(1350).unwrap());
        walk(&mut h, Object::Link(first), Object::Link(then));
    }
    // A device that learns is none of ours, whatever else agrees.
    run("ip link add cw-vxlan type vxlan id 4096 dstport 8472 local 192.168.9.1 learning");
    let want = Object::Link(vxlan("cw-vxlan", "192.168.9.1"));
    let observed = observe(&mut h);
    let Some(Object::Link(have)) = observed.get(&want.key()) else { panic!("not seen") };
    assert_eq!(have.kind, LinkKind::Other("vxlan".to_owned()));
}

#[test]
fn a_taken_name_is_refused_and_nothing_is_left() {
    let mut h = start();
    create(&mut h, &[Object::Link(bridge("cw-b"))]);
    let ops = [
        causeway_plan::Op::Create(Object::Link(veth("cw-a", "cw-b"))),
        causeway_plan::Op::Create(addr("cw-a", "10.0.0.1/24")),
    ];
    let outcomes = h.apply(&ops);
    let err = outcomes[0].as_ref().unwrap_err();
    assert!(err.is_exists(), "{err}");
    assert!(outcomes[1].as_ref().unwrap_err().is_gone());
    assert!(h.link_index(&name("cw-a")).unwrap().is_none());
}

#[test]
fn a_handle_may_move_between_threads_and_stays_with_its_namespace() {
    let mut h = start();
    create(&mut h, &[Object::Link(bridge("cw-br"))]);
    let elsewhere = std::thread::spawn(move || {
        netns::unshare_for_test().unwrap();
        let mut own = Handle::open().unwrap();
        assert!(own.link_index(&name("cw-br")).unwrap().is_none());
        assert!(!h.netns().is_current().unwrap());
        h.link_index(&name("cw-br")).unwrap()
    });
    assert!(elsewhere.join().unwrap().is_some());
}

/// The kernel is a moment late with it.
fn until(h: &mut Handle, dev: &IfName, running: bool) {
    let start = Instant::now();
    while h.link_running(dev).unwrap() != Some(running) {
        assert!(start.elapsed() < Duration::from_secs(5), "{dev}: running is not {running}");
    }
}

#[test]
fn an_expected_interface_is_the_one_that_is_there() {
    let mut h = start();
    let (a, b) = (name("cw-a"), name("exactly15bytes_"));
    for step in 0..3 {
        let pair = Object::Link(veth(a.as_str(), b.as_str()));
        create(&mut h, &[pair, Object::Link(second_end(b.as_str()))]);
        let asked = [&a, &b].map(|n| h.link_index(n).unwrap().unwrap());
        h.expect(&a);
        h.expect(&b);
        // Made anew, it has another index under the same name.
        assert_eq!([&a, &b].map(|n| h.link_index(n).unwrap().unwrap()), asked, "{step}");
        until(&mut h, &a, true);
        until(&mut h, &b, true);
        create(&mut h, &[addr(b.as_str(), "10.1.0.2/24")]);
        assert_there(&mut h, &addr(b.as_str(), "10.1.0.2/24"));
        run(&format!("ip link set {b} down"));
        until(&mut h, &a, false);
        run(&format!("ip link del {a}"));
        assert_eq!(h.link_index(&a).unwrap(), None);
        assert_eq!(h.link_running(&b).unwrap(), None);
        let refused = h.apply(&[causeway_plan::Op::Create(addr(a.as_str(), "10.1.0.2/24"))]);
        assert!(refused[0].as_ref().unwrap_err().is_gone());
    }
}
