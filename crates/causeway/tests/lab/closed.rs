//! Tunnels are closed: encapsulated packets are taken from peers alone, and no pod can send them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use causeway_lab::{Families, Pod, Road, Spec};
use causeway_types::state::Attach;
use causeway_types::{Family, Mac, Vni};

use crate::packets::{Ear, ip_udp, send_raw, send_udp, vxlan};
use crate::world::{World, with};

const PORT: u16 = 9999;
const QUIET: Duration = Duration::from_millis(300);
const HEARD: Duration = Duration::from_secs(3);

fn spec(attach: Attach, families: Families) -> Spec {
    Spec { nodes: 2, attach, road: Road::Vxlan, families, ..Spec::default() }
}

const KINDS: [(Attach, Families); 4] = [
    (Attach::Routed, Families::Ipv4),
    (Attach::Bridge, Families::Ipv6),
    (Attach::Routed, Families::Dual),
    (Attach::Bridge, Families::Dual),
];

/// A VXLAN packet to node-2 that holds a datagram from a pod of node-1 to one of node-2.
fn forged(world: &World, from: &Pod, to: &Pod, family: Family) -> Vec<u8> {
    let inner = ip_udp(world.ip(from, family), world.ip(to, family), PORT, b"forged");
    vxlan(Vni::DEFAULT, vtep(world), &inner)
}

/// The MAC of node-2's tunnel device.
fn vtep(world: &World) -> Mac {
    let line = world.on("node-2", "ip -br link show cw-vxlan");
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

fn ear(world: &World, pod: &Pod, family: Family) -> Ear {
    Ear::udp(&world.netns(pod), world.ip(pod, family), PORT)
}

/// A host on the underlay that is no node, with an address of each family.
fn stranger(world: &World) -> std::path::PathBuf {
    let ns = world.spec.dirs().netns("stranger");
    causeway_kernel::netns::create_named(&ns).unwrap();
    let net = world.spec.dirs().netns("net");
    let name = ns.file_name().unwrap().to_string_lossy().into_owned();
    world.sh(
        &net,
        &format!(
            "ip link add stranger type veth peer name eth0 netns {name} && \
         ip link set stranger master sw1 up && \
         ip netns exec {name} sysctl -qw net.ipv6.conf.all.accept_dad=0 && \
         ip -n {name} link set eth0 up && \
         ip -n {name} addr add 192.168.1.99/24 dev eth0 && \
         ip -n {name} addr add fd00:192:168:1::99/64 dev eth0 nodad"
        ),
    );
    ns
}

/// Only the outer family that the tunnel uses: the first of the lab.
fn outer(world: &World) -> IpAddr {
    world.spec.node_addr("node-2", world.spec.families.list()[0]).addr()
}

#[test]
fn only_peers_may_send_into_the_tunnel() {
    for (attach, families) in KINDS {
        with(spec(attach, families), |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            let stranger = stranger(world);
            let to = SocketAddr::new(outer(world), 8472);
            for family in families.list() {
                let packet = forged(world, &a, &b, *family);
                let ear = ear(world, &b, *family);
                send_udp(&world.node_ns("node-1"), to, &packet).unwrap();
                assert!(
                    ear.hears(HEARD),
                    "a peer's packet must arrive, or this test shows nothing"
                );
                send_udp(&stranger, to, &packet).unwrap();
                assert!(!ear.hears(QUIET), "{attach:?} {family}: a stranger's packet arrived");
                // A packet from the peer, but of nobody's pod.
                let nobody = match family {
                    Family::V4 => "198.51.100.7".parse().unwrap(),
                    Family::V6 => "2001:db8::7".parse().unwrap(),
                };
                let inner = ip_udp(nobody, world.ip(&b, *family), PORT, b"forged");
                let packet = vxlan(Vni::DEFAULT, vtep(world), &inner);
                send_udp(&world.node_ns("node-1"), to, &packet).unwrap();
                assert!(
                    !ear.hears(QUIET),
                    "{attach:?} {family}: a packet of no peer's pod arrived"
                );
            }
        });
    }
}

#[test]
fn no_pod_may_send_into_the_tunnel() {
    for (attach, families) in KINDS {
        with(spec(attach, families), |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            let c = world.pod("c", "node-2");
            for family in families.list() {
                let packet = forged(world, &a, &b, *family);
                let ear = ear(world, &b, *family);
                // By the nodes' addresses on the underlay, and by those inside the cluster.
                for node in ["node-1", "node-2"] {
                    let targets = world.spec.families.list().iter().flat_map(|f| {
                        let cidr: ipnet::IpNet = world.pod_cidr(node, *f);
                        let gateway = cidr.hosts().find(|h| *h != cidr.network()).unwrap();
                        [world.spec.node_addr(node, *f).addr(), gateway]
                    });
                    for to in targets.collect::<Vec<_>>() {
                        for pod in [&a, &c] {
                            // The kernel may refuse outright where the pod has no such family.
                            let _ = send_udp(&world.netns(pod), SocketAddr::new(to, 8472), &packet);
                            assert!(!ear.hears(QUIET), "{attach:?} {family}: {} to {to}", pod.name);
                        }
                    }
                }
            }
        });
    }
}

/// IP protocols 4 and 41 are tunnels, too, for whom loads the modules.
#[test]
fn no_pod_sends_packets_inside_packets() {
    for (attach, families) in [(Attach::Routed, Families::Dual), (Attach::Bridge, Families::Dual)] {
        with(spec(attach, families), |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            for family in families.list() {
                let inner = ip_udp(world.ip(&a, *family), world.ip(&b, *family), PORT, b"forged");
                for node in ["node-1", "node-2"] {
                    let to = world.spec.node_addr(node, *family).addr();
                    // 253 is for experiments (RFC 3692): what else passes.
                    for (protocol, arrives) in [(253, true), (4, false), (41, false)] {
                        let ear = Ear::raw(&world.node_ns(node), to, protocol);
                        send_raw(&world.netns(&a), to, protocol, &inner).unwrap();
                        let wait = if arrives { HEARD } else { QUIET };
                        assert_eq!(ear.hears(wait), arrives, "{attach:?}: {protocol} to {to}");
                    }
                }
            }
        });
    }
}

/// A pod sends with its own addresses and its own MAC, whatever it sets.
#[test]
fn a_pod_sends_only_as_itself() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(spec(attach, Families::Dual), |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            let c = world.pod("c", "node-1");
            let ns = world.netns(&a);
            for family in Families::Dual.list() {
                let own = world.ip(&a, *family);
                let other = world.ip(&c, *family);
                let length = family.bits();
                for to in [world.ip(&b, *family), world.ip(&c, *family)] {
                    assert!(world.reaches(&ns, to, 56), "{attach:?}: {own} to {to}");
                }
                // In the name of another pod, and of nobody.
                let nobody = if *family == Family::V4 { "198.51.100.7" } else { "2001:db8::7" };
                for source in [nobody.to_owned(), other.to_string()] {
                    let ear = ear(world, &b, *family);
                    world.sh(
                        &ns,
                        &format!(
                            "ip addr add {source}/{length} dev eth0 nodad 2>/dev/null || \
                        ip addr add {source}/{length} dev eth0"
                        ),
                    );
                    let from: IpAddr = source.parse().unwrap();
                    let to = SocketAddr::new(world.ip(&b, *family), PORT);
                    causeway_lab::inside(&ns, || {
                        let socket = std::net::UdpSocket::bind(SocketAddr::new(from, 0))?;
                        socket.send_to(b"spoofed", to)?;
                        Ok(())
                    })
                    .unwrap();
                    assert!(!ear.hears(QUIET), "{attach:?}: {source} got through");
                    world.sh(&ns, &format!("ip addr del {source}/{length} dev eth0"));
                }
                let ear = ear(world, &b, *family);
                send_udp(&ns, SocketAddr::new(world.ip(&b, *family), PORT), b"mine").unwrap();
                assert!(ear.hears(HEARD), "{attach:?}: its own address must get through");
            }
            world.sh(&ns, "ip link set eth0 address 02:00:00:00:00:77");
            for to in [world.ip(&b, Family::V4), world.ip(&b, Family::V6)] {
                let sent = causeway_lab::ping(&ns, to, 1, 56, QUIET);
                assert!(!sent.is_ok_and(|t| !t.is_empty()), "{attach:?}: another MAC got through");
            }
        });
    }
}
