//! Addresses beside a node's pod subnet: ranges that come and go under running pods, what overlaps,
//! pods that are to have a certain address, and nodes that have none left.

use std::net::IpAddr;
use std::time::Duration;

use causeway_lab::{Road, Spec, find_pod};
use causeway_types::state::Attach;
use causeway_types::{Cidr, Family, names};
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, dual, eventually, with};

/// A problem must last before it is told.
const TOLD: Duration = Duration::from_secs(30);

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

/// Changes a node's extra ranges, over and over until nobody came between.
fn extra(world: &World, node: &str, ranges: Option<&str>) {
    eventually("the node is annotated", PATIENCE, || {
        let mut object = world.client.get(&path(node)).unwrap();
        object["metadata"]["annotations"][names::EXTRA_POD_CIDRS] = json!(ranges);
        if ranges.is_none() {
            let all = object["metadata"]["annotations"].as_object_mut().unwrap();
            all.remove(names::EXTRA_POD_CIDRS);
        }
        world.client.put(&path(node), &object).map(drop).map_err(|e| format!("{e:#}"))
    });
}

fn claims(world: &World, node: &str) -> String {
    let object = world.client.get(&path(node)).unwrap();
    object["metadata"]["annotations"][names::CLAIMED_POD_CIDRS].as_str().unwrap_or_default().into()
}

#[track_caller]
fn says(world: &World, node: &str, words: &[&str]) {
    eventually(&format!("{node} says {words:?}"), PATIENCE, || {
        let status = world.status(node).map_err(|e| format!("{e:#}"))?;
        let all = |p: &causeway_agent::status::Problem| words.iter().all(|w| p.message.contains(w));
        match status.problems.iter().any(all) && status.ready {
            true => Ok(()),
            false => Err(format!("{:?}", status.problems)),
        }
    });
}

#[track_caller]
fn says_nothing(world: &World, node: &str) {
    eventually(&format!("{node} is well"), PATIENCE, || match world.status(node) {
        Ok(status) if status.problems.is_empty() => Ok(()),
        other => Err(format!("{:?}", other.map(|s| s.problems))),
    });
}

/// Creates a pod and waits for nothing.
fn begin(world: &World, name: &str, node: &str, ip: Option<&str>) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "lab"}]},
    });
    if let Some(ip) = ip {
        pod["metadata"]["annotations"] = json!({names::POD_IP: ip});
    }
    world.client.post("/api/v1/namespaces/default/pods", &pod).unwrap();
}

fn end(world: &World, name: &str) {
    causeway_lab::delete_pod(&world.client, name, PATIENCE).unwrap();
}

#[track_caller]
fn runs(world: &World, name: &str) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    eventually(&format!("pod {name} runs"), PATIENCE, || {
        let pod = find_pod(&world.client, name).unwrap();
        ips.clone_from(&pod.ips);
        if pod.phase == "Running" { Ok(()) } else { Err(pod.message) }
    });
    ips
}

#[track_caller]
fn is_refused(world: &World, name: &str, words: &[&str]) {
    eventually(&format!("pod {name} is refused with {words:?}"), PATIENCE, || {
        let pod = find_pod(&world.client, name).unwrap();
        assert_ne!(pod.phase, "Running", "{pod:?}");
        match words.iter().all(|word| pod.message.contains(word)) {
            true => Ok(()),
            false => Err(pod.message),
        }
    });
}

/// Leaves two IPv4 addresses of a node's pod subnet: the configuration reserves the others.
fn reserve(world: &World, node: &str) -> Cidr {
    let cidr = Cidr::of(world.pod_cidr(node, Family::V4));
    let base = cidr.addr().to_string();
    let base = base.strip_suffix(".0").unwrap();
    let shut = [(4, 30), (8, 29), (16, 28), (32, 27), (64, 26), (128, 25)];
    let shut = shut.map(|(at, len)| format!("{base}.{at}/{len}")).join(", ");
    let file = world.spec.dirs().node(node).join("etc-causeway/config.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\nreserved: [{shut}]\n")).unwrap();
    // The agent takes it over without a restart.
    let node_file = world.spec.dirs().node(node).join("run-causeway/node.json");
    eventually("the node file says what is reserved", PATIENCE, || {
        let text = std::fs::read_to_string(&node_file).map_err(|e| e.to_string())?;
        if text.contains(&format!("{base}.128/25")) { Ok(()) } else { Err(text) }
    });
    cidr
}

/// Waits until the others have roads to what node-1 claims: a claim travels through the API, and a
/// pod of a range that is new may run first.
#[track_caller]
fn others_have_roads(world: &World, ranges: &[&str]) {
    for node in ["cp", "node-2"] {
        eventually(&format!("{node} has roads to {ranges:?}"), PATIENCE, || {
            let routes = world.on(node, "ip -4 route; ip -6 route");
            match ranges.iter().all(|range| routes.contains(&format!("{range} "))) {
                true => Ok(()),
                false => Err(routes),
            }
        });
    }
}

fn metric(world: &World, node: &str, line: &str) {
    eventually(line, PATIENCE, || {
        let text = causeway_agent::client::request(&world.socket(node), "GET", "/v1/metrics");
        let text = String::from_utf8(text.map_err(|e| format!("{e:#}"))?).unwrap();
        if text.contains(line) { Ok(()) } else { Err(text) }
    });
}

fn events(world: &World, node: &str) -> Vec<Value> {
    let field = format!("fieldSelector=involvedObject.name%3D{node}");
    let list = world.client.get(&format!("/api/v1/namespaces/default/events?{field}")).unwrap();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Exactly one Event of a node has these words.
#[track_caller]
fn tells(world: &World, node: &str, words: &str) {
    eventually(&format!("an Event of {node} says {words:?}"), TOLD, || {
        let all = events(world, node);
        let told = |e: &&Value| e["message"].as_str().unwrap().contains(words);
        match all.iter().filter(told).count() {
            1 => Ok(()),
            n => Err(format!("{n} in {all:?}")),
        }
    });
}

fn lives_with_ranges(spec: Spec) {
    let routed = spec.attach == Attach::Routed;
    with(spec, |world| {
        world.whole();
        let subnet = reserve(world, "node-1");
        for name in ["a1", "a2"] {
            assert!(runs_on(world, name, "node-1").iter().any(|ip| subnet.contains(*ip)));
        }
        // None is left: the pod, the metric, the status and an Event say so.
        begin(world, "a3", "node-1", None);
        let numbers = "all 2 are taken (2 leases)";
        is_refused(world, "a3", &["no IP addresses available", numbers, "extra-pod-cidrs"]);
        metric(world, "node-1", &format!("addresses{{range=\"{subnet}\",state=\"free\"}} 0"));
        metric(world, "node-1", &format!("addresses{{range=\"{subnet}\",state=\"used\"}} 2"));
        says(world, "node-1", &["all 2 IPv4 addresses", &subnet.to_string()]);
        if routed {
            // What two nodes want is neither's, and both tell it by an Event.
            extra(world, "node-2", Some("10.251.0.0/25"));
            extra(world, "node-1", Some("10.251.0.0/24"));
            tells(world, "node-1", "all 2 IPv4 addresses");
            tells(world, "node-1", "10.251.0.0/25 of node node-2");
            tells(world, "node-2", "10.251.0.0/24 of node node-1");
            is_refused(world, "a3", &[numbers]);
            extra(world, "node-2", None);
        }

        // Another range: what is good of it counts.
        let list = "10.250.1.0/29, fd00:250::/120, nonsense, 10.244.7.0/24";
        extra(world, "node-1", Some(list));
        assert!(runs(world, "a3").contains(&"10.250.1.2".parse().unwrap()));
        says(world, "node-1", &["nonsense", "extra-pod-cidrs"]);
        says(world, "node-1", &["10.244.7.0/24", "clusterCIDRs"]);
        extra(world, "node-1", Some("10.250.1.0/29,fd00:250::/120"));
        says_nothing(world, "node-1");
        runs_on(world, "b1", "node-2");
        world.whole();
        others_have_roads(world, &["10.250.1.0/29", "fd00:250::/120"]);
        world.all_reach_all();
        assert_eq!(claims(world, "node-1"), "10.250.1.0/29,fd00:250::/120");

        // Another node wants a part of it: neither gives out any, and running pods stay.
        extra(world, "node-2", Some("10.250.1.0/30,10.250.2.0/24"));
        says(world, "node-1", &["10.250.1.0/29", "10.250.1.0/30 of node node-2"]);
        says(world, "node-2", &["10.250.1.0/30", "10.250.1.0/29 of node node-1"]);
        begin(world, "a4", "node-1", None);
        is_refused(world, "a4", &["no IP addresses available"]);
        end(world, "a4");
        world.all_reach_all();
        eventually("the good one is claimed", PATIENCE, || match claims(world, "node-2") {
            text if text == "10.250.2.0/24" => Ok(()),
            text => Err(text),
        });
        extra(world, "node-2", None);
        says_nothing(world, "node-2");

        // The range goes, its pod stays until it ends.
        extra(world, "node-1", None);
        eventually("the free range is gone", PATIENCE, || match claims(world, "node-1") {
            text if text == "10.250.1.0/29" => Ok(()),
            text => Err(text),
        });
        begin(world, "a5", "node-1", None);
        is_refused(world, "a5", &["no IP addresses available"]);
        world.all_reach_all();
        // A node registers whose pod subnet is in the range: the pod's address alone stays.
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-9"},
            "spec": {"podCIDRs": ["10.250.1.0/28"], "podCIDR": "10.250.1.0/28"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.99"}]},
        });
        world.client.post("/api/v1/nodes", &node).unwrap();
        eventually("the address alone is claimed", PATIENCE, || match claims(world, "node-1") {
            text if text == "10.250.1.2/32" => Ok(()),
            text => Err(text),
        });
        for other in ["cp", "node-2"] {
            eventually(&format!("{other} routes the address alone"), PATIENCE, || {
                let routes = world.on(other, "ip route");
                match routes.contains("10.250.1.2 ") && !routes.contains("10.250.1.0/29") {
                    true => Ok(()),
                    false => Err(routes),
                }
            });
        }
        world.all_reach_all();
        world.client.delete(&path("node-9")).unwrap();
        end(world, "a3");
        eventually("nothing is left of it", PATIENCE, || {
            let left = world.on("node-2", "ip route; nft list table inet causeway");
            match left.contains("10.250.1.") || !claims(world, "node-1").is_empty() {
                true => Err(left),
                false => Ok(()),
            }
        });
        end(world, "a5");

        // And comes back.
        extra(world, "node-1", Some("10.250.1.0/29"));
        begin(world, "a6", "node-1", Some("10.250.1.5"));
        assert!(runs(world, "a6").contains(&"10.250.1.5".parse().unwrap()));
        world.whole();
        others_have_roads(world, &["10.250.1.0/29"]);
        world.all_reach_all();
    });
}

fn runs_on(world: &World, name: &str, node: &str) -> Vec<IpAddr> {
    begin(world, name, node, None);
    runs(world, name)
}

#[test]
fn routed_pods_live_with_ranges() {
    lives_with_ranges(dual(2, Attach::Routed, Road::Vxlan));
}

#[test]
fn pods_of_the_classic_bridge_live_with_ranges() {
    lives_with_ranges(dual(2, Attach::Bridge, Road::Vxlan));
}

#[test]
fn pods_at_the_bridge_live_with_ranges() {
    let plugin = causeway_lab::Plugin::Causeway;
    lives_with_ranges(Spec { plugin, ..dual(2, Attach::Bridge, Road::Direct) });
}

/// A pod has the address that it is to have, or a reason.
#[test]
fn a_pod_gets_the_address_that_it_is_to_have() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        world.whole();
        let [v4, v6] = [Family::V4, Family::V6]
            .map(|f| world.pod_cidr("node-1", f).hosts().nth(76).unwrap().to_string());
        let both = format!("{v4},{v6}");
        begin(world, "web-0", "node-1", Some(&both));
        let given: Vec<String> = runs(world, "web-0").iter().map(IpAddr::to_string).collect();
        assert_eq!(given, [v4.clone(), v6.clone()]);
        for (name, node, ip, words) in [
            ("taken", "node-1", v4.as_str(), vec![v4.as_str(), "pod default/web-0"]),
            ("outside", "node-2", &v4, vec!["causeway.dev/ip", &v4, "node-1 (10.244."]),
            ("nowhere", "node-2", "10.99.0.1", vec!["no node has a range with it"]),
            ("bad", "node-1", "10.244.1", vec!["\"10.244.1\" is no IP address"]),
            ("twice", "node-1", "10.244.1.8,10.244.1.9", vec!["of the same family"]),
        ] {
            begin(world, name, node, Some(ip));
            is_refused(world, name, &words);
        }
        // It is free once its pod is gone.
        end(world, "web-0");
        assert!(runs(world, "taken").contains(&v4.parse().unwrap()));
        // Where the runtime does not hand on annotations, plugins ask the agent.
        let ask = |path: &str| {
            let said = causeway_agent::client::request(&world.socket("node-1"), "GET", path);
            said.map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(ask("/v1/pods/default/taken"), Ok(v4.clone()));
        assert!(ask("/v1/pods/default/nobody").unwrap_err().contains("has not shown up"));
    });
}
