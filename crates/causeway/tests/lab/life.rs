//! Agents that restart, stop and die; nodes that come and go meanwhile.

use causeway_lab::{Families, Road};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::json;

use crate::world::{PATIENCE, World, dual, eventually, with};

#[test]
fn without_an_agent_pods_live_start_and_end() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(3, attach, Road::Vxlan), |world| {
            let stay = world.pod("stay", "node-1");
            let far = world.pod("far", "node-2");
            world.agent("node-1", "stop");
            let new = world.pod("new", "node-1");
            for family in Families::Dual.list() {
                assert!(world.reaches(&world.netns(&new), world.ip(&far, *family), 56));
                assert!(world.reaches(&world.netns(&stay), world.ip(&new, *family), 56));
                assert!(world.reaches(&world.netns(&far), world.ip(&new, *family), 56));
            }
            causeway_lab::delete_pod(&world.client, "stay", PATIENCE).unwrap();
            let left = world.on("node-1", "ip route; ip -6 route; ip neigh; nft list ruleset");
            for ip in &stay.ips {
                assert!(
                    !left.lines().any(|l| l.split_whitespace().any(|w| w == ip.to_string())),
                    "{left}"
                );
            }
            world.agent("node-1", "start");
            world.whole();
            world.all_reach_all();
        });
    }
}

/// Field failure 1: pods whose DEL never comes. The agent gives their addresses back by itself.
#[test]
fn failure_1_addresses_of_lost_pods_come_back() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(3, attach, Road::Vxlan), |world| {
            let (lost, stays) = (world.pod("lost", "node-1"), world.pod("stays", "node-1"));
            let far = world.pod("far", "node-2");
            assert!(world.causeway("node-1", &["ipam", "check"]).0, "nothing is left behind yet");
            // As if the runtime had died with it: no process, no namespace, no DEL.
            let name = world.netns(&lost).file_name().unwrap().to_string_lossy().into_owned();
            let end = format!("ip netns pids {name} | xargs -r kill -9; ip netns del {name}");
            assert!(
                std::process::Command::new("sh").args(["-c", &end]).status().unwrap().success()
            );
            eventually("it is found", PATIENCE, || {
                let (well, said) = world.causeway("node-1", &["ipam", "check"]);
                let named = lost.ips.iter().all(|ip| said.contains(&ip.to_string()));
                if !well && named { Ok(()) } else { Err(said) }
            });
            let (done, said) = world.causeway("node-1", &["ipam", "gc"]);
            assert!(done && said.contains("2 leases released"), "{said}");
            let (well, said) = world.causeway("node-1", &["ipam", "list"]);
            assert!(well && !said.contains("stale") && said.contains("default/stays"), "{said}");
            world.whole();
            let view = "ip route; ip -6 route; ip neigh; ip -6 neigh; ip -6 neigh show proxy; nft list ruleset";
            eventually("nothing of it is on the node", PATIENCE, || {
                let text = world.on("node-1", view);
                let stale =
                    lost.ips.iter().find(|ip| text.split_whitespace().any(|w| w == ip.to_string()));
                stale.map_or(Ok(()), |ip| Err(format!("{ip} in {text}")))
            });
            for family in Families::Dual.list() {
                assert!(world.reaches(&world.netns(&far), world.ip(&stays, *family), 56));
            }
        });
    }
}

/// Field failure 11: what changed while an agent was down leaves nothing stale.
#[test]
fn failure_11_a_node_goes_while_an_agent_is_down() {
    for (attach, road) in [(Attach::Routed, Road::Vxlan), (Attach::Bridge, Road::Direct)] {
        with(dual(3, attach, road), |world| {
            world.agent("node-1", "stop");
            // The node's kubelet and agent go with it; otherwise they would register it again.
            world.agent("node-3", "stop");
            gone(world, "node-3");
            world.agent("node-1", "start");
            let view = "ip route; ip -6 route; bridge fdb; ip neigh; ip -6 neigh; nft list table inet causeway";
            for node in ["node-1", "node-2"] {
                eventually("nothing of node-3", PATIENCE, || {
                    let text = world.on(node, view);
                    let stale: Vec<&str> = text
                        .lines()
                        .filter(|l| {
                            ["10.244.3.", "10:244:3:", "192.168.1.13", "168:1::13"]
                                .iter()
                                .any(|w| l.contains(w))
                        })
                        // What the underlay itself learned is not ours.
                        .filter(|l| !l.contains("dev eth0 lladdr"))
                        .collect();
                    if stale.is_empty() {
                        Ok(())
                    } else {
                        Err(format!("{node}: {}", stale.join("\n")))
                    }
                });
            }
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            assert!(world.reaches(&world.netns(&a), world.ip(&b, Family::V4), 56));
        });
    }
}

/// Deletes a Node object for good, as a cloud provider's controller does.
fn gone(world: &World, node: &str) {
    world.client.delete(&format!("/api/v1/nodes/{node}")).unwrap();
}

/// The Node object is deleted and comes again: its subnet is another one, its pods' traffic moves.
#[test]
fn a_node_registers_again_with_another_subnet() {
    with(dual(3, Attach::Routed, Road::Vxlan), |world| {
        world.agent("node-3", "stop");
        gone(world, "node-3");
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-3"},
            "spec": {"podCIDRs": ["10.244.77.0/24", "fd00:10:244:77::/64"], "podCIDR": "10.244.77.0/24"},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.1.13"},
                {"type": "InternalIP", "address": "fd00:192:168:1::13"}]},
        });
        world.client.post("/api/v1/nodes", &node).unwrap();
        world.agent("node-3", "start");
        eventually("the new subnet everywhere", PATIENCE, || {
            let routes = world.on("node-1", "ip route; ip -6 route");
            match routes.contains("10.244.77.0/24") && routes.contains("fd00:10:244:77::/64") {
                true if routes.contains("10.244.3.0/24") => {
                    Err(format!("the old one stays: {routes}"))
                }
                true => Ok(()),
                false => Err(routes),
            }
        });
        eventually("node-3 has it, too", PATIENCE, || {
            let file = world.spec.dirs().node("node-3").join("run-causeway/node.json");
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.contains("10.244.77.0/24") { Ok(()) } else { Err(text) }
        });
        let (a, c) = (world.pod("a", "node-1"), world.pod("c", "node-3"));
        assert!(c.ips[0].to_string().starts_with("10.244.77."), "{c:?}");
        assert!(world.reaches(&world.netns(&a), world.ip(&c, Family::V6), 56));
        assert!(world.reaches(&world.netns(&c), world.ip(&a, Family::V4), 56));
    });
}
