//! Type `bandwidth`: what is removed and what stays, beside others, on served networks, and when it is
//! killed.

mod common;

use common::chained::{after, for_all_families, in_version, kill_everywhere, pod};
use common::limits::{SOME, from, is_free, is_limited, limits, towards};
use common::served::{Families, Mode, addresses, conf, host_end, serve};
use common::{Node, in_pod, pings, sh, try_sh};
use serde_json::{Value, json};

/// Two interfaces of a container in one network: with the reference the second fails.
#[test]
fn two_interfaces_of_a_container() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let mut main = conf(Mode::Classic, Families::Dual);
    main["ipam"]["routes"] = json!([]);
    let mut call = node.call("ADD", "p1", &main);
    call.ifname = "eth1".to_owned();
    let second = call.run().ok();
    let first = after("bandwidth", &limits(true, true), &result);
    let second = after("bandwidth", &limits(true, true), &second);
    node.add("p1", &first);
    let on = |command, conf| {
        let mut call = node.call(command, "p1", conf);
        call.ifname = "eth1".to_owned();
        call.run()
    };
    on("ADD", &second).ok();
    assert_eq!(sh("ip -o link show type ifb").lines().count(), 2);
    node.call("CHECK", "p1", &first).run().ok();
    on("CHECK", &second).ok();
    on("DEL", &second).ok();
    on("DEL", &second).ok();
    node.call("CHECK", "p1", &first).run().ok();
    on("ADD", &second).ok();
    node.del("p1", &first);
    node.del("p1", &first);
    on("CHECK", &second).ok();
    on("DEL", &second).ok();
    assert_eq!(sh("ip -o link show type ifb"), "");
}

/// DEL without a result, without a namespace, repeated; GC; and nothing of others is touched.
#[test]
fn removal() {
    let node = Node::new();
    let conf = after("bandwidth", &limits(true, true), &pod(&node, "p1", Families::Dual));
    let other = after("bandwidth", &limits(true, true), &pod(&node, "p2", Families::Dual));
    let mut elsewhere = after("bandwidth", &limits(true, true), &pod(&node, "p3", Families::Dual));
    elsewhere["name"] = json!("pod-network-2");
    sh("ip link add ifb-mine type ifb && ip link add bwp000000000000 type ifb");
    let ifbs = || sh("ip -o link show type ifb").lines().count();
    node.add("p1", &conf);
    node.add("p2", &other);
    node.add("p3", &elsewhere);
    assert_eq!(ifbs(), 5);
    let gc = |valid: Value| {
        let mut conf = in_version(&conf, "1.1.0");
        conf.as_object_mut().unwrap().remove("prevResult");
        conf["cni.dev/valid-attachments"] = valid;
        let mut call = node.call("GC", "", &conf);
        (call.ifname, call.netns) = (String::new(), None);
        call.run().ok();
    };
    gc(json!([{"containerID": "p1", "ifname": "eth0"}, {"containerID": "p2", "ifname": "eth0"}]));
    assert_eq!(ifbs(), 5);
    gc(json!([{"containerID": "p2", "ifname": "eth0"}, {"containerID": "p1", "ifname": "eth1"}]));
    assert_eq!(ifbs(), 4);
    node.call("CHECK", "p2", &other).run().ok();
    node.call("CHECK", "p3", &elsewhere).run().ok();
    gc(json!([]));
    assert_eq!(ifbs(), 3, "that of another network and two of others");
    node.add("p1", &conf);
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    node.del("p1", &bare);
    assert_eq!(ifbs(), 3);
    assert!(pings("p1", "10.244.1.1"), "it sends again");
    node.add("p1", &conf);
    node.remove_pod("p1");
    for _ in 0..2 {
        node.del("p1", &conf);
        assert_eq!(ifbs(), 3);
    }
    let mut call = node.call("DEL", "p3", &elsewhere);
    call.netns = None;
    call.run().ok();
    assert_eq!(ifbs(), 2);
    // A device of the right name that is no ifb, or another's, is left alone.
    let name = node.add("p2", &other)["interfaces"][3]["name"].as_str().unwrap().to_owned();
    node.del("p2", &other);
    for make in [
        format!("ip link add {name} type bridge"),
        format!("ip link add {name} type ifb && ip link set {name} alias another"),
    ] {
        sh(&make);
        let made = node.add("p2", &other)["interfaces"][3]["name"].as_str().unwrap().to_owned();
        assert_ne!(made, name);
        node.call("CHECK", "p2", &other).run().ok();
        node.del("p2", &other);
        assert!(try_sh(&format!("ip link show {name}")).0);
        assert!(!try_sh(&format!("ip link show {made}")).0);
        sh(&format!("ip link del {name}"));
    }
}

/// A pair with any names, as other plugins make them: the previous result says which is its end.
#[test]
fn a_pair_of_another_plugin() {
    let node = Node::new();
    node.pod("p1");
    sh("ip link add vethx type veth peer name eth0 netns p1 && ip link set vethx up");
    sh("ip link add vethy type veth peer name eth0 && ip link set vethy up");
    sh("ip -n p1 link set eth0 up && ip -n p1 addr add 10.3.0.2/24 dev eth0");
    sh("ip -n p1 addr add fd03::2/64 dev eth0 nodad && ip addr add 10.3.0.1/24 dev vethx");
    sh("ip addr add fd03::1/64 dev vethx nodad");
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "vethy"}, {"name": "vethx"}, {"name": "gone"},
            {"name": "eth0", "sandbox": "/run/netns/p1"}],
        "ips": [{"interface": 3, "address": "10.3.0.2/24"}, {"interface": 3, "address": "fd03::2/64"}],
    });
    let conf = after("bandwidth", &limits(true, true), &result);
    node.add("p1", &conf);
    node.call("CHECK", "p1", &conf).run().ok();
    for (pod, node) in [("10.3.0.2", "10.3.0.1"), ("fd03::2", "fd03::1")] {
        is_limited("to", &|| towards("p1", pod, SOME));
        is_limited("from", &|| from("p1", node, SOME));
    }
    assert!(!sh("tc qdisc show dev vethy").contains("tbf"));
    node.del("p1", &conf);
    assert!(!sh("tc qdisc show").contains("tbf"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    let stranger = after(
        "bandwidth",
        &limits(true, true),
        &json!({
            "cniVersion": "1.0.0", "interfaces": [{"name": "vethy"}, {"name": "lo"}], "ips": []
        }),
    );
    let (code, said) = node.call("ADD", "p1", &stranger).run().err();
    assert_eq!(code, 7);
    assert!(said.contains("other end"), "{said}");
    assert!(!sh("tc qdisc show").contains("tbf"));
}

/// A root queue that somebody else made is no reason to remove it.
#[test]
fn others_queues() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::V4);
    let host = host_end(&result);
    sh(&format!("tc qdisc add dev {host} root handle 7: tbf rate 1gbit burst 1m latency 25ms"));
    let conf = after("bandwidth", &limits(true, true), &result);
    let (code, said) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999);
    assert!(said.contains(&host) && said.contains("tbf 7:"), "{said}");
    node.del("p1", &conf);
    assert!(sh("tc qdisc show").contains("tbf 7:"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    // Somebody's classifier at the ingress stays, and ours works beside it.
    sh(&format!("tc qdisc del dev {host} root && tc qdisc add dev {host} clsact"));
    sh(&format!(
        "tc filter add dev {host} ingress pref 99 protocol ip u32 match u32 0 0 flowid 1:1"
    ));
    node.add("p1", &conf);
    is_limited("from", &|| from("p1", "10.244.1.1", SOME));
    node.del("p1", &conf);
    assert!(sh(&format!("tc filter show dev {host} ingress")).contains("pref 99"));
    is_free("from", &|| from("p1", "10.244.1.1", SOME));
}

/// An ADD that fails half way leaves nothing.
#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let host = host_end(&result);
    // Another's filter of another kind of protocol holds the place of ours.
    sh(&format!("tc qdisc add dev {host} clsact"));
    sh(&format!("tc filter add dev {host} ingress pref 1 protocol ip u32 match u32 0 0"));
    let conf = after("bandwidth", &limits(true, true), &result);
    let (code, said) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999, "{said}");
    assert!(said.contains(&host), "{said}");
    assert!(!sh("tc qdisc show").contains("tbf"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    assert!(sh(&format!("tc filter show dev {host} ingress")).contains("protocol ip pref 1 "));
}

/// On a served network a pod whose rate is limited sends only with its own addresses all the same,
/// though what comes back from the device passes no ingress chain.
#[test]
fn limited_pods_are_guarded() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let main = conf(mode, Families::Dual);
            node.pod("p1");
            node.pod("p2");
            let result = node.add("p1", &main);
            let victim = addresses(&node.add("p2", &main));
            let conf = after("bandwidth", &limits(true, true), &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            for (to, node) in addresses(&result).iter().zip(["192.168.77.1", "fd77::1"]) {
                is_limited("to", &|| towards("p1", to, SOME));
                is_limited("from", &|| from("p1", node, SOME));
            }
            let dropped = || dropped(&host_end(&result));
            let spoofed = [("10.244.1.99/32", &victim[0]), ("fd00:10:244:1::99/128", &victim[1])];
            for (from, to) in spoofed {
                assert!(pings("p1", to), "{to}");
                let nodad = if from.contains(':') { "nodad" } else { "" };
                let before = dropped();
                sh(&format!("ip -n p1 addr add {from} dev eth0 {nodad}"));
                let from = from.split('/').next().unwrap();
                let (ok, _) = try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n -I {from} {to}"));
                assert!(!ok);
                assert!(dropped() > before, "{from}");
            }
            let before = dropped();
            in_pod("p1", "ip link set eth0 address 02:de:ad:be:ef:01");
            assert!(!pings("p1", &victim[0]));
            assert!(dropped() > before, "another MAC");
            sh(&format!("nft flush chain netdev causeway_cni {}", ifb()));
            let (_, said) = node.call("CHECK", "p1", &conf).run().err();
            assert!(said.contains("does not go through"), "{said}");
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            sh(&format!("ip link del {}", ifb()));
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.add("p1", &conf);
            // In the wrong order, and without the namespace.
            node.del("p1", &main);
            node.remove_pod("p1");
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.pod("p1");
            let result = node.add("p1", &main);
            let conf = after("bandwidth", &limits(true, true), &result);
            node.add("p1", &conf);
            let mut gc = in_version(&conf, "1.1.0");
            gc["cni.dev/valid-attachments"] = json!([]);
            let mut call = node.call("GC", "", &gc);
            (call.ifname, call.netns) = (String::new(), None);
            call.run().ok();
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.del("p1", &main);
            node.del("p2", &main);
            assert_eq!(sh("ip -o link show type ifb"), "");
            assert_eq!(node.residue(), "");
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{mode:?}");
    }
}

/// The only device of the kind.
fn ifb() -> String {
    let all: Value = serde_json::from_str(&sh("ip -j link show type ifb")).unwrap();
    all[0]["ifname"].as_str().unwrap().to_owned()
}

/// Packets that the chain of an interface has dropped.
fn dropped(host: &str) -> u64 {
    let chain = sh(&format!("nft list chain netdev causeway_cni {host}"));
    let count = |l: &str| l.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    chain.lines().filter(|l| l.contains("drop")).filter_map(count).sum()
}

#[test]
fn killed_at_any_system_call() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    kill_both(&node, &after("bandwidth", &limits(true, true), &result));
}

#[test]
fn killed_at_any_system_call_on_a_served_network() {
    let node = serve(Mode::Routed, Families::Dual);
    node.pod("p1");
    let result = node.add("p1", &conf(Mode::Routed, Families::Dual));
    kill_both(&node, &after("bandwidth", &limits(true, true), &result));
}

fn kill_both(node: &Node, conf: &Value) {
    let clean = |when: &str| {
        assert!(!sh("nft list ruleset").contains("bwp"), "{when}");
        assert_eq!(sh("ip -o link show type ifb"), "", "{when}");
        let queues = sh("tc qdisc show");
        assert!(!queues.contains("tbf") && !queues.contains("ingress"), "{when}: {queues}");
    };
    let add = kill_everywhere(
        node,
        "ADD",
        "p1",
        conf,
        || (),
        |at| {
            if at % 2 == 0 {
                // Another ADD in its place.
                node.add("p1", conf);
                node.call("CHECK", "p1", conf).run().ok();
            }
            node.del("p1", conf);
            clean(&format!("ADD killed at {at}"));
        },
    );
    let ready = || drop(node.add("p1", conf));
    let del = kill_everywhere(node, "DEL", "p1", conf, ready, |at| {
        node.del("p1", conf);
        clean(&format!("DEL killed at {at}"));
    });
    println!("killed at {add} system calls of ADD and {del} of DEL");
    assert!(add > 30 && del > 20, "{add} and {del} are too few to be true");
}

/// The result of the chain names the limit's device beside the node's end: CHECK of the first plugin
/// takes neither for the other.
#[test]
fn check_of_the_whole_chain() {
    for_all_families(|families| {
        let node = Node::new();
        let result = pod(&node, "p1", families);
        let conf = after("bandwidth", &limits(true, true), &result);
        let last = node.add("p1", &conf);
        let mut first = common::served::conf(common::served::Mode::Classic, families);
        first["cniVersion"] = json!("1.0.0");
        first["prevResult"] = last;
        node.call("CHECK", "p1", &first).run().ok();
        sh(&format!("ip link set {} nomaster", result["interfaces"][1]["name"].as_str().unwrap()));
        let (code, why) = node.call("CHECK", "p1", &first).run().err();
        assert!(code == 999 && why.contains("has been changed"), "{why}");
        node.del("p1", &conf);
    });
}
