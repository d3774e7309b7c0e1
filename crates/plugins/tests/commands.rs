//! Every type in every version of the specification, with every command.

mod common;

use common::served::{Families, Mode, serve};
use common::{Call, Node, sh, tutorial};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn conf(plugin: &str, version: &str) -> Value {
    match plugin {
        "bridge" | "host-local" => {
            let mut conf = tutorial(version);
            // Not the name of the network that the agent serves.
            conf["name"] = json!("tutorial");
            conf["type"] = json!(plugin);
            conf["bridge"] = json!("br-tut");
            conf
        }
        _ => json!({"cniVersion": version, "name": "pod-network", "type": plugin}),
    }
}

fn call<'a>(node: &'a Node, command: &'a str, conf: &'a Value) -> Call<'a> {
    let mut call = node.call(command, "p1", conf);
    if conf["type"] == "loopback" {
        call.ifname = "lo".to_owned();
    }
    call
}

/// Results of the first versions name no interface, which a layer-2 result would need.
fn is_since(version: &str, since: &str) -> bool {
    let at = |v: &str| VERSIONS.iter().position(|x| *x == v).unwrap();
    at(version) >= at(since)
}

fn each_command(node: &Node, plugin: &str, version: &str) {
    let mut conf = conf(plugin, version);
    let place = format!("{plugin} {version}");
    let reply = call(node, "VERSION", &conf).run().ok();
    assert_eq!(reply["cniVersion"], version, "{place}");
    assert_eq!(reply["supportedVersions"], json!(VERSIONS), "{place}");
    let result = call(node, "ADD", &conf).run().ok();
    assert_eq!(result["cniVersion"], version, "{place}");
    conf["prevResult"] = result;
    conf["cni.dev/valid-attachments"] =
        json!([{"containerID": "p1", "ifname": call(node, "GC", &conf).ifname}]);
    for (command, since) in [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
        let answer = call(node, command, &conf).run();
        if is_since(version, since) {
            assert_eq!(answer.code, 0, "{place} {command}: {answer:?}");
        } else {
            let (code, message) = answer.err();
            assert_eq!(code, 1, "{place} {command}: {message}");
            assert!(message.contains(since), "says what to do: {message}");
        }
    }
    // GC has left alone what it was told to.
    if is_since(version, "0.4.0") {
        assert_eq!(call(node, "CHECK", &conf).run().code, 0, "{place}");
    }
    for _ in 0..2 {
        let answer = call(node, "DEL", &conf).run();
        assert_eq!((answer.code, answer.stdout.as_str()), (0, ""), "{place}");
    }
    assert_eq!(node.residue(), "", "{place}");
}

#[test]
fn every_type_version_and_command() {
    for plugin in ["bridge", "host-local", "loopback", "causeway"] {
        let test = move || {
            let node = serve(Mode::Routed, Families::V4);
            node.pod("p1");
            for version in VERSIONS {
                each_command(&node, plugin, version);
            }
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{plugin}");
    }
}

#[test]
fn the_bridge_can_take_in_every_frame() {
    let node = Node::new();
    node.pod("p1");
    let mut conf = tutorial("1.0.0");
    node.add("p1", &conf);
    assert!(!sh("ip link show cni0").contains("PROMISC"));
    node.del("p1", &conf);
    conf["promiscMode"] = json!(true);
    node.add("p1", &conf);
    assert!(sh("ip link show cni0").contains("PROMISC"));
}

/// While a plugin waits for its configuration already, it is one that runs before others.
#[test]
fn plugins_run_before_others() {
    use std::process::{Command, Stdio};
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_causeway-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    common::until("the plugin has its priority", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", plugin.id())).unwrap();
        // The 19th word of all (proc_pid_stat(5)); the name, in brackets, is the second.
        let words = stat.rsplit_once(')').unwrap().1;
        words.split_ascii_whitespace().nth(16) == Some("-20")
    });
    drop(plugin.stdin.take());
    plugin.wait().unwrap();
}
