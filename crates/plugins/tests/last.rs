//! The last address: one gets it, and nobody gets one whose interface is still there.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::served::{Families, Mode, addresses, write_node_file};
use common::trace::Held;
use common::ways::{Way, dual, everywhere, inside};
use common::{Node, finish, points, sh, try_sh};
use serde_json::{Value, json};

/// Five addresses of IPv4, six of IPv6.
const SMALL: [&str; 2] = ["10.244.1.0/29", "fd00:10:244:1::/125"];

/// The same node with small subnets.
fn small(conf: &Value, way: Way, families: Families) -> Value {
    let subnets: Vec<&str> = match families {
        Families::V4 => vec![SMALL[0]],
        Families::V6 => vec![SMALL[1]],
        Families::Dual => SMALL.to_vec(),
    };
    let mut conf = conf.clone();
    if let Way::Served(mode) = way {
        write_node_file(mode, families, json!({"podCidrs": subnets}));
        if mode != Mode::Routed {
            for (wide, narrow) in [("24", "29"), ("64", "125")] {
                let (ip, v) =
                    if wide == "24" { ("10.244.1.1", "") } else { ("fd00:10:244:1::1", "nodad") };
                if try_sh(&format!("ip addr del {ip}/{wide} dev cni0")).0 {
                    sh(&format!("ip addr add {ip}/{narrow} dev cni0 {v}"));
                }
            }
        }
    }
    if conf.get("ipam").is_some() {
        conf["ipam"]["ranges"] = subnets.iter().map(|s| json!([{"subnet": s}])).collect();
    }
    conf
}

/// Pods until there is no address left.
fn fill(node: &Node, conf: &Value) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    loop {
        let name = format!("f{}", all.len());
        node.pod(&name);
        let answer = node.call("ADD", &name, conf).run();
        if answer.code != 0 {
            let (code, message) = answer.err();
            assert_eq!(code, 999);
            assert!(message.contains("no IP addresses available"), "{message}");
            return all;
        }
        all.push((name, addresses(&answer.json)));
    }
}

fn works(way: Way, result: &Value) {
    for ip in addresses(result) {
        let (up, text) = try_sh(&format!("ping -c1 -W3 -n {ip}"));
        assert!(up || !way.has_interfaces(), "{text}");
    }
}

#[test]
fn two_race_for_the_last_address() {
    everywhere(|node, conf, way, families| {
        let conf = &small(conf, way, families);
        let full = fill(node, conf);
        assert_eq!(full.len(), if families == Families::V6 { 6 } else { 5 });
        node.del("f0", conf);
        for pod in ["a", "b"] {
            node.pod(pod);
        }
        let before = node.residue();
        let mut wins = BTreeSet::new();
        let rounds = if families == Families::Dual { 50 } else { 3 };
        for round in 0..rounds {
            let order = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            let racing = order.map(|pod| node.call("ADD", pod, conf).spawn());
            let answers = racing.map(finish);
            let winners = answers.iter().filter(|a| a.code == 0).count();
            assert_eq!(winners, 1, "round {round}: {answers:?}");
            let mut results = Vec::new();
            let (mut winner, mut loser) = ("", "");
            for (pod, answer) in order.into_iter().zip(answers) {
                if answer.code == 0 {
                    winner = pod;
                    results.push(answer.json);
                    continue;
                }
                loser = pod;
                let (code, message) = answer.err();
                assert_eq!(code, 999, "{message}");
                for part in ["no IP addresses available", "/var/lib/cni/networks/pod-network"] {
                    assert!(message.contains(part), "{message}");
                }
            }
            wins.insert(winner.to_owned());
            assert!(!inside(loser), "{loser} has an interface without an address");
            node.del(loser, conf);
            works(way, &results[0]);
            assert_eq!(node.call("ADD", loser, conf).run().err().0, 999, "{winner} has it");
            node.del(winner, conf);
            let second = node.add(loser, conf);
            // Of two families one has more to give.
            assert_eq!(addresses(&second)[0], addresses(&results[0])[0]);
            works(way, &second);
            node.del(loser, conf);
            assert_eq!(node.residue(), before, "round {round}");
        }
        println!("{way:?} {families:?}: {wins:?} won");
    });
}

/// A DEL that stands still anywhere: the address of its pod goes to nobody while the pod has it, and
/// who gets it after keeps it when the DEL goes on.
#[test]
fn no_address_before_its_interface_is_gone() {
    dual(|node, conf, way, families| {
        if !way.has_interfaces() {
            return;
        }
        let conf = &small(conf, way, families);
        fill(node, conf);
        node.pod("next");
        let (mut early, mut late) = (0, 0);
        for at in points(3) {
            let mut del = Held::start(node, "DEL", "f0", conf, "");
            if !del.reach(at) {
                del.finish().ok();
                break;
            }
            let (mut add, start) = (node.call("ADD", "next", conf).spawn(), Instant::now());
            // It may wait for the lock of the leases.
            while start.elapsed() < Duration::from_millis(300) && add.try_wait().unwrap().is_none()
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            let what = format!("{way:?}: DEL held at system call {at}");
            let ended = add.try_wait().unwrap().is_some();
            let there = inside("f0");
            del.finish().ok();
            let answer = finish(add);
            if answer.code == 0 {
                assert!(!(ended && there), "{what}: the address is given out with its pod there");
                late += 1;
                works(way, &answer.json);
                node.del("next", conf);
            } else {
                let (code, message) = answer.err();
                assert_eq!(code, 999, "{what}: {message}");
                assert!(message.contains("no IP addresses"), "{what}: {message}");
                early += 1;
            }
            works(way, &node.add("f0", conf));
        }
        println!("{way:?}: refused at {early} points, given at {late}");
        assert!(early > 4 && late > 0);
    });
}
