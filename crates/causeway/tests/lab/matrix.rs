//! Every attachment, road, family, underlay and MTU: all pods reach each other without translation,
//! the outside world sees their node, full-size packets pass.
//!
//! CAUSEWAY_MATRIX=full runs all combinations, else a selection runs that covers every pair.

use causeway_lab::{Families, Plugin, Pod, Road, Spec, Topology};
use causeway_types::state::Attach;
use causeway_types::{Family, Mtu};

use crate::pairs::covering;
use crate::world::{World, isolated};

const ATTACH: [(Attach, Plugin); 3] = [
    (Attach::Routed, Plugin::Causeway),
    (Attach::Bridge, Plugin::Causeway),
    (Attach::Bridge, Plugin::Bridge),
];
const ROADS: [(Road, Topology); 5] = [
    (Road::Direct, Topology::Flat),
    (Road::Vxlan, Topology::Flat),
    (Road::Auto, Topology::Flat),
    (Road::Vxlan, Topology::TwoSubnets),
    (Road::Auto, Topology::TwoSubnets),
];
const FAMILIES: [Families; 3] = [Families::Ipv4, Families::Ipv6, Families::Dual];
const MTUS: [u32; 3] = [1500, 1400, 9000];
/// Whether iptables sees bridged packets (br_netfilter), as on most Kubernetes nodes.
const BRIDGE_NF: [bool; 2] = [false, true];

type Row = [usize; 5];

fn selection() -> Vec<Row> {
    let mut all = Vec::new();
    for a in 0..ATTACH.len() {
        for r in 0..ROADS.len() {
            for f in 0..FAMILIES.len() {
                for m in 0..MTUS.len() {
                    for n in 0..BRIDGE_NF.len() {
                        all.push([a, r, f, m, n]);
                    }
                }
            }
        }
    }
    match std::env::var("CAUSEWAY_MATRIX").as_deref() {
        Ok("full") => all,
        _ => covering(&all),
    }
}

/// Runs the rows of one attachment.
fn run(attach: usize) {
    let rows: Vec<Row> = selection().into_iter().filter(|r| r[0] == attach).collect();
    assert!(rows.len() >= ROADS.len());
    for row in rows {
        let [a, r, f, m, n] = row;
        let ((attach, plugin), (road, topology)) = (ATTACH[a], ROADS[r]);
        let spec = Spec {
            name: "matrix".into(),
            nodes: 3,
            attach,
            plugin,
            road,
            families: FAMILIES[f],
            topology,
            mtu: Mtu::new(MTUS[m]).unwrap(),
            ..Spec::default()
        };
        println!(
            "{attach:?} by {plugin:?}, {road:?} {topology:?}, {:?}, MTU {}, bridge-nf {}",
            spec.families, spec.mtu, BRIDGE_NF[n]
        );
        isolated(move || scenario(spec, BRIDGE_NF[n]));
    }
}

#[test]
fn routed() {
    run(0);
}

#[test]
fn bridge() {
    run(1);
}

#[test]
fn bridge_by_the_classic_configuration() {
    run(2);
}

fn scenario(spec: Spec, bridge_nf: bool) {
    let world = World::up(spec, &crate::world::binaries());
    if bridge_nf && !std::path::Path::new("/proc/sys/net/bridge").exists() {
        println!("skipped: there is no module br_netfilter: iptables sees no bridged packets");
    } else if bridge_nf {
        for node in world.spec.node_names() {
            world.on(
                &node,
                "for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do echo 1 > $f; done",
            );
        }
    }
    let pods = world.pods();
    world.all_reach_all();
    for family in world.spec.families.list() {
        no_translation(&world, &pods, *family);
        outside(&world, &pods, *family);
        full_size(&world, &pods, *family);
    }
    at_rest(&world);
    let name = world.spec.name.clone();
    drop(world);
    assert_eq!(causeway_lab::residue(&name), Vec::<String>::new());
}

/// The first pod to all others: same node and across.
fn no_translation(world: &World, pods: &[Pod], family: Family) {
    let from = &pods[0];
    for to in &pods[1..] {
        let body = world.fetch(&world.netns(from), world.ip(to, family)).unwrap();
        let seen = std::net::SocketAddr::new(world.ip(from, family), 0).to_string();
        let seen = seen.trim_end_matches('0');
        assert!(body.contains(&format!("you are {seen}")), "{} -> {}: {body}", from.name, to.name);
        assert!(body.starts_with(&format!("{} on {}", to.name, to.node)), "{body}");
    }
}

fn outside(world: &World, pods: &[Pod], family: Family) {
    for pod in pods {
        let body = world.fetch(&world.netns(pod), Spec::outside(family).0.addr()).unwrap();
        let node = world.spec.node_addr(&pod.node, family).addr();
        let seen = std::net::SocketAddr::new(node, 0).to_string();
        assert!(body.contains(&format!("you are {}", seen.trim_end_matches('0'))), "{body}");
    }
}

/// What the agent has to find out by itself.
fn expected_mtu(spec: &Spec) -> u32 {
    let outer = if spec.families == Families::Ipv6 { 70 } else { 50 };
    spec.mtu.get() - if spec.road == Road::Direct { 0 } else { outer }
}

fn full_size(world: &World, pods: &[Pod], family: Family) {
    let mtu = expected_mtu(&world.spec);
    for pod in pods {
        let line = world.sh(&world.netns(pod), "ip -o link show eth0");
        assert!(line.contains(&format!("mtu {mtu} ")), "{}: {line}", pod.name);
    }
    let headers = if family == Family::V4 { 28 } else { 48 };
    let from = world.netns(&pods[0]);
    for to in &pods[1..] {
        let ip = world.ip(to, family);
        for size in [mtu - headers, 3 * mtu] {
            assert!(world.reaches(&from, ip, size as usize), "{} to {} {ip}", size, to.name);
        }
    }
}

/// Nothing is left to do, nothing was repaired: the agent and the plugins want the same.
fn at_rest(world: &World) {
    world.whole();
    for node in world.spec.node_names() {
        let plan = causeway_agent::client::plan(&world.socket(&node)).unwrap();
        assert!(plan.lines.is_empty() && plan.conflicts.is_empty(), "{node}: {plan:?}");
        let status = world.status(&node).unwrap();
        assert_eq!(status.repairs, 0, "{node}: {status:?}");
        assert_eq!(status.strangers, Vec::<String>::new());
    }
}
