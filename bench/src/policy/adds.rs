//! ADD of pods under policies beside pods that are under none: whole plugin processes, on a node of a lab whose
//! agent has to answer before a pod may start.
//!
//! The pods are objects that no node runs yet: the kubelet of the lab leaves them alone, and the agent has them
//! for its own. The part that is timed runs on the node, as a process of this program there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_lab::{Client, Spec};
use causeway_types::names;
use serde_json::{Value, json};

use super::objects;
use crate::Args;
use crate::agent::NODE;
use crate::cni::{make_ns, measured, pause};
use crate::report::Series;
use crate::served::{configuration, nothing_left, output, records};

/// Between two pods.
const PAUSE: Duration = Duration::from_millis(30);
const FREE: &str = "free";
const TWENTY: &str = "twenty";
/// Policies of each pod of the second namespace.
pub(crate) const POLICIES: usize = 20;

/// Makes the policies, as many as pods that differ in them, and the pods. Answers how many policies there are.
///
/// # Errors
/// When the API refuses.
pub(crate) fn prepare(client: &Client, kinds: usize) -> Result<usize> {
    objects::load(client, [FREE, TWENTY].map(|name| objects::namespace(name, &json!({}))))?;
    let policy = |n: usize| {
        let (kind, own) = (n / POLICIES, n % POLICIES);
        let subject = json!({"matchLabels": {"kind": format!("k{kind}")}});
        let peers = [objects::pods_with(&json!({"group": format!("g{own}")}))];
        objects::policy(TWENTY, &format!("k{kind}-{own}"), &objects::both_ways(&subject, &peers))
    };
    objects::load(client, (0..kinds * POLICIES).map(policy))?;
    let objects = pods(kinds).into_iter().map(|(namespace, name, kind)| {
        let mut pod = objects::pod(namespace, &name, "", &json!({"kind": kind}));
        pod["spec"] = json!({"schedulerName": "nobody", "containers": pod["spec"]["containers"]});
        pod
    });
    objects::load(client, objects)?;
    Ok(kinds * POLICIES)
}

/// In the order in which they are attached, each with its kind: one that has no policies, the first of its kind
/// on the node, and the second.
fn pods(kinds: usize) -> Vec<(&'static str, String, String)> {
    let of = |k: usize| {
        let kind = format!("k{k}");
        [(FREE, 0), (TWENTY, 1), (TWENTY, 2)]
            .map(|(namespace, n)| (namespace, format!("{kind}-{n}"), kind.clone()))
    };
    (0..kinds).flat_map(of).collect()
}

/// Attaches the pods one after the other, and takes them away. `cluster`: of what size, for the names.
///
/// # Errors
/// When the node does not know of the policies, or an ADD fails for another reason than its time.
pub(crate) fn run(args: &Args, spec: &Spec, kinds: usize, cluster: &str) -> Result<Vec<Series>> {
    let file = spec.dirs().node(NODE).join("run-causeway/node.json");
    known(&file)?;
    let mut command = Command::new(args.bin.join("causeway"));
    command
        .args(["lab", "shell", "--name", &spec.name, NODE, "--"])
        .arg(std::env::current_exe()?)
        .arg("policy-adds")
        .arg(args.bin.join("causeway-cni"))
        .args(pods(kinds).iter().map(|(namespace, name, _)| format!("{namespace}/{name}")));
    let text = output(&mut command)?;
    let said: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| format!("what the node says: {text}"))?;
    let times: Vec<f64> = serde_json::from_value(said["times"].clone())?;
    if said["late"] != json!(0) {
        eprintln!("bench: {} pods did not start in time: {}", said["late"], said["why"]);
    }
    let free = format!("ADD of a pod without policies, {cluster}");
    let mut series = vec![
        Series::new(free.clone(), "ms", None),
        Series::new(
            format!("ADD with {POLICIES}, first of its kind, {cluster}"),
            "ms",
            Some(&free),
        ),
        Series::new(
            format!("ADD with {POLICIES}, second of its kind, {cluster}"),
            "ms",
            Some(&free),
        ),
    ];
    for (n, time) in times.into_iter().enumerate() {
        series[n % 3].samples.push(time);
    }
    for n in [1, 2] {
        let (one, free) = (&series[n], &series[0]);
        let mut more = Series::new(format!("– more than without: {}", one.name), "ms", None);
        more.samples = one.samples.iter().zip(&free.samples).map(|(a, b)| a - b).collect();
        series.push(more);
    }
    Ok(series)
}

/// Waits until plugins know that pods of the namespace have policies.
fn known(file: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let said: Value = serde_json::from_str(&text)?;
        let all = said["policyNamespaces"].as_array();
        if all.is_some_and(|all| all.contains(&json!(TWENTY))) {
            return Ok(());
        }
        if start.elapsed() > objects::PATIENCE {
            bail!("{} does not name {TWENTY}", file.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// On the node: `policy-adds PLUGIN NAMESPACE/POD…`. Prints the times as JSON. An ADD whose answer is to try again
/// counts with the time that it took.
///
/// # Errors
/// As [`run`].
pub(crate) fn process(words: &[String]) -> Result<()> {
    let [plugin, pods @ ..] = words else { bail!("policy-adds PLUGIN NAMESPACE/POD...") };
    let program = PathBuf::from(plugin);
    let mut conf = configuration()?;
    // As runtimes tell, so that the agent is asked about policies alone.
    conf["runtimeConfig"] = json!({names::ANNOTATIONS_CAPABILITY: {}});
    let before = records()?;
    let call = |op: &str, pod: &str, netns: &Path, conf: &Value| {
        let (namespace, name) = pod.split_once('/').context("NAMESPACE/POD")?;
        let id = format!("bench-{namespace}-{name}");
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={id}"
        );
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", op)
            .env("CNI_CONTAINERID", &id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args)
            .env("CNI_PATH", program.parent().unwrap_or(Path::new("/")));
        measured(command, &conf.to_string())
    };
    let (mut times, mut made, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let name = format!("cwp-{}", pod.replace('/', "-"));
        let netns = make_ns(&name)?;
        pause(PAUSE);
        let start = Instant::now();
        let mut after = conf.clone();
        match call("ADD", pod, &netns, &conf) {
            Ok((time, result)) => {
                times.push(time);
                after["prevResult"] = serde_json::from_slice(&result)?;
            }
            Err(error) => {
                let error = format!("{error:#}");
                if !error.contains("\"code\": 11") && !error.contains("\"code\":11") {
                    bail!("ADD of {pod}: {error}");
                }
                times.push(start.elapsed().as_secs_f64() * 1e3);
                late.push(error);
            }
        }
        made.push((name, pod, netns, after));
    }
    for (_, pod, netns, conf) in &made {
        call("DEL", pod, netns, conf)?;
    }
    nothing_left(before)?;
    for (name, ..) in &made {
        output(Command::new("ip").args(["netns", "del", name]))?;
    }
    println!("{}", json!({"times": times, "late": late.len(), "why": late.first()}));
    Ok(())
}
