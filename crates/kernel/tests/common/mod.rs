//! What the tests on the real kernel share. Each test calls [`start`] before anything else: it
//! then lives in namespaces of its own.

#![allow(dead_code)]

use std::process::Command;

use causeway_kernel::{Handle, Scope, netns};
use causeway_model::{Addr, Link, LinkKind, Object, Observed, Route, RouteKind, RouteScope, Vxlan};
use causeway_plan::Op;
use causeway_types::{Cidr, IfName, Mac, Mtu, Vni};

/// Moves the test's thread into its own namespaces and opens them.
pub(crate) fn start() -> Handle {
    netns::unshare_for_test().expect("these tests need root");
    Handle::open().unwrap()
}

pub(crate) fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

pub(crate) fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Runs a command and answers what it printed.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Applies operations, all of which must succeed.
pub(crate) fn apply(handle: &mut Handle, ops: &[Op]) {
    for (op, outcome) in ops.iter().zip(handle.apply(ops)) {
        if let Err(e) = outcome {
            panic!("{op}: {e}");
        }
    }
}

pub(crate) fn create(handle: &mut Handle, objects: &[Object]) {
    let ops: Vec<Op> = objects.iter().cloned().map(Op::Create).collect();
    apply(handle, &ops);
}

pub(crate) fn observe(handle: &mut Handle) -> Observed {
    handle.observe(&Scope::default()).unwrap()
}

/// The object is there as it was asked for.
pub(crate) fn assert_there(handle: &mut Handle, object: &Object) {
    let observed = observe(handle);
    let have = observed.get(&object.key());
    assert!(
        have.is_some_and(|have| object.satisfied_by(have)),
        "wanted {object:?}\nhave   {have:?}"
    );
}

pub(crate) fn assert_gone(handle: &mut Handle, object: &Object) {
    assert_eq!(observe(handle).get(&object.key()), None);
}

/// Creates an object, changes it, removes it, and looks after each step.
pub(crate) fn walk(handle: &mut Handle, first: Object, then: Object) {
    create(handle, std::slice::from_ref(&first));
    assert_there(handle, &first);
    let from = observe(handle).get(&first.key()).unwrap().clone();
    apply(handle, &[Op::Change { from, to: then.clone() }]);
    assert_there(handle, &then);
    let have = observe(handle).get(&then.key()).unwrap().clone();
    apply(handle, &[Op::Remove(have.clone())]);
    assert_gone(handle, &then);
    // What is gone already is as it should be.
    apply(handle, &[Op::Remove(have)]);
}

pub(crate) fn bridge(dev: &str) -> Link {
    Link::up(name(dev), LinkKind::Bridge)
}

/// A veth pair in one namespace; `peer` is the other end.
pub(crate) fn veth(dev: &str, peer: &str) -> Link {
    let kind = LinkKind::Veth { peer: Some(name(peer)), peer_mac: None, peer_netns: None };
    Link::up(name(dev), kind)
}

/// The other end of a pair, set up.
pub(crate) fn second_end(dev: &str) -> Link {
    Link::up(name(dev), LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None })
}

pub(crate) fn vxlan(dev: &str, local: &str) -> Link {
    let vxlan = Vxlan { vni: Vni::DEFAULT, port: 8472, local: local.parse().unwrap() };
    let mut link = Link::up(name(dev), LinkKind::Vxlan(vxlan));
    link.mac = Some(Mac::derived("vtep/test"));
    link.mtu = Some(Mtu::new(1400).unwrap());
    link
}

pub(crate) fn addr(dev: &str, text: &str) -> Object {
    Object::Addr(Addr::new(name(dev), text.parse().unwrap()))
}

/// A unicast route by a device, with our protocol.
pub(crate) fn route(dst: &str, dev: &str) -> Route {
    let dst = cidr(dst);
    Route {
        dst,
        table: Route::MAIN,
        metric: Route::default_metric(dst.family()),
        kind: RouteKind::Unicast,
        dev: Some(name(dev)),
        via: None,
        onlink: false,
        src: None,
        scope: RouteScope::Link,
        protocol: 203,
        mtu: None,
        advmss: None,
    }
}

/// A unicast route by a gateway, with our protocol.
pub(crate) fn route_via(dst: &str, via: &str, dev: &str) -> Route {
    Route { via: Some(via.parse().unwrap()), scope: RouteScope::Universe, ..route(dst, dev) }
}
