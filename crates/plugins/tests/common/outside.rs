//! The world beside a node: namespace `ext`, on a network of its own with the node.
#![allow(dead_code, unreachable_pub)]

use super::{Node, in_pod, sh, try_sh};

/// The node's addresses on that network.
pub const NODE: [&str; 2] = ["192.168.7.1", "fd07::1"];
/// Those of `ext`.
pub const EXT: [&str; 2] = ["192.168.7.2", "fd07::2"];

/// A node with the namespace `ext`, which knows the way to pods.
pub fn node() -> Node {
    let node = Node::new();
    uplink(&node);
    in_pod("ext", "ip route add default via 192.168.7.1");
    in_pod("ext", "ip -6 route add default via fd07::1");
    node
}

/// Joins a node with `lo` and, on a network of its own, the namespace `ext`.
pub fn uplink(node: &Node) {
    node.pod("ext");
    sh("ip link set lo up");
    // With it the bridge would ask the forward hook for packets within it.
    let _ = try_sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    let _ = try_sh("sysctl -qw net.bridge.bridge-nf-call-ip6tables=0");
    sh("ip link add up0 type veth peer name up0 netns ext");
    sh("ip addr add 192.168.7.1/24 dev up0 && ip -6 addr add fd07::1/64 dev up0 nodad");
    sh("ip link set up0 up");
    in_pod("ext", "ip addr add 192.168.7.2/24 dev up0");
    in_pod("ext", "ip -6 addr add fd07::2/64 dev up0 nodad");
    in_pod("ext", "ip link set up0 up");
    for ip in NODE {
        in_pod("ext", &format!("ping -c1 -W3 -n {ip}"));
    }
}

/// Address and port.
pub fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
