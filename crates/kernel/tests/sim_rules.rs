//! The rules of the simulated kernel (`causeway_plan::sim`), side by side with the real one: each
//! operation is done by both, and both must take it or refuse it for the same reason.

mod common;

use std::collections::BTreeMap;

use causeway_kernel::{Handle, Scope};
use causeway_model::nft::{
    Base, ChainType, Content, Element, ElementKey, Field, Hook, KeyPart, KeyType, MatchOp,
    NftFamily, Policy, Rule, Set, Stmt, Verdict,
};
use causeway_model::{Fdb, Key, Link, Neigh, Object, Route, RouteKind, RouteScope, Sysctl};
use causeway_plan::sim::{Refusal, SimKernel};
use causeway_plan::{NftOp, Op, TableId};
use causeway_types::{Family, Vni};
use common::*;

struct Both {
    real: Handle,
    sim: SimKernel,
}

/// What the kernel's numbers mean in the simulation.
fn meaning(errno: i32) -> Option<Refusal> {
    Some(match errno {
        libc::EEXIST => Refusal::Exists,
        libc::ENOENT | libc::ENODEV | libc::ESRCH => Refusal::Missing,
        libc::ENETDOWN | libc::ENETUNREACH | libc::EHOSTUNREACH => Refusal::Unreachable,
        libc::EBUSY => Refusal::Busy,
        libc::EINVAL | libc::EOPNOTSUPP => Refusal::Invalid,
        _ => return None,
    })
}

impl Both {
    fn new() -> Self {
        Self { real: start(), sim: SimKernel::default() }
    }

    /// Both do it, and end as is expected.
    #[track_caller]
    fn op(&mut self, op: Op, end: Result<(), Refusal>) {
        assert_eq!(self.sim.apply(&op), end, "the simulation: {op}");
        let real = self.real.apply(std::slice::from_ref(&op)).remove(0);
        let meant = real.as_ref().map(drop).map_err(|e| e.errno.and_then(meaning));
        assert_eq!(meant, end.map_err(Some), "the kernel: {op}: {real:?}");
    }

    #[track_caller]
    fn make(&mut self, objects: impl IntoIterator<Item = Object>) {
        for object in objects {
            self.op(Op::Create(object), Ok(()));
        }
    }

    #[track_caller]
    fn refuse(&mut self, object: Object, why: Refusal) {
        self.op(Op::Create(object), Err(why));
    }

    /// Both have it, or neither.
    #[track_caller]
    fn has(&mut self, object: &Object, there: bool) {
        let scope = Scope {
            sysctls: match object {
                Object::Sysctl(s) => vec![s.path.clone()],
                _ => Vec::new(),
            },
            ..Scope::default()
        };
        let key = object.key();
        let seen = self.real.observe(&scope).unwrap();
        assert_eq!(seen.get(&key).is_some(), there, "the kernel: {key}");
        assert_eq!(self.sim.state.get(&key).is_some(), there, "the simulation: {key}");
    }

    #[track_caller]
    fn nft(&mut self, ops: Vec<NftOp>, end: Result<(), Refusal>) {
        self.op(Op::Nft { table: table(NftFamily::Inet), ops }, end);
    }
}

fn table(family: NftFamily) -> TableId {
    TableId { family, name: "cw_rules".to_owned() }
}

fn neigh(dev: &str, ip: &str) -> Object {
    let mac = Some(mac("02:00:00:00:00:07"));
    let ip = ip.parse().unwrap();
    Object::Neigh(Neigh { dev: name(dev), ip, mac, proxy: false, permanent: true })
}

fn fdb(dev: &str, dst: Option<&str>) -> Object {
    let (mac, dst) = (mac("02:00:00:00:00:08"), dst.map(|d| d.parse().unwrap()));
    Object::Fdb(Fdb { dev: name(dev), mac, dst, permanent: true })
}

fn parameter(dev: &str) -> Object {
    let path = format!("net/ipv4/conf/{dev}/send_redirects");
    Object::Sysctl(Sysctl { path, value: "0".to_owned() })
}

fn port(dev: &str, peer: &str, master: &str) -> Link {
    Link { master: Some(name(master)), ..veth(dev, peer) }
}

#[test]
fn what_is_there_is_not_made_again() {
    let mut both = Both::new();
    both.make([Object::Link(bridge("cw-br")), addr("cw-br", "10.9.0.1/24")]);
    both.refuse(Object::Link(bridge("cw-br")), Refusal::Exists);
    both.refuse(addr("cw-br", "10.9.0.1/24"), Refusal::Exists);
    // Making a parameter is writing it.
    both.make([parameter("cw-br"), parameter("cw-br")]);
    for (dst, via) in [("10.5.0.0/16", "10.9.0.2"), ("10.5.0.0/16", "10.9.0.3")] {
        let route = Object::Route(route_via(dst, via, "cw-br"));
        match via {
            "10.9.0.2" => both.make([route]),
            _ => both.refuse(route, Refusal::Exists),
        }
    }
}

#[test]
fn what_stands_on_nothing_is_refused() {
    let mut both = Both::new();
    both.refuse(addr("cw-none", "10.9.0.1/24"), Refusal::Missing);
    both.refuse(neigh("cw-none", "10.9.0.2"), Refusal::Missing);
    both.refuse(fdb("cw-none", None), Refusal::Missing);
    both.refuse(parameter("cw-none"), Refusal::Missing);
    both.refuse(Object::Route(route("10.5.0.0/16", "cw-none")), Refusal::Missing);
    both.refuse(Object::Link(port("cw-a", "cw-b", "cw-none")), Refusal::Missing);
    both.has(&Object::Link(veth("cw-a", "cw-b")), false);
    let from = Object::Link(bridge("cw-none"));
    both.op(Op::Change { from: from.clone(), to: from }, Err(Refusal::Missing));
}

#[test]
fn a_master_is_a_bridge_and_an_entry_fits_its_device() {
    let mut both = Both::new();
    both.make([Object::Link(veth("cw-x", "cw-y")), Object::Link(second_end("cw-y"))]);
    both.make([addr("cw-x", "192.168.9.1/24"), Object::Link(vxlan("cw-vx", "192.168.9.1"))]);
    both.refuse(Object::Link(port("cw-a", "cw-b", "cw-x")), Refusal::Invalid);
    both.has(&Object::Link(veth("cw-a", "cw-b")), false);
    both.make([Object::Link(bridge("cw-br")), Object::Link(port("cw-a", "cw-b", "cw-br"))]);
    both.refuse(fdb("cw-x", None), Refusal::Invalid);
    // The kernel passes over the tunnel's end that means nothing on a port; a plan with that is wrong.
    let tunnels = fdb("cw-a", Some("192.168.9.2"));
    assert_eq!(both.sim.apply(&Op::Create(tunnels.clone())), Err(Refusal::Invalid));
    apply(&mut both.real, &[Op::Create(tunnels.clone()), Op::Remove(tunnels)]);
    both.make([fdb("cw-a", None), fdb("cw-vx", Some("192.168.9.2"))]);
}

#[test]
fn a_route_needs_its_device_up_its_source_and_its_gateway_on_link() {
    for (own, far, dst, via) in [
        ("192.168.9.1/24", "172.31.0.1", "10.5.0.0/16", "192.168.9.2"),
        ("fd09::1/64", "fd77::1", "fd05::/64", "fd09::2"),
    ] {
        let mut both = Both::new();
        let down = Link { up: false, ..bridge("cw-br") };
        both.make([Object::Link(down.clone()), addr("cw-br", own)]);
        let direct = route(dst, "cw-br");
        both.refuse(Object::Route(direct.clone()), Refusal::Unreachable);
        both.op(Op::Change { from: Object::Link(down), to: Object::Link(bridge("cw-br")) }, Ok(()));
        let elsewhere = Route { src: Some(far.parse().unwrap()), ..direct.clone() };
        both.refuse(Object::Route(elsewhere), Refusal::Invalid);
        both.refuse(Object::Route(route_via(dst, far, "cw-br")), Refusal::Unreachable);
        let local = own.split('/').next().unwrap().parse().ok();
        both.make([Object::Route(Route { src: local, ..route_via(dst, via, "cw-br") })]);
        // A gateway is on link by a route as well.
        let more = format!("{far}/{}", if own.contains(':') { 128 } else { 32 });
        both.make([Object::Route(route(&more, "cw-br"))]);
        let other = if own.contains(':') { "fd06::/64" } else { "10.6.0.0/16" };
        both.make([Object::Route(route_via(other, far, "cw-br"))]);
        // And always where it is said to be.
        let (other, gone) = match own.contains(':') {
            true => ("fd07::/64", "fd78::1"),
            false => ("10.7.0.0/16", "172.32.0.1"),
        };
        both.make([Object::Route(Route { onlink: true, ..route_via(other, gone, "cw-br") })]);
        // An unreachable one stands on nothing.
        let nowhere = if own.contains(':') { "fd08::/64" } else { "10.8.0.0/16" };
        let scope = RouteScope::Universe;
        let none = route(nowhere, "lo");
        let none = Route { kind: RouteKind::Unreachable, dev: None, scope, ..none };
        both.make([Object::Route(none)]);
    }
    let mut both = Both::new();
    both.make([Object::Link(bridge("cw-br"))]);
    both.make([Object::Route(route_via("fd05::/64", "fe80::1", "cw-br"))]);
}

#[test]
fn with_a_device_goes_what_stands_on_it() {
    let mut both = Both::new();
    let on_bridge = [
        addr("cw-br", "192.168.9.1/24"),
        neigh("cw-br", "192.168.9.7"),
        Object::Route(route_via("10.5.0.0/16", "192.168.9.2", "cw-br")),
        parameter("cw-br"),
    ];
    both.make([Object::Link(bridge("cw-br"))]);
    both.make(on_bridge.clone());
    both.make([Object::Link(port("cw-a", "cw-b", "cw-br")), fdb("cw-a", None)]);
    both.op(Op::Remove(Object::Link(bridge("cw-br"))), Ok(()));
    for object in on_bridge.iter().chain([&Object::Link(bridge("cw-br"))]) {
        both.has(object, false);
    }
    // Its ports stay, and are nobody's.
    both.has(&Object::Link(veth("cw-a", "cw-b")), true);
    let (_, link) = both.real.link(&name("cw-a")).unwrap().unwrap();
    let Some(Object::Link(simulated)) = both.sim.state.get(&Key::Link(name("cw-a"))) else {
        panic!("no port")
    };
    assert_eq!((link.master, &None), (simulated.master.clone(), &simulated.port));
}

/// A rule that differs on purpose: the simulation refuses to remove what is not there, so
/// that a plan which does is seen; `apply` takes it for done.
#[test]
fn removing_what_is_gone() {
    let mut both = Both::new();
    for object in [
        Object::Link(bridge("cw-none")),
        addr("cw-none", "10.9.0.1/24"),
        neigh("cw-none", "10.9.0.2"),
        Object::Route(route("10.5.0.0/16", "cw-none")),
    ] {
        let op = Op::Remove(object);
        assert_eq!(both.sim.apply(&op), Err(Refusal::Missing), "{op}");
        both.real.apply(std::slice::from_ref(&op)).remove(0).unwrap();
    }
}

#[test]
fn a_device_of_other_parameters_is_not_changed() {
    let mut both = Both::new();
    both.make([Object::Link(bridge("cw-br")), addr("cw-br", "192.168.9.1/24")]);
    let from = vxlan("cw-vx", "192.168.9.1");
    both.make([Object::Link(from.clone())]);
    let mut to = from.clone();
    if let causeway_model::LinkKind::Vxlan(v) = &mut to.kind {
        v.vni = Vni::new(9).unwrap();
    }
    let op = Op::Change { from: Object::Link(from.clone()), to: Object::Link(to) };
    assert_eq!(both.sim.apply(&op), Err(Refusal::Invalid));
    // Whatever the kernel says to it, it is the old device.
    let _ = both.real.apply(&[op]);
    let (_, have) = both.real.link(&name("cw-vx")).unwrap().unwrap();
    assert_eq!(have.kind, from.kind);
}

fn set(kind: KeyType, vmap: bool) -> Set {
    let mut set = Set::of(kind, false);
    set.vmap = vmap;
    set
}

fn elements(verdict: Option<Verdict>) -> BTreeMap<ElementKey, Element> {
    let key = ElementKey::from(KeyPart::addr("10.1.0.1".parse().unwrap()));
    [(key, Content { verdict, ..Content::default() }.into())].into()
}

fn add_set(name: &str, set: &Set) -> NftOp {
    NftOp::AddSet { name: name.to_owned(), set: set.clone() }
}

fn add_chain(name: &str) -> NftOp {
    NftOp::AddChain { name: name.to_owned(), base: None }
}

fn add_rule(chain: &str, stmts: Vec<Stmt>) -> NftOp {
    NftOp::AddRule { chain: chain.to_owned(), rule: Rule::new("", stmts) }
}

#[test]
fn a_transaction_refers_to_what_is_there_and_happens_as_a_whole() {
    let mut both = Both::new();
    let hosts = set(KeyType::Addr(Family::V4), false);
    let map = set(KeyType::Addr(Family::V4), true);
    let in_set = |set: &str| Stmt::lookup([Field::Saddr(Family::V4)], MatchOp::Eq, set);
    let jump = |to: &str| Stmt::Verdict(Verdict::Jump(to.to_owned()));
    let add = |set: &str, of: &Set, elements| NftOp::AddElements {
        set: set.to_owned(),
        of: of.clone(),
        elements,
    };
    let del = |set: &str, of: &Set, elements| NftOp::DelElements {
        set: set.to_owned(),
        of: of.clone(),
        elements,
    };
    let missing = Err(Refusal::Missing);
    let busy = Err(Refusal::Busy);

    both.nft(vec![add_chain("a")], missing);
    both.nft(vec![NftOp::DelTable], missing);
    both.nft(
        vec![
            NftOp::AddTable,
            add_set("hosts", &hosts),
            add_set("map", &map),
            add_chain("a"),
            add_chain("b"),
        ],
        Ok(()),
    );
    // All of it again does no harm.
    both.nft(vec![NftOp::AddTable, add_set("hosts", &hosts), add_chain("a")], Ok(()));
    both.nft(vec![add_set("hosts", &set(KeyType::Addr(Family::V6), false))], Err(Refusal::Exists));

    both.nft(vec![add_rule("none", vec![Stmt::Counter])], missing);
    both.nft(vec![add_rule("a", vec![in_set("none")])], missing);
    both.nft(vec![add_rule("a", vec![jump("none")])], missing);
    both.nft(vec![NftOp::FlushChain { name: "none".into() }], missing);
    both.nft(vec![NftOp::DelChain { name: "none".into() }], missing);
    both.nft(vec![NftOp::DelSet { name: "none".into() }], missing);
    both.nft(vec![add("none", &hosts, elements(None))], missing);

    // The last step fails, so the first has not happened.
    both.nft(vec![add_chain("c"), add_rule("a", vec![jump("none")])], missing);
    both.nft(vec![add_rule("a", vec![jump("c")])], missing);

    both.nft(vec![add_rule("a", vec![in_set("hosts"), jump("b")])], Ok(()));
    both.nft(vec![NftOp::DelSet { name: "hosts".into() }], busy);
    both.nft(vec![NftOp::DelChain { name: "b".into() }], busy);
    both.nft(
        vec![
            NftOp::FlushChain { name: "a".into() },
            NftOp::DelSet { name: "hosts".into() },
            add_set("hosts", &hosts),
        ],
        Ok(()),
    );

    both.nft(vec![add("hosts", &hosts, elements(None))], Ok(()));
    both.nft(vec![add("hosts", &hosts, elements(None))], Ok(()));
    both.nft(vec![del("hosts", &hosts, elements(None))], Ok(()));
    both.nft(vec![del("hosts", &hosts, elements(None))], missing);

    // A hook is what a chain is born with.
    let hooked = |priority| NftOp::AddChain {
        name: "hooked".to_owned(),
        base: Some(Base {
            kind: ChainType::Filter,
            hook: Hook::Forward,
            priority,
            device: None,
            policy: Policy::Accept,
        }),
    };
    both.nft(vec![hooked(0)], Ok(()));
    both.nft(vec![hooked(0)], Ok(()));
    // Both refuse another one; the kernel's reason depends on what is other.
    let op = Op::Nft { table: table(NftFamily::Inet), ops: vec![hooked(1)] };
    assert_eq!(both.sim.apply(&op), Err(Refusal::Exists));
    both.real.apply(&[op]).remove(0).unwrap_err();

    let to = |chain: &str| elements(Some(Verdict::Jump(chain.to_owned())));
    both.nft(vec![add("map", &map, to("none"))], missing);
    both.nft(vec![add("map", &map, to("b"))], Ok(()));
    both.nft(vec![add("map", &map, to("a"))], Err(Refusal::Exists));
    both.nft(vec![NftOp::DelChain { name: "b".into() }], busy);
    both.nft(vec![del("map", &map, to("b")), NftOp::DelChain { name: "b".into() }], Ok(()));
    both.nft(vec![NftOp::DelTable], Ok(()));
    both.nft(vec![NftOp::DelTable], missing);
}

/// Kernels are of two kinds here, and the simulation can be of either.
#[test]
fn an_ingress_chain_needs_its_device_or_does_not() {
    let mut both = Both::new();
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Ingress,
        priority: -150,
        device: Some(name("cw-a")),
        policy: Policy::Accept,
    };
    let op = |ops| Op::Nft { table: table(NftFamily::Netdev), ops };
    let chain = NftOp::AddChain { name: "guard".to_owned(), base: Some(base) };
    let make = op(vec![NftOp::AddTable, chain]);
    let keeps = both.real.apply(std::slice::from_ref(&make)).remove(0).is_ok();
    println!("ingress chains need no device: {keeps}");
    both.sim.keeps_ingress_chains = keeps;
    if keeps {
        both.real.apply(&[op(vec![NftOp::DelTable])]).remove(0).unwrap();
    }
    let without = if keeps { Ok(()) } else { Err(Refusal::Missing) };
    both.op(make.clone(), without);
    both.make([Object::Link(veth("cw-a", "cw-b"))]);
    both.op(make, Ok(()));
    both.op(Op::Remove(Object::Link(veth("cw-a", "cw-b"))), Ok(()));
    both.op(op(vec![NftOp::FlushChain { name: "guard".to_owned() }]), without);
}
