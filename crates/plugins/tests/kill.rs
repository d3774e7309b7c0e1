//! A plugin killed at any system call: the next DEL, GC or ADD puts everything right.
//!
//! The plugin runs under ptrace and is killed as it enters its first, second, … system call, until it
//! ends by itself before that; in the selection of tests at some of them, others each time.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::lan::lan_with;
use common::served::{Families, Mode, addresses, conf, serve};
use common::trace::Held;
use common::{Node, at_points, files_below, sh, try_sh, tutorial};
use serde_json::{Value, json};

/// How a plugin ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Killed at the system call asked for.
    Killed,
    /// It ended before that.
    Itself(i32),
}

/// Runs a plugin and kills it as it enters its system call number `at`, counted from 1.
fn run_until(node: &Node, command: &str, container: &str, conf: &Value, at: usize) -> End {
    let mut held = Held::start(node, command, container, conf, "");
    if held.reach(at) {
        held.kill();
        End::Killed
    } else {
        End::Itself(held.finish().code)
    }
}

/// Tells a runtime's GC that nothing is attached any more.
fn gc(node: &Node, conf: &Value) {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([]);
    let mut call = node.call("GC", "p1", &conf);
    call.container = String::new();
    call.ifname = String::new();
    call.netns = None;
    call.run().ok();
}

struct Case<'a> {
    what: &'a str,
    node: &'a Node,
    conf: &'a Value,
    /// A record tells an unfinished ADD from a finished one.
    recorded: bool,
    /// From where the pod is to be reached: a command before the ping.
    from: &'a str,
    /// Every system call, or one in so many.
    step: usize,
}

impl Case<'_> {
    #[track_caller]
    fn clean(&self, when: &str) {
        let left = self.node.residue();
        // The node's own interface, which some types use.
        let left: String = left.lines().filter(|l| !l.contains(" m0@")).collect();
        assert_eq!(left, "", "{}: left after {when}", self.what);
        if self.conf["type"] == "host-device" {
            let own = sh("ip link show m0");
            assert!(!own.contains("alias"), "{}: after {when}: {own}", self.what);
        }
        let (inside, _) = try_sh("ip -n p1 link show eth0");
        assert!(!inside, "{}: eth0 is still in the pod after {when}", self.what);
    }

    /// ADD works, the pod has its network, and DEL leaves nothing.
    #[track_caller]
    fn works(&self, when: &str) {
        let result = self.node.add("p1", self.conf);
        for ip in addresses(&result) {
            sh(&format!("{} ping -c1 -W3 -n {ip}", self.from));
        }
        self.node.del("p1", self.conf);
        self.clean(&format!("{when}, ADD and DEL"));
    }

    /// Another ADD in place of the one that died. One that had done everything but print its result
    /// counts as done, as with the reference: the answer says that DEL comes first.
    #[track_caller]
    fn again(&self, when: &str) {
        let answer = self.node.call("ADD", "p1", self.conf).run();
        if answer.code != 0 {
            let (_, message) = answer.err();
            assert!(message.contains("call DEL first"), "{}: {when}: {message}", self.what);
        }
        self.node.del("p1", self.conf);
        self.clean(&format!("{when}, ADD and DEL"));
    }

    /// Kills ADD at each of its system calls.
    fn add(&self) -> usize {
        at_points(self.step, |at| {
            if let End::Itself(code) = run_until(self.node, "ADD", "p1", self.conf, at) {
                assert_eq!(code, 0, "{}: the plugin fails by itself", self.what);
                self.node.del("p1", self.conf);
                self.clean("ADD");
                return false;
            }
            let when = format!("ADD killed at system call {at}");
            match at % 3 {
                0 => self.node.del("p1", self.conf),
                1 => gc(self.node, self.conf),
                _ if self.recorded => self.again(&when),
                _ => self.node.del("p1", self.conf),
            }
            self.clean(&when);
            // The next container gets an address, and the pod a network.
            if at % 8 == 0 && self.conf["type"] != "host-local" {
                self.works(&when);
            }
            true
        })
    }

    /// Kills DEL at each of its system calls.
    fn del(&self) -> usize {
        at_points(self.step, |at| {
            self.node.add("p1", self.conf);
            if let End::Itself(code) = run_until(self.node, "DEL", "p1", self.conf, at) {
                assert_eq!(code, 0, "{}: the plugin fails by itself", self.what);
                self.clean("DEL");
                return false;
            }
            let when = format!("DEL killed at system call {at}");
            match at % 3 {
                0 => gc(self.node, self.conf),
                1 => {
                    self.node.del("p1", self.conf);
                    self.node.del("p1", self.conf);
                }
                _ => self.node.del("p1", self.conf),
            }
            self.clean(&when);
            true
        })
    }
}

/// Kills ADD while it writes each of its files: GC leaves nothing of them, and while the ADD lives it
/// leaves them alone.
fn half_written(what: &str, node: &Node, conf: &Value) {
    let aside = || {
        let files = ["causeway", "cni"].map(|of| files_below(&Path::new("/var/lib").join(of)));
        files
            .concat()
            .into_iter()
            .filter(|f| f.to_string_lossy().ends_with(".json.new"))
            .collect::<Vec<_>>()
    };
    let mut seen = BTreeSet::new();
    loop {
        let mut add = Held::start(node, "ADD", "p1", conf, "");
        while add.next() {
            let now = aside();
            if !now.iter().all(|file| seen.contains(file)) {
                gc(node, conf);
                assert_eq!(aside(), now, "{what}: GC takes from an ADD what it writes");
                seen.extend(now);
                break;
            }
        }
        if add.is_over() {
            assert_eq!(add.finish().code, 0, "{what}: the plugin fails by itself");
            node.del("p1", conf);
            break;
        }
        add.kill();
        gc(node, conf);
        assert_eq!(aside(), Vec::<PathBuf>::new(), "{what}: left after GC");
        node.del("p1", conf);
    }
    assert!(!seen.is_empty(), "{what}: it writes no file");
    println!("{what}: killed while it wrote {seen:?}");
}

fn walk(what: &str, node: &Node, conf: &Value, recorded: bool) {
    walk_from("", what, node, conf, recorded);
}

fn walk_from(from: &str, what: &str, node: &Node, conf: &Value, recorded: bool) {
    walk_case(&Case { what, node, conf, recorded, from, step: 1 });
}

fn walk_case(case: &Case<'_>) {
    let what = case.what;
    case.node.pod("p1");
    // What is made once for all pods (bridge, tables) is there from now on.
    case.works("start");
    let (add, del) = (case.add(), case.del());
    println!("{what}: killed at {} system calls of ADD and {} of DEL", add - 1, del - 1);
    assert!(add > 30 && del > 20, "{what}: {add} and {del} system calls are too few to be true");
}

#[test]
fn routed() {
    let node = serve(Mode::Routed, Families::Dual);
    walk("routed", &node, &conf(Mode::Routed, Families::Dual), true);
}

#[test]
fn bridge() {
    let node = serve(Mode::Bridge, Families::Dual);
    walk("bridge", &node, &conf(Mode::Bridge, Families::Dual), true);
}

/// What a pod may ask for beside its interface.
fn with_ports_and_limits() -> Value {
    let mut conf = conf(Mode::Routed, Families::Dual);
    conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {
            "ingressRate": 80_000_000, "ingressBurst": 800_000,
            "egressRate": 80_000_000, "egressBurst": 800_000
        },
    });
    conf
}

#[test]
fn routed_with_ports_and_limits() {
    let node = serve(Mode::Routed, Families::Dual);
    let conf = with_ports_and_limits();
    // Twice as many system calls as of the interface alone, which has them all above.
    let what = "routed, ports and limits";
    walk_case(&Case { what, node: &node, conf: &conf, recorded: true, from: "", step: 13 });
}

#[test]
fn classic_and_served() {
    let node = serve(Mode::Classic, Families::Dual);
    walk("type bridge, served", &node, &conf(Mode::Classic, Families::Dual), true);
}

#[test]
fn classic_alone() {
    let node = Node::new();
    walk("type bridge", &node, &tutorial("1.0.0"), false);
}

#[test]
fn ptp_alone() {
    let node = Node::new();
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "ptp", "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    });
    walk("type ptp", &node, &conf, false);
}

#[test]
fn ptp_served() {
    let node = serve(Mode::Routed, Families::Dual);
    let mut conf = conf(Mode::Classic, Families::Dual);
    conf["type"] = "ptp".into();
    walk("type ptp, served", &node, &conf, true);
}

/// `m0` is the node's interface with a cable to a machine.
fn lan(kind: &str) -> Value {
    lan_with("m0", &["10.9.0.1/24", "fd00:9::1/64"]);
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
    json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": kind, "master": "m0", "device": "m0",
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    })
}

#[test]
fn macvlan() {
    let node = Node::new();
    let conf = lan("macvlan");
    walk_from("ip netns exec lan", "type macvlan", &node, &conf, true);
}

#[test]
fn macvlan_passthru() {
    let node = Node::new();
    let mut conf = lan("macvlan");
    conf["mode"] = "passthru".into();
    conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:17"});
    walk_from("ip netns exec lan", "type macvlan in mode passthru", &node, &conf, true);
}

#[test]
fn host_device() {
    let node = Node::new();
    let conf = lan("host-device");
    walk_from("ip netns exec lan", "type host-device", &node, &conf, true);
}

#[test]
fn files_half_written() {
    let node = serve(Mode::Routed, Families::Dual);
    node.pod("p1");
    half_written("routed, ports and limits", &node, &with_ports_and_limits());
}

/// Without addresses there is no lease that GC could go by.
#[test]
fn files_half_written_without_addresses() {
    for kind in ["macvlan", "host-device"] {
        let node = Node::new();
        let mut conf = lan(kind);
        conf.as_object_mut().unwrap().remove("ipam");
        node.pod("p1");
        half_written(kind, &node, &conf);
    }
    let node = Node::new();
    node.pod("p1");
    sh("ip -n p1 link add eth0 type veth peer name other");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "tuning", "mtu": 1400,
        "dataDir": "/var/lib/cni/tuning",
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/p1"}]},
    });
    half_written("tuning", &node, &conf);
}

/// Address management alone.
#[test]
fn host_local() {
    let node = Node::new();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "host-local",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd00:9::/125"}]]},
    });
    node.pod("p1");
    let case =
        Case { what: "host-local", node: &node, conf: &conf, recorded: false, from: "", step: 1 };
    let (add, del) = (case.add(), case.del());
    println!("host-local: killed at {} system calls of ADD and {} of DEL", add - 1, del - 1);
    // However often one died, all five addresses are there to be given out.
    let all: Vec<String> =
        (0..5).map(|i| node.call("ADD", &format!("c{i}"), &conf).run().ok().to_string()).collect();
    assert_eq!(all.len(), 5);
}
