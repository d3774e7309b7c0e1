//! What a pod's policies come to, for whoever has to decide by addresses and ports alone: a number of
//! look-ups that does not grow with policies, rules, peers or blocks.
//!
//! A peer's address leads to a set of ports, and the port is in it or not:
//!
//! 1. the address is one of those that are listed (pods and nodes of which the rules say something that they do
//!    not say of their address alone): its set;
//! 2. it is a member of one of the few groups of pods that are too many to be listed in each program: the set of
//!    the groups that it is in;
//! 3. else the set of the range of addresses in which it is.
//!
//! Tiers, priorities and the order of rules are gone by then: all of that is in the sets, which are what
//! [`Subject::allowed`] says. Pods whose programs are equal can share one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;
use std::ptr;
use std::sync::Arc;

use causeway_types::Family;
use ipnet::IpNet;

use crate::judge::Subject;
use crate::listed::Listed;
use crate::ports::PortSet;
use crate::rule::{Block, Direction, Peer, Peers, Pods, PortMatch, Ports, Rule};
use crate::world::{Alike, NamedPort, Seen, SeenAs, World};

/// More groups than these are listed all the same: a program decides between all combinations of them.
const MOST_GROUPS: usize = 3;
/// So many addresses are looked at one by one.
const FEW: usize = 4;

/// What a pod's policies come to in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The sets of single addresses.
    pub peers: Listed,
    /// Groups of pods that are not listed.
    pub groups: Vec<Pods>,
    /// The sets of members of groups that are not listed: by which groups a pod is in (bit 0: the first).
    pub members: BTreeMap<u8, PortSet>,
    /// The sets of all other addresses: the first address of each range, to the next one of its family.
    pub ranges: BTreeMap<IpAddr, PortSet>,
    named: Named,
}

/// Whom rules name by more than addresses. Of all others they say what they say of addresses of nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    pods: Box<[Pods]>,
    /// Whoever has ports with names.
    ports: bool,
    nodes: bool,
}

/// Who has some addresses, to be asked for by many programs.
#[derive(Debug)]
pub struct Holders<'w> {
    all: Vec<Seen<'w>>,
}

impl<'w> Holders<'w> {
    /// Of these addresses.
    #[must_use]
    pub fn of(world: &'w World, addresses: &BTreeSet<IpAddr>) -> Self {
        Self { all: addresses.iter().map(|ip| world.see(&world.at(*ip))).collect() }
    }
}

impl Program {
    /// Of a pod in a direction; `None` where no policy says anything of it: everything is allowed. Selectors
    /// that select more than `many` addresses of pods become groups.
    ///
    /// What a pod sends itself, and what its own node sends it, is judged here like that of any other: it is to be
    /// let pass by other means than an address. So pods that policies cannot tell apart have equal programs.
    #[must_use]
    pub fn of(subject: &Subject<'_>, direction: Direction, many: usize) -> Option<Self> {
        let rules = rules(subject, direction);
        let peers = peers(&rules)?;
        let world = subject.world;
        let selected = selected(world, &peers);
        let groups = groups(&selected, many);
        let starts = starts(&peers);
        let by_rules = |who, address| subject.of_seen(direction, &Seen { who, address });
        let mut sets = Sets::default();
        let of_range = of_ranges(subject, direction, &starts, &mut sets);
        // What rules say of pods and nodes they say of their addresses alone, if of nothing else.
        let named = |rule: &Rule| match &rule.ports {
            Ports::AnyOf(all) => all.iter().any(|one| matches!(one, PortMatch::Named { .. })),
            Ports::All => false,
        };
        let to_named = direction == Direction::Egress
            && rules.iter().flat_map(|rules| rules.iter()).any(named);
        let nodes = peers.iter().any(|peer| matches!(peer, Peer::Nodes(_)));

        let mut listed: Vec<(IpAddr, usize)> = Vec::new();
        let shared = world.shared_addresses();
        // Of each combination of groups what most of its members have; the others are listed.
        let mut usual: BTreeMap<u8, BTreeMap<usize, usize>> = BTreeMap::new();
        let mut members: Vec<(Part<'_>, u8, usize)> = Vec::new();
        let mut known: HashMap<(&[usize], &[NamedPort], usize), usize> = HashMap::new();
        let chosen = chosen(world, &selected, to_named);
        let count = |chosen: &Chosen<'_>| chosen.alike.addresses.len();
        if groups.is_empty() {
            listed.reserve(chosen.iter().map(count).sum());
        }
        for Chosen { alike, by } in &chosen {
            let within = groups.iter().enumerate().map(|(i, (peer, _))| match by.contains(peer) {
                true => 1u8 << i,
                false => 0,
            });
            let within: u8 = within.sum();
            let ports = if to_named { alike.looks.ports } else { &[] };
            for part in parts(alike.addresses, &starts) {
                // What rules say depends on which of their peers are meant, and on the range.
                let id = *known.entry((by, ports, part.range)).or_insert_with(|| {
                    sets.id(by_rules(SeenAs::Pod(alike.looks), starts[part.range]))
                });
                if within != 0 {
                    let of = usual.entry(within).or_default().entry(id).or_default();
                    *of += part.addresses().count();
                    members.push((part, within, id));
                } else if of_range[part.range] != id {
                    listed.extend(part.addresses().map(|ip| (ip, id)));
                }
            }
        }
        let usual: BTreeMap<u8, usize> = usual
            .into_iter()
            .filter_map(|(groups, of)| {
                // Of equally many the same each time.
                let most = |(id, count): &(usize, usize)| (*count, sets.all[*id].clone());
                Some((groups, of.into_iter().max_by_key(most)?.0))
            })
            .collect();
        for (part, groups, id) in members {
            if usual[&groups] != id {
                listed.extend(part.addresses().map(|ip| (ip, id)));
            }
        }
        let groups: Vec<Pods> = groups.into_iter().map(|(_, pods)| pods.clone()).collect();
        // Whoever comes first by name has it where several do.
        let mut instead: BTreeMap<IpAddr, Option<usize>> = BTreeMap::new();
        let of_nodes = world.nodes().filter(|_| nodes).flat_map(|(_, node)| &node.addresses);
        for ip in shared.iter().chain(of_nodes) {
            let party = world.at(*ip);
            let seen = world.see(&party);
            let id = sets.id(subject.of_seen(direction, &seen));
            let range = starts.partition_point(|start| start <= ip) - 1;
            let otherwise = usual.get(&groups_of(world, &groups, seen.who));
            let unlisted = *otherwise.unwrap_or(&of_range[range]);
            instead.insert(*ip, (unlisted != id).then_some(id));
        }
        if !instead.is_empty() {
            listed.retain(|(ip, _)| !instead.contains_key(ip));
            listed.extend(instead.into_iter().filter_map(|(ip, id)| Some((ip, id?))));
        }
        let mut ranges: BTreeMap<IpAddr, PortSet> = BTreeMap::new();
        let sets = sets.all;
        for (start, id) in starts.iter().zip(&of_range) {
            let same = |(ip, set): (&IpAddr, &PortSet)| {
                Family::of(*ip) == Family::of(*start) && *set == *sets[*id]
            };
            if !ranges.last_key_value().is_some_and(same) {
                ranges.insert(*start, (*sets[*id]).clone());
            }
        }
        let pods = peers.iter().filter_map(|peer| match peer {
            Peer::Pods(pods) => Some(pods.clone()),
            _ => None,
        });
        let named = Named { pods: pods.collect(), ports: to_named, nodes };
        Some(Self {
            named,
            peers: Listed::of(listed, &sets),
            groups,
            members: usual.into_iter().map(|(groups, id)| (groups, (*sets[id]).clone())).collect(),
            ranges,
        })
    }

    /// Whether [`Program::changes`] may answer anything. It costs little.
    #[must_use]
    pub fn concerns(&self, world: &World, holders: &Holders<'_>) -> bool {
        let holders = &holders.all;
        holders.iter().any(|seen| self.peers.contains(seen.address) || self.names(world, seen))
    }

    fn names(&self, world: &World, seen: &Seen<'_>) -> bool {
        match seen.who {
            SeenAs::Pod(looks) => {
                self.named.ports && !looks.ports.is_empty()
                    || self.named.pods.iter().any(|pods| world.selects_looks(pods, looks))
            }
            SeenAs::Node(_) => self.named.nodes,
            SeenAs::Outside => false,
        }
    }

    /// What is to be listed of addresses after the pods or nodes that have them changed, or some of those: of
    /// each, where it is not what is listed now; `None` where it is not to be listed. `subject` is any of the
    /// pods whose program this is.
    #[must_use]
    pub fn changes(
        &self,
        subject: &Subject<'_>,
        direction: Direction,
        holders: &Holders<'_>,
    ) -> Vec<(IpAddr, Option<Arc<PortSet>>)> {
        let world = subject.world;
        // Of many pods that are alike rules are asked once, for each range in which blocks say the same.
        let starts = match holders.all.len() > FEW {
            true => peers(&rules(subject, direction)).map(|peers| starts(&peers)),
            false => None,
        };
        let mut known: HashMap<_, (Arc<PortSet>, u8)> = HashMap::new();
        let mut all = Vec::new();
        for seen in &holders.all {
            let ip = seen.address;
            let find = || {
                let set = Arc::new(subject.of_seen(direction, seen));
                (set, groups_of(world, &self.groups, seen.who))
            };
            let entry = match (&starts, seen.who) {
                _ if !self.names(world, seen) => None,
                (Some(starts), SeenAs::Pod(looks)) => {
                    let alike =
                        (ptr::from_ref(looks.labels), looks.namespace.as_ptr(), looks.ports);
                    let range = starts.partition_point(|start| *start <= ip);
                    Some(known.entry((alike, range)).or_insert_with(find).clone())
                }
                _ => Some(find()),
            };
            let entry = entry.filter(|(set, groups)| self.unlisted(ip, *groups) != &**set);
            let entry = entry.map(|(set, _)| set);
            if self.peers.get(ip) != entry.as_ref() {
                all.push((ip, entry));
            }
        }
        all
    }

    /// What is true of an address that is not listed.
    fn unlisted(&self, address: IpAddr, groups: u8) -> &PortSet {
        self.members.get(&groups).unwrap_or_else(|| self.range(address))
    }

    /// By what connections with an address are allowed, which is a member of these groups.
    #[must_use]
    pub fn allowed(&self, address: IpAddr, groups: u8) -> &PortSet {
        match self.peers.get(address) {
            Some(set) => set,
            None => self.unlisted(address, groups),
        }
    }

    fn range(&self, address: IpAddr) -> &PortSet {
        let (_, set) = self
            .ranges
            .range(..=address)
            .next_back()
            .expect("both families have a range from their first address on");
        set
    }
}

/// The rules of the policies that say anything of a direction.
fn rules<'w>(subject: &Subject<'w>, direction: Direction) -> Vec<&'w [Rule]> {
    subject.policies.iter().filter_map(|policy| policy.rules(direction)).collect()
}

/// All peers that rules name; `None` where no policy says anything.
fn peers<'w>(rules: &[&'w [Rule]]) -> Option<BTreeSet<&'w Peer>> {
    let peers = rules.iter().flat_map(|rules| rules.iter()).filter_map(|rule| match &rule.peers {
        Peers::AnyOf(peers) => Some(peers),
        Peers::Everybody => None,
    });
    (!rules.is_empty()).then(|| peers.flatten().collect())
}

/// Each set once, with its number.
#[derive(Default)]
struct Sets {
    all: Vec<Arc<PortSet>>,
    ids: HashMap<Arc<PortSet>, usize>,
}

impl Sets {
    fn id(&mut self, set: PortSet) -> usize {
        if let Some(id) = self.ids.get(&set) {
            return *id;
        }
        let set = Arc::new(set);
        self.all.push(set.clone());
        self.ids.insert(set, self.all.len() - 1);
        self.all.len() - 1
    }
}

/// In which groups one is (bit 0: the first).
fn groups_of(world: &World, groups: &[Pods], who: SeenAs<'_>) -> u8 {
    let SeenAs::Pod(looks) = who else { return 0 };
    let in_it = |(i, group)| if world.selects_looks(group, looks) { 1u8 << i } else { 0 };
    groups.iter().enumerate().map(in_it).sum()
}

/// Pods that are alike, and which of the peers they are, by number.
struct Chosen<'w> {
    alike: Alike<'w>,
    by: Vec<usize>,
}

/// A selector, with its number among the peers, and whom it selects.
type Selected<'w> = (usize, &'w Pods, Vec<Alike<'w>>);

fn selected<'w>(world: &'w World, peers: &BTreeSet<&'w Peer>) -> Vec<Selected<'w>> {
    let selectors = peers.iter().enumerate().filter_map(|(number, peer)| match peer {
        Peer::Pods(pods) => Some((number, pods)),
        _ => None,
    });
    selectors.map(|(number, pods)| (number, pods, world.alike_selected(pods).collect())).collect()
}

/// The pods that are selected, and with `named` those that have ports with names: of all others rules say what
/// they say of addresses of nobody.
fn chosen<'w>(world: &'w World, selected: &[Selected<'w>], named: bool) -> Vec<Chosen<'w>> {
    let mut all: HashMap<*const BTreeSet<IpAddr>, Chosen<'w>> = HashMap::new();
    let mut at = |alike: Alike<'w>, peer: Option<usize>| {
        let chosen = all.entry(ptr::from_ref(alike.addresses));
        chosen.or_insert_with(|| Chosen { alike, by: Vec::new() }).by.extend(peer);
    };
    for (number, _, pods) in selected {
        pods.iter().for_each(|alike| at(*alike, Some(*number)));
    }
    if named {
        world.alike().filter(|a| !a.looks.ports.is_empty()).for_each(|alike| at(alike, None));
    }
    all.into_values().collect()
}

/// The addresses of pods that are alike within a range of addresses of which blocks say the same.
#[derive(Clone, Copy)]
struct Part<'w> {
    all: &'w BTreeSet<IpAddr>,
    range: usize,
    from: IpAddr,
    to: Option<IpAddr>,
}

impl<'w> Part<'w> {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<'w> {
        let to = self.to.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range((Bound::Included(self.from), to)).copied()
    }
}

fn parts<'w>(all: &'w BTreeSet<IpAddr>, starts: &[IpAddr]) -> impl Iterator<Item = Part<'w>> {
    let mut next = all.first().copied();
    std::iter::from_fn(move || {
        let from = next?;
        let range = starts.partition_point(|start| *start <= from) - 1;
        let to = starts.get(range + 1).copied();
        next = to.and_then(|to| all.range(to..).next()).copied();
        Some(Part { all, range, from, to })
    })
}

/// The selectors of most addresses of pods, of those that select many, each with its number among the peers.
fn groups<'w>(selected: &[Selected<'w>], many: usize) -> Vec<(usize, &'w Pods)> {
    let count = |pods: &[Alike<'_>]| -> usize { pods.iter().map(|of| of.addresses.len()).sum() };
    let counted = selected.iter().map(|(number, pods, of)| (count(of), *number, *pods));
    let mut counted: Vec<_> = counted.filter(|(count, ..)| *count > many).collect();
    counted.sort_by(|(a, _, first), (b, _, second)| b.cmp(a).then(first.cmp(second)));
    counted.into_iter().take(MOST_GROUPS).map(|(_, number, pods)| (number, pods)).collect()
}

/// Where a block or an exception begins or ends: from each of these on, up to the next, rules say the same of
/// all addresses.
fn starts(peers: &BTreeSet<&Peer>) -> Vec<IpAddr> {
    let mut starts: BTreeSet<IpAddr> =
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].into();
    for peer in peers {
        if let Peer::Block(Block { cidr, except }) = peer {
            for net in std::iter::once(cidr).chain(except) {
                starts.insert(net.network());
                starts.extend(after(net));
            }
        }
    }
    starts.into_iter().collect()
}

/// What rules say of addresses of nobody, for each range. Of a list of very many blocks each range is in a few:
/// it is known from where to where each rule names them, and rules are asked once for each set of those that do.
fn of_ranges(
    subject: &Subject<'_>,
    direction: Direction,
    starts: &[IpAddr],
    sets: &mut Sets,
) -> Vec<usize> {
    let at = |ip: IpAddr| starts.partition_point(|start| *start < ip);
    // Where a rule begins to name addresses by one more or one less of its blocks.
    let mut edges: Vec<Vec<(usize, i32)>> = vec![Vec::new(); starts.len() + 1];
    let blocks = rules(subject, direction).into_iter().flatten().enumerate();
    for (rule, peers) in blocks.filter_map(|(n, rule)| match &rule.peers {
        Peers::AnyOf(peers) => Some((n, peers)),
        Peers::Everybody => None,
    }) {
        for peer in peers {
            let Peer::Block(block) = peer else { continue };
            let end = |net: &IpNet| match after(net) {
                Some(ip) => at(ip),
                None if net.network().is_ipv4() => at(Ipv6Addr::UNSPECIFIED.into()),
                None => starts.len(),
            };
            let (mut from, to) = (at(block.cidr.network()), end(&block.cidr));
            let mut except: Vec<(usize, usize)> = block
                .except
                .iter()
                .filter(|net| Family::of(net.addr()) == Family::of(block.cidr.addr()))
                .map(|net| (at(net.network()), end(net)))
                .collect();
            except.sort_unstable();
            let mut piece = |from: usize, to: usize| {
                if from < to {
                    edges[from].push((rule, 1));
                    edges[to].push((rule, -1));
                }
            };
            for (without, until) in except {
                piece(from, without.min(to));
                from = from.max(until);
            }
            piece(from, to);
        }
    }
    let mut counts: BTreeMap<usize, i32> = BTreeMap::new();
    let mut known: HashMap<(Family, Vec<usize>), usize> = HashMap::new();
    let mut all = Vec::with_capacity(starts.len());
    for (start, edges) in starts.iter().zip(edges) {
        for (rule, change) in edges {
            let count = counts.entry(rule).or_default();
            *count += change;
            if *count == 0 {
                counts.remove(&rule);
            }
        }
        let by: Vec<usize> = counts.keys().copied().collect();
        let id = *known.entry((Family::of(*start), by)).or_insert_with(|| {
            sets.id(subject.of_seen(direction, &Seen { who: SeenAs::Outside, address: *start }))
        });
        all.push(id);
    }
    all
}

/// The first address behind a block; `None` behind the last one of the family.
fn after(net: &IpNet) -> Option<IpAddr> {
    match net.broadcast() {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|n| Ipv4Addr::from_bits(n).into()),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|n| Ipv6Addr::from_bits(n).into()),
    }
}
