//! An ADD that brings back what others lost in a flush, and a DEL of one of those, which goes by at
//! each system call of the ADD; and the other way round. Nothing of the deleted stays.

mod common;

use std::time::{Duration, Instant};

use common::trace::Held;
use common::{Node, finish, sh};
use nix::libc;
use serde_json::{Value, json};

/// How long the other may take before it counts as waiting for what the held one has locked.
const WAITS: Duration = Duration::from_millis(200);
/// System calls by which a plugin changes what others see, or sees what they changed.
const SHARED: [i64; 7] = [
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_openat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_exit_group,
];
/// Those that other processors do not have any more.
#[cfg(target_arch = "x86_64")]
const OLD: [i64; 2] = [libc::SYS_unlink, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const OLD: [i64; 0] = [];

/// The network's bridge.
fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "cni1",
        "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]],
        }
    })
}

/// A chained plugin, for a container that has the address of that number.
fn chained(mut conf: Value, number: u8) -> Value {
    conf["cniVersion"] = json!("1.0.0");
    conf["name"] = json!("net1");
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
        "ips": [
            {"interface": 0, "address": format!("10.1.0.{number}/24")},
            {"interface": 0, "address": format!("fd01::{number}/64")},
        ]
    });
    conf
}

fn portmap(number: u8) -> Value {
    let port = 8000 + u16::from(number);
    let mapping =
        |protocol: &str| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
    let mappings = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
    chained(json!({"type": "portmap", "runtimeConfig": mappings}), number)
}

fn firewall(number: u8) -> Value {
    chained(json!({"type": "firewall", "foreignForward": "insert"}), number)
}

/// A chain of others that drops, with rules of ours as long as nobody flushes it.
fn dropping() {
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    sh(&format!("nft 'add table inet others; add chain inet others forward {chain}'"));
}

/// Goes on to the next of these; false when it ended before that.
fn reach_shared(plugin: &mut Held) -> bool {
    while plugin.next() {
        let number = plugin.system_call().0;
        if SHARED.contains(&number) || OLD.contains(&number) {
            return true;
        }
    }
    false
}

/// Holds `held` at each of those while the other of ADD and DEL goes by.
fn at_each_call(held: &str, conf: impl Fn(u8) -> Value, flush: impl Fn()) {
    let node = Node::new();
    let (gone, new) = (conf(2), conf(3));
    let mut calls = 0;
    for at in 1.. {
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        flush();
        node.add("p1", &gone);
        flush();
        let (first, second) = match held {
            "ADD" => (("ADD", "p2", &new), ("DEL", "p1", &gone)),
            _ => (("DEL", "p1", &gone), ("ADD", "p2", &new)),
        };
        let mut holds = Held::start(&node, first.0, first.1, first.2, "");
        let over = !(0..at).all(|_| reach_shared(&mut holds));
        let mut other = node.call(second.0, second.1, second.2).spawn();
        let start = Instant::now();
        while other.try_wait().unwrap().is_none() && start.elapsed() < WAITS {
            std::thread::sleep(Duration::from_millis(1));
        }
        holds.finish().ok();
        finish(other).ok();
        let rules = sh("nft list ruleset");
        let when = format!("{held} held at system call {at}");
        assert!(!rules.contains("\"p1") && !rules.contains("causeway p1"), "{when}: {rules}");
        assert!(rules.contains("\"p2"), "{when}: {rules}");
        node.del("p2", &new);
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("\"p2") && !rules.contains("causeway p2"), "{when}: {rules}");
        for pod in ["p1", "p2"] {
            node.remove_pod(pod);
        }
        if over {
            break;
        }
        calls = at;
    }
    println!("{held} was held at {calls} system calls");
    assert!(calls > 10, "{calls} are too few to be true");
}

fn flush() {
    sh("nft flush ruleset");
}

#[test]
fn ports() {
    at_each_call("ADD", portmap, flush);
    at_each_call_of_del(portmap, flush);
}

#[test]
fn forwarding() {
    let again = || {
        flush();
        dropping();
    };
    at_each_call("ADD", firewall, again);
    at_each_call_of_del(firewall, again);
}

#[test]
fn forwarding_where_only_the_others_chain_was_made_anew() {
    let again = || {
        let _ = common::try_sh("nft delete table inet others");
        dropping();
    };
    at_each_call("ADD", firewall, again);
    at_each_call_of_del(firewall, again);
}

#[test]
fn masquerade() {
    let conf = |_| bridge();
    at_each_call("ADD", conf, flush);
    at_each_call_of_del(conf, flush);
}

/// In a node of its own.
fn at_each_call_of_del(conf: impl Fn(u8) -> Value + Send, flush: impl Fn() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| at_each_call("DEL", conf, flush)).join().unwrap();
    });
}
