//! Files that plugins and an agent of other versions left: ADD, CHECK, DEL and GC go on with them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use causeway_plugins::Paths;
use causeway_plugins::collect::{Collector, Network};
use common::served::{Families, Mode, addresses, conf, serve, write_node_file};
use common::{Node, sh};
use serde_json::{Value, json};

/// Every file of state in JSON: records of attachments and leases, notes.
fn state() -> Vec<PathBuf> {
    let all = sh("find /var/lib/causeway /run/causeway -name '*.json' -type f | sort");
    all.lines().map(PathBuf::from).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn change(change: impl Fn(&mut Value)) {
    for path in state() {
        let mut value = read(&path);
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
    }
}

/// What a newer version writes: keys that nobody knows, at every depth.
fn renew(value: &mut Value) {
    match value {
        Value::Object(all) => {
            all.values_mut().for_each(renew);
            all.insert("ofALaterVersion".into(), json!({"x": [1, null]}));
        }
        Value::Array(all) => all.iter_mut().for_each(renew),
        _ => {}
    }
}

/// What an older version wrote: without the keys that came later.
fn age(value: &mut Value) {
    let later =
        ["extraCidrs", "reserved", "coolDown", "policyNamespaces", "leaving", "seen", "pod"];
    if let Some(all) = value.as_object_mut() {
        all.retain(|key, _| !later.contains(&key.as_str()));
    }
}

fn start(mode: Mode) -> (Node, Value) {
    let node = serve(mode, Families::Dual);
    let mut conf = conf(mode, Families::Dual);
    conf["cniVersion"] = json!("1.1.0");
    if mode != Mode::Classic {
        let port = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        conf["runtimeConfig"] = json!({"portMappings": port});
    }
    (node, conf)
}

#[test]
fn calls_go_on_with_files_of_other_versions() {
    for mode in Mode::ALL {
        let test = move || {
            let (node, conf) = start(mode);
            let before = node.residue();
            for (what, other) in [("newer", renew as fn(&mut Value)), ("older", age)] {
                println!("{mode:?}, {what}");
                node.pod("p1");
                node.pod("p2");
                let result = node.add("p1", &conf);
                let files = state();
                assert!(files.len() >= 4, "{files:?}");
                files.iter().for_each(|f| println!("{} {}", f.display(), read(f)));
                change(other);
                // The next pod gets an address of its own, and knows the ports of the other.
                let mut other_conf = conf.clone();
                other_conf.as_object_mut().unwrap().remove("runtimeConfig");
                let next = node.add("p2", &other_conf);
                assert!(addresses(&result).iter().all(|ip| !addresses(&next).contains(ip)));
                let mut checked = conf.clone();
                checked["prevResult"] = result.clone();
                node.call("CHECK", "p1", &checked).run().ok();
                let (code, text) = node.call("ADD", "p1", &conf).run().err();
                assert_eq!(code, 999, "a second ADD: {text}");
                let mut gc = conf.clone();
                gc["cni.dev/valid-attachments"] = json!([
                    {"containerID": "p1", "ifname": "eth0"}, {"containerID": "p2", "ifname": "eth0"}]);
                node.call("GC", "", &gc).run().ok();
                node.call("CHECK", "p1", &checked).run().ok();
                change(other);
                node.del("p1", &conf);
                node.del("p2", &other_conf);
                node.remove_pod("p1");
                node.remove_pod("p2");
                assert_eq!(node.residue(), before, "{mode:?}, {what}");
                write_node_file(mode, Families::Dual, json!({}));
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// A pod that a newer version attached in its own way keeps its address while it lives, and DEL, which may be
/// this version's, removes what it knows.
#[test]
fn a_pod_attached_in_a_way_that_is_not_known() {
    for mode in [Mode::Routed, Mode::Bridge] {
        let test = move || {
            let (node, conf) = start(mode);
            let before = node.residue();
            node.pod("p1");
            let result = node.add("p1", &conf);
            let record = Path::new("/var/lib/causeway/attachments/p1-eth0.json");
            let mut value = read(record);
            let end = value["hostIfname"].as_str().unwrap().to_owned();
            value["attach"] = json!("netkit");
            fs::write(record, value.to_string()).unwrap();
            sh(&format!("ip link set {end} down; ip link set {end} name nk0; ip link set nk0 up"));
            let network =
                Network { paths: Paths::default(), name: "pod-network".into(), own: true };
            let mut collector = Collector::new(network);
            for _ in 0..3 {
                assert_eq!(collector.observe().unwrap().released, []);
            }
            let lease = |ip: &String| Path::new("/var/lib/cni/networks/pod-network").join(ip);
            assert!(addresses(&result).iter().all(|ip| lease(ip).exists()));
            sh(&format!("ip link set nk0 down; ip link set nk0 name {end}; ip link set {end} up"));
            node.del("p1", &conf);
            assert_eq!(node.residue(), before, "{mode:?}");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// A node file that a newer agent wrote: ADD says why it cannot go on, DEL needs none.
#[test]
fn a_node_file_that_is_not_understood() {
    for mode in Mode::ALL {
        let test = move || {
            let (node, conf) = start(mode);
            let before = node.residue();
            node.pod("p1");
            node.pod("p2");
            node.add("p1", &conf);
            write_node_file(mode, Families::Dual, json!({"attach": "netkit"}));
            let (code, text) = node.call("ADD", "p2", &conf).run().err();
            assert_eq!(code, 6, "{text}");
            assert!(text.contains("an agent of another version wrote it"), "{text}");
            node.del("p1", &conf);
            node.del("p2", &conf);
            assert_eq!(node.residue(), before, "{mode:?}");
        };
        std::thread::spawn(test).join().unwrap();
    }
}
