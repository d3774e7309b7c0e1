//! Field failure 18: the real ufw and firewalld come up, reload and go on a node with pods. What
//! they flush is theirs alone; what they drop is named with the command that helps.

mod common;

use std::fs;

use common::outside::{EXT, NODE, at, node};
use common::programs::{Daemon, bring};
use common::traffic::{serve, tcp};
use common::ways::check;
use common::{Answer, Node, sh};
use serde_json::{Value, json};

/// A node with pods, and the server that they ask in `ext`.
struct Pods {
    node: Node,
}

/// Who reaches whom, in each family: the outside the pod's port by the node's address, and the pod
/// the outside, by the node's address as well.
#[derive(Debug, PartialEq, Eq)]
struct Ways {
    port: [bool; 2],
    out: [bool; 2],
}

const OPEN: Ways = Ways { port: [true; 2], out: [true; 2] };
const SHUT: Ways = Ways { port: [false; 2], out: [false; 2] };
const DNAT_ALONE: Ways = Ways { port: [true; 2], out: [false; 2] };

impl Pods {
    fn new(programs: &[&str]) -> Self {
        let node = node();
        bring(programs);
        serve("ext", "[::]:7000");
        Self { node }
    }

    /// The result of ADD of type `bridge` and `portmap`.
    fn plug(&self, pod: &str, port: u16) -> Value {
        self.node.pod(pod);
        let result = self.node.add(pod, &bridge());
        serve(pod, "[::]:80");
        let result = self.node.add(pod, &with(&portmap(port), &result));
        // Its sets and chains stay.
        self.open(pod, &json!({}), &result).ok();
        self.node.del(pod, &firewall(&json!({})));
        result
    }

    /// ADD of type `firewall`.
    fn open(&self, pod: &str, extra: &Value, result: &Value) -> Answer {
        self.node.call("ADD", pod, &with(&firewall(extra), result)).run()
    }

    /// CHECK of the two that keep rules in our own table.
    #[track_caller]
    fn is_whole(&self, pod: &str, port: u16, result: &Value) {
        for conf in [portmap(port), bridge()] {
            check(&self.node, pod, &conf, result).ok();
        }
    }
}

/// What works for a pod.
fn ways(pod: &'static str, port: u16) -> Ways {
    let works = |from: &'static str, to: String, answer: String| {
        std::thread::spawn(move || tcp(from, &to) == answer)
    };
    let port = [0, 1].map(|f| works("ext", at(NODE[f], port), format!("{pod} {}", EXT[f])));
    let out = [0, 1].map(|f| works(pod, at(EXT[f], 7000), format!("ext {}", NODE[f])));
    Ways { port: port.map(|t| t.join().unwrap()), out: out.map(|t| t.join().unwrap()) }
}

fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net9", "type": "bridge", "bridge": "cni9",
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
        "cniVersion": "1.0.0", "name": "net9", "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}
    })
}

fn firewall(extra: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "net9", "type": "firewall"});
    conf.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
    conf
}

fn with(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// Our table in the words of `nft`.
fn own_table() -> String {
    sh("nft -s list table inet causeway_cni")
}

/// The commands that warnings name.
fn commands(answer: &Answer) -> Vec<String> {
    answer.stderr.lines().filter_map(|l| l.split('`').nth(1)).map(str::to_owned).collect()
}

#[test]
fn ufw_comes_reloads_and_goes() {
    let pods = Pods::new(&["ufw", "iptables", "ip6tables"]);
    // As the package's installation leaves it.
    sh(
        "cp /usr/share/ufw/ufw.conf /usr/share/ufw/*.init /usr/share/ufw/iptables/*.rules /etc/ufw/",
    );
    let ufw = |words: &str| sh(&format!("ufw --force {words}"));
    ufw("logging off");
    let result = pods.plug("p1", 8080);
    let before = own_table();
    assert_eq!(ways("p1", 8080), OPEN);
    ufw("enable");
    assert_eq!(ways("p1", 8080), SHUT, "ufw denies forwarding");
    // Type `firewall` says where and what to do, and that helps for good.
    let warn = json!({});
    let answer = pods.open("p1", &warn, &result);
    for layer in ["ip", "ip6"] {
        let place = format!("warning: chain FORWARD of table {layer} filter has policy drop");
        assert!(answer.stderr.contains(&place), "{answer:?}");
    }
    assert_eq!(commands(&answer), ["ufw default allow routed"; 2]);
    answer.ok();
    assert_eq!(ways("p1", 8080), SHUT, "no other table can overrule it");
    for command in commands(&pods.open("p1", &warn, &result)) {
        sh(&command);
    }
    assert_eq!(ways("p1", 8080), OPEN);
    ufw("reload");
    assert_eq!(ways("p1", 8080), OPEN);
    pods.node.del("p1", &firewall(&warn));
    assert_eq!(own_table(), before, "nothing of ours was touched");
    // Accepts among ufw's own rules: they stay whatever it does.
    ufw("default deny routed");
    let insert = json!({"foreignForward": "insert"});
    let answer = pods.open("p1", &insert, &result);
    assert_eq!(answer.stderr, "");
    answer.ok();
    for words in ["reload", "disable", "enable"] {
        ufw(words);
        assert_eq!(ways("p1", 8080), OPEN, "after ufw {words}");
        check(&pods.node, "p1", &firewall(&insert), &result).ok();
        pods.is_whole("p1", 8080, &result);
    }
    pods.node.del("p1", &firewall(&insert));
    assert!(!sh("iptables -S; ip6tables -S").contains("causeway"));
    assert_eq!(ways("p1", 8080), SHUT);
    ufw("disable");
    assert_eq!(ways("p1", 8080), OPEN);
}

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>"#;

/// firewalld with a message bus of its own.
struct Firewalld {
    _bus: Daemon,
    daemon: Daemon,
}

impl Firewalld {
    fn start() -> Self {
        fs::create_dir_all("/run/dbus").unwrap();
        fs::write("/run/bus.conf", BUS).unwrap();
        let mut bus =
            Daemon::start("bus", "dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile");
        bus.ready("test -S /run/dbus/system_bus_socket");
        Self { _bus: bus, daemon: Self::daemon() }
    }

    /// Ends it as its service does, and waits.
    fn stop(&mut self) {
        sh(&format!("kill -TERM {}", self.daemon.pid()));
        self.daemon.ended();
    }

    fn daemon() -> Daemon {
        let mut daemon =
            Daemon::start("firewalld", "firewalld --nofork --nopid --log-target console");
        daemon.ready("firewall-cmd --state");
        daemon
    }
}

#[test]
fn firewalld_comes_reloads_and_goes() {
    let pods = Pods::new(&["firewalld", "firewall-cmd", "dbus-daemon"]);
    let result = pods.plug("p1", 8080);
    let before = own_table();
    let mut firewalld = Firewalld::start();
    // It lets through what was translated, and what no zone knows stays in.
    assert_eq!(ways("p1", 8080), DNAT_ALONE);
    let warn = json!({});
    let answer = pods.open("p1", &warn, &result);
    let trust = "firewall-cmd --permanent --zone=trusted --add-source=10.9.0.0/24 \
                 --add-source=fd09::/64 && firewall-cmd --reload";
    let place = "warning: chain filter_FORWARD of table inet firewalld rejects";
    assert!(answer.stderr.contains(place), "{answer:?}");
    assert_eq!(commands(&answer), [trust]);
    answer.ok();
    assert_eq!(ways("p1", 8080), DNAT_ALONE, "no other table can overrule it");
    sh(trust);
    assert_eq!(ways("p1", 8080), OPEN);
    sh("firewall-cmd --reload");
    assert_eq!(ways("p1", 8080), OPEN);
    pods.is_whole("p1", 8080, &result);
    firewalld.stop();
    assert!(!sh("nft list tables").contains("firewalld"));
    assert_eq!(ways("p1", 8080), OPEN);
    firewalld.daemon = Firewalld::daemon();
    assert_eq!(ways("p1", 8080), OPEN);
    pods.node.del("p1", &firewall(&warn));
    assert_eq!(own_table(), before, "nothing of ours was touched");
}

/// Accepts among firewalld's rules go with its next reload, and ADD says so. CHECK misses them, and
/// the next ADD on the node brings them back.
#[test]
fn firewalld_forgets_what_was_inserted() {
    let pods = Pods::new(&["firewalld", "firewall-cmd", "dbus-daemon"]);
    let result = pods.plug("p1", 8080);
    let _firewalld = Firewalld::start();
    let insert = json!({"foreignForward": "insert"});
    let answer = pods.open("p1", &insert, &result);
    assert!(answer.stderr.contains("firewalld forgets"), "{answer:?}");
    answer.ok();
    assert_eq!(ways("p1", 8080), OPEN);
    check(&pods.node, "p1", &firewall(&insert), &result).ok();
    sh("firewall-cmd --reload");
    assert_eq!(ways("p1", 8080), DNAT_ALONE);
    let (_, message) = check(&pods.node, "p1", &firewall(&insert), &result).err();
    assert!(message.contains("chain filter_FORWARD of table inet firewalld"), "{message}");
    let other = pods.plug("p2", 8081);
    pods.open("p2", &insert, &other).ok();
    for (pod, port) in [("p1", 8080), ("p2", 8081)] {
        assert_eq!(ways(pod, port), OPEN, "{pod}");
    }
    check(&pods.node, "p1", &firewall(&insert), &result).ok();
    for pod in ["p1", "p2"] {
        pods.node.del(pod, &firewall(&insert));
    }
    assert!(!sh("nft list table inet firewalld").contains("causeway"));
    assert_eq!(ways("p1", 8080), DNAT_ALONE);
}
