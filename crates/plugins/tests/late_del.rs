//! A DEL that comes late: the address has another pod by then, whose masquerade, ports and packets
//! stay as they are.

mod common;

use common::chained::after;
use common::outside::{EXT, NODE, at, node};
use common::trace::Held;
use common::traffic::{ask, serve, socket, tcp};
use common::ways::{check, gc};
use common::{Node, sh, until};
use serde_json::{Value, json};

/// Pods with these addresses, whichever comes.
fn fixed(kind: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "fixed", "type": kind, "ipMasq": true, "bridge": "cni5",
        "isGateway": true,
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.5.0.2/24", "gateway": "10.5.0.1"},
                {"address": "fd05::2/64", "gateway": "fd05::1"}
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

fn chain(result: &Value) -> [Value; 2] {
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let ports = json!({"runtimeConfig": {"portMappings": [mapping]}});
    let mut both = [after("portmap", &ports, result), after("firewall", &json!({}), result)];
    for conf in &mut both {
        conf["name"] = json!("fixed");
    }
    both
}

/// The whole list; answers the result.
fn add(node: &Node, name: &str, kind: &str) -> Value {
    node.pod(name);
    let result = node.add(name, &fixed(kind));
    for conf in chain(&result) {
        node.add(name, &conf);
    }
    result
}

fn del(node: &Node, name: &str, kind: &str, result: &Value) {
    for conf in chain(result).iter().rev() {
        node.del(name, conf);
    }
    let mut conf = fixed(kind);
    conf["prevResult"] = result.clone();
    node.del(name, &conf);
}

/// The namespace goes, and its interface a moment later; nobody calls DEL.
fn lose(node: &Node, name: &str, result: &Value) {
    let ends = result["interfaces"].as_array().unwrap();
    let pods = |i: &&Value| i["sandbox"].is_null() && i["name"].as_str().unwrap().starts_with("cw");
    let end = ends.iter().find(pods).unwrap()["name"].as_str().unwrap().to_owned();
    node.remove_pod(name);
    until("its interface is gone", || !sh("ip -o link").contains(&end));
}

#[track_caller]
fn works(name: &str) {
    for (own, ext) in NODE.into_iter().zip(EXT) {
        assert_eq!(tcp(name, &at(ext, 7000)), format!("ext {own}"), "masquerade of {name}");
        assert_eq!(tcp("ext", &at(own, 8080)), format!("{name} {ext}"), "port of {name}");
    }
}

#[test]
fn takes_nothing_from_the_next_pod_with_the_address() {
    for kind in ["bridge", "ptp"] {
        let test = move || {
            let node = node();
            serve("ext", "[::]:7000");
            let old = add(&node, "old", kind);
            lose(&node, "old", &old);
            let new = add(&node, "new", kind);
            serve("new", "[::]:80");
            works("new");
            // What the world knows it by goes on, too.
            let client = socket("new", at(EXT[0], 7000).parse().unwrap());
            let source = || {
                assert_eq!(
                    ask(&client, at(EXT[0], 7000).parse().unwrap()),
                    format!("ext {}", NODE[0])
                );
                let all = sh("grep 'udp.*src=10.5.0.2' /proc/net/nf_conntrack || true");
                all.split("dport=").nth(2).map(|rest| rest.split(' ').next().unwrap().to_owned())
            };
            let before = source();
            assert!(before.is_some(), "its connection is tracked");
            del(&node, "old", kind, &old);
            works("new");
            assert_eq!(source(), before, "{kind}");
            for conf in chain(&new).iter().chain([&fixed(kind)]) {
                check(&node, "new", conf, &new).ok();
            }
            // GC as well, for which the old one is none any more.
            for mut conf in chain(&new).into_iter().chain([fixed(kind)]) {
                conf["cniVersion"] = json!("1.1.0");
                gc(&node, &conf, &["new"]).ok();
            }
            works("new");
            del(&node, "new", kind, &new);
            let left = node.residue();
            assert_eq!(left.lines().filter(|l| !l.contains("up0@")).collect::<Vec<_>>(), [""; 0]);
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// Wherever DEL is when the other pod gets the address, or the port.
#[test]
fn takes_nothing_at_any_moment() {
    let node = node();
    let old = add(&node, "old", "ptp");
    lose(&node, "old", &old);
    let new = add(&node, "new", "ptp");
    for (of_old, of_new) in chain(&old).into_iter().zip(chain(&new)) {
        node.del("new", &of_new);
        let old = || drop(node.add("old", &of_old));
        at_any_moment(&node, &of_old, &of_new, old);
    }
    let conf = fixed("ptp");
    node.del("new", &conf);
    let old = || {
        node.pod("old");
        lose(&node, "old", &node.add("old", &conf));
    };
    at_any_moment(&node, &conf, &conf, old);
}

/// Holds the DEL of the old pod before each of its system calls while the new one comes, and lets it
/// go on then.
fn at_any_moment(node: &Node, of_old: &Value, of_new: &Value, old: impl Fn()) {
    for step in 1.. {
        old();
        let mut held = Held::start(node, "DEL", "old", of_old, "");
        let ended = !held.reach(step);
        let mut conf = of_new.clone();
        let result = node.add("new", &conf);
        held.finish().ok();
        conf["prevResult"] = result;
        let answer = node.call("CHECK", "new", &conf).run();
        assert_eq!(answer.code, 0, "{} at {step}: {}", conf["type"], answer.stdout);
        node.del("old", of_old);
        node.call("CHECK", "new", &conf).run().ok();
        node.del("new", &conf);
        if ended {
            assert!(step > 20, "{step} system calls");
            return;
        }
    }
}
