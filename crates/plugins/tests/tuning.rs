//! Type `tuning`, beside the reference and by what packets show.

mod common;

use std::fs;

use common::chained::{after, in_version, kill_everywhere, pod, reference};
use common::lan::lan;
use common::reference::installed;
use common::served::{Families, Mode, conf, serve};
use common::{Node, in_pod, pings, sh, try_sh};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

const MAC: &str = "c2:11:22:33:44:66";

fn everything() -> Value {
    json!({
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.eth0.arp_filter": "1"},
        "mac": MAC, "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500
    })
}

/// The interface and two parameters as they are.
fn state() -> Value {
    let link: Value = serde_json::from_str(&in_pod("p1", "ip -j -d link show eth0")).unwrap();
    let link = &link[0];
    let sysctl = |key: &str| in_pod("p1", &format!("sysctl -n {key}")).trim().to_owned();
    json!({
        "flags": link["flags"], "mtu": link["mtu"], "mac": link["address"],
        "queue": link["txqlen"], "somaxconn": sysctl("net.core.somaxconn"),
        "filter": sysctl("net.ipv4.conf.eth0.arp_filter"),
        "filter6": sysctl("net.ipv6.conf.eth0.accept_ra"),
    })
}

fn files() -> Vec<String> {
    let dir = fs::read_dir("/run/cni/tuning").into_iter().flatten().flatten();
    dir.map(|e| e.file_name().into_string().unwrap()).collect()
}

#[test]
fn all_of_it_and_back() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let before = state();
    let conf = in_version(&after("tuning", &everything(), &result), "1.1.0");
    let answer = node.add("p1", &conf);
    let interface = &answer["interfaces"][2];
    assert_eq!((&interface["mac"], &interface["mtu"]), (&json!(MAC), &json!(1400)));
    assert_eq!(answer["ips"], result["ips"]);
    let now = state();
    assert_eq!(
        now,
        json!({
            "flags": ["BROADCAST", "MULTICAST", "ALLMULTI", "PROMISC", "UP", "LOWER_UP"],
            "mtu": 1400, "mac": MAC, "queue": 500, "somaxconn": "500", "filter": "1",
            "filter6": before["filter6"],
        })
    );
    node.call("CHECK", "p1", &conf).run().ok();
    // What goes over the wire: the new address, and no packet beyond the new MTU.
    assert!(pings("p1", "10.244.1.1") && pings("p1", "fd00:10:244:1::1"));
    assert!(sh("ip neigh show 10.244.1.2").contains(MAC));
    assert!(sh("ip -6 neigh show fd00:10:244:1::2").contains(MAC));
    let ping =
        |size: u32| try_sh(&format!("ip netns exec p1 ping -c1 -W2 -M do -s {size} 10.244.1.1")).0;
    assert!(ping(1372) && !ping(1373));
    for _ in 0..2 {
        node.del("p1", &conf);
        let mut expected = before.clone();
        // Parameters go with the namespace.
        (expected["somaxconn"], expected["filter"]) = (json!("500"), json!("1"));
        assert_eq!(state(), expected);
        assert_eq!(files(), [""; 0]);
    }
}

#[test]
fn beside_the_reference() {
    if !installed("tuning") {
        return;
    }
    let run = |ours: bool| {
        std::thread::spawn(move || {
            let node = Node::new();
            let mut all = Vec::new();
            for version in ["0.3.1", "0.4.0", "1.0.0"] {
                node.pod("p1");
                let main = in_version(&conf(Mode::Classic, Families::Dual), version);
                let mut result = node.add("p1", &main);
                // Versions before 1.1.0 have none.
                result["interfaces"][2].as_object_mut().unwrap().remove("mtu");
                // 1.1.1 of the reference knows no txQLen and no list of allowed parameters.
                for keys in [
                    json!({}),
                    json!({"mac": MAC}),
                    json!({"mtu": 1400, "allmulti": true}),
                    json!({"promisc": true, "sysctl": {"net.core.somaxconn": "300"}}),
                    json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv4/conf/eth0/arp_notify": "0"}}),
                    json!({"mac": "c2:11:22:33:44:01", "args": {"cni": {"mac": MAC}}}),
                    json!({"mac": "c2:11:22:33:44:01", "runtimeConfig": {"mac": MAC}}),
                    json!({"runtimeConfig": {"mac": "c2:11:22:33:44:01"}, "args": {"cni": {"mac": MAC}}}),
                    json!({"mtu": 1410, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "0"}, "args": {"cni": {"mtu": 1390, "promisc": true, "allmulti": false, "sysctl": {"net.core.somaxconn": "310"}}}}),
                ] {
                    let conf = in_version(&after("tuning", &keys, &result), version);
                    let call = |command: &str, ours: bool| {
                        if ours {
                            node.call(command, "p1", &conf).run()
                        } else {
                            reference(&node, command, "p1", &conf)
                        }
                    };
                    let before = state();
                    let mut answer = call("ADD", ours).ok();
                    if answer["dns"] == json!({}) {
                        answer.as_object_mut().unwrap().remove("dns");
                    }
                    let now = state();
                    let changed = |key: &str| now[key] != before[key];
                    let kept: Value = files().first().map_or(Value::Null, |name| {
                        assert_eq!(name, "p1_eth0.json");
                        let text = fs::read(format!("/run/cni/tuning/{name}")).unwrap();
                        let mut kept: Value = serde_json::from_slice(&text).unwrap();
                        // Ours alone, which the reference passes over.
                        for key in ["network", "containerId", "ifname"] {
                            kept.as_object_mut().unwrap().remove(key);
                        }
                        kept
                    });
                    let mac = answer["interfaces"][2]["mac"] == MAC;
                    all.push(json!([
                        keys, mac, now["flags"], now["mtu"], now["somaxconn"], now["filter"],
                        changed("mac"), kept.as_object().map(|k| k.keys().cloned().collect::<Vec<_>>()),
                        answer["ips"], answer["routes"],
                    ]));
                    if version >= "0.4.0" {
                        call("CHECK", true).ok();
                    }
                    // Each puts back what the other changed.
                    call("DEL", !ours).ok();
                    for key in ["flags", "mtu", "mac"] {
                        assert_eq!(state()[key], before[key], "{keys}: {key}");
                    }
                    assert_eq!(files(), [""; 0]);
                }
                node.del("p1", &main);
                node.remove_pod("p1");
            }
            all
        })
        .join()
        .unwrap()
    };
    assert_eq!(run(true), run(false));
}

/// By `CNI_ARGS` < the capability < `args.cni`.
#[test]
fn where_the_mac_comes_from() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::V4);
    let macs = ["c2:11:22:33:44:01", "c2:11:22:33:44:02", "c2:11:22:33:44:03", "c2:11:22:33:44:04"];
    let mut keys = json!({"mac": macs[0]});
    let mut args = String::new();
    for (n, wanted) in macs.iter().enumerate() {
        match n {
            1 => args = format!("IgnoreUnknown=1;MAC={wanted}"),
            2 => keys["runtimeConfig"] = json!({"mac": wanted}),
            3 => keys["args"] = json!({"cni": {"mac": wanted}}),
            _ => {}
        }
        let conf = after("tuning", &keys, &result);
        let mut call = node.call("ADD", "p1", &conf);
        call.args = args.clone();
        assert_eq!(&call.run().ok()["interfaces"][2]["mac"], wanted);
        assert_eq!(&state()["mac"], wanted);
        node.del("p1", &conf);
    }
}

#[test]
fn configurations() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let before = state();
    for (keys, code, word) in [
        (json!({"sysctl": {"kernel.hostname": "x"}}), 7, "kernel.hostname"),
        (json!({"sysctl": {"net/../kernel/hostname": "x"}}), 7, "net/../kernel/hostname"),
        (json!({"sysctl": {"net.core.nothing": "1"}}), 999, "net/core/nothing"),
        (json!({"sysctl": {"net.core.somaxconn": "x"}}), 999, "somaxconn"),
        (json!({"sysctl": {"net.core.somaxconn": 5}}), 6, "sysctl"),
        (json!({"sysctl": "x"}), 6, "sysctl"),
        (json!({"mtu": -1}), 7, "mtu"),
        (json!({"mtu": 10}), 7, "mtu"),
        (json!({"mtu": "x"}), 6, "mtu"),
        (json!({"txQLen": -1}), 7, "txQLen"),
        (json!({"txQLen": 4_294_967_296u64}), 7, "txQLen"),
        (json!({"mac": "01:00:00:00:00:01"}), 7, "multicast"),
        (json!({"mac": "x"}), 7, "six pairs"),
        (json!({"runtimeConfig": {"mac": "x"}}), 7, "runtimeConfig.mac"),
        (json!({"args": {"cni": {"mac": "x"}}}), 7, "args.cni.mac"),
        (json!({"args": {"cni": {"mtu": "x"}}}), 6, "args.cni.mtu"),
        (json!({"promisc": "x"}), 6, "promisc"),
        (json!({"allmulti": 1}), 6, "allmulti"),
        (json!({"dataDir": "relative"}), 7, "dataDir"),
        // All that went before the failure is put back.
        (
            json!({"mtu": 1400, "mac": MAC, "sysctl": {"net.core.somaxconn": "7", "net.ipv4.conf.eth0.nothing": "1"}}),
            999,
            "nothing",
        ),
    ] {
        let conf = after("tuning", &keys, &result);
        let (got, said) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{keys}: {said}");
        assert!(said.contains(word), "{keys}: {said}");
        assert_eq!(state(), before, "{keys}");
        assert_eq!(files(), [""; 0]);
        if code == 7 {
            assert_eq!(node.call("STATUS", "", &in_version(&conf, "1.1.0")).run().err().0, 50);
        }
    }
    let conf = after("tuning", &everything(), &result);
    let mut call = node.call("ADD", "p1", &conf);
    call.ifname = "eth9".to_owned();
    let (code, said) = call.run().err();
    assert_eq!(code, 999);
    assert!(said.contains("eth9"), "{said}");
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(node.call("ADD", "p1", &bare).run().err().0, 7);
    assert_eq!(node.call("STATUS", "", &in_version(&bare, "1.1.0")).run().code, 0);
    assert_eq!(files(), [""; 0]);
}

#[test]
fn check_tells_what_was_changed() {
    let node = Node::new();
    let conf = after("tuning", &everything(), &pod(&node, "p1", Families::Dual));
    node.add("p1", &conf);
    for (harm, word, mend) in [
        ("sysctl -qw net.core.somaxconn=7", "somaxconn", "sysctl -qw net.core.somaxconn=500"),
        ("ip link set eth0 mtu 1399", "mtu", "ip link set eth0 mtu 1400"),
        ("ip link set eth0 promisc off", "promisc", "ip link set eth0 promisc on"),
        ("ip link set eth0 allmulticast off", "allmulti", "ip link set eth0 allmulticast on"),
        ("ip link set eth0 txqueuelen 7", "txQLen", "ip link set eth0 txqueuelen 500"),
        (
            "ip link set eth0 address c2:00:00:00:00:01",
            "mac",
            "ip link set eth0 address c2:11:22:33:44:66",
        ),
    ] {
        in_pod("p1", harm);
        let (_, said) = node.call("CHECK", "p1", &conf).run().err();
        assert!(said.contains(word), "{harm}: {said}");
        in_pod("p1", mend);
        node.call("CHECK", "p1", &conf).run().ok();
    }
    // Several values, however they are separated; and what was not asked for does not matter.
    let keys = json!({"sysctl": {"net.ipv4.ping_group_range": "0  7"}});
    let conf = after("tuning", &keys, &conf["prevResult"]);
    node.add("p1", &conf);
    node.call("CHECK", "p1", &conf).run().ok();
}

/// A parameter of an interface with a dot in its name.
#[test]
fn dots_in_names() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    sh("ip -n p1 link add br.5 type bridge");
    let value = |what: &str| in_pod("p1", &format!("cat /proc/sys/net/{what}")).trim().to_owned();
    for (key, n) in [
        ("net.ipv4.conf.br/5.arp_filter", 1),
        ("net/ipv4/conf/br.5/arp_filter", 0),
        ("net.ipv4.conf.IFNAME.arp_filter", 1),
        ("net/ipv4/conf/IFNAME/arp_filter", 0),
    ] {
        let conf = after("tuning", &json!({"sysctl": {key: n.to_string()}}), &result);
        let mut call = node.call("ADD", "p1", &conf);
        call.ifname = "br.5".to_owned();
        call.run().ok();
        call.command = "CHECK";
        call.run().ok();
        assert_eq!(value("ipv4/conf/br.5/arp_filter"), n.to_string(), "{key}");
        assert_eq!(value("ipv4/conf/eth0/arp_filter"), "0");
    }
}

#[test]
fn the_list_of_what_is_allowed() {
    let node = Node::new();
    fs::create_dir_all("/etc/cni").unwrap();
    mount("tmpfs", "/etc/cni", "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir_all("/etc/cni/tuning").unwrap();
    let result = pod(&node, "p1", Families::V4);
    let both = |list: &str| {
        fs::write("/etc/cni/tuning/allowlist.conf", list).unwrap();
        ["net.core.somaxconn", "net.ipv4.conf.IFNAME.arp_filter"].map(|key| {
            let conf = after("tuning", &json!({"sysctl": {key: "1"}}), &result);
            let answer = node.call("ADD", "p1", &conf).run();
            match answer.code {
                0 => true,
                _ => {
                    let (code, said) = answer.err();
                    assert_eq!(code, 7, "{said}");
                    assert!(said.contains("allowlist.conf"), "{said}");
                    false
                }
            }
        })
    };
    assert_eq!(both(r"^net\.core\.somaxconn$"), [true, false]);
    assert_eq!(both("^net\\.core\\.somaxconn$\n\n"), [true, false]);
    assert_eq!(
        both("^net.core.*\n^net\\.ipv4\\.conf\\.[A-Z]+\\.arp_(filter|notify)$\n"),
        [true, true]
    );
    assert_eq!(both(""), [false, false]);
    assert_eq!(both("net.core{2}"), [false, false]);
    fs::remove_file("/etc/cni/tuning/allowlist.conf").unwrap();
    let conf = after("tuning", &json!({"sysctl": {"net.core.somaxconn": "1"}}), &result);
    node.add("p1", &conf);
}

/// Two of the type in one chain, DEL without a namespace, GC.
#[test]
fn saved_values() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let before = state();
    let first = after("tuning", &json!({"mtu": 1400, "mac": MAC}), &result);
    let second = after("tuning", &json!({"mtu": 1300, "promisc": true}), &result);
    node.add("p1", &first);
    node.add("p1", &second);
    node.del("p1", &second);
    node.del("p1", &first);
    assert_eq!(state(), before);

    let result2 = pod(&node, "p2", Families::Dual);
    let other = after("tuning", &json!({"mtu": 1400}), &result2);
    let mut elsewhere = other.clone();
    elsewhere["name"] = json!("another");
    node.add("p1", &first);
    node.add("p2", &other);
    let mut third = node.call("ADD", "p3", &elsewhere);
    third.netns = Some("/run/netns/p2".to_owned());
    third.run().ok();
    fs::write("/run/cni/tuning/theirs_eth0.json", r#"{"mtu":1500}"#).unwrap();
    fs::write("/run/cni/tuning/junk.json", "{").unwrap();
    let gc = |valid: &[&str]| {
        let mut conf = in_version(&first, "1.1.0");
        let valid = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"}));
        conf["cni.dev/valid-attachments"] = valid.collect();
        let mut call = node.call("GC", "", &conf);
        (call.ifname, call.netns) = (String::new(), None);
        call.run().ok();
        let mut files = files();
        files.sort();
        files.join(" ")
    };
    let others = "p3_eth0.json theirs_eth0.json";
    assert_eq!(gc(&["p1", "p2"]), format!("junk.json p1_eth0.json p2_eth0.json {others}"));
    assert_eq!(gc(&["p1"]), format!("junk.json p1_eth0.json {others}"));
    node.remove_pod("p1");
    node.del("p1", &first);
    node.del("p1", &first);
    assert_eq!(gc(&[]), format!("junk.json {others}"));
    // A file that nobody understands is no obstacle.
    fs::write("/run/cni/tuning/p2_eth0.json", "{").unwrap();
    node.del("p2", &other);
    assert!(!files().contains(&"p2_eth0.json".to_owned()));
    // Elsewhere.
    let keys = json!({"mtu": 1400, "dataDir": "/run/elsewhere/deep"});
    let conf = after("tuning", &keys, &result2);
    node.add("p2", &conf);
    assert!(fs::exists("/run/elsewhere/deep/p2_eth0.json").unwrap());
    node.del("p2", &conf);
    assert!(!fs::exists("/run/elsewhere/deep/p2_eth0.json").unwrap());
}

#[test]
fn a_served_pod_keeps_its_mac() {
    let node = serve(Mode::Routed, Families::Dual);
    node.pod("p1");
    let result = node.add("p1", &conf(Mode::Routed, Families::Dual));
    let (code, said) =
        node.call("ADD", "p1", &after("tuning", &json!({"mac": MAC}), &result)).run().err();
    assert_eq!(code, 7);
    assert!(said.contains("capability"), "{said}");
    let own = result["interfaces"][1]["mac"].clone();
    let keys = json!({"mac": own, "mtu": 1400});
    let conf = after("tuning", &keys, &result);
    node.add("p1", &conf);
    assert!(pings("p1", "192.168.77.1") && pings("p1", "fd77::1"));
    node.del("p1", &conf);
}

#[test]
fn killed_at_any_system_call() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    // Parameters are not put back.
    let mut keys = everything();
    keys.as_object_mut().unwrap().remove("sysctl");
    let conf = after("tuning", &keys, &result);
    let before = state();
    let clean = |when: &str| {
        assert_eq!(state(), before, "{when}");
        let left = files();
        assert!(left.is_empty(), "{when}: {left:?}");
    };
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
            clean(&format!("ADD killed at {at}"));
        },
    );
    let ready = || drop(node.add("p1", &conf));
    let del = kill_everywhere(&node, "DEL", "p1", &conf, ready, |at| {
        node.del("p1", &conf);
        clean(&format!("DEL killed at {at}"));
    });
    println!("killed at {add} system calls of ADD and {del} of DEL");
    assert!(add > 20 && del > 15, "{add} and {del} are too few to be true");
}

/// CHECK of the plugin that made the interface takes the MTU that the result names, whoever gave it, and
/// tells another one.
#[test]
fn check_of_the_whole_chain() {
    let begin: [(fn() -> Node, Value); 5] = [
        (
            || {
                let node = Node::new();
                lan("m0");
                node
            },
            {
                let mut macvlan = conf(Mode::Classic, Families::Dual);
                (macvlan["type"], macvlan["master"]) = (json!("macvlan"), json!("m0"));
                macvlan["mtu"] = json!(1420);
                macvlan
            },
        ),
        (Node::new, conf(Mode::Classic, Families::Dual)),
        (Node::new, {
            let mut ptp = conf(Mode::Classic, Families::Dual);
            (ptp["type"], ptp["mtu"]) = (json!("ptp"), json!(1420));
            ptp
        }),
        (|| serve(Mode::Routed, Families::Dual), conf(Mode::Routed, Families::Dual)),
        (|| serve(Mode::Classic, Families::Dual), conf(Mode::Classic, Families::Dual)),
    ];
    for (node, main) in begin {
        let what = main["type"].to_string();
        let test = move || {
            let node = node();
            node.pod("p1");
            let main = in_version(&main, "1.1.0");
            let result = node.add("p1", &main);
            let tuning = in_version(&after("tuning", &json!({"mtu": 1380}), &result), "1.1.0");
            let mut last = node.add("p1", &tuning);
            let check = |result: &Value| {
                let mut main = main.clone();
                main["prevResult"] = result.clone();
                node.call("CHECK", "p1", &main).run()
            };
            check(&last).ok();
            sh("ip -n p1 link set eth0 mtu 1390");
            let (_, said) = check(&last).err();
            assert!(said.contains("has been changed") || said.contains("MTU is"), "{said}");
            // Before version 1.1.0 results name no MTU.
            for interface in last["interfaces"].as_array_mut().unwrap() {
                interface.as_object_mut().unwrap().remove("mtu");
            }
            check(&last).ok();
            node.del("p1", &tuning);
            node.del("p1", &main);
            let left = node.residue();
            assert_eq!(left.lines().filter(|l| !l.contains(" m0@")).count(), 0, "{left}");
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{what}");
    }
}
