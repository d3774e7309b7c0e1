//! Objects of clusters with policies, and pods that run under them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use causeway_agent::client as agent;
use causeway_lab::{Client, Pod, find_pod};
use serde_json::{Value, json};

/// Ports that the policies of this benchmark allow: a connection for each request leaves thousands of them
/// waiting, so that each measurement has another one of these for the server.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 5200..=5231;
/// Objects that are sent at once.
const CHUNK: usize = 500;
/// Whatever takes longer does not work at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(crate) fn policies_path(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
}

pub(crate) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// To and from some peers, at the ports that are measured, and nothing else.
pub(crate) fn both_ways(selector: &Value, peers: &[Value]) -> Value {
    let ports = json!([{"protocol": "TCP", "port": PORTS.start(), "endPort": PORTS.end()}]);
    json!({
        "podSelector": selector, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
    })
}

pub(crate) fn pods_with(labels: &Value) -> Value {
    json!({"podSelector": {"matchLabels": labels}})
}

/// A pod that a node is to run.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "lab"}]},
    })
}

/// A pod that runs on a node that is an object and no more.
pub(crate) fn far_pod(namespace: &str, name: &str, node: &str, labels: &Value, ip: &str) -> Value {
    let mut object = pod(namespace, name, node, labels);
    object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    object
}

/// Gives a lab's API many objects.
pub(crate) fn load(client: &Client, objects: impl IntoIterator<Item = Value>) -> Result<()> {
    let mut objects = objects.into_iter().peekable();
    while objects.peek().is_some() {
        let items: Vec<Value> = objects.by_ref().take(CHUNK).collect();
        client.post("/causeway.lab/objects", &json!({"items": items}))?;
    }
    Ok(())
}

/// Waits until a pod runs.
pub(crate) fn running(client: &Client, name: &str) -> Result<Pod> {
    let start = Instant::now();
    loop {
        let pod = find_pod(client, name)?;
        if pod.phase == "Running" {
            return Ok(pod);
        }
        if start.elapsed() > PATIENCE {
            bail!("pod {name} is {} after {PATIENCE:?}: {}", pod.phase, pod.message);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until an agent has told its kernel of so many policies. It answers when it has done what it knows of.
pub(crate) fn enforced(socket: &Path, policies: usize, pause: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        match agent::policy_summary(socket) {
            Ok(status)
                if status.synced && status.problem.is_none() && status.policies == policies =>
            {
                return Ok(());
            }
            _ if start.elapsed() < PATIENCE => std::thread::sleep(pause),
            Ok(status) => bail!(
                "{policies} policies are not enforced after {PATIENCE:?}: it has {}, {}",
                status.policies,
                status.problem.as_deref().unwrap_or("nothing is wrong")
            ),
            Err(error) => return Err(error.context("the agent does not answer")),
        }
    }
}
