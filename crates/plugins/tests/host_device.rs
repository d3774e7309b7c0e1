//! Type `host-device`.

mod common;

use std::fs;

use common::lan::lan;
use common::reference::{REFERENCE, installed, script, shape, side_by_side};
use common::served::{Families, Mode, serve};
use common::{BIN_DIR, Node, in_pod, pings, sh, try_sh};
use serde_json::{Value, json};

fn conf() -> Value {
    let ranges = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]);
    json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "host-device", "device": "h0",
        "ipam": {
            "type": "host-local", "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}

fn mac_of_h0() -> String {
    let text = sh("ip -o link show h0");
    let mut words = text.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).unwrap().to_owned()
}

/// The device is home under its name, without an alias, and no record or lease is left.
#[track_caller]
fn home(node: &Node, when: &str) {
    let shown = sh("ip link show h0");
    assert!(!shown.contains("alias"), "{when}: {shown}");
    let left = node.residue().lines().filter(|l| !l.contains(" h0@")).collect::<String>();
    assert_eq!(left, "", "{when}");
}

#[test]
fn the_device_moves_into_the_pod_and_back() {
    let node = Node::new();
    lan("h0");
    let mac = mac_of_h0();
    sh("ip addr add 192.0.2.1/24 dev h0");
    for ip in ["10.5.0.2", "fd05::2"] {
        sh(&format!("ip -n lan neigh add {ip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
    }
    let conf = conf();
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"][0]["mac"].as_str().unwrap(), mac);
    assert!(!try_sh("ip link show h0").0);
    // Told by the device itself, before anybody asked; or forgotten, where the kernel has seen that the carrier was
    // gone while the device moved.
    let heard = |ip: &str| !sh(&format!("ip -n lan neigh show {ip}")).contains("02:00:00:00:00:99");
    for ip in ["10.5.0.2", "fd05::2"] {
        let in_time = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            heard(ip)
        });
        assert!(in_time, "{ip}");
    }
    assert!(pings("p1", "10.5.0.1") && pings("p1", "fd05::1"));
    assert!(pings("lan", "10.5.0.2") && pings("lan", "fd05::2"));
    let mut known = conf.clone();
    known["prevResult"] = result;
    node.call("CHECK", "p1", &known).run().ok();
    node.del("p1", &conf);
    home(&node, "DEL");
    assert_eq!(mac_of_h0(), mac);
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    node.del("p1", &conf);
    home(&node, "a second DEL");
    // The other way round: the pod's namespace goes before DEL, and the device (a veth) with it.
    node.add("p1", &conf);
    node.remove_pod("p1");
    node.del("p1", &conf);
    assert_eq!(node.residue().lines().filter(|l| !l.contains(" h0@")).count(), 0);
}

#[test]
fn an_alias_that_was_there_comes_back() {
    let node = Node::new();
    lan("h0");
    sh("ip link set h0 alias 'port 7 of the rack'");
    let mut conf = conf();
    conf["ipam"] = json!({});
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result.get("ips"), None);
    assert!(in_pod("p1", "ip link show eth0").contains("alias h0"));
    node.del("p1", &conf);
    assert!(sh("ip link show h0").contains("alias port 7 of the rack"));
    // Also when an ADD fails after the device has moved.
    sh("ip link set h0 up");
    conf = self::conf();
    conf["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 999 && message.contains("10.9.0.0/16"), "{message}");
    let shown = sh("ip link show h0");
    assert!(shown.contains("alias port 7 of the rack") && shown.contains(",UP"), "{shown}");
    assert_eq!(node.residue().lines().filter(|l| !l.contains(" h0@")).count(), 0);
}

#[test]
fn every_key_finds_the_device() {
    let node = Node::new();
    lan("h0");
    // As sysfs shows devices: of hardware, behind virtio, of a scalable function, and one that
    // belongs to a program.
    sh("mount -t tmpfs tmpfs /sys");
    for dir in [
        "/sys/devices/pci0000:00/0000:00:19.0/net/h0",
        "/sys/bus/pci/devices/0000:00:19.0/net/h0",
        "/sys/bus/pci/devices/0000:00:1a.0/virtio3/net/h0",
        "/sys/bus/auxiliary/devices/mlx5_core.sf.4/net/h0",
        "/sys/bus/pci/devices/0000:00:1b.0",
        "/sys/bus/pci/drivers/vfio-pci",
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    sh("ln -s ../../drivers/vfio-pci /sys/bus/pci/devices/0000:00:1b.0/driver");
    sh("ip link property add dev h0 altname short0 altname a-name-that-is-long-enough");
    node.pod("p1");
    let mut base = conf();
    base.as_object_mut().unwrap().remove("device");
    let with = |key: &str, value: &str| {
        let mut conf = base.clone();
        match key {
            "deviceID" => conf["runtimeConfig"] = json!({"deviceID": value}),
            key => conf[key] = value.into(),
        }
        conf
    };
    for (key, value, pci) in [
        ("device", "h0", None),
        ("device", "short0", None),
        ("device", "a-name-that-is-long-enough", None),
        ("hwaddr", &mac_of_h0().to_uppercase(), None),
        ("kernelpath", "/sys/devices/pci0000:00/0000:00:19.0", None),
        ("pciBusID", "0000:00:19.0", Some("0000:00:19.0")),
        ("pciBusID", "0000:00:1a.0", Some("0000:00:1a.0")),
        ("deviceID", "0000:00:19.0", Some("0000:00:19.0")),
        ("deviceID", "mlx5_core.sf.4", Some("mlx5_core.sf.4")),
    ] {
        let mut conf = with(key, value);
        conf["cniVersion"] = "1.1.0".into();
        let mut status = node.call("STATUS", "", &conf);
        status.netns = None;
        status.run().ok();
        let result = node.add("p1", &conf);
        assert_eq!(result["interfaces"][0].get("pciID").and_then(Value::as_str), pci, "{key}");
        assert_eq!(result["interfaces"][0]["mtu"], 1500);
        assert!(pings("p1", "10.5.0.1"), "{key} {value}");
        // It is away: another ADD would fail.
        assert_eq!(status.run().err().0, 50);
        let mut known = conf.clone();
        known["prevResult"] = result;
        node.call("CHECK", "p1", &known).run().ok();
        node.del("p1", &base);
        home(&node, &format!("{key} {value}"));
    }
    let mut two = with("device", "h0");
    two["hwaddr"] = "02:00:00:00:00:01".into();
    let mut contradiction = with("device", "lo");
    contradiction["pciBusID"] = "0000:00:19.0".into();
    for (conf, code, word) in [
        (base.clone(), 7, "specify \"device\""),
        (with("device", "none"), 7, "link not found"),
        (with("hwaddr", "xx"), 7, "hwaddr"),
        (with("hwaddr", "02:00:00:00:00:01"), 7, "link not found"),
        (with("kernelpath", "/etc"), 7, "/sys/devices"),
        (with("kernelpath", "/sys/devices/../x"), 7, "/sys/devices"),
        (with("kernelpath", "/sys/devices/none"), 7, "link not found"),
        (with("pciBusID", "0000:00:1b.0"), 7, "vfio-pci"),
        (with("deviceID", "0000:00:1b.0"), 7, "vfio-pci"),
        (with("pciBusID", "../x"), 7, "pciBusID"),
        (two, 7, "link not found"),
        (contradiction, 7, "remove one of them"),
        (with("device", "lo"), 999, "move interface lo"),
    ] {
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert!(got == code && message.contains(word), "{conf}: {got} {message}");
        home(&node, &conf.to_string());
        // As runtimes do after an ADD that failed.
        node.del("p1", &conf);
        let lo = sh("ip link show lo");
        assert!(lo.contains(",UP") && !lo.contains("alias"), "{lo}");
    }
}

#[test]
fn names_that_are_taken() {
    let node = Node::new();
    lan("h0");
    let conf = conf();
    node.pod("p1");
    // In the pod: nothing is moved.
    sh("ip -n p1 link add eth0 type bridge");
    let (_, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(message.contains("eth0 already exists"), "{message}");
    home(&node, "the pod's name is taken");
    node.del("p1", &conf);
    assert!(in_pod("p1", "ip link").contains("eth0"));
    sh("ip -n p1 link del eth0");
    // The pod has one of the device's own name, and the node one of the pod's.
    sh("ip -n p1 link add h0 type bridge && ip link add eth0 type bridge");
    node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1"));
    // On the node: it stays in the pod, its lease too, until there is room.
    sh("ip link add h0 type bridge");
    let (_, message) = node.call("DEL", "p1", &conf).run().err();
    assert!(message.contains("rename the other"), "{message}");
    assert!(pings("p1", "10.5.0.1"), "it is not torn down half");
    sh("ip link del h0");
    node.del("p1", &conf);
    home(&node, "the node's name is free again");
    assert!(in_pod("p1", "ip link").contains("h0") && sh("ip link").contains(" eth0:"));
}

/// The kernel gives a device of hardware back to the first namespace when its own goes, under a name
/// that it finds free there. Played by hand: no device of hardware is at hand in a test.
#[test]
fn a_device_that_came_home_by_itself_gets_its_name_back() {
    let node = Node::new();
    lan("h0");
    let conf = conf();
    for name in ["eth0", "dev7", "h0"] {
        node.pod("p1");
        node.add("p1", &conf);
        sh(&format!("ip -n p1 link set eth0 down && ip -n p1 link set eth0 name {name} netns $$"));
        node.remove_pod("p1");
        if name == "dev7" {
            let mut gc = conf.clone();
            gc["cniVersion"] = "1.1.0".into();
            gc["cni.dev/valid-attachments"] = json!([]);
            node.call("GC", "", &gc).run().ok();
        } else {
            node.del("p1", &conf);
        }
        home(&node, name);
        assert!(name == "h0" || !try_sh(&format!("ip link show {name}")).0);
    }
}

#[test]
fn check_sees_what_is_missing_or_changed() {
    let node = Node::new();
    lan("h0");
    let conf = conf();
    for (command, word) in [
        ("ip -n p1 link set eth0 down", "link eth0"),
        ("ip -n p1 link set eth0 alias other", "alias"),
        ("ip -n p1 link set eth0 address 02:00:00:00:00:09", "link eth0"),
        ("ip -n p1 link set eth0 down && ip -n p1 link set eth0 name h1", "eth0 is missing"),
        ("ip -n p1 route del default", "route 0.0.0.0/0"),
        ("ip -n p1 -6 route del default", "route ::/0"),
        ("ip -n p1 addr flush dev eth0 scope global", "addr 10.5.0."),
    ] {
        node.pod("p1");
        let mut known = conf.clone();
        known["prevResult"] = node.add("p1", &conf);
        node.call("CHECK", "p1", &known).run().ok();
        sh(command);
        let (code, message) = node.call("CHECK", "p1", &known).run().err();
        assert!(code == 999 && message.contains(word), "{command}: {message}");
        node.remove_pod("p1");
        node.del("p1", &conf);
        sh("ip link del h0 2>/dev/null; ip netns del lan");
        // The veth went with its namespace, its other end a moment later.
        lan("h0");
    }
}

#[test]
fn gc_brings_home_what_is_not_valid() {
    let node = Node::new();
    lan("h0");
    let mut conf = conf();
    conf["cniVersion"] = "1.1.0".into();
    node.pod("p1");
    node.add("p1", &conf);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p1", "ifname": "eth0"}]);
    node.call("GC", "", &gc).run().ok();
    assert!(pings("p1", "10.5.0.1"));
    gc["cni.dev/valid-attachments"] = json!([]);
    gc["name"] = "other".into();
    node.call("GC", "", &gc).run().ok();
    assert!(pings("p1", "10.5.0.1"));
    gc["name"] = "lan".into();
    node.call("GC", "", &gc).run().ok();
    home(&node, "GC");
}

#[test]
fn a_network_that_the_agent_serves_is_refused() {
    let node = serve(Mode::Routed, Families::Dual);
    lan("h0");
    node.pod("p1");
    let mut conf = conf();
    conf["name"] = "pod-network".into();
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 7 && message.contains("served"), "{message}");
    home(&node, "a served network");
}

#[test]
fn makes_the_same_as_the_reference() {
    if !installed("host-device") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        lan("h0");
        let mut conf = conf();
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
        text = text.replace(result["interfaces"][0]["mac"].as_str().unwrap(), "MAC");
        let text = text.replace(" tentative", "").replace(" nodad", "");
        let lines = text.lines().map(|l| l.split_once(": ").map_or(l, |(_, rest)| rest));
        let lines: Vec<String> =
            lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        node.del("p1", &conf);
        let back = sh("ip -o link show h0");
        (shape(result), lines, back.contains(",UP"))
    });
    assert_eq!(ours, reference);
}

#[test]
fn each_takes_down_and_checks_what_the_other_made() {
    if !installed("host-device") {
        return;
    }
    let node = Node::new();
    lan("h0");
    let conf = conf();
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
        sh("ip link show h0");
        // Our record of what the reference took down, and its alias, go with our own DEL.
        run("DEL", BIN_DIR, &known);
        home(&node, maker);
        sh("ip link set h0 up");
    }
}

/// A plugin like that for DHCP needs the link in its place, when it is asked and when it says goodbye.
#[test]
fn a_foreign_ipam_plugin_finds_the_link() {
    let node = Node::new();
    lan("h0");
    let text = r#"#!/bin/sh
        echo "$CNI_COMMAND $(ip -n p1 -o link show eth0 | wc -l)" >> /run/asked
        [ "$CNI_COMMAND" = ADD ] || exit 0
        echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}]}'
        [ ! -e /run/fails ]
    "#;
    script(&node, "of-others", text);
    let mut conf = conf();
    conf["ipam"] = json!({"type": "of-others"});
    node.pod("p1");
    node.add("p1", &conf);
    assert!(pings("p1", "10.5.0.1"));
    node.del("p1", &conf);
    std::fs::write("/run/fails", "").unwrap();
    node.call("ADD", "p1", &conf).run().err();
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    home(&node, "");
    let asked = std::fs::read_to_string("/run/asked").unwrap();
    assert_eq!(asked, "ADD 1\nDEL 1\nADD 1\n");
}

#[test]
fn a_second_add_leaves_the_first_alone() {
    let node = Node::new();
    lan("h0");
    let conf = conf();
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
    home(&node, "");
}

/// Every version of the specification, as the reference answers in it.
#[test]
fn every_version() {
    if !installed("host-device") {
        return;
    }
    let (ours, reference) = side_by_side(|node, _| {
        lan("h0");
        let mut answers = Vec::new();
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let mut conf = conf();
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
    lan("h0");
    let mut conf = conf();
    conf["cniVersion"] = "1.1.0".into();
    node.pod("p1");
    node.add("p1", &conf);
    node.remove_pod("p1");
    // The device went with the first namespace; there is another of its name.
    let gone = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        !in_pod("lan", "ip link").contains("eth0")
    });
    assert!(gone);
    sh("ip netns del lan");
    lan("h0");
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

/// Two pods ask for the same device at the same time: one has it, whole, and the other nothing.
#[test]
fn one_of_two_gets_the_device() {
    let node = Node::new();
    lan("h0");
    let conf = conf();
    for round in 0..10 {
        node.pod("p1");
        node.pod("p2");
        let started = ["p1", "p2"].map(|pod| node.call("ADD", pod, &conf).spawn());
        let [first, second] = started.map(common::finish);
        assert_ne!(first.code, second.code, "{round}: {first:?} {second:?}");
        let (winner, loser, lost) = match first.code {
            0 => ("p1", "p2", second),
            _ => ("p2", "p1", first),
        };
        let (_, message) = lost.err();
        assert!(!message.contains("left behind"), "{round}: {message}");
        assert!(pings(winner, "10.5.0.1") && pings(winner, "fd05::1"), "{round}: {message}");
        node.del(loser, &conf);
        assert!(pings(winner, "10.5.0.1"), "{round}");
        node.del(winner, &conf);
        home(&node, "both are gone");
        sh("ip link set h0 up");
        node.remove_pod("p1");
        node.remove_pod("p2");
    }
}
