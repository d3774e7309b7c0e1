//! The agent's table: closed tunnels and masquerade.

use std::net::IpAddr;

use causeway_model::nft::{
    Base, Chain, ChainType, Field, Hook, KeyPart, KeyType, MatchOp, NftFamily, NftTable, Policy,
    Rule, Set, Stmt, Verdict,
};
use causeway_types::state::Attach;
use causeway_types::{Cidr, Family, IfName, names};

use crate::cidrs;
use crate::input::{Config, NodeInfo, Road};
use crate::roads::{Peer, PeerRoad};

const UDP: u8 = 17;
const LOCAL: u8 = 2;

/// What the table depends on.
pub(crate) struct Ground<'a> {
    pub(crate) config: &'a Config,
    pub(crate) own: &'a NodeInfo,
    pub(crate) all_cidrs: Vec<Cidr>,
    pub(crate) all_nodes: Vec<IpAddr>,
    pub(crate) peers: &'a [Peer],
    pub(crate) families: &'a [Family],
    pub(crate) no_masquerade: &'a [Cidr],
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
    let mut tunnel = Vec::new();
    let mut out = Vec::new();
    let port = |p: u16| {
        vec![
            Stmt::is(Field::L4Proto, KeyPart::Proto(UDP)),
            Stmt::is(Field::Dport, KeyPart::Port(p)),
        ]
    };
    let vxlan = ground.config.vxlan_port;
    if ground.config.road != Road::Direct {
        for &family in ground.families {
            let from_pod = || {
                vec![
                    set(Field::Saddr, family, MatchOp::Eq, "pods"),
                    set(Field::Daddr, family, MatchOp::Eq, "nodes"),
                ]
            };
            let to_port = [from_pod(), port(vxlan)].concat();
            tunnel.push(drop("a pod sends to a tunnel port", to_port));
            for proto in [4, 41] {
                let inside = vec![Stmt::is(Field::L4Proto, KeyPart::Proto(proto))];
                let stmts = [from_pod(), inside].concat();
                tunnel.push(drop("a pod sends a packet inside a packet to a node", stmts));
            }
        }
        for family in Family::BOTH {
            let from_peer = set(Field::Saddr, family, MatchOp::Eq, "peers");
            let stmts =
                [port(vxlan), vec![from_peer, Stmt::Notrack, Stmt::Verdict(Verdict::Accept)]];
            tunnel.push(Rule::new("tunnel packets of peers, not tracked", stmts.concat()));
            let to_peer = set(Field::Daddr, family, MatchOp::Eq, "peers");
            let stmts = [port(vxlan), vec![to_peer, Stmt::Notrack]].concat();
            out.push(Rule::new("tunnel packets to peers, not tracked", stmts));
        }
        let local = vec![Stmt::is(Field::FibDaddrType, KeyPart::AddrType(LOCAL))];
        let stmts = [port(vxlan), local].concat();
        tunnel.push(drop("a tunnel packet from somebody who is no peer", stmts));
        let dev = IfName::new(names::VXLAN_DEV).expect("a valid name");
        for family in Family::BOTH {
            let from = Stmt::is(Field::IifName, KeyPart::IfName(dev.clone()));
            let stmts = vec![from, set(Field::Saddr, family, MatchOp::Ne, "remote")];
            tunnel.push(drop("the tunnel brings a packet that is of no peer's pod", stmts));
        }
    }
    table.chains.insert("tunnel".into(), base(ChainType::Filter, Hook::Prerouting, -300, tunnel));
    table.chains.insert("tunnel_out".into(), base(ChainType::Filter, Hook::Output, -300, out));
    if ground.config.attach == Attach::Bridge {
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

fn sets(table: &mut NftTable, ground: &Ground<'_>, family: Family) {
    let nets = |list: &[Cidr]| {
        let mut set = Set::of(KeyType::Addr(family), true);
        for cidr in cidrs::minimal(cidrs::of_family(list, family)) {
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
    let remote: Vec<Cidr> = tunnelled.iter().flat_map(|p| p.cidrs.iter().copied()).collect();
    let mut outer = tunnelled.iter().filter_map(|p| match p.road {
        PeerRoad::Vxlan(to) => Some(to),
        PeerRoad::Direct(_) => None,
    });
    let mut add = |name: &str, set: Set| {
        table.sets.insert(suffixed(name, family), set);
    };
    add("pods", nets(&ground.all_cidrs));
    add("local", nets(&ground.own.pod_cidrs));
    add("nodes", hosts(&mut ground.all_nodes.iter().copied()));
    add("peers", hosts(&mut outer));
    add("remote", nets(&remote));
    add("nomasq", nets(ground.no_masquerade));
}
