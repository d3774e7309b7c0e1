//! What others made is left alone, case by case.

mod common;

use std::collections::BTreeSet;

use causeway_model::{Desired, Key, Link, LinkKind, Object, Observed, Owner};
use causeway_plan::{Op, plan};
use common::{ip, name, owner, route, start};

fn want(objects: Vec<Object>) -> Desired {
    let mut d = Desired::default();
    for object in objects {
        assert!(d.add(Owner::Node, "", object));
    }
    d
}

fn with(objects: Vec<Object>) -> Observed {
    let mut state = start();
    for object in objects {
        state.insert(object);
    }
    state
}

#[test]
fn a_static_route_that_leads_the_same_way_counts() {
    let dst = "10.244.2.0/24".parse().unwrap();
    let ours = route(dst, "eth0", Some(ip("192.168.1.12")), 203);
    let theirs = route(dst, "eth0", Some(ip("192.168.1.12")), 4);
    let d = want(vec![Object::Route(ours.clone())]);
    let p = plan(&d, &with(vec![Object::Route(theirs)]), &owner(BTreeSet::new(), true));
    assert_eq!((p.ops, p.conflicts), (vec![], vec![]));
    assert_eq!(p.fulfilled_by_others, vec![Object::Route(ours).key()]);
}

#[test]
fn a_static_route_that_leads_elsewhere_is_a_conflict() {
    let dst = "10.244.2.0/24".parse().unwrap();
    let ours = route(dst, "eth0", Some(ip("192.168.1.12")), 203);
    let theirs = route(dst, "eth0", Some(ip("192.168.1.99")), 4);
    // Not even when the record says that we once made a route of this key.
    let recorded = BTreeSet::from([Object::Route(ours.clone()).key()]);
    let d = want(vec![Object::Route(ours.clone())]);
    let p = plan(&d, &with(vec![Object::Route(theirs.clone())]), &owner(recorded.clone(), true));
    assert_eq!(p.ops, vec![]);
    assert_eq!(p.conflicts.len(), 1);
    assert!(p.conflicts[0].why.contains("protocol 4"), "{}", p.conflicts[0].why);
    let p = plan(&want(vec![]), &with(vec![Object::Route(theirs)]), &owner(recorded, true));
    assert_eq!(p.ops, vec![], "a route of another protocol is not removed");
}

#[test]
fn a_bridge_with_ports_stays_and_an_empty_one_goes() {
    let cni0 = Object::Link(Link::up(name("cni0"), LinkKind::Bridge));
    let mut port =
        Link::up(name("cw1"), LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None });
    port.master = Some(name("cni0"));
    let recorded = BTreeSet::from([cni0.key()]);
    let nothing = want(vec![]);
    let busy = with(vec![cni0.clone(), Object::Link(port)]);
    assert_eq!(plan(&nothing, &busy, &owner(recorded.clone(), true)).ops, vec![]);
    let idle = with(vec![cni0.clone()]);
    assert_eq!(plan(&nothing, &idle, &owner(recorded, true)).ops, vec![Op::Remove(cni0.clone())]);
    assert_eq!(plan(&nothing, &idle, &owner(BTreeSet::new(), true)).ops, vec![]);
}

#[test]
fn what_stands_on_a_missing_pod_interface_waits() {
    let veth = Object::Link(Link::up(
        name("cw1"),
        LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None },
    ));
    let host = Object::Route(route("10.244.1.5/32".parse().unwrap(), "cw1", None, 203));
    let d = want(vec![veth.clone(), host.clone()]);
    let p = plan(&d, &start(), &owner(BTreeSet::new(), true));
    assert_eq!(p.ops, vec![]);
    assert_eq!(p.waiting, vec![veth.key(), host.key()]);
    let p = plan(&d, &with(vec![veth]), &owner(BTreeSet::new(), true));
    assert_eq!(p.ops, vec![Op::Create(host)]);
}

#[test]
fn an_interface_of_another_kind_under_our_name() {
    let d = want(vec![Object::Link(Link::up(name("cni0"), LinkKind::Bridge))]);
    let tun = Object::Link(Link::up(name("cni0"), LinkKind::Other("tun".into())));
    let p = plan(&d, &with(vec![tun.clone()]), &owner(BTreeSet::new(), true));
    assert_eq!(p.ops, vec![]);
    assert_eq!(p.conflicts[0].key, Key::Link(name("cni0")));
    assert!(p.conflicts[0].why.contains("tun"), "{}", p.conflicts[0].why);
}
