//! Ends of connections that policies cannot tell apart: what is true of one is true of all of a class.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use causeway_types::Family;
use ipnet::IpNet;

use crate::ends::End;
use crate::labels::{Labels, Text};
use crate::rule::{Block, Direction, Peer, Peers};
use crate::world::{NamedPort, Pod, PodName, Who, World};

/// Ends that policies cannot tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Which.
    pub members: Members,
    /// One of them.
    pub end: End,
}

/// The members of a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Members {
    /// Pods with a network of their own.
    Pods {
        /// Of which namespace.
        namespace: Text,
        /// Their labels.
        labels: Labels,
        /// Their names.
        names: Vec<Text>,
    },
    /// Nodes, and pods in their networks.
    Nodes(Vec<Text>),
    /// Addresses of nobody in the cluster: those of a block without those that other blocks speak of.
    /// `None`: all that no block speaks of.
    Outside(Family, Option<IpNet>),
}

impl Class {
    /// Whether it is a class of pods.
    #[must_use]
    pub fn is_pods(&self) -> bool {
        matches!(self.members, Members::Pods { .. })
    }
}

/// `web/app=front (3 pods)`, `web/front-1`, `node:n1`, `192.0.2.0/24`, `any other address`.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.members {
            Members::Pods { namespace, names, .. } if names.len() == 1 => {
                write!(f, "{namespace}/{}", names[0])
            }
            Members::Pods { namespace, labels, names } => {
                let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                match labels.is_empty() {
                    true => write!(f, "{namespace}/ without labels")?,
                    false => write!(f, "{namespace}/{}", labels.join(","))?,
                }
                write!(f, " ({} pods)", names.len())
            }
            Members::Nodes(names) => {
                let names: Vec<String> = names.iter().map(|name| format!("node:{name}")).collect();
                f.write_str(&names.join(", "))
            }
            Members::Outside(_, Some(net)) => net.fmt(f),
            Members::Outside(family, None) => write!(f, "any other {family} address"),
        }
    }
}

/// What policies see of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Looks {
    namespace: Text,
    labels: Labels,
    ports: BTreeSet<NamedPort>,
    /// The blocks that have its addresses, and of which families those are.
    blocks: Vec<(Family, Vec<bool>)>,
}

/// The classes of a world, or of several at once: ends that none of them can tell apart. Pods that are not in
/// all of the worlds are left out.
#[must_use]
pub fn classes(worlds: &[&World]) -> Vec<Class> {
    let Some((first, others)) = worlds.split_first() else { return Vec::new() };
    let blocks = blocks(worlds);
    let within = |ip: IpAddr| blocks.iter().map(|block| block.contains(ip)).collect::<Vec<bool>>();
    let looks = |pod: &Pod| Looks {
        namespace: pod.name.namespace.clone(),
        labels: (*pod.labels).clone(),
        ports: pod.ports.iter().cloned().collect(),
        blocks: pod.addresses.iter().map(|ip| (Family::of(*ip), within(*ip))).collect(),
    };
    let mut pods: BTreeMap<Vec<Looks>, Vec<&Pod>> = BTreeMap::new();
    for pod in first.pods().filter(|pod| !pod.host_network && !pod.addresses.is_empty()) {
        let all = worlds.iter().map(|world| world.pod(&pod.name).map(looks));
        if let Some(all) = all.collect::<Option<Vec<Looks>>>() {
            pods.entry(all).or_default().push(pod);
        }
    }
    let mut all: Vec<Class> = pods
        .into_values()
        .map(|same| Class {
            members: Members::Pods {
                namespace: same[0].name.namespace.clone(),
                labels: (*same[0].labels).clone(),
                names: same.iter().map(|pod| pod.name.name.clone()).collect(),
            },
            end: End { who: Who::Pod(same[0].name.clone()), addresses: same[0].addresses.clone() },
        })
        .collect();
    let mut nodes: BTreeMap<_, Vec<(Text, Vec<IpAddr>)>> = BTreeMap::new();
    for (name, node) in first.nodes().filter(|(_, node)| !node.addresses.is_empty()) {
        let labels = worlds.iter().map(|world| world.node(name).map(|node| node.labels.clone()));
        if let Some(labels) = labels.collect::<Option<Vec<Labels>>>() {
            let seen = node.addresses.iter().map(|ip| (Family::of(*ip), within(*ip)));
            let key = (labels, seen.collect::<Vec<_>>());
            nodes.entry(key).or_default().push((name.clone(), node.addresses.clone()));
        }
    }
    all.extend(nodes.into_values().map(|same| Class {
        end: End { who: Who::Node(same[0].0.clone()), addresses: same[0].1.clone() },
        members: Members::Nodes(same.into_iter().map(|(name, _)| name).collect()),
    }));
    let is_free = |ip: IpAddr| {
        std::iter::once(first).chain(others).all(|world| world.at(ip).who == Who::Outside)
    };
    all.extend(outside(&blocks, &is_free));
    all.sort_by(|a, b| a.members.cmp(&b.members));
    all
}

impl Class {
    /// Two ends that stand for connections from this class to another; `None` where nobody could connect.
    #[must_use]
    pub fn ends(&self, to: &Class, world: &World) -> Option<(End, End)> {
        if self.end.who != to.end.who || self.end.who == Who::Outside {
            return self.ends_to(&to.end, world);
        }
        let Members::Pods { namespace, names, .. } = &to.members else { return None };
        let name = PodName::new(namespace.clone(), names.get(1)?.clone());
        let addresses = world.pod(&name)?.addresses.clone();
        Some((self.end.clone(), End { who: Who::Pod(name), addresses }))
    }

    /// The same to one end: not from itself, and where there is another, not from the node on which it is,
    /// whose traffic to it always passes.
    #[must_use]
    pub fn ends_to(&self, to: &End, world: &World) -> Option<(End, End)> {
        let (who, addresses) = match (&self.members, &to.who) {
            (Members::Nodes(names), Who::Pod(pod)) => {
                let own = world.pod(pod).and_then(|pod| pod.node.as_ref());
                let name = names.iter().find(|name| Some(*name) != own).or(names.first())?;
                (Who::Node(name.clone()), world.node(name)?.addresses.clone())
            }
            (Members::Pods { namespace, names, .. }, who) if self.end.who == *who => {
                let name = PodName::new(namespace.clone(), names.get(1)?.clone());
                let addresses = world.pod(&name)?.addresses.clone();
                (Who::Pod(name), addresses)
            }
            _ => (self.end.who.clone(), self.end.addresses.clone()),
        };
        Some((End { who, addresses }, to.clone()))
    }
}

/// All blocks that some rule speaks of.
fn blocks(worlds: &[&World]) -> Vec<Block> {
    let mut all = BTreeSet::new();
    for policy in worlds.iter().flat_map(|world| world.policies()) {
        for direction in Direction::ALL {
            for rule in policy.rules(direction).unwrap_or_default() {
                if let Peers::AnyOf(peers) = &rule.peers {
                    all.extend(peers.iter().filter_map(|peer| match peer {
                        Peer::Block(block) => Some(block.clone()),
                        _ => None,
                    }));
                }
            }
        }
    }
    all.into_iter().collect()
}

/// One address of each part into which blocks divide what is outside.
fn outside(blocks: &[Block], is_free: &impl Fn(IpAddr) -> bool) -> Vec<Class> {
    let nets: BTreeSet<IpNet> = blocks
        .iter()
        .flat_map(|b| std::iter::once(b.cidr).chain(b.except.iter().copied()))
        .collect();
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let whole = family.default_route();
        let named = nets
            .iter()
            .filter(|net| Family::of(net.addr()) == family)
            .map(|net| (*net, Some(*net)));
        for (net, name) in std::iter::once((whole, None)).chain(named) {
            let within = nets.iter().filter(|n| **n != net && net.contains(*n));
            let within: Vec<IpNet> = within.copied().collect();
            // What the block of everything names is not what no block speaks of.
            if name.is_none() && nets.contains(&whole) {
                continue;
            }
            let Some(ip) = free(net, &within, is_free) else { continue };
            let matched: Vec<bool> = blocks.iter().map(|block| block.contains(ip)).collect();
            // What several blocks except is one part where no block has it.
            if seen.insert((family, matched)) {
                all.push(Class {
                    members: Members::Outside(family, name),
                    end: End { who: Who::Outside, addresses: vec![ip] },
                });
            }
        }
    }
    all
}

/// An address of a block that is in none of those within it, and nobody's.
fn free(net: IpNet, within: &[IpNet], is_free: &impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    if within.iter().any(|n| n.contains(&net)) {
        return None;
    }
    if !within.iter().any(|n| net.contains(n)) {
        // Not the first, which is no host's in most networks.
        const TRIED: usize = 4096;
        return net.hosts().take(TRIED).find(|ip| is_free(*ip) && !ip.is_unspecified());
    }
    let mut halves = net.subnets(net.prefix_len() + 1).ok()?;
    halves.find_map(|half| free(half, within, is_free))
}
