//! Type `bridge` with addresses from a DHCP server, by the reference's plugin `dhcp` and its daemon:
//! both need the interface in its place, before there is an address and until it is given back.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::programs::{Daemon, bring};
use common::reference::{REFERENCE, installed, script};
use common::{Node, sh, try_sh, until};
use serde_json::{Value, json};

/// A bridge with a DHCP server behind a port.
fn server() -> Daemon {
    sh("ip link add cni0 type bridge && ip link set cni0 up && ip netns add srv");
    sh("ip link add srv0 type veth peer name eth0 netns srv && ip link set srv0 up master cni0");
    sh("ip -n srv addr add 10.9.0.1/24 dev eth0 && ip -n srv link set eth0 up");
    let conf = "start 10.9.0.50\nend 10.9.0.60\ninterface eth0\nlease_file /run/leases\n\
                pidfile /run/udhcpd.pid\noption subnet 255.255.255.0\noption router 10.9.0.1\n\
                option lease 600\n";
    fs::write("/run/udhcpd.conf", conf).unwrap();
    fs::write("/run/leases", "").unwrap();
    Daemon::start("udhcpd", "ip netns exec srv busybox udhcpd -f /run/udhcpd.conf")
}

/// The reference's daemon, which keeps the leases.
fn keeper() -> Daemon {
    fs::create_dir_all("/run/cni").unwrap();
    let mut daemon = Daemon::start("dhcp", &format!("{REFERENCE}/dhcp daemon"));
    daemon.ready("test -S /run/cni/dhcp.sock");
    daemon
}

fn conf(kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "bridge", "ipMasq": true,
        "ipam": {"type": kind},
    })
}

#[test]
fn addresses_by_dhcp() {
    if !installed("dhcp") {
        return;
    }
    let node = Node::new();
    bring(&["busybox"]);
    let _server = server();
    let _keeper = keeper();
    symlink(format!("{REFERENCE}/dhcp"), format!("{}/dhcp", node.bin_dir)).unwrap();
    let conf = conf("dhcp");
    let mut known = Vec::new();
    for pod in ["p1", "p2"] {
        node.pod(pod);
        let result = node.add(pod, &conf);
        let ip = result["ips"][0]["address"].as_str().unwrap().to_owned();
        assert!(ip.starts_with("10.9.0.5") && ip.ends_with("/24"), "{ip}");
        assert!(sh(&format!("ip -n {pod} addr show eth0")).contains(&ip), "{ip}");
        sh(&format!("ip netns exec {pod} ping -c1 -W5 -n 10.9.0.1"));
        let mut conf = conf.clone();
        conf["prevResult"] = result;
        node.call("CHECK", pod, &conf).run().ok();
        known.push((ip, conf));
    }
    assert_ne!(known[0].0, known[1].0);
    assert!(sh("nft list ruleset").contains("10.9.0.5"));
    // Given back to the server, so that it may give it out at once.
    let held = |ip: &str| {
        let ip = ip.split('/').next().unwrap();
        sh("kill -USR1 $(cat /run/udhcpd.pid)");
        try_sh("busybox dumpleases -f /run/leases")
            .1
            .lines()
            .any(|l| l.contains(ip) && !l.contains("expired"))
    };
    until("the server knows the lease", || held(&known[0].0));
    node.del("p1", &known[0].1);
    until("the lease is given back", || !held(&known[0].0));
    assert!(held(&known[1].0));
    sh("ip netns exec p2 ping -c1 -W5 -n 10.9.0.1");
    node.del("p2", &known[1].1);
    node.del("p2", &known[1].1);
    for pod in ["p1", "p2"] {
        assert!(!sh(&format!("ip -n {pod} link")).contains("eth0"));
    }
    let left: Vec<String> =
        node.residue().lines().filter(|l| !l.contains("srv0")).map(str::to_owned).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// It is asked when packets pass, says goodbye while they do, and what it refuses leaves nothing.
#[test]
fn the_interface_is_there_when_addresses_are_asked_for() {
    let node = Node::new();
    let text = r#"#!/bin/sh
        carrier=$(ip -n p1 -o link show eth0 | grep -c LOWER_UP)
        echo "$CNI_COMMAND $carrier $(ip -o link show master cni0 | grep -c forwarding)" >> /run/asked
        [ "$CNI_COMMAND" = ADD ] || exit 0
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"},
              {"address": "fd05::5/64", "gateway": "fd05::1"}]}'
        [ ! -e /run/fails ]
    "#;
    script(&node, "of-others", &text.replace(" | grep -c forwarding", " | wc -l"));
    let mut conf = conf("of-others");
    conf["isGateway"] = true.into();
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    for ip in ["10.5.0.1", "fd05::1"] {
        sh(&format!("ip netns exec p1 ping -c1 -W5 -n {ip}"));
    }
    let (_, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(message.contains("call DEL"), "{message}");
    sh("ip netns exec p1 ping -c1 -W5 -n 10.5.0.1");
    let mut known = conf.clone();
    known["prevResult"] = result;
    node.call("CHECK", "p1", &known).run().ok();
    node.del("p1", &known);
    assert_eq!(node.residue(), "");
    fs::write("/run/fails", "").unwrap();
    node.call("ADD", "p1", &conf).run().err();
    assert_eq!(node.residue(), "");
    let asked = fs::read_to_string("/run/asked").unwrap();
    assert_eq!(asked, "ADD 1 1\nCHECK 1 1\nDEL 1 1\nADD 1 1\n");
}
