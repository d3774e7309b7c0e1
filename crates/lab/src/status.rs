//! How a lab does.

use std::collections::BTreeMap;

use causeway_agent::client;
use causeway_agent::status::{State, Status};
use http::Method;
use serde::Serialize;
use serde_json::Value;

use crate::agents::AgentState;
use crate::client::Client;
use crate::spec::Spec;

/// One node of a lab.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its addresses on the underlay.
    pub addresses: Vec<String>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// The Node's condition Ready.
    pub ready: bool,
    /// The agent's process.
    pub process: AgentState,
    /// What the agent says; or why it says nothing.
    pub agent: Result<Status, String>,
}

/// Asks everybody.
///
/// # Errors
/// When the lab's own process does not answer.
pub fn nodes(spec: &Spec) -> anyhow::Result<Vec<NodeStatus>> {
    let client = Client::open(&spec.name)?;
    let list = client.get("/api/v1/nodes")?;
    let processes = client.control(Method::GET, "/agents")?;
    let mut processes: BTreeMap<String, AgentState> = serde_json::from_value(processes)?;
    let objects: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
    let of = |name: &str| objects.iter().find(|o| o["metadata"]["name"] == name);
    let all = spec.node_names().into_iter().map(|name| {
        let object = of(&name).cloned().unwrap_or_default();
        let socket = spec.dirs().node(&name).join("run-causeway/agent.sock");
        NodeStatus {
            addresses: strings(&object["status"]["addresses"], "address", "InternalIP"),
            pod_cidrs: object["spec"]["podCIDRs"]
                .as_array()
                .map(|all| all.iter().filter_map(|c| c.as_str().map(str::to_owned)).collect())
                .unwrap_or_default(),
            ready: object["status"]["conditions"].as_array().is_some_and(|all| {
                all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            }),
            process: processes.remove(&name).unwrap_or_default(),
            agent: client::status(&socket).map_err(|e| format!("{e:#}")),
            name,
        }
    });
    Ok(all.collect())
}

fn strings(list: &Value, field: &str, kind: &str) -> Vec<String> {
    let all = list.as_array().into_iter().flatten().filter(|a| a["type"] == kind);
    all.filter_map(|a| a[field].as_str().map(str::to_owned)).collect()
}

/// What keeps a lab from being whole, a line each.
pub(crate) fn missing(spec: &Spec) -> Vec<String> {
    let nodes = match nodes(spec) {
        Ok(nodes) => nodes,
        Err(error) => return vec![format!("{error:#}")],
    };
    let count = nodes.len();
    let served = spec.served();
    let all = nodes.iter().filter(|n| served.contains(&n.name));
    all.flat_map(|n| lacks(n, count)).collect()
}

fn lacks(node: &NodeStatus, count: usize) -> Vec<String> {
    let name = &node.name;
    let agent = match &node.agent {
        Ok(agent) => agent,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let mut all: Vec<String> =
        agent.problems.iter().map(|p| format!("{name}: {}: {}", p.owner, p.message)).collect();
    let open = agent.objects.iter().filter(|o| o.state != State::Ok);
    all.extend(open.map(|o| {
        format!("{name}: {} {}: {}", o.state.word(), o.key, o.error.as_deref().unwrap_or(""))
    }));
    if !agent.inputs.synced || agent.inputs.nodes.objects != count {
        all.push(format!(
            "{name}: its agent knows {} of {count} nodes",
            agent.inputs.nodes.objects
        ));
    }
    if all.is_empty() && !node.ready {
        all.push(format!("{name}: not ready"));
    }
    all
}
