//! The tunnel takes packets of peers and of nobody else, and no pod can put anything into it.

use causeway_desired::input::{Config, Road};
use causeway_types::{Mac, names};

use crate::node::{Node, Stack, each_stack, run, with};
use crate::world::{
    self, STRANGER, counted, families, inside, send_raw, send_udp, surround, vxlan,
};

const NODE: [&str; 2] = ["192.168.1.11", "fd00:1::11"];
const NEAR: [&str; 2] = ["192.168.1.12", "fd00:1::12"];
const FAR: [&str; 2] = ["192.168.2.13", "fd00:2::13"];
const FAR_POD: [&str; 2] = ["10.244.3.7", "fd00:10:244:3::7"];
const NEAR_POD: [&str; 2] = ["10.244.2.7", "fd00:10:244:2::7"];
const OWN: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
const PORT: u16 = names::VXLAN_PORT;

/// Packets that came out of the tunnel.
fn received() -> u64 {
    let text = run("ip -s link show cw-vxlan");
    let line = text.lines().skip_while(|l| !l.contains("RX:")).nth(1).expect("counters");
    line.split_whitespace().nth(1).expect("packets").parse().expect("a number")
}

fn device() -> Mac {
    let text = run("ip link show cw-vxlan");
    text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// The family that the tunnel's outer packets have.
fn outer(node: &Node) -> usize {
    families(node.stack)[0]
}

#[test]
fn a_stranger_on_the_underlay_injects_nothing() {
    each_stack(|node| {
        surround(node);
        node.start_with(node.three());
        let (mac, vni, out) = (device(), Config::default().vni.get(), outer(node));
        for f in families(node.stack) {
            let packet = vxlan(vni, mac, FAR_POD[f], OWN[f]);
            let refused = || counted("inet causeway tunnel", "from no peer");
            let (before, was) = (refused(), received());
            // node-2 is a node, but none that sends through the tunnel.
            for from in [STRANGER[out], NEAR[out]] {
                inside("world", || send_udp(from, NODE[out], PORT, &packet));
            }
            assert_eq!(refused() - before, 2);
            assert_eq!(received(), was, "nothing of it comes out of the tunnel");
            // The same packet from the peer is taken: the test would see it.
            inside("world", || send_udp(FAR[out], NODE[out], PORT, &packet));
            assert_eq!(received(), was + 1);
            let refused = || counted("inet causeway tunnel", "of no peer's pod");
            assert_eq!(refused(), 0);
            for source in [NEAR_POD[f], STRANGER[f], OWN[f]] {
                let before = refused();
                let packet = vxlan(vni, mac, source, OWN[f]);
                inside("world", || send_udp(FAR[out], NODE[out], PORT, &packet));
                assert_eq!(refused() - before, 1, "{source} is no pod of a peer behind the tunnel");
            }
            run("nft flush chain inet causeway tunnel");
            crate::node::eventually("the filter", crate::node::REPAIR, || {
                let text = run("nft list chain inet causeway tunnel");
                if text.contains("no peer's pod") { Ok(()) } else { Err(text) }
            });
        }
    });
}

/// Counts tunnel packets that reach the world, before anything there can drop them.
const SEEN: &str = "table inet seen { chain c { type filter hook prerouting priority -400; \
    udp dport 8472 counter comment \"tunnelled\"; \
    meta l4proto { 4, 41 } counter comment \"tunnelled\"; }; }";

fn watch_world() {
    let done = std::process::Command::new("ip")
        .args(["netns", "exec", "world", "nft", SEEN])
        .status()
        .expect("nft");
    assert!(done.success());
}

fn seen() -> u64 {
    inside("world", || counted("inet seen c", "tunnelled"))
}

#[test]
fn a_pod_tunnels_to_no_node() {
    each_stack(|node| {
        surround(node);
        world::world_knows_pods(node);
        watch_world();
        node.start_with(node.three());
        let pod = world::pod(node, "c1", 5);
        for f in families(node.stack) {
            let own = pod.addresses[families(node.stack).iter().position(|x| *x == f).unwrap()];
            let own = own.addr().to_string();
            for to in [NODE[f], NEAR[f], FAR[f]] {
                let before = counted("inet causeway to_node", "may not tunnel");
                inside("c1", || {
                    send_udp(&own, to, PORT, &[8; 60]);
                    send_raw(to, 4, &[0x45; 40]);
                    send_raw(to, 41, &[0x60; 60]);
                });
                let dropped = counted("inet causeway to_node", "may not tunnel") - before;
                assert_eq!(dropped, 3, "from {own} to {to}");
            }
            assert_eq!(seen(), 0, "nothing gets out");
            assert_eq!(received(), 0);
            // To somebody who is no node it is a packet like any other.
            let before = seen();
            inside("c1", || send_udp(&own, STRANGER[f], PORT, &[8; 60]));
            assert_eq!(seen() - before, 1);
            run("ip netns exec world nft flush table inet seen");
            run("ip netns exec world nft delete table inet seen");
            watch_world();
        }
    });
}

/// Packets inside packets are nobody's business on any road: an unconfigured `tunl0` of another
/// program would take them.
#[test]
fn a_pod_on_direct_roads_tunnels_to_no_node_either() {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        let config = Config { road: Road::Direct, ..Config::default() };
        with(stack, config, |node| {
            surround(node);
            node.start_with(node.three());
            world::pod(node, "c1", 5);
            for f in families(node.stack) {
                for to in [NODE[f], NEAR[f]] {
                    let before = counted("inet causeway to_node", "may not tunnel");
                    inside("c1", || {
                        send_raw(to, 4, &[0x45; 40]);
                        send_raw(to, 41, &[0x60; 60]);
                    });
                    let now = counted("inet causeway to_node", "may not tunnel");
                    assert_eq!(now - before, 2, "{to}");
                }
            }
        });
    }
}
