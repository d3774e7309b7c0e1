//! Pods with ports of the node.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Value, json};

use super::outside::uplink;
use super::{Node, in_pod, sh};

/// A node with `lo` and, on a network of its own, the namespace `ext`.
pub fn node() -> Node {
    let node = Node::new();
    uplink(&node);
    node
}

pub fn bridge() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

pub fn portmap(mappings: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "portmap",
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": mappings}
    })
}

pub fn mapping(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

/// The configuration of `portmap` behind the result of `bridge`.
pub fn chained(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// A pod on the bridge, with its ports.
pub fn start(node: &Node, pod: &str, ports: &Value) -> Value {
    start_on(node, pod, ports, false)
}

pub fn start_on(node: &Node, pod: &str, ports: &Value, hairpin: bool) -> Value {
    node.pod(pod);
    let mut conf = bridge();
    conf["hairpinMode"] = json!(hairpin);
    let result = node.add(pod, &conf);
    // The bridge has no link-local address to ask for neighbours with until it is found to be
    // nobody else's.
    while !sh("ip -6 addr show dev cni0 tentative").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let after = node.add(pod, &chained(ports, &result));
    assert_eq!(after, result, "the result is passed through");
    result
}

pub fn address(result: &Value, number: usize) -> String {
    result["ips"][number]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

/// The result of the first pod on the bridge.
pub fn first(_: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/p1"}],
        "ips": [
            {"interface": 0, "address": "10.9.0.2/24"}, {"interface": 0, "address": "fd09::2/64"}
        ]
    })
}

pub fn node_result(pod: &str) -> Value {
    let ip = in_pod(pod, "ip -4 -o addr show eth0");
    let ip = ip.split_whitespace().nth(3).unwrap();
    json!({"ips": [{"address": ip}]})
}

/// The node's rules without the masquerade of pods, which carries their marks as well.
pub fn rules() -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        inside = (inside && line.trim() != "}") || line.contains("map masq");
        !inside
    };
    let all = sh("nft list ruleset");
    all.lines().filter(keep).collect::<Vec<_>>().join("\n")
}
