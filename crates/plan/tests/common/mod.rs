//! Random node states for the laws of planning.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::nft::{
    Base, Chain, ChainType, Content, Field, Hook, KeyPart, KeyType, MatchOp, NftFamily, NftTable,
    Policy, Rule, Set, Stmt, Verdict,
};
use causeway_model::{
    Addr, Desired, Fdb, Key, Link, LinkKind, Neigh, Object, Observed, Owner, Route, RouteKind,
    RouteScope, Sysctl, Vxlan,
};
use causeway_plan::Ownership;
use causeway_types::{Cidr, Family, IfName, Mac, Vni};
use proptest::prelude::*;

/// One choice of what a node should hold.
#[derive(Clone, Debug)]
pub struct World {
    pub bridge: bool,
    pub vni: u32,
    pub families: Vec<Family>,
    /// Per peer: none, direct, or VXLAN with a variant of its address.
    pub peers: Vec<Peer>,
    pub pods: BTreeSet<u8>,
    pub extra_rule: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Absent,
    Direct(u8),
    Vxlan(u8),
}

pub fn world() -> impl Strategy<Value = World> {
    let peer = prop_oneof![
        Just(Peer::Absent),
        (0u8..2).prop_map(Peer::Direct),
        (0u8..2).prop_map(Peer::Vxlan)
    ];
    let families = prop_oneof![
        Just(vec![Family::V4]),
        Just(vec![Family::V6]),
        Just(vec![Family::V4, Family::V6])
    ];
    (
        any::<bool>(),
        1u32..3,
        families,
        proptest::collection::vec(peer, 5),
        proptest::collection::btree_set(2u8..9, 0..4),
        any::<bool>(),
    )
        .prop_map(|(bridge, vni, families, peers, pods, extra_rule)| World {
            bridge,
            vni,
            families,
            peers,
            pods,
            extra_rule,
        })
}

pub fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn subnet(family: Family, node: u8) -> Cidr {
    match family {
        Family::V4 => format!("10.244.{node}.0/24").parse().unwrap(),
        Family::V6 => format!("fd00:10:244:{node}::/64").parse().unwrap(),
    }
}

fn underlay(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => ip(&format!("192.168.1.{host}")),
        Family::V6 => ip(&format!("fd00:192:168:1::{host}")),
    }
}

fn in_subnet(subnet: Cidr, host: u8) -> IpAddr {
    match subnet.addr() {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits() + u32::from(host)).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() + u128::from(host)).into()),
    }
}

pub fn route(dst: Cidr, dev: &str, via: Option<IpAddr>, protocol: u8) -> Route {
    Route {
        dst,
        table: Route::MAIN,
        metric: Route::default_metric(dst.family()),
        kind: RouteKind::Unicast,
        dev: Some(name(dev)),
        via,
        onlink: false,
        src: None,
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        protocol,
        mtu: None,
        advmss: None,
    }
}

impl World {
    /// The desired state of node 1.
    pub fn desired(&self) -> Desired {
        let mut d = Desired::default();
        let mut add = |owner: Owner, object: Object| assert!(d.add(owner, "", object));
        let tunnel = self.peers.iter().any(|p| matches!(p, Peer::Vxlan(_)));
        for family in &self.families {
            let path = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            add(Owner::Node, sysctl(path, "1"));
        }
        let home = if self.bridge { Some("cni0") } else { tunnel.then_some("cw-vxlan") };
        if self.bridge {
            add(Owner::Node, Object::Link(Link::up(name("cni0"), LinkKind::Bridge)));
            add(Owner::Node, sysctl("net/ipv4/conf/cni0/send_redirects", "0"));
        }
        if tunnel {
            let vxlan = Vxlan {
                vni: Vni::new(self.vni).unwrap(),
                port: 8472,
                local: underlay(Family::V4, 11),
            };
            add(Owner::Node, Object::Link(Link::up(name("cw-vxlan"), LinkKind::Vxlan(vxlan))));
        }
        for &family in &self.families {
            let own = subnet(family, 1);
            if let Some(home) = home {
                let addr = Addr::new(name(home), own.gateway_net());
                add(Owner::Node, Object::Addr(addr));
            }
            for (i, peer) in self.peers.iter().enumerate() {
                for object in self.peer_objects(family, i as u8 + 2, *peer) {
                    add(Owner::Peer(format!("node-{i}")), object);
                }
            }
        }
        add(Owner::Node, Object::Table(self.table()));
        if !self.pods.is_empty() {
            for table in self.pod_tables() {
                add(Owner::Node, Object::Table(table));
            }
        }
        d
    }

    fn peer_objects(&self, family: Family, node: u8, peer: Peer) -> Vec<Object> {
        let dst = subnet(family, node);
        let mac = Mac::derived(&format!("vtep/{node}"));
        match peer {
            Peer::Absent => vec![],
            Peer::Direct(v) => {
                let via = underlay(family, 100 + 10 * v + node);
                vec![Object::Route(route(dst, "eth0", Some(via), 203))]
            }
            Peer::Vxlan(v) => {
                let mut r = route(dst, "cw-vxlan", Some(dst.gateway()), 203);
                r.onlink = true;
                r.src = Some(subnet(family, 1).gateway());
                let mut all = vec![
                    Object::Route(r),
                    Object::Neigh(Neigh {
                        dev: name("cw-vxlan"),
                        ip: dst.gateway(),
                        mac: Some(mac),
                        proxy: false,
                        permanent: true,
                    }),
                ];
                if family == self.families[0] {
                    all.push(Object::Fdb(Fdb {
                        dev: name("cw-vxlan"),
                        mac,
                        dst: Some(underlay(Family::V4, 100 + 10 * v + node)),
                        permanent: true,
                    }));
                }
                all
            }
        }
    }

    fn table(&self) -> NftTable {
        let mut table = NftTable::new(NftFamily::Inet, "causeway", true);
        let mut peers = Set::of(KeyType::Addr(Family::V4), false);
        for (i, peer) in self.peers.iter().enumerate() {
            if let Peer::Vxlan(v) = peer {
                let addr = underlay(Family::V4, 100 + 10 * v + i as u8 + 2);
                peers.add(KeyPart::addr(addr), None);
            }
        }
        let closed = Rule::new(
            "tunnels take packets of peers only",
            vec![
                Stmt::is(Field::L4Proto, KeyPart::Proto(17)),
                Stmt::is(Field::Dport, KeyPart::Port(8472)),
                Stmt::lookup([Field::Saddr(Family::V4)], MatchOp::Ne, "peers4"),
                Stmt::Counter,
                Stmt::Verdict(Verdict::Drop),
            ],
        );
        let mut rules = vec![closed];
        if self.extra_rule {
            rules.push(Rule::new("count", vec![Stmt::Counter]));
        }
        let base = Base {
            kind: ChainType::Filter,
            hook: Hook::Prerouting,
            priority: -300,
            device: None,
            policy: Policy::Accept,
        };
        table.sets.insert("peers4".into(), peers);
        table.chains.insert("tunnel".into(), Chain { base: Some(base), rules });
        table
    }

    /// The plugins' shared table: a chain that a verdict map leads to.
    fn pod_tables(&self) -> Vec<NftTable> {
        let mut table = NftTable::new(NftFamily::Inet, "causeway_cni", false);
        let mut map = Set::vmap(KeyType::Addr(Family::V4));
        for pod in &self.pods {
            let key = KeyPart::addr(in_subnet(subnet(Family::V4, 1), *pod));
            let verdict = Some(Verdict::Goto("except_1".into()));
            map.elements.insert(key.into(), Content { verdict, ..Content::default() }.into());
        }
        table.sets.insert("masq4".into(), map);
        let rule = Rule::new("", vec![Stmt::Masquerade { fully_random: true }]);
        table.chains.insert("except_1".into(), Chain { base: None, rules: vec![rule] });
        vec![table]
    }
}

pub fn sysctl(path: &str, value: &str) -> Object {
    Object::Sysctl(Sysctl { path: path.into(), value: value.into() })
}

/// What others made on the node: the underlay, and things that look like ours but are not.
pub fn foreign() -> Vec<Object> {
    let mut eth0 = Link::up(name("eth0"), LinkKind::Other(String::new()));
    eth0.mac = Some(Mac::derived("eth0"));
    let addr = |text: &str| Object::Addr(Addr::new(name("eth0"), text.parse().unwrap()));
    let mut table = NftTable::new(NftFamily::Inet, "firewall", false);
    table.chains.insert("input".into(), Chain { base: None, rules: vec![] });
    vec![
        Object::Link(eth0),
        Object::Link(Link::up(name("docker0"), LinkKind::Bridge)),
        addr("192.168.1.11/24"),
        addr("fd00:192:168:1::11/64"),
        Object::Route(route("172.17.0.0/16".parse().unwrap(), "eth0", Some(ip("192.168.1.1")), 4)),
        // Our protocol number, but nothing that we recorded.
        Object::Route(route("10.99.0.0/24".parse().unwrap(), "eth0", Some(ip("192.168.1.9")), 203)),
        Object::Table(table),
    ]
}

pub fn start() -> Observed {
    foreign().into_iter().collect()
}

pub fn keys(d: &Desired) -> BTreeSet<Key> {
    d.iter().map(|(k, _)| k.clone()).collect()
}

pub fn owner(recorded: BTreeSet<Key>, allow_removals: bool) -> Ownership {
    let taken = BTreeSet::new();
    Ownership { recorded, route_protocol: 203, allow_removals, makes_veths: false, taken }
}
