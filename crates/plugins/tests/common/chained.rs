//! Pods that one plugin of a chain made, for the plugins that follow it.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Value, json};

use super::reference::REFERENCE;
use super::served::{Families, Mode, conf};
use super::trace::Held;
use super::{Answer, Node};

/// A pod of the network `pod-network` on a bridge, and the result of the plugin that made it.
pub fn pod(node: &Node, name: &str, families: Families) -> Value {
    node.pod(name);
    node.add(name, &conf(Mode::Classic, families))
}

/// The network `netN` of a plugin that makes interfaces, on bridge `cniN` where it has one, with the
/// subnets 10.N.0.0/24 and fdN::/64.
pub fn network(kind: &str, n: u8, masquerade: bool) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": format!("net{n}"), "type": kind, "ipMasq": masquerade,
        "bridge": format!("cni{n}"), "isGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [
                [{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd{n}::/64")}]
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

/// The configuration of a chained plugin: its keys, after a result.
pub fn after(plugin: &str, keys: &Value, result: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": plugin, "prevResult": result
    });
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// The same for another version.
pub fn in_version(conf: &Value, version: &str) -> Value {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!(version);
    conf
}

/// A call of the reference's plugin of the same type.
pub fn reference(node: &Node, command: &str, container: &str, conf: &Value) -> Answer {
    let mut call = node.call(command, container, conf);
    call.program = Some(format!("{REFERENCE}/{}", conf["type"].as_str().unwrap()));
    call.run()
}

/// Runs a test for both families, each alone and together, each time in a node of its own.
pub fn for_all_families(test: fn(Families)) {
    for families in Families::ALL {
        let done = std::thread::spawn(move || test(families)).join();
        assert!(done.is_ok(), "{families:?}");
    }
}

/// Kills a plugin at each of its system calls; after each `mended` has to put everything right and
/// `ready` everything up again. Answers how many there are.
pub fn kill_everywhere(
    node: &Node,
    command: &str,
    container: &str,
    conf: &Value,
    ready: impl Fn(),
    mended: impl Fn(usize),
) -> usize {
    for at in 1.. {
        ready();
        let mut held = Held::start(node, command, container, conf, "");
        if !held.reach(at) {
            held.finish().ok();
            mended(at);
            return at - 1;
        }
        held.kill();
        mended(at);
    }
    unreachable!("a plugin ends some day")
}
