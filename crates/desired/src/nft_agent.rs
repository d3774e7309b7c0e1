//! The agent's table: closed tunnels and masquerade.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::nft::{
    Base, Chain, ChainType, Field, Hook, KeyPart, KeyType, MatchOp, NftFamily, NftTable, Policy,
    Rule, Set, Stmt, Verdict,
};
use causeway_types::{Cidr, Family, IfName, names};

use crate::cidrs;
use crate::input::{Config, Road};
use crate::roads::{Peer, PeerRoad};

const UDP: u8 = 17;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;
/// The chain that packets which may be tunnelled go through.
const TO_NODE: &str = "to_node";

/// What the table depends on.
pub(crate) struct Ground<'a> {
    pub(crate) config: &'a Config,
    /// There are pods at the bridge, or may be.
    pub(crate) bridged: bool,
    pub(crate) local: &'a [Cidr],
    pub(crate) all_cidrs: Vec<Cidr>,
    pub(crate) all_nodes: Vec<IpAddr>,
    pub(crate) peers: &'a [Peer],
    pub(crate) families: &'a [Family],
    pub(crate) no_masquerade: &'a [Cidr],
    /// Names of the node's tunnel devices.
    pub(crate) tunnels: Vec<IfName>,
}

fn set(field: fn(Family) -> Field, family: Family, op: MatchOp, name: &str) -> Stmt {
    Stmt::lookup([field(family)], op, suffixed(name, family))
}

fn suffixed(name: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{name}4"),
        Family::V6 => format!("{name}6"),
    }
}

fn drop(comment: &str, mut stmts: Vec<Stmt>) -> Rule {
    stmts.extend([Stmt::Counter, Stmt::Verdict(Verdict::Drop)]);
    Rule::new(comment, stmts)
}

fn base(kind: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { kind, hook, priority, device: None, policy: Policy::Accept };
    Chain { base: Some(base), rules }
}

/// `inet causeway`.
pub(crate) fn table(ground: &Ground<'_>) -> NftTable {
    let mut table = NftTable::new(NftFamily::Inet, names::NFT_AGENT, true);
    for &family in &Family::BOTH {
        sets(&mut table, ground, family);
    }
    closed_tunnel(&mut table, ground);
    if ground.bridged && ground.families.contains(&Family::V6) {
        let stmts = vec![
            Stmt::is(Field::OifName, KeyPart::IfName(ground.config.bridge.clone())),
            Stmt::is(Field::Icmpv6Type, KeyPart::Icmpv6(137)),
        ];
        let why = "pods are not told to talk past the node: their ports are isolated";
        let rules = vec![drop(why, stmts)];
        table.chains.insert("redirects".into(), base(ChainType::Filter, Hook::Output, 0, rules));
    }
    if ground.config.masquerade {
        let mut rules = Vec::new();
        for &family in ground.families {
            let from = set(Field::Saddr, family, MatchOp::Eq, "local");
            let inside = set(Field::Daddr, family, MatchOp::Eq, "nomasq");
            let stmts = vec![from.clone(), inside, Stmt::Verdict(Verdict::Return)];
            rules.push(Rule::new("inside, pods are seen by their own address", stmts));
            let stmts = vec![from, Stmt::Masquerade { fully_random: true }];
            rules.push(Rule::new("outside, pods are seen by the node's address", stmts));
        }
        let chain = base(ChainType::Nat, Hook::Postrouting, 100, rules);
        table.chains.insert("masq".into(), chain);
    }
    table
}

/// Packets of the tunnel come from peers and from nobody else. Pods may not tunnel on a direct road
/// either: another node may be on its way to another road, and other programs have tunnels too.
///
/// Most is decided in prerouting, before connection tracking. A Service may translate a harmless
/// destination into a node's tunnel port after that, so packets are looked at once more where
/// they are forwarded and where they arrive.
fn closed_tunnel(table: &mut NftTable, ground: &Ground<'_>) {
    let udp = |stmts: Vec<Stmt>| {
        let mut all = vec![
            Stmt::is(Field::L4Proto, KeyPart::Proto(UDP)),
            Stmt::is(Field::Dport, KeyPart::Port(ground.config.vxlan_port)),
        ];
        all.extend(stmts);
        all
    };
    let nodes = |family| {
        let from = set(Field::Saddr, family, MatchOp::Eq, "pods");
        drop(
            "a pod may not tunnel to a node",
            vec![from, set(Field::Daddr, family, MatchOp::Eq, "nodes")],
        )
    };
    let pods = ground.families.iter().map(|f| nodes(*f)).collect();
    table.chains.insert(TO_NODE.to_owned(), Chain { base: None, rules: pods });
    let into = || Stmt::Verdict(Verdict::Jump(TO_NODE.to_owned()));
    let from_pods = || {
        let inside = |proto: u8, why: &str| {
            Rule::new(why, vec![Stmt::is(Field::L4Proto, KeyPart::Proto(proto)), into()])
        };
        [
            Rule::new("VXLAN", udp(vec![into()])),
            inside(4, "IPv4 inside a packet"),
            inside(41, "IPv6 inside a packet"),
        ]
    };

    let mut inward: Vec<Rule> = from_pods().into();
    let (mut outward, mut arriving) = (Vec::new(), Vec::new());
    if ground.config.road != Road::Direct {
        peers_only(&udp, &mut inward, &mut outward, &mut arriving);
    }
    ground.tunnels.iter().for_each(|dev| peers_pods_only(dev, &mut inward));
    let mut filter = |name: &str, hook, priority, rules| {
        table.chains.insert(name.to_owned(), base(ChainType::Filter, hook, priority, rules));
    };
    filter("tunnel", Hook::Prerouting, -300, inward);
    filter("tunnel_out", Hook::Output, -300, outward);
    filter("tunnel_forward", Hook::Forward, 0, from_pods().into());
    filter("tunnel_in", Hook::Input, 0, arriving);
}

/// What the node itself takes from the tunnel and puts into it. `udp` is the match of tunnel
/// packets.
fn peers_only(
    udp: &impl Fn(Vec<Stmt>) -> Vec<Stmt>,
    inward: &mut Vec<Rule>,
    outward: &mut Vec<Rule>,
    arriving: &mut Vec<Rule>,
) {
    for family in Family::BOTH {
        let peer = |field, op| set(field, family, op, "peers");
        let stmts =
            vec![peer(Field::Saddr, MatchOp::Eq), Stmt::Notrack, Stmt::Verdict(Verdict::Accept)];
        inward.push(Rule::new("tunnel packets of peers, not tracked", udp(stmts)));
        let stmts = vec![peer(Field::Daddr, MatchOp::Eq), Stmt::Notrack];
        outward.push(Rule::new("tunnel packets to peers, not tracked", udp(stmts)));
        let stmts = vec![peer(Field::Saddr, MatchOp::Ne)];
        arriving.push(drop("a translated tunnel packet from no peer", udp(stmts)));
    }
    let local = vec![Stmt::is(Field::FibDaddrType, KeyPart::AddrType(LOCAL))];
    inward.push(drop("a tunnel packet from no peer", udp(local)));
}

/// On every road: the device of a former one may still be there when the table is written.
fn peers_pods_only(dev: &IfName, inward: &mut Vec<Rule>) {
    for family in Family::BOTH {
        let from = Stmt::is(Field::IifName, KeyPart::IfName(dev.clone()));
        let stmts = vec![from, set(Field::Saddr, family, MatchOp::Ne, "remote")];
        inward.push(drop("the tunnel brings a packet of no peer's pod", stmts));
    }
}

fn sets(table: &mut NftTable, ground: &Ground<'_>, family: Family) {
    let nets = |list: &[Cidr]| {
        let mut set = Set::of(KeyType::Addr(family), true);
        for cidr in cidrs::disjoint(cidrs::of_family(list, family)) {
            set.add(KeyPart::Net(cidr), None);
        }
        set
    };
    let hosts = |list: &mut dyn Iterator<Item = IpAddr>| {
        let mut set = Set::of(KeyType::Addr(family), false);
        for ip in list.filter(|ip| Family::of(*ip) == family) {
            set.add(KeyPart::addr(ip), None);
        }
        set
    };
    let tunnelled: Vec<&Peer> =
        ground.peers.iter().filter(|p| matches!(p.road, PeerRoad::Vxlan(_))).collect();
    let remote: Vec<Cidr> =
        tunnelled.iter().flat_map(|p| p.cidrs.iter().chain(&p.claims).copied()).collect();
    let outer: BTreeSet<IpAddr> = tunnelled
        .iter()
        .flat_map(|p| match &p.road {
            PeerRoad::Vxlan(ways) => ways.values().map(|way| way.to).collect(),
            PeerRoad::Direct(_) => Vec::new(),
        })
        .collect();
    let mut add = |name: &str, set: Set| {
        table.sets.insert(suffixed(name, family), set);
    };
    add("pods", nets(&ground.all_cidrs));
    add("local", nets(ground.local));
    add("nodes", hosts(&mut ground.all_nodes.iter().copied()));
    add("peers", hosts(&mut outer.iter().copied()));
    add("remote", nets(&remote));
    add("nomasq", nets(ground.no_masquerade));
}
