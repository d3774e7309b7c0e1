//! Type `portmap`: ports that are taken, what is refused, CHECK, GC, and a plugin that is killed.

mod common;

use common::ports::{bridge, chained, first, mapping, node, node_result, portmap, rules, start};
use common::trace::Held;
use common::traffic::{serve, tcp, udp};
use common::ways::{check, gc};
use common::{Node, points, sh, try_sh};
use serde_json::{Value, json};

#[test]
fn a_port_that_is_taken_names_its_holder() {
    let node = node();
    let ports = portmap(json!([
        mapping(8080, 80, "tcp"),
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.168.7.1"}
    ]));
    start(&node, "p1", &ports);
    serve("p1", "[::]:80");
    node.pod("p2");
    let second = node.add("p2", &bridge());
    for taken in [
        json!([mapping(9000, 80, "tcp"), mapping(8080, 80, "tcp")]),
        json!([{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.168.7.1"}]),
    ] {
        let conf = chained(&portmap(taken), &second);
        let (code, message) = node.call("ADD", "p2", &conf).run().err();
        assert_eq!(code, 999, "{message}");
        assert!(message.contains("is held by container p1 (eth0)"), "{message}");
        assert!(!rules().contains("p2 eth0"), "left by a failed ADD");
        assert!(!std::path::Path::new("/var/lib/causeway/portmap/p2-eth0.json").exists());
    }
    // The same port of another protocol or address is another one.
    let other = json!([
        mapping(8080, 80, "udp"),
        {"hostPort": 8080, "containerPort": 80, "hostIP": "192.168.7.1"}
    ]);
    node.add("p2", &chained(&portmap(other), &second));
    serve("p2", "[::]:80");
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p2 192.168.7.2");
    assert_eq!(tcp("ext", "[fd07::1]:8080"), "p1 fd07::2");
    node.del("p2", &portmap(Value::Null));
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p1 192.168.7.2");

    // Without its note nobody can tell whether the holder lives: the message says what to do.
    std::fs::rename("/var/lib/causeway/portmap/p1-eth0.json", "/var/lib/note").unwrap();
    let (_, message) = node.call("ADD", "p2", &chained(&ports, &second)).run().err();
    let command = message.split('`').nth(1).unwrap_or_else(|| panic!("{message}"));
    sh(command);
    std::fs::rename("/var/lib/note", "/var/lib/causeway/portmap/p1-eth0.json").unwrap();
    node.add("p1", &chained(&ports, &first(&node)));

    // A container that is gone for good holds nothing, even if nobody called DEL.
    node.del("p1", &bridge());
    node.remove_pod("p1");
    node.add("p2", &chained(&ports, &second));
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p2 192.168.7.2");
    // And its DEL, when it comes, takes nothing from the new one.
    node.del("p1", &ports);
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p2 192.168.7.2");
    node.del("p2", &portmap(Value::Null));
    node.del("p2", &bridge());
    sh("ip link del up0");
    assert_eq!(node.residue(), "");
}

#[test]
fn masquerading_as_configured() {
    let node = node();
    let mut ports = portmap(json!([mapping(8080, 80, "tcp")]));
    let result = start(&node, "p1", &ports);
    serve("p1", "[::]:80");
    node.del("p1", &ports);
    for (extra, outside, itself, local) in [
        (json!({"snat": false}), "p1 192.168.7.2", "", ""),
        (json!({"masqAll": true, "markMasqBit": 5}), "p1 10.9.0.1", "p1 10.9.0.1", "p1 10.9.0.1"),
        (json!({"backend": "iptables"}), "p1 192.168.7.2", "p1 10.9.0.1", "p1 10.9.0.1"),
        (
            json!({"externalSetMarkChain": "KUBE-MARK-MASQ", "conditionsV4": []}),
            "p1 192.168.7.2",
            "p1 10.9.0.1",
            "p1 10.9.0.1",
        ),
    ] {
        sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0");
        let mut conf = chained(&ports, &result);
        conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        node.add("p1", &conf);
        assert_eq!(tcp("ext", "192.168.7.1:8080"), outside, "{extra}");
        assert_eq!(tcp("p1", "192.168.7.1:8080"), itself, "{extra}");
        assert_eq!(tcp("", "127.0.0.1:8080"), local, "{extra}");
        assert_eq!(node.call("CHECK", "p1", &conf).run().code, 0, "{extra}");
        node.del("p1", &conf);
    }
    assert!(sh("nft list table inet causeway_cni").contains("0x00000020"));
    // A Service's translation to the same pod is not ours: its client keeps its address.
    ports["masqAll"] = json!(false);
    node.add("p1", &chained(&ports, &result));
    node.pod("p2");
    node.add("p2", &bridge());
    sh("nft add table ip svc");
    sh("nft add chain ip svc pre '{ type nat hook prerouting priority -105; }'");
    sh("nft add rule ip svc pre ip daddr 10.96.0.1 tcp dport 8080 dnat to 10.9.0.2:80");
    sh("nft add chain ip svc count '{ type filter hook postrouting priority 300; }'");
    sh("nft add rule ip svc count ip saddr 10.9.0.3 ip daddr 10.9.0.2 counter");
    let _ = tcp("p2", "10.96.0.1:8080");
    assert!(!sh("nft list chain ip svc count").contains("packets 0 "), "masqueraded");
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let node = node();
    node.pod("p1");
    let result = node.add("p1", &bridge());
    let plain = portmap(json!([mapping(8080, 80, "tcp")]));
    for (key, value, code, word) in [
        ("backend", json!("magic"), 7, "backend"),
        ("conditionsV4", json!(["-s", "1.1.1.1"]), 7, "conditionsV4"),
        ("conditionsV6", json!(["-s", "::1"]), 7, "conditionsV6"),
        ("markMasqBit", json!(32), 7, "0 to 31"),
        ("markMasqBit", json!(-1), 7, "0 to 31"),
        ("markMasqBit", json!("13"), 6, "markMasqBit"),
        ("snat", json!("yes"), 6, "snat"),
        ("externalSetMarkChain", json!("MY-MARK"), 7, "externalSetMarkChain"),
    ] {
        let mut conf = chained(&plain, &result);
        conf[key] = value;
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{key}: {message}");
        assert!(message.contains(word), "{key}: {message}");
    }
    for (mappings, code, word) in [
        (json!([mapping(80, 80, "icmp")]), 7, "protocol"),
        (json!([mapping(80, 0, "tcp")]), 7, "containerPort"),
        (json!([mapping(80, 80, "tcp"), mapping(80, 81, "TCP")]), 7, "twice"),
        (json!([mapping(80, 80, "tcp"), {"hostPort": 80, "containerPort": 80}]), 7, "twice"),
        (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "::1"}]), 7, "::1"),
        (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]), 6, "hostIP"),
        (json!([{"hostPort": 70000, "containerPort": 80}]), 6, "hostPort"),
    ] {
        let conf = chained(&portmap(mappings.clone()), &result);
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{mappings}: {message}");
        assert!(message.contains(word), "{mappings}: {message}");
    }
    let mut both = chained(&plain, &result);
    both["externalSetMarkChain"] = json!("KUBE-MARK-MASQ");
    both["markMasqBit"] = json!(14);
    assert_eq!(node.call("ADD", "p1", &both).run().err().0, 7);
    let (code, message) = node.call("ADD", "p1", &plain).run().err();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("prevResult"), "{message}");
    let mut empty = result.clone();
    empty["ips"] = json!([]);
    let (code, message) = node.call("ADD", "p1", &chained(&plain, &empty)).run().err();
    assert!(code == 7 && message.contains("no address"), "{message}");
    assert!(!rules().contains("p1 eth0"));
}

#[test]
fn check_gc_and_status() {
    let node = node();
    let ports = portmap(json!([
        mapping(8080, 80, "tcp"),
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "fd07::1"}
    ]));
    let result = start(&node, "p1", &ports);
    start(&node, "p2", &portmap(json!([mapping(9090, 80, "tcp")])));
    assert_eq!(check(&node, "p1", &ports, &result).code, 0);
    for (edit, word) in [
        ("delete element inet causeway_cni ports4 { tcp . 8080 }", "hostPort 8080/tcp"),
        ("delete element inet causeway_cni marks6 { tcp . 8080 }", "hostPort 8080/tcp"),
        ("delete element inet causeway_cni ip_ports6 { fd07::1 . udp . 53 }", "of fd07::1"),
        (
            "delete element inet causeway_cni ports4 { tcp . 8080 }; \
             add element inet causeway_cni ports4 { tcp . 8080 comment \"p1 eth0\" : 10.9.0.9 . 80 }",
            "has been changed",
        ),
        ("flush chain inet causeway_cni hostport_prerouting", "has been changed"),
        ("flush chain inet causeway_cni localnet", "has been changed"),
    ] {
        sh(&format!("nft '{edit}'"));
        let (code, message) = check(&node, "p1", &ports, &result).err();
        assert!(code == 999 && message.contains(word), "{edit}: {message}");
        sh("nft delete table inet causeway_cni");
        node.add("p1", &chained(&ports, &result));
        assert_eq!(check(&node, "p1", &ports, &result).code, 0, "{edit}");
    }
    sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0");
    assert!(check(&node, "p1", &ports, &result).err().1.contains("route_localnet"));
    node.add("p2", &chained(&portmap(json!([mapping(9090, 80, "tcp")])), &result_of("p2", &node)));

    let status = |conf: &Value| node.call("STATUS", "", conf).run();
    assert_eq!(status(&portmap(Value::Null)).code, 0);
    let mut bad = portmap(Value::Null);
    bad["backend"] = json!("magic");
    assert_eq!(status(&bad).err().0, 50);

    // Other networks' attachments are not this one's to collect.
    let mut other = ports.clone();
    other["name"] = json!("net2");
    gc(&node, &other, &[]).ok();
    assert!(rules().contains("p1 eth0") && rules().contains("p2 eth0"));
    gc(&node, &ports, &["p2"]).ok();
    assert!(!rules().contains("p1 eth0") && rules().contains("p2 eth0"), "{}", rules());
    gc(&node, &ports, &[]).ok();
    assert!(!rules().contains("eth0"), "{}", rules());
    assert_eq!(sh("find /var/lib/causeway/portmap -type f"), "");
}

fn result_of(pod: &str, _: &Node) -> Value {
    let mut result = first(&Node { bin_dir: String::new() });
    let ip = node_result(pod)["ips"][0]["address"].clone();
    result["ips"][0]["address"] = ip;
    result["ips"].as_array_mut().unwrap().truncate(1);
    result
}

/// Killed at each of its system calls: the next DEL, GC or ADD puts everything right.
#[test]
fn killed_at_any_system_call() {
    let node = node();
    let ports = portmap(json!([
        mapping(8080, 80, "tcp"),
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "fd07::1"}
    ]));
    let result = start(&node, "p1", &ports);
    let conf = chained(&ports, &result);
    let clean = |when: &str| {
        let rules = rules();
        assert!(!rules.contains("p1 eth0"), "left after {when}: {rules}");
        // A file that was being written goes with the next DEL, or with GC when it is old.
        sh("find /var/lib/causeway/portmap -name '.*' -exec touch -d yesterday {} +");
        gc(&node, &portmap(Value::Null), &[]).ok();
        assert_eq!(sh("find /var/lib/causeway/portmap -type f"), "", "left after {when}");
    };
    let right = |when: &str| {
        node.add("p1", &conf);
        assert_eq!(check(&node, "p1", &ports, &result).code, 0, "{when}");
    };
    node.del("p1", &ports);
    let mut calls = [0, 0];
    for (which, command) in ["ADD", "DEL"].into_iter().enumerate() {
        for at in points(1) {
            if command == "DEL" {
                node.add("p1", &conf);
            }
            let mut plugin = Held::start(&node, command, "p1", &conf, "");
            if !plugin.reach(at) {
                plugin.finish().ok();
                break;
            }
            plugin.kill();
            calls[which] = at;
            let when = format!("{command} killed at system call {at}");
            match at % 3 {
                0 => drop(gc(&node, &ports, &[]).ok()),
                1 => node.del("p1", &conf),
                _ => {
                    right(&when);
                    // Without the result of ADD.
                    node.del("p1", &portmap(Value::Null));
                }
            }
            clean(&when);
        }
        node.del("p1", &conf);
    }
    println!("killed at {} system calls of ADD and {} of DEL", calls[0], calls[1]);
    assert!(calls[0] > 30 && calls[1] > 20, "{calls:?} are too few to be true");
}

fn count_calls(node: &Node, command: &str, pod: &str, conf: &Value) -> usize {
    let mut plugin = Held::start(node, command, pod, conf, "");
    let mut calls = 0;
    while plugin.next() {
        calls += 1;
    }
    plugin.finish().ok();
    calls
}

/// With a thousand ports of others an ADD asks the kernel no more often, and takes no longer.
#[test]
fn the_number_of_ports_does_not_matter() {
    let node = node();
    let one = portmap(json!([mapping(8080, 80, "tcp")]));
    let result = start(&node, "p1", &one);
    let conf = chained(&one, &result);
    node.del("p1", &conf);
    let calls = |what: &str| {
        let begin = std::time::Instant::now();
        for _ in 0..10 {
            node.add("p1", &conf);
            node.del("p1", &portmap(Value::Null));
        }
        let took = begin.elapsed() / 10;
        let calls = ["ADD", "DEL"].map(|c| count_calls(&node, c, "p1", &conf));
        println!("{what}: {calls:?} system calls, {took:?} for ADD and DEL");
        calls
    };
    let alone = calls("alone");
    let many: Vec<Value> = (10_000..12_000).map(|port| mapping(port, 80, "tcp")).collect();
    start(&node, "p2", &portmap(json!(many)));
    serve("p2", "[::]:80");
    assert_eq!(calls("among 4000"), alone);
    assert!(tcp("ext", "192.168.7.1:11999").starts_with("p2 "));
    assert!(tcp("ext", "[fd07::1]:10000").starts_with("p2 "));
    node.del("p2", &portmap(Value::Null));
    assert!(!rules().contains("p2 eth0"));
}

#[test]
fn about() {
    for name in ["portmap", "firewall", "bridge"] {
        let node = Node::new();
        let output = std::process::Command::new(format!("{}/{name}", node.bin_dir))
            .env_clear()
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let mut lines = text.lines();
        let first = lines.next().unwrap();
        // What nerdctl reads it by: a prefix, and a version at least 1.7.1.
        assert!(first.starts_with(&format!("CNI {name} plugin v1.9.0+causeway.")), "{text}");
        let second = lines.next().unwrap();
        let since = if name == "firewall" { "0.4.0, 1.0.0, 1.1.0" } else { "0.1.0, 0.2.0" };
        assert!(second.starts_with(&format!("CNI protocol versions supported: {since}")), "{text}");
    }
}

/// The same packets and the same result as with the reference.
#[test]
fn side_by_side() {
    const REFERENCE: &str = "/usr/lib/cni";
    if !std::path::Path::new(REFERENCE).join("portmap").is_file() || !try_sh("iptables -V").0 {
        println!("skipped: the reference plugins are not in {REFERENCE}, or there is no iptables");
        return;
    }
    let see = |bin: &'static str, version: &'static str, snat: bool| {
        let run = move || {
            let node = node();
            let mut plain = bridge();
            plain["cniVersion"] = json!(version);
            let mut conf = portmap(json!([
                mapping(8080, 80, "tcp"),
                mapping(8080, 80, "udp"),
                {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.7.1"},
                {"hostPort": 9191, "containerPort": 80, "protocol": "tcp", "hostIP": "fd07::1"},
            ]));
            conf["cniVersion"] = json!(version);
            conf["snat"] = json!(snat);
            for pod in ["p1", "p2"] {
                node.pod(pod);
            }
            let result = node.add("p1", &plain);
            node.add("p2", &plain);
            while !sh("ip -6 addr show dev cni0 tentative").is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            let conf = chained(&conf, &result);
            let call = |command| {
                let mut call = node.call(command, "p1", &conf);
                call.bin_dir = bin;
                call.run().ok()
            };
            let mut passed = call("ADD");
            if passed["dns"] == json!({}) && version == "1.0.0" {
                // From 1.0.0 it is left out when empty; older reference plugins print it.
                passed.as_object_mut().unwrap().remove("dns");
            }
            assert_eq!(passed, result, "{version}");
            if version != "1.0.0" {
                return Vec::new();
            }
            serve("p1", "[::]:80");
            let mut seen = vec![sh("sysctl net.ipv4.conf.cni0.route_localnet")];
            let look = |seen: &mut Vec<String>| {
                for from in ["ext", "", "p1", "p2"] {
                    for to in [
                        "192.168.7.1:8080",
                        "[fd07::1]:8080",
                        "192.168.7.1:9090",
                        "10.9.0.1:9090",
                        "[fd07::1]:9191",
                        "192.168.7.1:9191",
                        "127.0.0.1:8080",
                    ] {
                        // Nobody else has a loopback address there.
                        if to.starts_with("127") && !from.is_empty() {
                            continue;
                        }
                        seen.push(format!("{from} to {to}: {}", tcp(from, to)));
                    }
                    seen.push(format!("{from} udp: {}", udp(from, "192.168.7.1:8080")));
                }
            };
            look(&mut seen);
            call("DEL");
            look(&mut seen);
            seen
        };
        std::thread::spawn(run)
    };
    let ways =
        [("0.3.0", true), ("0.3.1", true), ("0.4.0", true), ("1.0.0", true), ("1.0.0", false)];
    // Most of the time is spent waiting for answers that do not come.
    let both = ways.map(|(version, snat)| {
        (see(common::BIN_DIR, version, snat), see(REFERENCE, version, snat))
    });
    for ((ours, theirs), way) in both.into_iter().zip(ways) {
        assert_eq!(ours.join().unwrap(), theirs.join().unwrap(), "{way:?}");
    }
}
