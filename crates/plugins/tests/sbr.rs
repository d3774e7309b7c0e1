//! Type `sbr`, beside the reference and by the way that packets take.

mod common;

use common::chained::{after, for_all_families, in_version, kill_everywhere, pod};
use common::reference::installed;
use common::served::{Families, Mode, addresses, conf, host_end, serve};
use common::{Node, in_pod, pings, sh, try_sh};
use serde_json::{Value, json};

/// Rules and routes of the pod.
fn state() -> String {
    let routes = |family: &str| {
        let all = in_pod("p1", &format!("ip {family} route show table all"));
        let kept: Vec<&str> = all
            .lines()
            .map(str::trim)
            .filter(|l| !l.contains("table local") && !l.starts_with("multicast"))
            .collect();
        let mut kept = kept;
        kept.sort();
        kept.join("\n")
    };
    format!(
        "{}{}{}\n{}",
        in_pod("p1", "ip rule"),
        in_pod("p1", "ip -6 rule"),
        routes("-4"),
        routes("-6")
    )
}

/// A second interface `net1` of the pod on a bridge `br1` of its own, with some routes.
fn second(node: &Node, families: Families, routes: bool) -> Value {
    let nets: &[(&str, &str)] = match families {
        Families::V4 => &[("10.55.0.0/24", "0.0.0.0/0")],
        Families::V6 => &[("fd55::/64", "::/0")],
        Families::Dual => &[("10.55.0.0/24", "0.0.0.0/0"), ("fd55::/64", "::/0")],
    };
    let ranges: Vec<Value> = nets.iter().map(|(net, _)| json!([{"subnet": net}])).collect();
    let far = |net: &str| if net.contains(':') { "fd56::/64" } else { "10.56.0.0/16" };
    let routes: Vec<Value> =
        nets.iter().filter(|_| routes).map(|(net, _)| json!({"dst": far(net)})).collect();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "second", "type": "bridge", "bridge": "br1",
        "isGateway": true, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    let mut call = node.call("ADD", "p1", &conf);
    call.ifname = "net1".to_owned();
    call.run().ok()
}

fn run(node: &Node, command: &str, conf: &Value) -> common::Answer {
    let mut call = node.call(command, "p1", conf);
    call.ifname = "net1".to_owned();
    call.run()
}

/// Packets that the node has taken in by an interface.
fn taken_in(dev: &str) -> u64 {
    let links: Value = serde_json::from_str(&sh(&format!("ip -j -s link show {dev}"))).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// What comes from an address of the second interface leaves by it, to wherever; all else as before.
#[test]
fn packets_leave_by_the_interface_of_their_source() {
    for_all_families(|families| {
        let node = Node::new();
        let first = pod(&node, "p1", families);
        let result = second(&node, families, false);
        let far = ["10.77.0.1", "fd77::1"];
        sh("ip addr add 10.77.0.1/32 dev lo && ip addr add fd77::1/128 dev lo nodad");
        let ways = [host_end(&first), host_end(&result)];
        let sources = [addresses(&first), addresses(&result)];
        let conf = after("sbr", &json!({}), &result);
        let leaves_by = |from: &str| {
            let to = if from.contains(':') { far[1] } else { far[0] };
            let before = ways.clone().map(|dev| taken_in(&dev));
            let sent = try_sh(&format!("ip netns exec p1 ping -c40 -i0.01 -W1 -n -I {from} {to}"));
            let grown: Vec<u64> =
                ways.iter().zip(before).map(|(dev, was)| taken_in(dev) - was).collect();
            (sent.0, usize::from(grown[1] >= 40))
        };
        for from in &sources[1] {
            assert_eq!(leaves_by(from).1, 0, "without it, by the first");
        }
        assert_eq!(run(&node, "ADD", &conf).ok(), result);
        run(&node, "CHECK", &conf).ok();
        for (n, from) in [(0, &sources[0]), (1, &sources[1])] {
            for from in from {
                assert_eq!(leaves_by(from), (true, n), "{from}");
            }
        }
        run(&node, "DEL", &conf).ok();
        for from in &sources[1] {
            assert_eq!(leaves_by(from).1, 0, "after DEL");
        }
    });
}

/// Nothing is left of it by DEL: rules and routes are as before.
#[test]
fn there_and_back() {
    for_all_families(|families| {
        for routes in [false, true] {
            let test = move || {
                let node = Node::new();
                pod(&node, "p1", families);
                let result = second(&node, families, routes);
                let before = state();
                for keys in [json!({}), json!({"table": 300}), json!({"table": 70_000})] {
                    let mut conf = after("sbr", &keys, &result);
                    run(&node, "ADD", &conf).ok();
                    // Another ADD in its place changes nothing.
                    let once = state();
                    run(&node, "ADD", &conf).ok();
                    assert_eq!(state(), once);
                    run(&node, "CHECK", &conf).ok();
                    assert_ne!(once, before);
                    let own = keys == json!({});
                    assert_eq!(
                        once.contains("from 10.55.0.2 lookup 100"),
                        own && families != Families::V6
                    );
                    if !own {
                        let main = in_pod("p1", "ip route") + &in_pod("p1", "ip -6 route");
                        assert!(main.contains("net1"), "routes stay");
                    }
                    if routes {
                        conf.as_object_mut().unwrap().remove("prevResult");
                    }
                    run(&node, "DEL", &conf).ok();
                    assert_eq!(state(), before, "{keys}");
                    run(&node, "DEL", &conf).ok();
                    assert_eq!(state(), before, "{keys}");
                }
            };
            assert!(std::thread::spawn(test).join().is_ok(), "{routes}");
        }
    });
}

/// Rules, tables and routes are those of the reference, but for routes of the other family that it
/// copies to each table, and those of the link, which it takes away from the link.
#[test]
fn beside_the_reference() {
    if !installed("sbr") {
        return;
    }
    let plain = |state: &str| {
        let kept: Vec<String> = state
            .lines()
            .filter(|l| !l.contains("fe80::/64"))
            .filter(|l| !l.contains("table 101") || l.contains(':'))
            .filter(|l| !l.contains("table 100") || !l.contains(':'))
            .map(|l| l.replace(" proto 203", "").replace("proto kernel ", "").trim().to_owned())
            .collect();
        kept
    };
    let runs = [true, false].map(|ours| {
        std::thread::spawn(move || {
            let node = Node::new();
            let mut all = Vec::new();
            pod(&node, "p1", Families::Dual);
            let result = second(&node, Families::Dual, true);
            let before = state();
            for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
                let mut result = result.clone();
                if version < "1.0.0" {
                    for ip in result["ips"].as_array_mut().unwrap() {
                        let v4 = ip["address"].as_str().unwrap().contains('.');
                        ip["version"] = json!(if v4 { "4" } else { "6" });
                    }
                }
                result["cniVersion"] = json!(version);
                let conf = in_version(&after("sbr", &json!({}), &result), version);
                let call = |command: &str, ours: bool| {
                    let mut call = node.call(command, "p1", &conf);
                    call.ifname = "net1".to_owned();
                    if !ours {
                        call.program = Some(format!("{}/sbr", common::reference::REFERENCE));
                    }
                    call.run()
                };
                let mut answer = call("ADD", ours).ok();
                if answer["dns"] == json!({}) {
                    answer.as_object_mut().unwrap().remove("dns");
                }
                for interface in answer["interfaces"].as_array_mut().unwrap() {
                    interface["mac"] = json!(interface["mac"].as_str().unwrap().len());
                }
                all.push((answer, plain(&state())));
                if version >= "0.4.0" {
                    call("CHECK", true).ok();
                    call("CHECK", false).ok();
                }
                // Ours takes down what the reference made, and the reference what ours made, but
                // for the routes, which it leaves to the end of the interface.
                call("DEL", !ours).ok();
                assert!(!state().contains("lookup 10"), "{}", state());
                if ours {
                    for table in [100, 101] {
                        let _ = try_sh(&format!("ip -n p1 route flush table {table}"));
                        let _ = try_sh(&format!("ip -n p1 -6 route flush table {table}"));
                    }
                    sh("ip -n p1 link set net1 down && ip -n p1 link set net1 up");
                    sh("ip -n p1 route add 10.56.0.0/16 via 10.55.0.1");
                    sh("ip -n p1 -6 route add fd56::/64 via fd55::1");
                } else {
                    // It had copied the link's own to each table.
                    assert_eq!(plain(&state()), plain(&before));
                }
            }
            all
        })
        .join()
        .unwrap()
    });
    assert_eq!(runs[0], runs[1]);
}

/// The rules of others, and tables that are in use.
#[test]
fn what_others_made_stays() {
    let node = Node::new();
    pod(&node, "p1", Families::Dual);
    let result = second(&node, Families::Dual, false);
    for command in [
        "ip rule add from 10.55.0.2 lookup 200",
        "ip rule add from 10.55.0.0/24 lookup 201",
        "ip rule add from 10.55.0.2 to 10.0.0.0/8 lookup 202 proto 203",
        "ip rule add not from 10.55.0.2 lookup 203 proto 203",
        "ip rule add fwmark 1 lookup 100",
        "ip -6 rule add from fd55::2 fwmark 1 lookup 101 proto 203",
        "ip route add blackhole 10.200.0.0/16 table 102",
        "ip -6 route add fd44::/64 dev net1 table 103",
    ] {
        in_pod("p1", command);
    }
    let before = state();
    let conf = after("sbr", &json!({}), &result);
    run(&node, "ADD", &conf).ok();
    let now = state();
    assert!(now.contains("from 10.55.0.2 lookup 104 proto 203"), "{now}");
    assert!(now.contains("from fd55::2 lookup 105 proto 203"), "{now}");
    run(&node, "CHECK", &conf).ok();
    run(&node, "DEL", &conf).ok();
    assert_eq!(state(), before);
}

#[test]
fn check_tells_what_is_wrong() {
    let node = Node::new();
    pod(&node, "p1", Families::Dual);
    let result = second(&node, Families::Dual, true);
    let conf = after("sbr", &json!({}), &result);
    run(&node, "ADD", &conf).ok();
    for (family, from, table) in [("-4", "10.55.0.2", 100), ("-6", "fd55::2", 101)] {
        in_pod("p1", &format!("ip {family} rule del from {from}"));
        assert!(run(&node, "CHECK", &conf).err().1.contains(from));
        in_pod("p1", &format!("ip {family} rule add from {from} lookup {table} proto 203"));
        run(&node, "CHECK", &conf).ok();
    }
    for (harm, word) in [
        ("ip route del default table 100", "10.55.0.1"),
        ("ip -6 route del default table 101", "fd55::1"),
        ("ip route add 10.55.0.0/24 dev net1", "main again"),
        ("ip -6 route add fd55::/64 dev net1", "main again"),
    ] {
        in_pod("p1", harm);
        let (_, said) = run(&node, "CHECK", &conf).err();
        assert!(said.contains(word), "{harm}: {said}");
        run(&node, "ADD", &conf).ok();
        run(&node, "CHECK", &conf).ok();
    }
    let other = after("sbr", &json!({"table": 300}), &result);
    assert!(run(&node, "CHECK", &other).err().1.contains("rule"));
}

#[test]
fn configurations() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let before = state();
    for (keys, code, word) in [
        (json!({"table": 0}), 7, "table"),
        (json!({"table": -1}), 7, "table"),
        (json!({"table": 254}), 7, "main"),
        (json!({"table": 4_294_967_296u64}), 7, "table"),
        (json!({"table": "x"}), 6, "table"),
        (json!({"addSourceHints": true}), 2, "addSourceHints"),
        (json!({"addSourceHints": 1}), 6, "addSourceHints"),
    ] {
        let conf = after("sbr", &keys, &result);
        let (got, said) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{keys}: {said}");
        assert!(said.contains(word), "{keys}: {said}");
        let status = node.call("STATUS", "", &in_version(&conf, "1.1.0")).run();
        assert_eq!(status.err().0, 50);
        node.del("p1", &conf);
        assert_eq!(state(), before);
    }
    let conf = after("sbr", &json!({"addSourceHints": false, "table": null}), &result);
    let (code, said) = run(&node, "ADD", &conf).err();
    assert_eq!(code, 999);
    assert!(said.contains("net1"), "{said}");
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(node.call("ADD", "p1", &bare).run().err().0, 7);
    node.remove_pod("p1");
    node.del("p1", &conf);
    let mut gone = node.call("DEL", "p1", &conf);
    gone.netns = None;
    gone.run().ok();
    let mut gc = in_version(&conf, "1.1.0");
    gc["cni.dev/valid-attachments"] = json!([]);
    let mut call = node.call("GC", "", &gc);
    (call.ifname, call.netns) = (String::new(), None);
    call.run().ok();
}

/// Pods of a served network have gateways that are no neighbours by their addresses.
#[test]
fn served_pods() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            node.pod("p1");
            let result = node.add("p1", &conf(mode, Families::Dual));
            let before = state();
            let conf = after("sbr", &json!({}), &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            for (from, to) in addresses(&result).iter().zip(["192.168.77.1", "fd77::1"]) {
                in_pod("p1", &format!("ping -c1 -W3 -n -I {from} {to}"));
            }
            node.del("p1", &conf);
            assert_eq!(state(), before);
            assert!(pings("p1", "192.168.77.1") && pings("p1", "fd77::1"));
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{mode:?}");
    }
}

#[test]
fn killed_at_any_system_call() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let conf = after("sbr", &json!({}), &result);
    let before = state();
    let add = kill_everywhere(
        &node,
        "ADD",
        "p1",
        &conf,
        || (),
        |at| {
            if at % 2 == 0 {
                node.add("p1", &conf);
                node.call("CHECK", "p1", &conf).run().ok();
            }
            node.del("p1", &conf);
            assert_eq!(state(), before, "ADD killed at {at}");
        },
    );
    let ready = || drop(node.add("p1", &conf));
    let del = kill_everywhere(&node, "DEL", "p1", &conf, ready, |at| {
        if at % 2 == 0 {
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
        }
        node.del("p1", &conf);
        assert_eq!(state(), before, "DEL killed at {at}");
    });
    println!("killed at {add} system calls of ADD and {del} of DEL");
    assert!(add > 30 && del > 30, "{add} and {del} are too few to be true");
}
