//! What the agent costs: memory and processor time while nothing happens, and how long a node waits for
//! it, in a lab of three nodes; and what it costs in a large cluster.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_agent::client as agent;
use causeway_lab::{Binaries, Client, Spec, create_pod};
use http::Method;

use crate::report::{Series, publish};
use crate::{Args, large};

const NODES: u8 = 3;
/// Pods on each node while it is idle.
const PODS: usize = 10;
/// How long it is watched doing nothing. The agent looks for leases left behind each 30 s.
pub(crate) const IDLE: Duration = Duration::from_secs(65);
/// Whatever takes longer does not work at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const NODE: &str = "node-1";

/// Runs the benchmark.
///
/// # Errors
/// When the lab cannot be made or an agent does not become ready.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rounds = args.count.unwrap_or(20);
    causeway_lab::isolate()?;
    let spec = Spec { name: "cost".into(), nodes: NODES, ..Spec::default() };
    let binaries =
        Binaries { causeway: args.bin.join("causeway"), cni: args.bin.join("causeway-cni") };
    causeway_lab::up(&spec, &binaries, &mut |_| {})?;
    let result = measure(args, rounds, &spec, &binaries);
    causeway_lab::down(&spec.name)?;
    result
}

fn measure(args: &Args, rounds: usize, spec: &Spec, binaries: &Binaries) -> Result<()> {
    let client = Client::open(&spec.name)?;
    let mut again = Series::new("start beside its network, until ready", "ms", None);
    let mut anew = Series::new("start on a bare node, until ready", "ms", Some(&again.name));
    for _ in 0..rounds {
        order(&client, "stop")?;
        again.samples.push(start(&client, spec)?);
        order(&client, "stop")?;
        reset(spec, &binaries.causeway)?;
        anew.samples.push(start(&client, spec)?);
    }
    for node in spec.node_names() {
        for n in 0..PODS {
            create_pod(&client, &format!("{node}-{n}"), Some(&node), &[], PATIENCE)?;
        }
    }
    let mut memory = Series::new(format!("resident memory, {PODS} pods a node"), "MiB", None);
    let mut own =
        Series::new(format!("– not of the program's file, {PODS} pods a node"), "MiB", None);
    let mut share = Series::new("processor time, nothing happens", "%", None);
    let nodes = spec.node_names();
    let pids: Vec<i32> = nodes.iter().map(|node| pid(&client, node)).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(5));
    let before: Vec<f64> = pids.iter().map(|pid| busy(*pid)).collect::<Result<_>>()?;
    std::thread::sleep(IDLE);
    for (pid, before) in pids.into_iter().zip(before) {
        share.samples.push((busy(pid)? - before) / IDLE.as_secs_f64() * 100.0);
        memory.samples.push(kib(pid, "VmRSS")? / 1024.0);
        own.samples.push(kib(pid, "RssAnon")? / 1024.0);
    }
    let notes = [
        format!(
            "{NODES} nodes and a control plane; {rounds} starts of each kind on one of them, alternating"
        ),
        "ready: the agent's socket says so, by the API's view; a bare node: after `causeway reset`, \
         with the self-test"
            .to_owned(),
        format!("idle: {} s, one value a node", IDLE.as_secs()),
        "large: Nodes are objects with 50 images each, written every five minutes as kubelets do"
            .to_owned(),
    ];
    let mut series = vec![again, anew, memory, own, share];
    series.extend(large::run(&client)?);
    publish("agent", &notes, &series, &args.results)
}

fn order(client: &Client, what: &str) -> Result<()> {
    client.control(Method::POST, &format!("/agents/{NODE}/{what}")).map(|_| ())
}

/// Milliseconds from the order to start until the agent is ready.
fn start(client: &Client, spec: &Spec) -> Result<f64> {
    let socket = spec.dirs().node(NODE).join("run-causeway/agent.sock");
    let began = Instant::now();
    order(client, "start")?;
    loop {
        if let Ok(status) = agent::status(&socket)
            && status.ready
            && status.inputs.view == "api"
        {
            return Ok(began.elapsed().as_secs_f64() * 1e3);
        }
        if began.elapsed() > PATIENCE {
            bail!("the agent of {NODE} is not ready after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The node as it was before the agent came.
fn reset(spec: &Spec, causeway: &Path) -> Result<()> {
    let output = Command::new(causeway)
        .args(["lab", "shell", "--name", &spec.name, NODE, "--"])
        .arg(causeway)
        .args(["reset", "--yes"])
        .output()?;
    if !output.status.success() {
        bail!("reset: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    Ok(())
}

pub(crate) fn pid(client: &Client, node: &str) -> Result<i32> {
    let all = client.control(Method::GET, "/agents")?;
    let pid = all[node]["pid"].as_i64().with_context(|| format!("no agent runs on {node}"))?;
    Ok(i32::try_from(pid)?)
}

/// Seconds that all threads of a process have run (`schedstat`, in nanoseconds).
pub(crate) fn busy(pid: i32) -> Result<f64> {
    let mut sum = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let word = text.split_whitespace().next().context("schedstat is empty")?;
        sum += word.parse::<f64>()? / 1e9;
    }
    Ok(sum)
}

/// KiB of memory, by a line of `/proc/PID/status`.
pub(crate) fn kib(pid: i32, what: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let words = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let line =
        text.lines().find(|line| line.strip_prefix(what).is_some_and(|l| l.starts_with(':')));
    let number = line.and_then(words).with_context(|| format!("no {what}"))?;
    Ok(number.parse()?)
}
