//! What the loop answers between rounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use causeway_desired::node::node_objects;
use causeway_desired::pod::pod_objects;
use causeway_desired::script::{PodScript, render};
use causeway_model::{Desired, Key, Object, Owner};
use causeway_plan::{Plan, plan};
use causeway_types::Mac;
use causeway_types::state::AttachmentRecord;

use super::{Answer, Core};
use crate::marks;
use crate::port::{Port, Stale};
use crate::report::Report;
use crate::retry::Failure;
use crate::status::Problem;
use crate::wishes;

const UNKNOWN: &str = "the cluster is not known yet: the Kubernetes API has not answered";

impl<P: Port> Core<P> {
    /// What a plugin that announced this record is told after a round.
    pub(crate) fn attachment_answer(&self, file_name: &str) -> Answer {
        let Some(record) = self.records.get(file_name) else {
            return Answer::Never(format!("there is no record {file_name} of this boot"));
        };
        if self.view().1.is_none() {
            return Answer::NotYet(UNKNOWN.to_owned());
        }
        if let Some(trouble) = &self.trouble {
            return Answer::NotYet(trouble.error.clone());
        }
        let owner = Owner::Pod(record.owner_name());
        let failed = self
            .failures
            .iter()
            .find(|(key, _)| self.desired.get(key).is_some_and(|entry| entry.owner == owner));
        match failed {
            Some((key, failure)) => Answer::NotYet(format!("{key}: {}", failure.error)),
            None => Answer::Done,
        }
    }

    /// What would be changed now, from a fresh look; changes nothing.
    pub(crate) fn plan_now(&mut self, now: Instant) -> Result<Plan, String> {
        self.records.refresh().then(|| self.decided = false);
        self.stale = Stale::ALL;
        self.look()?;
        if self.view().1.is_none() {
            return Err(UNKNOWN.to_owned());
        }
        self.decide(now);
        self.look_further()?;
        Ok(plan(&self.desired, &self.seen, &self.ownership()))
    }

    /// The node's network as a script.
    pub(crate) fn script(&mut self, pods: bool, now: Instant) -> Result<String, String> {
        if self.view().1.is_none() {
            return Err(UNKNOWN.to_owned());
        }
        self.decide(now);
        let records = if pods { self.records.desired() } else { Vec::new() };
        let desired = node_objects(&self.inputs(records.clone())).desired;
        let inside: Vec<PodScript<'_>> = records
            .iter()
            .map(|record| {
                let inside = pod_objects(record, bridge_mac(&desired, record));
                PodScript { record, inside }
            })
            .collect();
        Ok(render(&self.me, &desired, &inside))
    }

    /// Everything that a status is made of.
    pub(crate) fn report(&self) -> Report {
        let mut problems = self.problems.clone();
        let node = |message: &String| Problem { owner: "node".into(), message: message.clone() };
        problems.extend(self.records.problems().map(node));
        problems.extend(self.owned.problem.iter().map(node));
        problems.extend(self.last_view_problem.iter().map(node));
        problems.extend(self.path_problems.iter().map(node));
        problems.extend(self.trouble.iter().map(|t| node(&t.error)));
        let (from, view) = self.view();
        let plan = &self.last_plan;
        let error = |key: &Key| self.failures.get(key).cloned();
        let open: BTreeMap<Key, Option<Failure>> =
            plan.ops.iter().map(|op| (op.key(), error(&op.key()))).collect();
        Report {
            node: self.me.to_string(),
            ready: self.ready,
            network: self.network(),
            problems,
            view_from: from,
            synced: self.synced(),
            nodes: view.map_or(0, |v| v.nodes.len()),
            pods: view.map_or(0, |v| v.pods.len()),
            nodes_synced: self.snapshot.nodes_synced,
            pods_synced: self.snapshot.pods_synced,
            attachments: self.records.desired().len(),
            generation: self.ready_files.generation(),
            desired: Arc::clone(&self.desired),
            open,
            conflicts: plan.conflicts.iter().map(|c| (c.key.clone(), c.why.clone())).collect(),
            waiting: plan.waiting.iter().cloned().collect(),
            fulfilled_by_others: plan.fulfilled_by_others.iter().cloned().collect(),
            strangers: self.strangers(),
        }
    }

    fn network(&self) -> String {
        let cidrs = self.node_file.iter().flat_map(|file| &file.pod_cidrs);
        let cidrs: Vec<String> = cidrs.map(ToString::to_string).collect();
        format!("pods get addresses of {}", cidrs.join(", "))
    }

    /// Objects with our mark that are neither wanted nor recorded.
    fn strangers(&self) -> Vec<String> {
        let mut known = wishes::host_keys(&self.records.desired(), &self.config);
        known.extend(self.pending_keys());
        let strange = |key: &Key, object: &Object| {
            self.desired.get(key).is_none()
                && !self.owned.keys().contains(key)
                && !known.contains(key)
                && marks::ours(object, &self.config)
                && !matches!(object, Object::Addr(_) | Object::Neigh(_) | Object::Fdb(_))
        };
        self.seen.iter().filter(|(k, o)| strange(k, o)).map(|(k, _)| k.to_string()).collect()
    }
}

/// The MAC of the bridge that a pod hangs on, as the node wants it.
fn bridge_mac(desired: &Desired, record: &AttachmentRecord) -> Option<Mac> {
    let key = Key::Link(record.bridge.clone()?);
    match &desired.get(&key)?.object {
        Object::Link(link) => link.mac,
        _ => None,
    }
}
