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
use std::ptr;
use std::sync::Arc;

use causeway_types::Family;
use ipnet::IpNet;

use crate::judge::Subject;
use crate::ports::PortSet;
use crate::rule::{Block, Direction, Peer, Peers, Pods, PortMatch, Ports, Rule};
use crate::world::{Seen, SeenAs, Who, World};

/// More groups than these are listed all the same: a program decides between all combinations of them.
const MOST_GROUPS: usize = 3;
/// So many addresses are looked at one by one.
const FEW: usize = 4;

/// What a pod's policies come to in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The sets of single addresses.
    pub peers: BTreeMap<IpAddr, Arc<PortSet>>,
    /// Groups of pods that are not listed.
    pub groups: Vec<Pods>,
    /// The sets of members of groups that are not listed: by which groups a pod is in (bit 0: the first).
    pub members: BTreeMap<u8, PortSet>,
    /// The sets of all other addresses: the first address of each range, to the next one of its family.
    pub ranges: BTreeMap<IpAddr, PortSet>,
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
        let groups = groups(world, &peers, many);
        let starts = starts(&peers);
        let by_rules = |who, address| subject.of_seen(direction, &Seen { who, address });
        let mut sets = Sets::default();
        let of_range: Vec<usize> =
            starts.iter().map(|start| sets.id(by_rules(SeenAs::Outside, *start))).collect();
        // What rules say of pods and nodes they say of their addresses alone, if of nothing else.
        let named = |rule: &Rule| match &rule.ports {
            Ports::AnyOf(all) => all.iter().any(|one| matches!(one, PortMatch::Named { .. })),
            Ports::All => false,
        };
        let to_named = direction == Direction::Egress
            && rules.iter().flat_map(|rules| rules.iter()).any(named);
        let pods = to_named || peers.iter().any(|peer| matches!(peer, Peer::Pods(_)));
        let nodes = peers.iter().any(|peer| matches!(peer, Peer::Nodes(_)));

        let mut listed: BTreeMap<IpAddr, usize> = BTreeMap::new();
        // Of members of groups: of each combination of groups what most of its members have; others are listed.
        let mut members: Vec<(IpAddr, u8, usize)> = Vec::new();
        let range_of = |ip: &IpAddr| starts.partition_point(|start| start <= ip) - 1;
        let mut take = |ip: IpAddr, groups: u8, id: usize| {
            if groups != 0 {
                members.push((ip, groups, id));
            } else if of_range[range_of(&ip)] != id {
                listed.insert(ip, id);
            }
        };
        let mut shared = BTreeSet::new();
        for alike in world.alike().filter(|_| pods) {
            let who = SeenAs::Pod(alike.looks);
            let within = groups_of(world, &groups, who);
            let mut of_ranges: Vec<(usize, usize)> = Vec::new();
            let mut id_in = |range: usize, sets: &mut Sets| {
                let known = of_ranges.iter().find(|(of, _)| *of == range).map(|(_, id)| *id);
                known.unwrap_or_else(|| {
                    let id = sets.id(by_rules(who, starts[range]));
                    of_ranges.push((range, id));
                    id
                })
            };
            // Without blocks what is true of one address is true of all of its family.
            let plain = within == 0 && starts.len() == 2;
            if plain && [0, 1].iter().all(|range| id_in(*range, &mut sets) == of_range[*range]) {
                shared.extend(alike.addresses.iter().filter(|ip| world.is_shared(**ip)).copied());
                continue;
            }
            for ip in alike.addresses {
                match world.is_shared(*ip) {
                    true => drop(shared.insert(*ip)),
                    false => take(*ip, within, id_in(range_of(ip), &mut sets)),
                }
            }
        }
        let of_nodes = world.nodes().filter(|_| nodes).flat_map(|(_, node)| &node.addresses);
        for ip in shared.into_iter().chain(of_nodes.copied()) {
            // Whoever comes first by name has it where several do.
            let party = world.at(ip);
            let seen = world.see(&party);
            let id = sets.id(subject.of_seen(direction, &seen));
            take(ip, groups_of(world, &groups, seen.who), id);
        }

        let mut usual: BTreeMap<u8, BTreeMap<usize, usize>> = BTreeMap::new();
        for (_, groups, id) in &members {
            *usual.entry(*groups).or_default().entry(*id).or_default() += 1;
        }
        let usual: BTreeMap<u8, usize> = usual
            .into_iter()
            .filter_map(|(groups, of)| {
                let most =
                    of.into_iter().max_by_key(|(id, count)| (*count, sets.all[*id].clone()))?;
                Some((groups, most.0))
            })
            .collect();
        for (ip, groups, id) in members {
            if usual[&groups] != id {
                listed.insert(ip, id);
            }
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
        Some(Self {
            peers: listed.into_iter().map(|(ip, id)| (ip, sets[id].clone())).collect(),
            groups,
            members: usual.into_iter().map(|(groups, id)| (groups, (*sets[id]).clone())).collect(),
            ranges,
        })
    }

    /// What is to be listed of addresses after the pods or nodes that have them changed, or some of those: of
    /// each, where it is not what is listed now; `None` where it is not to be listed. `subject` is any of the
    /// pods whose program this is.
    #[must_use]
    pub fn changes(
        &self,
        subject: &Subject<'_>,
        direction: Direction,
        addresses: &BTreeSet<IpAddr>,
    ) -> Vec<(IpAddr, Option<Arc<PortSet>>)> {
        let world = subject.world;
        // Of many pods that are alike rules are asked once, for each range in which blocks say the same.
        let starts = match addresses.len() > FEW {
            true => peers(&rules(subject, direction)).map(|peers| starts(&peers)),
            false => None,
        };
        let mut known: HashMap<_, Arc<PortSet>> = HashMap::new();
        let mut all = Vec::new();
        for ip in addresses {
            let party = world.at(*ip);
            let seen = world.see(&party);
            let entry = (party.who != Who::Outside).then(|| {
                let by_rules = || Arc::new(subject.of_seen(direction, &seen));
                let set = match (&starts, seen.who) {
                    (Some(starts), SeenAs::Pod(looks)) => {
                        let alike = (ptr::from_ref(looks.labels), looks.namespace, looks.ports);
                        let range = starts.partition_point(|start| start <= ip);
                        known.entry((alike, range)).or_insert_with(by_rules).clone()
                    }
                    _ => by_rules(),
                };
                let groups = groups_of(world, &self.groups, seen.who);
                (*self.unlisted(*ip, groups) != *set).then_some(set)
            });
            let entry = entry.flatten();
            if self.peers.get(ip) != entry.as_ref() {
                all.push((*ip, entry));
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
        self.peers.get(&address).map_or_else(|| self.unlisted(address, groups), |set| set)
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

/// The selectors of most addresses of pods, of those that select many.
fn groups(world: &World, peers: &BTreeSet<&Peer>, many: usize) -> Vec<Pods> {
    let selectors = peers.iter().filter_map(|peer| match peer {
        Peer::Pods(pods) => Some(pods),
        _ => None,
    });
    let count = |pods: &Pods| world.addresses_of(pods).count();
    let counted = selectors.map(|pods| (count(pods), pods)).filter(|(count, _)| *count > many);
    let mut counted: Vec<(usize, &Pods)> = counted.collect();
    counted.sort_by(|(a, first), (b, second)| b.cmp(a).then(first.cmp(second)));
    counted.into_iter().take(MOST_GROUPS).map(|(_, pods)| pods.clone()).collect()
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

/// The first address behind a block; `None` behind the last one of the family.
fn after(net: &IpNet) -> Option<IpAddr> {
    match net.broadcast() {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|n| Ipv4Addr::from_bits(n).into()),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|n| Ipv6Addr::from_bits(n).into()),
    }
}
