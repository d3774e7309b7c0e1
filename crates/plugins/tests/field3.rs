//! More failures of pod networks in the field, recreated: whose an address is, what the bridge holds,
//! and clocks that are wrong.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use causeway_plugins::Paths;
use causeway_plugins::collect::{Collector, Network};
use common::served::{Families, Mode, addresses, conf, serve, write_node_file};
use common::ways::{Way, check, dual, everywhere, gc, inside};
use common::{Node, files_below, finish, sh, try_sh, tutorial};
use serde_json::{Value, json};

const LEASES: &str = "/var/lib/cni/networks/pod-network";

#[track_caller]
fn answers(way: Way, ips: &[String]) {
    for ip in ips {
        let (up, text) = try_sh(&format!("ping -c1 -W3 -n {ip}"));
        assert!(up || !way.has_interfaces(), "{way:?}: {text}");
    }
}

/// Field failure 13: a node is ready before its network. STATUS says no, and why, until the agent
/// wrote its file, and yes from then on, whether the agent runs or not.
#[test]
fn failure_13_status_before_and_after_the_agent() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let mut conf = conf(mode, Families::Dual);
            conf["cniVersion"] = json!("1.1.0");
            let status = || node.call("STATUS", "", &conf).run();
            status().ok();
            fs::remove_file("/run/causeway/node.json").unwrap();
            // Type `bridge` alone needs no agent; one that was served once waits for it.
            fs::create_dir_all("/var/lib/causeway/leases/pod-network").unwrap();
            for text in [None, Some(""), Some("{\"generation\": 1}")] {
                if let Some(text) = text {
                    fs::write("/run/causeway/node.json", text).unwrap();
                }
                let (code, message) = status().err();
                assert_eq!(code, 50, "{mode:?} {text:?}: {message}");
                assert!(message.contains("/run/causeway/node.json"), "{message}");
            }
            write_node_file(mode, Families::Dual, json!({}));
            status().ok();
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// Field failure 29: duplicate addresses. The same pod has two sandboxes for a while; the old one
/// gives back what is its own.
#[test]
fn failure_29_the_old_sandbox_of_the_same_pod() {
    everywhere(|node, conf, way, _| {
        let call = |command, container| {
            let mut call = node.call(command, container, conf);
            call.args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0".to_owned();
            call.run().ok()
        };
        for pod in ["old", "new", "third"] {
            node.pod(pod);
        }
        call("ADD", "old");
        let new = call("ADD", "new");
        for _ in 0..2 {
            call("DEL", "old");
            check(node, "new", conf, &new).ok();
            answers(way, &addresses(&new));
        }
        for set in 0..2 {
            let _ = fs::remove_file(format!("{LEASES}/last_reserved_ip.{set}"));
        }
        let third = addresses(&node.add("third", conf));
        assert!(addresses(&new).iter().all(|ip| !third.contains(ip)), "{third:?}");
        call("DEL", "new");
        node.del("third", conf);
        assert_eq!(node.residue(), "");
    });
}

/// Somebody removes the lock file again and again, while many pods start.
#[test]
fn failure_29_the_lock_file_is_removed() {
    dual(|node, conf, way, families| {
        let pods: Vec<String> = (0..32).map(|n| format!("p{n}")).collect();
        pods.iter().for_each(|pod| drop(node.pod(pod)));
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let remover = std::thread::spawn(move || {
            let mut removed = 0;
            while !seen.load(Ordering::Relaxed) {
                removed += u32::from(fs::remove_file(format!("{LEASES}/lock")).is_ok());
                std::thread::sleep(Duration::from_micros(200));
            }
            removed
        });
        let running: Vec<_> = pods.iter().map(|pod| node.call("ADD", pod, conf).spawn()).collect();
        let results: Vec<Value> = running.into_iter().map(|child| finish(child).ok()).collect();
        let all: BTreeSet<String> = results.iter().flat_map(addresses).collect();
        assert_eq!(all.len(), pods.len() * families.cidrs().len(), "{way:?}");
        let running: Vec<_> = pods.iter().map(|pod| node.call("DEL", pod, conf).spawn()).collect();
        running.into_iter().for_each(|child| drop(finish(child).ok()));
        stop.store(true, Ordering::Relaxed);
        assert!(remover.join().unwrap() > 5, "{way:?}: the lock was hardly removed");
        assert_eq!(node.residue(), "");
    });
}

/// The leases are restored from a backup that knows nothing of a living pod. What an agent's network
/// keeps of its attachments tells.
#[test]
fn failure_29_leases_from_a_backup() {
    for mode in Mode::ALL {
        for families in Families::ALL {
            let test = move || {
                let (node, conf) = Way::Served(mode).begin(families);
                for pod in ["gone", "lives", "next", "more"] {
                    node.pod(pod);
                }
                node.add("gone", &conf);
                sh(&format!("cp -a {LEASES} /run/backup"));
                node.del("gone", &conf);
                let lives = node.add("lives", &conf);
                sh(&format!("rm -r {LEASES} && cp -a /run/backup {LEASES}"));
                // Round robin goes on after the pod that is gone: to the one that lives.
                let next = addresses(&node.add("next", &conf));
                let more = addresses(&node.add("more", &conf));
                for ip in addresses(&lives) {
                    assert!(!next.contains(&ip) && !more.contains(&ip), "{mode:?}: {ip} twice");
                }
                check(&node, "lives", &conf, &lives).ok();
                answers(Way::Served(mode), &[addresses(&lives), next, more].concat());
                gc(&node, &conf, &["lives", "next", "more"]).ok();
                for pod in ["lives", "next", "more"] {
                    node.del(pod, &conf);
                }
                assert_eq!(node.residue(), "");
            };
            std::thread::spawn(test).join().unwrap();
        }
    }
}

/// The node itself has addresses of the range, on another interface. Pods get the others.
#[test]
fn failure_29_an_address_of_the_node_itself() {
    everywhere(|node, conf, way, families| {
        if !way.has_interfaces() {
            return;
        }
        let own: &[&str] = match families {
            Families::V4 => &["10.244.1.2", "10.244.1.3"],
            Families::V6 => &["fd00:10:244:1::2", "fd00:10:244:1::4"],
            Families::Dual => &["10.244.1.2", "fd00:10:244:1::3"],
        };
        for ip in own {
            let nodad = if ip.contains(':') { "nodad" } else { "" };
            sh(&format!("ip addr add {ip} dev lo {nodad}"));
        }
        // One that the kernel is still asking its neighbours for is the node's too.
        sh(
            "ip link add here type veth peer name there && ip link set here up && ip link set there up",
        );
        sh("ip addr add fd00:10:244:1::5/128 dev here");
        let mut given = BTreeSet::new();
        for n in 0..4 {
            let pod = format!("p{n}");
            node.pod(&pod);
            let ips = addresses(&node.add(&pod, conf));
            answers(way, &ips);
            given.extend(ips);
        }
        let mut own_too = own.iter().chain(&["fd00:10:244:1::5"]);
        assert!(own_too.all(|ip| !given.contains(*ip)), "{way:?}: {given:?}");
        // One that was asked for is refused, with what to do.
        let mut asked = conf.clone();
        asked["runtimeConfig"] = json!({"ips": [own[0]]});
        node.pod("fixed");
        let (code, message) = node.call("ADD", "fixed", &asked).run().err();
        assert_eq!(code, 999);
        assert!(message.contains(own[0]) && message.contains("remove it"), "{message}");
        assert!(!inside("fixed"));
        (0..4).for_each(|n| node.del(&format!("p{n}"), conf));
        sh("ip link del here");
        assert_eq!(node.residue(), "");
    });
}

/// Field failure 32: "cni0 already has an IP address different from …", without an agent.
#[test]
fn failure_32_the_bridge_holds_another_address() {
    let node = Node::new();
    node.pod("p1");
    for (subnet, gateway, other) in [
        ("10.244.0.0/16", "10.244.0.1/16", "10.99.0.1/24"),
        ("fd00:10:244::/64", "fd00:10:244::1/64", "fd00:10:244::9/64"),
    ] {
        sh("ip link add cni0 type bridge && ip link set cni0 up");
        sh(&format!("ip addr add {other} dev cni0"));
        let mut conf = tutorial("1.0.0");
        conf["ipam"] = json!({"type": "host-local", "subnet": subnet});
        let (code, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(code, 999);
        for part in ["\"cni0\" already has an IP address different from", gateway, other] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(message.contains("forceAddress"), "{message}");
        assert_eq!(node.residue(), "");
        conf["forceAddress"] = json!(true);
        let ips = addresses(&node.add("p1", &conf));
        let held = sh("ip addr show cni0");
        assert!(held.contains(gateway) && !held.contains(other), "{held}");
        answers(Way::Alone, &ips);
        node.del("p1", &conf);
        assert_eq!(node.residue(), "");
        sh("ip link del cni0");
    }
}

/// The node got another pod subnet, and its agent is not done yet.
#[test]
fn failure_32_a_served_bridge_with_the_old_subnet() {
    for mode in [Mode::Bridge, Mode::Classic] {
        let test = move || {
            let node = serve(mode, Families::V4);
            let mut conf = conf(mode, Families::V4);
            node.pod("p1");
            node.add("p1", &conf);
            node.del("p1", &conf);
            write_node_file(mode, Families::V4, json!({"podCidrs": ["10.244.2.0/24"]}));
            if mode == Mode::Classic {
                let (code, message) = node.call("ADD", "p1", &conf).run().err();
                assert_eq!(code, 7, "{message}");
                for part in ["10.244.1.0/24", "10.244.2.0/24", "ipam.subnet"] {
                    assert!(message.contains(part), "{message}");
                }
                assert_eq!(node.residue(), "");
                conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.2.0/24"}]]);
                // A served bridge may have the gateways of several ranges: this one is in nobody's way.
                let ips = addresses(&node.add("p1", &conf));
                assert!(ips[0].starts_with("10.244.2."), "{ips:?}");
                answers(Way::Served(mode), &ips);
                node.del("p1", &conf);
                assert_eq!(node.residue(), "");
            }
            // The agent is done.
            sh("ip addr del 10.244.1.1/24 dev cni0 && ip addr replace 10.244.2.1/24 dev cni0");
            let ips = addresses(&node.add("p1", &conf));
            assert!(ips[0].starts_with("10.244.2."), "{mode:?}: {ips:?}");
            answers(Way::Served(mode), &ips);
            node.del("p1", &conf);
            assert_eq!(node.residue(), "");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

fn touch_all(time: SystemTime) {
    for dir in ["/var/lib/cni", "/var/lib/causeway"] {
        for file in files_below(Path::new(dir)) {
            File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
        }
    }
}

/// A node without a battery starts in 1970, and jumps when it hears of the time; another comes from
/// the future. Files of a living pod with such times are a living pod's.
#[test]
fn clocks_that_jump() {
    dual(|node, conf, way, _| {
        let future = SystemTime::now() + Duration::from_secs(20 * 365 * 86400);
        for time in [SystemTime::UNIX_EPOCH, future] {
            for damaged in [false, true] {
                for pod in ["lives", "next"] {
                    let _ = try_sh(&format!("ip netns add {pod}"));
                }
                for set in 0..2 {
                    let _ = fs::remove_file(format!("{LEASES}/last_reserved_ip.{set}"));
                }
                let lives = node.add("lives", conf);
                if damaged {
                    // Without records nobody could tell such a file from that of a crash.
                    if !way.is_served() {
                        node.del("lives", conf);
                        continue;
                    }
                    let path = PathBuf::from(LEASES).join(&addresses(&lives)[0]);
                    fs::write(path, "").unwrap();
                }
                for set in 0..2 {
                    let _ = fs::remove_file(format!("{LEASES}/last_reserved_ip.{set}"));
                }
                touch_all(time);
                let next = addresses(&node.add("next", conf));
                for ip in addresses(&lives) {
                    assert!(!next.contains(&ip), "{way:?}: {ip} twice, {time:?} {damaged}");
                }
                touch_all(time);
                if way.is_served() {
                    let (paths, name) = (Paths::default(), "pod-network".to_owned());
                    let mut collector = Collector::new(Network { paths, name, own: way.is_own() });
                    for _ in 0..3 {
                        let done = collector.observe().unwrap();
                        assert_eq!((done.released, done.failed), (vec![], vec![]), "{way:?}");
                    }
                }
                gc(node, conf, &["lives", "next"]).ok();
                check(node, "lives", conf, &lives).ok();
                answers(way, &[addresses(&lives), next].concat());
                node.del("lives", conf);
                node.del("next", conf);
                assert_eq!(node.residue(), "", "{way:?} {time:?} {damaged}");
            }
        }
    });
}
