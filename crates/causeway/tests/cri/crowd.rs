//! Many pods on a node on which containerd and the agent are killed, and which loses its power.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use causeway_cri::{Pod, Running, containerd, end};
use causeway_types::Family;
use causeway_types::state::Attach;
use http::Method;

use crate::cluster::{Cluster, Worker};
use crate::world::{PATIENCE, eventually, isolated};

/// Pods that a kubelet works on at once.
const AT_ONCE: usize = 4;

#[test]
fn fifty_pods_routed() {
    isolated(|| crowd("fifty", Attach::Routed, 50));
}

#[test]
fn twenty_pods_on_a_bridge() {
    isolated(|| crowd("twenty", Attach::Bridge, 20));
}

fn crowd(name: &str, attach: Attach, count: usize) {
    let mut cluster = Cluster::up(name, 1, attach);
    let pods: Vec<Pod> = (0..count).map(|n| cluster.pod(&format!("p{n}"))).collect();
    let worker = &mut cluster.workers[0];

    // Both are killed while pods are made.
    let done = AtomicUsize::new(0);
    let made = std::thread::scope(|scope| {
        let (done, pods, worker) = (&done, &pods, &*worker);
        let making = scope.spawn(move || {
            each(pods, |pod| {
                let made = Running::sync(&worker.machine, &worker.client, pod)?;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(made)
            })
        });
        eventually("some are there", PATIENCE, || match done.load(Ordering::SeqCst) {
            n if n * 3 > pods.len() => Ok(()),
            n => Err(format!("{n}")),
        });
        kill_both(worker);
        containerd::start(&worker.machine).unwrap();
        making.join().unwrap()
    });
    worker.agent_again();
    let lost = lost(worker, &made);
    println!("{count} pods; sandboxes that containerd forgot when it was killed: {}", lost.len());
    assert!(lost.len() <= 2 * AT_ONCE, "more than were in the making: {lost:?}");
    leases_are(worker, &made, &lost);

    // And while they only run, which pods do not notice.
    kill_both(worker);
    reach(&made);
    containerd::start(&worker.machine).unwrap();
    let made = each(&pods, |pod| Running::sync(&worker.machine, &worker.client, pod));
    leases_are(worker, &made, &lost);

    // Without an agent some go; containerd is killed meanwhile.
    let go = &pods[..count / 5];
    std::thread::scope(|scope| {
        let worker = &*worker;
        let ending = scope.spawn(move || each(go, |pod| end(&worker.client, pod)));
        std::thread::sleep(Duration::from_millis(150));
        containerd::kill(&worker.machine).unwrap();
        containerd::start(&worker.machine).unwrap();
        ending.join().unwrap();
    });
    leases_are(worker, &made[go.len()..], &lost);
    worker.agent_again();
    leases_are(worker, &made[go.len()..], &lost);

    // The power goes. A kubelet starts all pods at once, the agent's among them.
    let world = &cluster.world;
    let boot = worker.machine.sh("cat /proc/sys/kernel/random/boot_id").unwrap();
    let reboot = || drop(world.client.control(Method::POST, "/nodes/node-1/reboot").unwrap());
    worker.machine.power_cut(reboot).unwrap();
    assert_ne!(worker.machine.sh("cat /proc/sys/kernel/random/boot_id").unwrap(), boot);
    worker.client = containerd::start(&worker.machine).unwrap();
    let Worker { agent, client, machine, .. } = worker;
    let made = std::thread::scope(|scope| {
        let (client, machine) = (&*client, &*machine);
        let making = scope.spawn(|| each(&pods, |pod| Running::sync(machine, client, pod)));
        agent.again(client).unwrap();
        agent.ready(machine).unwrap();
        making.join().unwrap()
    });
    let (done, said) = cluster.world.causeway("node-1", &["ipam", "gc"]);
    assert!(done, "{said}");
    let worker = &cluster.workers[0];
    leases_are(worker, &made, &BTreeSet::new());
    reach(&made);

    each(&made, |pod| end(&worker.client, &pod.pod));
    worker.holds_nothing();
}

impl Worker {
    /// The agent's container is started anew, as it has ended.
    fn agent_again(&mut self) {
        eventually("its end is known", PATIENCE, || match self.agent.keep(&self.client) {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        self.agent.ready(&self.machine).unwrap();
    }
}

/// As `kill -9` at the same moment.
fn kill_both(worker: &Worker) {
    let agent = worker.agent.pid(&worker.client).unwrap();
    containerd::kill(&worker.machine).unwrap();
    worker.machine.sh(&format!("kill -9 {agent}")).unwrap();
}

/// Does something for each, some at once, again and again until it succeeds.
#[track_caller]
fn each<T: Sync, R: Send>(all: &[T], act: impl Fn(&T) -> Result<R> + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one = || {
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::SeqCst)).and_then(|at| Some((at, all.get(at)?)))
        {
            let start = Instant::now();
            let result = loop {
                match act(item) {
                    Ok(result) => break result,
                    Err(e) if start.elapsed() > 2 * PATIENCE => panic!("{e:#}"),
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            };
            results.lock().unwrap().push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(one);
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(at, _)| *at);
    assert_eq!(results.len(), all.len());
    results.into_iter().map(|(_, result)| result).collect()
}

/// Every pod has its own addresses, these are leased, and beside them those that are told.
#[track_caller]
fn leases_are(worker: &Worker, made: &[Running], lost: &BTreeSet<IpAddr>) {
    let held: Vec<IpAddr> = made.iter().flat_map(|pod| pod.ips.clone()).collect();
    let mut wanted: BTreeSet<IpAddr> = held.iter().copied().collect();
    assert_eq!(held.len(), 2 * made.len(), "one of each family");
    assert_eq!(wanted.len(), held.len(), "an address twice");
    wanted.extend(lost);
    eventually("the leases are those of the pods", PATIENCE, || {
        let leased = worker.leased();
        let more: Vec<_> = leased.difference(&wanted).collect();
        let less: Vec<_> = wanted.difference(&leased).collect();
        match leased == wanted {
            true => Ok(()),
            false => Err(format!("too many: {more:?}, missing: {less:?}")),
        }
    });
}

/// Addresses in namespaces that no sandbox has. containerd 1.6 makes a namespace and its network before
/// it writes down that there is a sandbox: one that was in the making when it was killed lives until the
/// node boots, and nobody calls DEL for it.
fn lost(worker: &Worker, made: &[Running]) -> BTreeSet<IpAddr> {
    let names = worker.machine.sh("ls /run/netns").unwrap();
    let of_pods: BTreeSet<&str> =
        made.iter().filter_map(|pod| pod.ns.file_name()?.to_str()).collect();
    let mut all = BTreeSet::new();
    for name in names.lines().filter(|name| !of_pods.contains(name)) {
        let line = format!("nsenter --net=/run/netns/{name} ip -o addr show dev eth0 scope global");
        let (_, said) = worker.machine.try_sh(&line).unwrap();
        let words = said.split_whitespace();
        let nets = words.filter_map(|word| word.parse::<ipnet::IpNet>().ok());
        all.extend(nets.map(|net| net.addr()));
    }
    all
}

/// The first, the last and one between reach each other.
#[track_caller]
fn reach(made: &[Running]) {
    let some = [&made[0], &made[made.len() / 2], &made[made.len() - 1]];
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for family in Family::BOTH {
            let to = some[to].ip(family).unwrap();
            let times = causeway_lab::ping(&some[from].ns, to, 1, 56, Duration::from_secs(3));
            assert!(times.is_ok_and(|t| t.len() == 1), "{} -> {to}", some[from].pod.name());
        }
    }
}
