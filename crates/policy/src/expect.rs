//! What people expect of their policies, written down: which connections are allowed and which are
//! dropped (kind `PolicyTest` of `causeway.dev/v1alpha1`).
//!
//! ```yaml
//! apiVersion: causeway.dev/v1alpha1
//! kind: PolicyTest
//! allowed:
//! - {from: web/app=front, to: db/app=postgres, port: 5432}
//! dropped:
//! - {from: ["*/*"], to: db/app=postgres, port: [22, udp/53, icmp]}
//! ```

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::ends::{End, Ends};
use crate::judge::{By, Judgement};
use crate::ports::Transport;
use crate::read::Unreadable;
use crate::rule::PolicyName;
use crate::world::{Party, Who, World};

/// The group and version of the kind.
pub const API_VERSION: &str = "causeway.dev/v1alpha1";
/// The kind.
pub const KIND: &str = "PolicyTest";

/// What is expected of some connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Where it is written (`allowed[2]`).
    pub at: String,
    /// From each of these.
    pub from: Vec<Ends>,
    /// To each of those. Of an end to itself nothing is expected where it is one of several.
    pub to: Vec<Ends>,
    /// By each of these.
    pub ports: Vec<Transport>,
    /// Whether all of them are to be allowed, or all dropped.
    pub allowed: bool,
    /// Which policy is to decide, by its name; `None`: whichever.
    pub by: Option<String>,
}

/// A connection that something is expected of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// From where.
    pub from: Party,
    /// To where.
    pub to: Party,
    /// By what.
    pub transport: Transport,
}

/// A connection that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surprise {
    /// Where the expectation is written.
    pub at: String,
    /// From where.
    pub from: Party,
    /// To where.
    pub to: Party,
    /// By what.
    pub transport: Transport,
    /// What was expected.
    pub allowed: bool,
    /// Which policy was expected to decide.
    pub by: Option<String>,
    /// What becomes of it.
    pub judgement: Judgement,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "what every object has is taken, and no other key than those")]
struct Written {
    api_version: String,
    kind: String,
    metadata: Option<Value>,
    #[serde(default)]
    allowed: Vec<WrittenExpectation>,
    #[serde(default)]
    dropped: Vec<WrittenExpectation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenExpectation {
    from: OneOrMore,
    to: OneOrMore,
    port: OneOrMore,
    by: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    Number(u64),
    Text(String),
    List(Vec<Item>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Item {
    Number(u64),
    Text(String),
}

impl OneOrMore {
    fn texts(self) -> Vec<String> {
        match self {
            Self::Number(n) => vec![n.to_string()],
            Self::Text(text) => vec![text],
            Self::List(all) => all
                .into_iter()
                .map(|item| match item {
                    Item::Number(n) => n.to_string(),
                    Item::Text(text) => text,
                })
                .collect(),
        }
    }
}

/// Whether an object is of this kind.
#[must_use]
pub fn is_test(value: &Value) -> bool {
    value["kind"] == KIND
        && value["apiVersion"].as_str().is_some_and(|v| v.starts_with("causeway.dev/"))
}

/// Reads an object of kind `PolicyTest`.
///
/// # Errors
/// What is wrong with it, and at which key.
pub fn read(value: &Value) -> Result<Vec<Expectation>, Unreadable> {
    let name = value["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
    let wrong = |at: String, why: String| Unreadable { kind: KIND, name: name.clone(), at, why };
    let written: Written = serde_path_to_error::deserialize(value)
        .map_err(|e| wrong(e.path().to_string(), e.inner().to_string()))?;
    if written.api_version != API_VERSION {
        let why =
            format!("{:?} is not known; this program knows {API_VERSION}", written.api_version);
        return Err(wrong("apiVersion".into(), why));
    }
    let mut all = Vec::new();
    for (key, list, allowed) in
        [("allowed", written.allowed, true), ("dropped", written.dropped, false)]
    {
        for (i, one) in list.into_iter().enumerate() {
            let at = format!("{key}[{i}]");
            let parse = |key: &str, list: OneOrMore| -> Result<Vec<Ends>, Unreadable> {
                let parsed: Result<Vec<Ends>, String> =
                    list.texts().iter().map(|text| text.parse()).collect();
                parsed.map_err(|why| wrong(format!("{at}.{key}"), why))
            };
            let (from, to) = (parse("from", one.from)?, parse("to", one.to)?);
            let ports: Result<Vec<Transport>, String> =
                one.port.texts().iter().map(|text| text.parse()).collect();
            let ports = ports.map_err(|why| wrong(format!("{at}.port"), why))?;
            all.push(Expectation { at, from, to, ports, allowed, by: one.by });
        }
    }
    Ok(all)
}

/// What came of expectations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// So many connections were looked at.
    pub connections: usize,
    /// Those that are not as expected.
    pub surprises: Vec<Surprise>,
}

impl Expectation {
    /// Looks at each of its connections, by each family that both ends have.
    ///
    /// # Errors
    /// As [`Expectation::connections`].
    pub fn check(&self, world: &World) -> Result<Outcome, String> {
        let all = self.connections(world)?;
        let surprises = all.iter().filter_map(|one| self.surprise(world, one)).collect();
        Ok(Outcome { connections: all.len(), surprises })
    }

    /// Its connections, by each family that both ends have.
    ///
    /// # Errors
    /// When an end is nowhere, or no two ends could connect: such an expectation would show nothing.
    pub fn connections(&self, world: &World) -> Result<Vec<Connection>, String> {
        let ends = |key: &str, all: &[Ends]| -> Result<Vec<End>, String> {
            let mut found: Vec<End> = Vec::new();
            for which in all {
                let ends = world.ends(which).map_err(|why| format!("{}.{key}: {why}", self.at))?;
                found.extend(ends);
            }
            Ok(found)
        };
        let (from, to) = (ends("from", &self.from)?, ends("to", &self.to)?);
        let single = from.len() == 1 && to.len() == 1;
        let mut all = Vec::new();
        let apart = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
        for (from, to) in apart.filter(|(a, b)| single || a.who != b.who || a.who == Who::Outside) {
            for (from, to) in from.pairs(to) {
                all.extend(self.ports.iter().map(|transport| Connection {
                    from: from.clone(),
                    to: to.clone(),
                    transport: *transport,
                }));
            }
        }
        match all.is_empty() {
            true => Err(format!(
                "{}: no address of the one end could connect to one of the other",
                self.at
            )),
            false => Ok(all),
        }
    }

    /// What is not as expected of one of its connections; `None`: all is.
    #[must_use]
    pub fn surprise(&self, world: &World, connection: &Connection) -> Option<Surprise> {
        let Connection { from, to, transport } = connection;
        let judgement = world.judge(from, to, *transport);
        let good = judgement.allowed() == self.allowed && self.is_by(&judgement);
        (!good).then(|| Surprise {
            at: self.at.clone(),
            from: from.clone(),
            to: to.clone(),
            transport: *transport,
            allowed: self.allowed,
            by: self.by.clone(),
            judgement,
        })
    }

    /// The named policy decides at an end where it comes to that.
    fn is_by(&self, judgement: &Judgement) -> bool {
        let Some(by) = &self.by else { return true };
        let is = |name: &PolicyName| match name {
            PolicyName::Network { namespace, name } => {
                **name == **by || format!("{namespace}/{name}") == *by
            }
            PolicyName::Cluster(name) => **name == **by,
        };
        [&judgement.egress, &judgement.ingress]
            .iter()
            .filter(|decision| decision.allowed == self.allowed)
            .any(|decision| match &decision.by {
                By::Rule(rule) => is(&rule.policy),
                By::Isolation(all) => all.iter().any(is),
                By::Exempt(_) | By::Nothing => false,
            })
    }
}

impl fmt::Display for Surprise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed: bool| if allowed { "allowed" } else { "dropped" };
        let Self { at, from, to, transport, allowed, by, judgement } = self;
        write!(f, "{at}: {from} to {to}, {transport}: expected {}", word(*allowed))?;
        if let Some(by) = by {
            write!(f, " by {by}")?;
        }
        write!(f, ", is {}: {}", word(judgement.allowed()), judgement.reason())
    }
}
