//! A large cluster: changes of its policies and pods, and the agent of a full node in it.
//!
//! The pods of other nodes, and those nodes, are objects of the API and no more.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::monitor::{Event, Events, Monitor};
use causeway_kernel::netns::NetNs;
use causeway_lab::api::since_start;
use causeway_lab::{Client, Road, Spec};
use causeway_types::names;
use http::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::objects::{self, policies_path};
use super::{Labs, Size, adds};
use crate::Args;
use crate::agent::{NODE, kib, pid};
use crate::large::{node, one};
use crate::report::Series;

/// Applications of a namespace; a pod is of one of them.
const APPS: usize = 10;
/// Those that the node that is looked at runs of its namespaces.
const LOCAL_APPS: usize = 5;
/// Policies of a namespace: two of all its pods, one of each application, and the others for monitoring.
const POLICIES: usize = 20;
/// Namespaces have one of so many teams.
const TEAMS: usize = 25;
/// A change is over when the kernel tells of nothing more for this time.
const QUIET: Duration = Duration::from_millis(100);
/// What the API calls policies.
const POLICY_TYPE: &str = "networkpolicies.networking.k8s.io";
/// A change after whose last transaction there is none for so long is done, less than after which an agent tidies up
/// (100 ms); after so much more than that it has.
const DONE: Duration = Duration::from_millis(60);
const TIDY: Duration = Duration::from_millis(140);
/// After this time there are no more starts, or changes of a kind.
const LONG_ENOUGH: Duration = Duration::from_secs(75);

/// Runs this part. What it has measured before it fails stays in `series`. Answers notes.
///
/// # Errors
/// When the lab cannot be made, or the agent does not enforce its policies.
pub(crate) fn run(
    args: &Args,
    labs: &mut Labs,
    size: &Size,
    series: &mut Vec<Series>,
) -> Result<Vec<String>> {
    let spec = Spec { name: "pbig".into(), nodes: 1, road: Road::Direct, ..Spec::default() };
    labs.up(&spec, "a large cluster")?;
    let client = Client::open(&spec.name)?;
    // One agent is looked at; that of the control plane would do the same work beside it.
    order(&client, "cp", "stop")?;
    let socket = spec.dirs().node(NODE).join("run-causeway/agent.sock");
    let before = adds::prepare(&client, size.adds)?;
    objects::enforced(&socket, before, QUIET)?;
    series.extend(adds::run(args, &spec, size.adds, "small cluster")?);

    let pods = run_pods(&client, size)?;
    let alone = format!("{pods} pods here, {before} policies, no pods elsewhere");
    series.push(memory(&client, "VmRSS", "resident memory", &alone)?);
    order(&client, NODE, "stop")?;
    eprintln!("bench: filling the cluster");
    fill(&client, size)?;
    let policies = before + size.namespaces * POLICIES;
    let what = format!(
        "{} pods, {policies} policies, {pods} pods here",
        size.namespaces * size.pods + pods
    );
    starts(&client, &spec, size, policies, &what, series)?;
    series.push(memory(&client, "VmRSS", "resident memory", &what)?);
    series.push(memory(&client, "RssAnon", "– not of the program's file", &what)?);
    series.push(memory(&client, "VmHWM", "most memory ever", &what)?);
    series.extend(changes_apart(&client, &spec, size)?);
    series.extend(adds::run(args, &spec, size.adds, "large cluster")?);
    let notes = vec![
        format!(
            "large: {} namespaces with {} pods and {POLICIES} policies each, of which some 4 apply to a pod, {} \
             nodes; the node that is looked at runs {pods} pods of as many applications; objects are as small as \
             the API takes them",
            size.namespaces, size.pods, size.nodes
        ),
        "start to enforced: the agent has the whole cluster from the API and its kernel has the table; beside \
         its table, or without one"
            .to_owned(),
    ];
    Ok(notes)
}

/// As [`changes`]. The API and who writes to it are other machines' in a cluster: here they have a processor of their own,
/// where there is more than one.
fn changes_apart(client: &Client, spec: &Spec, size: &Size) -> Result<Vec<Series>> {
    if std::thread::available_parallelism()?.get() == 1 {
        return changes(client, spec, size);
    }
    let agent = pid(client, NODE)?;
    let others = [parent(agent)?, std::process::id().cast_signed()];
    processors(agent, &[0])?;
    others.iter().try_for_each(|process| processors(*process, &[1]))?;
    let changed = changes(client, spec, size);
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).collect();
    processors(agent, &all)?;
    others.iter().try_for_each(|process| processors(*process, &all))?;
    changed
}

/// Who started a process.
fn parent(pid: i32) -> Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("a process has no parent")?.trim().parse()?)
}

/// Has all threads of a process run on these processors, of those that there are.
fn processors(pid: i32, which: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    which.iter().for_each(|cpu| set.set(*cpu));
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_string_lossy().parse()?;
        // One that has ended since needs none.
        match sched_setaffinity(Pid::from_raw(thread), &set) {
            Err(Errno::SRCH) => {}
            other => other.with_context(|| format!("processors of thread {thread}"))?,
        }
    }
    Ok(())
}

fn order(client: &Client, node: &str, what: &str) -> Result<()> {
    client.control(Method::POST, &format!("/agents/{node}/{what}")).map(drop)
}

fn memory(client: &Client, line: &str, name: &str, what: &str) -> Result<Series> {
    Ok(one(format!("{name}, {what}"), "MiB", kib(pid(client, NODE)?, line)? / 1024.0))
}

fn space(n: usize) -> String {
    format!("t-{n}")
}

fn app(n: usize) -> Value {
    json!({"app": format!("a{}", n % APPS)})
}

/// The pods of the node that is looked at: no two are under the same policies. Answers how many there are.
fn run_pods(client: &Client, size: &Size) -> Result<usize> {
    let team = |n: usize| json!({"team": format!("k{}", n % TEAMS)});
    let spaces = (0..size.namespaces).map(|n| objects::namespace(&space(n), &team(n)));
    objects::load(client, spaces)?;
    let all = || (0..size.local).flat_map(|n| (0..LOCAL_APPS).map(move |a| (n, a)));
    objects::load(
        client,
        all().map(|(n, a)| objects::pod(&space(n), &format!("l-{a}"), NODE, &app(a))),
    )?;
    for (n, a) in all() {
        objects::running(client, &format!("{}/l-{a}", space(n)))?;
    }
    Ok(size.local * LOCAL_APPS)
}

/// Nodes, pods and policies.
fn fill(client: &Client, size: &Size) -> Result<()> {
    let block = |node: usize| format!("10.{}.{}", 64 + node / 64, node % 64 * 4);
    for number in 0..size.nodes {
        let mut object = node(u32::try_from(number)?);
        let cidr = format!("{}.0/22", block(number));
        object["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        client.post("/api/v1/nodes", &object)?;
    }
    let pods = (0..size.namespaces).flat_map(|n| (0..size.pods).map(move |p| (n, p)));
    let pods = pods.map(|(n, p)| {
        let number = n * size.pods + p;
        let (node, at) = (number % size.nodes, number / size.nodes + 2);
        let ip = format!("10.{}.{}.{}", 64 + node / 64, node % 64 * 4 + at / 256, at % 256);
        objects::far_pod(&space(n), &format!("p-{p}"), &format!("far-{node}"), &app(p), &ip)
    });
    objects::load(client, pods)?;
    let policies = (0..size.namespaces).flat_map(|n| (0..POLICIES).map(move |p| policy(n, p)));
    objects::load(client, policies)
}

/// A policy of a namespace.
fn policy(n: usize, p: usize) -> Value {
    let team = json!({"matchLabels": {"team": format!("k{}", (n + 3) % TEAMS)}});
    let own = json!({"podSelector": {}});
    let spec = match p {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}),
        1 => {
            let world = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}});
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                {"to": [world], "ports": [{"port": 443}]},
                {"to": [own], "ports": [{"protocol": "UDP", "port": 53}]},
            ]})
        }
        p if p < 2 + APPS => {
            let (own, next) = (p - 2, json!({"matchLabels": app(p - 1)}));
            let of_team =
                json!({"namespaceSelector": team, "podSelector": {"matchLabels": app(p)}});
            let ports = json!([{"port": 8080}]);
            json!({
                "podSelector": {"matchLabels": app(own)}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": next}, of_team], "ports": ports}],
                "egress": [{"to": [{"podSelector": next}], "ports": ports}],
            })
        }
        p => json!({
            "podSelector": {"matchLabels": app(p - 2 - APPS)}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": team}], "ports": [{"port": 9090}]}],
        }),
    };
    objects::policy(&space(n), &format!("p-{p}"), &spec)
}

/// From the order to start until everything is enforced.
fn starts(
    client: &Client,
    spec: &Spec,
    size: &Size,
    policies: usize,
    what: &str,
    all: &mut Vec<Series>,
) -> Result<()> {
    let socket = spec.dirs().node(NODE).join("run-causeway/agent.sock");
    let table = ["delete", "table", "inet", names::NFT_POLICY];
    let remove = || Command::new("nft").args(table).output();
    let home = NetNs::open(spec.dirs().netns(NODE)).map_err(|e| anyhow!("{e}"))?;
    let first = all.len();
    for how in ["without a table", "beside its table"] {
        all.push(Series::new(format!("start {how}, until enforced, {what}"), "ms", None));
    }
    let mut threads: BTreeMap<bool, Series> = BTreeMap::new();
    let began = Instant::now();
    for round in 0..size.starts {
        if round > 0 && began.elapsed() > LONG_ENOUGH {
            break;
        }
        for series in &mut all[first..] {
            order(client, NODE, "stop")?;
            if series.name.contains("without") {
                home.run(remove).map_err(|e| anyhow!("{e}"))??;
            }
            eprintln!("bench: {}", series.name);
            let start = Instant::now();
            order(client, NODE, "start")?;
            objects::enforced(&socket, policies, Duration::from_millis(20))?;
            series.samples.push(start.elapsed().as_secs_f64() * 1e3);
            for (own, seconds) in busy_threads(pid(client, NODE)?)? {
                let whose = if own { "of its thread of policies" } else { "of its other threads" };
                let name = format!("– processor time of a start {whose}");
                let series = threads.entry(own).or_insert_with(|| Series::new(name, "ms", None));
                series.samples.push(seconds * 1e3);
            }
        }
    }
    all.extend(threads.into_values());
    Ok(())
}

/// Seconds that the threads of a process have run: those named `policy`, and the others.
fn busy_threads(pid: i32) -> Result<BTreeMap<bool, f64>> {
    let mut sums = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let own = std::fs::read_to_string(path.join("comm"))?.trim() == "policy";
        let text = std::fs::read_to_string(path.join("schedstat"))?;
        let ran: f64 = text.split_whitespace().next().context("schedstat is empty")?.parse()?;
        *sums.entry(own).or_default() += ran / 1e9;
    }
    Ok(sums)
}

/// Changes of each kind, one after the other.
fn changes(client: &Client, spec: &Spec, size: &Size) -> Result<Vec<Series>> {
    let commits = Commits::listen(&spec.dirs().netns(NODE))?;
    let mut all = vec![
        Change::new("the ports of a policy of a pod here", POLICY_TYPE, size),
        Change::new("a policy more of a pod here", POLICY_TYPE, size),
        Change::new("that policy goes", POLICY_TYPE, size),
        Change::new("the labels of a pod elsewhere", "pods", size),
        Change::new("a pod more elsewhere", "pods", size),
        Change::new("that pod goes", "pods", size),
    ];
    for n in 0..size.changes {
        let (space, own) = (space(n % size.local), n / size.local % LOCAL_APPS);
        let path = format!("{}/p-{}", policies_path(&space), 2 + own);
        let mut object = client.get(&path)?;
        for (direction, port) in [("ingress", 8081), ("egress", 8082)] {
            object["spec"][direction][0]["ports"][0]["port"] = json!(port + n);
        }
        all[0].time(client, &commits, || client.put(&path, &object))?;

        let to_own = json!({"podSelector": {"matchLabels": app(own)}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [objects::pods_with(&app(own + 4))], "ports": [{"port": 7070}]}]});
        let more = objects::policy(&space, "more", &to_own);
        all[1].time(client, &commits, || client.post(&policies_path(&space), &more))?;
        all[2]
            .time(client, &commits, || client.delete(&format!("{}/more", policies_path(&space))))?;

        // A peer of the application before becomes one of this.
        let path = format!("/api/v1/namespaces/{space}/pods/p-{}", own + 2);
        let mut object = client.get(&path)?;
        object["metadata"]["labels"] = app(own + 1);
        all[3].time(client, &commits, || client.put(&path, &object))?;
        object = client.get(&path)?;
        object["metadata"]["labels"] = app(own + 2);
        commits.after(|| client.put(&path, &object))?;

        let ip = format!("10.200.0.{}", n + 1);
        let item = objects::far_pod(&space, "more", "far-0", &app(own + 1), &ip);
        let list = json!({"items": [item]});
        all[4].time(client, &commits, || client.post("/causeway.lab/objects", &list))?;
        let path = format!("/api/v1/namespaces/{space}/pods/more?gracePeriodSeconds=0");
        all[5].time(client, &commits, || client.delete(&path))?;
        if n >= 4 && all[0].began.elapsed() > LONG_ENOUGH * 2 {
            break;
        }
    }
    let series = |change: Change| [change.enforced, change.whole, change.api];
    Ok(all.into_iter().flat_map(series).collect())
}

/// The times of one kind of change.
struct Change {
    began: Instant,
    /// What the API calls what is changed.
    of: &'static str,
    enforced: Series,
    whole: Series,
    api: Series,
}

impl Change {
    fn new(what: &str, of: &'static str, size: &Size) -> Self {
        let pods = size.namespaces * size.pods;
        let series = |name: String| Series::new(name, "ms", None);
        Self {
            began: Instant::now(),
            of,
            enforced: series(format!("from the API's event until enforced: {what}, {pods} pods")),
            whole: series(format!("– from before its writer's request: {what}")),
            api: series(format!("– until the API has answered: {what}")),
        }
    }

    fn time(
        &mut self,
        client: &Client,
        commits: &Commits,
        change: impl FnOnce() -> Result<Value>,
    ) -> Result<()> {
        let name = &self.enforced.name;
        let Times { start, answered, last } =
            commits.after(change).with_context(|| name.clone())?;
        let event = client.control(Method::GET, &format!("/changes/{}", self.of))?;
        let event = Duration::from_nanos(event["at"].as_u64().context("no time of the event")?);
        let since = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e3;
        self.enforced.samples.push(since(event, last));
        self.whole.samples.push(since(start, last));
        self.api.samples.push(since(start, answered));
        Ok(())
    }
}

/// The times of one change, since the machine's start.
struct Times {
    /// Before its writer's request.
    start: Duration,
    answered: Duration,
    /// The kernel's word of the last transaction.
    last: Duration,
}

/// The moments at which the kernel told that the table of policies was changed, since the machine's start.
struct Commits {
    moments: Receiver<Duration>,
    over: Arc<AtomicBool>,
}

impl Commits {
    fn listen(node: &Path) -> Result<Self> {
        let (sender, moments) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let node: PathBuf = node.to_owned();
        let ns = NetNs::open(&node).map_err(|e| anyhow!("{e}"))?;
        let mut monitor = Monitor::open_in(&ns).map_err(|e| anyhow!("{e}"))?;
        let done = over.clone();
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let mut fds = [PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN)];
                let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                let _ = poll(&mut fds, Some(&pause));
                let now = since_start();
                let of_policies = |event: &Event| match event {
                    Event::Table { name, .. } => name == names::NFT_POLICY,
                    _ => false,
                };
                let news = match monitor.read() {
                    Ok(Events::Changed(events)) => events.iter().any(of_policies),
                    // So much that some of it was lost.
                    Ok(Events::Overrun) => true,
                    Err(_) => return,
                };
                if news && sender.send(now).is_err() {
                    return;
                }
            }
        });
        Ok(Self { moments, over })
    }

    /// The times of a change. What an agent takes away when nothing leads there any more is neither this change's nor the
    /// next one's.
    fn after(&self, change: impl FnOnce() -> Result<Value>) -> Result<Times> {
        while self.moments.recv_timeout(TIDY).is_ok() {}
        let start = since_start();
        change()?;
        let answered = since_start();
        let mut last = match self.moments.recv_timeout(objects::PATIENCE) {
            Ok(moment) => moment,
            Err(_) => bail!("the kernel's table is as before {:?} after it", objects::PATIENCE),
        };
        loop {
            match self.moments.recv_timeout(DONE) {
                Ok(moment) => last = moment,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => bail!("the kernel's news have ended"),
            }
        }
        Ok(Times { start, answered, last })
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
