//! What kube-controller-manager and kube-scheduler do for a lab: pod CIDRs for nodes, nodes for
//! pods, and the end of namespaces.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::error::ApiError;
use super::meta::{items, text, timestamp};
use super::store::{Event, Key, Part, Store, Watch, WatchOptions};

mod cidr;
mod namespace;
mod scheduler;

/// A range that pod CIDRs of nodes are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRange {
    /// The cluster's range, for example 10.244.0.0/16.
    pub cidr: IpNet,
    /// Prefix length of each node's part, from that of `cidr` to 32 (IPv4) or 128 (IPv6).
    pub node_prefix: u8,
}

impl PodRange {
    /// A range with the parts that kube-controller-manager cuts by default: /24 and /64.
    pub fn new(cidr: IpNet) -> Self {
        let usual = if matches!(cidr.addr(), IpAddr::V4(_)) { 24 } else { 64 };
        PodRange { cidr, node_prefix: usual.max(cidr.prefix_len()) }
    }
}

/// Which controllers run, and how.
#[derive(Clone, Debug, Default)]
pub struct ControllersConfig {
    /// Ranges for the nodes' pod CIDRs, at most one per family; none: nodes get no pod CIDRs.
    pub pod_ranges: Vec<PodRange>,
    /// Whether pods without a node get one.
    pub schedule: bool,
}

/// Runs the controllers until `shutdown` is done.
pub async fn run(store: Store, config: ControllersConfig, shutdown: impl Future<Output = ()>) {
    let idle = std::future::pending;
    let cidrs = async {
        if config.pod_ranges.is_empty() {
            idle().await
        } else {
            cidr::run(&store, &config.pod_ranges).await
        }
    };
    let scheduler =
        async { if config.schedule { scheduler::run(&store).await } else { idle().await } };
    tokio::select! {
        () = shutdown => {}
        () = cidrs => {}
        () = scheduler => {}
        () = namespace::run(&store) => {}
    }
}

/// Watches all objects of a type from the present on. The built-in types are always there.
fn watch_all(store: &Store, resource: &str) -> Option<Watch> {
    let watch = store.watch(resource, "", WatchOptions::default());
    watch.inspect_err(|error| tracing::error!("cannot watch {resource}: {error}")).ok()
}

/// The key of an object.
fn key_of(object: &Value) -> Key {
    Key::new(super::meta::namespace(object), super::meta::name(object))
}

/// Binds a pod to a node, as `pods/binding` does. Errors: 404 (no such pod), 409 (it has a node).
pub fn bind(store: &Store, namespace: &str, name: &str, node: &str) -> Result<(), ApiError> {
    store.try_modify("pods", &Key::new(namespace, name), Part::Whole, |pod| {
        let already = text(pod, "/spec/nodeName");
        if !already.is_empty() {
            let why = format!("pod {name} is already assigned to node \"{already}\"");
            return Err(ApiError::conflict("pods", name, &why));
        }
        if !text(pod, "/metadata/deletionTimestamp").is_empty() {
            return Err(ApiError::conflict("pods", name, "the pod is being deleted"));
        }
        pod["spec"]["nodeName"] = json!(node);
        set_condition(pod, "PodScheduled", "True", "", "");
        Ok(())
    })?;
    Ok(())
}

/// Writes one condition of a pod's or node's status; the transition time changes with the status only.
pub fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let old = items(object, "/status/conditions").iter().find(|c| c["type"] == kind);
    let since = old.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
    let mut condition = json!({
        "type": kind, "status": status, "lastTransitionTime": since.unwrap_or_else(|| json!(timestamp())),
    });
    for (field, value) in [("reason", reason), ("message", message)] {
        if !value.is_empty() {
            condition[field] = json!(value);
        }
    }
    let mut all: Vec<Value> =
        items(object, "/status/conditions").iter().filter(|c| c["type"] != kind).cloned().collect();
    all.push(condition);
    object["status"]["conditions"] = json!(all);
}

/// The object of an event about objects; `None` for bookmarks; an error if the watch has ended.
fn changed(event: Option<Event>) -> Result<Option<(std::sync::Arc<Value>, bool)>, ()> {
    match event {
        Some(Event::Added(object) | Event::Modified(object)) => Ok(Some((object, false))),
        Some(Event::Deleted(object)) => Ok(Some((object, true))),
        Some(Event::Bookmark { .. }) => Ok(None),
        Some(Event::Error(_)) | None => Err(()),
    }
}

#[cfg(test)]
mod tests;
