//! Pods as a kubelet has them made: sandboxes by containerd, which calls the plugins.
//!
//! Each contender has a node of its own, with its own containerd. They take turns pod by pod, each round
//! in another order, so that differences are between pairs that were made right after each other. How
//! long the plugins' processes live the kernel tells ([`crate::trace`]); nothing stands between
//! containerd and them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_cri::{Agent, Groups, Manifest, Pod};
use causeway_lab::{Client, Spec};
use serde_json::json;

use crate::Args;
use crate::cni::{about, pause, turns};
use crate::machines::{Lab, Node};
use crate::report::{Series, publish};
use crate::trace::{Process, Trace};

/// Rounds before those that count: caches fill, and the first pod makes what all share.
const WARM: usize = 3;
/// Between two calls, at the least: runtime and kernel work on for a while on what was before.
const PAUSE: Duration = Duration::from_millis(100);

/// Somebody whose sandboxes are timed.
struct Contender {
    name: &'static str,
    /// What containerd starts for a sandbox, in alphabetical order.
    plugins: &'static [&'static str],
    network: Network,
}

enum Network {
    /// The node's own: no plugin, the least that a sandbox costs.
    Host,
    /// Our DaemonSet, with lines of configuration.
    Ours(&'static [&'static str]),
    /// The reference plugins behind `bridge`: their types.
    Reference(&'static [&'static str]),
}

const CONTENDERS: [Contender; 5] = [
    Contender { name: "no plugin", plugins: &[], network: Network::Host },
    Contender {
        name: "ours routed",
        plugins: &["causeway", "loopback"],
        network: Network::Ours(&["attach: routed"]),
    },
    Contender {
        name: "ours bridge list",
        plugins: &["bandwidth", "bridge", "loopback", "portmap"],
        network: Network::Ours(&["attach: bridge", "plugin: bridge"]),
    },
    Contender {
        name: "reference list",
        plugins: &["bandwidth", "bridge", "loopback", "portmap"],
        network: Network::Reference(&["portmap", "bandwidth"]),
    },
    Contender {
        name: "reference bridge alone",
        plugins: &["bridge", "loopback"],
        network: Network::Reference(&[]),
    },
];

/// Runs the benchmark.
///
/// # Errors
/// When the lab cannot be made, the kernel does not tell of processes, or a sandbox fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rounds = args.count.unwrap_or(100);
    // The list of installed packages is out of sight afterwards.
    let reference = about(&args.reference.join("bridge"));
    causeway_lab::isolate()?;
    let programs: BTreeSet<&str> =
        CONTENDERS.iter().flat_map(|c| c.plugins.iter().copied()).collect();
    let trace = Trace::start(&programs.into_iter().collect::<Vec<_>>())?;
    let spec =
        Spec { name: "sandbox".into(), nodes: u8::try_from(CONTENDERS.len())?, ..Spec::default() };
    let lab = Lab::up(args, spec)?;
    let groups = Groups::new("bench");
    let mut nodes = Vec::new();
    for (at, contender) in CONTENDERS.iter().enumerate() {
        nodes.push(node(args, &lab.spec, at, contender, &groups)?);
    }
    let times = measure(&trace, &nodes, &groups, rounds)?;
    let runtime = nodes[0].client.version()?;
    let notes = [
        format!(
            "{} {}, one node each in a lab, {rounds} sandboxes each, in turns and in random order",
            runtime.runtime_name, runtime.runtime_version
        ),
        format!("reference: {reference}"),
        "plugins: from exec to exit, summed up, by the kernel's tracepoints (containerd calls \
         loopback beside the list); with their configuration: without the time in which they wait \
         for containerd to write it to them; from fork: with the making of the process"
            .to_owned(),
        "list: bridge, host-local, portmap, bandwidth; routed: type causeway does all of it in one \
         process; differences are of pairs of one round"
            .to_owned(),
    ];
    publish("sandbox", &notes, &series(&times), &args.results)
}

/// The node of a contender, ready for pods.
fn node(
    args: &Args,
    spec: &Spec,
    at: usize,
    contender: &Contender,
    groups: &Groups,
) -> Result<Node> {
    let name = format!("node-{}", at + 1);
    let mut node = Node::boot(spec, &name)?;
    match contender.network {
        Network::Host => return Ok(node),
        Network::Ours(lines) => {
            let manifest = Manifest::load(lines)?;
            let agent = Agent::start(&node.machine, &node.client, spec, &manifest, groups.name())?;
            node.agent = Some(agent.0);
        }
        Network::Reference(more) => reference(&node, &args.reference, spec, more)?,
    }
    node.has_network().with_context(|| contender.name)?;
    Ok(node)
}

/// Installs the reference plugins and the list that is equivalent to ours.
fn reference(node: &Node, from: &Path, spec: &Spec, more: &[&str]) -> Result<()> {
    let bin = node.machine.path("/opt/cni/bin");
    fs::create_dir_all(&bin)?;
    for name in ["bridge", "host-local", "loopback"].iter().chain(more) {
        let file = from.join(name);
        fs::copy(&file, bin.join(name)).with_context(|| file.display().to_string())?;
    }
    let name = node.machine.name();
    let object = Client::open(&spec.name)?.get(&format!("/api/v1/nodes/{name}"))?;
    let subnet = object["spec"]["podCIDR"].as_str().context("a node without podCIDR")?;
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "mtu": 1450,
        "ipam": {"type": "host-local", "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}]},
    })];
    for name in more {
        let capability = if *name == "portmap" { "portMappings" } else { name };
        plugins.push(json!({"type": name, "capabilities": {capability: true}}));
    }
    let list = json!({"cniVersion": "1.0.0", "name": "pod-network", "plugins": plugins});
    let dir = node.machine.path("/etc/cni/net.d");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(".new"), list.to_string())?;
    fs::rename(dir.join(".new"), dir.join("10-reference.conflist"))?;
    Ok(())
}

/// What one call cost.
struct Call {
    /// Milliseconds until the runtime's answer.
    time: f64,
    plugins: Vec<Process>,
}

impl Call {
    fn sum(&self, of: impl Fn(&Process) -> f64) -> f64 {
        self.plugins.iter().map(of).sum()
    }
}

/// RunPodSandbox and StopPodSandbox.
type Pair = [Call; 2];

/// By contender, in the order of the rounds.
fn measure(
    trace: &Trace,
    nodes: &[Node],
    groups: &Groups,
    rounds: usize,
) -> Result<Vec<Vec<Pair>>> {
    let mut times: Vec<Vec<Pair>> = CONTENDERS.iter().map(|_| Vec::new()).collect();
    for round in 0..WARM + rounds {
        for at in turns(CONTENDERS.len(), round) {
            let pair = sandbox(trace, &nodes[at], &CONTENDERS[at], round, groups)
                .with_context(|| CONTENDERS[at].name)?;
            if round >= WARM {
                times[at].push(pair);
            }
        }
    }
    Ok(times)
}

/// Makes and removes one.
fn sandbox(
    trace: &Trace,
    node: &Node,
    contender: &Contender,
    round: usize,
    groups: &Groups,
) -> Result<Pair> {
    let mut pod = Pod::new(&format!("p{round}"), groups.name());
    if matches!(contender.network, Network::Host) {
        pod = pod.host_network();
    }
    pause(PAUSE);
    let mut id = String::new();
    let run = call(trace, node, contender, || {
        id = node.client.run_sandbox(pod.sandbox())?;
        Ok(())
    })?;
    pause(PAUSE);
    let stop = call(trace, node, contender, || node.client.stop_sandbox(&id))?;
    node.client.remove_sandbox(&id)?;
    Ok([run, stop])
}

fn call(
    trace: &Trace,
    node: &Node,
    contender: &Contender,
    act: impl FnOnce() -> Result<()>,
) -> Result<Call> {
    trace.clear()?;
    let start = Instant::now();
    act()?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    let mut plugins = trace.children(node.runtime)?;
    // Beside plugins containerd starts the shim.
    plugins.retain(|p| contender.plugins.contains(&p.name.as_str()));
    plugins.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = plugins.iter().map(|p| p.name.as_str()).collect();
    ensure!(
        names == contender.plugins,
        "containerd started {names:?} and not {:?}",
        contender.plugins
    );
    Ok(Call { time, plugins })
}

/// Everything as tables have it.
fn series(times: &[Vec<Pair>]) -> Vec<Series> {
    let mut all = Vec::new();
    for (at, what) in ["RunPodSandbox", "StopPodSandbox"].into_iter().enumerate() {
        let of = |name: &str, value: &dyn Fn(&Call) -> f64| -> Vec<f64> {
            let index = CONTENDERS.iter().position(|c| c.name == name).expect("one of them");
            times[index].iter().map(|pair| value(&pair[at])).collect()
        };
        let mut push = |name: String, against: Option<&str>, samples: Vec<f64>| {
            let mut series = Series::new(name, "ms", against);
            series.samples = samples;
            all.push(series);
        };
        for (what, value) in [
            (what.to_owned(), &(|c: &Call| c.time) as &dyn Fn(&Call) -> f64),
            (format!("plugins in {what}"), &|c| c.sum(Process::run)),
            (format!("plugins in {what}, with their configuration"), &|c| c.sum(Process::own)),
            (format!("plugins in {what}, from fork"), &|c| c.sum(Process::whole)),
        ] {
            let base = format!("{what}, reference list");
            for contender in &CONTENDERS {
                if contender.plugins.is_empty() && what.starts_with("plugins") {
                    continue;
                }
                let against = (contender.name != "reference list").then_some(base.as_str());
                let name = format!("{what}, {}", contender.name);
                push(name, against, of(contender.name, value));
            }
            let reference = of("reference list", value);
            for ours in ["ours routed", "ours bridge list"] {
                let pairs = of(ours, value).into_iter().zip(&reference);
                let less = pairs.map(|(ours, reference)| ours - reference).collect();
                push(format!("{what}, {ours} less reference list"), None, less);
            }
        }
    }
    all.extend(single(times));
    all
}

/// The processes one by one, of RunPodSandbox.
fn single(times: &[Vec<Pair>]) -> Vec<Series> {
    let mut all = Vec::new();
    for (contender, times) in CONTENDERS.iter().zip(times) {
        for plugin in contender.plugins {
            for (how, of) in [
                ("", Process::run as fn(&Process) -> f64),
                (" with its configuration", Process::own),
            ] {
                let name = format!("– {plugin}{how}, {}", contender.name);
                let mut series = Series::new(name, "ms", None);
                let calls = times.iter().flat_map(|[run, _]| &run.plugins);
                series.samples = calls.filter(|p| p.name == *plugin).map(of).collect();
                all.push(series);
            }
        }
    }
    all
}
