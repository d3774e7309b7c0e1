//! Every type of plugin in a chain that is typical for it.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Value, json};

use super::lan::lan_with;
use super::served::{Families, Mode, conf};
use super::ways::{check, gc, soon};
use super::{Answer, Node, sh, try_sh};

/// A type that keeps something of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bridge,
    Ptp,
    Macvlan,
    HostDevice,
    Tuning,
    Bandwidth,
    Firewall,
    Portmap,
    Sbr,
}

use Kind::*;

impl Kind {
    /// The typical chain that ends with it.
    pub fn chain(self) -> &'static [Kind] {
        match self {
            Bridge => &[Bridge],
            Ptp => &[Ptp],
            Macvlan => &[Macvlan],
            HostDevice => &[HostDevice],
            Tuning => &[Bridge, Tuning],
            Bandwidth => &[Bridge, Bandwidth],
            Firewall => &[Bridge, Firewall],
            Portmap => &[Bridge, Portmap],
            Sbr => &[Bridge, Sbr],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Bridge => "bridge",
            Ptp => "ptp",
            Macvlan => "macvlan",
            HostDevice => "host-device",
            Tuning => "tuning",
            Bandwidth => "bandwidth",
            Firewall => "firewall",
            Portmap => "portmap",
            Sbr => "sbr",
        }
    }

    /// It makes the pod's interface.
    pub fn is_first(self) -> bool {
        matches!(self, Bridge | Ptp | Macvlan | HostDevice)
    }

    fn keys(self, n: usize) -> Value {
        match self {
            Bridge | Ptp => json!({"ipMasq": true}),
            Macvlan => json!({"master": "m0"}),
            HostDevice => json!({"device": format!("d{n}")}),
            Tuning => json!({
                "mtu": 1400, "promisc": true, "allmulti": true,
                "sysctl": {"net.core.somaxconn": "511"}
            }),
            Bandwidth => json!({
                "ingressRate": 40_000_000, "ingressBurst": 2_000_000,
                "egressRate": 40_000_000, "egressBurst": 2_000_000
            }),
            Firewall => json!({"ingressPolicy": "same-bridge"}),
            Portmap => {
                let port =
                    |to, of| json!({"hostPort": 8000 + n, "containerPort": to, "protocol": of});
                json!({
                    "capabilities": {"portMappings": true},
                    "runtimeConfig": {"portMappings": [port(80, "tcp"), port(53, "udp")]}
                })
            }
            Sbr => json!({}),
        }
    }

    /// Pod number `n` has what this type gives it, as the tools of the system show it.
    pub fn is_there(self, n: usize) -> bool {
        let inside = |shown: &str| try_sh(&format!("ip -n p{n} {shown}"));
        match self {
            Bridge | Ptp | Macvlan | HostDevice => inside("link show eth0").0,
            Tuning => inside("link show eth0").1.contains("mtu 1400"),
            Bandwidth => sh("ip link show type ifb").contains(&format!("/p{n}/eth0")),
            Firewall | Portmap => {
                let all = sh("nft -s list ruleset");
                let set = if self == Portmap { "ports" } else { "forward" };
                let mut sets = all.split("\tset ").flat_map(|part| part.split("\tmap "));
                sets.any(|s| s.starts_with(set) && s.contains(&format!("\"p{n} eth0\"")))
            }
            Sbr => {
                let rules = |f: &str| inside(&format!("{f} rule")).1.contains("lookup 100");
                rules("-4") || rules("-6")
            }
        }
    }
}

/// Pods of one chain, in a node of its own.
pub struct Scene {
    pub node: Node,
    pub families: Families,
}

impl Scene {
    /// A node for any type: `m0` is its interface on a network.
    pub fn new(families: Families) -> Self {
        let node = Node::new();
        lan_with("m0", &[]);
        Self { node, families }
    }

    /// The machine on the network of `m0` gets the gateways' addresses.
    pub fn gateways_on_lan(&self) {
        for cidr in self.families.cidrs() {
            let at = cidr.replace(".0/", ".1/").replace("::/", "::1/");
            let nodad = if at.contains(':') { "nodad" } else { "" };
            sh(&format!("ip -n lan addr add {at} dev eth0 {nodad}"));
        }
    }

    /// Makes the namespace of pod number `n`, and the device of the node that it may get.
    pub fn pod(&self, n: usize) {
        self.node.pod(&format!("p{n}"));
        let mac = format!("02:00:00:00:d0:{n:02x}");
        sh(&format!("ip link add d{n} link m0 address {mac} type macvlan mode bridge"));
    }

    /// The configuration of a type for pod number `n`, after a result.
    pub fn conf(&self, kind: Kind, n: usize, result: &Value) -> Value {
        let mut conf = if kind.is_first() {
            conf(Mode::Classic, self.families)
        } else {
            json!({"name": "pod-network", "prevResult": result})
        };
        conf["cniVersion"] = json!("1.1.0");
        conf["type"] = json!(kind.name());
        for (key, value) in kind.keys(n).as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// ADD of a whole chain. Answers the last result.
    #[track_caller]
    pub fn add(&self, chain: &[Kind], n: usize) -> Value {
        chain.iter().fold(Value::Null, |result, kind| {
            self.node.add(&format!("p{n}"), &self.conf(*kind, n, &result))
        })
    }

    /// CHECK of a whole chain.
    #[track_caller]
    pub fn check(&self, chain: &[Kind], n: usize, result: &Value) {
        for kind in chain {
            // It takes the routes out of the table where the first looks for them.
            if !(kind.is_first() && chain.contains(&Sbr)) {
                check(&self.node, &format!("p{n}"), &self.conf(*kind, n, result), result).ok();
            }
            assert!(kind.is_there(n), "{kind:?} of p{n}");
        }
    }

    /// DEL of a whole chain.
    #[track_caller]
    pub fn del(&self, chain: &[Kind], n: usize, result: &Value) {
        for kind in chain.iter().rev() {
            let mut conf = self.conf(*kind, n, result);
            conf["prevResult"] = result.clone();
            self.node.del(&format!("p{n}"), &conf);
        }
    }

    /// GC of one type with the pods that the runtime still has.
    pub fn gc(&self, kind: Kind, valid: &[usize]) -> Answer {
        let names: Vec<String> = valid.iter().map(|n| format!("p{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut conf = self.conf(kind, 0, &Value::Null);
        conf.as_object_mut().unwrap().remove("prevResult");
        conf["runtimeConfig"] = json!({});
        gc(&self.node, &conf, &names)
    }

    /// STATUS of one type.
    pub fn status(&self, kind: Kind) -> Answer {
        let mut conf = self.conf(kind, 1, &Value::Null);
        let keys = conf.as_object_mut().unwrap();
        keys.remove("prevResult");
        keys.remove("runtimeConfig");
        let mut call = self.node.call("STATUS", "", &conf);
        (call.ifname, call.netns) = (String::new(), None);
        soon(&call)
    }

    /// All that types make, on the node and in some pods: two such texts are alike when nothing of what
    /// was done in between is left.
    pub fn state(&self, pods: &[usize]) -> String {
        let residue = self.node.residue();
        // Bridges stay in the sets that all on them share, until GC finds nobody on one.
        let own = residue.lines().filter(|l| !l.contains("ingressPolicy same-bridge"));
        let mut all: String = own.map(|line| format!("{line}\n")).collect();
        all.push_str(&links(""));
        all.push_str(&sh("tc qdisc show | sed /noqueue/d"));
        for dir in ["/run/cni", "/run/causeway"] {
            let files = super::files_below(std::path::Path::new(dir));
            let shown = files.iter().filter(|f| !f.ends_with("locks/.adds"));
            shown.for_each(|f| all.push_str(&format!("{}\n", f.display())));
        }
        for n in pods {
            all.push_str(&links(&format!("-n p{n}")));
            for rules in ["-4 rule", "-6 rule", "-4 route show table all"] {
                all.push_str(&sh(&format!("ip -n p{n} {rules}")));
            }
            all.push_str(&sh(&format!("ip netns exec p{n} sysctl net.core.somaxconn")));
        }
        all
    }

    /// Gives the namespace of a pod the parameters that it was born with, which `tuning` leaves as they
    /// are when a pod goes.
    pub fn forget_parameters(&self, n: usize) {
        sh(&format!("ip netns exec p{n} sysctl -qw net.core.somaxconn=4096"));
    }

    /// Waits until the state is as it was: a link takes a moment to come up again.
    #[track_caller]
    pub fn back(&self, before: &str, pods: &[usize], what: &str) {
        for _ in 0..100 {
            if self.state(pods) == before {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let now = self.state(pods);
        let gone: Vec<&str> = before.lines().filter(|l| !now.contains(l)).collect();
        let left: Vec<&str> = now.lines().filter(|l| !before.contains(l)).collect();
        assert!(now == before, "{what}: left {left:?}, missing {gone:?}");
    }
}

/// Interfaces with flags, MTU, MAC and alias, without what the kernel makes up (their numbers) and finds
/// out a moment later (carriers).
fn links(at: &str) -> String {
    let mut all: Value = serde_json::from_str(&sh(&format!("ip -j {at} link show"))).unwrap();
    for link in all.as_array_mut().unwrap() {
        let flags = link["flags"].as_array_mut().unwrap();
        flags
            .retain(|flag| !["NO-CARRIER", "LOWER_UP", "M-DOWN"].contains(&flag.as_str().unwrap()));
    }
    let one = |l: &Value| {
        let keys = ["ifname", "flags", "mtu", "address", "ifalias", "master"];
        keys.map(|key| format!("{} ", l[key])).concat() + "\n"
    };
    all.as_array().unwrap().iter().map(one).collect()
}

/// Runs a test for some types, each in a thread of its own.
pub fn each(kinds: &[Kind], families: &[Families], test: fn(&Scene, Kind)) {
    for kind in kinds.iter().copied() {
        for families in families.iter().copied() {
            let name = format!("{kind:?} {families:?}");
            let run = move || test(&Scene::new(families), kind);
            let thread = std::thread::Builder::new().name(name.clone()).spawn(run).unwrap();
            assert!(thread.join().is_ok(), "{name}");
        }
    }
}
