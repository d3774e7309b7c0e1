//! Answers as tables and as JSON.

use causeway_policy::compare::{self, Change};
use causeway_policy::explain::Explanation;
use causeway_policy::judge::{Decision, Judgement};
use causeway_policy::lint::Finding;
use causeway_policy::{Class, Direction, End, Policy, Tier, World};
use causeway_types::Family;
use serde::Serialize;
use serde_json::{Value, json};

use super::live::Found;

/// One policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyRow {
    tier: String,
    /// Where it has one.
    priority: Option<u16>,
    policy: String,
    applies_to: String,
    pods: usize,
    /// Rules; `None`: it says nothing of this direction.
    ingress: Option<usize>,
    egress: Option<usize>,
    problems: Vec<String>,
}

pub(super) fn policy(world: &World, policy: &Policy) -> PolicyRow {
    let rules = |direction| policy.rules(direction).map(<[_]>::len);
    PolicyRow {
        tier: policy.tier.to_string(),
        priority: (policy.tier != Tier::Network).then_some(policy.priority),
        policy: policy.name.to_string(),
        applies_to: policy.subject.as_ref().map_or("nobody".to_owned(), ToString::to_string),
        pods: world.pods().filter(|pod| world.is_subject(policy, pod)).count(),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        problems: policy.problems.iter().map(ToString::to_string).collect(),
    }
}

impl PolicyRow {
    pub(super) fn cells(&self) -> Vec<String> {
        let count = |rules: Option<usize>| match rules {
            None => "-".to_owned(),
            Some(1) => "1 rule".to_owned(),
            Some(n) => format!("{n} rules"),
        };
        let name = match self.problems.len() {
            0 => self.policy.clone(),
            n => format!("{} ({n} problems: causeway policy lint)", self.policy),
        };
        vec![
            self.tier.clone(),
            self.priority.map_or("-".to_owned(), |p| p.to_string()),
            name,
            self.applies_to.clone(),
            self.pods.to_string(),
            count(self.ingress),
            count(self.egress),
        ]
    }
}

pub(super) fn explanation(one: &Explanation, live: &Option<Found>) -> anyhow::Result<Value> {
    let decision =
        |decision: &Decision| json!({"allowed": decision.allowed, "reason": decision.reason()});
    let mut value = json!({
        "from": one.from.to_string(), "to": one.to.to_string(), "port": one.transport.to_string(),
        "allowed": one.judgement.allowed(),
        "egress": decision(&one.judgement.egress),
        "ingress": decision(&one.judgement.ingress),
        "missing": one.missing,
    });
    if let Some(found) = live {
        value["live"] = serde_json::to_value(found)?;
    }
    Ok(value)
}

pub(super) fn finding(finding: &Finding) -> Value {
    let Finding { level, policy, at, what } = finding;
    json!({"level": level.to_string(), "policy": policy.to_string(), "at": at, "what": what})
}

pub(super) fn change(change: &Change) -> Value {
    let from: Vec<String> = change.from.iter().map(ToString::to_string).collect();
    json!({
        "to": change.to.to_string(), "from": from,
        "family": change.family.map(|family| family.to_string()),
        "allowed": change.allowed.to_string(), "dropped": change.dropped.to_string(),
    })
}

/// One end that is reached from others.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reached {
    from: String,
    to: String,
    /// `None`: by all families that both have.
    family: Option<String>,
    reason: String,
}

pub(super) fn reached(
    from: &Class,
    family: Option<Family>,
    to: &End,
    judgement: &Judgement,
) -> Reached {
    Reached {
        from: from.to_string(),
        to: to.to_string(),
        family: family.map(|family| family.to_string()),
        reason: judgement.reason(),
    }
}

/// What is the same by both families is said once.
pub(super) fn merge_families(rows: &mut Vec<Reached>) {
    rows.dedup_by(|later, first| {
        let same =
            (&later.from, &later.to, &later.reason) == (&first.from, &first.to, &first.reason);
        if same {
            first.family = None;
        }
        same
    });
}

impl Reached {
    pub(super) fn cells(&self) -> Vec<String> {
        let from = match &self.family {
            Some(family) => format!("{} ({family})", self.from),
            None => self.from.clone(),
        };
        vec![from, self.to.clone(), self.reason.clone()]
    }
}

/// By what one kind of ends may connect to another.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    from: String,
    to: String,
    family: Option<String>,
    allowed: String,
    #[serde(skip)]
    nothing: bool,
}

pub(super) fn cells(cell: &compare::Cell) -> Vec<Cell> {
    let one = |(family, ports): &(Option<Family>, causeway_policy::PortSet)| Cell {
        from: cell.from.to_string(),
        to: cell.to.to_string(),
        family: family.map(|family| family.to_string()),
        allowed: ports.to_string(),
        nothing: ports.is_none(),
    };
    cell.ports.iter().map(one).collect()
}

impl Cell {
    pub(super) fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub(super) fn cells(&self) -> Vec<String> {
        let allowed = match &self.family {
            Some(family) => format!("{} ({family})", self.allowed),
            None => self.allowed.clone(),
        };
        vec![self.from.clone(), self.to.clone(), allowed]
    }
}
