//! Type `static`, as a plugin of its own and in the process of others.

mod common;

use common::reference::{installed, shape, side_by_side};
use common::{Node, in_pod, pings};
use serde_json::{Value, json};

fn conf(kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "n", "type": kind,
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.7.0.5/24", "gateway": "10.7.0.1"},
                {"address": "fd07::5/64", "gateway": "fd07::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.7.0.2"}],
            "dns": {"nameservers": ["10.1.1.1"], "domain": "x.y", "search": ["a.b"], "options": ["o"]},
        },
    })
}

#[test]
fn answers_as_the_reference_does() {
    if !installed("static") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        node.pod("p1");
        let env = "IP=10.6.0.7/24,fd06::7/64;GATEWAY=10.6.0.1,fd06::1";
        let mut answers = Vec::new();
        let none = json!({});
        let args = json!({"cni": {"ips": ["10.8.0.7/24", "fd08::7/64"]}});
        let runtime = json!({"ips": ["10.11.0.7/24"]});
        for (cni_args, args, runtime_config) in [
            ("", &none, &none),
            (env, &none, &none),
            ("IP=10.6.0.7/24;GATEWAY=10.5.0.1", &none, &none),
            (env, &args, &none),
            (env, &args, &runtime),
        ] {
            for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
                let mut conf = conf("static");
                conf["cniVersion"] = version.into();
                conf["args"] = args.clone();
                conf["runtimeConfig"] = runtime_config.clone();
                let mut call = node.call("ADD", "p1", &conf);
                call.args = cni_args.to_owned();
                answers.push(shape(call.run().ok()));
            }
        }
        for version in ["0.1.0", "0.2.0"] {
            let mut conf = conf("static");
            conf["cniVersion"] = version.into();
            answers.push(node.add("p1", &conf));
            let more = json!({"address": "10.7.1.5/24"});
            conf["ipam"]["addresses"].as_array_mut().unwrap().push(more);
            assert_eq!(node.call("ADD", "p1", &conf).run().code, 1, "room for one of a family");
        }
        let mut nothing = conf("static");
        nothing["ipam"] = json!({"type": "static"});
        answers.push(shape(node.add("p1", &nothing)));
        node.del("p1", &nothing);
        answers
    });
    assert_eq!(ours, reference);
}

#[test]
fn check_finds_what_is_not_in_the_result() {
    let node = Node::new();
    node.pod("p1");
    let mut conf = conf("static");
    conf["prevResult"] = node.add("p1", &conf);
    node.call("CHECK", "p1", &conf).run().ok();
    for (pointer, value) in [
        ("/ipam/addresses/0/address", "10.7.0.6/24"),
        ("/ipam/addresses/1/gateway", "fd07::2"),
        ("/prevResult/ips/1/address", "fd07::6/64"),
    ] {
        let mut changed = conf.clone();
        *changed.pointer_mut(pointer).unwrap() = value.into();
        let (code, message) = node.call("CHECK", "p1", &changed).run().err();
        assert!(code == 999 && message.contains("static: address"), "{pointer}: {message}");
    }
    conf["cniVersion"] = "1.1.0".into();
    let mut call = node.call("STATUS", "", &conf);
    call.netns = None;
    call.run().ok();
    conf["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", &conf).run().ok();
}

/// No binary of this name is there: it runs in the process.
#[test]
fn serves_bridge_and_ptp_in_their_process() {
    for kind in ["bridge", "ptp"] {
        std::thread::spawn(move || {
            let node = Node::new();
            std::fs::remove_file(format!("{}/static", node.bin_dir)).unwrap();
            let mut conf = conf(kind);
            conf["isGateway"] = true.into();
            conf["ipMasq"] = true.into();
            conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
            node.pod("p1");
            let result = node.add("p1", &conf);
            assert_eq!(result["ips"][0]["address"], "10.7.0.5/24");
            assert_eq!(result["dns"]["domain"], "x.y");
            assert!(pings("p1", "10.7.0.1") && pings("p1", "fd07::1"));
            let mut known = conf.clone();
            known["prevResult"] = result;
            node.call("CHECK", "p1", &known).run().ok();
            // The same address a second time is on the node's books only as long as the pod is.
            node.del("p1", &conf);
            assert!(!in_pod("p1", "ip link").contains("eth0"));
            node.del("p1", &conf);
            assert_eq!(node.residue(), "", "{kind}");
            // No address: nothing is made.
            conf["ipam"] = json!({"type": "static"});
            let (_, message) = node.call("ADD", "p1", &conf).run().err();
            assert!(message.contains("no address"), "{message}");
            assert_eq!(node.residue(), "", "{kind}");
        })
        .join()
        .unwrap();
    }
}

/// An interface of the name that another network made is not taken for this network's.
#[test]
fn del_leaves_what_others_made() {
    let node = Node::new();
    node.pod("p1");
    common::sh("ip link add x0 type veth peer name eth0 netns p1");
    for kind in ["bridge", "ptp"] {
        node.del("p1", &conf(kind));
        assert!(in_pod("p1", "ip link").contains("eth0"), "{kind}");
    }
}
