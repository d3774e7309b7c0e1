//! What an attachment's mapped ports are, on disk and in nftables.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use causeway_model::nft::{
    Base, Chain, ChainType, Content, Element, ElementKey, Field, Hook, KeyPart, KeyType, NftTable,
    Policy, Rule, Set, Stmt, Verdict,
};
use causeway_types::{Cidr, Family, IfName, Mac};
use serde::{Deserialize, Serialize};

use super::conf::loopback;
use crate::notes::{Note, Whose};
use crate::owned;

/// Of IPv6, which has no `route_localnet`: the kernel looks an answer to it up as one from the
/// loopback device alone (`rt6_need_strict` in `net/ipv6/route.c`), and drops it.
pub(super) const LOCALHOST: Ipv6Addr = Ipv6Addr::LOCALHOST;
/// The chain that keeps loopback addresses from outside out, and how many rules it has.
pub(super) const LOCALNET: &str = "localnet";
pub(super) const LOCALNET_RULES: usize = 2;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;

/// One port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Port {
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Only for packets to this address.
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// The pod.
    pub to: SocketAddr,
}

/// Connections that get the node's address as their source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Masquerade {
    /// Bit of the packet's mark.
    pub bit: u8,
    /// All of them; else those from the pod's subnets and from the node by its loopback address.
    pub all: bool,
    /// The pod's subnets.
    pub subnets: Vec<Cidr>,
}

/// The ports of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ports {
    /// Whose they are.
    pub whose: Whose,
    /// Masquerading, if there is any.
    pub masquerade: Option<Masquerade>,
    /// The ports.
    pub ports: Vec<Port>,
}

impl Note for Ports {
    fn whose(&self) -> &Whose {
        &self.whose
    }
}

impl Masquerade {
    /// The rules that mark what is to be masqueraded, and the chain's name.
    fn chain(&self, family: Family) -> (String, Chain) {
        let mark = Stmt::Mark { bits: self.bits() };
        let mut sources: Vec<Cidr> =
            self.subnets.iter().copied().filter(|c| c.family() == family).collect();
        if family == Family::V4 {
            sources.push(loopback());
        }
        sources.sort_unstable();
        sources.dedup();
        if self.all {
            sources.clear();
        }
        let texts: Vec<String> = sources.iter().map(Cidr::to_string).collect();
        let hash = Mac::derived(&format!("{family}/{}/{}", self.bit, texts.join(","))).0;
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        let mut rules: Vec<Rule> = sources
            .iter()
            .map(|c| {
                let from = Stmt::is(Field::Saddr(family), KeyPart::Net(*c));
                Rule::new("would not be answered by this way", vec![from, mark.clone()])
            })
            .collect();
        if self.all {
            rules.push(Rule::new("all are masqueraded", vec![mark]));
        }
        (format!("mark_{hex}"), Chain { base: None, rules })
    }

    fn bits(&self) -> u32 {
        1 << self.bit
    }
}

/// Names of the two maps of a family (translations, marks), for ports of all addresses or of one.
fn maps(family: Family, by_ip: bool) -> [String; 2] {
    let number = if family == Family::V4 { 4 } else { 6 };
    let ip = if by_ip { "ip_" } else { "" };
    [format!("{ip}ports{number}"), format!("{ip}marks{number}")]
}

fn base(kind: ChainType, hook: Hook, priority: i32) -> Option<Base> {
    Some(Base { kind, hook, priority, device: None, policy: Policy::Accept })
}

/// All maps, without elements.
pub(crate) fn sets() -> NftTable {
    let mut table = owned::empty();
    for family in Family::BOTH {
        for by_ip in [false, true] {
            let mut key = vec![KeyType::InetProto, KeyType::InetService];
            if by_ip {
                key.insert(0, KeyType::Addr(family));
            }
            let [ports, marks] = maps(family, by_ip);
            let to = vec![KeyType::Addr(family), KeyType::InetService];
            let vmap = Set { vmap: true, ..Set::map(key.clone(), Vec::new()) };
            table.sets.insert(ports, Set::map(key, to));
            table.sets.insert(marks, vmap);
        }
    }
    table
}

fn chains(table: &mut NftTable) {
    let mut dispatch = Vec::new();
    for family in Family::BOTH {
        let mut rules = Vec::new();
        if family == Family::V6 {
            let localhost = Stmt::is(Field::Daddr(family), KeyPart::addr(LOCALHOST.into()));
            let why = "answers would not be taken in: refused rather than lost";
            rules.push(Rule::new(why, vec![localhost, Stmt::Verdict(Verdict::Return)]));
        }
        for by_ip in [true, false] {
            let mut fields = vec![Field::L4Proto, Field::Dport];
            if by_ip {
                fields.insert(0, Field::Daddr(family));
            }
            let [ports, marks] = maps(family, by_ip);
            let which = if by_ip { "ports of one address" } else { "ports of all addresses" };
            rules.push(Rule::new(which, vec![Stmt::Vmap { fields: fields.clone(), map: marks }]));
            rules.push(Rule::new(which, vec![Stmt::Dnat { family, fields, map: ports }]));
        }
        let name = format!("hostports{}", if family == Family::V4 { 4 } else { 6 });
        table.chains.insert(name.clone(), Chain { base: None, rules });
        let stmts = vec![
            Stmt::is(Field::Nfproto, KeyPart::Family(family)),
            Stmt::is(Field::FibDaddrType, KeyPart::AddrType(LOCAL)),
            Stmt::Verdict(Verdict::Jump(name)),
        ];
        dispatch.push(Rule::new("to an address of the node", stmts));
    }
    for (name, hook) in
        [("hostport_prerouting", Hook::Prerouting), ("hostport_output", Hook::Output)]
    {
        let base = base(ChainType::Nat, hook, -100);
        table.chains.insert(name.to_owned(), Chain { base, rules: dispatch.clone() });
    }
    table.chains.insert(LOCALNET.to_owned(), localnet());
}

/// With `route_localnet` an interface takes packets to and from 127.0.0.0/8 in, which nobody but
/// the node itself may send (CVE-2020-8558). Answers are not met: on the wire they go to the
/// node's own address, and are translated back behind this.
fn localnet() -> Chain {
    let Ok(lo) = IfName::new("lo") else { return Chain { base: None, rules: Vec::new() } };
    let drop = |field| {
        let outside = Stmt::is_not(Field::IifName, KeyPart::IfName(lo.clone()));
        let net = Stmt::is(field, KeyPart::Net(loopback()));
        let drop = Stmt::Verdict(Verdict::Drop);
        Rule::new("loopback addresses from outside", vec![outside, net, Stmt::Counter, drop])
    };
    let rules = vec![drop(Field::Daddr(Family::V4)), drop(Field::Saddr(Family::V4))];
    Chain { base: base(ChainType::Filter, Hook::Prerouting, -300), rules }
}

impl Ports {
    /// What our table holds for the attachment, with all chains that it needs.
    pub(crate) fn table(&self) -> NftTable {
        let mut table = sets();
        chains(&mut table);
        let comment = Some(self.whose.tag());
        if let Some(masquerade) = &self.masquerade {
            let marked = Stmt::is(Field::Mark, KeyPart::Mark(masquerade.bits()));
            let rule = Rule::new(
                "marked in hostports",
                vec![marked, Stmt::Masquerade { fully_random: true }],
            );
            // Before the masquerade of pods, which would leave some of them alone.
            let base = base(ChainType::Nat, Hook::Postrouting, 99);
            let name = format!("hostport_masq{}", masquerade.bit);
            table.chains.insert(name, Chain { base, rules: vec![rule] });
        }
        for port in &self.ports {
            let family = Family::of(port.to.ip());
            let [ports, marks] = maps(family, port.host_ip.is_some());
            let key = port.key();
            if let Some(masquerade) = &self.masquerade {
                let (name, chain) = masquerade.chain(family);
                table.chains.insert(name.clone(), chain);
                let verdict = Some(Verdict::Jump(name));
                let comment = comment.clone();
                let element = Content { verdict, comment, ..Content::default() }.into();
                insert(&mut table, &marks, key.clone(), element);
            }
            let data = vec![KeyPart::addr(port.to.ip()), KeyPart::Port(port.to.port())];
            let element = Content { verdict: None, data, comment: comment.clone() }.into();
            insert(&mut table, &ports, key, element);
        }
        table
    }
}

fn insert(table: &mut NftTable, set: &str, key: ElementKey, element: Element) {
    if let Some(set) = table.sets.get_mut(set) {
        set.elements.insert(key, element);
    }
}

impl Port {
    fn key(&self) -> ElementKey {
        let ip = self.host_ip.map(KeyPart::addr).into_iter();
        ip.chain([KeyPart::Proto(self.protocol), KeyPart::Port(self.host_port)]).collect()
    }
}
