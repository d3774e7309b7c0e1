//! What the loop hands out after each round; a status is made from it when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use causeway_cluster::{FeedHealth, Health, OptionalHealth};
use causeway_desired::flannel::Annotations;
use causeway_model::{Desired, Key};
use causeway_types::{Cidr, Mtu};

use crate::retry::Failure;
use crate::status::{
    FeedStatus, InputsStatus, ObjectStatus, OptionalStatus, Problem, State, Status,
};

/// Where the view of the cluster comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ViewFrom {
    /// Nothing is known.
    #[default]
    Nowhere,
    /// The last good view on disk.
    Disk,
    /// The API.
    Api,
}

/// The state after a round. Cheap to make: what is large is shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) node: String,
    pub(crate) ready: bool,
    /// What the node's pods get, for people.
    pub(crate) network: String,
    /// What the node should claim; `None` while that cannot be told.
    pub(crate) claims: Option<Vec<Cidr>>,
    /// MTU of the node's pods.
    pub(crate) pod_mtu: Option<Mtu>,
    /// What the node should tell nodes of flannel; `None` while that is not known, or not ours to say.
    pub(crate) flannel: Option<Annotations>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) view_from: ViewFrom,
    pub(crate) synced: bool,
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) nodes_synced: bool,
    pub(crate) pods_synced: bool,
    pub(crate) attachments: usize,
    pub(crate) generation: u64,
    pub(crate) desired: Arc<Desired>,
    /// Objects with an operation outstanding, and why it has not been done.
    pub(crate) open: BTreeMap<Key, Option<Failure>>,
    pub(crate) conflicts: BTreeMap<Key, String>,
    pub(crate) waiting: BTreeSet<Key>,
    pub(crate) fulfilled_by_others: BTreeSet<Key>,
    pub(crate) strangers: Vec<String>,
}

impl Report {
    /// The status, with what the watches and the counters add.
    pub(crate) fn status(&self, health: &Health, reconciles: u64, repairs: u64) -> Status {
        let view = match self.view_from {
            ViewFrom::Nowhere => "none",
            ViewFrom::Disk => "last view",
            ViewFrom::Api => "api",
        };
        let mut problems = self.problems.clone();
        if self.view_from != ViewFrom::Api {
            problems.push(no_api(&health.nodes()));
        }
        problems.extend(health.unsaid().map(|why| unsaid(&why)));
        problems.sort();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            ready: self.ready,
            problems,
            inputs: InputsStatus {
                view: view.to_owned(),
                synced: self.synced,
                nodes: feed(&health.nodes(), self.nodes_synced, self.nodes),
                pods: feed(&health.pods(), self.pods_synced, self.pods),
                optional: health.optionals().into_iter().map(optional).collect(),
                attachments: self.attachments,
            },
            generation: self.generation,
            reconciles,
            repairs,
            objects: self.objects(),
            strangers: self.strangers.clone(),
        }
    }

    fn objects(&self) -> Vec<ObjectStatus> {
        let wanted = self
            .desired
            .iter()
            .map(|(key, entry)| self.object(key, entry.owner.to_string(), entry.why.clone()));
        let unwanted = self.open.keys().filter(|key| self.desired.get(key).is_none());
        let unwanted = unwanted
            .map(|key| self.object(key, "nobody".into(), "ours and no longer wanted".into()));
        wanted.chain(unwanted).collect()
    }

    fn object(&self, key: &Key, owner: String, mut why: String) -> ObjectStatus {
        let failure = self.open.get(key).and_then(Option::as_ref);
        let (state, error) = if let Some(failure) = failure {
            (State::Failed, Some(failure.error.clone()))
        } else if let Some(conflict) = self.conflicts.get(key) {
            (State::Conflict, Some(conflict.clone()))
        } else if self.waiting.contains(key) {
            (State::Pending, Some("the pod interface that it needs is not there".to_owned()))
        } else if self.open.contains_key(key) {
            (State::Pending, Some("not done yet".to_owned()))
        } else {
            (State::Ok, None)
        };
        if self.fulfilled_by_others.contains(key) {
            why.push_str(" (a route made by somebody else leads the same way)");
        }
        let since = failure.and_then(|f| f.since.duration_since(UNIX_EPOCH).ok());
        ObjectStatus {
            key: key.to_string(),
            owner,
            state,
            error,
            since: since.map(|d| d.as_secs()),
            retries: failure.map_or(0, |f| f.attempts),
            why,
        }
    }
}

fn no_api(nodes: &FeedHealth) -> Problem {
    let why = match &nodes.error {
        Some((_, error)) => error.clone(),
        None => "no answer yet".to_owned(),
    };
    let message = format!("the Kubernetes API has not told its Nodes: {why}");
    Problem::new("node", message)
}

fn unsaid(why: &str) -> Problem {
    let message = format!(
        "cannot write the condition NetworkUnavailable, the taint or Events of this node to the \
         Kubernetes API: {why}; the agent needs patch of nodes and nodes/status, and create, get and \
         patch of events"
    );
    Problem::new("node", message)
}

fn optional((kind, health): (String, OptionalHealth)) -> OptionalStatus {
    OptionalStatus {
        kind,
        served: health.served,
        restarts: health.feed.restarts,
        error: health.feed.error.map(|(_, text)| text),
    }
}

fn feed(health: &FeedHealth, synced: bool, objects: usize) -> FeedStatus {
    FeedStatus {
        synced,
        objects,
        restarts: health.restarts,
        error: health.error.as_ref().map(|(_, text)| text.clone()),
    }
}
