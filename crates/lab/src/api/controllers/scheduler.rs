//! The scheduler: pods without a node go to the ready node that runs the fewest pods, where selectors,
//! affinity and taints allow it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::{bind, changed, key_of, set_condition, watch_all};
use crate::api::meta::{items, name, text};
use crate::api::selector::LabelSelector;
use crate::api::store::{Key, Part, Store};

/// What the scheduler knows.
#[derive(Default)]
struct Scheduler {
    nodes: BTreeMap<String, Arc<Value>>,
    /// The node of each pod that has one and is not finished.
    placed: HashMap<Key, String>,
    counts: HashMap<String, usize>,
    pending: BTreeMap<Key, Arc<Value>>,
}

pub(super) async fn run(store: &Store) {
    loop {
        let (Some(mut nodes), Some(mut pods)) =
            (watch_all(store, "nodes"), watch_all(store, "pods"))
        else {
            return;
        };
        let mut scheduler = Scheduler::default();
        loop {
            let result = tokio::select! {
                biased;
                event = nodes.next() => changed(event).map(|e| scheduler.on_node(store, e)),
                event = pods.next() => changed(event).map(|e| scheduler.on_pod(store, e)),
            };
            if result.is_err() {
                break;
            }
        }
    }
}

impl Scheduler {
    /// Another node may be the one that waiting pods wait for; a heartbeat is not.
    fn on_node(&mut self, store: &Store, event: Option<(Arc<Value>, bool)>) {
        let Some((node, gone)) = event else { return };
        let name = name(&node).to_string();
        let old = match gone {
            true => self.nodes.remove(&name),
            false => self.nodes.insert(name, node.clone()),
        };
        if gone || old.is_none_or(|old| essence(&old) != essence(&node)) {
            for (key, pod) in std::mem::take(&mut self.pending) {
                self.place(store, key, pod);
            }
        }
    }

    fn on_pod(&mut self, store: &Store, event: Option<(Arc<Value>, bool)>) {
        let Some((pod, gone)) = event else { return };
        self.pod(&pod, gone);
        let key = key_of(&pod);
        if let Some(pod) = self.pending.remove(&key) {
            self.place(store, key, pod);
        }
    }

    fn pod(&mut self, pod: &Arc<Value>, gone: bool) {
        let key = key_of(pod);
        self.pending.remove(&key);
        if let Some(node) = self.placed.remove(&key) {
            self.counts.entry(node).and_modify(|count| *count = count.saturating_sub(1));
        }
        let finished = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
        let leaving = !text(pod, "/metadata/deletionTimestamp").is_empty();
        let node = text(pod, "/spec/nodeName");
        if gone || finished {
            return;
        }
        if !node.is_empty() {
            self.assume(key, node.to_string());
        } else if !leaving && text(pod, "/spec/schedulerName") == "default-scheduler" {
            self.pending.insert(key, pod.clone());
        }
    }

    fn assume(&mut self, key: Key, node: String) {
        *self.counts.entry(node.clone()).or_default() += 1;
        self.placed.insert(key, node);
    }

    fn place(&mut self, store: &Store, key: Key, pod: Arc<Value>) {
        let node = match self.choose(&pod) {
            Ok(node) => node,
            Err(why) => {
                mark(store, &key, &pod, &why);
                self.pending.insert(key, pod);
                return;
            }
        };
        match bind(store, &key.namespace, &key.name, &node) {
            Ok(()) => self.assume(key, node),
            // Gone, or bound by somebody else: the watch tells.
            Err(error) => {
                tracing::debug!("pod {}/{} is not bound: {error}", key.namespace, key.name);
            }
        }
    }

    /// The node for a pod, or why there is none.
    fn choose(&self, pod: &Value) -> Result<String, String> {
        let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut best: Option<(usize, &String)> = None;
        for (name, node) in &self.nodes {
            match obstacle(pod, node) {
                Some(reason) => *reasons.entry(reason).or_default() += 1,
                None => {
                    let count = self.counts.get(name).copied().unwrap_or(0);
                    best = Some(best.map_or((count, name), |best| best.min((count, name))));
                }
            }
        }
        let list: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let why = || format!("0/{} nodes are available: {}.", self.nodes.len(), list.join(", "));
        best.map(|(_, name)| name.clone()).ok_or_else(why)
    }
}

/// What of a node decides which pods it takes.
fn essence(node: &Value) -> (bool, &Value, &Value, &Value) {
    let spec = &node["spec"];
    (ready(node), &node["metadata"]["labels"], &spec["taints"], &spec["unschedulable"])
}

fn ready(node: &Value) -> bool {
    items(node, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Says in the pod's status why it waits; writes only what is new, as each write comes back as an event.
fn mark(store: &Store, key: &Key, pod: &Value, why: &str) {
    let told = items(pod, "/status/conditions")
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["message"] == why);
    if !told {
        let change =
            |pod: &mut Value| set_condition(pod, "PodScheduled", "False", "Unschedulable", why);
        let _ = store.modify("pods", key, Part::Status, change);
    }
}

/// Why a node cannot take a pod.
fn obstacle(pod: &Value, node: &Value) -> Option<&'static str> {
    if !ready(node) {
        return Some("node(s) were not ready");
    }
    if node["spec"]["unschedulable"] == true
        && !tolerates(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule")
    {
        return Some("node(s) were unschedulable");
    }
    let refuses = |taint: &&Value| {
        let effect = text(taint, "/effect");
        effect != "PreferNoSchedule"
            && !tolerates(pod, text(taint, "/key"), text(taint, "/value"), effect)
    };
    if items(node, "/spec/taints").iter().any(|taint| refuses(&taint)) {
        return Some("node(s) had untolerated taint(s)");
    }
    let labels = &node["metadata"]["labels"];
    let wanted = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    if wanted.into_iter().any(|(key, value)| labels.get(key) != Some(value)) || !affinity(pod, node)
    {
        return Some("node(s) didn't match Pod's node affinity/selector");
    }
    None
}

/// Whether the required node affinity holds: one of its terms, and each part of that.
fn affinity(pod: &Value, node: &Value) -> bool {
    let path = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = items(pod, path);
    let holds = |term: &Value| {
        let fields = items(term, "/matchFields").iter().all(|field| match text(field, "/key") {
            "metadata.name" => {
                let listed = items(field, "/values").iter().any(|value| value == name(node));
                listed == (field["operator"] == "In")
            }
            _ => false,
        });
        let empty =
            items(term, "/matchFields").is_empty() && items(term, "/matchExpressions").is_empty();
        !empty && fields && LabelSelector::from_object(term).matches(&node["metadata"]["labels"])
    };
    terms.is_empty() || terms.iter().any(holds)
}

fn tolerates(pod: &Value, key: &str, value: &str, effect: &str) -> bool {
    items(pod, "/spec/tolerations").iter().any(|t| {
        let (own_key, own_effect) = (text(t, "/key"), text(t, "/effect"));
        let exists = text(t, "/operator") == "Exists";
        (own_effect.is_empty() || own_effect == effect)
            && (own_key == key && (exists || text(t, "/value") == value)
                || own_key.is_empty() && exists)
    })
}
