//! Type `firewall`: packets of pods through the node, with real packets.

mod common;

use std::path::Path;

use common::chained::network;
use common::outside::node;
use common::trace::Held;
use common::traffic::{serve, tcp};
use common::ways::{check, gc};
use common::{Node, pings, points, sh, try_sh};
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

fn firewall(n: u8, extra: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": format!("net{n}"), "type": "firewall"});
    conf.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
    conf
}

fn chained(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// A pod on a bridge, without its firewall.
fn plug(node: &Node, pod: &str, n: u8) -> Value {
    node.pod(pod);
    let result = node.add(pod, &network("bridge", n, false));
    while !sh(&format!("ip -6 addr show dev cni{n} tentative")).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    result
}

/// The address of a pod.
fn ip(result: &Value, number: usize) -> String {
    result["ips"][number]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

/// Can one reach the other, in each family?
fn reaches(from: &str, to: &Value) -> [bool; 2] {
    [0, 1].map(|n| try_sh(&format!("ip netns exec {from} ping -c 1 -W 1 -n {}", ip(to, n))).0)
}

#[test]
fn bridges_are_kept_apart() {
    let same = json!({"ingressPolicy": "same-bridge"});
    let matrix = |bin: &'static str| {
        let same = same.clone();
        let run = move || {
            let node = node();
            let mut results = Vec::new();
            for (pod, n, policy) in
                [("p1", 1, &same), ("p2", 1, &same), ("q1", 2, &same), ("r1", 3, &json!({}))]
            {
                let result = plug(&node, pod, n);
                let conf = chained(&firewall(n, policy), &result);
                let mut call = node.call("ADD", pod, &conf);
                call.bin_dir = bin;
                assert_eq!(call.run().ok()["ips"], result["ips"]);
                results.push((pod, result));
            }
            let mut seen = Vec::new();
            for from in ["p1", "p2", "q1", "r1", "ext"] {
                for (to, result) in &results {
                    if *to != from {
                        seen.push((format!("{from} to {to}"), reaches(from, result)));
                    }
                }
                if from != "ext" {
                    seen.push((
                        format!("{from} to ext"),
                        [pings(from, "192.168.7.2"), pings(from, "fd07::2")],
                    ));
                }
            }
            seen
        };
        std::thread::spawn(run).join().unwrap()
    };
    let ours = matrix(common::BIN_DIR);
    for (way, works) in &ours {
        let apart = matches!(way.as_str(), "p1 to q1" | "p2 to q1" | "q1 to p1" | "q1 to p2");
        assert_eq!(*works, [!apart; 2], "{way}");
    }
    if Path::new(REFERENCE).join("firewall").is_file() && try_sh("iptables -V").0 {
        assert_eq!(ours, matrix(REFERENCE));
    }
}

#[test]
fn adds_checks_and_removes() {
    let node = node();
    let same = json!({"ingressPolicy": "same-bridge", "backend": "iptables"});
    let conf = firewall(1, &same);
    let result = plug(&node, "p1", 1);
    let other = plug(&node, "p2", 1);
    for (pod, result) in [("p1", &result), ("p2", &other)] {
        assert_eq!(&node.add(pod, &chained(&conf, result)), result);
    }
    let rules = || sh("nft list table inet causeway_cni");
    assert!(rules().contains("10.1.0.2 comment \"p1 eth0\""), "{}", rules());
    assert_eq!(check(&node, "p1", &conf, &result).code, 0);
    // The administrator's chain is called, and never emptied.
    sh("nft add rule inet causeway_cni CNI-ADMIN ip daddr 10.1.0.2 drop");
    assert_eq!(reaches("ext", &result), [false, true]);
    for edit in [
        "delete element inet causeway_cni forward4 { 10.1.0.2 }",
        "delete element inet causeway_cni forward6 { fd1::2 }",
        "delete element inet causeway_cni bridges { cni1 }",
        "flush chain inet causeway_cni isolation",
    ] {
        sh(&format!("nft '{edit}'"));
        assert_eq!(check(&node, "p1", &conf, &result).err().0, 999, "{edit}");
        if edit.contains("chain") {
            sh("nft 'flush chain inet causeway_cni forward; \
                delete chain inet causeway_cni isolation; delete set inet causeway_cni forward6'");
        }
        node.add("p1", &chained(&conf, &result));
        node.add("p2", &chained(&conf, &other));
        assert_eq!(check(&node, "p1", &conf, &result).code, 0, "{edit}");
        assert!(rules().contains("ip daddr 10.1.0.2 drop"), "{}", rules());
    }
    // Without the result of ADD, and again.
    for _ in 0..2 {
        node.del("p1", &conf);
        assert!(!rules().contains("p1 eth0") && rules().contains("p2 eth0"), "{}", rules());
    }
    let mut newest = conf.clone();
    newest["cniVersion"] = json!("1.1.0");
    let mut foreign = newest.clone();
    foreign["name"] = json!("another");
    gc(&node, &foreign, &[]).ok();
    assert!(rules().contains("p2 eth0") && rules().contains("\"cni1\""), "{}", rules());
    gc(&node, &newest, &[]).ok();
    assert!(!rules().contains("p2 eth0") && !rules().contains("\"cni1\""), "{}", rules());
    assert_eq!(sh("find /var/lib/causeway/firewall -type f"), "");
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let node = node();
    let result = plug(&node, "p1", 1);
    for (extra, code, word) in [
        (json!({"backend": "magic"}), 7, "backend"),
        (json!({"backend": "firewalld"}), 7, "firewall-cmd"),
        (json!({"firewalldZone": "public"}), 7, "--zone=public"),
        (json!({"iptablesAdminChainName": "MINE"}), 7, "CNI-ADMIN"),
        (json!({"ingressPolicy": "isolated"}), 7, "same-bridge"),
        (json!({"ingressPolicy": 3}), 6, "ingressPolicy"),
        (json!({"foreignForward": "always"}), 7, "insert"),
    ] {
        let conf = chained(&firewall(1, &extra), &result);
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{extra}: {message}");
        assert!(message.contains(word), "{extra}: {message}");
    }
    let same = json!({"ingressPolicy": "same-bridge"});
    let mut alone = result.clone();
    alone["interfaces"].as_array_mut().unwrap().remove(0);
    for ip in alone["ips"].as_array_mut().unwrap() {
        ip["interface"] = json!(1);
    }
    let (code, message) = node.call("ADD", "p1", &chained(&firewall(1, &same), &alone)).run().err();
    assert!(code == 7 && message.contains("behind \"bridge\""), "{message}");
    let (code, message) = node.call("ADD", "p1", &firewall(1, &json!({}))).run().err();
    assert!(code == 7 && message.contains("prevResult"), "{message}");
    let old = json!({"cniVersion": "0.3.1", "name": "net1", "type": "firewall"});
    assert_eq!(node.call("ADD", "p1", &old).run().err().0, 1);
    let versions = node.call("VERSION", "p1", &old).run().ok()["supportedVersions"].clone();
    assert_eq!(versions, json!(["0.4.0", "1.0.0", "1.1.0"]));
    assert!(!sh("nft list ruleset").contains("p1 eth0"));
}

fn has_iptables() -> bool {
    let there = try_sh("iptables -V").1.contains("nf_tables");
    if !there {
        println!("skipped: there is no iptables-nft");
    }
    there
}

/// A chain that drops everything: ADD fails, says where and why, and what to do.
#[test]
fn a_foreign_chain_that_drops_all_is_named() {
    if !has_iptables() {
        return;
    }
    let node = node();
    let result = plug(&node, "p1", 1);
    let conf = chained(&firewall(1, &json!({})), &result);
    let mut status = firewall(1, &json!({}));
    status["cniVersion"] = json!("1.1.0");
    assert_eq!(node.call("STATUS", "", &status).run().code, 0);
    sh("iptables -P FORWARD DROP");
    // The other family works.
    let answer = node.call("ADD", "p1", &conf).run();
    assert!(answer.stderr.contains("warning: chain FORWARD of table ip filter"), "{answer:?}");
    answer.ok();
    assert_eq!(reaches("ext", &result), [false, true]);
    assert_eq!(node.call("STATUS", "", &status).run().code, 0);
    sh("ip6tables -P FORWARD DROP");
    node.del("p1", &conf);
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999, "{message}");
    for word in [
        "chain FORWARD of table ip filter has policy drop",
        "chain FORWARD of table ip6 filter has policy drop",
        "`iptables -P FORWARD ACCEPT`",
        "`ip6tables -P FORWARD ACCEPT`",
        "\"foreignForward\" to \"insert\"",
    ] {
        assert!(message.contains(word), "{message}");
    }
    assert!(!sh("nft list ruleset").contains("p1 eth0"), "left by a failed ADD");
    assert_eq!(node.call("STATUS", "", &status).run().err().0, 50);
    // What the message says helps.
    sh("iptables -P FORWARD ACCEPT && ip6tables -P FORWARD ACCEPT");
    node.add("p1", &conf);
    assert_eq!(reaches("ext", &result), [true, true]);
    sh("iptables -P FORWARD DROP && ip6tables -P FORWARD DROP");
    assert_eq!(check(&node, "p1", &firewall(1, &json!({})), &result).err().0, 999);
    // Rules that may accept: nobody knows, so it is a warning.
    for iptables in ["iptables", "ip6tables"] {
        sh(&format!("{iptables} -A FORWARD -i wlan0 -j ACCEPT"));
    }
    let answer = node.call("ADD", "p1", &conf).run();
    assert!(answer.stderr.contains("must have rules of its own"), "{answer:?}");
    answer.ok();
    assert_eq!(reaches("ext", &result), [false, false]);
    assert_eq!(node.call("STATUS", "", &status).run().code, 0);
}

#[test]
fn accepts_are_put_into_foreign_chains_on_request() {
    if !has_iptables() {
        return;
    }
    let node = node();
    let insert = json!({"foreignForward": "insert"});
    let conf = firewall(1, &insert);
    let result = plug(&node, "p1", 1);
    for iptables in ["iptables", "ip6tables"] {
        sh(&format!("{iptables} -P FORWARD DROP && {iptables} -A FORWARD -i wlan0 -j ACCEPT"));
    }
    sh("nft add table inet mine");
    sh("nft add chain inet mine f '{ type filter hook forward priority 10; policy drop; }'");
    let all = || sh("iptables -S FORWARD; ip6tables -S FORWARD; nft list table inet mine");
    let before = all();
    assert_eq!(reaches("ext", &result), [false, false]);
    // Twice: nothing is there twice.
    for _ in 0..2 {
        node.add("p1", &chained(&conf, &result));
    }
    serve("p1", "[::]:80");
    assert_eq!(reaches("ext", &result), [true, true]);
    assert_eq!(tcp("ext", "10.1.0.2:80"), "p1 192.168.7.2");
    assert_eq!(tcp("ext", "[fd1::2]:80"), "p1 fd07::2");
    assert!(pings("p1", "192.168.7.2") && pings("p1", "fd07::2"));
    let listed = sh("iptables -S FORWARD");
    let comment = "-m comment --comment \"causeway p1 eth0\"";
    for rule in [
        format!("-A FORWARD -s 10.1.0.2/32 {comment} -j ACCEPT"),
        format!("-A FORWARD -d 10.1.0.2/32 {comment} -j ACCEPT"),
    ] {
        assert_eq!(listed.lines().filter(|l| **l == rule).count(), 1, "{listed}");
    }
    assert!(sh("ip6tables -S FORWARD").contains("-A FORWARD -s fd1::2/128"));
    assert_eq!(check(&node, "p1", &conf, &result).code, 0);
    // iptables takes it out like one of its own, and CHECK sees that.
    sh(&format!("iptables -D FORWARD -d 10.1.0.2/32 {comment} -j ACCEPT"));
    let (_, message) = check(&node, "p1", &conf, &result).err();
    assert!(message.contains("chain FORWARD of table ip filter"), "{message}");
    node.add("p1", &chained(&conf, &result));
    assert_eq!(check(&node, "p1", &conf, &result).code, 0);
    // Another pod's rules, and those of others, stay.
    let other = plug(&node, "p2", 1);
    node.add("p2", &chained(&conf, &other));
    node.del("p1", &conf);
    assert!(!all().contains("p1 eth0") && all().contains("p2 eth0"), "{}", all());
    assert_eq!(reaches("ext", &other), [true, true]);
    let mut newest = conf.clone();
    newest["cniVersion"] = json!("1.1.0");
    gc(&node, &newest, &[]).ok();
    assert_eq!(all(), before);
    assert_eq!(node.call("STATUS", "", &newest).run().code, 0);
}

/// firewalld's chain accepts by policy, and rejects by its last rule.
#[test]
fn firewalld_is_told_from_others() {
    let node = node();
    let result = plug(&node, "p1", 1);
    sh("nft add table inet firewalld");
    sh("nft add chain inet firewalld filter_FORWARD \
        '{ type filter hook forward priority 10; policy accept; }'");
    sh("nft add rule inet firewalld filter_FORWARD ct state established,related accept");
    sh("nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited");
    let conf = chained(&firewall(1, &json!({})), &result);
    let answer = node.call("ADD", "p1", &conf).run();
    assert!(answer.stderr.contains("firewall-cmd"), "{answer:?}");
    answer.ok();
    assert_eq!(reaches("ext", &result), [false, false]);
    let conf = chained(&firewall(1, &json!({"foreignForward": "insert"})), &result);
    let answer = node.call("ADD", "p1", &conf).run();
    assert!(answer.stderr.contains("firewalld forgets"), "{answer:?}");
    answer.ok();
    assert_eq!(reaches("ext", &result), [true, true]);
    node.del("p1", &conf);
    assert_eq!(reaches("ext", &result), [false, false]);
}

/// A table with an owner cannot be changed by others: ADD says so, and leaves nothing.
#[test]
fn an_owned_table_is_named() {
    use std::io::Write;
    let node = node();
    let result = plug(&node, "p1", 1);
    // It keeps a history of what it was told.
    let mut owner = std::process::Command::new("nft")
        .arg("-i")
        .env("HOME", "/run")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = owner.stdin.take().unwrap();
    writeln!(input, "add table inet owned {{ flags owner; }}").unwrap();
    let chain = "{ type filter hook forward priority 10; policy drop; }";
    writeln!(input, "add chain inet owned f {chain}").unwrap();
    input.flush().unwrap();
    let start = std::time::Instant::now();
    while !try_sh("nft list chain inet owned f").0 {
        assert!(start.elapsed().as_secs() < 10, "nft -i does nothing");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let conf = chained(&firewall(1, &json!({"foreignForward": "insert"})), &result);
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 999 && message.contains("inet owned f"), "{message}");
    assert!(message.contains("flag owner"), "{message}");
    assert!(!sh("nft list ruleset").contains("p1 eth0"));
    drop(input);
    owner.wait().unwrap();
}

/// Of the old iptables it is only known that it is there.
#[test]
fn the_old_iptables_is_named() {
    let node = node();
    if !try_sh("iptables-legacy -P FORWARD DROP").0 {
        println!("skipped: there is no iptables-legacy");
        return;
    }
    let result = plug(&node, "p1", 1);
    let answer = node.call("ADD", "p1", &chained(&firewall(1, &json!({})), &result)).run();
    assert!(answer.stderr.contains("`iptables-legacy -P FORWARD ACCEPT`"), "{answer:?}");
    answer.ok();
    assert_eq!(reaches("ext", &result), [false, true]);
}

#[test]
fn killed_at_any_system_call() {
    let node = node();
    let extra = json!({"ingressPolicy": "same-bridge", "foreignForward": "insert"});
    let mut plain = firewall(1, &extra);
    plain["cniVersion"] = json!("1.1.0");
    let result = plug(&node, "p1", 1);
    sh("nft add table inet mine");
    sh("nft add chain inet mine f '{ type filter hook forward priority 10; policy drop; }'");
    let conf = chained(&plain, &result);
    node.add("p1", &conf);
    node.del("p1", &conf);
    let clean = |when: &str| {
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("p1 eth0"), "left after {when}: {rules}");
        sh("find /var/lib/causeway/firewall -name '.*' -exec touch -d yesterday {} +");
        gc(&node, &plain, &[]).ok();
        assert_eq!(sh("find /var/lib/causeway/firewall -type f"), "", "left after {when}");
    };
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
                0 => drop(gc(&node, &plain, &[]).ok()),
                1 => node.del("p1", &conf),
                _ => {
                    node.add("p1", &conf);
                    assert_eq!(check(&node, "p1", &plain, &result).code, 0, "{when}");
                    // Without the result of ADD.
                    node.del("p1", &plain);
                }
            }
            clean(&when);
        }
        node.del("p1", &conf);
    }
    println!("killed at {} system calls of ADD and {} of DEL", calls[0], calls[1]);
    assert!(calls[0] > 30 && calls[1] > 20, "{calls:?} are too few to be true");
}
