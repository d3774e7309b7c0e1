//! Files that an agent and plugins of other versions left: a newer one, which writes more than this one
//! knows, and an older one, which wrote less. They are taken over, nothing changes for pods, and what this
//! version does not know stays for the one that does.

use std::path::Path;

use causeway_desired::input::Config;
use causeway_plugins::collect::{Collector, Network};
use serde_json::{Value, json};

use crate::adopt::Monitor;
use crate::node::{DEADLINE, Node, Stack, each_stack, eventually, run, with};
use crate::world;

fn read(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Puts keys that nobody knows into every object of a value but maps of names.
fn add_keys(value: &mut Value) {
    match value {
        Value::Object(all) => {
            all.values_mut().for_each(add_keys);
            all.insert("ofALaterVersion".into(), json!({"x": [1, {"y": null}]}));
        }
        Value::Array(all) => all.iter_mut().for_each(add_keys),
        _ => {}
    }
}

/// The files as a newer version writes them.
fn renew(node: &Node) {
    let mut file = read(&node.paths.node_file);
    add_keys(&mut file);
    write(&node.paths.node_file, &file);
    let mut view = read(&node.paths.last_view);
    for entry in view["nodes"].as_object_mut().unwrap().values_mut() {
        add_keys(entry);
    }
    view["policies"] = json!({"a/b": {"types": ["Ingress"]}});
    write(&node.paths.last_view, &view);
    for name in node.records_of("") {
        let path = node.paths.attachments.join(name);
        let mut record = read(&path);
        add_keys(&mut record);
        write(&path, &record);
    }
    let mut owned = read(&node.paths.owned);
    owned["keys"].as_array_mut().unwrap().extend(later_keys());
    owned["format"] = json!(2);
    write(&node.paths.owned, &owned);
}

/// Keys of objects that this version does not make.
fn later_keys() -> Vec<Value> {
    vec![
        json!({"rule": {"family": "ipv4", "priority": 1000}}),
        json!({"route": {"table": 254, "dst": "10.99.0.0/16", "metric": 0, "tos": 8}}),
    ]
}

/// The same as an older version wrote them: without all that came later.
fn age(node: &Node) {
    for name in node.records_of("") {
        let path = node.paths.attachments.join(name);
        let mut record = read(&path);
        let older = [
            "containerId",
            "ifname",
            "netns",
            "network",
            "attach",
            "pending",
            "hostIfname",
            "mac",
            "hostMac",
            "mtu",
            "addresses",
            "gateways",
            "bootId",
        ];
        record.as_object_mut().unwrap().retain(|key, _| older.contains(&key.as_str()));
        write(&path, &record);
    }
    let mut file = read(&node.paths.node_file);
    let later = ["extraCidrs", "reserved", "coolDown", "policyNamespaces", "ofALaterVersion"];
    file.as_object_mut().unwrap().retain(|key, _| !later.contains(&key.as_str()));
    write(&node.paths.node_file, &file);
    let mut view = read(&node.paths.last_view);
    for entry in view["nodes"].as_object_mut().unwrap().values_mut() {
        entry
            .as_object_mut()
            .unwrap()
            .retain(|key, _| ["addresses", "podCidrs"].contains(&key.as_str()));
    }
    view.as_object_mut().unwrap().retain(|key, _| key == "nodes");
    write(&node.paths.last_view, &view);
}

/// All that the kernel holds, as text.
fn kernel() -> [String; 4] {
    ["ip -4 route", "ip -6 route", "nft -s list ruleset", "ip -d link show cw-vxlan"].map(run)
}

#[test]
fn files_of_other_versions_are_taken_over() {
    each_stack(|node| {
        world::surround(node);
        node.start_with(node.three());
        let pod = world::pod(node, "p1", 5);
        node.assert_whole();
        eventually("its own address of the tunnel is settled", DEADLINE, || {
            let tentative = run("ip -6 addr show tentative");
            if tentative.is_empty() { Ok(()) } else { Err(tentative) }
        });
        let before = kernel();
        for file in [&node.paths.owned, &node.paths.last_view, &node.paths.node_file] {
            println!("{} {}", file.display(), read(file));
        }
        for (what, change) in [("newer", renew as fn(&Node)), ("older", age), ("newer", renew)] {
            node.stop();
            change(node);
            let monitor = Monitor::start();
            node.start_with(node.three());
            eventually("the pod is known", DEADLINE, || {
                let known = node.status().inputs.attachments == 1;
                if known { Ok(()) } else { Err(node.wrong()) }
            });
            node.assert_whole();
            assert_eq!(monitor.stop(), "", "{what}: nothing is written");
            assert_eq!(kernel(), before, "{what}");
            let status = node.status();
            assert_eq!(status.problems, [], "{what}");
            assert_eq!((status.repairs, status.ready), (0, true), "{what}");
            for ip in &pod.addresses {
                run(&format!("ping -c1 -W2 {}", ip.addr()));
            }
        }
        // What only the newer one knows is named, and still there after a change of the rest.
        let strangers = node.status().strangers;
        assert_eq!(strangers.len(), 2, "{strangers:?}");
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() != "node-3");
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(view));
        eventually("the rest is swept", DEADLINE, || {
            let left = node.routes_to(3).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        let owned = eventually("its keys are erased", DEADLINE, || {
            let owned = read(&node.paths.owned);
            let text = owned.to_string();
            let left = text.contains("10.244.3.") || text.contains("fd00:10:244:3:");
            if left { Err(text) } else { Ok(owned) }
        });
        let keys = owned["keys"].as_array().unwrap();
        assert!(later_keys().iter().all(|key| keys.contains(key)), "{owned}");
        assert_eq!(owned["format"], 2);
    });
}

/// A pod that a newer version attached in its own way: it is left alone, whatever the agent made for it, and
/// its address is not given out again while its namespace is there.
#[test]
fn a_pod_of_another_version_is_left_alone() {
    with(Stack::Dual, Config::default(), |node| {
        world::surround(node);
        node.start_with(node.three());
        let pod = world::pod(node, "p1", 5);
        // The agent made what the node holds for it, and noted that.
        let owned = read(&node.paths.owned).to_string();
        assert!(owned.contains("10.244.1.5/32"), "{owned}");
        node.stop();
        let leases = node.paths.leases.join("pod-network");
        std::fs::create_dir_all(&leases).unwrap();
        std::fs::write(leases.join("10.244.1.5"), "p1\r\neth0").unwrap();
        let path = node.paths.attachments.join("p1-eth0.json");
        let mut record = read(&path);
        record["attach"] = json!("netkit");
        record["hostIfname"] = json!("nk0");
        write(&path, &record);
        node.start_with(node.three());
        eventually("the record is named", DEADLINE, || {
            let problems = node.status().problems;
            let named = problems.iter().any(|p| p.message.contains("p1-eth0.json"));
            if named { Ok(()) } else { Err(node.wrong()) }
        });
        // A change that sweeps all that nobody wants.
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() == "node-1");
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(view));
        eventually("peers are gone", DEADLINE, || {
            let left = node.routes_to(2).concat() + &node.routes_to(3).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        for ip in &pod.addresses {
            let family = if ip.addr().is_ipv6() { "-6" } else { "-4" };
            assert!(!run(&format!("ip {family} route show {ip}")).is_empty(), "{ip}");
            run(&format!("ping -c1 -W2 {}", ip.addr()));
        }
        // Its end on the node has another name for this version.
        run(&format!("ip link set {} down", pod.host_ifname));
        run(&format!("ip link set {} name nk0", pod.host_ifname));
        let network =
            Network { paths: node.paths.of_plugins(), name: "pod-network".into(), own: true };
        let mut collector = Collector::new(network);
        for _ in 0..3 {
            assert_eq!(collector.observe().unwrap().released, []);
        }
        assert!(leases.join("10.244.1.5").exists() && path.exists());
        assert_eq!(read(&path), record, "left as it is");
        // When it is gone for good the address comes back, in time.
        run("ip netns del p1");
        let gone = |collector: &mut Collector| collector.observe().unwrap().released.len();
        eventually("released", DEADLINE, || {
            let released = gone(&mut collector);
            if released == 1 { Ok(()) } else { Err(released.to_string()) }
        });
    });
}
