//! Judgements in words.

use std::fmt::Write as _;

use crate::judge::{By, Decision, Exemption, Judgement, Near};
use crate::ports::Transport;
use crate::rule::{Action, Direction, PolicyName, Tier};
use crate::world::{Party, World};

impl Judgement {
    /// By what it was decided, in one line: where it is dropped, at the end that drops it.
    #[must_use]
    pub fn reason(&self) -> String {
        let of = |direction, decision: &Decision| format!("{direction}: {}", decision.reason());
        match (self.egress.allowed, self.ingress.allowed) {
            (true, true) => {
                let both = [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)];
                // What no policy was asked about explains nothing beside what one decided.
                let says = |d: &Decision| matches!(d.by, By::Rule(_));
                let any = both.iter().any(|(_, d)| says(d));
                let told = both.iter().filter(|(_, d)| !any || says(d));
                let told: Vec<String> = told.map(|(direction, d)| of(*direction, d)).collect();
                told.join("; ")
            }
            (false, true) => of(Direction::Egress, &self.egress),
            (true, false) => of(Direction::Ingress, &self.ingress),
            (false, false) => {
                of(Direction::Egress, &self.egress) + "; " + &of(Direction::Ingress, &self.ingress)
            }
        }
    }
}

impl Decision {
    /// By what it was decided, in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut text = String::new();
        for rule in &self.passed {
            let _ = write!(text, "{rule} leaves it to the next tier; ");
        }
        let last = match &self.by {
            By::Exempt(Exemption::NoPod) => "no pod of this cluster, and no policy".to_owned(),
            By::Exempt(Exemption::NodeNetwork) => {
                "in a node's network, to which no policy applies".to_owned()
            }
            By::Exempt(Exemption::Itself) => "a pod's traffic to itself always passes".to_owned(),
            By::Exempt(Exemption::OwnNode) => {
                "what a pod's own node sends it always passes".to_owned()
            }
            By::Nothing => "no policy says anything of it".to_owned(),
            By::Rule(rule) => {
                let does = match rule.action {
                    Action::Accept => "allows it",
                    Action::Deny => "drops it",
                    Action::Pass => "passes it",
                };
                let tier = match rule.tier {
                    Tier::Network => String::new(),
                    tier => format!(" (tier {tier})"),
                };
                format!("{rule}{tier} {does}")
            }
            By::Isolation(policies) => format!("{}, and no rule allows it", isolation(policies)),
        };
        text + &last
    }
}

fn isolation(policies: &[PolicyName]) -> String {
    const MOST: usize = 5;
    let mut names: Vec<String> = policies.iter().take(MOST).map(ToString::to_string).collect();
    if policies.len() > MOST {
        names.push(format!("{} more", policies.len() - MOST));
    }
    let verb = if policies.len() == 1 { "applies" } else { "apply" };
    format!("{} {verb}", names.join(", "))
}

/// Everything about one connection, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// From where.
    pub from: Party,
    /// To where.
    pub to: Party,
    /// By what.
    pub transport: Transport,
    /// What becomes of it.
    pub judgement: Judgement,
    /// What is missing to allow it, a line each; empty where it is allowed.
    pub missing: Vec<String>,
}

impl World {
    /// What becomes of a connection, why, and what is missing where it is dropped.
    #[must_use]
    pub fn explain(&self, from: &Party, to: &Party, transport: Transport) -> Explanation {
        let judgement = self.judge(from, to, transport);
        let mut missing = Vec::new();
        for (direction, decision, own, peer) in [
            (Direction::Egress, &judgement.egress, from, to),
            (Direction::Ingress, &judgement.ingress, to, from),
        ] {
            let Some(subject) = self.subject_at(own).filter(|_| !decision.allowed) else {
                continue;
            };
            let pod = &subject.pod.name;
            match &decision.by {
                By::Rule(rule) => missing.push(match rule.tier {
                    Tier::Baseline => format!(
                        "a NetworkPolicy for pod {pod} with an {direction} rule for {peer} and \
                         {transport}, or an Accept before {rule}"
                    ),
                    _ => format!(
                        "a rule that accepts or passes it, of tier Admin, before {rule}: no \
                         NetworkPolicy can allow what this one drops"
                    ),
                }),
                _ => {
                    let network = |near: &Near| near.rule.tier == Tier::Network;
                    let all = subject.near(direction, peer, transport);
                    let near = all.iter().filter(|near| network(near) && (near.peer || near.port));
                    let mut near: Vec<&Near> = near.collect();
                    // A rule for this peer is nearer than one for this port of others.
                    near.sort_by_key(|near| !near.peer);
                    missing.push(format!(
                        "an {direction} rule for {peer} and {transport}, in a NetworkPolicy that \
                         applies to pod {pod}"
                    ));
                    for near in near.into_iter().take(3) {
                        let (has, lacks) = match near.peer {
                            true => (peer.to_string(), format!("not {transport}")),
                            false => (transport.to_string(), format!("not for {peer}")),
                        };
                        missing.push(format!("{} allows {has}, but {lacks}", near.rule));
                    }
                }
            }
        }
        let (from, to) = (from.clone(), to.clone());
        Explanation { from, to, transport, judgement, missing }
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.judgement.allowed() { "allowed" } else { "dropped" };
        writeln!(f, "{} to {}, {}: {word}", self.from, self.to, self.transport)?;
        let line = |decision: &Decision| {
            let mark = if decision.allowed { "allowed" } else { "dropped" };
            format!("{mark}: {}", decision.reason())
        };
        writeln!(f, "  egress   {}", line(&self.judgement.egress))?;
        write!(f, "  ingress  {}", line(&self.judgement.ingress))?;
        for missing in &self.missing {
            write!(f, "\n  missing  {missing}")?;
        }
        Ok(())
    }
}
