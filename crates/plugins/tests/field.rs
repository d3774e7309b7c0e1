//! Failures of pod networks in the field, recreated. The numbers are those of the list that the
//! project keeps of them.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::served::{Families, Mode, addresses, conf, serve};
use common::{Node, in_pod, pings, sh, tutorial};
use serde_json::{Value, json};

/// An agent that is not ready and says why, for so many questions.
fn unready(why: &'static str, questions: usize) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind("/run/causeway/agent.sock").unwrap();
    std::thread::spawn(move || {
        let answer = |_| {
            let (mut conn, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let n = conn.read(&mut request).unwrap();
            let length = why.len();
            let head = format!("HTTP/1.1 503 Not ready\r\ncontent-length: {length}\r\n\r\n{why}");
            conn.write_all(head.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..n]).lines().next().unwrap().to_owned()
        };
        (0..questions).map(answer).collect()
    })
}

/// Field failure 9: "subnet.env: no such file". The error says what is missing, and where.
#[test]
fn failure_09_not_ready_and_why() {
    let node = Node::new();
    node.pod("p1");
    let why = "node: Node node-1 has no spec.podCIDRs; start kube-controller-manager with \
               --allocate-node-cidrs=true\n";
    let agent = unready(why, 3);
    let conf = json!({"cniVersion": "1.1.0", "name": "pod-network", "type": "causeway"});
    for (command, want) in [("ADD", 11), ("STATUS", 50)] {
        let (code, message) = node.call(command, "p1", &conf).run().err();
        assert_eq!(code, want, "{message}");
        for part in ["/run/causeway/node.json", "Node node-1 has no spec.podCIDRs"] {
            assert!(message.contains(part), "{command}: {message}");
        }
    }
    // What is most likely wrong is asked for beside what failed.
    let asked = ["/readyz", "/v1/finding", "/readyz"].map(|path| format!("GET {path} HTTP/1.1"));
    assert_eq!(agent.join().unwrap(), asked);
    // An agent that does not answer keeps nobody from removing.
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// Field failure 16: somebody holds the lock of iptables. Nothing here waits for it.
#[test]
fn failure_16_the_xtables_lock_is_held() {
    let node = Node::new();
    node.pod("p1");
    let lock = File::create("/run/xtables.lock").unwrap();
    lock.lock().unwrap();
    let conf = tutorial("1.0.0");
    node.add("p1", &conf);
    assert!(sh("nft list table inet causeway_cni").contains("masquerade"));
    assert!(pings("p1", "10.244.0.1"));
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// The switches of br_netfilter for both families; false where the kernel does not have it.
fn bridge_nf(on: bool) -> bool {
    let there = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if there {
        for which in ["iptables", "ip6tables"] {
            sh(&format!("sysctl -qw net.bridge.bridge-nf-call-{which}={}", u8::from(on)));
        }
    } else {
        println!("br_netfilter is not there: tried without it alone");
    }
    there || !on
}

fn pods_talk(node: &Node, conf: &Value) {
    for pod in ["p1", "p2"] {
        node.pod(pod);
    }
    node.add("p1", conf);
    let second = node.add("p2", conf);
    sh("nft 'table inet seen { chain f { type filter hook forward priority 0; \
        meta l4proto { icmp, ipv6-icmp } counter; }; }'");
    let all = addresses(&second);
    for ip in &all {
        let size = if ip.contains(':') { 1450 - 48 } else { 1450 - 28 };
        in_pod("p1", &format!("ping -c1 -W3 -M do -s {size} -n {ip}"));
    }
    let seen = sh("nft list table inet seen");
    // Neighbour discovery is not forwarded: what is seen is a request and a reply for each.
    assert!(seen.contains(&format!("packets {} ", 2 * all.len())), "{seen}");
}

/// Field failure 36: br_netfilter is missing and policy has no effect, or it is there and bridged
/// packets go through chains that were made for routed ones. Pods' packets pass the forward hook
/// once, with it and without.
#[test]
fn failure_36_with_and_without_br_netfilter() {
    for mode in Mode::ALL {
        for families in Families::ALL {
            for on in [false, true] {
                let test = move || {
                    let node = serve(mode, families);
                    if bridge_nf(on) {
                        pods_talk(&node, &conf(mode, families));
                    }
                };
                let done = std::thread::spawn(test).join();
                assert!(done.is_ok(), "{mode:?} {families:?} bridge-nf-call {on}");
            }
        }
    }
}

/// The tutorial's bridge without an agent, with bridged packets in the chains of routed ones:
/// pods see each other's own addresses all the same.
#[test]
fn failure_28_bridged_packets_are_not_masqueraded() {
    let node = Node::new();
    if !bridge_nf(true) {
        return;
    }
    let conf = tutorial("1.0.0");
    for pod in ["p1", "p2"] {
        node.pod(pod);
        node.add(pod, &conf);
    }
    in_pod("p2", "nft add table ip t");
    in_pod("p2", "nft 'add chain ip t c { type filter hook input priority 0; }'");
    in_pod("p2", "nft add rule ip t c ip saddr 10.244.0.2 counter accept");
    assert!(pings("p1", "10.244.0.3"));
    let counted = in_pod("p2", "nft list chain ip t c");
    assert!(counted.contains("packets 1 "), "{counted}");
    assert!(sh("nft list table inet causeway_cni").contains("masquerade fully-random"));
}
