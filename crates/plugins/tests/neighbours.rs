//! What neighbours on a bridge remember of an address is true of the pod that has it now.

mod common;

use common::{Node, sh, try_sh};
use serde_json::{Value, json};

/// A range of one address for pods beside that of the neighbour.
struct Net {
    subnet: &'static str,
    neighbour: &'static str,
    pod: &'static str,
}

const V4: Net = Net { subnet: "10.9.0.0/24", neighbour: "10.9.0.2", pod: "10.9.0.3" };
const V6: Net = Net { subnet: "fd00:9::/64", neighbour: "fd00:9::2", pod: "fd00:9::3" };
/// One family, and both.
const NETS: [&[Net]; 3] = [&[V4], &[V6], &[V4, V6]];

fn conf(nets: &[Net]) -> Value {
    let range = |net: &Net| json!([{"subnet": net.subnet, "rangeStart": net.neighbour, "rangeEnd": net.pod}]);
    let ranges: Vec<Value> = nets.iter().map(range).collect();
    json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "bridge", "isGateway": true,
        "ipam": {"type": "host-local", "ranges": ranges},
    })
}

/// One packet, and no time to find out that a neighbour is not there any more.
#[track_caller]
fn reached_at_once(nets: &[Net], when: &str) {
    for net in nets {
        let ping = format!("ip netns exec n ping -c1 -W1 -n {}", net.pod);
        let (ok, text) = try_sh(&ping);
        let table = sh("ip -n n neigh show dev eth0; ip -n n -6 neigh show dev eth0");
        assert!(ok, "{} is not reached {when}: {text}{table}", net.pod);
    }
}

/// A node with a neighbour that has the first address.
fn start(conf: &Value) -> Node {
    let node = Node::new();
    node.pod("n");
    node.add("n", conf);
    for pod in ["p1", "p2", "p3"] {
        node.pod(pod);
    }
    node
}

/// DEL as newer runtimes call it.
fn del(node: &Node, pod: &str, conf: &Value, result: Value) {
    let mut conf = conf.clone();
    conf["prevResult"] = result;
    node.del(pod, &conf);
}

#[test]
fn the_next_pod_with_an_address_has_its_mac() {
    for nets in NETS {
        let conf = conf(nets);
        let node = start(&conf);
        let first = node.add("p1", &conf);
        reached_at_once(nets, "at first");
        del(&node, "p1", &conf, first.clone());
        let second = node.add("p2", &conf);
        assert_eq!(first["interfaces"][2]["mac"], second["interfaces"][2]["mac"]);
        reached_at_once(nets, "as the next pod");
        // Without a previous result it is looked up in the pod.
        node.del("p2", &conf);
        node.add("p3", &conf);
        reached_at_once(nets, "as the third");
        assert!(nets.len() > 1 || !noted(), "nobody can remember another MAC");
    }
}

fn noted() -> bool {
    sh("ls -A /var/lib/cni/networks/pod-network").contains(".other-mac-")
}

#[test]
fn a_pod_after_one_with_a_mac_of_its_choice() {
    for nets in NETS {
        let conf = conf(nets);
        let node = start(&conf);
        let mut chosen = conf.clone();
        chosen["runtimeConfig"] = json!({"mac": "02:00:00:00:00:17"});
        let first = node.add("p1", &chosen);
        assert_eq!(first["interfaces"][2]["mac"], "02:00:00:00:00:17");
        reached_at_once(nets, "with a MAC of its choice");
        del(&node, "p1", &chosen, first);
        assert!(noted());
        node.add("p2", &conf);
        reached_at_once(nets, "after one with a MAC of its choice");
        node.del("p2", &conf);
        let again = node.add("p3", &chosen);
        reached_at_once(nets, "with a MAC of its choice after one without");
        // The runtime has lost the result, and the namespace is gone.
        node.remove_pod("p3");
        let mut call = node.call("DEL", "p3", &conf);
        call.netns = None;
        call.run().ok();
        drop(again);
        node.add("p1", &conf);
        reached_at_once(nets, "after one that nobody remembers");
    }
}

/// As after an upgrade in place: who was on the bridge before is not known.
#[test]
fn a_pod_on_a_bridge_that_others_made() {
    for nets in NETS {
        let conf = conf(nets);
        let node = Node::new();
        for pod in ["n", "old", "p1"] {
            node.pod(pod);
        }
        sh("ip link add cni0 type bridge && ip link set cni0 up");
        sh(
            "ip link add old0 type veth peer name eth0 netns old && ip link set old0 up master cni0",
        );
        node.add("n", &conf);
        for net in nets {
            let prefix = net.subnet.split('/').nth(1).unwrap();
            let nodad = if net.pod.contains(':') { "nodad" } else { "" };
            sh(&format!("ip -n old addr add {}/{prefix} dev eth0 {nodad}", net.pod));
        }
        sh("ip -n old link set eth0 up");
        for net in nets {
            sh(&format!("ip netns exec n ping -c3 -i0.3 -W2 -n {}", net.pod));
        }
        sh("ip link del old0");
        node.add("p1", &conf);
        reached_at_once(nets, "after a pod of others");
    }
}
