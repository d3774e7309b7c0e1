//! Every way in which addresses and interfaces are given to pods, for all families.
#![allow(dead_code, unreachable_pub)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::served::{Families, Mode, conf, serve};
use super::{Node, try_sh};

/// Who attaches pods, and whether an agent serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A network that an agent serves.
    Served(Mode),
    /// Type `bridge` without an agent.
    Alone,
    /// Addresses alone.
    HostLocal,
}

impl Way {
    pub const ALL: [Way; 5] = [
        Way::Served(Mode::Routed),
        Way::Served(Mode::Bridge),
        Way::Served(Mode::Classic),
        Way::Alone,
        Way::HostLocal,
    ];

    /// A node in this state, and the configuration for it.
    pub fn begin(self, families: Families) -> (Node, Value) {
        let (node, mut conf) = match self {
            Way::Served(mode) => (serve(mode, families), conf(mode, families)),
            Way::Alone => (Node::new(), conf(Mode::Classic, families)),
            Way::HostLocal => {
                let ipam = conf(Mode::Classic, families)["ipam"].clone();
                (Node::new(), json!({"name": "pod-network", "type": "host-local", "ipam": ipam}))
            }
        };
        conf["cniVersion"] = json!("1.1.0");
        (node, conf)
    }

    pub fn is_served(self) -> bool {
        matches!(self, Way::Served(_))
    }

    pub fn has_interfaces(self) -> bool {
        self != Way::HostLocal
    }

    /// No other plugin gives addresses of this network.
    pub fn is_own(self) -> bool {
        matches!(self, Way::Served(Mode::Routed | Mode::Bridge))
    }
}

/// Runs a test for every way and all families, each in a node of its own.
pub fn everywhere(test: impl Fn(&Node, &Value, Way, Families) + Copy + Send + 'static) {
    for way in Way::ALL {
        for families in Families::ALL {
            one(way, families, test);
        }
    }
}

/// The same with both families at once alone, for tests that take long.
pub fn dual(test: impl Fn(&Node, &Value, Way, Families) + Copy + Send + 'static) {
    for way in Way::ALL {
        one(way, Families::Dual, test);
    }
}

fn one(
    way: Way,
    families: Families,
    test: impl Fn(&Node, &Value, Way, Families) + Copy + Send + 'static,
) {
    let name = format!("{way:?} {families:?}");
    let run = move || {
        let (node, conf) = way.begin(families);
        test(&node, &conf, way, families);
    };
    let thread = std::thread::Builder::new().name(name.clone()).spawn(run).unwrap();
    assert!(thread.join().is_ok(), "{name}");
}

/// GC with the attachments that the runtime still has.
pub fn gc(node: &Node, conf: &Value, valid: &[&str]) -> super::Answer {
    let mut conf = conf.clone();
    let valid = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"}));
    conf["cni.dev/valid-attachments"] = valid.collect();
    let mut call = node.call("GC", "", &conf);
    call.ifname = String::new();
    call.netns = None;
    soon(&call)
}

/// CHECK with the result of ADD.
pub fn check(node: &Node, pod: &str, conf: &Value, result: &Value) -> super::Answer {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    soon(&node.call("CHECK", pod, &conf))
}

/// Is there an interface of the attachment inside the pod?
pub fn inside(pod: &str) -> bool {
    try_sh(&format!("ip -n {pod} link show eth0")).0
}

/// Runs a call to its end, which must not be far.
#[track_caller]
pub fn soon(call: &super::Call<'_>) -> super::Answer {
    let (mut child, start) = (call.spawn(), Instant::now());
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("{} of {:?} hangs", call.command, call.container);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    super::finish(child)
}
