//! Side by side with the reference plugins, where they are installed.

mod common;

use std::fs;

use common::reference::script;
use common::reference::{REFERENCE, installed};
use common::{Node, in_pod, pings, tutorial};
use serde_json::Value;

/// Puts a plugin of the reference in the place of ours.
fn reference_in_place(node: &Node, name: &str) {
    let path = format!("{}/{name}", node.bin_dir);
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(format!("{REFERENCE}/{name}"), path).unwrap();
}

/// A value with its leaves replaced by their kinds, except those that must be equal.
fn shape(value: &Value, key: &str) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), shape(v, k))).collect(),
        Value::Array(list) => list.iter().map(|v| shape(v, key)).collect(),
        Value::String(text) if key == "mac" => Value::from(text.len()),
        Value::String(text) if key == "name" && text != "cni0" && text != "eth0" => {
            Value::from("host end")
        }
        other => other.clone(),
    }
}

#[test]
fn results_have_the_same_shape() {
    if !installed("bridge") {
        return;
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let run = move |bin: &'static str| {
            let done = std::thread::spawn(move || {
                let node = Node::new();
                let conf = tutorial(version);
                node.pod("p1");
                let mut call = node.call("ADD", "p1", &conf);
                call.bin_dir = bin;
                let mut result = call.run().ok();
                if version == "1.0.0" && result["dns"] == serde_json::json!({}) {
                    // From 1.0.0 it is left out when empty; older reference plugins print it.
                    result.as_object_mut().unwrap().remove("dns");
                }
                (shape(&result, ""), in_pod("p1", "ip route"))
            });
            done.join().unwrap()
        };
        assert_eq!(run(common::BIN_DIR), run(REFERENCE), "{version}");
    }
}

#[test]
fn each_reads_the_others_leases() {
    if !installed("bridge") {
        return;
    }
    let node = Node::new();
    // Each masquerades in its own way, which the other does not take down.
    let mut conf = tutorial("1.0.0");
    conf["ipMasq"] = false.into();
    let mut taken = Vec::new();
    for (pod, bin) in
        [("p1", REFERENCE), ("p2", common::BIN_DIR), ("p3", REFERENCE), ("p4", common::BIN_DIR)]
    {
        node.pod(pod);
        let mut call = node.call("ADD", pod, &conf);
        call.bin_dir = bin;
        taken.push(call.run().ok()["ips"][0]["address"].as_str().unwrap().to_owned());
    }
    assert_eq!(taken, ["10.244.0.2/16", "10.244.0.3/16", "10.244.0.4/16", "10.244.0.5/16"]);
    assert!(pings("p1", "10.244.0.3") && pings("p2", "10.244.0.4") && pings("p4", "10.244.0.2"));

    // Ours takes down what the reference made, and the other way round.
    for (pod, bin) in [("p1", common::BIN_DIR), ("p2", REFERENCE)] {
        let mut call = node.call("DEL", pod, &conf);
        call.bin_dir = bin;
        call.run().ok();
        assert!(!in_pod(pod, "ip link").contains("eth0"), "{pod}");
    }
    let left: Vec<String> = fs::read_dir("/var/lib/cni/networks/pod-network")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("10."))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// One that Causeway does not have: it notes what it is asked, and gives one address.
#[test]
fn a_foreign_ipam_plugin_is_called() {
    let node = Node::new();
    let text = r#"#!/bin/sh
        echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> /run/asked
        cat > /run/input
        [ "$CNI_COMMAND" = ADD ] || exit 0
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.7.0.5/24", "gateway": "10.7.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}]}'
    "#;
    script(&node, "of-others", text);
    for kind in ["bridge", "ptp"] {
        let mut conf = tutorial("1.0.0");
        conf["type"] = kind.into();
        conf["ipam"] = serde_json::json!({"type": "of-others", "word": "for the other plugin"});
        let pod = format!("p-{kind}");
        node.pod(&pod);
        let result = node.add(&pod, &conf);
        assert_eq!(result["ips"][0]["address"], "10.7.0.5/24");
        assert!(pings(&pod, "10.7.0.1"));
        assert!(fs::read_to_string("/run/input").unwrap().contains("for the other plugin"));
        conf["prevResult"] = result;
        assert_eq!(node.call("CHECK", &pod, &conf).run().code, 0);
        node.del(&pod, &conf);
        assert_eq!(node.residue(), "");
        let asked = fs::read_to_string("/run/asked").unwrap();
        assert_eq!(asked, format!("ADD {pod} eth0\nCHECK {pod} eth0\nDEL {pod} eth0\n"));
        fs::remove_file("/run/asked").unwrap();
        if kind == "bridge" {
            // It keeps the gateway's address, which the other pod is to have at its own end.
            common::sh("ip link del cni0");
        }
    }
}

#[test]
fn our_host_local_serves_a_foreign_main_plugin() {
    if !installed("bridge") {
        return;
    }
    let node = Node::new();
    reference_in_place(&node, "ptp");
    let mut conf = tutorial("1.0.0");
    conf["type"] = "ptp".into();
    conf["ipMasq"] = false.into();
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["ips"][0]["address"], "10.244.0.2/16");
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}
