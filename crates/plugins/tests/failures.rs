//! A step that fails takes back what went before it; many at once do not get in each other's way.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{Node, finish, pings, sh, tutorial};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::json;

/// An empty directory in which nothing can be written.
fn read_only(dir: &str) {
    fs::create_dir_all(dir).unwrap();
    mount("tmpfs", dir, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_remount(dir, MountFlags::RDONLY, "").unwrap();
}

#[test]
fn leases_cannot_be_written() {
    let node = Node::new();
    node.pod("p1");
    let conf = tutorial("1.0.0");
    read_only("/var/lib/cni");
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("/var/lib/cni"), "{message}");
    assert_eq!(node.residue(), "");
    unmount("/var/lib/cni", UnmountFlags::empty()).unwrap();
    node.add("p1", &conf);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn the_bridge_is_something_else() {
    let node = Node::new();
    node.pod("p1");
    sh("ip link add cni0 type veth peer name other");
    let before = node.residue();
    let conf = tutorial("1.0.0");
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999);
    assert!(message.contains("cni0"), "{message}");
    assert_eq!(node.residue(), before);
}

#[test]
fn the_gateway_address_is_in_the_way() {
    let node = Node::new();
    node.pod("p1");
    sh("ip link add cni0 type bridge && ip addr add 172.31.0.1/24 dev cni0");
    let (code, _) = node.call("ADD", "p1", &tutorial("1.0.0")).run().err();
    assert_eq!(code, 999);
    assert_eq!(node.residue(), "");
}

#[test]
fn the_pods_side_fails() {
    let node = Node::new();
    node.pod("p1");
    // A route of the configuration is there already: the last step in the pod fails.
    sh("ip -n p1 link add d0 type bridge && ip -n p1 link set d0 up");
    sh("ip -n p1 addr add 192.0.2.1/24 dev d0 && ip -n p1 route add default via 192.0.2.2");
    let (code, message) = node.call("ADD", "p1", &tutorial("1.0.0")).run().err();
    assert_eq!(code, 999);
    assert!(message.contains("0.0.0.0/0"), "{message}");
    assert_eq!(node.residue(), "");
    assert!(!sh("ip -n p1 link").contains("eth0"));
}

/// A container that is gone without a DEL, and comes again under its old name: nothing stays of the
/// addresses that it had.
#[test]
fn a_container_comes_again_without_a_del() {
    let bridge = tutorial("1.0.0");
    let ipam = bridge["ipam"].clone();
    let ptp = json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "ptp", "ipMasq": true, "ipam": ipam
    });
    for conf in [bridge, ptp] {
        let test = move || {
            let node = Node::new();
            node.pod("p1");
            node.add("p1", &conf);
            let first = node.residue();
            node.remove_pod("p1");
            common::until("the pair is gone", || sh("ip -o link show type veth").is_empty());
            node.pod("p1");
            node.add("p1", &conf);
            let count = |residue: &str| residue.matches("elements =").count();
            assert_eq!(count(&node.residue()), count(&first), "{}", node.residue());
            assert!(!sh("nft list ruleset").contains("10.244.0.2"), "the first address");
            node.del("p1", &conf);
            assert_eq!(node.residue(), "");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// Field failure 8: what is left of a namespace that was unmounted is a plain file. DEL succeeds there,
/// and waits for nobody.
#[test]
fn failure_08_the_namespace_is_something_else() {
    let node = Node::new();
    fs::write("/run/plain", "").unwrap();
    sh("mkfifo /run/pipe");
    let conf = tutorial("1.0.0");
    let lo = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    for path in ["/run/plain", "/run/pipe", "/run", "/run/gone", ""] {
        node.pod("p1");
        node.add("p1", &conf);
        node.remove_pod("p1");
        for conf in [&conf, &lo] {
            let mut call = node.call("DEL", "p1", conf);
            call.netns = Some(path.to_owned());
            let mut child = call.spawn();
            let start = std::time::Instant::now();
            while child.try_wait().unwrap().is_none() {
                if start.elapsed() > std::time::Duration::from_secs(20) {
                    child.kill().unwrap();
                    panic!("DEL hangs at {path:?}");
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            finish(child).ok();
        }
        assert_eq!(node.residue(), "", "{path:?}");
    }
}

/// Without a descriptor to open it by, a namespace is not taken for gone.
#[test]
fn del_that_cannot_look_does_not_say_that_it_is_done() {
    let node = Node::new();
    node.pod("p1");
    let conf = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let (mut done, mut failed) = (0, 0);
    for descriptors in 3..12 {
        sh("ip -n p1 link set lo up");
        let script = format!("#!/bin/sh\nulimit -n {descriptors}\nexec /run/bin/loopback\n");
        fs::write("/run/limited", script).unwrap();
        sh("chmod +x /run/limited");
        let mut call = node.call("DEL", "p1", &conf);
        call.program = Some("/run/limited".to_owned());
        let code = call.run().code;
        let up = sh("ip -n p1 link show lo").contains(",UP");
        assert_eq!(code != 0, up, "{descriptors} descriptors: code {code}, lo up: {up}");
        if up { failed += 1 } else { done += 1 }
    }
    assert!(done > 0 && failed > 0, "{done} done, {failed} failed");
}

#[test]
fn many_at_once_get_addresses_of_their_own() {
    let node = Node::new();
    let conf = tutorial("1.0.0");
    let pods: Vec<String> = (0..32).map(|n| format!("p{n}")).collect();
    for pod in &pods {
        node.pod(pod);
    }
    let running: Vec<_> = pods.iter().map(|pod| node.call("ADD", pod, &conf).spawn()).collect();
    let results: Vec<_> = running.into_iter().map(|child| finish(child).ok()).collect();
    let addresses: BTreeSet<String> =
        results.iter().map(|r| r["ips"][0]["address"].to_string()).collect();
    assert_eq!(addresses.len(), pods.len());
    let macs: BTreeSet<String> =
        results.iter().map(|r| r["interfaces"][0]["mac"].to_string()).collect();
    assert_eq!(macs.len(), 1, "one bridge");
    assert!(pings("p0", "10.244.0.1") && pings("p31", "10.244.0.2"));
    let rules = sh("nft list table inet causeway_cni");
    assert_eq!(rules.matches("masquerade").count(), 1, "one chain for all: {rules}");
    assert_eq!(rules.matches("vmap @").count(), 2, "one rule a family: {rules}");

    let running: Vec<_> = pods.iter().map(|pod| node.call("DEL", pod, &conf).spawn()).collect();
    for child in running {
        finish(child).ok();
    }
    assert_eq!(node.residue(), "");
}

#[test]
fn gc_removes_what_is_not_listed() {
    let node = Node::new();
    let mut conf = tutorial("1.1.0");
    for pod in ["p1", "p2", "p3"] {
        node.pod(pod);
        node.add(pod, &conf);
    }
    fs::write("/var/lib/cni/networks/pod-network/10.244.0.77", "").unwrap();
    let (code, _) = node.call("GC", "", &conf).run().err();
    assert_eq!(code, 7, "without a list nothing is removed");
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "p2", "ifname": "eth0"}]);
    node.call("GC", "", &conf).run().ok();
    assert!(pings("p2", "10.244.0.1"));
    let left = node.residue();
    assert!(left.contains("10.244.0.3") && !left.contains("10.244.0.2"), "{left}");
    assert!(!left.contains("10.244.0.77"), "{left}");
    assert!(!sh("ip -n p1 link").contains("eth0"));
    node.del("p2", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn check_finds_each_damage() {
    let node = Node::new();
    node.pod("p1");
    let conf = tutorial("1.0.0");
    let result = node.add("p1", &conf);
    let host = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    let mut check = conf.clone();
    check["prevResult"] = result;
    let ok = || node.call("CHECK", "p1", &check).run().code == 0;
    assert!(ok());
    let lease = "/var/lib/cni/networks/pod-network/10.244.0.2";
    let element = "inet causeway_cni masq4 '{ 10.244.0.2";
    let verdict = sh("nft list map inet causeway_cni masq4");
    let chain =
        verdict.split("goto ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let damages = [
        (
            "ip -n p1 addr del 10.244.0.2/16 dev eth0".to_owned(),
            "ip -n p1 addr add 10.244.0.2/16 dev eth0; ip -n p1 route add default via 10.244.0.1"
                .to_owned(),
        ),
        ("ip -n p1 route del default".into(), "ip -n p1 route add default via 10.244.0.1".into()),
        (format!("ip link set {host} nomaster"), format!("ip link set {host} master cni0")),
        (format!("mv {lease} /run/lease"), format!("mv /run/lease {lease}")),
        (
            format!("nft delete element {element} }}'"),
            format!("nft add element {element} : goto {chain} }}'"),
        ),
        ("ip addr del 10.244.0.1/16 dev cni0".into(), "ip addr add 10.244.0.1/16 dev cni0".into()),
        (
            "ip -n p1 link set eth0 down".into(),
            "ip -n p1 link set eth0 up; ip -n p1 route add default via 10.244.0.1".into(),
        ),
    ];
    for (damage, repair) in damages {
        sh(&damage);
        let (code, message) = node.call("CHECK", "p1", &check).run().err();
        assert_eq!(code, 999, "{damage}: {message}");
        sh(&repair);
        assert!(ok(), "{repair}: {:?}", node.call("CHECK", "p1", &check).run());
    }
    sh(&format!("ip link del {host}"));
    assert_eq!(node.call("CHECK", "p1", &check).run().err().0, 999);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}
