//! Is this connection allowed, and by which rule? And by what are connections between two ends allowed
//! at all?

use std::fmt;

use crate::labels::Text;
use crate::ports::{PortSet, Transport};
use crate::rule::{
    Action, Direction, Peer, Peers, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use crate::world::{NamedPort, Party, Pod, Seen, SeenAs, Who, World};

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// At the end from which it comes.
    pub egress: Decision,
    /// At the end to which it goes.
    pub ingress: Decision,
}

impl Judgement {
    /// Whether it is allowed at both ends.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// What becomes of a connection at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// By what that was decided.
    pub by: By,
    /// Rules that left it to the next tier before that.
    pub passed: Vec<RuleName>,
}

/// By what something was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// No policy is asked.
    Exempt(Exemption),
    /// No policy that applies says anything of it: all pods may talk to each other.
    Nothing,
    /// A rule.
    Rule(RuleName),
    /// These NetworkPolicies apply, and no rule of theirs allows it.
    Isolation(Vec<PolicyName>),
}

/// Why no policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// This end is no pod of this cluster.
    NoPod,
    /// This end is a node, or a pod in its node's network: no policy applies to those.
    NodeNetwork,
    /// It is the pod's own traffic to itself.
    Itself,
    /// It comes from the pod's own node, which has to reach it (kubelet's probes).
    OwnNode,
}

/// Which rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName {
    /// Of which policy.
    pub policy: PolicyName,
    /// Of which tier.
    pub tier: Tier,
    /// In which of its lists.
    pub direction: Direction,
    /// Its place in the list, from 0.
    pub index: usize,
    /// Its name, where it has one.
    pub name: Option<Text>,
    /// What it does.
    pub action: Action,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} rule {}", self.policy, self.direction, self.index + 1)?;
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// A rule of a policy that applies, beside a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// The rule.
    pub rule: RuleName,
    /// The other end is one of those that it names.
    pub peer: bool,
    /// The port is one of those that it names.
    pub port: bool,
}

/// A pod with the policies that apply to it.
#[derive(Clone, Debug)]
pub struct Subject<'w> {
    pub(crate) world: &'w World,
    /// The pod.
    pub pod: &'w Pod,
    /// In the order in which they are asked.
    pub policies: Vec<&'w Policy>,
}

impl World {
    /// A pod with the policies that apply to it.
    #[must_use]
    pub fn subject<'w>(&'w self, pod: &'w Pod) -> Subject<'w> {
        Subject { world: self, pod, policies: self.policies_of(pod) }
    }

    /// The pod at one end, with the policies that apply to it.
    #[must_use]
    pub fn subject_at(&self, party: &Party) -> Option<Subject<'_>> {
        match &party.who {
            Who::Pod(name) => self.pod(name).map(|pod| self.subject(pod)),
            Who::Node(_) | Who::Outside => None,
        }
    }

    /// What becomes of a connection.
    #[must_use]
    pub fn judge(&self, from: &Party, to: &Party, transport: Transport) -> Judgement {
        let decide = |own: &Party, direction, peer: &Party| match self.subject_at(own) {
            Some(subject) => subject.decide(direction, peer, transport),
            None => exempt(match own.who {
                Who::Node(_) => Exemption::NodeNetwork,
                _ => Exemption::NoPod,
            }),
        };
        Judgement {
            egress: decide(from, Direction::Egress, to),
            ingress: decide(to, Direction::Ingress, from),
        }
    }

    /// By what one end may connect to another: what [`World::judge`] allows, of everything at once.
    #[must_use]
    pub fn allowed(&self, from: &Party, to: &Party) -> PortSet {
        let of = |own: &Party, direction, peer: &Party| match self.subject_at(own) {
            Some(subject) => subject.allowed(direction, peer),
            None => PortSet::all(),
        };
        of(from, Direction::Egress, to).and(&of(to, Direction::Ingress, from))
    }

    fn is_peer(&self, peer: &Peer, seen: &Seen<'_>) -> bool {
        match (peer, seen.who) {
            (Peer::Block(block), _) => block.contains(seen.address),
            (Peer::Pods(pods), SeenAs::Pod(looks)) => self.selects_looks(pods, looks),
            (Peer::Nodes(selector), SeenAs::Node(labels)) => selector.selects(labels),
            (Peer::Pods(_) | Peer::Nodes(_) | Peer::Nobody, _) => false,
        }
    }
}

fn exempt(why: Exemption) -> Decision {
    Decision { allowed: true, by: By::Exempt(why), passed: Vec::new() }
}

impl<'w> Subject<'w> {
    /// What becomes of a connection with another end, at this pod.
    #[must_use]
    pub fn decide(&self, direction: Direction, peer: &Party, transport: Transport) -> Decision {
        if let Some(why) = self.exemption(direction, peer) {
            return exempt(why);
        }
        let mut passed = Vec::new();
        let seen = self.world.see(peer);
        for tier in [Tier::Admin, Tier::Network, Tier::Baseline] {
            let found = self.rules(tier, direction).find(|(_, rule)| {
                self.names(rule, &seen) && self.ports_of(rule, direction, &seen).contains(transport)
            });
            let by = match found {
                Some((rule, _)) if rule.action == Action::Pass => {
                    passed.push(rule);
                    continue;
                }
                Some((rule, _)) => By::Rule(rule),
                None => match self.isolating(tier, direction) {
                    none if none.is_empty() => continue,
                    policies => By::Isolation(policies),
                },
            };
            let allowed = matches!(&by, By::Rule(rule) if rule.action == Action::Accept);
            return Decision { allowed, by, passed };
        }
        Decision { allowed: true, by: By::Nothing, passed }
    }

    /// By what connections with another end are allowed, at this pod.
    #[must_use]
    pub fn allowed(&self, direction: Direction, peer: &Party) -> PortSet {
        match self.exemption(direction, peer) {
            Some(_) => PortSet::all(),
            None => self.by_rules(direction, peer),
        }
    }

    /// By what the rules alone allow connections with another end, at this pod, whoever it is.
    #[must_use]
    pub fn by_rules(&self, direction: Direction, peer: &Party) -> PortSet {
        self.of_seen(direction, &self.world.see(peer))
    }

    /// [`Subject::by_rules`] of an end as rules see it.
    pub(crate) fn of_seen(&self, direction: Direction, peer: &Seen<'_>) -> PortSet {
        // What no rule has decided yet.
        let (mut open, mut allowed) = (PortSet::all(), PortSet::none());
        for tier in [Tier::Admin, Tier::Network, Tier::Baseline] {
            let mut next = PortSet::none();
            let of_tier = self.policies.iter().filter(|policy| policy.tier == tier);
            let rules = of_tier.filter_map(|policy| policy.rules(direction)).flatten();
            for rule in rules {
                if open.is_none() {
                    break;
                }
                if !self.names(rule, peer) {
                    continue;
                }
                let matched = open.and(&self.ports_of(rule, direction, peer));
                open = open.minus(&matched);
                match rule.action {
                    Action::Accept => allowed = allowed.or(&matched),
                    Action::Deny => {}
                    Action::Pass => next = next.or(&matched),
                }
            }
            let isolates = |policy: &&Policy| {
                policy.tier == Tier::Network && policy.rules(direction).is_some()
            };
            if tier == Tier::Network && self.policies.iter().any(isolates) {
                return allowed;
            }
            open = open.or(&next);
        }
        allowed.or(&open)
    }

    /// The rules that apply in a direction, each with whether it names the other end and the port, in the
    /// order in which they are asked.
    #[must_use]
    pub fn near(&self, direction: Direction, peer: &Party, transport: Transport) -> Vec<Near> {
        let tiers = [Tier::Admin, Tier::Network, Tier::Baseline];
        let rules = tiers.into_iter().flat_map(|tier| self.rules(tier, direction));
        let seen = self.world.see(peer);
        let near = rules.map(|(name, rule)| Near {
            rule: name,
            peer: self.names(rule, &seen),
            port: self.ports_of(rule, direction, &seen).contains(transport),
        });
        near.collect()
    }

    /// Why no policy is asked about connections with another end.
    #[must_use]
    pub fn exemption(&self, direction: Direction, peer: &Party) -> Option<Exemption> {
        match &peer.who {
            Who::Pod(name) if *name == self.pod.name => Some(Exemption::Itself),
            Who::Node(name)
                if direction == Direction::Ingress && self.pod.node.as_ref() == Some(name) =>
            {
                Some(Exemption::OwnNode)
            }
            _ => None,
        }
    }

    /// The NetworkPolicies that allow alone what they name; none in other tiers.
    fn isolating(&self, tier: Tier, direction: Direction) -> Vec<PolicyName> {
        let of = self.policies.iter().filter(|policy| {
            policy.tier == tier && tier == Tier::Network && policy.rules(direction).is_some()
        });
        of.map(|policy| policy.name.clone()).collect()
    }

    /// The rules of a tier, in order.
    fn rules(
        &self,
        tier: Tier,
        direction: Direction,
    ) -> impl Iterator<Item = (RuleName, &'w Rule)> {
        let policies = self.policies.iter().copied().filter(move |policy| policy.tier == tier);
        policies.flat_map(move |policy: &'w Policy| {
            let rules = policy.rules(direction).unwrap_or_default();
            rules
                .iter()
                .enumerate()
                .map(move |(index, rule)| (name(policy, direction, index, rule), rule))
        })
    }

    fn names(&self, rule: &Rule, peer: &Seen<'_>) -> bool {
        match &rule.peers {
            Peers::Everybody => true,
            Peers::AnyOf(all) => all.iter().any(|one| self.world.is_peer(one, peer)),
        }
    }

    /// What a rule names of ports, where names are those of the pod to which the connection goes.
    fn ports_of(&self, rule: &Rule, direction: Direction, peer: &Seen<'_>) -> PortSet {
        let Ports::AnyOf(all) = &rule.ports else { return PortSet::all() };
        let called: &[NamedPort] = match (direction, peer.who) {
            (Direction::Ingress, _) => &self.pod.ports,
            (Direction::Egress, SeenAs::Pod(looks)) => looks.ports,
            (Direction::Egress, _) => &[],
        };
        all.iter().fold(PortSet::none(), |set, one| match one {
            PortMatch::Numbers(numbers) => set.or(numbers),
            PortMatch::Named { protocol, name } => {
                let ports = called.iter().filter(|port| port.name == *name);
                let meant = ports.filter(|port| protocol.is_none_or(|p| p == port.protocol));
                meant.fold(set, |set, p| set.or(&PortSet::of(p.protocol, p.port..=p.port)))
            }
        })
    }
}

fn name(policy: &Policy, direction: Direction, index: usize, rule: &Rule) -> RuleName {
    RuleName {
        policy: policy.name.clone(),
        tier: policy.tier,
        direction,
        index,
        name: rule.name.clone(),
        action: rule.action,
    }
}
