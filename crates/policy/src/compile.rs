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

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_types::Family;
use ipnet::IpNet;

use crate::judge::Subject;
use crate::ports::PortSet;
use crate::rule::{Block, Direction, Peer, Peers, Pods};
use crate::world::{Party, Who, World};

/// More groups than these are listed all the same: a program decides between all combinations of them.
const MOST_GROUPS: usize = 3;

/// What a pod's policies come to in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The sets of single addresses.
    pub peers: BTreeMap<IpAddr, PortSet>,
    /// Groups of pods that are not listed.
    pub groups: Vec<Pods>,
    /// The sets of members of groups that are not listed: by which groups a pod is in (bit 0: the first).
    pub members: BTreeMap<u8, PortSet>,
    /// The sets of all other addresses: the first address of each range, to the next one of its family.
    pub ranges: BTreeMap<IpAddr, PortSet>,
}

impl Program {
    /// Of a pod in a direction; `None` where no policy says anything of it: everything is allowed. Selectors
    /// that select more than `many` pods become groups.
    ///
    /// What a pod sends itself, and what its own node sends it, is judged here like that of any other: it is to be
    /// let pass by other means than an address. So pods that policies cannot tell apart have equal programs.
    #[must_use]
    pub fn of(subject: &Subject<'_>, direction: Direction, many: usize) -> Option<Self> {
        let rules = subject.policies.iter().filter_map(|policy| policy.rules(direction));
        let rules: Vec<_> = rules.collect();
        if rules.is_empty() {
            return None;
        }
        let peers =
            rules.iter().flat_map(|rules| rules.iter()).filter_map(|rule| match &rule.peers {
                Peers::AnyOf(peers) => Some(peers),
                Peers::Everybody => None,
            });
        let peers: BTreeSet<&Peer> = peers.flatten().collect();
        let world = subject.world;
        let groups = groups(world, &peers, many);
        let outside = |ip| subject.by_rules(direction, &Party { who: Who::Outside, address: ip });
        let mut program = Self {
            peers: BTreeMap::new(),
            groups,
            members: BTreeMap::new(),
            ranges: ranges(&peers, &outside),
        };
        // Of each combination of groups what most of its members have; the others are listed.
        let mut found: Vec<(IpAddr, u8, PortSet)> = Vec::new();
        let mut usual: BTreeMap<u8, BTreeMap<PortSet, usize>> = BTreeMap::new();
        for (who, addresses) in ends(world) {
            let groups = program.groups_of(world, &who);
            for address in addresses {
                // Whoever comes first by name has it where several do.
                let party = world.at(address);
                if party.who != who {
                    continue;
                }
                let set = subject.by_rules(direction, &party);
                if groups != 0 {
                    *usual.entry(groups).or_default().entry(set.clone()).or_default() += 1;
                }
                found.push((address, groups, set));
            }
        }
        for (groups, sets) in usual {
            let most = sets.into_iter().max_by_key(|(_, count)| *count);
            program.members.extend(most.map(|(set, _)| (groups, set)));
        }
        for (address, groups, set) in found {
            if *program.unlisted(address, groups) != set {
                program.peers.insert(address, set);
            }
        }
        Some(program)
    }

    /// What is to be listed of an address after the pods or nodes that have it changed, or one of them: `None`
    /// where it is not to be listed. `subject` is any of the pods whose program this is.
    #[must_use]
    pub fn entry(
        &self,
        subject: &Subject<'_>,
        direction: Direction,
        address: IpAddr,
    ) -> Option<PortSet> {
        let party = subject.world.at(address);
        if party.who == Who::Outside {
            return None;
        }
        let groups = self.groups_of(subject.world, &party.who);
        let set = subject.by_rules(direction, &party);
        (*self.unlisted(address, groups) != set).then_some(set)
    }

    /// In which groups one is (bit 0: the first).
    fn groups_of(&self, world: &World, who: &Who) -> u8 {
        let Who::Pod(name) = who else { return 0 };
        world.pod(name).map_or(0, |pod| {
            let in_it = |(i, group)| if world.selects(group, pod) { 1u8 << i } else { 0 };
            self.groups.iter().enumerate().map(in_it).sum()
        })
    }

    /// What is true of an address that is not listed.
    fn unlisted(&self, address: IpAddr, groups: u8) -> &PortSet {
        self.members.get(&groups).unwrap_or_else(|| self.range(address))
    }

    /// By what connections with an address are allowed, which is a member of these groups.
    #[must_use]
    pub fn allowed(&self, address: IpAddr, groups: u8) -> &PortSet {
        self.peers.get(&address).unwrap_or_else(|| self.unlisted(address, groups))
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

/// Pods and nodes with their addresses.
fn ends(world: &World) -> impl Iterator<Item = (Who, Vec<IpAddr>)> {
    let pods = world.pods().filter(|pod| !pod.host_network);
    let pods = pods.map(|pod| (Who::Pod(pod.name.clone()), pod.addresses.clone()));
    pods.chain(world.nodes().map(|(name, node)| (Who::Node(name.clone()), node.addresses.clone())))
}

/// The selectors of most pods, of those that select many.
fn groups(world: &World, peers: &BTreeSet<&Peer>, many: usize) -> Vec<Pods> {
    let selectors = peers.iter().filter_map(|peer| match peer {
        Peer::Pods(pods) => Some(pods),
        _ => None,
    });
    let count = |pods: &Pods| world.pods().filter(|pod| world.selects(pods, pod)).count();
    let counted = selectors.map(|pods| (count(pods), pods)).filter(|(count, _)| *count > many);
    let mut counted: Vec<(usize, &Pods)> = counted.collect();
    counted.sort_by(|(a, first), (b, second)| b.cmp(a).then(first.cmp(second)));
    counted.into_iter().take(MOST_GROUPS).map(|(_, pods)| pods.clone()).collect()
}

/// What is said of addresses that are nobody's: a new range where a block or an exception begins or ends.
fn ranges(
    peers: &BTreeSet<&Peer>,
    outside: &impl Fn(IpAddr) -> PortSet,
) -> BTreeMap<IpAddr, PortSet> {
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
    let mut all: BTreeMap<IpAddr, PortSet> = BTreeMap::new();
    for start in starts {
        let set = outside(start);
        let before = all.last_key_value();
        let same = before.is_some_and(|(ip, s)| Family::of(*ip) == Family::of(start) && *s == set);
        if !same {
            all.insert(start, set);
        }
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
