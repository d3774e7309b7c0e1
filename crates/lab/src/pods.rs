//! Pods of a lab, for people and tests.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use causeway_types::Family;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, Refusal};
use crate::probe;
use crate::spec::Dirs;

/// A pod as its API object tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The node that it runs on; empty while it has none.
    pub node: String,
    /// `Running`, `Pending`, `Terminating`, ….
    pub phase: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Why it does not run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// It uses its node's network.
    pub host_network: bool,
}

impl Pod {
    fn of(object: &Value) -> Self {
        let text = |pointer: &str| {
            object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let ips = object["status"]["podIPs"].as_array().into_iter().flatten();
        let phase = match object["metadata"]["deletionTimestamp"].is_null() {
            true => text("/status/phase"),
            false => "Terminating".to_owned(),
        };
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            node: text("/spec/nodeName"),
            phase,
            ips: ips.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
            message: text("/status/message"),
            host_network: object["spec"]["hostNetwork"].as_bool().unwrap_or(false),
        }
    }

    /// `NAME`, or `NAMESPACE/NAME` outside the namespace `default`.
    pub fn label(&self) -> String {
        match self.namespace.as_str() {
            "default" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// Its network namespace.
    pub fn netns(&self, lab: &str) -> PathBuf {
        let dirs = Dirs::of(lab);
        match self.host_network {
            true => dirs.netns(&self.node),
            false => dirs.pod_netns(&self.node, &self.namespace, &self.name),
        }
    }
}

/// All pods, by namespace and name.
///
/// # Errors
/// When the lab does not answer.
pub fn pods(client: &Client) -> Result<Vec<Pod>> {
    let list = client.get("/api/v1/pods")?;
    Ok(list["items"].as_array().into_iter().flatten().map(Pod::of).collect())
}

/// Splits `NAMESPACE/NAME`; the namespace is `default` unless given.
fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("default", name))
}

fn path(name: &str) -> String {
    let (namespace, name) = split(name);
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// One pod by `NAME` or `NAMESPACE/NAME`.
///
/// # Errors
/// When there is none; the answer names those that there are.
pub fn find_pod(client: &Client, name: &str) -> Result<Pod> {
    match client.get(&path(name)) {
        Ok(object) => Ok(Pod::of(&object)),
        Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == 404) => {
            let all: Vec<String> = pods(client)?.iter().map(Pod::label).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            bail!("there is no pod {name:?}; there are: {all}")
        }
        Err(error) => Err(error),
    }
}

/// Creates a pod and waits until it runs. Without a node the scheduler chooses one.
///
/// # Errors
/// When the API refuses, or the pod does not run in time: then with the plugin's words.
pub fn create_pod(
    client: &Client,
    name: &str,
    node: Option<&str>,
    ports: &[u16],
    patience: Duration,
) -> Result<Pod> {
    let (namespace, short) = split(name);
    let ports: Vec<Value> = ports.iter().map(|p| json!({"containerPort": p})).collect();
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": short, "namespace": namespace, "labels": {"app": short}},
        "spec": {"containers": [{"name": "main", "image": "lab", "ports": ports}]},
    });
    if let Some(node) = node {
        client.get(&format!("/api/v1/nodes/{node}"))?;
        object["spec"]["nodeName"] = json!(node);
    }
    client.post(&format!("/api/v1/namespaces/{namespace}/pods"), &object)?;
    let start = Instant::now();
    loop {
        let pod = find_pod(client, name)?;
        if pod.phase == "Running" {
            return Ok(pod);
        }
        if start.elapsed() > patience {
            let why = if pod.message.is_empty() { "no reason known" } else { &pod.message };
            bail!("pod {name} is {} after {patience:?}: {why}", pod.phase);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Deletes a pod and waits until it is gone.
///
/// # Errors
/// When there is none, or it does not end in time.
pub fn delete_pod(client: &Client, name: &str, patience: Duration) -> Result<()> {
    find_pod(client, name)?;
    client.delete(&path(name))?;
    let start = Instant::now();
    loop {
        match client.get(&path(name)) {
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == 404) => {
                return Ok(());
            }
            Err(error) => return Err(error),
            Ok(object) if start.elapsed() > patience => {
                let why = Pod::of(&object).message;
                bail!("pod {name} is not gone after {patience:?}; {why}");
            }
            Ok(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Runs a command in a pod's network and answers how it ended.
///
/// # Errors
/// When there is no such pod, it does not run, or the command cannot be started.
pub fn exec_in_pod(
    client: &Client,
    lab: &str,
    name: &str,
    command: &[std::ffi::OsString],
) -> Result<std::process::ExitStatus> {
    let pod = find_pod(client, name)?;
    if pod.phase != "Running" {
        bail!("pod {name} is {}; {}", pod.phase, pod.message);
    }
    let [program, args @ ..] = command else { bail!("no command to run in pod {name}") };
    probe::inside(&pod.netns(lab), || {
        let mut process = std::process::Command::new(program);
        process
            .args(args)
            .status()
            .map_err(|e| anyhow::anyhow!("run {}: {e}", std::path::Path::new(program).display()))
    })
}
