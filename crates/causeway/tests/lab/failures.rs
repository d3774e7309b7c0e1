//! Failures that users of pod networks meet in the field, recreated over several nodes. Others are in
//! the modules that they belong to: 9 and 26 in `cluster`, 11 in `life`, 18 and 19 in `repair`, 28 and
//! 36 in `matrix`.

use std::time::Duration;

use causeway_lab::{Families, Road, Spec};
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::world::{PATIENCE, World, dual, eventually, with};

/// A node that rejoins has the tunnel MAC that its peers know: it is derived from its name.
#[test]
fn failure_10_a_node_rejoins_with_a_new_tunnel_device() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        let mac = world.on("node-2", "cat /dev/null; ip -br link show cw-vxlan | awk '{print $3}'");
        // While the agents are down, so that nobody could tell anybody.
        for node in ["node-1", "node-2"] {
            world.agent(node, "stop");
        }
        world.on("node-2", "ip link del cw-vxlan");
        world.agent("node-2", "start");
        eventually("the overlay is alive", PATIENCE, || {
            let there = Families::Dual
                .list()
                .iter()
                .all(|f| world.reaches(&world.netns(&a), world.ip(&b, *f), 56));
            if there { Ok(()) } else { Err(world.on("node-2", "ip route; bridge fdb")) }
        });
        let now = world.on("node-2", "ip -br link show cw-vxlan | awk '{print $3}'");
        assert_eq!(now, mac);
        // systemd's MACAddressPolicy rewrites it a moment after the device appears.
        world.on("node-2", "ip link set cw-vxlan address 02:11:22:33:44:55");
        eventually("the MAC is put back", crate::world::REPAIR, || {
            let now = world.on("node-2", "ip -br link show cw-vxlan | awk '{print $3}'");
            if now == mac { Ok(()) } else { Err(now) }
        });
        assert!(world.reaches(&world.netns(&a), world.ip(&b, Family::V4), 56));
    });
}

/// The underlay's MTU shrinks: devices and new pods follow, and large packets pass.
#[test]
fn failure_12_the_underlay_has_a_smaller_mtu() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let old = world.pod("old", "node-1");
        let net = world.spec.dirs().netns("net");
        for node in world.spec.node_names() {
            world.on(&node, "ip link set eth0 mtu 1400");
            world.sh(&net, &format!("ip link set {node} mtu 1400"));
        }
        eventually("the tunnel follows", PATIENCE, || {
            let link = world.on("node-1", "ip -o link show cw-vxlan");
            if link.contains("mtu 1350 ") { Ok(()) } else { Err(link) }
        });
        world.whole();
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        let link = world.sh(&world.netns(&a), "ip -o link show eth0");
        assert!(link.contains("mtu 1350 "), "{link}");
        for (family, headers) in [(Family::V4, 28), (Family::V6, 48)] {
            assert!(world.reaches(&world.netns(&a), world.ip(&b, family), 1350 - headers));
            // TCP with full segments; a pod that is older than the change learns of it from the
            // node (path MTU discovery).
            for pod in [&a, &old] {
                let back = world.echoes(&world.netns(pod), world.ip(&b, family), 1 << 20);
                assert_eq!(back.unwrap(), 1 << 20, "{} by {family}", pod.name);
            }
        }
    });
}

/// Many pods at once on one node: no global lock is waited for, no program is started by a plugin.
#[test]
fn failure_16_a_burst_of_pods_without_iptables() {
    with(dual(2, Attach::Bridge, Road::Direct), |world| {
        let start = std::time::Instant::now();
        for i in 0..40 {
            let object = serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("p{i}"), "namespace": "default"},
                "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
            });
            world.client.post("/api/v1/namespaces/default/pods", &object).unwrap();
        }
        eventually("all run", PATIENCE, || {
            let pods = causeway_lab::pods(&world.client).unwrap();
            let running = pods.iter().filter(|p| p.phase == "Running").count();
            let failed: Vec<&String> =
                pods.iter().map(|p| &p.message).filter(|m| !m.is_empty()).collect();
            assert!(failed.is_empty(), "{failed:?}");
            if running == 40 { Ok(()) } else { Err(format!("{running} of 40")) }
        });
        println!("40 pods after {:?}", start.elapsed());
        let mut ips: Vec<_> =
            causeway_lab::pods(&world.client).unwrap().into_iter().flat_map(|p| p.ips).collect();
        ips.sort();
        let count = ips.len();
        ips.dedup();
        assert_eq!((ips.len(), count), (80, 80), "every address once");
        let legacy = world.try_sh(&world.node_ns("node-1"), "nft list tables | grep -v causeway");
        assert_eq!(legacy.1.trim(), "", "no table but ours");
    });
}

/// gc_thresh counts neighbours that can be collected, over all namespaces: ours are permanent.
#[test]
fn failure_37_neighbours_are_permanent() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(2, attach, Road::Vxlan), |world| {
            let pods = world.pods();
            world.all_reach_all();
            let neighbours = world.on("node-1", "ip neigh show; ip -6 neigh show");
            let pod_lines: Vec<&str> = neighbours
                .lines()
                .filter(|l| l.starts_with("10.244.") || l.starts_with("fd00:10:244:"))
                .collect();
            let local = pods.iter().filter(|p| p.node == "node-1").flat_map(|p| &p.ips);
            for ip in local {
                let mine = pod_lines.iter().find(|l| l.split(' ').next() == Some(&ip.to_string()));
                assert!(mine.is_some_and(|l| l.contains("PERMANENT")), "{ip}: {neighbours}");
            }
            for line in &pod_lines {
                assert!(line.contains("PERMANENT"), "{line}");
            }
        });
    }
}

/// With routed pods nothing is bridged; a served bridge forwards in the node: no br_netfilter needed.
#[test]
fn failure_36_same_node_packets_pass_the_forward_hook() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(2, attach, Road::Direct), |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-1"));
            world.on("node-1", "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 0 > $f; \
                nft add table inet count; nft add chain inet count f '{ type filter hook forward priority -10; }'; \
                nft add rule inet count f meta l4proto { icmp, icmpv6 } counter");
            for family in Families::Dual.list() {
                let before = counted(world);
                assert!(world.reaches(&world.netns(&a), world.ip(&b, *family), 56));
                assert_eq!(counted(world), before + 2, "{attach:?} {family}: request and reply");
            }
        });
    }
}

fn counted(world: &World) -> u64 {
    let text = world.on("node-1", "nft list chain inet count f");
    let after = text.split("packets ").nth(1).unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

/// A server outside never learned a way to pods: their packets carry their node's address, also when
/// many of them leave at once to the same server and port.
#[test]
fn failure_28_masquerade_is_for_the_outside_alone() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        let pods = world.pods();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(move || {
                    for family in Families::Dual.list() {
                        for _ in 0..5 {
                            let to = Spec::outside(*family).0.addr();
                            let body = world.fetch(&world.netns(pod), to).unwrap();
                            let node = world.spec.node_addr(&pod.node, *family).addr();
                            assert!(body.contains(&node.to_string()), "{body}");
                        }
                    }
                });
            }
        });
        // A node of the cluster is not outside: it sees the pod.
        let rules = world.on("node-1", "nft list table inet causeway");
        assert!(rules.contains("fully-random"), "{rules}");
        for family in Families::Dual.list() {
            let node = world.spec.node_addr("node-2", *family).addr();
            let ear = crate::packets::Ear::udp(&world.node_ns("node-2"), node, 7777);
            let to = std::net::SocketAddr::new(node, 7777);
            crate::packets::send_udp(&world.netns(&pods[0]), to, b"hi").unwrap();
            assert_eq!(ear.sender(Duration::from_secs(3)), Some(world.ip(&pods[0], *family)));
        }
    });
}
