//! Policies when something goes wrong: transactions that the kernel refuses, agents that are killed in the middle of
//! their work.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_lab::{Pod, Road, find_pod, inside};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::enforce::{apply, enforced, namespace, pod, settled, tcp, truth};
use crate::enforce_life::change;
use crate::enforce_marks::but_for_mark;
use crate::packets::{Ear, send_udp};
use crate::streams::under_traffic;
use crate::world::{PATIENCE, World, dual, eventually, with};

const LIST: &str = "nft -s list table inet causeway_policy";

fn table(world: &World, node: &str) -> String {
    let (_, text) = world.try_sh(&world.node_ns(node), LIST);
    but_for_mark(&text)
}

// --- what the kernel refuses ----------------------------------------------------------------------

/// A table that nobody else may change, and that goes with the process that holds it.
struct Owned(Child);

impl Owned {
    fn hold(world: &World, node: &str, name: &str) -> Self {
        let nft = || {
            let mut command = Command::new("nft");
            command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(command.spawn()?)
        };
        let mut owned = Self(inside(&world.node_ns(node), nft).unwrap());
        let line = format!("add table inet {name} {{ flags owner; }}");
        writeln!(owned.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        eventually("the table is held", PATIENCE, || {
            let text = world.on(node, "nft list ruleset");
            if text.contains("flags owner") { Ok(()) } else { Err(text) }
        });
        owned
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As many base chains at the hook of forwarded packets as the kernel takes.
const CROWD: &str = "nft add table inet crowd
    at='{ type filter hook forward priority 10; }'
    seq 1000 | sed \"s/.*/add chain inet crowd c& $at/\" | nft -f -
    i=1001; while nft \"add chain inet crowd c$i $at\" 2>/dev/null; do i=$((i+1)); done";

/// Waits until a node's agent says what the kernel refuses, to everybody who asks.
fn refused(world: &World, node: &str, why: &str) {
    eventually(&format!("{node} says {why:?}"), PATIENCE, || {
        let (ok, text) = world.causeway(node, &["policy", "show"]);
        let told = text.lines().any(|line| line.starts_with("problem: ") && line.contains(why));
        let status = world.status(node).map_err(|e| format!("{e:#}"))?;
        let problem = |p: &causeway_agent::status::Problem| {
            p.message.starts_with("policies: ") && p.message.contains(why)
        };
        let there = status.problems.iter().any(problem);
        if !ok && told && there { Ok(()) } else { Err(format!("{text}{:?}", status.problems)) }
    });
    plugins_ask(world, node);
}

/// Waits until plugins know that they have to ask for pods of the namespace `default`.
fn plugins_ask(world: &World, node: &str) {
    let file = world.spec.dirs().node(node).join("run-causeway/node.json");
    eventually("plugins know that they have to ask", PATIENCE, || {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        let read: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if read["policyNamespaces"] == json!(["default"]) { Ok(()) } else { Err(text) }
    });
}

/// Makes a pod that may not start, and waits until it is told why.
fn waits(world: &World, name: &str, why: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "other"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "lab"}]}});
    world.client.post("/api/v1/namespaces/default/pods", &object).unwrap();
    eventually(&format!("{name} has to wait"), PATIENCE, || {
        let pod = find_pod(&world.client, name).unwrap();
        assert_ne!(pod.phase, "Running");
        let told = pod.message.contains(why) && pod.message.contains("[code 11]");
        if told { Ok(()) } else { Err(pod.message) }
    });
}

/// The obstacle is gone: all is right by itself within seconds.
fn recovers(world: &World, policies: usize, late: &str) -> Pod {
    let gone = Instant::now();
    settled(world, policies);
    // It is tried again every 5 s at the latest.
    assert!(gone.elapsed() < Duration::from_secs(12), "{:?}", gone.elapsed());
    let mut found = None;
    eventually(&format!("{late} runs"), PATIENCE, || {
        let pod = find_pod(&world.client, late).unwrap();
        let (phase, message) = (pod.phase.clone(), pod.message.clone());
        found = Some(pod);
        if phase == "Running" { Ok(()) } else { Err(message) }
    });
    found.unwrap()
}

/// What the kernel refuses changes nothing: what was in force stays, it is said what and why, pods of namespaces
/// with policies wait, others start. When it is refused no more all comes right.
#[test]
fn what_the_kernel_refuses() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        namespace(world, "free", &json!({}));
        let server = pod(world, "server", "node-1", &json!({"app": "server"}));
        let client = pod(world, "client", "node-2", &json!({"app": "client"}));
        let other = pod(world, "other", "node-1", &json!({"app": "other"}));
        let mut pods = vec![server.clone(), client.clone(), other.clone()];
        let from = |app: &str| {
            json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]})
        };
        let reaches = |from: &Pod| {
            let all = server.ips.iter().map(|ip| tcp(&world.netns(from), (*ip, 8080).into()));
            all.collect::<Vec<bool>>()
        };

        // Nothing is in force yet: somebody has a table of our name, and may have.
        let owned = Owned::hold(world, "node-1", "causeway_policy");
        apply(world, "default", "p", &from("client"));
        refused(world, "node-1", "Operation not permitted");
        waits(world, "late-1", "Operation not permitted");
        pods.push(pod(world, "free/one", "node-1", &json!({"app": "free"})));
        drop(owned);
        pods.push(recovers(world, 1, "late-1"));
        truth(world, &pods, "the table is nobody else's any more");

        // A policy is in force, the table is damaged, and putting it right is refused.
        world.on("node-1", CROWD);
        let before = table(world, "node-1");
        let stranger =
            "nft add chain inet causeway_policy stranger '{ type filter hook input priority 10; }'";
        world.on("node-1", stranger);
        refused(world, "node-1", "Argument list too long");
        change(world, "p", &from("other"));
        waits(world, "late-2", "Argument list too long");
        pods.push(pod(world, "free/two", "node-1", &json!({"app": "free"})));
        let text = world.on("node-1", LIST);
        let ours = |line: &&str| text.lines().any(|other| other == *line);
        assert!(before.lines().all(|line| ours(&line)), "{text}\ninstead of\n{before}");
        assert!(text.contains("chain stranger"), "{text}");
        assert_eq!((reaches(&client), reaches(&other)), (vec![true; 2], vec![false; 2]));
        world.on("node-1", "nft delete table inet crowd");
        pods.push(recovers(world, 1, "late-2"));
        let text = world.on("node-1", LIST);
        assert!(!text.contains("stranger"), "{text}");
        truth(world, &pods, "there is room at the hook");
    });
}

// --- agents that are killed -----------------------------------------------------------------------

/// Small numbers, for pauses of any length.
fn dice(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 31)
}

/// Allows the friend, by one rule, and others by as many as make it a large transaction.
fn allowing(round: u64) -> Value {
    let block = |n: u64| {
        let (kind, port) = (dice(round) % 2, 1000 + round % 50 + n % 7);
        let cidr = match kind {
            0 => format!("198.18.{}.{}/32", round % 200, n * 2),
            _ => format!("2001:db8:{:x}::{:x}/128", round % 200, n * 2),
        };
        json!({"from": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": port}]})
    };
    let mut rules = vec![json!({"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]})];
    rules.extend((0..60).map(block));
    json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": rules})
}

/// Sends datagrams where they may not go, each from a port of its own.
fn knock(ns: &Path, to: &[SocketAddr], on: &AtomicBool) -> u32 {
    let mut sent = 0;
    let send = || {
        while on.load(Ordering::Relaxed) {
            for to in to {
                let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
                sent += u32::from(std::net::UdpSocket::bind(any)?.send_to(b"x", to).is_ok());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    inside(ns, send).unwrap();
    sent
}

/// Kills the agent of node-1 while it is at work.
fn kill(world: &World, times: u64) {
    for n in 0..times {
        eventually("the agent changes the table", PATIENCE, || {
            let said = enforced(world, "node-1")?;
            if said["revision"].as_u64() > Some(0) { Ok(()) } else { Err(said.to_string()) }
        });
        std::thread::sleep(Duration::from_micros(dice(n) % 30_000));
        world.agent("node-1", "kill");
    }
}

/// The agent is killed while policies change under load: nothing that is denied ever passes, nothing that is allowed
/// is lost, and the next one finds its way from whatever was left.
#[test]
fn agents_are_killed_while_policies_change() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        let server = pod(world, "server", "node-1", &json!({"app": "server"}));
        let friend = pod(world, "friend", "node-2", &json!({"app": "friend"}));
        let foe = pod(world, "foe", "node-1", &json!({"app": "foe"}));
        let pods = [server.clone(), friend.clone(), foe.clone()];
        world.whole();
        apply(world, "default", "p", &allowing(0));
        settled(world, 1);
        let ns = world.netns(&server);
        let closed: Vec<SocketAddr> = server.ips.iter().map(|ip| (*ip, 9999).into()).collect();
        let ears: Vec<Ear> = server.ips.iter().map(|ip| Ear::udp(&ns, *ip, 9999)).collect();
        let on = AtomicBool::new(true);
        let report = under_traffic(world, &friend, &server, || {
            std::thread::scope(|scope| {
                let changes = scope.spawn(|| {
                    let mut round = 0;
                    while on.load(Ordering::Relaxed) {
                        round += 1;
                        change(world, "p", &allowing(round));
                    }
                    round
                });
                let knocks = scope.spawn(|| knock(&world.netns(&foe), &closed, &on));
                let kills =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kill(world, 20)));
                on.store(false, Ordering::Relaxed);
                let (changes, knocks) = (changes.join().unwrap(), knocks.join().unwrap());
                println!("{changes} changes, {knocks} datagrams");
                if let Err(panic) = kills {
                    std::panic::resume_unwind(panic);
                }
                assert!(changes > 50 && knocks > 500, "{changes} changes, {knocks} datagrams");
            });
        });
        for ear in &ears {
            assert_eq!(ear.sender(Duration::from_millis(10)), None, "it may not be heard");
        }
        println!("{report:?}");
        for (what, loss) in &report.losses {
            assert!(loss.sent > 500 && loss.lost == 0, "{what}: {loss:?}");
        }
        settled(world, 1);
        truth(world, &pods, "after the last agent was killed");
        // The same as if it was made from nothing: nothing was left behind.
        let left = table(world, "node-1");
        world.on("node-1", "nft delete table inet causeway_policy");
        eventually("the table is made anew", PATIENCE, || {
            let now = table(world, "node-1");
            if now == left { Ok(()) } else { Err(format!("{now}\ninstead of\n{left}")) }
        });
        // They hear what may be heard.
        for (ear, to) in ears.iter().zip(&closed) {
            send_udp(&world.netns(&friend), *to, b"x").unwrap();
            let own = friend.ip(Family::of(to.ip()));
            assert_eq!(ear.sender(PATIENCE), own);
        }
    });
}
