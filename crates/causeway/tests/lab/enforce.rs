//! Policies in the kernel: what the evaluator says is what packets meet.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_lab::{Answers, Ask, Pod, Road, Spec, find_pod, inside, reaches};
use causeway_policy::read::Object;
use causeway_policy::{Party, Protocol, Transport, World as Policies};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, dual, eventually, with};

/// A packet that comes through at all does so in this time.
pub(crate) const SOON: Duration = Duration::from_millis(700);

/// The SCTP port of pods.
const FLOW: u16 = 2905;

/// Whether all is tried, or a selection (`./dev test --full`).
pub(crate) fn full() -> bool {
    std::env::var("CAUSEWAY_MATRIX").is_ok_and(|m| m == "full")
}

pub(crate) const CLUSTER_POLICIES: &str =
    "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

pub(crate) fn policies_path(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

pub(crate) fn apply(world: &World, namespace: &str, name: &str, spec: &Value) {
    let object = policy(namespace, name, spec);
    world.client.post(&policies_path(namespace), &object).unwrap();
}

pub(crate) fn remove(world: &World, namespace: &str, name: &str) {
    world.client.delete(&format!("{}/{name}", policies_path(namespace))).unwrap();
}

/// Makes a pod with labels, and waits until it runs.
pub(crate) fn pod(world: &World, name: &str, node: &str, labels: &Value) -> Pod {
    let (namespace, bare) = name.split_once('/').unwrap_or(("default", name));
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": bare, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [
            {"name": "main", "image": "lab", "ports": [{"name": "web", "containerPort": 8080},
                {"name": "flow", "protocol": "SCTP", "containerPort": FLOW}]},
        ]},
    });
    world.client.post(&format!("/api/v1/namespaces/{namespace}/pods"), &object).unwrap();
    let mut found = None;
    eventually(&format!("pod {name} runs"), PATIENCE, || {
        let pod = find_pod(&world.client, name).map_err(|e| format!("{e:#}"))?;
        let (phase, message) = (pod.phase.clone(), pod.message.clone());
        found = Some(pod);
        if phase == "Running" { Ok(()) } else { Err(message) }
    });
    found.unwrap()
}

/// The state that an agent says it enforces.
pub(crate) fn enforced(world: &World, node: &str) -> Result<Value, String> {
    let said = causeway_agent::client::policies(&world.socket(node));
    said.map(|said| json!(said)).map_err(|e| format!("{e:#}"))
}

/// Waits until the agents of all nodes have told their kernels of the policies of the API, and of no others.
#[track_caller]
pub(crate) fn settled(world: &World, number: usize) {
    let versions = causeway_lab::policy_versions(&world.client).unwrap();
    assert_eq!(versions.len(), number, "{versions:?}");
    causeway_lab::wait_until_enforced(&world.spec, &world.client, PATIENCE, &|| Ok(())).unwrap();
}

/// Whether a connection comes to its other end: it is taken, or refused there.
pub(crate) fn tcp(ns: &Path, to: SocketAddr) -> bool {
    let connect = || match TcpStream::connect_timeout(&to, SOON) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(true),
        Err(_) => Ok(false),
    };
    inside(ns, connect).unwrap()
}

/// Whether a datagram comes to its other end: it is answered, or nobody listens there.
pub(crate) fn udp(ns: &Path, to: SocketAddr) -> bool {
    let send = || {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(b"hello")?;
        match socket.recv(&mut [0; 64]) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(true),
            Err(_) => Ok(false),
        }
    };
    inside(ns, send).unwrap()
}

/// Asks many questions at once: those that are dropped take their time.
pub(crate) fn all_at_once<Q: Sync, A: Send>(
    questions: &[Q],
    ask: impl Fn(&Q) -> A + Sync,
) -> Vec<A> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let threads: Vec<_> = questions
            .chunks(questions.len().div_ceil(96).max(1))
            .map(|some| scope.spawn(move || some.iter().map(ask).collect::<Vec<A>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Whoever connects from a namespace.
#[derive(Clone)]
struct End {
    name: String,
    ns: PathBuf,
    ips: Vec<IpAddr>,
}

impl End {
    /// The address by which it connects: a node has several.
    fn towards(&self, world: &World, to: IpAddr) -> Option<IpAddr> {
        if !self.name.starts_with("node:") {
            return self.ips.iter().copied().find(|own| Family::of(*own) == Family::of(to));
        }
        let said = world.sh(&self.ns, &format!("ip -o route get {to}"));
        let mut words = said.split_whitespace().skip_while(|word| *word != "src");
        words.nth(1).and_then(|word| word.parse().ok())
    }
}

fn ends(world: &World, pods: &[Pod]) -> Vec<End> {
    let pods = pods.iter().map(|pod| End {
        name: pod.label(),
        ns: world.netns(pod),
        ips: pod.ips.clone(),
    });
    let node = |name: String| {
        let object = world.client.get(&format!("/api/v1/nodes/{name}")).unwrap();
        let all = object["status"]["addresses"].as_array().unwrap().clone();
        let ips = all.iter().filter_map(|a| a["address"].as_str()?.parse().ok()).collect();
        End { ns: world.node_ns(&name), ips, name: format!("node:{name}") }
    };
    pods.chain(world.spec.node_names().into_iter().map(node)).collect()
}

/// What the evaluator goes by: the objects of the API.
fn judge_of(world: &World) -> Policies {
    let mut policies = Policies::default();
    for (path, api, kind) in [
        ("/api/v1/namespaces", "v1", "Namespace"),
        ("/api/v1/nodes", "v1", "Node"),
        ("/api/v1/pods", "v1", "Pod"),
        ("/apis/networking.k8s.io/v1/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
        (CLUSTER_POLICIES, "policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ] {
        let Ok(list) = world.client.get(path) else { continue };
        for mut object in list["items"].as_array().unwrap().clone() {
            object["apiVersion"] = api.into();
            object["kind"] = kind.into();
            Object::read(&object).unwrap().unwrap().put(&mut policies);
        }
    }
    policies
}

/// Compares what packets meet with what the evaluator says, from everybody to every pod.
#[track_caller]
pub(crate) fn truth(world: &World, pods: &[Pod], what: &str) -> usize {
    let judge = judge_of(world);
    let mut questions = Vec::new();
    for from in ends(world, pods) {
        for to in pods {
            for ip in &to.ips {
                let Some(own) = from.towards(world, *ip) else { continue };
                let own = &own;
                for transport in [
                    Transport::Port(Protocol::Tcp, 8080),
                    Transport::Port(Protocol::Tcp, 81),
                    Transport::Port(Protocol::Udp, 8080),
                    Transport::Port(Protocol::Udp, 53),
                    Transport::Port(Protocol::Sctp, FLOW),
                ] {
                    let parties: (Party, Party) = (judge.at(*own), judge.at(*ip));
                    let want = judge.judge(&parties.0, &parties.1, transport).allowed();
                    questions.push((from.clone(), to.label(), *ip, transport, want));
                }
            }
        }
    }
    let place = |pod: &Pod, ip: &IpAddr| (world.netns(pod), *ip, Ask::Sctp(FLOW));
    let places = pods.iter().flat_map(|pod| pod.ips.iter().map(move |ip| place(pod, ip)));
    let _answers = Answers::open(&places.collect()).unwrap();
    let found = all_at_once(&questions, |(from, _, ip, transport, want)| {
        let ask = || match transport {
            Transport::Port(Protocol::Tcp, port) => tcp(&from.ns, (*ip, *port).into()),
            Transport::Port(Protocol::Udp, port) => udp(&from.ns, (*ip, *port).into()),
            Transport::Port(Protocol::Sctp, port) => {
                reaches(&from.ns, None, *ip, Ask::Sctp(*port), SOON).unwrap()
            }
            Transport::Other => unreachable!(),
        };
        // On a busy machine an answer may be late: what is allowed gets another chance.
        ask() || *want && ask()
    });
    let wrong: Vec<String> = questions
        .iter()
        .zip(found)
        .filter(|((.., want), found)| want != found)
        .map(|((from, to, ip, transport, want), _)| {
            let so = if *want { "is dropped and should pass" } else { "passes and should not" };
            format!("{} -> {to} ({ip}) {transport}: {so}", from.name)
        })
        .collect();
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    questions.len()
}

pub(crate) fn namespace(world: &World, name: &str, labels: &Value) {
    let object = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels}});
    world.client.post("/api/v1/namespaces", &object).unwrap();
}

fn specs() -> [Spec; 3] {
    let causeway = causeway_lab::Plugin::Causeway;
    [
        dual(2, Attach::Routed, Road::Vxlan),
        dual(2, Attach::Bridge, Road::Direct),
        Spec { plugin: causeway, ..dual(2, Attach::Bridge, Road::Vxlan) },
    ]
}

/// The clauses that people write most, with what they meet on a node and across nodes.
fn policies_hold(spec: Spec) {
    with(spec, |world| {
        namespace(world, "other", &json!({"team": "blue"}));
        let mut pods = Vec::new();
        for node in ["node-1", "node-2"] {
            let n = &node[5..];
            pods.push(pod(world, &format!("server-{n}"), node, &json!({"app": "server"})));
            pods.push(pod(world, &format!("client-{n}"), node, &json!({"app": "client"})));
            pods.push(pod(world, &format!("other/blue-{n}"), node, &json!({"app": "client"})));
        }
        world.whole();
        assert!(truth(world, &pods, "no policies") > 400);
        for node in world.spec.node_names() {
            assert!(!world.on(&node, "nft list tables").contains("causeway_policy"), "{node}");
        }

        let server = json!({"matchLabels": {"app": "server"}});
        apply(world, "default", "closed", &json!({"podSelector": server}));
        settled(world, 1);
        truth(world, &pods, "nobody to the servers");
        let clients = json!({"podSelector": {"matchLabels": {"app": "client"}}});
        let spec = json!({"podSelector": server,
            "ingress": [{"from": [clients], "ports": [{"port": "web"}]}]});
        apply(world, "default", "clients", &spec);
        settled(world, 2);
        truth(world, &pods, "clients by name of port");
        let blue = json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}});
        let spec = json!({"podSelector": server,
            "ingress": [{"from": [blue], "ports": [{"protocol": "UDP", "port": 50, "endPort": 9000}]}]});
        apply(world, "default", "blue", &spec);
        settled(world, 3);
        truth(world, &pods, "a namespace by a range of UDP ports");
        let spec = json!({"podSelector": server,
            "ingress": [{"from": [blue], "ports": [{"protocol": "SCTP", "port": "flow"}]}]});
        apply(world, "default", "flow", &spec);
        settled(world, 4);
        truth(world, &pods, "a namespace by name of an SCTP port");
        remove(world, "default", "flow");
        remove(world, "default", "closed");
        remove(world, "default", "clients");
        let v4 = world.pod_cidr("node-2", Family::V4);
        let one = pods[4].ip(Family::V4).unwrap();
        let block = json!({"ipBlock": {"cidr": v4.to_string(), "except": [format!("{one}/32")]}});
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [block]}, {"ports": [{"protocol": "UDP", "port": 53}]}]});
        apply(world, "default", "out", &spec);
        settled(world, 2);
        truth(world, &pods, "egress to a block, and to a port of everybody");
        // A pod that changes its labels, and a namespace that does.
        let path = "/api/v1/namespaces/other";
        let mut object = world.client.get(path).unwrap();
        object["metadata"]["labels"] = json!({"team": "red"});
        world.client.put(path, &object).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        truth(world, &pods, "a namespace has other labels");
        remove(world, "default", "out");
        remove(world, "default", "blue");
        settled(world, 0);
        truth(world, &pods, "none any more");
        for node in world.spec.node_names() {
            assert!(!world.on(&node, "nft list tables").contains("causeway_policy"), "{node}");
        }
    });
}

#[test]
fn policies_hold_routed() {
    let [routed, ..] = specs();
    policies_hold(routed);
}

#[test]
fn policies_hold_at_the_classic_bridge() {
    let [_, classic, _] = specs();
    policies_hold(classic);
}

#[test]
fn policies_hold_at_the_bridge() {
    let [.., bridge] = specs();
    policies_hold(bridge);
}

// --- random policies ------------------------------------------------------------------------------

/// Small numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn some<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let n = self.below(most + 1);
        (0..n).map(|_| one(self)).collect()
    }

    fn selector(&mut self) -> Value {
        match self.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"app": *self.of(&["a", "b"])}}),
            2 => json!({"matchLabels": {"tier": *self.of(&["x", "y"])}}),
            _ => {
                let operator = *self.of(&["In", "NotIn"]);
                json!({"matchExpressions": [
                    {"key": "app", "operator": operator, "values": [*self.of(&["a", "b"])]}]})
            }
        }
    }

    fn peer(&mut self, blocks: &[String]) -> Value {
        match self.below(4) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
            _ => {
                let block = self.of(blocks).clone();
                let wide = if block.contains(':') { "::/0" } else { "0.0.0.0/0" };
                match self.below(2) {
                    0 => json!({"ipBlock": {"cidr": block}}),
                    _ => json!({"ipBlock": {"cidr": wide, "except": [block]}}),
                }
            }
        }
    }

    fn port(&mut self) -> Value {
        let any = ["TCP", "UDP", "SCTP"];
        match self.below(7) {
            0 => json!({"port": 8080}),
            1 => json!({"port": "web"}),
            2 => json!({"protocol": *self.of(&any), "port": 50, "endPort": 90}),
            3 => json!({"protocol": "UDP", "port": 53}),
            4 => json!({"protocol": "SCTP", "port": "flow"}),
            5 => json!({"protocol": *self.of(&any), "port": FLOW}),
            _ => json!({"protocol": *self.of(&any), "port": 60, "endPort": 9000}),
        }
    }

    fn network(&mut self, blocks: &[String]) -> Value {
        let mut spec = json!({"podSelector": self.selector()});
        let mut types = Vec::new();
        for (kind, list, key) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
            if self.below(3) == 0 {
                continue;
            }
            types.push(kind);
            spec[list] = json!(self.some(2, |dice| {
                let (peers, ports) = (dice.some(2, |d| d.peer(blocks)), dice.some(2, Self::port));
                json!({key: peers, "ports": ports})
            }));
        }
        spec["policyTypes"] = json!(types);
        spec
    }

    fn cluster(&mut self) -> Value {
        let pods = |dice: &mut Self| match dice.below(2) {
            0 => json!({"namespaces": dice.selector()}),
            _ => {
                json!({"pods": {"namespaceSelector": dice.selector(), "podSelector": dice.selector()}})
            }
        };
        let rules = |dice: &mut Self, key: &str| {
            dice.some(3, |dice| {
                let mut rule = json!({
                    "action": *dice.of(&["Accept", "Deny", "Pass"]), key: [pods(dice)],
                });
                let number = |port: u16| json!({"destinationPort": {"number": port}});
                match dice.below(4) {
                    0 => rule["protocols"] = json!([{"tcp": number(8080)}]),
                    1 => rule["protocols"] = json!([{"udp": {}}]),
                    2 => rule["protocols"] = json!([{"udp": number(53)}, {"sctp": number(FLOW)}]),
                    _ => {}
                }
                rule
            })
        };
        json!({
            "tier": *self.of(&["Admin", "Baseline"]), "priority": self.below(10),
            "subject": pods(self), "ingress": rules(self, "from"), "egress": rules(self, "to"),
        })
    }
}

/// Random policies of both kinds, changed at random: packets meet what the evaluator says, each time.
fn random_policies_hold(spec: Spec) {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(0) >> 16
    });
    let rounds = if full() { 40 } else { 6 };
    println!("CAUSEWAY_SEED={seed}");
    with(spec, |world| {
        let mut dice = Dice(seed);
        namespace(world, "x", &json!({"app": "a"}));
        namespace(world, "y", &json!({"tier": "y"}));
        let mut pods = Vec::new();
        for n in 0..7 {
            let labels = match n % 3 {
                0 => json!({"app": "a", "tier": "x"}),
                1 => json!({"app": "b"}),
                _ => json!({"tier": "y"}),
            };
            let (of, node) = (["x", "y"][n % 2], ["node-1", "node-2"][n / 2 % 2]);
            pods.push(pod(world, &format!("{of}/p{n}"), node, &labels));
        }
        world.whole();
        let mut blocks: Vec<String> = Vec::new();
        for node in ["node-1", "node-2"] {
            blocks.extend([Family::V4, Family::V6].map(|f| world.pod_cidr(node, f).to_string()));
        }
        blocks.extend(
            pods[0].ips.iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })),
        );
        causeway_lab::define_cluster_policies(&world.client).unwrap();
        let mut there: Vec<(String, String)> = Vec::new();
        let (mut made, mut asked) = (0, 0);
        for round in 0..rounds {
            // Some go, some come, some change.
            for _ in 0..=dice.below(2) {
                if !there.is_empty() && dice.below(2) == 0 {
                    let (path, name) = there.swap_remove(dice.below(there.len()));
                    world.client.delete(&format!("{path}/{name}")).unwrap();
                }
            }
            for _ in 0..=dice.below(3) {
                made += 1;
                let name = format!("p{made}");
                let (path, object) = match dice.below(3) {
                    0 => {
                        let object = json!({
                            "apiVersion": "policy.networking.k8s.io/v1alpha2",
                            "kind": "ClusterNetworkPolicy",
                            "metadata": {"name": name}, "spec": dice.cluster(),
                        });
                        (CLUSTER_POLICIES.to_owned(), object)
                    }
                    _ => {
                        let namespace = *dice.of(&["x", "y"]);
                        let object = policy(namespace, &name, &dice.network(&blocks));
                        (policies_path(namespace), object)
                    }
                };
                world.client.post(&path, &object).unwrap();
                there.push((path, name));
            }
            if let Some((path, name)) = there.first().filter(|_| dice.below(2) == 0) {
                let path = format!("{path}/{name}");
                let mut object = world.client.get(&path).unwrap();
                object["spec"] = match object["kind"] == "NetworkPolicy" {
                    true => dice.network(&blocks),
                    false => dice.cluster(),
                };
                world.client.put(&path, &object).unwrap();
            }
            settled(world, there.len());
            asked += truth(world, &pods, &format!("CAUSEWAY_SEED={seed}, round {round}"));
        }
        assert!(asked > rounds * 400, "{asked}");
    });
}

#[test]
fn random_policies_hold_routed() {
    let [routed, ..] = specs();
    random_policies_hold(routed);
}

#[test]
fn random_policies_hold_at_the_classic_bridge() {
    let [_, classic, _] = specs();
    random_policies_hold(classic);
}
