//! What is probably not meant in policies.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use crate::labels::Selector;
use crate::ports::PortSet;
use crate::rule::{
    Action, Block, Direction, Namespaces, Peer, Peers, Pods, Policy, PolicyName, PortMatch, Ports,
    Rule, Tier,
};
use crate::world::{Pod, World};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It does not say what it should.
    Error,
    /// It does nothing, or not what it looks like.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// In which policy.
    pub policy: PolicyName,
    /// Where in it (`spec.ingress[0]`).
    pub at: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, policy, at, what } = self;
        write!(f, "{level}: {policy}: {at}: {what}")
    }
}

/// Looks at all policies of a world. `ranges`: those of pods' addresses, where they are known. What
/// needs pods to be seen is looked for where there are pods at all: manifests of policies alone say
/// nothing of who will be there.
#[must_use]
pub fn lint(world: &World, ranges: &[IpNet]) -> Vec<Finding> {
    let mut found = Vec::new();
    let populated = world.pods().next().is_some();
    for policy in world.policies() {
        let mut linter = Linter { world, policy, populated, found: &mut found };
        linter.policy(ranges);
    }
    equal_priorities(world, &mut found);
    found.sort();
    found.dedup();
    found
}

struct Linter<'a> {
    world: &'a World,
    policy: &'a Policy,
    populated: bool,
    found: &'a mut Vec<Finding>,
}

impl Linter<'_> {
    fn add(&mut self, level: Level, at: impl Into<String>, what: impl Into<String>) {
        let (policy, at, what) = (self.policy.name.clone(), at.into(), what.into());
        self.found.push(Finding { level, policy, at, what });
    }

    fn policy(&mut self, ranges: &[IpNet]) {
        for problem in &self.policy.problems {
            self.add(Level::Error, problem.at.clone(), problem.what.clone());
        }
        let subjects: Vec<&Pod> =
            self.world.pods().filter(|pod| self.world.is_subject(self.policy, pod)).collect();
        if self.populated
            && subjects.is_empty()
            && let Some(subject) = &self.policy.subject
        {
            let what = format!(
                "there are no {subject}, so that it applies to nobody{}",
                self.hosts(subject)
            );
            self.add(Level::Warning, subject_key(self.policy), what);
        }
        for direction in Direction::ALL {
            let rules = self.policy.rules(direction).unwrap_or_default();
            for (i, rule) in rules.iter().enumerate() {
                let at = format!("spec.{direction}[{i}]");
                self.peers(&at, direction, rule, ranges);
                self.names(&at, direction, rule, &subjects);
                self.shadows(&at, &rules[..i], rule);
            }
        }
    }

    /// Pods in their nodes' networks that would be meant, which is what is often overlooked.
    fn hosts(&self, pods: &Pods) -> String {
        let meant = self.world.pods().filter(|pod| {
            pod.host_network && {
                let inside = Pod { host_network: false, ..(*pod).clone() };
                self.world.selects(pods, &inside)
            }
        });
        match meant.count() {
            0 => String::new(),
            n => format!(" ({n} are in their nodes' networks, to which no policy applies)"),
        }
    }

    fn peers(&mut self, at: &str, direction: Direction, rule: &Rule, ranges: &[IpNet]) {
        let Peers::AnyOf(peers) = &rule.peers else { return };
        let key = if direction == Direction::Ingress { "from" } else { "to" };
        for peer in peers {
            match peer {
                Peer::Pods(pods) if self.populated => {
                    self.selects_somebody(at, key, pods);
                }
                Peer::Block(block) => self.block(at, key, block, ranges),
                _ => {}
            }
        }
    }

    fn selects_somebody(&mut self, at: &str, key: &str, pods: &Pods) {
        if self.world.pods().any(|pod| self.world.selects(pods, pod)) {
            return;
        }
        let selected = match &pods.namespaces {
            Namespaces::Named(_) => true,
            Namespaces::Selected(selector) => {
                self.world.namespaces().any(|(_, labels)| selector.selects(labels))
            }
        };
        let what = match (selected, &pods.namespaces) {
            (false, Namespaces::Selected(selector)) => format!("no namespace has {selector}"),
            _ => format!("there are no {pods}{}", self.hosts(pods)),
        };
        self.add(Level::Warning, format!("{at}.{key}"), what);
    }

    fn block(&mut self, at: &str, key: &str, block: &Block, ranges: &[IpNet]) {
        // What means everything means pods as well.
        if block.cidr.prefix_len() == 0 {
            return;
        }
        let overlaps = |range: &&IpNet| range.contains(&block.cidr) || block.cidr.contains(*range);
        let excepted = |range: &IpNet| block.except.iter().any(|except| except.contains(range));
        if let Some(range) = ranges.iter().filter(overlaps).find(|range| !excepted(range)) {
            let what = format!(
                "{} overlaps the pods' addresses ({range}), which change; labels select pods better",
                block.cidr
            );
            self.add(Level::Warning, format!("{at}.{key}"), what);
            return;
        }
        let pods = self.world.pods().filter(|pod| !pod.host_network);
        let within: Vec<&Pod> =
            pods.filter(|pod| pod.addresses.iter().any(|ip| block.contains(*ip))).collect();
        if let Some(first) = within.first() {
            let what = format!(
                "{} has the addresses of {} pods, such as {}; they change, and labels select pods better",
                block.cidr,
                within.len(),
                first.name
            );
            self.add(Level::Warning, format!("{at}.{key}"), what);
        }
    }

    /// Names of ports that no pod has.
    fn names(&mut self, at: &str, direction: Direction, rule: &Rule, subjects: &[&Pod]) {
        let Ports::AnyOf(ports) = &rule.ports else { return };
        let names = ports.iter().filter_map(|port| match port {
            PortMatch::Named { protocol, name } => Some((protocol, name)),
            PortMatch::Numbers(_) => None,
        });
        for (protocol, name) in names {
            let has = |pod: &Pod| {
                pod.ports_named(name).any(|port| protocol.is_none_or(|p| p == port.protocol))
            };
            let destinations: Vec<&Pod> = match direction {
                Direction::Ingress => subjects.to_vec(),
                Direction::Egress => {
                    self.world.pods().filter(|pod| self.is_peer(rule, pod)).collect()
                }
            };
            // Where there is nobody, that is said already.
            if destinations.is_empty() || destinations.iter().any(|pod| has(pod)) {
                continue;
            }
            let by = protocol.map_or_else(String::new, |protocol| format!(" by {protocol}"));
            let what = format!(
                "none of the {} pods that it is for has a port named {name}{by}",
                destinations.len()
            );
            self.add(Level::Warning, format!("{at}.ports"), what);
        }
    }

    fn is_peer(&self, rule: &Rule, pod: &Pod) -> bool {
        match &rule.peers {
            Peers::Everybody => !pod.host_network,
            Peers::AnyOf(peers) => peers.iter().any(|peer| match peer {
                Peer::Pods(pods) => self.world.selects(pods, pod),
                Peer::Block(block) => pod.addresses.iter().any(|ip| block.contains(*ip)),
                Peer::Nodes(_) | Peer::Nobody => false,
            }),
        }
    }

    /// What an earlier rule of the same list matches already.
    fn shadows(&mut self, at: &str, before: &[Rule], rule: &Rule) {
        // One that matches nothing has been told of already.
        let none = |port: &PortMatch| matches!(port, PortMatch::Numbers(set) if set.is_none());
        if matches!(&rule.peers, Peers::AnyOf(all) if all.iter().all(|p| *p == Peer::Nobody))
            || matches!(&rule.ports, Ports::AnyOf(all) if all.iter().all(none))
        {
            return;
        }
        let Some(i) = before.iter().position(|earlier| covers(earlier, rule)) else { return };
        let what = match self.policy.tier {
            Tier::Network => format!("rule {} allows all of it already", i + 1),
            _ => format!(
                "rule {} ({}) matches all of it before; this one ({}) is never asked",
                i + 1,
                before[i].action,
                rule.action
            ),
        };
        self.add(Level::Warning, at, what);
    }
}

fn subject_key(policy: &Policy) -> &'static str {
    if policy.tier == Tier::Network { "spec.podSelector" } else { "spec.subject" }
}

/// Whether a rule matches all that another does, as far as that can be seen without pods.
fn covers(rule: &Rule, other: &Rule) -> bool {
    let peers = match (&rule.peers, &other.peers) {
        (Peers::Everybody, _) => true,
        (Peers::AnyOf(_), Peers::Everybody) => false,
        (Peers::AnyOf(all), Peers::AnyOf(others)) => {
            others.iter().all(|other| all.iter().any(|peer| peer_covers(peer, other)))
        }
    };
    let ports = match (&rule.ports, &other.ports) {
        (Ports::All, _) => true,
        (Ports::AnyOf(_), Ports::All) => false,
        (Ports::AnyOf(all), Ports::AnyOf(others)) => {
            let numbers = all.iter().fold(PortSet::none(), |set, port| match port {
                PortMatch::Numbers(numbers) => set.or(numbers),
                PortMatch::Named { .. } => set,
            });
            others.iter().all(|other| match other {
                PortMatch::Numbers(wanted) => wanted.minus(&numbers).is_none(),
                PortMatch::Named { .. } => all.contains(other),
            })
        }
    };
    peers && ports
}

fn peer_covers(peer: &Peer, other: &Peer) -> bool {
    match (peer, other) {
        (Peer::Pods(all), Peer::Pods(some)) => {
            let namespaces = match (&all.namespaces, &some.namespaces) {
                (Namespaces::Selected(selector), _) if selector.is_everything() => true,
                (a, b) => a == b,
            };
            namespaces && selector_covers(&all.pods, &some.pods)
        }
        (Peer::Block(all), Peer::Block(some)) => {
            all.cidr.contains(&some.cidr)
                && all.except.iter().all(|except| {
                    !some.cidr.contains(except) && !except.contains(&some.cidr)
                        || some.except.iter().any(|e| e.contains(except))
                })
        }
        (Peer::Nodes(all), Peer::Nodes(some)) => selector_covers(all, some),
        _ => false,
    }
}

fn selector_covers(all: &Selector, some: &Selector) -> bool {
    all.is_everything() || all == some
}

/// Cluster policies of one tier and priority, for the same pods, that do not do the same: which of them is
/// asked first the API leaves open.
fn equal_priorities(world: &World, found: &mut Vec<Finding>) {
    let all: Vec<&Policy> = world.policies().filter(|p| p.tier != Tier::Network).collect();
    for (i, first) in all.iter().enumerate() {
        for second in &all[i + 1..] {
            if (first.tier, first.priority) != (second.tier, second.priority) {
                continue;
            }
            let both = Direction::ALL.into_iter().find(|direction| {
                let actions = |policy: &Policy| -> BTreeSet<Action> {
                    policy.rules(*direction).unwrap_or_default().iter().map(|r| r.action).collect()
                };
                let (a, b) = (actions(first), actions(second));
                !a.is_empty() && !b.is_empty() && (a.len() > 1 || a != b)
            });
            let pod = world
                .pods()
                .find(|pod| world.is_subject(first, pod) && world.is_subject(second, pod));
            if let (Some(direction), Some(pod)) = (both, pod) {
                found.push(Finding {
                    level: Level::Warning,
                    policy: second.name.clone(),
                    at: "spec.priority".into(),
                    what: format!(
                        "{} has priority {} in tier {} too, and both have {direction} rules for pod {}: \
                         which is asked first is not defined by the API (here the one whose name comes \
                         first)",
                        first.name, first.priority, first.tier, pod.name
                    ),
                });
            }
        }
    }
}
