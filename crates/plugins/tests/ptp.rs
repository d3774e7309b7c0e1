//! Type `ptp`.

mod common;

use std::fs;

use common::reference::{REFERENCE, installed, shape, side_by_side};
use common::served::{Families, Mode, addresses, serve};
use common::{BIN_DIR, Node, in_pod, pings, sh, try_sh};
use serde_json::{Value, json};

fn conf(families: Families) -> Value {
    let ranges: Vec<Value> = families.cidrs().iter().map(|c| json!([{"subnet": c}])).collect();
    let default = |c: &&str| if c.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let routes: Vec<Value> = families.cidrs().iter().map(|c| json!({"dst": default(c)})).collect();
    json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "ptp",
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    })
}

/// The node's own address and, behind a router, a network that knows no way back to pods.
fn outside() {
    sh("ip addr add 192.168.77.1/32 dev lo && ip addr add fd77::1/128 dev lo nodad");
    sh("ip netns add out && ip link add up0 type veth peer name eth0 netns out");
    sh("ip addr add 192.0.2.1/24 dev up0 && ip addr add fd02::1/64 dev up0 nodad");
    sh("ip link set up0 up && ip -n out link set eth0 up && ip -n out link set lo up");
    sh("ip -n out addr add 192.0.2.2/24 dev eth0 && ip -n out addr add fd02::2/64 dev eth0 nodad");
}

fn reaches(pod: &str, to: &str) {
    assert!(pings(pod, to), "{pod} does not reach {to}: {}", in_pod(pod, "ip route"));
}

/// While the kernel looks for duplicates of the link-local address of the node's end, it solicits no
/// neighbours there, and forwards nothing to the pod.
#[test]
fn a_pod_is_reached_from_outside_at_once() {
    let node = common::outside::node();
    let conf = conf(Families::V6);
    node.pod("p1");
    let result = node.add("p1", &conf);
    in_pod("ext", &format!("ping -c1 -W1 -n {}", addresses(&result)[0]));
    node.del("p1", &conf);
}

#[test]
fn pods_reach_each_other_the_node_and_with_masquerade_the_world() {
    for families in Families::ALL {
        std::thread::spawn(move || {
            let node = Node::new();
            outside();
            let mut conf = conf(families);
            conf["ipMasq"] = true.into();
            conf["mtu"] = 1400.into();
            node.pod("p1");
            node.pod("p2");
            let results = [node.add("p1", &conf), node.add("p2", &conf)];
            for (result, pod) in results.iter().zip(["p1", "p2"]) {
                for ip in addresses(result) {
                    reaches(if pod == "p1" { "p2" } else { "p1" }, &ip);
                    sh(&format!("ping -c1 -W3 -n {ip}"));
                    let v6 = ip.contains(':');
                    reaches(pod, if v6 { "fd77::1" } else { "192.168.77.1" });
                    // Nobody there knows a way back to the pod.
                    reaches(pod, if v6 { "fd02::2" } else { "192.0.2.2" });
                }
                assert!(in_pod(pod, "ip link show eth0").contains("mtu 1400"));
                let mut check = conf.clone();
                check["prevResult"] = result.clone();
                node.call("CHECK", pod, &check).run().ok();
            }
            // One pod's end does not hurt the other's gateway, which has the same address.
            node.del("p1", &conf);
            for ip in addresses(&results[1]) {
                reaches("p2", if ip.contains(':') { "fd02::2" } else { "192.0.2.2" });
                sh(&format!("ping -c1 -W3 -n {ip}"));
            }
            node.remove_pod("p2");
            node.del("p2", &conf);
            node.del("p2", &conf);
            sh("ip link del up0");
            assert_eq!(node.residue(), "", "{families:?}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn without_masquerade_the_world_sees_the_pod() {
    let node = Node::new();
    outside();
    let conf = conf(Families::Dual);
    node.pod("p1");
    node.add("p1", &conf);
    assert!(!pings("p1", "192.0.2.2") && !pings("p1", "fd02::2"));
    sh("ip -n out route add default via 192.0.2.1 && ip -n out -6 route add default via fd02::1");
    reaches("p1", "192.0.2.2");
    reaches("p1", "fd02::2");
}

#[test]
fn check_sees_every_object_that_is_missing_or_changed() {
    let node = Node::new();
    let mut conf = conf(Families::Dual);
    conf["ipMasq"] = true.into();
    let breaks = [
        ("ip link set HOST down", "HOST"),
        ("ip addr del 10.244.1.1/32 dev HOST", "10.244.1.1/32"),
        ("ip addr del fd00:10:244:1::1/128 dev HOST", "fd00:10:244:1::1/128"),
        ("ip route del 10.244.1.IP dev HOST", "route 10.244.1.IP"),
        ("ip -6 route del fd00:10:244:1::IP dev HOST", "route fd00:10:244:1::IP"),
        ("ip -n POD route del default", "route 0.0.0.0/0"),
        ("ip -n POD -6 route del default", "route ::/0"),
        ("ip -n POD route del 10.244.1.0/24", "route 10.244.1.0/24"),
        ("ip -n POD link set eth0 address 02:00:00:00:00:09", "link eth0"),
        ("ip -n POD addr del fd00:10:244:1::IP/64 dev eth0", "fd00:10:244:1::IP/64"),
        ("nft flush map inet causeway_cni masq4", "causeway_cni"),
        (
            "echo x > /var/lib/cni/networks/pod-network/10.244.1.IP",
            "10.244.1.IP in /var/lib/cni/networks/pod-network is missing or another container's",
        ),
    ];
    for (i, (command, word)) in breaks.into_iter().enumerate() {
        let pod = format!("p{i}");
        node.pod(&pod);
        let result = node.add(&pod, &conf);
        let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let of = |ip: &str| ip.rsplit(['.', ':']).next().unwrap().to_owned();
        let last = addresses(&result).iter().map(|ip| of(ip)).collect::<Vec<_>>();
        let fill = |text: &str| {
            let ip = if text.contains("::IP") { &last[1] } else { &last[0] };
            text.replace("HOST", &host).replace("POD", &pod).replace("IP", ip)
        };
        conf["prevResult"] = result;
        node.call("CHECK", &pod, &conf).run().ok();
        sh(&fill(command));
        let (code, message) = node.call("CHECK", &pod, &conf).run().err();
        assert!(code == 999 && message.contains(&fill(word)), "{command}: {message}");
        node.call("DEL", &pod, &conf).run().ok();
    }
    assert_eq!(node.residue(), "");
}

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    let node = Node::new();
    node.pod("p1");
    let with = |key: &str, value: Value| {
        let mut conf = conf(Families::Dual);
        conf[key] = value;
        conf
    };
    let fixed = |address: Value| with("ipam", json!({"type": "static", "addresses": [address]}));
    for (conf, code, word) in [
        (with("mtu", json!(7)), 7, "mtu"),
        (with("mtu", json!("x")), 6, "mtu"),
        (with("ipMasq", json!("yes")), 6, "ipMasq"),
        (with("ipMasqBackend", json!("magic")), 7, "ipMasqBackend"),
        (with("ipam", json!({})), 7, "ipam"),
        (fixed(json!({"address": "10.7.0.5/24"})), 7, "gateway"),
        (fixed(json!({"address": "10.7.0.5/24", "gateway": "fd00::1"})), 7, "gateway"),
        (fixed(json!({"address": "10.7.0.5/24", "gateway": "10.7.0.5"})), 7, "gateway"),
        (fixed(json!({"address": "10.7.0.5"})), 7, "10.1.0.5/24"),
    ] {
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert!(got == code && message.contains(word), "{conf}: {got} {message}");
        assert_eq!(node.residue(), "", "{conf}");
        assert!(!in_pod("p1", "ip link").contains("eth0"), "{conf}");
        // As runtimes do after an ADD that failed.
        node.del("p1", &conf);
    }
    // What is there already is another network's.
    sh("ip -n p1 link add eth0 type bridge");
    let conf = conf(Families::Dual);
    let (_, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(message.contains("eth0 already exists"), "{message}");
    node.del("p1", &conf);
    assert!(in_pod("p1", "ip link").contains("eth0"));
    assert_eq!(node.residue(), "");
}

#[test]
fn status_and_gc() {
    let node = Node::new();
    let mut conf = conf(Families::Dual);
    conf["cniVersion"] = "1.1.0".into();
    conf["ipMasq"] = true.into();
    let mut call = node.call("STATUS", "", &conf);
    call.netns = None;
    call.run().ok();
    for pod in ["p1", "p2"] {
        node.pod(pod);
        node.add(pod, &conf);
    }
    let keep = node.call("ADD", "p3", &conf);
    node.pod("p3");
    let kept = keep.run().ok();
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p3", "ifname": "eth0"}]);
    node.call("GC", "", &gc).run().ok();
    for pod in ["p1", "p2"] {
        assert!(!in_pod(pod, "ip link").contains("eth0"), "{pod}");
    }
    for ip in addresses(&kept) {
        sh(&format!("ping -c1 -W3 -n {ip}"));
    }
    let mut check = conf.clone();
    check["prevResult"] = kept;
    node.call("CHECK", "p3", &check).run().ok();
    node.del("p3", &conf);
    assert_eq!(node.residue(), "");
}

/// Links, addresses, routes and kernel parameters after ADD, without names and MACs.
fn picture(pod: &str, host: &str) -> String {
    let show = [
        format!("ip -4 -o addr show dev {host}"),
        format!("ip -6 -o addr show dev {host} scope global"),
        format!("ip route show dev {host}"),
        format!("ip -6 route show dev {host}"),
        format!("ip -n {pod} -4 -o addr show dev eth0"),
        format!("ip -n {pod} -6 -o addr show dev eth0 scope global"),
        format!("ip -n {pod} route"),
        format!("ip -n {pod} -6 route"),
        "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding".to_owned(),
    ];
    let text: Vec<String> = show.iter().map(|command| sh(command)).collect();
    let text = text.concat().replace(host, "HOST").replace(" tentative", "").replace(" nodad", "");
    // Indexes before names; the kernel's own routes; the flag that says why one of them is missing.
    let lines = text.lines().map(|l| l.split_once(": ").map_or(l, |(_, rest)| rest));
    let lines =
        lines.filter(|l| !l.starts_with("fe80::/64")).map(|l| l.replace("noprefixroute ", ""));
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn makes_the_same_as_the_reference() {
    if !installed("ptp") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        let mut conf = conf(Families::Dual);
        conf["mtu"] = 1400.into();
        conf["dns"] = json!({"nameservers": ["10.1.1.1"]});
        let more = json!({"dst": "10.9.0.0/16", "gw": "10.244.1.1"});
        conf["ipam"]["routes"].as_array_mut().unwrap().push(more);
        node.pod("p1");
        let result = node.add("p1", &conf);
        let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let seen = (shape(result), picture("p1", &host), in_pod("p1", "ip link").contains("1400"));
        node.del("p1", &conf);
        seen
    });
    assert_eq!(ours, reference);
}

#[test]
fn every_version() {
    if !installed("ptp") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
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

#[test]
fn each_takes_down_and_checks_what_the_other_made() {
    if !installed("ptp") {
        return;
    }
    let node = Node::new();
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
        for ip in addresses(&known["prevResult"]) {
            // The reference does not wait until its addresses are usable.
            sh(&format!("for i in 1 2 3 4 5; do ping -c1 -W1 -n {ip} && exit; done; exit 1"));
        }
        run("CHECK", other, &known);
        run("DEL", other, &known);
        assert!(!in_pod(pod, "ip link").contains("eth0"), "made by {maker}");
        // The mark of an attachment that the reference took down goes with our next DEL or GC.
        run("DEL", BIN_DIR, &known);
        assert_eq!(node.residue(), "", "made by {maker}");
    }
}

#[test]
fn on_a_served_network_pods_are_recorded_and_guarded() {
    for families in Families::ALL {
        std::thread::spawn(move || {
            let node = serve(Mode::Routed, families);
            let conf = conf(families);
            node.pod("p1");
            node.pod("p2");
            let first = node.add("p1", &conf);
            node.add("p2", &conf);
            let record = fs::read("/var/lib/causeway/attachments/p1-eth0.json").unwrap();
            let record: Value = serde_json::from_slice(&record).unwrap();
            assert_eq!((&record["attach"], &record["pending"]), (&json!("routed"), &json!(false)));
            for ip in addresses(&first) {
                reaches("p2", &ip);
                let v6 = ip.contains(':');
                reaches("p1", if v6 { "fd77::1" } else { "192.168.77.1" });
                // With another sender's address nothing leaves.
                let spoofed = if v6 { "fd99::9/128" } else { "10.99.0.9/32" };
                let route = if v6 { "ip -6 route" } else { "ip route" };
                let source = spoofed.split('/').next().unwrap();
                sh(&format!("ip -n p1 addr add {spoofed} dev eth0"));
                sh(&format!(
                    "{route} add {spoofed} dev {}",
                    record["hostIfname"].as_str().unwrap()
                ));
                let to = if v6 { "fd77::1" } else { "192.168.77.1" };
                let spoof = format!("ip netns exec p1 ping -c1 -W1 -n -I {source} {to}");
                assert!(!try_sh(&spoof).0, "{spoof}");
            }
            let mut check = conf.clone();
            check["prevResult"] = first;
            node.call("CHECK", "p1", &check).run().ok();
            node.del("p1", &conf);
            node.del("p2", &conf);
            assert_eq!(node.residue(), "", "{families:?}");
            // Another node's subnet is refused.
            let mut other = conf.clone();
            other["ipam"] = json!({"type": "host-local", "subnet": "10.99.0.0/24"});
            let (code, message) = node.call("ADD", "p1", &other).run().err();
            assert!(code == 7 && message.contains("ipam.subnet"), "{message}");
            assert_eq!(node.residue(), "");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn many_at_once() {
    let node = Node::new();
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
    assert!(given.iter().all(|ip| try_sh(&format!("ping -c1 -W3 -n {ip}")).0));
    all("DEL");
    assert_eq!(node.residue(), "");
}
