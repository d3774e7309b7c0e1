//! What came of the packets, for people and programs.

use std::collections::BTreeMap;

use anyhow::Result;
use causeway_policy::World;
use serde::Serialize;

use super::{Trial, describe};
use crate::words::{say, say_json};

/// What packets showed of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They meet what the evaluator says.
    Agrees,
    /// They do not: for this reason the evaluator says the contrary.
    Differs(String),
    /// None gets there without policies either.
    Broken,
    /// Nothing, for this reason.
    NotTried(String),
}

/// What is said at the end.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// So many connections something is expected of.
    pub(super) connections: usize,
    /// So many of them were tried with packets.
    pub(super) tried: usize,
    /// What is not as expected.
    pub(super) failed: Vec<String>,
    /// Where packets and the evaluator do not agree.
    pub(super) differences: Vec<String>,
    /// Connections that were not tried, by the reason.
    pub(super) not_tried: BTreeMap<String, Vec<String>>,
    /// What the lab has not as it is in the cluster.
    pub(super) left_out: Vec<String>,
}

impl Report {
    pub(super) fn take(&mut self, trial: &Trial<'_>, world: &World, verdict: Verdict) {
        let Trial { file, expectation, connection } = trial;
        let allowed = world.judge(&connection.from, &connection.to, connection.transport).allowed();
        let what = format!("{file}: {}: {}", expectation.at, describe(connection));
        let (pass, drop) = ("packets pass", "packets are dropped");
        let packets = match &verdict {
            Verdict::NotTried(_) => "not tried with packets",
            Verdict::Broken => "packets do not get there without policies either",
            Verdict::Agrees => {
                if allowed {
                    pass
                } else {
                    drop
                }
            }
            Verdict::Differs(_) => {
                if allowed {
                    drop
                } else {
                    pass
                }
            }
        };
        if let Some(surprise) = expectation.surprise(world, connection) {
            self.failed.push(format!("{file}: {surprise}; {packets}"));
        }
        self.tried += usize::from(!matches!(verdict, Verdict::NotTried(_)));
        match verdict {
            Verdict::Agrees => {}
            Verdict::Differs(reason) => {
                let says = if allowed { "allowed" } else { "dropped" };
                self.differences
                    .push(format!("{what}: {packets}, the evaluator says {says}: {reason}"));
            }
            Verdict::Broken => self.differences.push(format!("{what}: {packets}")),
            Verdict::NotTried(why) => self.not_tried.entry(why).or_default().push(what),
        }
    }

    /// Where nothing was tried nothing is shown.
    pub(super) fn finish(&mut self) {
        if self.tried == 0 {
            self.failed.push("no connection was tried with packets: this shows nothing".to_owned());
        }
    }

    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty() && self.differences.is_empty()
    }

    pub(super) fn say(&self, expectations: usize, json: bool) -> Result<()> {
        if json { say_json(self) } else { say(&self.text(expectations)) }
    }

    fn text(&self, expectations: usize) -> String {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.left_out.iter().map(|line| format!("in the lab: {line}")));
        for (why, connections) in &self.not_tried {
            let more = match connections.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            lines.push(format!("not tried: {}{more}: {why}", connections[0]));
        }
        lines.extend(self.failed.iter().cloned());
        lines.extend(self.differences.iter().cloned());
        if !self.differences.is_empty() {
            let bug = "a bug of Causeway: please report it, with the files";
            lines.push(format!("packets do not meet what the evaluator says: {bug}"));
        }
        let end = match (self.failed.len(), self.differences.len()) {
            (0, 0) => "all as expected".to_owned(),
            (n, 0) => format!("{n} not as expected"),
            (n, m) => format!("{n} not as expected, {m} not as the evaluator says"),
        };
        lines.push(format!(
            "{expectations} expectations, {} connections, {} of them tried with packets: {end}\n",
            self.connections, self.tried
        ));
        lines.join("\n")
    }
}
