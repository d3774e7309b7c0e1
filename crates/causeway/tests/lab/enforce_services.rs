//! Policies of pods behind Services, with the rules that kube-proxy writes. What is judged is a connection: the pod
//! that answers and its own port, not the Service's, and who opened it, as it is seen on the pod's node.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;

use causeway_lab::{Pod, Road, Spec, inside};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::enforce::{SOON, all_at_once, apply, full, pod, remove, settled};
use crate::enforce_life::change;
use crate::kube_proxy::{self, Mode};
use crate::services::service;
use crate::world::{World, dual, with};

/// Who answered, and whom it sees.
#[derive(Clone, Debug)]
struct Answer {
    who: String,
    sees: IpAddr,
}

fn answer(text: &str) -> Option<Answer> {
    let (who, peer) = text.trim().split_once("; you are ")?;
    Some(Answer { who: who.to_owned(), sees: peer.parse::<SocketAddr>().ok()?.ip() })
}

fn by_tcp(to: SocketAddr) -> anyhow::Result<Option<Answer>> {
    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").and_then(|(_, body)| answer(body)))
}

fn by_udp(to: SocketAddr) -> anyhow::Result<Option<Answer>> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    let mut buffer = [0; 512];
    let n = socket.recv(&mut buffer)?;
    Ok(answer(&String::from_utf8_lossy(&buffer[..n])))
}

/// From somebody through a translation to a pod.
#[derive(Clone)]
struct Way {
    name: &'static str,
    from: PathBuf,
    to: SocketAddr,
    /// Who is to answer.
    by: &'static str,
}

/// Which of the ways are open, in the order of [`Stage::ways`].
type Open = [bool; 7];

struct Stage<'a> {
    world: &'a World,
    pods: &'a [Pod; 3],
    mode: Mode,
}

impl Stage<'_> {
    /// All of a family. Nodes' ports are those of node-1.
    fn ways(&self, family: Family) -> [Way; 7] {
        let world = self.world;
        let [near, far] = services(world, self.pods, family);
        let [back, _, front] = self.pods.each_ref().map(|pod| world.netns(pod));
        let outside = world.spec.dirs().netns("outside");
        let node = world.spec.node_addr("node-1", family).addr();
        let way = |name, from: &PathBuf, ip, port, by| Way {
            name,
            from: from.clone(),
            to: SocketAddr::new(ip, port),
            by,
        };
        let (one, two) = ("back-1 on node-1", "back-2 on node-2");
        [
            way("a pod to one of its node", &front, near.cluster_ip, near.port, one),
            way("a pod to one of another node", &front, far.cluster_ip, far.port, two),
            way("a pod to itself", &back, near.cluster_ip, near.port, one),
            way("a pod to another one of its kind", &back, far.cluster_ip, far.port, two),
            way("outside, as the node, to another node", &outside, node, far.node_port, two),
            way("outside, as the node, to the node", &outside, node, near.node_port, one),
            way("outside, as itself", &outside, node, PLAIN, one),
        ]
    }

    /// Asks by all ways, in both families, by TCP and by UDP.
    #[track_caller]
    fn expect(&self, what: &str, open: Open) -> BTreeMap<(Family, &'static str), IpAddr> {
        let mut questions = Vec::new();
        for family in Family::BOTH {
            for (way, open) in self.ways(family).into_iter().zip(open) {
                questions.push((family, way.clone(), "TCP", open));
                questions.push((family, way, "UDP", open));
            }
        }
        let answers = all_at_once(&questions, |(_, way, protocol, open)| {
            let ask = || {
                let said = inside(&way.from, || match *protocol {
                    "TCP" => by_tcp(way.to),
                    _ => by_udp(way.to),
                });
                said.ok().flatten()
            };
            // On a busy machine an answer may be late: what is allowed gets another chance.
            ask().or_else(|| if *open { ask() } else { None })
        });
        let (mut seen, mut wrong) = (BTreeMap::new(), Vec::new());
        for ((family, way, protocol, open), answer) in questions.iter().zip(answers) {
            let by = answer.as_ref().map(|answer| answer.who.as_str());
            if by != open.then_some(way.by) {
                wrong.push(format!("{}, {protocol} {}: {answer:?}", way.name, way.to));
            }
            seen.extend(answer.map(|answer| ((*family, way.name), answer.sees)));
        }
        assert!(wrong.is_empty(), "{:?}, {what}:\n{}", self.mode, wrong.join("\n"));
        seen
    }

    /// The rules of kube-proxy on all nodes, and one of node-1 that passes a port on to back-1 without
    /// masquerading, as for `externalTrafficPolicy: Local`.
    fn translate(&self) {
        let world = self.world;
        for family in Family::BOTH {
            let [near, far] = services(world, self.pods, family);
            for node in world.spec.node_names() {
                kube_proxy::write(world, &node, self.mode, family, &[&near, &far]);
            }
            let ip = if family == Family::V4 { "ip" } else { "ip6" };
            let node = world.spec.node_addr("node-1", family).addr();
            let to = SocketAddr::new(world.ip(&self.pods[0], family), 8080);
            let rule = |protocol| {
                format!(
                    "add rule {ip} plain pre {ip} daddr {node} {protocol} dport {PLAIN} dnat to {to}"
                )
            };
            world.on(
                "node-1",
                &format!(
                    "nft -f - <<'EOF'\nadd table {ip} plain\n\
                     add chain {ip} plain pre {{ type nat hook prerouting priority -105; }}\n{}\n{}\nEOF",
                    rule("tcp"),
                    rule("udp")
                ),
            );
        }
    }

    fn translate_no_more(&self) {
        for node in self.world.spec.node_names() {
            kube_proxy::remove(self.world, &node, self.mode);
        }
        self.world.on("node-1", "nft delete table ip plain; nft delete table ip6 plain");
    }
}

/// A port that node-1 passes on by a rule of its own.
const PLAIN: u16 = 30099;

/// In front of back-1 and of back-2: port 80 for their port 8080.
fn services(world: &World, pods: &[Pod; 3], family: Family) -> [kube_proxy::Service; 2] {
    let [one, two, _] = pods;
    [service(world, family, 20, 30020, &[one]), service(world, family, 21, 30021, &[two])]
}

fn ports(port: u16) -> Value {
    json!([{"port": port}, {"protocol": "UDP", "port": port}])
}

fn block(ip: &IpAddr) -> Value {
    json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}})
}

fn behind(stage: &Stage<'_>) {
    let world = stage.world;
    stage.translate();
    let seen = stage.expect("no policies", [true; 7]);
    let as_seen = |way| Family::BOTH.map(|family| seen[&(family, way)]);
    let nodes_own = as_seen("outside, as the node, to another node");
    let own = as_seen("outside, as itself");
    let all = world.on("node-1", "ip -o addr show scope global");
    for (family, (node, outside)) in Family::BOTH.iter().zip(nodes_own.iter().zip(&own)) {
        assert!(all.contains(&format!(" {node}/")), "{node} is none of node-1: {all}");
        assert_eq!(*outside, Spec::outside(*family).0.addr());
    }
    let portals: Vec<IpAddr> = Family::BOTH
        .iter()
        .flat_map(|family| services(world, stage.pods, *family).map(|one| one.cluster_ip))
        .collect();

    let select = |app: &str| json!({"matchLabels": {"app": app}});
    // Each for both directions: answers pass because of who opened the connection.
    let both = ["Ingress", "Egress"];
    let from_front = |port| {
        json!({"podSelector": select("back"), "policyTypes": both,
            "ingress": [{"from": [{"podSelector": select("front")}], "ports": ports(port)}]})
    };
    let from_blocks = |ips: &[IpAddr]| {
        let from: Vec<Value> = ips.iter().map(block).collect();
        json!({"podSelector": select("back"), "policyTypes": both,
            "ingress": [{"from": from, "ports": ports(8080)}]})
    };
    let to = |peers: Value, ports: Value| {
        json!({"podSelector": select("front"), "policyTypes": both,
            "egress": [{"to": peers, "ports": ports}]})
    };
    let backs = json!([{"podSelector": select("back")}]);
    let blocks: Vec<Value> = portals.iter().map(block).collect();
    let closed = json!({"podSelector": select("back"), "policyTypes": both});
    let (y, n) = (true, false);
    let steps = [
        ("to the pods' port", from_front(8080), [y, y, y, n, n, n, n]),
        ("to the Services' port", from_front(80), [n, n, y, n, n, n, n]),
        ("out to the pods", to(backs.clone(), ports(8080)), [y; 7]),
        ("out to the pods at the Services' port", to(backs, ports(80)), [n, n, y, y, y, y, y]),
        ("out to the Services' addresses", to(json!(blocks), json!([])), [n, n, y, y, y, y, y]),
        ("closed", closed, [n, n, y, n, n, n, n]),
        // Behind the translation of another node all are that node; on the pod's own it is known who they are.
        ("from the node", from_blocks(&nodes_own), [n, n, y, n, y, n, n]),
        ("from outside", from_blocks(&own), [n, n, y, n, n, y, y]),
    ];
    for (i, (what, spec, open)) in steps.into_iter().enumerate() {
        match i {
            0 => apply(world, "default", "p", &spec),
            _ => change(world, "p", &spec),
        }
        settled(world, 1);
        stage.expect(what, open);
    }
    remove(world, "default", "p");
    settled(world, 0);
    stage.translate_no_more();
}

fn policies_behind_services(spec: Spec, usual: Mode) {
    with(spec, |world| {
        let one =
            |(name, node, app): (&str, &str, &str)| pod(world, name, node, &json!({"app": app}));
        let pods = [
            ("back-1", "node-1", "back"),
            ("back-2", "node-2", "back"),
            ("front", "node-1", "front"),
        ];
        let pods = pods.map(one);
        world.whole();
        for mode in Mode::BOTH.into_iter().filter(|mode| full() || *mode == usual) {
            behind(&Stage { world, pods: &pods, mode });
        }
    });
}

#[test]
fn policies_behind_services_routed() {
    policies_behind_services(dual(2, Attach::Routed, Road::Vxlan), Mode::Nftables);
}

#[test]
fn policies_behind_services_at_the_bridge() {
    policies_behind_services(dual(2, Attach::Bridge, Road::Direct), Mode::Iptables);
}
