//! A new cluster: from the moment that the manifest is applied to nodes that are ready for pods.
//!
//! Nodes of a lab with containerd, fresh each round: images are imported, nothing of ours is there. The
//! DaemonSet's pods are made on all nodes at the same moment, as kubelets do, without the pauses that
//! kubelets make.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use causeway_cri::{Agent, Groups, Manifest, Progress, containerd};
use causeway_lab::{Client, Spec};
use serde_json::Value;

use crate::Args;
use crate::machines::{Lab, Node, PATIENCE};
use crate::report::{Series, publish};

const NODES: u8 = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(3);
const LIST: &str = "/etc/cni/net.d/05-causeway.conflist";

/// What a node comes by, in order; each as the time since the manifest was applied.
const STAGES: [&str; 7] = [
    "sandbox of the agent's pod",
    "plugins installed (init container)",
    "agent's container started",
    "configuration list written",
    "agent ready (/readyz)",
    "containerd: NetworkReady",
    "Node: NetworkUnavailable False",
];

/// Milliseconds of each stage.
type Times = [f64; STAGES.len()];

/// Runs the benchmark.
///
/// # Errors
/// When a lab cannot be made, or a node does not get ready.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rounds = args.count.unwrap_or(10);
    causeway_lab::isolate()?;
    let mut all = Vec::new();
    for round in 0..rounds {
        all.push(new_cluster(args).with_context(|| format!("round {round}"))?);
    }
    let last = |times: &Times| times.iter().copied().fold(0.0, f64::max);
    let mut whole = Series::new("all nodes are ready", "ms", None);
    whole.samples = all.iter().map(|nodes| nodes.iter().map(last).fold(0.0, f64::max)).collect();
    let mut series = vec![whole];
    for (at, stage) in STAGES.into_iter().enumerate() {
        let mut one = Series::new(format!("– {stage}"), "ms", None);
        one.samples = all.iter().flatten().map(|times| times[at]).collect();
        series.push(one);
    }
    let notes = [
        format!("{rounds} new clusters of {NODES} nodes with containerd, the images imported"),
        "since the manifest was applied: pods of the DaemonSet are made on all nodes at once. All nodes: \
         the last stage of the last node, one value a cluster; stages: one value a node"
            .to_owned(),
        "a kubelet adds its own pauses: it looks for the end of the init container every second, and \
         for the runtime's network every five"
            .to_owned(),
    ];
    publish("ready", &notes, &series, &args.results)
}

/// One cluster, from its beginning to its end.
fn new_cluster(args: &Args) -> Result<Vec<Times>> {
    let lab = Lab::up(args, Spec { name: "ready".into(), nodes: NODES, ..Spec::default() })?;
    let groups = Groups::new("ready");
    let manifest = Manifest::load(&[])?;
    let names: Vec<String> = (1..=NODES).map(|n| format!("node-{n}")).collect();
    let booted = thread::scope(|scope| {
        let all: Vec<_> =
            names.iter().map(|name| scope.spawn(|| Node::boot(&lab.spec, name))).collect();
        all.into_iter().map(|node| ended(node.join())).collect::<Result<Vec<Node>>>()
    })?;
    let applied = Instant::now();
    let times = thread::scope(|scope| {
        let conditions = scope.spawn(|| conditions(&lab.spec, &names, applied));
        let (lab, manifest, groups) = (&lab, &manifest, groups.name());
        let all: Vec<_> = booted
            .iter()
            .map(|node| scope.spawn(move || stages(node, &lab.spec, manifest, groups, applied)))
            .collect();
        let stages: Result<Vec<_>> = all.into_iter().map(|node| ended(node.join())).collect();
        let conditions = ended(conditions.join())?;
        let whole = |(mut times, condition): (Times, f64)| {
            times[STAGES.len() - 1] = condition;
            times
        };
        Ok::<_, anyhow::Error>(stages?.into_iter().zip(conditions).map(whole).collect())
    })?;
    for node in booted {
        node.machine.scrap()?;
    }
    Ok(times)
}

fn ended<T>(joined: thread::Result<Result<T>>) -> Result<T> {
    joined.map_err(|_| anyhow!("a thread ended in a panic"))?
}

fn since(start: Instant, moment: Instant) -> f64 {
    (moment - start).as_secs_f64() * 1e3
}

/// All stages of a node but the last, which the API tells.
fn stages(
    node: &Node,
    spec: &Spec,
    manifest: &Manifest,
    groups: &str,
    applied: Instant,
) -> Result<Times> {
    let (agent, Progress { sandbox, init, main }) =
        Agent::start(&node.machine, &node.client, spec, manifest, groups)?;
    let mut times = [f64::NAN; STAGES.len()];
    for (time, moment) in times.iter_mut().zip([sandbox, init, main]) {
        *time = since(applied, moment);
    }
    let list = node.machine.path(LIST);
    let looks: [(usize, &dyn Fn() -> bool); 3] = [
        (3, &|| list.exists()),
        (4, &|| agent.probe(&node.machine).is_ok()),
        (5, &|| containerd::network(&node.client).is_ok_and(|(ready, _)| ready)),
    ];
    while times[3..6].iter().any(|time| time.is_nan()) {
        for (at, so) in looks {
            if times[at].is_nan() && so() {
                times[at] = since(applied, Instant::now());
            }
        }
        if applied.elapsed() > PATIENCE {
            bail!("{}: not ready: {}", node.machine.name(), agent.said(&node.machine));
        }
        thread::sleep(LOOK);
    }
    Ok(times)
}

/// When the condition NetworkUnavailable of each node became False.
fn conditions(spec: &Spec, names: &[String], applied: Instant) -> Result<Vec<f64>> {
    let client = Client::open(&spec.name)?;
    let mut times = vec![f64::NAN; names.len()];
    while times.iter().any(|time| time.is_nan()) {
        let nodes = client.get("/api/v1/nodes")?;
        for object in nodes["items"].as_array().into_iter().flatten() {
            let at = names.iter().position(|name| object["metadata"]["name"] == name.as_str());
            if let Some(at) = at.filter(|at| times[*at].is_nan() && available(object)) {
                times[at] = since(applied, Instant::now());
            }
        }
        if applied.elapsed() > PATIENCE {
            bail!("NetworkUnavailable is not False on all of {names:?} after {PATIENCE:?}");
        }
        thread::sleep(LOOK);
    }
    Ok(times)
}

fn available(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == "NetworkUnavailable");
    found.is_some_and(|condition| condition["status"] == "False")
}
