//! Bad input: the specification's code, a message that says what to do, and nothing left behind.

mod common;

use std::fs;

use common::served::{Families, Mode, conf, serve, write_node_file};
use common::{Node, sh, tutorial};
use serde_json::{Value, json};

/// Changes one key of the tutorial configuration by a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut conf = tutorial("1.0.0");
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    conf.pointer_mut(parent).unwrap()[key] = value;
    conf
}

#[test]
fn configurations() {
    let node = Node::new();
    node.pod("p1");
    let cases: Vec<(Value, u64, &str)> = vec![
        (json!("not json"), 6, "not valid JSON"),
        (json!(""), 6, "empty"),
        (with("/cniVersion", json!("9.9.9")), 1, "1.1.0"),
        (with("/name", json!("")), 7, "name"),
        (with("/name", json!("../x")), 7, "name"),
        (with("/ipam/subnet", json!("10.244.0.5/16")), 7, "10.244.0.0/16"),
        (with("/ipam/subnet", json!("10.244.0.0/31")), 7, "too small"),
        (with("/ipam/subnet", json!("nonsense")), 6, "ipam.subnet"),
        (with("/ipam/rangeStart", json!("10.1.0.0")), 7, "rangeStart"),
        (with("/ipam/type", json!("no-such-ipam")), 7, "no-such-ipam"),
        (with("/ipam/type", json!("../../bin/sh")), 7, "../../bin/sh"),
        (with("/prevResult", json!("x")), 6, "prevResult"),
        (json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": 7}), 6, "ipam"),
        (json!("[1, 2]"), 6, "object"),
        (with("/ipam/routes", json!([{"dst": "10.0.0.1/8"}])), 7, "10.0.0.0/8"),
        (
            with("/ipam/routes", json!([{"dst": "10.0.0.0/8", "gw": "192.0.2.1"}])),
            999,
            "10.0.0.0/8",
        ),
        (with("/mtu", json!(7)), 7, "mtu"),
        (with("/vlan", json!(5000)), 7, "vlan"),
        (with("/vlanTrunk", json!([{"minID": 3}])), 7, "vlanTrunk"),
        (with("/enabledad", json!(1)), 6, "enabledad"),
        (with("/isGateway", json!("yes")), 6, "isGateway"),
        (with("/runtimeConfig", json!({"mac": "01:00:00:00:00:01"})), 7, "multicast"),
        (with("/runtimeConfig", json!({"ips": ["192.0.2.7"]})), 7, "192.0.2.7"),
        (with("/runtimeConfig", json!({"ips": ["10.244.0.1"]})), 7, "gateway"),
    ];
    for (conf, code, word) in cases {
        let mut call = node.call("ADD", "p1", &conf);
        call.program = Some(format!("{}/bridge", node.bin_dir));
        let (got, message) = call.run().err();
        assert_eq!(got, code, "{conf}: {message}");
        assert!(message.contains(word), "{conf}: {message}");
        assert_eq!(node.residue(), "", "{conf}");
    }
}

#[test]
fn environments() {
    let node = Node::new();
    node.pod("p1");
    let conf = tutorial("1.0.0");
    type Change = fn(&mut common::Call<'_>);
    let change: [(Change, &str); 7] = [
        (|c| c.container = String::new(), "CNI_CONTAINERID"),
        (|c| c.container = "../etc".into(), "container ID"),
        (|c| c.ifname = String::new(), "CNI_IFNAME"),
        (|c| c.ifname = "a-name-beyond-15-bytes".into(), "15 bytes"),
        (|c| c.netns = None, "CNI_NETNS"),
        (|c| c.netns = Some("/run/netns/gone".into()), "CNI_NETNS"),
        (|c| c.args = "nonsense".into(), "CNI_ARGS"),
    ];
    for (change, word) in change {
        let mut call = node.call("ADD", "p1", &conf);
        change(&mut call);
        let (code, message) = call.run().err();
        assert_eq!(code, 4, "{message}");
        assert!(message.contains(word), "{message}");
    }
    let mut call = node.call("ADD", "p1", &conf);
    call.command = "EXPLODE";
    assert_eq!(call.run().err().0, 4);
    let mut call = node.call("ADD", "p1", &conf);
    call.netns = Some("/proc/self/ns/net".into());
    assert_eq!(call.run().err().0, 8);
    let mut call = node.call("ADD", "p1", &conf);
    call.netns = Some("/etc/hostname".into());
    assert_eq!(call.run().code, 1);
    assert_eq!(node.residue(), "");
}

#[test]
fn an_interface_of_that_name_is_left_alone() {
    let node = Node::new();
    node.pod("p1");
    sh("ip -n p1 link add eth0 type bridge");
    let conf = tutorial("1.0.0");
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999);
    assert!(message.contains("eth0") && message.contains("exists"), "{message}");
    assert_eq!(node.residue(), "");
    node.del("p1", &conf);
    assert!(sh("ip -n p1 link").contains("eth0"), "somebody else's interface");
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let node = Node::new();
    node.pod("p1");
    let conf = tutorial("1.0.0");
    node.add("p1", &conf);
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999);
    assert!(message.contains("duplicate allocation is not allowed"), "{message}");
    assert!(common::pings("p1", "10.244.0.1"));
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn a_used_up_range() {
    let node = Node::new();
    let conf = with("/ipam/subnet", json!("10.244.0.0/30"));
    for pod in ["p1", "p2"] {
        node.pod(pod);
    }
    node.add("p1", &conf);
    let (code, message) = node.call("ADD", "p2", &conf).run().err();
    assert_eq!(code, 999);
    assert!(message.contains("no IP addresses available"), "{message}");
    let mut status = conf.clone();
    status["cniVersion"] = json!("1.1.0");
    assert_eq!(node.call("STATUS", "p2", &status).run().err().0, 50);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
    assert_eq!(node.call("STATUS", "p2", &status).run().code, 0);
}

#[test]
fn called_by_a_person() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_causeway-cni")).env_clear().output();
    let out = out.unwrap();
    assert!(out.status.success());
    assert!(out.stdout.is_empty());
    let about = String::from_utf8(out.stderr).unwrap();
    assert!(about.contains("bridge") && about.contains("1.1.0"), "{about}");
}

#[test]
fn the_type_decides_where_the_name_does_not() {
    let node = Node::new();
    node.pod("p1");
    let mut conf = tutorial("1.0.0");
    let mut call = node.call("ADD", "p1", &conf);
    call.program = Some(env!("CARGO_BIN_EXE_causeway-cni").to_owned());
    call.run().ok();
    call.command = "DEL";
    call.run().ok();
    conf["type"] = json!("elsewhere");
    let mut call = node.call("ADD", "p1", &conf);
    call.program = Some(env!("CARGO_BIN_EXE_causeway-cni").to_owned());
    let (code, message) = call.run().err();
    assert_eq!(code, 7);
    assert!(message.contains("elsewhere") && message.contains("loopback"), "{message}");
}

#[test]
fn check_without_what_it_checks() {
    let node = Node::new();
    node.pod("p1");
    let conf = tutorial("1.0.0");
    let (code, message) = node.call("CHECK", "p1", &conf).run().err();
    assert_eq!(code, 7);
    assert!(message.contains("prevResult"), "{message}");
    let mut call = node.call("DEL", "p1", &conf);
    let text = json!("{");
    call.conf = &text;
    call.program = Some(format!("{}/bridge", node.bin_dir));
    assert_eq!(call.run().err().0, 6);
}

/// What keeps state from being read or written: the file, the command to run it before, and the
/// code.
#[test]
fn unreadable_state() {
    for mode in Mode::ALL {
        for (path, contents, code) in [
            ("/run/causeway/node.json", Some("{"), 6),
            ("/run/causeway/node.json", None, 5),
            ("/var/lib/causeway/attachments", Some("not a directory"), 5),
            ("/var/lib/causeway/leases", Some("not a directory"), 5),
            ("/var/lib/cni/networks/pod-network", Some("not a directory"), 5),
            ("/var/lib/cni/networks/pod-network/lock", None, 5),
        ] {
            let test = move || unreadable(mode, path, contents, code);
            assert!(std::thread::spawn(test).join().is_ok(), "{mode:?} {path}");
        }
    }
}

/// `None`: a directory where a file should be.
fn unreadable(mode: Mode, path: &str, contents: Option<&str>, code: u64) {
    let node = serve(mode, Families::V4);
    node.pod("p1");
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.rsplit_once('/').unwrap().0).unwrap();
    match contents {
        Some(text) => fs::write(path, text).unwrap(),
        None => fs::create_dir(path).unwrap(),
    }
    let before = node.residue();
    let conf = conf(mode, Families::V4);
    let (got, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(got, code, "{message}");
    assert!(message.contains(path), "names it: {message}");
    assert_eq!(node.residue(), before);
    assert!(!sh("ip -n p1 link").contains("eth0"));
    let mut status = conf.clone();
    status["cniVersion"] = json!("1.1.0");
    if !path.contains("/var/lib/causeway/") {
        let (code, said) = node.call("STATUS", "", &status).run().err();
        assert_eq!(code, 50, "{said}");
        assert!(said.contains(path), "{said}");
    }
    // As soon as that is mended all is well.
    fs::remove_file(path).or_else(|_| fs::remove_dir(path)).unwrap();
    write_node_file(mode, Families::V4, json!({}));
    node.add("p1", &conf);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// Addresses of a served network that other nodes do not send here.
#[test]
fn a_served_network_that_is_not_the_nodes() {
    let node = serve(Mode::Classic, Families::V4);
    node.pod("p1");
    for subnet in ["10.244.0.0/16", "10.244.2.0/24"] {
        let mut conf = tutorial("1.1.0");
        conf["ipam"]["subnet"] = json!(subnet);
        let (code, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(code, 7, "{message}");
        for part in [subnet, "10.244.1.0/24", "ipam.subnet", "pod-network"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert_eq!(node.residue(), "");
        let (code, message) = node.call("STATUS", "", &conf).run().err();
        assert_eq!(code, 50);
        assert!(message.contains("ipam.subnet"), "{message}");
        // Any other network is free to choose.
        conf["name"] = json!("podman");
        conf["bridge"] = json!("podman0");
        node.add("p1", &conf);
        node.del("p1", &conf);
        sh("ip link del podman0");
        assert_eq!(node.residue(), "");
    }
}

/// A foreign IPAM plugin that fails: its own words, and nothing left.
#[test]
fn a_foreign_ipam_plugin_fails() {
    let node = Node::new();
    node.pod("p1");
    let script = |body: &str| {
        let path = format!("{}/mine", node.bin_dir);
        fs::write(&path, format!("#!/bin/sh\ncat > /dev/null\n{body}\n")).unwrap();
        sh(&format!("chmod +x {path}"));
    };
    let conf = with("/ipam", json!({"type": "mine"}));
    for (body, code, word) in [
        (r#"echo '{"cniVersion":"1.0.0","code":42,"msg":"no ticket"}'; exit 1"#, 42, "no ticket"),
        ("echo nonsense", 6, "mine"),
        ("kill -9 $$", 999, "mine"),
        (r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#, 999, "no address"),
        (r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.300/8"}]}'"#, 6, "ips"),
    ] {
        script(body);
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert!(message.contains(word), "{body}: {message}");
        assert_eq!(got, code, "{body}: {message}");
        assert_eq!(node.residue(), "");
        assert!(!sh("ip -n p1 link").contains("eth0"));
    }
}
