//! Type `causeway` with what runtimes ask for beside an interface, by the capabilities `portMappings`
//! and `bandwidth`: ports of the node and limits, made and removed in the same call.
//! (`kill.rs` kills it on the way.)

mod common;

use common::outside::{EXT, NODE, at, uplink};
use common::served::{Families, Mode, addresses, conf, serve};
use common::traffic::{serve as listen, tcp, udp};
use common::ways::gc;
use common::{Node, sh};
use serde_json::{Value, json};

const MODES: [Mode; 2] = [Mode::Routed, Mode::Bridge];

/// A served network and a pod's configuration with two ports and limits.
fn start(mode: Mode) -> (Node, Value) {
    let node = serve(mode, Families::Dual);
    uplink(&node);
    let mut conf = conf(mode, Families::Dual);
    conf["cniVersion"] = json!("1.1.0");
    conf["runtimeConfig"] = asked();
    node.pod("p1");
    (node, conf)
}

fn asked() -> Value {
    json!({
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 0, "containerPort": 443, "protocol": "tcp"},
        ],
        "bandwidth": {
            "ingressRate": 80_000_000, "ingressBurst": 800_000,
            "egressRate": 40_000_000, "egressBurst": 400_000
        },
    })
}

fn limits() -> String {
    sh("tc qdisc show") + &sh("ip -o link show type ifb")
}

#[track_caller]
fn works(result: &Value) {
    let limits = limits();
    assert_eq!(limits.matches("rate 80Mbit").count(), 1, "{limits}");
    assert_eq!(limits.matches("rate 40Mbit").count(), 1, "{limits}");
    for ((own, ext), ip) in NODE.into_iter().zip(EXT).zip(addresses(result)) {
        assert_eq!(tcp("ext", &at(own, 8080)), format!("p1 {ext}"));
        assert_eq!(udp("ext", &at(own, 8080)), format!("p1 {ext}"));
        assert!(tcp("p1", &at(own, 8080)).starts_with("p1 "), "itself by the node's address");
        assert!(tcp("", &at(&ip, 80)).starts_with("p1 "), "the node by the pod's");
    }
}

#[test]
fn ports_and_limits_come_and_go_with_the_pod() {
    for mode in MODES {
        std::thread::spawn(move || {
            let (node, mut conf) = start(mode);
            let before = node.residue();
            let result = node.add("p1", &conf);
            let ifb = result["interfaces"].as_array().unwrap().iter();
            assert!(ifb.filter(|i| i["name"].as_str().unwrap().starts_with("bwp")).count() == 1);
            listen("p1", "[::]:80");
            works(&result);
            conf["prevResult"] = result.clone();
            node.call("CHECK", "p1", &conf).run().ok();
            node.del("p1", &conf);
            node.del("p1", &conf);
            assert_eq!(node.residue(), before);
            assert!(!limits().contains("rate"), "{}", limits());
        })
        .join()
        .unwrap();
    }
}

/// Without the result, and without what was asked for: by what the node holds.
#[test]
fn del_and_gc_need_no_words() {
    for mode in MODES {
        std::thread::spawn(move || {
            let (node, conf) = start(mode);
            let before = node.residue();
            let mut bare = conf.clone();
            bare.as_object_mut().unwrap().remove("runtimeConfig");
            node.add("p1", &conf);
            node.del("p1", &bare);
            assert_eq!(node.residue(), before);
            node.add("p1", &conf);
            gc(&node, &bare, &["p1"]).ok();
            assert_ne!(node.residue(), before, "it lives");
            gc(&node, &bare, &[]).ok();
            assert_eq!(node.residue(), before);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn check_finds_what_is_missing() {
    let (node, conf) = start(Mode::Routed);
    let with = |result: Value| {
        let mut conf = conf.clone();
        conf["prevResult"] = result;
        conf
    };
    for damage in [
        "nft flush table inet causeway_cni",
        "tc qdisc del dev $(tc qdisc show | awk '/rate 80Mbit/ { print $5 }') root",
    ] {
        let known = with(node.add("p1", &conf));
        node.call("CHECK", "p1", &known).run().ok();
        sh(damage);
        node.call("CHECK", "p1", &known).run().err();
        node.del("p1", &known);
    }
}

/// A port that another pod holds: nothing is left of the pod that did not get it.
#[test]
fn a_refused_port_leaves_nothing() {
    for mode in MODES {
        std::thread::spawn(move || {
            let (node, conf) = start(mode);
            node.add("p1", &conf);
            let held = node.residue();
            node.pod("p2");
            let (_, message) = node.call("ADD", "p2", &conf).run().err();
            assert!(message.contains("held by container p1 (eth0)"), "{message}");
            assert_eq!(node.residue(), held);
            // A limit that is none.
            let mut bad = conf.clone();
            bad["runtimeConfig"]["portMappings"] = json!([{"hostPort": 81, "containerPort": 80}]);
            bad["runtimeConfig"]["bandwidth"]["ingressRate"] = json!(1);
            bad["runtimeConfig"]["bandwidth"]["ingressBurst"] = json!(0);
            node.call("ADD", "p2", &bad).run().err();
            assert_eq!(node.residue(), held);
        })
        .join()
        .unwrap();
    }
}
