//! Which address a pod of a served node gets: ranges in their order, what is reserved, what cools down,
//! and the one that its annotation asks for.

mod common;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::served::{Families, Mode, SOCKET, addresses, agent, conf, serve, write_node_file};
use common::trace::Held;
use common::{Node, pings, points, sh};
use serde_json::{Value, json};

const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The configuration of a node with small ranges, as its agent would render it.
fn small(mode: Mode, changed: &Value) -> Value {
    let subnets = ["10.244.1.0/29", "fd00:10:244:1::/64"];
    let extra = ["10.250.0.0/29", "fd00:250::/126"];
    let mut file = json!({"podCidrs": subnets, "extraCidrs": extra});
    for (key, value) in changed.as_object().unwrap() {
        file[key] = value.clone();
    }
    let mut conf = conf(mode, Families::Dual);
    if mode == Mode::Classic {
        let all = |i: usize| [Some(json!(subnets[i])), file["extraCidrs"].get(i).cloned()];
        let set = |i| all(i).into_iter().flatten().map(|s| json!({"subnet": s})).collect::<Value>();
        conf["ipam"]["ranges"] = json!([set(0), set(1)]);
    }
    write_node_file(mode, Families::Dual, file);
    if mode != Mode::Routed {
        // The gateways, as the agent has them.
        sh("ip addr flush dev cni0 to 10.244.1.1/24 && ip addr replace 10.244.1.1/29 dev cni0 && \
            ip addr replace 10.250.0.1/29 dev cni0 && ip addr replace fd00:250::1/126 dev cni0 nodad");
    }
    conf
}

fn dual(mode: Mode, test: impl FnOnce(&Node, Mode) + Send + 'static) {
    let run = move || test(&serve(mode, Families::Dual), mode);
    let done = std::thread::Builder::new().name(format!("{mode:?}")).spawn(run).unwrap().join();
    assert!(done.is_ok(), "{mode:?}");
}

fn v4(node: &Node, pod: &str, conf: &Value) -> String {
    addresses(&node.add(pod, conf)).swap_remove(0)
}

#[test]
fn ranges_are_used_up_in_order_and_what_is_reserved_stays() {
    for mode in Mode::ALL {
        dual(mode, |node, mode| {
            let shut = ["10.244.1.4/30", "10.250.0.4/30", "fd00:10:244:1::/126"];
            let mut conf = small(mode, &json!({"reserved": shut}));
            conf["cniVersion"] = json!("1.1.0");
            let pods = ["p1", "p2", "p3", "p4", "p5"];
            pods.iter().for_each(|pod| drop(node.pod(pod)));
            let first: Vec<Vec<String>> =
                pods[..3].iter().map(|pod| addresses(&node.add(pod, &conf))).collect();
            // .1 is the gateway, .4 and all above are reserved.
            let of = |i: usize| first.iter().map(|a| a[i].as_str()).collect::<Vec<_>>();
            assert_eq!(of(0), ["10.244.1.2", "10.244.1.3", "10.250.0.2"]);
            assert_eq!(of(1)[0], "fd00:10:244:1::4");
            for ip in &first[2] {
                assert!(pings("p1", ip), "{ip}");
            }
            // The pod subnet comes first again, though the extra range gave out the last one.
            node.del("p1", &conf);
            assert_eq!(v4(node, "p4", &conf), "10.244.1.2");
            assert_eq!(v4(node, "p1", &conf), "10.250.0.3");
            for command in ["ADD", "STATUS"] {
                let (_, message) = node.call(command, "p5", &conf).run().err();
                for word in ["all 4 are taken (4 leases)", "extra-pod-cidrs"] {
                    assert!(message.contains(word), "{command}: {message}");
                }
            }
            // A range that goes takes no pod along, and nothing comes of it any more.
            let conf = small(mode, &json!({"reserved": shut, "extraCidrs": []}));
            node.del("p2", &conf);
            assert_eq!(v4(node, "p5", &conf), "10.244.1.3");
            assert!(pings("p5", "10.250.0.3"));
            ["p1", "p3", "p4", "p5"].iter().for_each(|pod| node.del(pod, &conf));
            assert_eq!(node.residue(), "");
        });
    }
}

#[test]
fn what_was_given_back_cools_down() {
    for mode in Mode::ALL {
        dual(mode, |node, mode| {
            let limits = |cool_down: u32| json!({"reserved": ["10.244.1.6/32"], "extraCidrs": [], "coolDown": cool_down});
            let conf = small(mode, &limits(600));
            let pods = ["p2", "p3", "p4", "p5"];
            pods.iter().for_each(|pod| drop(node.pod(pod)));
            let all: Vec<String> = pods.iter().map(|pod| v4(node, pod, &conf)).collect();
            assert_eq!(all, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5"]);
            for pod in ["p4", "p2", "p3"] {
                node.del(pod, &conf);
            }
            // None is free but those: the one that was given back first.
            assert_eq!(v4(node, "p2", &conf), "10.244.1.4");
            let released = Path::new("/var/lib/cni/networks/pod-network/.released");
            assert!(fs::read_to_string(released).unwrap().contains("10.244.1.2 "));
            // Whoever wants it no more takes the note away: round and round again.
            small(mode, &limits(0));
            node.del("p5", &conf);
            assert_eq!(v4(node, "p5", &conf), "10.244.1.5");
            assert_eq!(v4(node, "p3", &conf), "10.244.1.2");
            assert!(!released.exists());
            for pod in ["p2", "p3", "p5"] {
                node.del(pod, &conf);
            }
            assert_eq!(node.residue(), "");
        });
    }
}

/// The reference gives addresses out and takes them back beside the note, and leaves it alone.
#[test]
fn the_reference_reads_past_what_cools_down() {
    if !common::reference::installed("host-local") {
        return;
    }
    let node = serve(Mode::Classic, Families::V4);
    write_node_file(Mode::Classic, Families::V4, json!({"coolDown": 600}));
    let conf = conf(Mode::Classic, Families::V4);
    ["p1", "p2"].iter().for_each(|pod| drop(node.pod(pod)));
    assert_eq!(v4(&node, "p1", &conf), "10.244.1.2");
    node.del("p1", &conf);
    let released = || fs::read_to_string("/var/lib/cni/networks/pod-network/.released").unwrap();
    let before = released();
    assert!(before.starts_with("10.244.1.2 "), "{before}");
    let reference = |command| {
        let mut call = node.call(command, "p2", &conf);
        call.program = Some(format!("{}/host-local", common::reference::REFERENCE));
        call.run().ok()
    };
    assert_eq!(addresses(&reference("ADD")), ["10.244.1.3"]);
    reference("DEL");
    assert_eq!(released(), before);
    assert_eq!(v4(&node, "p1", &conf), "10.244.1.4");
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// ADD of a container for the pod `default/NAME`.
fn add<'a>(node: &'a Node, container: &'a str, name: &str, conf: &'a Value) -> common::Answer {
    let mut call = node.call("ADD", container, conf);
    call.args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=u-{container}"
    );
    call.run()
}

#[test]
fn a_pod_gets_what_its_annotation_says_or_a_reason() {
    for mode in Mode::ALL {
        dual(mode, |node, mode| {
            let plain = conf(mode, Families::Dual);
            let with = |ip: &str| {
                let mut conf = plain.clone();
                conf["runtimeConfig"] = json!({ANNOTATIONS: {"causeway.dev/ip": ip, "other": "x"}});
                conf
            };
            for container in ["c1", "c2", "c3"] {
                node.pod(container);
            }
            let both = with("fd00:10:244:1::99,10.244.1.9");
            let result = add(node, "c1", "web-0", &both).ok();
            assert_eq!(addresses(&result), ["10.244.1.9", "fd00:10:244:1::99"]);
            assert!(pings("c1", "192.168.77.1"));
            // Another pod, by name; the pod's own next sandbox, before the DEL of the former.
            let (code, message) = add(node, "c2", "web-1", &both).err();
            assert_eq!(code, 999, "{message}");
            assert!(
                message.contains("10.244.1.9") && message.contains("default/web-0"),
                "{message}"
            );
            let (code, message) = add(node, "c2", "web-0", &both).err();
            assert_eq!(code, 11, "{message}");
            node.del("c1", &plain);
            assert_eq!(addresses(&add(node, "c2", "web-0", &both).ok()), addresses(&result));
            for (ip, word) in [
                ("10.244.1.1", "gateway"),
                ("10.244.1.0", "network or broadcast"),
                ("10.244.2.7", "is in none of this node's ranges (10.244.1.0/24)"),
                ("10.244.1", "is no IP address"),
                ("fd00:10:244:1::5,fd00:10:244:1::6", "same family"),
            ] {
                let (code, message) = add(node, "c3", "web-2", &with(ip)).err();
                assert_eq!(code, 7, "{message}");
                assert!(message.contains(word), "{ip}: {message}");
            }
            // One family asked for: the other as always.
            let ips = addresses(&add(node, "c3", "web-2", &with("10.244.1.200")).ok());
            assert_eq!(ips[0], "10.244.1.200");
            for container in ["c2", "c3"] {
                node.del(container, &plain);
            }
            assert_eq!(node.residue(), "");
        });
    }
}

#[test]
fn a_family_that_the_node_has_not_is_named() {
    let node = serve(Mode::Routed, Families::V4);
    let mut conf = conf(Mode::Routed, Families::V4);
    conf["runtimeConfig"] = json!({ANNOTATIONS: {"causeway.dev/ip": "fd00::7"}});
    node.pod("c1");
    let (code, message) = add(&node, "c1", "a", &conf).err();
    assert_eq!(code, 7);
    assert!(message.contains("no IPv6 addresses"), "{message}");
}

/// A runtime that hands on no annotations.
#[test]
fn the_agent_is_asked_where_the_runtime_says_nothing() {
    let node = serve(Mode::Routed, Families::V4);
    let conf = conf(Mode::Routed, Families::V4);
    ["c1", "c2", "c3"].iter().for_each(|pod| drop(node.pod(pod)));
    let late = agent(&["HTTP/1.1 404 Not Found\r\ncontent-length: 8\r\n\r\nnot seen"]);
    let (code, message) = add(&node, "c1", "a", &conf).err();
    assert_eq!(code, 11);
    assert!(message.contains("default/a") && message.contains("not seen"), "{message}");
    assert_eq!(late.join().unwrap(), ["GET /v1/pods/default/a?uid=u-c1 HTTP/1.1"]);
    let seen = agent(&["HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n10.244.1.88"]);
    assert_eq!(addresses(&add(&node, "c1", "a", &conf).ok()), ["10.244.1.88"]);
    assert_eq!(seen.join().unwrap(), ["GET /v1/pods/default/a?uid=u-c1 HTTP/1.1"]);
    // Another node's address: the agent knows whose.
    let said = "HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\nnode-2 (10.244.2.0/24)";
    let other = agent(&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n10.244.2.8", said]);
    let (_, message) = add(&node, "c2", "b", &conf).err();
    assert!(message.contains("node-2 (10.244.2.0/24)"), "{message}");
    assert_eq!(other.join().unwrap()[1], "GET /v1/holders/10.244.2.8 HTTP/1.1");
    // The API, or the agent itself, is away: pods start.
    let away = agent(&["HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\naway"]);
    add(&node, "c2", "b", &conf).ok();
    away.join().unwrap();
    fs::remove_file(SOCKET).unwrap();
    add(&node, "c3", "c", &conf).ok();
}

/// containerd hands on `null` for a pod without any annotation, and such a pod needs nobody.
#[test]
fn nobody_is_asked_where_the_runtime_says_that_there_are_none() {
    let node = serve(Mode::Routed, Families::V4);
    let mut conf = conf(Mode::Routed, Families::V4);
    conf["runtimeConfig"] = json!({ANNOTATIONS: null});
    node.pod("c1");
    let _ = fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).unwrap();
    listener.set_nonblocking(true).unwrap();
    add(&node, "c1", "a", &conf).ok();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// A range is taken from the node while an ADD gives out an address of it: either the attachment's record
/// was there before, so that the agent sees that it is in use, or the pod does not get it.
#[test]
fn a_range_that_goes_at_any_system_call_of_an_add() {
    for mode in Mode::ALL {
        dual(mode, |node, mode| {
            let mut conf = small(mode, &json!({}));
            conf["runtimeConfig"][ANNOTATIONS] =
                json!({"causeway.dev/ip": "10.250.0.2,fd00:250::2"});
            node.pod("p1");
            let record = Path::new("/var/lib/causeway/attachments/p1-eth0.json");
            let (mut refused, mut kept) = (0, 0);
            for at in points(7) {
                let mut add =
                    Held::start(node, "ADD", "p1", &conf, "K8S_POD_NAMESPACE=d;K8S_POD_NAME=p1");
                if !add.reach(at) {
                    assert_eq!(addresses(&add.finish().ok()), ["10.250.0.2", "fd00:250::2"]);
                    break;
                }
                write_node_file(
                    mode,
                    Families::Dual,
                    json!({"podCidrs": ["10.244.1.0/29", "fd00:10:244:1::/64"]}),
                );
                let seen = record.exists();
                let answer = add.finish();
                if answer.code == 0 {
                    assert!(seen, "{mode:?}: nothing told of the address at system call {at}");
                    kept += 1;
                    node.del("p1", &conf);
                } else {
                    refused += 1;
                    let (code, message) = answer.err();
                    assert!([7, 11].contains(&code), "{message}");
                }
                assert_eq!(node.residue(), "", "{mode:?}: {at}");
                small(mode, &json!({}));
            }
            node.del("p1", &conf);
            println!("{mode:?}: refused at {refused} points, kept at {kept}");
            assert!(refused > 3 && kept > 3);
        });
    }
}
