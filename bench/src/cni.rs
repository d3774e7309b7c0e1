//! Whole plugin processes: start to exit of ADD and of DEL.
//!
//! Each contender has a node of its own (a network namespace), so that one's rules and ports do
//! not slow another; pods' namespaces are made beforehand. Contenders take turns pod by pod.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::{self, NetNs};
use serde_json::{Value, json};

use crate::Args;
use crate::report::{Series, publish};
use crate::served;

/// Attachments at the beginning and at the end, to compare an empty node with a full one.
const SOME: usize = 50;
/// The pods of a full one.
const FULL: usize = 250;
/// Plugins that run at once.
const AT_ONCE: usize = 8;
/// Pods that they attach.
const MANY: usize = 80;

/// Between two calls, at the least: the kernel works on for some milliseconds on what the one before
/// asked for, which is not to be the next one's time.
const PAUSE: Duration = Duration::from_millis(15);
/// The longest tick of a kernel (HZ=100).
const TICK: Duration = Duration::from_millis(10);

/// Between two parts: the kernel takes its time with the end of many pods.
const SETTLE: Duration = Duration::from_secs(5);

/// Waits before a call, each time until another moment between two ticks. The kernel's grace periods
/// begin and end with ticks, and so does a call that waits for one: after a pause of a fixed length all
/// calls of a contender would begin at the same moment, and differences of a millisecond would show as
/// none or as a whole tick.
pub(crate) fn pause(at_least: Duration) {
    /// The golden ratio's fraction: the multiples of it are spread evenly, however many there are.
    const STEP: f64 = 0.618_033_988_749_895;
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = f64::from(CALLS.fetch_add(1, Ordering::Relaxed));
    thread::sleep(at_least + TICK.mul_f64((call * STEP).fract()));
}

/// Somebody whose ADD and DEL are timed.
struct Contender {
    name: &'static str,
    node: PathBuf,
    does: Does,
}

enum Does {
    /// The bare minimum, by this program.
    Floor,
    /// A chain of plugins, in order.
    Plugins { chain: Vec<Value>, dir: PathBuf },
}

/// Runs the benchmark.
///
/// # Errors
/// When a namespace cannot be made or any ADD or DEL fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let pods = args.count.unwrap_or(200);
    // Leases and records of this run live in a mount namespace of its own and end with it.
    netns::unshare_for_test().map_err(|e| anyhow!("{e}"))?;
    let own_bins = tempdir("cw-bench-bin")?;
    for name in ["bridge", "host-local", "loopback", "causeway", "portmap", "bandwidth"] {
        std::os::unix::fs::symlink(args.bin.join("causeway-cni"), own_bins.join(name))?;
    }
    let mut all = contenders(args, &own_bins)?;
    let mut notes = vec![
        format!("whole processes, {pods} pods, pods' namespaces made beforehand"),
        "floor: one veth pair in place, address and route, by bare netlink".to_owned(),
    ];
    if !args.reference.join("bridge").exists() {
        notes.push(format!("no reference plugins in {}", args.reference.display()));
        all.retain(|c| !c.name.starts_with("reference"));
    } else {
        notes.push(format!("reference: {}", about(&args.reference.join("bridge"))));
    }
    let mut series = one_by_one(&all, pods)?;
    compare(&mut series);
    series.extend(fill_up(&all)?);
    series.extend(at_once(&all)?);
    thread::sleep(SETTLE);
    series.extend(served::run(args, SOME)?);
    publish("cni", &notes, &series, &args.results)
}

/// ADD of all pods, then DEL of all; the contenders take turns pod by pod.
fn one_by_one(all: &[Contender], pods: usize) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    for contender in all {
        make_node(contender)?;
        for op in ["ADD", "DEL"] {
            let against = (contender.name != "floor").then(|| format!("{op} floor"));
            series.push(Series::new(format!("{op} {}", contender.name), "ms", against.as_deref()));
        }
    }
    let namespaces: Vec<Namespaces> =
        (0..all.len()).map(|c| Namespaces::make(&c.to_string(), pods)).collect::<Result<_>>()?;
    let mut results = vec![vec![Value::Null; all.len()]; pods];
    for (step, op) in ["ADD", "DEL"].iter().enumerate() {
        for (pod, results) in results.iter_mut().enumerate() {
            for c in turns(all.len(), pod) {
                let contender = &all[c];
                pause(PAUSE);
                let (time, result) = contender.call(op, pod, &namespaces[c].0[pod], &results[c])?;
                series[2 * c + step].samples.push(time);
                results[c] = result;
            }
        }
    }
    Ok(series)
}

/// The order in which contenders take their turns in one round: another one in each, and always the
/// same in all runs, so that nobody always begins and nobody always comes after the same other.
pub(crate) fn turns(contenders: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).collect();
    order.sort_by_key(|contender| {
        let mut hasher = DefaultHasher::new();
        (round, contender).hash(&mut hasher);
        hasher.finish()
    });
    order
}

/// Pods' namespaces, gone when this is dropped: those of one part of the run are not to be in the
/// kernel's lists, which some of its work walks, during the next.
struct Namespaces(Vec<PathBuf>);

impl Namespaces {
    fn make(part: &str, count: usize) -> Result<Self> {
        let mut made = Self(Vec::with_capacity(count));
        for pod in 0..count {
            made.0.push(make_ns(&format!("cw-bench-{part}-{pod}"))?);
        }
        Ok(made)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = netns::delete_named(path) {
                eprintln!("{error}");
            }
        }
    }
}

/// Beside the ratio to the floor, ours to the reference.
fn compare(series: &mut Vec<Series>) {
    for what in ["bridge", "no masquerade", "chain"] {
        for op in ["ADD", "DEL"] {
            let ours = find(series, &format!("{op} ours {what}"));
            let reference = find(series, &format!("{op} reference {what}"));
            if let (Some(mut a), Some(b)) = (ours, reference) {
                a.name = format!("{} / reference", a.name);
                a.against = Some(b.name);
                series.push(a);
            }
        }
    }
}

/// ADD of as many pods as a large node has, one contender at a time: the first of them beside the last.
fn fill_up(all: &[Contender]) -> Result<Vec<Series>> {
    let mut found = Vec::new();
    for contender in all.iter().filter(|c| c.name == "floor" || c.name.ends_with(" bridge")) {
        let who = contender.name;
        thread::sleep(SETTLE);
        let namespaces = Namespaces::make("full", FULL)?;
        // The making of many leaves work behind as well.
        thread::sleep(SETTLE);
        let mut times = Vec::new();
        let mut results = Vec::new();
        let pod = |at: usize| 10_000 + at;
        for (at, netns) in namespaces.0.iter().enumerate() {
            pause(PAUSE);
            let (time, result) = contender.call("ADD", pod(at), netns, &Value::Null)?;
            times.push(time);
            results.push(result);
        }
        for (at, netns) in namespaces.0.iter().enumerate() {
            contender.call("DEL", pod(at), netns, &results[at])?;
        }
        let against = (who == "ours bridge").then_some("ADD reference bridge, alone");
        let mut all = Series::new(format!("ADD {who}, alone"), "ms", against);
        all.samples = times.clone();
        let mut first = Series::new(format!("ADD {who}, alone, first {SOME}"), "ms", None);
        first.samples = times[..SOME].to_vec();
        let name = format!("ADD {who}, alone, last {SOME} of {FULL}");
        let mut last = Series::new(name, "ms", Some(&first.name));
        last.samples = times[FULL - SOME..].to_vec();
        found.extend([all, first, last]);
    }
    Ok(found)
}

fn find(series: &[Series], name: &str) -> Option<Series> {
    series.iter().find(|s| s.name == name).cloned()
}

/// Several plugins at the same time, on a node with none of the pods before.
fn at_once(all: &[Contender]) -> Result<Vec<Series>> {
    let mut found = Vec::new();
    for contender in all.iter().filter(|c| c.name.ends_with("bridge")) {
        let against = (contender.name != "ours bridge").then_some("ours bridge, 8 at once");
        let mut rate = Series::new(format!("{}, 8 at once", contender.name), "ADD/s", against);
        for round in 0..3 {
            let namespaces = Namespaces::make("many", MANY)?;
            let pod = |at: usize| 1000 * (round + 1) + at;
            let start = Instant::now();
            thread::scope(|scope| -> Result<()> {
                let runtimes: Vec<_> = (0..AT_ONCE)
                    .map(|first| {
                        let namespaces = &namespaces;
                        scope.spawn(move || -> Result<()> {
                            for at in (first..MANY).step_by(AT_ONCE) {
                                contender.call("ADD", pod(at), &namespaces.0[at], &Value::Null)?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                runtimes
                    .into_iter()
                    .try_for_each(|r| r.join().map_err(|_| anyhow!("a thread ended in a panic"))?)
            })?;
            rate.samples.push(MANY as f64 / start.elapsed().as_secs_f64());
            for (at, netns) in namespaces.0.iter().enumerate() {
                contender.call("DEL", pod(at), netns, &Value::Null)?;
            }
        }
        found.push(rate);
    }
    Ok(found)
}

fn contenders(args: &Args, own_bins: &Path) -> Result<Vec<Contender>> {
    let leases = tempdir("cw-bench-leases")?;
    let bridge = |masq: bool, dir: &str| {
        json!({"cniVersion": "0.3.1", "name": "pod-network", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": masq,
            "ipam": {"type": "host-local", "subnet": "10.244.0.0/16",
                "dataDir": leases.join(dir), "routes": [{"dst": "0.0.0.0/0"}]}})
    };
    let portmap = json!({"cniVersion": "0.3.1", "name": "pod-network", "type": "portmap"});
    let bandwidth = json!({"cniVersion": "0.3.1", "name": "pod-network", "type": "bandwidth"});
    let node = |name: &str| make_ns(&format!("cw-bench-{}", name.replace(' ', "-")));
    let mut all = vec![Contender { name: "floor", node: node("floor")?, does: Does::Floor }];
    for (name, reference, chain) in [
        ("ours bridge", false, vec![bridge(true, "om")]),
        ("reference bridge", true, vec![bridge(true, "rm")]),
        ("ours no masquerade", false, vec![bridge(false, "on")]),
        ("reference no masquerade", true, vec![bridge(false, "rn")]),
        ("ours chain", false, vec![bridge(true, "oc"), portmap.clone(), bandwidth.clone()]),
        ("reference chain", true, vec![bridge(true, "rc"), portmap, bandwidth]),
    ] {
        let dir = if reference { &args.reference } else { own_bins };
        let does = Does::Plugins { chain, dir: dir.to_path_buf() };
        all.push(Contender { name, node: node(name)?, does });
    }
    Ok(all)
}

impl Contender {
    /// Milliseconds from the start of each process to its end, summed up, and the result of ADD.
    fn call(&self, op: &str, pod: usize, netns: &Path, result: &Value) -> Result<(f64, Value)> {
        let netns = netns.to_string_lossy();
        match &self.does {
            Does::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                let host = format!("cwb{pod}");
                let addr = format!("10.244.{}.{}/16", 1 + pod / 250, 1 + pod % 250);
                command.arg("floor");
                match op {
                    "ADD" => command.args(["add", &netns, &host, "cni0", &addr, "10.244.0.1"]),
                    _ => command.args(["del", &host]),
                };
                Ok((self.time(command, "")?.0, Value::Null))
            }
            Does::Plugins { chain, dir } => {
                let (mut total, mut result) = (0.0, result.clone());
                let mut order: Vec<&Value> = chain.iter().collect();
                if op == "DEL" {
                    order.reverse();
                }
                for conf in order {
                    let mut conf = conf.clone();
                    if !result.is_null() {
                        conf["prevResult"] = result.clone();
                    }
                    match conf["type"].as_str() {
                        Some("portmap") => {
                            let ports = json!([{"hostPort": 20_000 + pod, "containerPort": 80,
                                "protocol": "tcp"}]);
                            conf["runtimeConfig"] = json!({"portMappings": ports});
                        }
                        Some("bandwidth") => {
                            let (rate, burst) = (100_000_000u64, 10_000_000u64);
                            conf["runtimeConfig"] = json!({"bandwidth": {"ingressRate": rate,
                                "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}});
                        }
                        _ => {}
                    }
                    let program = dir.join(conf["type"].as_str().unwrap_or_default());
                    let mut command = Command::new(program);
                    command
                        .env_clear()
                        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                        .env("CNI_COMMAND", op)
                        .env("CNI_CONTAINERID", format!("bench-{pod}"))
                        .env("CNI_NETNS", &*netns)
                        .env("CNI_IFNAME", "eth0")
                        .env("CNI_PATH", dir);
                    let (time, output) = self
                        .time(command, &conf.to_string())
                        .with_context(|| format!("{op} of pod {pod} by {}", conf["type"]))?;
                    total += time;
                    if op == "ADD" {
                        result = serde_json::from_slice(&output)?;
                    }
                }
                Ok((total, result))
            }
        }
    }

    /// One process on the contender's node: how long it took, and its output.
    fn time(&self, command: Command, input: &str) -> Result<(f64, Vec<u8>)> {
        let node = NetNs::open(&self.node).map_err(|e| anyhow!("{e}"))?;
        let timed = node.run(move || measured(command, input)).map_err(|e| anyhow!("{e}"))?;
        timed.with_context(|| self.name.to_owned())
    }
}

/// Milliseconds from the start of a process to its end, and its output.
///
/// # Errors
/// When it fails, with what it says.
pub(crate) fn measured(mut command: Command, input: &str) -> Result<(f64, Vec<u8>)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let time = start.elapsed();
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    Ok((time.as_secs_f64() * 1e3, output.stdout))
}

fn make_node(contender: &Contender) -> Result<()> {
    if matches!(contender.does, Does::Floor) {
        let node = NetNs::open(&contender.node).map_err(|e| anyhow!("{e}"))?;
        let mut handle = causeway_kernel::Handle::open_in(&node).map_err(|e| anyhow!("{e}"))?;
        let name = causeway_types::IfName::new("cni0")?;
        let bridge = causeway_model::Link::up(name, causeway_model::LinkKind::Bridge);
        let op = causeway_plan::Op::Create(causeway_model::Object::Link(bridge));
        for result in handle.apply(&[op]) {
            result.map_err(|e| anyhow!("{e}"))?;
        }
    }
    Ok(())
}

pub(crate) fn make_ns(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from("/run/netns").join(name);
    netns::create_named(&path).map_err(|e| anyhow!("{e}"))?;
    Ok(path)
}

fn tempdir(name: &str) -> Result<PathBuf> {
    // On the private /run/netns tmpfs, which ends with this process.
    let path = PathBuf::from("/run/netns").join(format!(".{name}"));
    std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The about line of a plugin, and the version of the package that it comes from where the system
/// knows: Debian's build does not print one.
pub(crate) fn about(plugin: &Path) -> String {
    let output = Command::new(plugin).env_clear().output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let line =
        String::from_utf8_lossy(&text).lines().next().unwrap_or("version unknown").to_owned();
    let package = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${Version}", "containernetworking-plugins"])
        .output();
    match package {
        Ok(out) if out.status.success() => {
            format!("{line}, {}", String::from_utf8_lossy(&out.stdout))
        }
        _ => line,
    }
}
