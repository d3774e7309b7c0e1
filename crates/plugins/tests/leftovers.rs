//! Notes on host ports, packets and links of pods that are gone without DEL: the agent's sweep finds
//! them, and removes them with what they speak of, after two looks.

mod common;

use std::fs;
use std::path::PathBuf;

use causeway_plugins::Paths;
use causeway_plugins::leftovers::{Leftovers, Swept};
use common::chained::{after, network};
use common::ways::check;
use common::{Node, in_pod, sh, until};
use serde_json::{Value, json};

fn chain(name: &str, port: u16, result: &Value) -> [Value; 2] {
    let mapping =
        |protocol: &str| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
    let ports = json!({"runtimeConfig": {"portMappings": [mapping("tcp"), mapping("udp")]}});
    let mut both = [after("portmap", &ports, result), after("firewall", &json!({}), result)];
    both.iter_mut().for_each(|conf| conf["name"] = json!(name));
    both
}

fn add(node: &Node, name: &str, conf: &Value, port: u16) -> Value {
    node.pod(name);
    let result = node.add(name, conf);
    for conf in chain("net1", port, &result) {
        node.add(name, &conf);
    }
    result
}

fn observe(leftovers: &mut Leftovers) -> Vec<String> {
    let Swept { removed, failed } = leftovers.observe().unwrap();
    assert_eq!(failed, [""; 0]);
    removed
}

fn notes() -> String {
    sh("cd /var/lib/causeway && find portmap firewall links -type f 2>/dev/null | sort || true")
}

fn rules() -> String {
    sh("nft list table inet causeway_cni")
}

#[test]
fn pods_that_are_gone_without_del() {
    let node = Node::new();
    sh("ip link set lo up; ip link add x0 type veth peer name x1; ip link set x0 up");
    let conf = network("bridge", 1, false);
    let stays = add(&node, "stays", &conf, 8080);
    add(&node, "gone", &conf, 8081);
    let mut macvlan = network("macvlan", 2, false);
    macvlan["master"] = json!("x0");
    node.pod("link");
    node.add("link", &macvlan);
    node.pod("kept");
    node.add("kept", &macvlan);
    let mut leftovers = Leftovers::new(Paths::default());
    for _ in 0..3 {
        assert_eq!(observe(&mut leftovers), [""; 0], "all of them live");
    }
    node.remove_pod("gone");
    node.remove_pod("link");
    until("its interface is gone", || sh("ip -o link show type veth").lines().count() == 3);
    assert_eq!(observe(&mut leftovers), [""; 0], "seen for the first time");
    assert!(notes().contains("portmap/gone-eth0.json") && rules().contains("gone eth0"));
    assert_eq!(observe(&mut leftovers).len(), 3);
    let left = "firewall/stays-eth0.json\nlinks/kept-eth0.json\nportmap/stays-eth0.json\n";
    assert_eq!(notes(), left);
    assert!(!rules().contains("gone eth0"), "{}", rules());
    assert_eq!(sh("ls /var/lib/cni/networks/net2 | grep -c '^10'"), "1\n");
    for conf in chain("net1", 8080, &stays) {
        check(&node, "stays", &conf, &stays).ok();
    }
    assert!(in_pod("kept", "ip link").contains("eth0"));
    assert_eq!(observe(&mut leftovers), [""; 0]);
}

#[test]
fn a_reboot() {
    let node = Node::new();
    sh("ip link set lo up");
    let conf = network("bridge", 1, false);
    let old = add(&node, "old", &conf, 8080);
    fs::write("/run/boot_id", "another-boot\n").unwrap();
    let paths = Paths { boot_id: PathBuf::from("/run/boot_id"), ..Paths::default() };
    let mut leftovers = Leftovers::new(paths);
    observe(&mut leftovers);
    assert_eq!(observe(&mut leftovers).len(), 2);
    assert_eq!((notes().as_str(), rules().contains("old eth0")), ("", false));
    let _ = old;
}

/// A container that starts anew under its name between two looks, or while one is taken.
#[test]
fn a_container_that_comes_back() {
    let node = Node::new();
    sh("ip link set lo up");
    let conf = network("bridge", 1, false);
    add(&node, "again", &conf, 8080);
    node.remove_pod("again");
    until("its interface is gone", || sh("ip -o link show type veth").is_empty());
    let mut leftovers = Leftovers::new(Paths::default());
    assert_eq!(observe(&mut leftovers), [""; 0]);
    let new = add(&node, "again", &conf, 8080);
    for _ in 0..2 {
        assert_eq!(observe(&mut leftovers), [""; 0]);
    }
    // One that was killed after it took the note of the former life out of its place.
    let note = "/var/lib/causeway/portmap/again-eth0.json";
    let old = fs::read_to_string(note).unwrap().replace("8080", "8079").replace("/again\"", "/x\"");
    fs::write("/var/lib/causeway/portmap/.again-eth0.over", &old).unwrap();
    assert_eq!(observe(&mut leftovers), ["ports of container again (eth0)"]);
    // The new life's note is there: its ports are as before.
    fs::write("/var/lib/causeway/portmap/.again-eth0.over", fs::read(note).unwrap()).unwrap();
    assert_eq!(observe(&mut leftovers), ["ports of container again (eth0)"]);
    for conf in chain("net1", 8080, &new) {
        check(&node, "again", &conf, &new).ok();
    }
    assert_eq!(sh("ls -A /var/lib/causeway/portmap"), "again-eth0.json\n");
}
