//! Type `macvlan`.

mod common;

use common::lan::lan;
use common::reference::{REFERENCE, installed, script, shape, side_by_side};
use common::served::{Families, Mode, addresses, serve};
use common::{BIN_DIR, Node, in_pod, pings, sh, try_sh};
use serde_json::{Value, json};

fn conf(families: Families) -> Value {
    let all = [("10.5.0.0/24", "0.0.0.0/0", "10.5.0.1"), ("fd05::/64", "::/0", "fd05::1")];
    let wanted = all.into_iter().filter(|(subnet, ..)| match families {
        Families::V4 => !subnet.contains(':'),
        Families::V6 => subnet.contains(':'),
        Families::Dual => true,
    });
    let wanted: Vec<_> = wanted.collect();
    let ranges: Vec<Value> =
        wanted.iter().map(|(s, _, g)| json!([{"subnet": s, "gateway": g}])).collect();
    let routes: Vec<Value> = wanted.iter().map(|(_, dst, _)| json!({"dst": dst})).collect();
    json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "m0",
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    })
}

/// Nothing is left on the node, in the records or in the pod.
#[track_caller]
fn clean(node: &Node, pod: &str, when: &str) {
    let left = node.residue().lines().filter(|l| !l.contains(" m0@")).collect::<String>();
    assert_eq!(left, "", "{when}");
    let (inside, text) = try_sh(&format!("ip -n {pod} link"));
    assert!(!inside || !text.contains("eth0"), "{when}: {text}");
    // The end of a namespace comes a moment after its name is gone.
    let below = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        sh("ip -d link show m0").contains("promiscuity 0")
    });
    assert!(below, "{when}: {}", sh("ip -d link show m0"));
}

#[test]
fn pods_reach_the_network_and_in_mode_bridge_each_other() {
    for families in Families::ALL {
        for mode in ["", "bridge", "private", "vepa"] {
            std::thread::spawn(move || {
                let node = Node::new();
                lan("m0");
                let mut conf = conf(families);
                conf["mode"] = mode.into();
                conf["mtu"] = 1400.into();
                conf["bcqueuelen"] = 77.into();
                node.pod("p1");
                node.pod("p2");
                let first = node.add("p1", &conf);
                let second = node.add("p2", &conf);
                let what = format!("{families:?} {mode}");
                for (mine, other) in addresses(&first).iter().zip(addresses(&second)) {
                    let machine = if mine.contains(':') { "fd05::1" } else { "10.5.0.1" };
                    assert!(pings("p1", machine) && pings("p2", machine), "{what} {machine}");
                    assert!(pings("lan", mine), "{what} {mine}");
                    let each_other = matches!(mode, "" | "bridge");
                    let ping = format!("ip netns exec p1 ping -c1 -W1 -n {other}");
                    assert_eq!(try_sh(&ping).0, each_other, "{what} {other}");
                }
                let shown = in_pod("p1", "ip -d link show eth0");
                let name = if mode.is_empty() { "bridge" } else { mode };
                for word in [&format!("macvlan mode {name} bcqueuelen 77 "), "mtu 1400"] {
                    assert!(shown.contains(word), "{what}: {shown}");
                }
                let mut check = conf.clone();
                check["prevResult"] = first;
                node.call("CHECK", "p1", &check).run().ok();
                node.del("p1", &conf);
                node.remove_pod("p2");
                node.del("p2", &conf);
                node.del("p2", &conf);
                clean(&node, "p1", &what);
            })
            .join()
            .unwrap();
        }
    }
}

#[test]
fn passthru_takes_the_device_over_and_gives_it_back() {
    let node = Node::new();
    lan("m0");
    let before = sh("cat /proc/net/dev_mcast; ip -o link show m0");
    let mut conf = conf(Families::Dual);
    conf["mode"] = "passthru".into();
    node.pod("p1");
    node.pod("p2");
    let result = node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1") && pings("p1", "fd05::1"));
    assert!(sh("ip -d link show m0").contains("promiscuity 1"));
    let own = result["interfaces"][0]["mac"].as_str().unwrap();
    assert!(sh("ip link show m0").contains(own), "{own}");
    let (_, message) = node.call("ADD", "p2", &conf).run().err();
    assert!(message.contains("passthru"), "{message}");
    assert!(!in_pod("p2", "ip link").contains("eth0"));
    node.del("p1", &conf);
    clean(&node, "p1", "passthru");

    // With an address of its own the device below gets it, and its old one back.
    conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:17"});
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:17");
    assert!(pings("p1", "10.5.0.1") && pings("p1", "fd05::1"));
    node.del("p1", &conf);
    clean(&node, "p1", "passthru with an address");
    assert_eq!(sh("cat /proc/net/dev_mcast; ip -o link show m0"), before);
}

#[test]
fn neighbours_hear_whose_the_address_is_now() {
    let node = Node::new();
    lan("m0");
    let conf = conf(Families::Dual);
    node.pod("p1");
    for ip in ["10.5.0.2", "fd05::2"] {
        sh(&format!("ip -n lan neigh add {ip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
    }
    let result = node.add("p1", &conf);
    let mac = result["interfaces"][0]["mac"].as_str().unwrap().to_owned();
    for ip in ["10.5.0.2", "fd05::2"] {
        let heard = || sh(&format!("ip -n lan neigh show {ip}"));
        let in_time = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            heard().contains(&mac)
        });
        assert!(in_time, "{}", heard());
    }
}

#[test]
fn the_master_is_by_default_that_of_the_default_route() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::V4);
    conf["master"] = "".into();
    node.pod("p1");
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 7 && message.contains("default route"), "{message}");
    sh("ip addr add 10.5.0.9/24 dev m0 && ip route add default via 10.5.0.1");
    node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1"));
    // The road to the default may be gone when the pod ends.
    sh("ip route del default");
    node.del("p1", &conf);
    clean(&node, "p1", "default");
    sh("ip addr flush dev m0 && ip -6 route add default via fe80::1 dev m0");
    node.add("p1", &conf);
    sh("ip link del m0");
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn the_master_may_be_in_the_container() {
    let node = Node::new();
    node.pod("p1");
    lan("m0");
    sh("ip link set m0 netns p1 && ip -n p1 link set m0 up");
    let mut conf = conf(Families::Dual);
    conf["linkInContainer"] = true.into();
    let mut known = conf.clone();
    known["prevResult"] = node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1") && pings("p1", "fd05::1"));
    node.call("CHECK", "p1", &known).run().ok();
    node.del("p1", &conf);
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    assert_eq!(node.residue(), "");
}

#[test]
fn without_ipam_it_is_a_link_alone() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::V4);
    conf["ipam"] = json!({});
    conf["args"] = json!({"cni": {"mac": "02:00:00:00:00:18"}});
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:18");
    assert_eq!(result.get("ips"), None);
    in_pod("p1", "ip addr add 10.5.0.7/24 dev eth0");
    assert!(pings("p1", "10.5.0.1"));
    conf["prevResult"] = result;
    node.call("CHECK", "p1", &conf).run().ok();
    node.del("p1", &conf);
    clean(&node, "p1", "layer 2");
    conf["cniVersion"] = "0.2.0".into();
    conf.as_object_mut().unwrap().remove("prevResult");
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 7 && message.contains("0.2.0"), "{message}");
    clean(&node, "p1", "layer 2 of an old version");
}

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    let node = Node::new();
    lan("m0");
    node.pod("p1");
    let with = |key: &str, value: Value| {
        let mut conf = conf(Families::Dual);
        conf[key] = value;
        conf
    };
    let mut routes = conf(Families::Dual);
    routes["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    for (conf, code, word) in [
        (with("master", json!("none")), 7, "link not found"),
        (with("master", json!(7)), 6, "master"),
        (with("mode", json!("source")), 7, "passthru"),
        (with("mtu", json!(1600)), 7, "must be 0 to 1500"),
        (with("mtu", json!(-1)), 7, "mtu"),
        (with("bcqueuelen", json!(-1)), 7, "bcqueuelen"),
        (with("linkInContainer", json!("yes")), 6, "linkInContainer"),
        (with("linkInContainer", json!(true)), 7, "the pod has no such interface"),
        (with("runtimeConfig", json!({"mac": "01:00:00:00:00:01"})), 7, "multicast"),
        (with("master", json!("lo")), 999, "macvlan device on lo"),
        (routes, 999, "10.9.0.0/16"),
    ] {
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert!(got == code && message.contains(word), "{conf}: {got} {message}");
        clean(&node, "p1", &conf.to_string());
        // As runtimes do after an ADD that failed.
        node.del("p1", &conf);
    }
    // What is there already is another network's, and stays.
    sh("ip -n p1 link add eth0 type bridge");
    let conf = conf(Families::Dual);
    let (_, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(message.contains("eth0 already exists"), "{message}");
    node.del("p1", &conf);
    assert!(in_pod("p1", "ip link").contains("eth0"));
    // Without the device below an ADD would fail, and STATUS says so.
    let mut status = conf.clone();
    status["cniVersion"] = "1.1.0".into();
    let call = |status: &Value| {
        let mut call = node.call("STATUS", "", status);
        call.netns = None;
        call.run()
    };
    call(&status).ok();
    status["master"] = "none".into();
    let (code, message) = call(&status).err();
    assert!(code == 50 && message.contains("link not found"), "{code} {message}");
}

#[test]
fn a_network_that_the_agent_serves_is_refused() {
    let node = serve(Mode::Routed, Families::Dual);
    lan("m0");
    node.pod("p1");
    let mut conf = conf(Families::Dual);
    conf["name"] = "pod-network".into();
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 7 && message.contains("served"), "{message}");
    conf["name"] = "lan".into();
    node.add("p1", &conf);
    node.del("p1", &conf);
    clean(&node, "p1", "beside a served network");
}

#[test]
fn check_sees_every_object_that_is_missing_or_changed() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::Dual);
    conf["mtu"] = 1400.into();
    // Of which on results name it.
    conf["cniVersion"] = "1.1.0".into();
    conf["bcqueuelen"] = 77.into();
    for (command, word) in [
        ("ip -n POD link set eth0 down", "link eth0"),
        ("ip -n POD link set eth0 address 02:00:00:00:00:09", "link eth0"),
        ("ip -n POD link set eth0 mtu 1300", "MTU"),
        ("ip -n POD link del eth0", "eth0 is missing"),
        ("ip -n POD link set eth0 type macvlan mode vepa", "mode"),
        ("ip -n POD link set eth0 type macvlan bcqueuelen 9", "bcqueuelen"),
        ("ip -n POD addr del fd05::IP/64 dev eth0", "fd05::IP/64"),
        (
            "ip -n POD addr add 10.5.0.99/24 dev eth0 && ip -n POD addr del 10.5.0.IP/24 dev eth0",
            "10.5.0.IP",
        ),
        ("ip -n POD route del default", "route 0.0.0.0/0"),
        ("ip -n POD -6 route del default", "route ::/0"),
    ] {
        node.pod("p1");
        let mut known = conf.clone();
        let result = node.add("p1", &conf);
        let first = addresses(&result)[0].clone();
        let ip = first.rsplit('.').next().unwrap();
        known["prevResult"] = result;
        node.call("CHECK", "p1", &known).run().ok();
        sh(&command.replace("POD", "p1").replace("IP", ip));
        let (code, message) = node.call("CHECK", "p1", &known).run().err();
        assert!(code == 999 && message.contains(&word.replace("IP", ip)), "{command}: {message}");
        node.del("p1", &conf);
        clean(&node, "p1", command);
        node.remove_pod("p1");
    }
}

#[test]
fn gc_removes_what_is_not_valid_and_nothing_else() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::Dual);
    conf["cniVersion"] = "1.1.0".into();
    for pod in ["p1", "p2", "p3"] {
        node.pod(pod);
        node.add(pod, &conf);
    }
    // Another network of the same kind.
    let mut other = conf.clone();
    other["name"] = "other".into();
    node.pod("p4");
    node.add("p4", &other);
    node.remove_pod("p3");
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p2", "ifname": "eth0"}]);
    node.call("GC", "", &gc).run().ok();
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    assert!(pings("p2", "10.5.0.1") && pings("p4", "fd05::1"));
    let left = node.residue();
    assert!(left.contains("p2-eth0") && left.contains("p4-eth0"), "{left}");
    assert!(!left.contains("p1-eth0") && !left.contains("p3-eth0"), "{left}");
    node.del("p2", &conf);
    node.del("p4", &other);
    clean(&node, "p2", "GC");
}

#[test]
fn makes_the_same_as_the_reference() {
    if !installed("macvlan") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        lan("m0");
        let mut seen = Vec::new();
        for mode in ["", "private", "vepa", "passthru"] {
            let mut conf = conf(Families::Dual);
            conf["mode"] = mode.into();
            conf["mtu"] = 1400.into();
            conf["dns"] = json!({"nameservers": ["10.1.1.1"]});
            node.pod("p1");
            let result = node.add("p1", &conf);
            let mut text = String::new();
            for command in [
                "-d -o link show eth0",
                "-4 -o addr show dev eth0",
                "-6 -o addr show dev eth0 scope global",
                "route",
                "-6 route",
            ] {
                text += &sh(&format!("ip -n p1 {command}"));
            }
            for mac in result["interfaces"].as_array().unwrap() {
                text = text.replace(mac["mac"].as_str().unwrap(), "MAC");
            }
            let text = text.replace(" tentative", "").replace(" nodad", "");
            let lines = text.lines().map(|l| l.split_once(": ").map_or(l, |(_, rest)| rest));
            // Not the interface's index, nor the length of a queue that is not there (noqueue).
            let lines = lines.map(|l| {
                let words = l.split_whitespace().filter(|w| !w.starts_with("eth0@"));
                words.collect::<Vec<_>>().join(" ").replace(" qlen 1000", "").replace(" \\", "\\")
            });
            seen.push((shape(result), lines.collect::<Vec<_>>()));
            node.del("p1", &conf);
            node.remove_pod("p1");
        }
        seen
    });
    assert_eq!(ours, reference);
}

#[test]
fn each_takes_down_and_checks_what_the_other_made() {
    if !installed("macvlan") {
        return;
    }
    let node = Node::new();
    lan("m0");
    let conf = conf(Families::Dual);
    for (maker, other) in [(REFERENCE, BIN_DIR), (BIN_DIR, REFERENCE)] {
        let pod = if maker == BIN_DIR { "p1" } else { "p2" };
        node.pod(pod);
        let run = |command: &str, bin: &'static str, conf: &Value| {
            let mut call = node.call(command, pod, conf);
            call.bin_dir = bin;
            call.run().ok()
        };
        let mut known = conf.clone();
        known["prevResult"] = run("ADD", maker, &conf);
        assert!(pings(pod, "10.5.0.1"), "made by {maker}");
        run("CHECK", other, &known);
        run("DEL", other, &known);
        assert!(!in_pod(pod, "ip link").contains("eth0"), "made by {maker}");
        // Our record of a pod that the reference took down goes with our own DEL or GC.
        run("DEL", BIN_DIR, &known);
        clean(&node, pod, maker);
    }
}

/// A plugin like that for DHCP needs the link in its place, when it is asked and when it says goodbye.
#[test]
fn a_foreign_ipam_plugin_finds_the_link() {
    let node = Node::new();
    lan("m0");
    let text = r#"#!/bin/sh
        echo "$CNI_COMMAND $(ip -n p1 -o link show eth0 | wc -l)" >> /run/asked
        [ "$CNI_COMMAND" = ADD ] || exit 0
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}]}'
        [ ! -e /run/fails ]
    "#;
    script(&node, "of-others", text);
    let mut conf = conf(Families::Dual);
    conf["ipam"] = json!({"type": "of-others"});
    node.pod("p1");
    node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1"));
    node.del("p1", &conf);
    std::fs::write("/run/fails", "").unwrap();
    node.call("ADD", "p1", &conf).run().err();
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    clean(&node, "p1", "");
    let asked = std::fs::read_to_string("/run/asked").unwrap();
    assert_eq!(asked, "ADD 1\nDEL 1\nADD 1\n");
}

#[test]
fn a_second_add_leaves_the_first_alone() {
    let node = Node::new();
    lan("m0");
    let conf = conf(Families::Dual);
    node.pod("p1");
    node.add("p1", &conf);
    let (_, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(message.contains("call DEL first"), "{message}");
    assert!(pings("p1", "10.5.0.1"));
    // A runtime that has lost the namespace's path: the record has it.
    let mut call = node.call("DEL", "p1", &conf);
    call.netns = None;
    call.run().ok();
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    clean(&node, "p1", "");
}

/// Every version of the specification, as the reference answers in it.
#[test]
fn every_version() {
    if !installed("macvlan") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        lan("m0");
        let mut answers = Vec::new();
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let mut conf = conf(Families::Dual);
            conf["cniVersion"] = version.into();
            node.pod("p1");
            answers.push(shape(node.add("p1", &conf)));
            node.del("p1", &conf);
            node.remove_pod("p1");
        }
        answers
    });
    assert_eq!(ours, reference);
}

/// As with the reference: the node's administrator may set it up later.
#[test]
fn a_master_that_is_down_is_no_error() {
    let node = Node::new();
    lan("m0");
    sh("ip link set m0 down");
    node.pod("p1");
    let conf = conf(Families::Dual);
    node.add("p1", &conf);
    sh("ip link set m0 up");
    assert!(pings("p1", "10.5.0.1") && pings("p1", "fd05::1"));
    node.del("p1", &conf);
    clean(&node, "p1", "down");
}

/// The path of a pod's namespace is used again while the record of its first user is still there, by
/// a pod of this network or of another.
#[test]
fn gc_does_not_take_one_pod_for_another_at_the_same_path() {
    for network in ["lan", "other"] {
        std::thread::spawn(move || path_used_again(network)).join().unwrap();
    }
}

fn path_used_again(network: &str) {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::Dual);
    conf["cniVersion"] = "1.1.0".into();
    node.pod("p1");
    node.add("p1", &conf);
    node.remove_pod("p1");
    node.pod("p1");
    let mut second = conf.clone();
    second["name"] = network.into();
    let mut call = node.call("ADD", "p1", &second);
    call.container = "second".into();
    let result = call.run().ok();
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = match network {
        "lan" => json!([{"containerID": "second", "ifname": "eth0"}]),
        _ => json!([]),
    };
    node.call("GC", "", &gc).run().ok();
    assert!(pings("p1", "10.5.0.1"), "{network}");
    let left = node.residue();
    assert!(left.contains("second-eth0") && !left.contains("p1-eth0"), "{left}");
    let held = result["ips"][0]["address"].as_str().unwrap().replace("/24", "");
    assert!(left.contains(&held), "{left}");
}

/// The same, and what is there now is nobody's that we know of.
#[test]
fn gc_leaves_a_device_with_another_address() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::Dual);
    conf["cniVersion"] = "1.1.0".into();
    node.pod("p1");
    node.add("p1", &conf);
    node.remove_pod("p1");
    node.pod("p1");
    sh("ip link add link m0 name eth0 netns p1 type macvlan mode bridge");
    conf["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", &conf).run().ok();
    assert!(in_pod("p1", "ip link").contains("eth0"));
    assert_eq!(node.residue().lines().filter(|l| !l.contains(" m0@")).count(), 0);
}

/// Killed before its address was changed, a device in mode passthru is found all the same.
#[test]
fn gc_finds_a_passthru_device_whose_address_was_not_set_yet() {
    let node = Node::new();
    lan("m0");
    let mut conf = conf(Families::Dual);
    conf["mode"] = "passthru".into();
    conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:17"});
    conf["cniVersion"] = "1.1.0".into();
    node.pod("p1");
    let mut held = common::trace::Held::start(&node, "ADD", "p1", &conf, "");
    let there = || try_sh("ip -n p1 link show eth0").0;
    while !there() {
        assert!(held.next());
    }
    held.kill();
    conf["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", &conf).run().ok();
    assert!(!there());
}

#[test]
fn many_at_once() {
    let node = Node::new();
    lan("m0");
    let conf = conf(Families::Dual);
    let pods: Vec<String> = (0..25).map(|n| format!("p{n}")).collect();
    let all = |command: &str| -> Vec<Value> {
        let started: Vec<_> = pods.iter().map(|p| node.call(command, p, &conf).spawn()).collect();
        started.into_iter().map(|child| common::finish(child).ok()).collect()
    };
    pods.iter().for_each(|pod| drop(node.pod(pod)));
    let results = all("ADD");
    let given: std::collections::BTreeSet<String> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 50);
    assert!(given.iter().all(|ip| pings("lan", ip)));
    all("DEL");
    clean(&node, "p0", "all at once");
}
