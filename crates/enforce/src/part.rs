//! Programs and sets of ports as sets and chains of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use causeway_model::nft::{
    Chain, Content, Element, ElementKey, Field, KeyPart, KeyType, MatchOp, Rule, Set, Stmt, Verdict,
};
use causeway_policy::compile::Program;
use causeway_policy::{Direction, Pods, PortSet, Protocol};
use causeway_types::{Cidr, Family};
use ipnet::{Ipv4Subnets, Ipv6Subnets};

use crate::frame::{self, Read, goto, rule};

/// Ranges of more ports than this are kept as ranges, in a set that is not hashed.
const WIDE: u16 = 64;
/// A program has at most so many usual sets of ports: each costs packets a look-up.
const MOST_USUAL: usize = 3;
/// So many ports, each with its protocol, are compared one by one.
const FEW_PORTS: usize = 2;

/// A part of the table that nobody changes once it is there, but for the elements of its sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    pub(crate) sets: Vec<(String, Set)>,
    pub(crate) chains: Vec<(String, Chain)>,
}

fn hash(value: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The sets of ports that most listed addresses of a program have, by family, each that of more than `few`: such
/// addresses are kept in plain sets, in the order of these. Whatever adds an element that leads to a chain has the
/// kernel follow all such elements of the table (`nft_table_validate`), and a plain set has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Usual {
    v4: Vec<PortSet>,
    v6: Vec<PortSet>,
}

impl Usual {
    pub(crate) fn of(program: &Program, few: usize) -> Self {
        let of = |family: Family| {
            let counts = program.peers.counts_in(family).into_iter();
            let mut all: Vec<(&PortSet, usize)> = counts.filter(|(_, n)| *n > few).collect();
            all.sort_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
            all.into_iter().take(MOST_USUAL).map(|(ports, _)| ports.clone()).collect()
        };
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    pub(crate) fn in_family(&self, family: Family) -> &[PortSet] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The sets of a family that a program asks, by name. They outlive it: one that lists the same takes them over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Lists {
    /// Listed addresses: a set for each usual set of ports.
    pub(crate) usual: Vec<String>,
    /// A map of all other listed addresses, if there were any when the program was made: the kernel goes through each
    /// such map of the table with every chain that is added.
    pub(crate) others: Option<String>,
    /// Ranges: sets or a map, as [`Blocks`] says.
    pub(crate) ranges: Vec<String>,
}

impl Lists {
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.usual.iter().chain(&self.others).chain(&self.ranges)
    }
}

/// What a set of a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Listed addresses.
    Listed,
    /// Ranges of addresses: which of the sets that a program keeps them in.
    Ranges(usize),
}

/// A name for a set of a program, the first of which the table has none. Ranges are told by it, and which of the sets that
/// they are kept in it is: the kernel fills these a moment after a transaction, so none of them may change, not even when
/// an agent finds what another one left.
pub(crate) fn list_name(
    direction: Direction,
    whose: impl Hash,
    ranges: &BTreeMap<IpAddr, PortSet>,
    (family, kind, set): (Family, Holds, &Set),
    is_free: impl Fn(&str) -> bool,
) -> String {
    let holds = match (kind, set.vmap) {
        (Holds::Listed, false) => "p",
        (Holds::Listed, true) => "pm",
        (Holds::Ranges(_), false) => "r",
        (Holds::Ranges(_), true) => "rm",
    };
    let whose = match kind {
        Holds::Listed => hash(whose),
        Holds::Ranges(number) => hash((whose, ranges, number)),
    };
    let start = format!("{}_{whose}_{}_{holds}", frame::word(direction), frame::digit(family));
    let mut names = (0..).map(|number| format!("{start}{number}"));
    names.find(|name| is_free(name)).expect("there are more numbers than sets")
}

/// The name of a program's chains, by all that it holds but its listed addresses, and by whose it is.
pub(crate) fn program_name(
    direction: Direction,
    whose: impl Hash,
    program: &Program,
    usual: &Usual,
    lists: &[Lists; 2],
) -> String {
    let content = (whose, &program.groups, &program.members, &program.ranges, usual, lists);
    format!("{}_{}", frame::word(direction), hash(content))
}

/// The chain of a program for a family.
pub(crate) fn program_chain(program: &str, family: Family) -> String {
    format!("{program}_{}", frame::digit(family))
}

/// The set of a group's members.
pub(crate) fn group(pods: &Pods, family: Family) -> String {
    format!("pods_{}_{}", hash(pods), frame::digit(family))
}

/// The name by which chains of a set of ports are known.
fn ports_name(ports: &PortSet) -> String {
    format!("ports_{}", hash(ports))
}

fn ports_chain(direction: Direction, ports: &PortSet) -> String {
    format!("{}_{}", frame::word(direction), ports_name(ports))
}

/// What becomes of a packet whose peer may use a set of ports, as an element says it.
pub(crate) fn verdict(direction: Direction, ports: &PortSet) -> Verdict {
    if ports.is_all() {
        Verdict::Return
    } else if ports.is_none() {
        Verdict::Goto(frame::deny(direction))
    } else {
        Verdict::Goto(ports_chain(direction, ports))
    }
}

/// And as a rule for such packets says it.
fn verdict_of(read: Read, direction: Direction, ports: &PortSet) -> Verdict {
    match verdict(direction, ports) {
        Verdict::Goto(chain) => Verdict::Goto(read.side(&chain)),
        other => other,
    }
}

/// The sets of ports that a program leads to, how often, and whether by elements.
pub(crate) fn ports_of<'a>(
    program: &'a Program,
    usual: &'a Usual,
) -> Vec<(&'a PortSet, usize, bool)> {
    let mut all: Vec<_> = program.members.values().map(|ports| (ports, 1, false)).collect();
    for family in Family::BOTH {
        let usual = usual.in_family(family);
        all.extend(usual.iter().map(|ports| (ports, 1, false)));
        let listed = program.peers.counts_in(family).into_iter();
        all.extend(listed.map(|(ports, count)| (ports, count, !usual.contains(ports))));
        let of_family = program.ranges.iter().filter(|(ip, _)| Family::of(**ip) == family);
        let ranges: BTreeSet<&PortSet> = of_family.map(|(_, ports)| ports).collect();
        let by_elements = matches!(blocks(program, family), Blocks::Map);
        all.extend(ranges.into_iter().map(|ports| (ports, 1, by_elements)));
    }
    all
}

pub(crate) fn element(verdict: Verdict) -> Element {
    Content { verdict: Some(verdict), ..Content::default() }.into()
}

/// A program's chains for a family, which ask these sets.
pub(crate) fn program(
    name: &str,
    direction: Direction,
    program: &Program,
    (family, usual, lists): (Family, &Usual, &Lists),
) -> Part {
    let mut part = Part::default();
    let usual = usual.in_family(family);
    let blocks = blocks(program, family);
    let rules = |read: Read| {
        let peer = read.peer(direction, family);
        let to = |ports: &PortSet| Stmt::Verdict(verdict_of(read, direction, ports));
        let one = |(set, ports): (&String, &PortSet)| {
            rule([Stmt::lookup([peer], MatchOp::Eq, set), to(ports)])
        };
        let mut rules: Vec<Rule> = lists.usual.iter().zip(usual).map(one).collect();
        let ask = |map: &String| rule([Stmt::Vmap { fields: vec![peer], map: map.clone() }]);
        rules.extend(lists.others.as_ref().map(ask));
        let last = blocks.stmts(direction, peer, read, &lists.ranges);
        rules.extend(members(program, direction, family, read, &last));
        rules.extend(last.into_iter().map(rule));
        rules
    };
    put_sides(&mut part, &program_chain(name, family), rules);
    part
}

/// How ranges of addresses are kept.
enum Blocks<'a> {
    /// All addresses of the family may use the same.
    One(&'a PortSet),
    /// A set for each set of ports; whoever is in none may use nothing.
    Sets(Vec<&'a PortSet>),
    /// A map of all addresses.
    Map,
}

fn blocks(program: &Program, family: Family) -> Blocks<'_> {
    let of_family = program.ranges.iter().filter(|(ip, _)| Family::of(**ip) == family);
    let different: BTreeSet<&PortSet> = of_family.map(|(_, ports)| ports).collect();
    if let (1, Some(ports)) = (different.len(), different.first()) {
        return Blocks::One(ports);
    }
    let some: Vec<&PortSet> = different.iter().filter(|ports| !ports.is_none()).copied().collect();
    // A set that is being filled has nothing for a moment, and nothing may pass for that.
    match some.len() < different.len() && some.len() <= MOST_USUAL {
        true => Blocks::Sets(some),
        false => Blocks::Map,
    }
}

/// The sets of a program's ranges.
pub(crate) fn ranges(direction: Direction, program: &Program, family: Family) -> Vec<Set> {
    match blocks(program, family) {
        Blocks::One(_) => Vec::new(),
        Blocks::Sets(all) => {
            let nets = nets(program, family);
            let sets = all.iter().map(|ports| {
                let mut set = Set::of(KeyType::Addr(family), true);
                let within = nets.iter().filter(|(_, of)| of == ports);
                within.for_each(|(net, _)| set.add(KeyPart::Net(*net), None));
                set
            });
            sets.collect()
        }
        Blocks::Map => {
            let mut map = Set { interval: true, ..Set::vmap(KeyType::Addr(family)) };
            for (net, ports) in nets(program, family) {
                map.elements.insert(KeyPart::Net(net).into(), element(verdict(direction, ports)));
            }
            vec![map]
        }
    }
}

impl Blocks<'_> {
    /// The rules for all of whom nothing is known but their address.
    fn stmts(
        &self,
        direction: Direction,
        peer: Field,
        read: Read,
        names: &[String],
    ) -> Vec<Vec<Stmt>> {
        let to = |ports: &PortSet| Stmt::Verdict(verdict_of(read, direction, ports));
        let deny = vec![goto(read.side(&frame::deny(direction)))];
        match self {
            Self::One(ports) => vec![vec![to(ports)]],
            Self::Sets(sets) => {
                let one = |(set, ports): (&String, &&PortSet)| {
                    vec![Stmt::lookup([peer], MatchOp::Eq, set), to(ports)]
                };
                names.iter().zip(sets).map(one).chain([deny]).collect()
            }
            Self::Map => {
                let map = names
                    .iter()
                    .map(|map| vec![Stmt::Vmap { fields: vec![peer], map: map.clone() }]);
                map.chain([deny]).collect()
            }
        }
    }
}

/// A chain for tracked packets and one for the others.
fn put_sides(part: &mut Part, name: &str, rules: impl Fn(Read) -> Vec<Rule>) {
    for read in Read::BOTH {
        part.chains.push((read.side(name), frame::chain(rules(read))));
    }
}

/// The rules for members of groups: those of most groups first. `last`: the rules for those of whom nothing is
/// known but their address.
fn members(
    program: &Program,
    direction: Direction,
    family: Family,
    read: Read,
    last: &[Vec<Stmt>],
) -> Vec<Rule> {
    let peer = read.peer(direction, family);
    let mut masks: Vec<u8> = (1..1u8 << program.groups.len()).collect();
    masks.sort_by_key(|mask| std::cmp::Reverse((mask.count_ones(), *mask)));
    let of = |mask: u8| {
        let groups = program.groups.iter().enumerate();
        let within = groups.filter(move |(i, _)| mask >> i & 1 == 1);
        let within: Vec<Stmt> = within
            .map(|(_, pods)| Stmt::lookup([peer], MatchOp::Eq, group(pods, family)))
            .collect();
        let rest = match program.members.get(&mask) {
            Some(ports) => vec![vec![Stmt::Verdict(verdict_of(read, direction, ports))]],
            // No pod was in just these when the program was made.
            None => last.to_vec(),
        };
        rest.into_iter().map(move |rest| rule([within.clone(), rest].concat()))
    };
    masks.into_iter().flat_map(of).collect()
}

/// The ranges of a family as prefixes.
fn nets(program: &Program, family: Family) -> Vec<(Cidr, &PortSet)> {
    let of_family = program.ranges.iter().filter(|(ip, _)| Family::of(**ip) == family);
    let starts: Vec<(&IpAddr, &PortSet)> = of_family.collect();
    let mut all = Vec::new();
    for (i, (first, ports)) in starts.iter().enumerate() {
        let next = starts.get(i + 1).map(|(ip, _)| **ip);
        let nets: Vec<ipnet::IpNet> = match (first, next) {
            (IpAddr::V4(a), Some(IpAddr::V4(b))) => {
                Ipv4Subnets::new(*a, (b.to_bits() - 1).into(), 0).map(Into::into).collect()
            }
            (IpAddr::V4(a), _) => {
                Ipv4Subnets::new(*a, u32::MAX.into(), 0).map(Into::into).collect()
            }
            (IpAddr::V6(a), Some(IpAddr::V6(b))) => {
                Ipv6Subnets::new(*a, (b.to_bits() - 1).into(), 0).map(Into::into).collect()
            }
            (IpAddr::V6(a), _) => {
                Ipv6Subnets::new(*a, u128::MAX.into(), 0).map(Into::into).collect()
            }
        };
        all.extend(nets.into_iter().map(|net| (Cidr::of(net), *ports)));
    }
    all
}

/// The chain of a set of ports for a direction, with the sets that both directions share.
pub(crate) fn ports(direction: Direction, ports: &PortSet) -> Part {
    let mut part = Part::default();
    let name = ports_name(ports);
    let single = Set::map(vec![KeyType::InetProto, KeyType::InetService], vec![]);
    let (mut single, mut whole, mut wide) = (single, Vec::new(), Vec::new());
    for protocol in Protocol::ALL {
        let mut set = Set::of(KeyType::InetService, true);
        for range in ports.ranges(protocol) {
            let (first, last) = range.into_inner();
            if (first, last) == (0, u16::MAX) {
                whole.push(protocol.number());
            } else if last - first < WIDE {
                for port in first..=last {
                    let key = [KeyPart::Proto(protocol.number()), KeyPart::Port(port)];
                    single.elements.insert(key.into(), Element::default());
                }
            } else {
                set.add(KeyPart::Ports(first, last), None);
            }
        }
        if !set.elements.is_empty() {
            let name = format!("{name}_{protocol}");
            part.sets.push((name.clone(), set));
            wide.push((protocol.number(), name));
        }
    }
    // Few are compared one by one: each set is one more that the kernel goes through for every name that it looks up.
    let few: Vec<ElementKey> = match single.elements.len() {
        0..=FEW_PORTS => single.elements.keys().cloned().collect(),
        _ => Vec::new(),
    };
    let hashed = (single.elements.len() > FEW_PORTS).then(|| {
        part.sets.push((name.clone(), single));
        name
    });
    let rules = |read: Read| {
        let is = |protocol| Stmt::is(read.protocol(), KeyPart::Proto(protocol));
        let back = || Stmt::Verdict(Verdict::Return);
        let fields = vec![read.protocol(), read.port()];
        let one = |key: &ElementKey| {
            let each =
                fields.iter().zip(key.iter()).map(|(field, part)| Stmt::is(*field, part.clone()));
            rule(each.chain([back()]).collect::<Vec<_>>())
        };
        let mut rules: Vec<Rule> = few.iter().map(one).collect();
        if let Some(set) = &hashed {
            rules.push(rule([Stmt::lookup(fields.clone(), MatchOp::Eq, set), back()]));
        }
        rules.extend(whole.iter().map(|protocol| rule([is(*protocol), back()])));
        if ports.has_other() {
            let not = |protocol: Protocol| {
                Stmt::is_not(read.protocol(), KeyPart::Proto(protocol.number()))
            };
            let mut stmts: Vec<Stmt> = Protocol::ALL.map(not).into();
            stmts.push(back());
            rules.push(rule(stmts));
        }
        for (protocol, set) in &wide {
            let within = Stmt::lookup([read.port()], MatchOp::Eq, set);
            rules.push(rule([is(*protocol), within, back()]));
        }
        rules.push(rule([goto(read.side(&frame::deny(direction)))]));
        rules
    };
    let chain = ports_chain(direction, ports);
    put_sides(&mut part, &chain, rules);
    part
}

/// The chain of a set of ports that elements lead to.
pub(crate) fn choice(direction: Direction, ports: &PortSet) -> Part {
    let chain = ports_chain(direction, ports);
    let rules = frame::chain(frame::choice(&chain));
    Part { chains: vec![(chain, rules)], ..Part::default() }
}

impl Part {
    /// The chains of a program, by name alone.
    pub(crate) fn chains_of_program(name: &str) -> Vec<String> {
        Family::BOTH.map(|f| Read::BOTH.map(|read| read.side(&program_chain(name, f)))).concat()
    }

    /// The sets that chains of a set of ports may ask.
    pub(crate) fn sets_of_ports(ports: &PortSet) -> Vec<String> {
        let name = ports_name(ports);
        let wide = Protocol::ALL.map(|protocol| format!("{name}_{protocol}"));
        wide.into_iter().chain([name]).collect()
    }

    /// The chains of a set of ports for a direction, but that which elements lead to.
    pub(crate) fn chains_of_ports(direction: Direction, ports: &PortSet) -> [String; 2] {
        let chain = ports_chain(direction, ports);
        Read::BOTH.map(|read| read.side(&chain))
    }

    /// That which elements lead to.
    pub(crate) fn choice_of_ports(direction: Direction, ports: &PortSet) -> String {
        ports_chain(direction, ports)
    }
}
