//! Nodes that cannot be served as they are: said so, by name, and nothing else suffers.

use causeway_lab::{Families, Road, Spec, Topology};
use causeway_types::Family;
use serde_json::json;

use crate::world::{PATIENCE, World, binaries, eventually, isolated, with};

#[test]
fn a_direct_road_across_a_router_is_refused_by_name() {
    isolated(|| {
        let spec = Spec {
            nodes: 2,
            road: Road::Direct,
            topology: Topology::TwoSubnets,
            ..Spec::default()
        };
        // A direct road to the second subnet cannot be; everything else is.
        let started = std::thread::scope(|scope| {
            let spec = &spec;
            let handle = scope.spawn(move || causeway_lab::up(spec, &binaries(), &mut |_| {}));
            let socket = spec.dirs().node("node-1").join("run-causeway/agent.sock");
            eventually("the problem is named", PATIENCE, || {
                let status = causeway_agent::client::status(&socket).map_err(|e| e.to_string())?;
                let found = status.problems.iter().find(|p| p.owner == "peer node-2");
                match found {
                    Some(p)
                        if p.message.contains("behind a router") && p.message.contains("vxlan") =>
                    {
                        // The node itself serves its pods.
                        if status.ready { Ok(()) } else { Err("not ready".into()) }
                    }
                    other => Err(format!("{other:?}")),
                }
            });
            // The lab waits for what cannot come: end it.
            causeway_lab::down(&spec.name).unwrap();
            handle.join().unwrap()
        });
        assert!(started.is_err());
        assert_eq!(causeway_lab::residue(&spec.name), Vec::<String>::new());
    });
}

/// Field failure 9: no pod CIDR is named as the reason, and no configuration list lures the kubelet.
#[test]
fn failure_9_a_node_without_pod_cidr() {
    with(Spec { nodes: 1, ..Spec::default() }, |world| {
        world.agent("node-1", "stop");
        world.client.delete("/api/v1/nodes/node-1").unwrap();
        let home = world.spec.dirs().node("node-1");
        let conflist = home.join("etc-cni/net.d/05-causeway.conflist");
        // As on a fresh node: nothing of a former agent.
        for file in [
            conflist.clone(),
            home.join("run-causeway/node.json"),
            home.join("lib-causeway/last-view.json"),
        ] {
            std::fs::remove_file(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
        let node = |cidrs: serde_json::Value| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
                "spec": {"podCIDRs": cidrs, "podCIDR": cidrs[0]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.11"}]},
            })
        };
        // An address that no controller of the lab gives: the ranges are used up for it.
        world.client.post("/api/v1/nodes", &node(json!(["10.244.9.0/30"]))).unwrap();
        world.agent("node-1", "start");
        eventually("a subnet without room is named", PATIENCE, || {
            let status = world.status("node-1").map_err(|e| e.to_string())?;
            let named = status.problems.iter().any(|p| p.message.contains("10.244.9.0/30"));
            match named || status.ready {
                true => Ok(()),
                false => Err(format!("{:?}", status.problems)),
            }
        });
        world.client.delete("/api/v1/nodes/node-1").unwrap();
        eventually("the missing Node is named", PATIENCE, || {
            let status = world.status("node-1").map_err(|e| e.to_string())?;
            let named = status.problems.iter().any(|p| p.message.contains("node-1"));
            if named { Ok(()) } else { Err(format!("{:?}", status.problems)) }
        });
        world.client.post("/api/v1/nodes", &node(json!(["10.244.9.0/24"]))).unwrap();
        eventually("ready, then the list", PATIENCE, || {
            let ready = world.status("node-1").map_err(|e| e.to_string())?.ready;
            let there = conflist.exists();
            match (ready, there) {
                (true, true) => Ok(()),
                state => Err(format!("{state:?}")),
            }
        });
        let pod = world.pod("a", "node-1");
        assert!(world.ip(&pod, Family::V4).to_string().starts_with("10.244.9."));
    });
}

/// Field failure 26: a node's address changes; peers follow, and ambiguity is not guessed about.
#[test]
fn failure_26_a_node_changes_its_address() {
    for road in [Road::Direct, Road::Vxlan] {
        let spec = Spec { nodes: 2, road, families: Families::Ipv4, ..Spec::default() };
        with(spec, |world| {
            let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
            // The address alone, while the Node object still says the old one: named, not guessed.
            world.on("node-2", "ip addr add 192.168.1.50/24 dev eth0; ip addr del 192.168.1.12/24 dev eth0; \
                ip addr add 192.168.1.50/24 dev eth0 2>/dev/null; ip route replace default via 192.168.1.1");
            eventually("the difference is named", PATIENCE, || {
                let status = world.status("node-2").map_err(|e| e.to_string())?;
                let named = status.problems.iter().any(|p| {
                    p.message.contains("192.168.1.12") && p.message.contains("192.168.1.50")
                });
                if named { Ok(()) } else { Err(format!("{:?}", status.problems)) }
            });
            set_address(world, "node-2", "192.168.1.50");
            eventually("peers follow", PATIENCE, || {
                match world.reaches(&world.netns(&a), world.ip(&b, Family::V4), 56)
                    && world.reaches(&world.netns(&b), world.ip(&a, Family::V4), 56)
                {
                    true => Ok(()),
                    false => Err(world.on("node-1", "ip route; bridge fdb | grep vxlan || true")),
                }
            });
            let left = world.on("node-1", "ip route; bridge fdb; nft list table inet causeway");
            assert!(!left.contains("192.168.1.12"), "{left}");
        });
    }
}

fn set_address(world: &World, node: &str, address: &str) {
    let path = format!("/api/v1/nodes/{node}");
    let mut object = world.client.get(&path).unwrap();
    object["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
    world.client.put(&format!("{path}/status"), &object).unwrap();
}
