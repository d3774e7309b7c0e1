//! What a node says of itself in the API: its condition, its taint, Events for people.

use std::time::Duration;

use causeway_lab::Road;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, dual, eventually, with};

const NODE: &str = "/api/v1/nodes/node-1";
/// A problem must last before it is told.
const TOLD: Duration = Duration::from_secs(30);

fn condition(world: &World) -> Value {
    let node = world.client.get(NODE).unwrap();
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == "NetworkUnavailable").unwrap_or_default()
}

/// Changes the node as somebody else would, over and over until nobody came between.
fn change(world: &World, path: &str, change: impl Fn(&mut Value)) {
    eventually("the node is changed", PATIENCE, || {
        let mut node = world.client.get(NODE).unwrap();
        change(&mut node);
        world.client.put(path, &node).map(drop).map_err(|e| format!("{e:#}"))
    });
}

fn up(world: &World) {
    eventually("the condition says that the network is there", PATIENCE, || {
        let found = condition(world);
        let cidr = world.pod_cidr("node-1", causeway_types::Family::V6).to_string();
        let told = found["message"].as_str().is_some_and(|m| m.contains(&cidr));
        match found["status"] == "False" && found["reason"] == "CausewayIsUp" && told {
            true => Ok(()),
            false => Err(found.to_string()),
        }
    });
}

fn events(world: &World) -> Vec<Value> {
    let field = "fieldSelector=involvedObject.name%3Dnode-1";
    let list = world.client.get(&format!("/api/v1/namespaces/default/events?{field}")).unwrap();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// The only Event of the node has come so many times.
fn told(world: &World, times: u64) {
    eventually("the problem is an Event", TOLD, || {
        let events = events(world);
        let [event] = &events[..] else { return Err(format!("{events:?}")) };
        let text = event["message"].as_str().unwrap_or_default();
        assert!(text.contains("InternalIP"), "{text}");
        assert_eq!(event["type"], "Warning");
        match event["count"] == json!(times) {
            true => Ok(()),
            false => Err(event.to_string()),
        }
    });
}

#[test]
fn the_node_says_how_its_network_is() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        up(world);
        let since = condition(world)["lastTransitionTime"].clone();
        assert!(since.is_string());

        // Somebody else's opinion, as of a cloud's route controller.
        change(world, &format!("{NODE}/status"), |node| {
            let all = node["status"]["conditions"].as_array_mut().unwrap();
            all.retain(|c| c["type"] != "NetworkUnavailable");
            all.push(
                json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}),
            );
        });
        up(world);
        let kinds = world.client.get(NODE).unwrap()["status"]["conditions"].clone();
        assert!(kinds.to_string().contains("KubeletReady"), "{kinds}");

        // The taint goes, that of others stays in its place.
        change(world, NODE, |node| {
            let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
            node["spec"]["taints"] =
                json!([taint("a"), taint("causeway.dev/not-ready"), taint("b")]);
        });
        eventually("the taint is gone", PATIENCE, || {
            let taints = world.client.get(NODE).unwrap()["spec"]["taints"].clone();
            let keys: Vec<&str> =
                taints.as_array().unwrap().iter().filter_map(|t| t["key"].as_str()).collect();
            if keys == ["a", "b"] { Ok(()) } else { Err(taints.to_string()) }
        });
        assert!(events(world).is_empty(), "{:?}", events(world));

        // A problem becomes one Event, which is counted up when the problem comes again.
        let addresses = world.client.get(NODE).unwrap()["status"]["addresses"].clone();
        for times in [1, 2] {
            change(world, &format!("{NODE}/status"), |n| n["status"]["addresses"] = json!([]));
            told(world, times);
            change(world, &format!("{NODE}/status"), |n| {
                n["status"]["addresses"] = addresses.clone()
            });
            eventually("the problem is gone", PATIENCE, || match world.status("node-1") {
                Ok(status) if status.problems.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    });
}

/// An agent that is killed, and one that starts, is no reason to send pods elsewhere.
#[test]
fn a_restart_does_not_change_the_condition() {
    with(dual(1, Attach::Bridge, Road::Vxlan), |world| {
        up(world);
        let before = condition(world);
        for order in ["kill", "restart", "stop", "start"] {
            world.agent("node-1", order);
        }
        world.whole();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(condition(world), before);
    });
}

/// A node that cannot take pods says so, not at once, and says when it can again.
#[test]
fn a_node_without_network_says_so_after_a_while() {
    with(dual(1, Attach::Routed, Road::Vxlan), |world| {
        up(world);
        let before = condition(world);
        // Something is in the place of the configuration list.
        let list = world.spec.dirs().node("node-1").join("etc-cni/net.d/05-causeway.conflist");
        world.agent("node-1", "stop");
        std::fs::remove_file(&list).unwrap();
        std::fs::create_dir_all(list.join("x")).unwrap();
        world.agent("node-1", "start");
        eventually("the agent is not ready", PATIENCE, || match world.status("node-1") {
            Ok(status) if status.inputs.synced && !status.ready => Ok(()),
            other => Err(format!("{other:?}")),
        });
        std::thread::sleep(Duration::from_secs(10));
        assert_eq!(condition(world), before);
        eventually("the condition says that there is no network", 2 * TOLD, || {
            let found = condition(world);
            let why = found["message"].as_str().unwrap_or_default();
            match found["status"] == "True" && why.contains("05-causeway.conflist") {
                true => Ok(()),
                false => Err(found.to_string()),
            }
        });
        std::fs::remove_dir_all(&list).unwrap();
        up(world);
    });
}

/// The Events of a node whose text has these words: how often each came.
fn counts(world: &World, node: &str, words: &str) -> Vec<u64> {
    let field = format!("fieldSelector=involvedObject.name%3D{node}");
    let list = world.client.get(&format!("/api/v1/namespaces/default/events?{field}")).unwrap();
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let about = |e: &&Value| e["message"].as_str().is_some_and(|m| m.contains(words));
    all.iter().filter(about).map(|e| e["count"].as_u64().unwrap_or_default()).collect()
}

/// What an operator must know, where it is told, and a word of it. That all addresses are given out is told
/// in test `ranges`.
const TOLD_OF: [(&str, &str); 5] = [
    ("node-2", "Node node-2 has no spec.podCIDRs"),
    ("node-1", "the configured pod MTU of 9000 is more than the 1450 bytes"),
    ("node-1", "pods of this node have an MTU of 9000, those of most others 1450"),
    ("node-1", "packets of pods do not pass this node: chain fw of table inet other"),
    ("node-1", "pod CIDR 10.244.0.0/16 of node hog overlaps"),
];

fn break_all(world: &World) {
    let address = |ip: &str| json!([{"type": "InternalIP", "address": ip}]);
    // It has all subnets: no other node gets one.
    let all = json!(["10.244.0.0/16", "fd00:10:244::/48"]);
    let hog = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hog"},
        "spec": {"podCIDR": all[0], "podCIDRs": all}, "status": {"addresses": address("192.168.1.77")}});
    world.client.post("/api/v1/nodes", &hog).unwrap();
    let addresses =
        world.client.get("/api/v1/nodes/node-2").unwrap()["status"]["addresses"].clone();
    world.client.delete("/api/v1/nodes/node-2").unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"},
        "status": {"addresses": addresses}});
    world.client.post("/api/v1/nodes", &node).unwrap();
    configure(world, Some("mtu: 9000"));
    world.on("node-1", "nft add table inet other");
    world.on(
        "node-1",
        "nft add chain inet other fw '{ type filter hook forward priority 0; policy drop; }'",
    );
}

fn mend_all(world: &World) {
    world.client.delete("/api/v1/nodes/hog").unwrap();
    configure(world, None);
    world.on("node-1", "nft delete table inet other");
    eventually("nothing is wrong", PATIENCE, || {
        let problems = |node| world.status(node).map(|s| s.problems).map_err(|e| format!("{e:#}"));
        let all = [problems("node-1")?, problems("node-2")?].concat();
        if all.is_empty() { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

fn configure(world: &World, line: Option<&str>) {
    let path = world.spec.dirs().node("node-1").join("etc-causeway/config.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept = text.lines().filter(|l| !l.starts_with("mtu:")).chain(line);
    let text = kept.collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(&path, text).unwrap();
}

/// Each problem is one Event, counted up when it comes again, and silent while it is solved.
#[test]
fn what_an_operator_must_know_is_told() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        world.whole();
        for times in [1, 2] {
            break_all(world);
            for (node, words) in TOLD_OF {
                eventually(&format!("{node} tells {words:?}, {times}"), 2 * TOLD, || {
                    let found = counts(world, node, words);
                    if found == [times] { Ok(()) } else { Err(format!("{found:?}")) }
                });
            }
            // What lasts is not told again and again.
            std::thread::sleep(Duration::from_secs(5));
            mend_all(world);
            for (node, words) in TOLD_OF {
                assert_eq!(counts(world, node, words), [times], "{words}");
            }
        }
    });
}
