//! Pods as clients and as backends of Services, behind the rules that kube-proxy writes: in iptables
//! mode (through iptables-nft) and in nftables mode, for both families.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use causeway_lab::{Families, Pod, Road, Spec, inside};
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::kube_proxy::{self, Endpoint, Service};
use crate::world::{World, dual, with};

const NODES: [&str; 2] = ["node-1", "node-2"];

fn cluster_ip(family: Family, n: u8) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.96.0.{n}"),
        Family::V6 => format!("fd00:10:96::{n}"),
    };
    text.parse().unwrap()
}

/// Who may be seen by a backend.
#[derive(Debug)]
enum Seen {
    /// This address alone.
    Is(IpAddr),
    /// An address of this node: the packet was masqueraded there.
    Node(&'static str),
}

struct Stage<'a> {
    world: &'a World,
    family: Family,
    mode: kube_proxy::Mode,
    wrong: &'a mut Vec<String>,
}

impl Stage<'_> {
    /// All addresses of a node in the family.
    fn addresses(&self, node: &str) -> Vec<IpAddr> {
        let text = self.world.on(node, "ip -o addr show scope global");
        let words = text.lines().filter_map(|l| l.split_whitespace().nth(3));
        let all = words.map(|w| w.split('/').next().unwrap().parse::<IpAddr>().unwrap());
        all.filter(|a| Family::of(*a) == self.family).collect()
    }

    /// Asks once by TCP and once by UDP; notes what is not as it should be.
    fn ask(&mut self, what: &str, from: &Path, to: SocketAddr, backend: &str, seen: &Seen) {
        let text = inside(from, || causeway_lab::fetch(&format!("http://{to}/")));
        self.judge(&format!("{what}, TCP {to}"), text, backend, seen);
        let text = inside(from, || udp(to));
        self.judge(&format!("{what}, UDP {to}"), text, backend, seen);
    }

    fn judge(&mut self, what: &str, said: anyhow::Result<String>, backend: &str, seen: &Seen) {
        let what = format!("{:?}, {}: {what}", self.mode, self.family);
        let text = match said {
            Ok(text) => text,
            Err(error) => return self.wrong.push(format!("{what}: {error:#}")),
        };
        let peer = text
            .trim()
            .strip_prefix(&format!("{backend}; you are "))
            .and_then(|rest| rest.parse::<SocketAddr>().ok());
        let good = peer.is_some_and(|peer| match seen {
            Seen::Is(ip) => peer.ip() == *ip,
            Seen::Node(node) => self.addresses(node).contains(&peer.ip()),
        });
        if !good {
            self.wrong.push(format!("{what}: {text:?}, not {backend} that sees {seen:?}"));
        }
    }
}

/// A datagram and its answer.
fn udp(to: SocketAddr) -> anyhow::Result<String> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(b"hello\n")?;
    let mut buffer = [0; 512];
    let n = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..n]);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

pub(crate) fn service(
    world: &World,
    family: Family,
    n: u8,
    node_port: u16,
    pods: &[&Pod],
) -> Service {
    let endpoint = |pod: &&Pod| Endpoint { ip: world.ip(pod, family), port: 8080 };
    Service {
        name: format!("s{n}"),
        cluster_ip: cluster_ip(family, n),
        port: 80,
        node_port,
        endpoints: pods.iter().map(endpoint).collect(),
    }
}

/// What the administrators of nodes set, one after the other: whether bridged packets are handed to
/// iptables (kubeadm asks for it), and the reverse path filter, strict as some distributions have it.
const SETTINGS: [&str; 2] = ["1", "0"];

fn set(world: &World, node: &str, value: &str) {
    world.on(
        node,
        &format!(
            "for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables /proc/sys/net/ipv4/conf/all/rp_filter; do \
             [ ! -e $f ] || echo {value} > $f; done"
        ),
    );
}

fn services(spec: Spec) {
    with(spec, |world| {
        let pods = world.pods();
        for value in SETTINGS {
            NODES.iter().for_each(|node| set(world, node, value));
            behind_kube_proxy(world, &pods, value);
        }
    });
}

fn behind_kube_proxy(world: &World, pods: &[Pod], setting: &str) {
    let pod = |name: &str| pods.iter().find(|p| p.name == name).unwrap();
    let mut wrong = Vec::new();
    for mode in kube_proxy::Mode::BOTH {
        for family in Families::Dual.list() {
            let one = service(world, *family, 20, 30020, &[pod("a1")]);
            let two = service(world, *family, 21, 30021, &[pod("a1"), pod("b2")]);
            for node in ["cp"].iter().chain(&NODES) {
                kube_proxy::write(world, node, mode, *family, &[&one, &two]);
            }
            let mut stage = Stage { world, family: *family, mode, wrong: &mut wrong };
            let node_ip = |node: &str| world.spec.node_addr(node, *family).addr();
            clients(&mut stage, pods, &one);
            node_ports(&mut stage, pods, &one, node_ip);
            spread(&mut stage, pod("b1"), &two);
            large(&mut stage, pod("a2"), &one);
        }
        for node in ["cp"].iter().chain(&NODES) {
            kube_proxy::remove(world, node, mode);
        }
    }
    assert!(
        wrong.is_empty(),
        "bridge-nf and rp_filter {setting}, {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Pods and nodes ask by the address of the Service, whose backend is `a1` on node-1.
fn clients(stage: &mut Stage<'_>, pods: &[Pod], one: &Service) {
    let (world, family) = (stage.world, stage.family);
    let to = SocketAddr::new(one.cluster_ip, one.port);
    for pod in pods {
        let seen = match pod.name.as_str() {
            // A pod that is its own backend would answer itself past the node.
            "a1" => Seen::Node("node-1"),
            _ => Seen::Is(world.ip(pod, family)),
        };
        let what = format!("{} to the Service", pod.name);
        stage.ask(&what, &world.netns(pod), to, "a1 on node-1", &seen);
    }
    for node in ["cp", "node-1", "node-2"] {
        let what = format!("{node} to the Service");
        stage.ask(&what, &world.node_ns(node), to, "a1 on node-1", &Seen::Node(node));
    }
}

/// The world outside, other nodes, the node itself and pods ask by the port of a node.
fn node_ports(
    stage: &mut Stage<'_>,
    pods: &[Pod],
    one: &Service,
    node_ip: impl Fn(&str) -> IpAddr,
) {
    let world = stage.world;
    for node in NODES {
        let to = SocketAddr::new(node_ip(node), one.node_port);
        for from in ["outside", "cp", "node-1", "node-2"] {
            let ns = world.spec.dirs().netns(from);
            // On the node that asks the packet is turned away already.
            let seen = match NODES.into_iter().find(|n| *n == from) {
                Some(asks) if asks == node => Seen::Node(asks),
                _ => Seen::Node(node),
            };
            stage.ask(&format!("{from} to the port of {node}"), &ns, to, "a1 on node-1", &seen);
        }
        for pod in pods {
            let what = format!("{} to the port of {node}", pod.name);
            stage.ask(&what, &world.netns(pod), to, "a1 on node-1", &Seen::Node(node));
        }
    }
}

/// Of two backends, on two nodes, both are asked.
fn spread(stage: &mut Stage<'_>, from: &Pod, two: &Service) {
    let ns = stage.world.netns(from);
    let url = format!("http://{}/", SocketAddr::new(two.cluster_ip, two.port));
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..40 {
        match inside(&ns, || causeway_lab::fetch(&url)) {
            Ok(text) => names.extend(text.split(';').next().map(str::to_owned)),
            Err(error) => stage.wrong.push(format!("{:?}: {url}: {error:#}", stage.mode)),
        }
        if names.len() == 2 {
            return;
        }
    }
    stage.wrong.push(format!("{:?}: of two backends only {names:?} answered", stage.mode));
}

/// Full segments pass, in both directions, across nodes.
fn large(stage: &mut Stage<'_>, from: &Pod, one: &Service) {
    let (world, bytes) = (stage.world, 300_000);
    let to = SocketAddr::new(one.cluster_ip, one.port);
    match world.echoes_at(&world.netns(from), to, bytes) {
        Ok(n) if n == bytes => {}
        other => stage.wrong.push(format!("{:?}: {other:?} of {bytes} bytes", stage.mode)),
    }
}

#[test]
fn routed_pods_behind_kube_proxy_in_a_tunnel() {
    services(dual(2, Attach::Routed, Road::Vxlan));
}

#[test]
fn routed_pods_behind_kube_proxy_on_direct_roads() {
    services(dual(2, Attach::Routed, Road::Direct));
}

#[test]
fn bridged_pods_behind_kube_proxy_in_a_tunnel() {
    services(dual(2, Attach::Bridge, Road::Vxlan));
}

#[test]
fn bridged_pods_behind_kube_proxy_on_direct_roads() {
    services(dual(2, Attach::Bridge, Road::Direct));
}
