//! What the loop answers between rounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use causeway_desired::node::node_objects;
use causeway_desired::pod::pod_objects;
use causeway_desired::script::{PodScript, render};
use causeway_model::{Desired, Key, Object, Owner};
use causeway_plan::{Plan, plan};
use causeway_plugins::usage;
use causeway_types::state::AttachmentRecord;
use causeway_types::{Cidr, Mac};

use super::{Answer, Core, RESUME_AFTER};
use crate::marks;
use crate::port::{Port, Stale};
use crate::report::{Report, ViewFrom};
use crate::retry::Failure;
use crate::status::Problem;
use crate::wishes;

const UNKNOWN: &str = "the cluster is not known yet: the Kubernetes API has not answered";

impl<P: Port> Core<P> {
    /// Takes in the record that a plugin announced. True when the plugin can go on before a round: the node
    /// was in order at the last one, and what a pod needs its plugin has made and seen itself.
    pub(crate) fn knows_at_once(&mut self, file_name: &str) -> bool {
        // The name comes from outside.
        let is_record = !file_name.contains('/') && !file_name.starts_with('.');
        if !is_record || !self.ready || self.trouble.is_some() {
            return false;
        }
        self.decided &= !self.records.read(file_name);
        self.attachment_answer(file_name) == Answer::Done
    }

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
        let looked = self.look();
        if self.unplanned || looked.is_err() {
            // This is no round, and nobody tells of the news again.
            self.resume.get_or_insert(now + RESUME_AFTER);
        }
        looked?;
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
        let node = |message: &String| Problem::new("node", message.as_str());
        problems.extend(self.records.problems().map(node));
        problems.extend(self.owned.problem.iter().map(node));
        problems.extend(self.last_view_problem.iter().map(node));
        problems.extend(self.path_problems.iter().map(node));
        problems.extend(self.live.problem.iter().map(node));
        problems.extend(self.foreign.problems.iter().map(node));
        problems.extend(self.taken.problems().map(node));
        problems.extend(self.trouble.iter().chain(&self.unwritten).map(|t| node(&t.error)));
        problems.extend(self.self_test.problems().map(|what| node(&what)));
        match &self.usage {
            Ok(usage) => problems.extend(usage::exhausted(usage).iter().map(node)),
            Err(error) => problems.push(node(error)),
        }
        let (from, view) = self.view();
        let plan = &self.last_plan;
        let error = |key: &Key| self.failures.get(key).cloned();
        let open: BTreeMap<Key, Option<Failure>> =
            plan.ops.iter().map(|op| (op.key(), error(&op.key()))).collect();
        Report {
            node: self.me.to_string(),
            ready: self.ready,
            network: self.network(),
            // What pods have is known for sure only once all their records are read.
            claims: self.claimed().filter(|_| {
                from == ViewFrom::Api && self.synced() && self.records.all_understood()
            }),
            pod_mtu: self.node_file.as_ref().map(|file| file.mtu).filter(|_| from == ViewFrom::Api),
            flannel: self.flannel.clone().filter(|_| from == ViewFrom::Api && self.synced()),
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

    /// What the node should claim, and what plugins may be giving addresses out of right now: the node
    /// file has it, or had it when the records were read. A plugin looks at the file once more when its
    /// record stands, so that no attachment comes after both.
    fn claimed(&self) -> Option<Vec<Cidr>> {
        let mut claims = self.claims.clone()?;
        let own = self.view().1.and_then(|view| view.nodes.get(&self.me));
        let stands = |cidr: &&Cidr| own.is_some_and(|own| own.claimed_cidrs.contains(cidr));
        let offered = self.offered.iter().chain(self.ready_files.offered());
        claims.extend(offered.filter(stands));
        claims.sort();
        claims.dedup();
        Some(claims)
    }

    fn network(&self) -> String {
        let cidrs = self.node_file.iter().flat_map(|file| file.ranges());
        let cidrs: Vec<String> = cidrs.map(|c| c.to_string()).collect();
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
                && marks::ours(object, &self.config, self.taken.over())
                && !matches!(object, Object::Addr(_) | Object::Neigh(_) | Object::Fdb(_))
        };
        let seen = self.seen.iter().filter(|(k, o)| strange(k, o)).map(|(k, _)| k.to_string());
        seen.chain(self.owned.unknown()).collect()
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
