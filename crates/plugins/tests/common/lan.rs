//! A network beside a node, for types whose pods have their link past the node.
#![allow(dead_code, unreachable_pub)]

use super::sh;

/// `device` is the node's interface, with a cable to a machine (namespace `lan`) that has the
/// addresses.
pub fn lan_with(device: &str, addresses: &[&str]) {
    sh(&format!("ip netns add lan && ip link add {device} type veth peer name eth0 netns lan"));
    sh(&format!(
        "ip link set {device} up && ip -n lan link set eth0 up && ip -n lan link set lo up"
    ));
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        sh(&format!("ip -n lan addr add {address} dev eth0 {nodad}"));
    }
}

/// The same with .1 and ::1 of the subnets 10.5.0.0/24 and fd05::/64.
pub fn lan(device: &str) {
    lan_with(device, &["10.5.0.1/24", "fd05::1/64"]);
}
