//! Policies in large numbers: failures that users of pod networks meet when there are many of them (14, 15, 20), or
//! many pods at once (23).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_lab::{Pod, Road, Spec, inside};
use causeway_types::state::Attach;
use http::Method;
use serde_json::{Value, json};

use crate::bulk::{Bulk, addresses};
use crate::enforce::{apply, full, pod, remove, settled, truth};
use crate::enforce_life::change;
use crate::outage::faults;
use crate::packets::Ear;
use crate::world::{PATIENCE, World, dual, eventually, with};

fn small(nodes: u8) -> Spec {
    dual(nodes, Attach::Routed, Road::Direct)
}

/// Pods of an app may be reached by those of a group, at a port.
fn allowing(app: &str, group: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
    json!({"podSelector": {"matchLabels": {"app": app}}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"group": group}}}], "ports": ports}]})
}

/// Waits until a kernel's table has something, or has it no more.
fn holds(world: &World, node: &str, what: &str, there: bool) {
    eventually(&format!("{node}: {what} is there: {there}"), PATIENCE, || {
        let (_, text) = world.try_sh(&world.node_ns(node), "nft list table inet causeway_policy");
        match text.contains(what) == there {
            true => Ok(()),
            false => Err(format!("{} lines", text.lines().count())),
        }
    });
}

/// Where addresses are listed in a table: the chains that they lead to, as elements of a map or as those of a set that
/// a rule for tracked packets asks, or the set's name.
fn listed_at(table: &str) -> BTreeMap<IpAddr, Vec<String>> {
    let mut of_sets = BTreeMap::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, "saddr", set, "goto", chain] | [_, _, _, "saddr", set, "goto", chain] =
            words[..]
            && let (Some(set), Some(chain)) = (set.strip_prefix('@'), chain.strip_suffix("_t"))
        {
            of_sets.insert(set, chain);
        }
    }
    let mut all: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    let mut inside = "";
    for line in table.lines() {
        if let Some((_, name)) = line.trim().trim_end_matches(" {").split_once(' ')
            && line.ends_with('{')
        {
            inside = name;
        }
        for part in line.split([',', '{', '}', '=']) {
            let (ip, leads) = match part.split_once(" : goto ") {
                Some((ip, chain)) => (ip, chain.trim()),
                None => (part, of_sets.get(inside).copied().unwrap_or(inside)),
            };
            if let Ok(ip) = ip.trim().parse() {
                all.entry(ip).or_default().push(leads.to_owned());
            }
        }
    }
    all
}

// --- 14: what a change costs ----------------------------------------------------------------------

/// `nft monitor` of a node.
struct Monitor<'a> {
    world: &'a World,
    node: &'a str,
    child: Child,
    file: std::path::PathBuf,
    read: usize,
    marks: usize,
}

impl<'a> Monitor<'a> {
    fn start(world: &'a World, node: &'a str) -> Self {
        let file = world.spec.dirs().root().join(format!("nft-monitor-{node}"));
        let out = std::fs::File::create(&file).unwrap();
        let child = inside(&world.node_ns(node), || {
            let mut command = Command::new("nft");
            Ok(command.arg("monitor").stdout(out).stderr(Stdio::null()).spawn()?)
        });
        let mut monitor = Self { world, node, child: child.unwrap(), file, read: 0, marks: 0 };
        monitor.heard();
        monitor
    }

    /// What was done to the table of policies since the last call, an element, chain, rule or set each.
    fn heard(&mut self) -> Vec<String> {
        // Until it is ready, marks are not heard.
        let mut text = String::new();
        eventually("the monitor hears", PATIENCE, || {
            self.marks += 1;
            let mark = format!("table ip mark{}", self.marks);
            self.world.on(self.node, &format!("nft add {mark}; nft delete {mark}"));
            text = std::fs::read_to_string(&self.file).unwrap();
            let heard = text.contains(&format!("add {mark}\n"));
            if heard { Ok(()) } else { Err(mark) }
        });
        let news = text[self.read..].lines().filter(|line| line.contains(" inet causeway_policy"));
        let news = news.map(str::to_owned).collect();
        self.read = text.len();
        news
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With 2,000 policies a change of one, or of a pod, is a handful of elements: none of what others put into the
/// table is touched.
#[test]
fn failure_14_a_change_among_2000_policies() {
    const POLICIES: usize = 2000;
    with(small(1), |world| {
        let mut bulk = Bulk::new(world);
        for n in 0..POLICIES {
            let (app, group) = (format!("s{}", n % 40), format!("g{}", n % 500));
            bulk.policy(&format!("p{n}"), &allowing(&app, &group, &[8080]));
        }
        for n in 0..500 {
            bulk.foreign_pod(n, &json!({"group": format!("g{n}")}));
        }
        bulk.send();
        let names = (0..12).map(|n| (format!("s{n}"), json!({"app": format!("s{n}")})));
        let pods: Vec<Pod> =
            names.map(|(name, labels)| pod(world, &name, "node-1", &labels)).collect();
        settled(world, POLICIES);
        let (last, _) = addresses(491);
        holds(world, "node-1", &last.to_string(), true);
        let whole = world.on("node-1", "nft list table inet causeway_policy");
        let elements = listed_at(&whole).values().map(Vec::len).sum::<usize>();
        println!("{} lines, {elements} elements", whole.lines().count());
        assert!(elements > 250, "{whole}");

        let mut monitor = Monitor::start(world, "node-1");
        let mut cost = |what: &str, most: usize, least: usize| {
            let mut news = monitor.heard();
            // What has connections judged anew: of so many steps whatever changes.
            news.retain(|step| !step.contains(" judged ") && !step.contains(" judge "));
            println!("{what}: {} steps", news.len());
            assert!((least..=most).contains(&news.len()), "{what}: {}", news.join("\n"));
        };
        // A pod comes, changes hands and goes: the policies of one of the pods here select it.
        let (v4, _) = addresses(1000);
        let mut bulk = Bulk::new(world);
        bulk.foreign_pod(1000, &json!({"group": "g1"}));
        bulk.send();
        holds(world, "node-1", &v4.to_string(), true);
        cost("a pod comes", 2, 2);
        let mut bulk = Bulk::new(world);
        bulk.remove_pod(1000);
        bulk.send();
        holds(world, "node-1", &v4.to_string(), false);
        cost("a pod goes", 2, 2);
        // Others, which no policy of a pod here selects.
        let mut bulk = Bulk::new(world);
        (1001..1021)
            .for_each(|n| bulk.foreign_pod(n, &json!({"group": "g39", "n": n.to_string()})));
        (1001..1021).for_each(|n| bulk.foreign_pod(n + 100, &json!({"group": "nobody"})));
        bulk.send();
        // A policy of pods that are elsewhere.
        change(world, "p39", &allowing("s39", "g40", &[8080, 81]));
        settled(world, POLICIES);
        cost("pods and a policy of no concern", 0, 0);
        // One of a pod that is here: another port for those that it allows.
        change(world, "p2", &allowing("s2", "g2", &[8080, 81]));
        settled(world, POLICIES);
        // Its program gets a map of such addresses, and with that its chains anew.
        cost("a policy has a port more", 64, 4);
        change(world, "p2", &allowing("s2", "g2", &[8080, 82]));
        settled(world, POLICIES);
        // A set of ports with its chains goes, and another one comes.
        cost("and another one", 32, 4);
        // Its blocks are in a map of their own, which is made anew: that of one pod.
        let mut wider = allowing("s2", "g2", &[8080, 81]);
        let from = wider["ingress"][0]["from"].as_array_mut().unwrap();
        from.push(json!({"ipBlock": {"cidr": "198.51.100.0/24"}}));
        change(world, "p2", &wider);
        settled(world, POLICIES);
        cost("a policy has a block more", 140, 4);
        remove(world, "default", "p2");
        settled(world, POLICIES - 1);
        cost("a policy goes", 140, 4);
        truth(world, &pods[..3], "after the changes");
    });
}

// --- 15 and 20: a large cluster -------------------------------------------------------------------

/// Kibibytes of an agent's memory that are its own, not of the program's file.
fn memory(world: &World, node: &str) -> u64 {
    let agents = world.client.control(Method::GET, "/agents").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agents[node]["pid"])).unwrap();
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    println!("{node}: {} KiB, {} KiB with its file", of("RssAnon"), of("VmRSS"));
    of("RssAnon")
}

/// Thousands of pods, no two with the same labels, and 500 policies, twenty of them for one pod, each with a port of
/// its own. Nothing is of a fixed size: all are in the kernel, and what is among the many is enforced as what is alone.
/// An agent keeps what policies go by, and no more.
#[test]
fn failure_15_and_failure_20_a_large_cluster() {
    const POLICIES: u16 = 500;
    const GROUPS: u16 = 20;
    let pods_there: u16 = if full() { 5000 } else { 2000 };
    with(small(1), |world| {
        let began = Instant::now();
        let before = memory(world, "node-1");
        let labels = |group: &str| json!({"app": "home", "group": group});
        let mut pods = vec![pod(world, "server", "node-1", &json!({"app": "s4"}))];
        for group in ["g0", "g13", "g19", "none"] {
            pods.push(pod(world, &format!("client-{group}"), "node-1", &labels(group)));
        }
        let mut bulk = Bulk::new(world);
        for n in 0..POLICIES {
            let (app, group) = (format!("s{}", n / GROUPS), format!("g{}", n % GROUPS));
            let ports = [if n % 2 == 0 { 8080 } else { 81 }, 10_000 + 2 * n];
            bulk.policy(&format!("p{n}"), &allowing(&app, &group, &ports));
        }
        for n in 0..pods_there {
            let group = format!("g{}", n % GROUPS);
            let labels =
                json!({"app": "far", "group": group, "pod-template-hash": format!("{n:08x}")});
            bulk.foreign_pod(n, &labels);
        }
        bulk.send();
        println!("told after {:?}", began.elapsed());
        settled(world, POLICIES.into());
        holds(world, "node-1", &addresses(pods_there - 1).0.to_string(), true);
        println!("settled after {:?}", began.elapsed());
        // Each is listed, by both its addresses, with the ports of its group.
        let text = world.on("node-1", "nft list table inet causeway_policy");
        let mut listed = BTreeMap::new();
        for (ip, at) in listed_at(&text) {
            let mut ports = at.iter().filter(|at| at.starts_with("in_ports_"));
            if let (Some(first), rest) = (ports.next(), ports.count()) {
                assert_eq!(rest, 0, "{ip} in {at:?}");
                listed.insert(ip.to_string(), first.clone());
            }
        }
        let mut sets = BTreeSet::new();
        for n in 0..pods_there {
            let (v4, v6) = addresses(n);
            let chains = [v4.to_string(), v6.to_string()].map(|ip| listed.get(&ip).cloned());
            assert!(chains[0].is_some() && chains[0] == chains[1], "{n}: {chains:?}");
            let first = listed.get(&addresses(n % GROUPS).0.to_string()).cloned();
            assert_eq!(chains[0], first, "{n}");
            sets.extend(chains);
        }
        assert_eq!(sets.len(), usize::from(GROUPS));
        truth(world, &pods, "among many");
        let most = before + 32 * 1024;
        for round in 0..if full() { 10 } else { 1 } {
            let now = memory(world, "node-1");
            assert!(now < most, "{now} KiB after {before}, round {round}");
            // All of it is told anew.
            faults(world, &json!({"goneSeconds": 0.5, "cutWatches": true}));
            std::thread::sleep(Duration::from_millis(2000));
        }
        change(world, "p93", &allowing("s4", "g13", &[8080]));
        settled(world, POLICIES.into());
        truth(world, &pods, "after a change");
        println!("over after {:?}", began.elapsed());
    });
}

// --- 23: many at once -----------------------------------------------------------------------------

/// What a pod sends from the first instant of its first process on, by both families: whatever is not sent is not
/// missed.
fn speaks(ns: &Path, to: &[SocketAddr], on: &AtomicBool) {
    let pace = Duration::from_millis(10);
    let speak = || {
        let here: SocketAddr = ([127, 0, 0, 1], 8080).into();
        let mut looks = 0..20;
        while TcpStream::connect_timeout(&here, Duration::from_millis(50)).is_err() {
            // A pod that has to wait gets another network.
            anyhow::ensure!(looks.next().is_some(), "not yet");
            std::thread::sleep(pace);
        }
        let sockets = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?);
        for _ in 0..20 {
            for to in to {
                let socket = if to.is_ipv4() { &sockets.0 } else { &sockets.1 };
                let _ = socket.send_to(b"x", to);
            }
            std::thread::sleep(pace);
        }
        Ok(())
    };
    while on.load(Ordering::Relaxed) && !(ns.exists() && inside(ns, speak).is_ok()) {
        std::thread::sleep(pace);
    }
}

/// Whom an ear hears while something is on.
fn senders(ear: &Ear, on: &AtomicBool) -> BTreeSet<IpAddr> {
    let mut all = BTreeSet::new();
    while on.load(Ordering::Relaxed) {
        all.extend(ear.sender(Duration::from_millis(100)));
    }
    all
}

/// A hundred pods with policies start at once: each of them soon, none with an error but that it is too early, and
/// from its first instant on each sends what it may and nothing else.
#[test]
fn failure_23_a_burst_of_pods_with_policies() {
    const PODS: usize = 100;
    const PORT: u16 = 9000;
    with(small(2), |world| {
        let closed = ["node-1", "node-2"].map(|node| {
            pod(world, &format!("closed-{}", &node[5..]), node, &json!({"app": "closed"}))
        });
        let open = pod(world, "open", "node-2", &json!({"app": "open"}));
        let to = json!([{"to": [{"podSelector": {"matchLabels": {"app": "open"}}}]}]);
        for n in 0..10 {
            let spec = json!({"podSelector": {"matchLabels": {"burst": n.to_string()}},
                "policyTypes": ["Ingress", "Egress"], "egress": to});
            apply(world, "default", &format!("p{n}"), &spec);
        }
        settled(world, 10);
        let ears = |pod: &Pod| -> Vec<Ear> {
            pod.ips.iter().map(|ip| Ear::udp(&world.netns(pod), *ip, PORT)).collect()
        };
        let (shut, heard): (Vec<Ear>, Vec<Ear>) =
            (closed.iter().flat_map(ears).collect(), ears(&open));
        let all = closed.iter().chain([&open]).flat_map(|pod| &pod.ips);
        let all: Vec<SocketAddr> = all.map(|ip| (*ip, PORT).into()).collect();
        let name = |n: usize| format!("burst-{n}");
        let (on, began) = (AtomicBool::new(true), Instant::now());
        let (on, all) = (&on, &all);
        let (from, mut early) = std::thread::scope(|scope| {
            let listeners: Vec<_> =
                heard.iter().map(|ear| scope.spawn(move || senders(ear, on))).collect();
            let speakers: Vec<_> = (0..PODS)
                .map(|n| world.spec.dirs().pod_netns("node-1", "default", &name(n)))
                .map(|ns| scope.spawn(move || speaks(&ns, all, on)))
                .collect();
            let mut bulk = Bulk::new(world);
            for n in 0..PODS {
                bulk.pod(&name(n), "node-1", &json!({"burst": (n % 10).to_string()}));
            }
            bulk.send();
            let mut early = BTreeSet::new();
            // Also when it fails: else they would speak for ever.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("all run", PATIENCE, || {
                    let pods = causeway_lab::pods(&world.client).unwrap();
                    let late: Vec<&Pod> = pods.iter().filter(|p| p.phase != "Running").collect();
                    early.extend(late.iter().map(|p| p.message.clone()));
                    if late.is_empty() { Ok(()) } else { Err(format!("{} wait", late.len())) }
                });
                println!("{PODS} pods after {:?}", began.elapsed());
                speakers.into_iter().for_each(|speaker| speaker.join().unwrap());
            }));
            on.store(false, Ordering::Relaxed);
            let from: Vec<_> = listeners.into_iter().map(|l| l.join().unwrap()).collect();
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
            (from.into_iter().flatten().collect::<BTreeSet<IpAddr>>(), early)
        });
        early.remove("");
        println!("{early:?}");
        assert!(early.iter().all(|why| why.contains("[code 11]")), "{early:?}");
        for ear in &shut {
            assert_eq!(ear.sender(Duration::from_millis(10)), None, "it is closed to them");
        }
        let pods = causeway_lab::pods(&world.client).unwrap();
        let burst: Vec<Pod> = pods.into_iter().filter(|p| p.name.starts_with("burst-")).collect();
        let ips: BTreeSet<IpAddr> = burst.iter().flat_map(|pod| pod.ips.clone()).collect();
        assert_eq!((ips.len(), &from), (2 * PODS, &ips), "it is open to each of them");
        let mut some: Vec<Pod> = burst.into_iter().step_by(40).collect();
        some.extend(closed);
        truth(world, &some, "after the burst");
    });
}
