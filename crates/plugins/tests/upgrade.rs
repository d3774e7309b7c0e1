//! DEL of ours for attachments that the reference plugins made: what they left in nftables goes,
//! and nothing else.

mod common;

use std::path::Path;

use common::{Node, sh, try_sh};
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

fn installed() -> bool {
    let there = Path::new(REFERENCE).join("portmap").is_file() && try_sh("iptables -V").0;
    if !there {
        println!("skipped: the reference plugins are not in {REFERENCE}, or there is no iptables");
    }
    there
}

fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

fn portmap(port: u16) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "portmap",
        "runtimeConfig": {"portMappings": [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": port, "containerPort": 80, "protocol": "udp", "hostIP": "10.0.0.1"},
        ]}
    })
}

fn firewall() -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": "firewall", "backend": "iptables"})
}

/// Attaches two pods with the reference.
fn attach(node: &Node) {
    for (pod, port) in [("p1", 8080), ("p2", 8081)] {
        node.pod(pod);
        let bridge = bridge();
        let mut call = node.call("ADD", pod, &bridge);
        call.bin_dir = REFERENCE;
        let result = call.run().ok();
        for mut conf in [portmap(port), firewall()] {
            conf["prevResult"] = result.clone();
            let mut call = node.call("ADD", pod, &conf);
            call.bin_dir = REFERENCE;
            call.run().ok();
        }
    }
}

/// Takes the first pod off, with the result of ADD or without it.
fn detach(node: &Node, bin_dir: &str, result: &Value) {
    for conf in [firewall(), portmap(8080), bridge()] {
        let mut conf = conf;
        if !result.is_null() {
            conf["prevResult"] = result.clone();
        }
        let mut call = node.call("DEL", "p1", &conf);
        call.bin_dir = bin_dir;
        call.run().ok();
    }
}

/// All rules of iptables, without counters and comments of the program.
fn rules() -> Vec<String> {
    let all = ["iptables-save", "ip6tables-save"].map(|save| {
        let text = sh(save);
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        lines.map(|l| format!("{save} {}", l.split(" [").next().unwrap())).collect::<Vec<_>>()
    });
    let mut all = all.concat();
    all.sort();
    all
}

fn result_of(pod: &str) -> Value {
    let cached = sh(&format!("ip -n {pod} -o addr show eth0 scope global"));
    let ips = cached
        .lines()
        .map(|l| json!({"interface": 0, "address": l.split_whitespace().nth(3).unwrap()}));
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{pod}")}],
        "ips": ips.collect::<Vec<_>>()
    })
}

#[test]
fn ours_removes_what_the_reference_made() {
    if !installed() {
        return;
    }
    let by = |bin_dir: &'static str, with_result: bool| {
        let run = move || {
            let node = Node::new();
            sh("ip link set lo up");
            let empty = rules();
            attach(&node);
            let full = rules();
            assert!(full.iter().any(|l| l.contains("CNI-DN-")), "{full:#?}");
            let result = if with_result { result_of("p1") } else { Value::Null };
            detach(&node, bin_dir, &result);
            (empty, rules())
        };
        std::thread::spawn(run).join().unwrap()
    };
    let (_, theirs) = by(REFERENCE, true);
    let (_, ours) = by(common::BIN_DIR, true);
    assert_eq!(ours, theirs);
    assert!(ours.iter().any(|l| l.contains("p2")), "the other attachment's rules stay");
    assert!(!ours.iter().any(|l| l.contains("p1")), "{ours:#?}");
    // Names derive from network and container: the result of ADD is needed for `firewall` alone.
    let (_, ours) = by(common::BIN_DIR, false);
    let left: Vec<&String> = ours.iter().filter(|l| !theirs.contains(l)).collect();
    assert!(left.iter().all(|l| l.contains("CNI-FORWARD")), "{left:#?}");
}

/// The tables of later versions of the reference, whose rules carry the attachment as comment.
#[test]
fn ours_removes_the_rules_of_its_nft_tables() {
    let node = Node::new();
    node.pod("p1");
    let script = |id: &str, hash: &str| {
        let mut text = String::new();
        for family in ["ip", "ip6"] {
            text.push_str(&format!("add table {family} cni_hostport\n"));
            for chain in ["hostports", "hostip_hostports", "masquerading"] {
                text.push_str(&format!("add chain {family} cni_hostport {chain}\n"));
                text.push_str(&format!(
                    "add rule {family} cni_hostport {chain} tcp dport 80 counter comment \"{id}\"\n"
                ));
            }
        }
        text.push_str(&format!(
            "add table inet cni_plugins_masquerade\n\
             add chain inet cni_plugins_masquerade masq_checks\n\
             add rule inet cni_plugins_masquerade masq_checks counter comment \
             \"{hash}, net: net1, if: eth0, id: {id}\"\n"
        ));
        text
    };
    let hash = |id: &str| {
        let sum = |text: &str| sh(&format!("printf %s '{text}' | sha512sum"))[..16].to_owned();
        format!("{}-{}", sum("net1"), sum(&format!("eth0:{id}")))
    };
    for id in ["p1", "p2", "p11"] {
        std::fs::write("/run/rules", script(id, &hash(id))).unwrap();
        sh("nft -f /run/rules");
    }
    node.del("p1", &portmap(8080));
    node.del("p1", &bridge());
    let left = sh("nft list ruleset");
    let count = |word: &str| left.lines().filter(|l| l.contains(word)).count();
    assert_eq!(count("\"p1\"") + count("id: p1\""), 0, "{left}");
    assert_eq!((count("\"p2\""), count("\"p11\"")), (6, 6), "{left}");
    assert_eq!((count("id: p2\""), count("id: p11\"")), (1, 1), "{left}");
}
