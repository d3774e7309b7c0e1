//! A cluster's objects put into a running lab.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_agent::client as agent;
use serde_json::{Value, json};

use crate::blueprint::{Blueprint, CLUSTER_POLICIES};
use crate::client::{Client, Refusal};
use crate::manifests::{Kind, kinds, place};
use crate::pods::{Pod, pods};
use crate::spec::Spec;

/// Lists of policies, with their kinds.
const POLICIES: [(&str, &str); 2] = [
    ("NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies"),
    (CLUSTER_POLICIES.0, "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"),
];
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a Node is written again that its kubelet has changed meanwhile.
const TRIES: u32 = 20;

impl Blueprint {
    /// Makes the namespaces, labels the nodes, makes the pods and waits until they run. `go_on` is asked
    /// meanwhile. Answers what the lab's API refuses, a line each.
    ///
    /// # Errors
    /// When the lab does not answer, or pods do not run in time: with what they say.
    pub fn populate(
        &self,
        client: &Client,
        patience: Duration,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<String>> {
        for (node, labels) in &self.labels {
            label(client, node, labels).with_context(|| format!("label node {node}"))?;
        }
        let kinds = kinds(client)?;
        let mut refused = put(client, &kinds, &self.namespaces, go_on)?;
        refused.extend(put(client, &kinds, &self.pods, go_on)?);
        wait_for_pods(client, patience, go_on)?;
        Ok(refused)
    }

    /// Makes the policies and waits until all agents enforce them. Answers what the lab's API refuses, a line
    /// each.
    ///
    /// # Errors
    /// When the lab does not answer, or an agent does not enforce them in time: with what it says.
    pub fn enact(
        &self,
        spec: &Spec,
        client: &Client,
        patience: Duration,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<String>> {
        if self.policies.is_empty() {
            return Ok(Vec::new());
        }
        if self.policies.iter().any(|policy| policy["kind"] == CLUSTER_POLICIES.0) {
            define_cluster_policies(client)?;
        }
        let refused = put(client, &kinds(client)?, &self.policies, go_on)?;
        wait_until_enforced(spec, client, patience, go_on)?;
        Ok(refused)
    }
}

/// Makes objects; what is refused is said, and the others are made.
fn put(
    client: &Client,
    kinds: &[Kind],
    objects: &[Value],
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for object in objects {
        go_on()?;
        let (path, name) = place(kinds, object, "default")?;
        match client.apply(&path, object) {
            Ok(_) => {}
            Err(error) if error.is::<Refusal>() => {
                refused.push(format!("{name} is refused by the lab's API and left out: {error:#}"));
            }
            Err(error) => return Err(error.context(name)),
        }
    }
    Ok(refused)
}

/// A node's labels are those of the one that it plays, and no others.
fn label(client: &Client, node: &str, labels: &Value) -> Result<()> {
    let path = format!("/api/v1/nodes/{node}");
    for _ in 0..TRIES {
        let mut object = client.get(&path)?;
        object["metadata"]["labels"] = labels.clone();
        match client.put(&path, &object) {
            // Its kubelet wrote meanwhile.
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == 409) => {}
            other => return other.map(drop),
        }
    }
    bail!("it was changed by others {TRIES} times meanwhile")
}

/// Waits until every pod of the lab's API runs. `go_on` is asked meanwhile.
///
/// # Errors
/// When the lab does not answer, or pods do not run in time: with what they say.
pub fn wait_for_pods(
    client: &Client,
    patience: Duration,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let all = pods(client)?;
        let late: Vec<&Pod> = all.iter().filter(|pod| pod.phase != "Running").collect();
        if late.is_empty() {
            return Ok(());
        }
        go_on()?;
        if start.elapsed() > patience {
            let say = |pod: &&Pod| {
                format!("{} on {} is {}: {}", pod.label(), pod.node, pod.phase, pod.message)
            };
            let few: Vec<String> = late.iter().take(5).map(say).collect();
            bail!("{} pods do not run after {patience:?}:\n  {}", late.len(), few.join("\n  "));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Gives a lab the kind ClusterNetworkPolicy. It is no part of Kubernetes: its definition comes with the project
/// that makes it.
///
/// # Errors
/// When the lab does not answer.
pub fn define_cluster_policies(client: &Client) -> Result<()> {
    let (kind, version) = CLUSTER_POLICIES;
    let (group, version) = version.split_once('/').unwrap_or_default();
    let plural = "clusternetworkpolicies";
    let name = format!("{plural}.{group}");
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": group, "scope": "Cluster", "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": true, "storage": true}],
        },
    });
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    client.apply(&path, &definition).map(drop)
}

/// The policies of the lab's API, as agents name them, with their versions.
///
/// # Errors
/// When the lab does not answer.
pub fn policy_versions(client: &Client) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (kind, path) in POLICIES {
        let items = match client.get(path) {
            Ok(list) => list["items"].as_array().cloned().unwrap_or_default(),
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == 404) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for object in items {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            let name = match text("namespace").as_str() {
                "" => format!("{kind} {}", text("name")),
                namespace => format!("{kind} {namespace}/{}", text("name")),
            };
            all.insert(name, text("resourceVersion"));
        }
    }
    Ok(all)
}

/// Waits until the kernel of each node has the policies of the lab's API as they are now, and no others. `go_on` is
/// asked meanwhile.
///
/// # Errors
/// When the lab does not answer, or an agent does not enforce them in time: with what it says.
pub fn wait_until_enforced(
    spec: &Spec,
    client: &Client,
    patience: Duration,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let wanted = policy_versions(client)?;
    let start = Instant::now();
    loop {
        let late: Vec<String> =
            spec.served().iter().filter_map(|node| not_yet(spec, node, &wanted)).collect();
        if late.is_empty() {
            return Ok(());
        }
        go_on()?;
        if start.elapsed() > patience {
            bail!("the policies are not in force after {patience:?}:\n  {}", late.join("\n  "));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What a node's agent does not enforce yet.
fn not_yet(spec: &Spec, node: &str, wanted: &BTreeMap<String, String>) -> Option<String> {
    let socket = spec.dirs().node(node).join("run-causeway/agent.sock");
    let said = match agent::policies(&socket) {
        Ok(said) => said,
        Err(error) => return Some(format!("{node}: {error:#}")),
    };
    if let Some(problem) = said.problem {
        return Some(format!("{node}: {problem}"));
    }
    if !said.synced {
        return Some(format!("{node}: not everything is known that policies go by"));
    }
    let differs = |name: &&String| wanted.get(*name) != said.policies.get(*name);
    let late: Vec<&str> =
        wanted.keys().chain(said.policies.keys()).filter(differs).map(String::as_str).collect();
    (!late.is_empty()).then(|| format!("{node}: not yet as they are: {}", late.join(", ")))
}
