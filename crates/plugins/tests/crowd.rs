//! Many at once: 64 pods come, go, and come and go while the runtime collects garbage.

mod common;

use std::collections::BTreeSet;

use common::served::{Families, addresses};
use common::trace::gc_beside_add;
use common::ways::{Way, dual, everywhere, gc, inside};
use common::{Node, at_points, finish, sh, try_sh};
use serde_json::Value;

const MANY: usize = 64;

fn pods(node: &Node) -> Vec<String> {
    let names: Vec<String> = (0..MANY).map(|n| format!("p{n}")).collect();
    for name in &names {
        node.pod(name);
    }
    names
}

/// Runs a command for each pod, all at once.
fn all(node: &Node, conf: &Value, calls: &[(&str, &str)]) -> Vec<Value> {
    let start = |(command, pod): &(&str, &str)| node.call(command, pod, conf).spawn();
    let running: Vec<_> = calls.iter().map(start).collect();
    running.into_iter().map(|child| finish(child).ok()).collect()
}

/// The node as pods see it.
fn gateways(way: Way, families: Families) -> Vec<&'static str> {
    let [v4, v6] = match way {
        Way::Served(_) => ["192.168.77.1", "fd77::1"],
        Way::Alone | Way::HostLocal => ["10.244.1.1", "fd00:10:244:1::1"],
    };
    match families {
        Families::V4 => vec![v4],
        Families::V6 => vec![v6],
        Families::Dual => vec![v4, v6],
    }
}

/// All pods reach the node, asked at once.
fn reach(way: Way, families: Families, pods: &[String]) {
    if !way.has_interfaces() {
        return;
    }
    for gateway in gateways(way, families) {
        let each = pods.iter().map(|pod| {
            format!("(ip netns exec {pod} ping -c1 -W5 -n {gateway} >/dev/null || echo {pod}) &")
        });
        let failed = sh(&format!("{} wait", each.collect::<String>()));
        assert_eq!(failed, "", "cannot reach {gateway}");
    }
}

fn distinct(results: &[Value], families: Families) {
    let given: BTreeSet<String> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), results.len() * families.cidrs().len());
}

#[test]
fn sixty_four_at_once() {
    everywhere(|node, conf, way, families| {
        let names = pods(node);
        let calls = |command| names.iter().map(|n| (command, n.as_str())).collect::<Vec<_>>();
        distinct(&all(node, conf, &calls("ADD")), families);
        reach(way, families, &names);
        all(node, conf, &calls("DEL"));
        assert_eq!(node.residue(), "");
        assert!(!names.iter().any(|n| inside(n)));
    });
}

/// Half of them go while the other half comes, with GC running in between. A runtime lists what it
/// has, and what is about to come.
#[test]
fn coming_and_going_and_garbage_collection() {
    dual(|node, conf, way, families| {
        let names = pods(node);
        let (old, new) = names.split_at(MANY / 2);
        let begin = |names: &[String]| -> Vec<_> {
            names.iter().map(|n| node.call("ADD", n, conf).spawn()).collect()
        };
        let first: Vec<Value> = begin(old).into_iter().map(|c| finish(c).ok()).collect();
        distinct(&first, families);
        let ids: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut running = Vec::new();
        for (goes, comes) in old.iter().zip(new) {
            running.push((false, node.call("DEL", goes, conf).spawn()));
            running.push((true, node.call("ADD", comes, conf).spawn()));
            if running.len() % 16 == 0 {
                gc(node, conf, &ids).ok();
            }
        }
        let ended = running.into_iter().map(|(adds, child)| (adds, finish(child).ok()));
        let second: Vec<Value> = ended.filter(|(adds, _)| *adds).map(|(_, r)| r).collect();
        distinct(&second, families);
        reach(way, families, new);
        for result in &second {
            for ip in addresses(result) {
                let lease = format!("/var/lib/cni/networks/pod-network/{ip}");
                assert!(std::path::Path::new(&lease).exists(), "{lease}");
            }
        }
        let calls: Vec<(&str, &str)> = new.iter().map(|n| ("DEL", n.as_str())).collect();
        all(node, conf, &calls);
        assert_eq!(node.residue(), "");
    });
}

/// The specification wants runtimes to let no ADD run beside GC. Where one does it all the same, GC
/// leaves an ADD alone that has not ended, wherever that is: it ends with a pod that works.
#[test]
fn gc_beside_an_add_that_has_not_ended() {
    dual(|node, conf, way, families| {
        node.pod("p1");
        // What is made once for all is there from now on.
        node.add("p1", conf);
        node.del("p1", conf);
        let (mut beside, mut behind) = (0, 0);
        at_points(3, |at| {
            let Some((answer, ended)) = gc_beside_add(node, "p1", conf, at) else {
                node.del("p1", conf);
                return false;
            };
            if ended {
                beside += 1;
                let result = answer.ok();
                let what = format!("{way:?}: GC at system call {at}");
                for ip in addresses(&result) {
                    let lease = format!("/var/lib/cni/networks/pod-network/{ip}");
                    assert!(std::path::Path::new(&lease).exists(), "{what}: {ip} has no lease");
                    let (up, text) = try_sh(&format!("ping -c1 -W3 -n {ip}"));
                    assert!(up || !way.has_interfaces(), "{what}: {text}");
                }
                reach(way, families, &["p1".to_owned()]);
            } else {
                behind += 1;
            }
            node.del("p1", conf);
            assert_eq!(node.residue(), "", "{way:?}: {at}");
            true
        });
        println!("{way:?}: GC ran beside ADD at {beside} points, and waited for it at {behind}");
        assert!(beside > 4, "{beside}");
    });
}
