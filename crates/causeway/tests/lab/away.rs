//! Nodes that come, go, move and change their names and subnets while an agent is not there to see
//! it: nothing of what they were is left in the kernel, and all that they are is there.

use causeway_lab::{Families, Road};
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, dual, eventually, with};

/// A Node that has no agent: only what others make of it counts.
pub(crate) fn node(name: &str, host: u8, subnet: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": [format!("10.244.{subnet}.0/24"), format!("fd00:10:244:{subnet:x}::/64")],
                 "podCIDR": format!("10.244.{subnet}.0/24")},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("192.168.1.{host}")},
            {"type": "InternalIP", "address": format!("fd00:192:168:1::{host}")}]},
    })
}

pub(crate) fn create(world: &World, object: &Value) {
    world.client.post("/api/v1/nodes", object).unwrap();
}

pub(crate) fn delete(world: &World, name: &str) {
    world.client.delete(&format!("/api/v1/nodes/{name}")).unwrap();
}

/// Gives a Node another address.
pub(crate) fn readdress(world: &World, name: &str, host: u8) {
    let path = format!("/api/v1/nodes/{name}");
    let mut object = world.client.get(&path).unwrap();
    object["status"]["addresses"] = node(name, host, 0)["status"]["addresses"].clone();
    world.client.put(&format!("{path}/status"), &object).unwrap();
}

/// What a node's kernel holds for the other nodes, line by line. The underlay's own neighbours are
/// the kernel's.
fn view(world: &World, on: &str) -> Vec<String> {
    let text = world.on(
        on,
        "ip route show proto 203; ip -6 route show proto 203; bridge fdb show | grep -F 'dst ' || true; \
         ip neigh show nud permanent; ip -6 neigh show nud permanent; nft -s list table inet causeway",
    );
    let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
    lines.sort();
    lines
}

fn away(attach: Attach, road: Road, how: &str) {
    with(dual(2, attach, road), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        for (name, host, subnet) in [
            ("leaves", 101, 101),
            ("moves", 102, 102),
            ("old-name", 103, 103),
            ("renews", 104, 104),
        ] {
            create(world, &node(name, host, subnet));
        }
        let knows =
            |on: &'static str, parts: &'static [&'static str], not: &'static [&'static str]| {
                eventually("what is, and nothing that was", PATIENCE, || {
                    let lines = view(world, on);
                    let has = |part: &str| lines.iter().any(|l| l.contains(part));
                    let missing: Vec<_> = parts.iter().filter(|p| !has(p)).collect();
                    let stale: Vec<_> = not.iter().filter(|p| has(p)).collect();
                    match missing.is_empty() && stale.is_empty() {
                        true => Ok(()),
                        false => Err(format!("missing {missing:?}, stale {stale:?}: {lines:#?}")),
                    }
                });
            };
        let before = ["10.244.101.0/24", "10.244.102.0/24", "10.244.103.0/24", "10.244.104.0/24"];
        for on in ["node-1", "node-2"] {
            knows(on, &["10.244.101.0/24", "10.244.104.0/24", "fd00:10:244:68::/64"], &[]);
        }
        assert!(before.iter().all(|b| view(world, "node-1").iter().any(|l| l.contains(b))));
        // The agent of node-2 sees everything happen; that of node-1 is not there.
        world.agent("node-1", how);
        delete(world, "leaves");
        create(world, &node("joins", 105, 105));
        readdress(world, "moves", 112);
        delete(world, "old-name");
        create(world, &node("new-name", 103, 103));
        delete(world, "renews");
        create(world, &node("renews", 104, 114));
        // It takes the address and the subnet of one that left.
        create(world, &node("heir", 101, 101));
        delete(world, "heir");
        world.agent("node-1", "start");
        const NOW: &[&str] = &[
            "10.244.105.0/24",
            "fd00:10:244:69::/64",
            "10.244.102.0/24",
            "192.168.1.112",
            "10.244.103.0/24",
            "10.244.114.0/24",
            "fd00:10:244:72::/64",
        ];
        const GONE: &[&str] = &[
            "10.244.101.",
            "fd00:10:244:65:",
            "192.168.1.101",
            "192.168.1.102",
            "fd00:192:168:1::101",
            "fd00:192:168:1::102",
            "10.244.104.",
            "fd00:10:244:68:",
        ];
        for on in ["node-1", "node-2"] {
            knows(on, NOW, GONE);
        }
        // One tunnel entry for each peer: a new name has another MAC, the old one is not kept.
        if road == Road::Vxlan {
            let text = world.on("node-1", "bridge fdb show dev cw-vxlan");
            for host in [103, 104, 105, 112] {
                let to = format!("dst 192.168.1.{host} ");
                assert_eq!(text.lines().filter(|l| l.contains(&to)).count(), 1, "{host}: {text}");
            }
        }
        // Who saw it all and who slept through it hold the same for the others.
        let others = |on: &str| -> Vec<String> {
            let theirs = |l: &String| NOW.iter().any(|p| l.contains(p)) && !l.contains("elements");
            let own = |l: String| {
                ["10.244.1.1", "10.244.2.1", "fd00:10:244:1::1", "fd00:10:244:2::1"]
                    .iter()
                    .fold(l, |l, own| l.replace(&format!("src {own} "), "src OWN "))
            };
            view(world, on).into_iter().filter(theirs).map(own).collect()
        };
        assert_eq!(others("node-1"), others("node-2"));
        for name in ["joins", "moves", "new-name", "renews"] {
            delete(world, name);
        }
        world.whole();
        for family in Families::Dual.list() {
            assert!(world.reaches(&world.netns(&a), world.ip(&b, *family), 56));
        }
    });
}

/// Field failure 11, all of it: the agent was killed meanwhile, or stopped.
#[test]
fn failure_11_nodes_change_while_an_agent_is_dead_in_a_tunnel() {
    away(Attach::Routed, Road::Vxlan, "halt");
}

#[test]
fn failure_11_nodes_change_while_an_agent_is_stopped_on_direct_roads() {
    away(Attach::Bridge, Road::Direct, "stop");
}
