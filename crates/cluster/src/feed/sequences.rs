//! The same history, told in many ways: in other orders across objects, squashed to what is true at
//! its end, split by lists, with repetitions, and with old states in between. The view that comes
//! of it is the same, and so is what the node should hold.
//!
//! Of one object the server's order is the truth: versions are names, and are never compared.
//! `CAUSEWAY_SEED` repeats a run.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use causeway_desired::input::{Config, Inputs, NodeFacts, Path};
use causeway_desired::node::{Outcome, node_objects};
use causeway_types::state::Attach;
use causeway_types::{Family, Mtu};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::api::{Event, Manners, Rng, Server};
use super::*;

/// Histories, each told in [`WAYS`] ways beside the plain one: 10,000 sequences.
const HISTORIES: u64 = 2_500;
const WAYS: usize = 4;

/// What one object was, one state after the other; `None`: deleted.
type Life = (String, Vec<Option<Value>>);

fn address(family: Family, n: usize) -> String {
    match family {
        Family::V4 => format!("192.168.{}.{}", 1 + n % 2, 10 + n),
        Family::V6 => format!("fd00:192:168:{}::{n}", 1 + n % 2),
    }
}

fn node(rng: &mut Rng, n: usize, families: &[Family]) -> Value {
    // A node may come back with other addresses and another subnet.
    let variant = 20 * rng.below(2);
    let mut addresses: Vec<Value> = families
        .iter()
        .map(|f| {
            let n = if n == 1 { 1 } else { n + variant };
            json!({"type": "InternalIP", "address": address(*f, n)})
        })
        .collect();
    if rng.one_in(8) {
        addresses.insert(0, json!({"type": "InternalIP", "address": "somewhere"}));
    }
    let cidr = |f: &Family| match f {
        Family::V4 => format!("10.244.{}.0/24", n + variant),
        Family::V6 => format!("fd00:10:244:{}::/64", n + variant),
    };
    let cidrs: Vec<String> = families.iter().map(cidr).collect();
    let cidrs = if rng.one_in(10) { json!("nonsense") } else { json!(cidrs) };
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{n}"), "labels": {"beat": rng.below(1000).to_string()}},
        "spec": if rng.one_in(12) { json!({}) } else { json!({"podCIDRs": cidrs}) },
        "status": {"addresses": addresses}})
}

fn pod(rng: &mut Rng, n: usize, families: &[Family]) -> Value {
    let ip = |f: &Family| match f {
        Family::V4 => json!({"ip": format!("10.244.1.{}", 2 + n)}),
        Family::V6 => json!({"ip": format!("fd00:10:244:1::{}", 2 + n)}),
    };
    let ips: Vec<Value> = families.iter().map(ip).collect();
    let phase = ["Pending", "Running", "Succeeded"][rng.below(3)];
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{n}"), "namespace": "default", "uid": format!("u{}", rng.below(3))},
        "spec": {"hostNetwork": rng.one_in(4)},
        "status": {"phase": phase, "podIPs": if phase == "Pending" { json!([]) } else { json!(ips) }}})
}

fn lives(
    rng: &mut Rng,
    count: usize,
    families: &[Family],
    state: impl Fn(&mut Rng, usize, &[Family]) -> Value,
    name: &str,
) -> Vec<Life> {
    let life = |n| {
        let mut states: Vec<Option<Value>> = Vec::new();
        for _ in 0..1 + rng.below(4) {
            let gone = rng.one_in(4) && matches!(states.last(), Some(Some(_)));
            states.push((!gone).then(|| state(rng, n, families)));
        }
        (format!("{name}-{n}"), states)
    };
    (1..=count).map(life).collect()
}

/// The ways of telling.
#[derive(Clone, Copy, Debug, Default)]
struct Telling {
    /// Object after object, the last one first.
    reversed: bool,
    /// Only how each object is at the end.
    squashed: bool,
    /// Events come more than once, and an old state comes again after a newer one.
    repeated: bool,
    /// Types are those of another history: MODIFIED of what was never told, ADDED of what is
    /// there, DELETED of what is not.
    mislabelled: bool,
}

/// The events of a collection. Those of one object stay in their order.
fn tell(rng: &mut Rng, lives: &[Life], how: Telling) -> Vec<Event> {
    let mut queues: Vec<(String, Vec<Event>)> = Vec::new();
    for (name, states) in lives {
        let mut events = Vec::new();
        let from = if how.squashed { states.len() - 1 } else { 0 };
        for at in from..states.len() {
            let event = |at: usize, known: bool, rng: &mut Rng| {
                let what = match (&states[at], known) {
                    (None, _) => "DELETED",
                    (Some(_), _) if how.mislabelled && rng.one_in(2) => {
                        ["ADDED", "MODIFIED"][rng.below(2)]
                    }
                    (Some(_), false) => "ADDED",
                    (Some(_), true) => "MODIFIED",
                };
                // A deletion shows the object as it was last.
                let last = states[..=at].iter().rev().flatten().next().unwrap();
                (what, name.clone(), last.clone())
            };
            if how.mislabelled && at == 0 && rng.one_in(3) {
                events.push(("DELETED", name.clone(), states[0].clone().unwrap()));
            }
            events.push(event(at, at > from, rng));
            while how.repeated && rng.one_in(3) {
                events.push(event(rng.below(at + 1), true, rng));
                events.push(event(at, true, rng));
            }
        }
        queues.push((name.clone(), events));
    }
    if how.reversed {
        queues.reverse();
        return queues.into_iter().flat_map(|(_, events)| events).collect();
    }
    let mut all = Vec::new();
    for (_, events) in &mut queues {
        events.reverse();
    }
    while queues.iter().any(|(_, q)| !q.is_empty()) {
        let at = rng.below(queues.len());
        all.extend(queues[at].1.pop());
    }
    all
}

/// What is true at the end of it.
fn end(lives: &[&[Life]; 2]) -> ClusterView {
    let last = |lives: &[Life]| -> Vec<Value> {
        lives.iter().filter_map(|(_, states)| states.last().unwrap().clone()).collect()
    };
    let mut view = ClusterView::default();
    for object in last(lives[0]) {
        view.nodes.extend(convert::node(&serde_json::from_value(object).unwrap()));
    }
    for object in last(lives[1]) {
        view.pods.extend(convert::pod(&serde_json::from_value(object).unwrap()));
    }
    view
}

/// Runs both feeds on two collections until all has been told.
async fn listen(
    nodes: (Vec<Event>, Manners),
    pods: (Vec<Event>, Manners),
    rng: &mut Rng,
) -> (Snapshot, usize) {
    let (sender, snapshots) = watch::channel(Snapshot::default());
    let idle = Arc::new(Notify::new());
    let wrong = Arc::new(std::sync::Mutex::new(None));
    let seen = |first: Option<String>| {
        let (snapshots, wrong) = (snapshots.clone(), Arc::clone(&wrong));
        Box::new(move || {
            let snapshot = snapshots.borrow();
            if let Some(first) = &first
                && snapshot.nodes_synced
                && !snapshot.view.nodes.keys().any(|n| n.as_str() == first)
            {
                *wrong.lock().unwrap() = Some(format!("{first} was away: {:?}", snapshot.view));
            }
        })
    };
    // The first node told is there from the first list to the end.
    let first = nodes.0[..nodes.1.begins].first().map(|(_, name, _)| name.clone());
    let mut server = |kind, (events, manners), look| {
        let rng = Rng(rng.below(1 << 40) as u64);
        Server::start(kind, events, manners, rng, look, Arc::clone(&idle))
    };
    let (node_client, node_server) = server("Node", nodes, seen(first));
    let (pod_client, pod_server) = server("Pod", pods, seen(None));
    let health = Health::default();
    let follow_nodes = async {
        let mut backoff = Backoff::default();
        loop {
            feed::<Nodes>(
                Api::all(node_client.clone()),
                Scope::default(),
                &sender,
                &health,
                &mut backoff,
            )
            .await;
        }
    };
    let follow_pods = async {
        let mut backoff = Backoff::default();
        loop {
            let of_me = Scope { selector: Some("spec.nodeName=node-1"), own: None };
            feed::<Pods>(Api::all(pod_client.clone()), of_me, &sender, &health, &mut backoff).await;
        }
    };
    let all_told = async {
        while !(node_server.lock().unwrap().told() && pod_server.lock().unwrap().told()) {
            idle.notified().await;
        }
    };
    let an_hour = Duration::from_secs(3600);
    tokio::select! {
        () = follow_nodes => {}
        () = follow_pods => {}
        end = tokio::time::timeout(an_hour, all_told) => end.expect("all is told within an hour"),
    }
    if let Some(wrong) = wrong.lock().unwrap().take() {
        panic!("{wrong}");
    }
    let requests = node_server.lock().unwrap().requests + pod_server.lock().unwrap().requests;
    (snapshots.borrow().clone(), requests)
}

fn desired(view: &ClusterView, attach: Attach) -> Outcome {
    let dev: causeway_types::IfName = "eth0".parse().unwrap();
    let mtu = Mtu::new(1500).unwrap();
    let own =
        ["192.168.2.11/24", "fd00:192:168:2::1/64"].map(|a| (dev.clone(), a.parse().unwrap()));
    let peers = Family::BOTH.into_iter().flat_map(|f| (1..40).map(move |n| (n, address(f, n))));
    let path = |(n, ip): (usize, String)| {
        let path = Path { dev: dev.clone(), on_link: n % 2 == 1, mtu };
        (ip.parse().unwrap(), path)
    };
    node_objects(&Inputs {
        me: Some("node-1".parse().unwrap()),
        view: view.clone(),
        facts: NodeFacts {
            paths: peers.map(path).collect(),
            addresses: own.to_vec(),
            mtus: BTreeMap::from([(dev.clone(), mtu)]),
            ..NodeFacts::default()
        },
        config: Config { attach, ..Config::default() },
        attachments: Vec::new(),
        ..Inputs::default()
    })
}

#[tokio::test(start_paused = true)]
async fn any_telling_of_a_history_leads_to_the_same_state() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let seed = number("CAUSEWAY_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let histories = number("CAUSEWAY_HISTORIES").unwrap_or(HISTORIES);
    println!("CAUSEWAY_SEED={seed}");
    let mut rng = Rng(seed);
    let (mut requests, mut events, mut whole) = (0, 0, 0);
    for history in 0..histories {
        let families = [&[Family::V4][..], &[Family::V6], &Family::BOTH][history as usize % 3];
        let count = 1 + rng.below(5);
        let mut nodes = lives(&mut rng, count, families, node, "node");
        // This node stays.
        nodes[0].1.retain(Option::is_some);
        let count = rng.below(4);
        let pods = lives(&mut rng, count, families, pod, "pod");
        let view = end(&[&nodes, &pods]);
        let attach = [Attach::Routed, Attach::Bridge][rng.below(2)];
        let wanted = desired(&view, attach);
        whole += u64::from(wanted.known && wanted.desired.iter().count() > 10);
        for way in 0..=WAYS {
            let mut how = Telling::default();
            let mut manners = Manners::default();
            if way > 0 {
                how.reversed = rng.one_in(3);
                how.squashed = rng.one_in(4);
                how.repeated = rng.one_in(2);
                how.mislabelled = rng.one_in(2);
                manners.faults = rng.below(5);
                manners.paged = rng.one_in(2);
            }
            let pods = tell(&mut rng, &pods, how);
            let mut told = tell(&mut rng, &nodes, how);
            // This node's first event begins it, so that it is in every list.
            let at = told.iter().position(|(what, name, _)| *what != "DELETED" && name == "node-1");
            let me = told.remove(at.unwrap());
            told.retain(|(what, name, _)| *what != "DELETED" || name != "node-1");
            told.insert(0, me);
            events += told.len() + pods.len();
            let begun = Manners { begins: 1, ..manners };
            let (got, asked) = listen((told, begun), (pods, manners), &mut rng).await;
            requests += asked;
            let what = format!("history {history}, {how:?}, {manners:?}, CAUSEWAY_SEED={seed}");
            assert!(got.synced(), "{what}");
            assert_eq!(*got.view, view, "{what}");
            assert_eq!(desired(&got.view, attach), wanted, "{what}");
        }
    }
    println!("{events} events in {requests} answers; {whole} of {histories} nodes are whole");
    assert!(whole > histories / 4, "{whole} of {histories}");
}

/// Within a watch the server's order counts, whatever versions look like: a state that was there
/// before is the state again.
#[tokio::test(start_paused = true)]
async fn what_is_told_last_is_true() {
    let mut rng = Rng(1);
    let (old, new) = (node(&mut rng, 2, &[Family::V4]), pod(&mut rng, 2, &[Family::V4]));
    let newer = json!({"metadata": {"name": "node-2"}, "spec": {"podCIDR": "10.244.9.0/24"}});
    let told = vec![
        ("ADDED", "node-2".to_owned(), old.clone()),
        ("MODIFIED", "node-2".to_owned(), newer),
        ("MODIFIED", "node-2".to_owned(), old.clone()),
    ];
    let pods = vec![("DELETED", "pod-2".to_owned(), new)];
    let manners = Manners::default();
    let (got, _) = listen((told, manners), (pods, manners), &mut rng).await;
    let (name, info) = convert::node(&serde_json::from_value(old).unwrap()).unwrap();
    assert_eq!(got.view.nodes, BTreeMap::from([(name, info)]));
    assert!(got.view.pods.is_empty() && got.synced());
}
