//! GC beside an ADD that has not ended, for the types that `crowd` does not have.

mod common;

use std::time::{Duration, Instant};

use common::at_points;
use common::served::{Families, Mode, conf, serve};
use common::trace::{Held, gc_beside_add};
use common::types::{Kind, Scene, each};
use common::ways::check;
use serde_json::{Value, json};

use Kind::*;

/// GC leaves an ADD alone that has not ended, wherever that is: it ends with all that it should have.
fn beside(scene: &Scene, kind: Kind, conf: &Value, step: usize) {
    let node = &scene.node;
    let before = scene.state(&[1]);
    let (mut beside, mut behind) = (0, 0);
    at_points(step, |at| {
        let Some((answer, ended)) = gc_beside_add(node, "p1", conf, at) else {
            node.del("p1", conf);
            return false;
        };
        let what = format!("{kind:?}: GC at system call {at}");
        if ended {
            beside += 1;
            let result = answer.ok();
            let checked = check(node, "p1", conf, &result);
            assert_eq!(checked.code, 0, "{what}: {}", checked.stdout);
            assert!(kind.is_there(1), "{what}");
        } else {
            behind += 1;
        }
        node.del("p1", conf);
        scene.forget_parameters(1);
        scene.back(&before, &[1], &what);
        true
    });
    println!("{kind:?}: GC ran beside ADD at {beside} points, and waited for it at {behind}");
    assert!(beside > 4, "{kind:?}: {beside}");
}

/// A pod that has what comes before the type in its chain, and the configuration. What is made once for
/// all (tables) is there from then on.
fn begin(scene: &Scene, kind: Kind) -> Value {
    let chain = kind.chain();
    scene.pod(1);
    let first = scene.add(chain, 1);
    scene.del(chain, 1, &first);
    scene.forget_parameters(1);
    let given = scene.add(&chain[..chain.len() - 1], 1);
    scene.conf(kind, 1, &given)
}

#[test]
fn types_that_follow_another() {
    let all = [Tuning, Bandwidth, Firewall, Portmap, Sbr];
    each(&all, &[Families::Dual], |scene, kind| {
        let conf = begin(scene, kind);
        beside(scene, kind, &conf, 4);
    });
}

#[test]
fn types_that_make_interfaces() {
    each(&[Ptp, Macvlan, HostDevice], &[Families::Dual], |scene, kind| {
        let conf = begin(scene, kind);
        beside(scene, kind, &conf, 6);
    });
}

/// Where no lease tells that an ADD has not ended.
#[test]
fn interfaces_without_leases() {
    each(&[Macvlan, HostDevice], &[Families::Dual], |scene, kind| {
        let mut conf = begin(scene, kind);
        conf.as_object_mut().unwrap().remove("ipam");
        beside(scene, kind, &conf, 4);
    });
}

/// The same on a network that the agent serves, whose records GC goes by.
#[test]
fn a_served_network_without_leases() {
    let done = std::thread::spawn(|| {
        let scene = Scene { node: serve(Mode::Routed, Families::Dual), families: Families::Dual };
        let mut conf = conf(Mode::Classic, Families::Dual);
        (conf["cniVersion"], conf["type"]) = (json!("1.1.0"), json!("ptp"));
        conf["ipam"] = json!({
            "type": "static",
            "addresses": [
                {"address": "10.244.1.77/24", "gateway": "10.244.1.1"},
                {"address": "fd00:10:244:1::77/64", "gateway": "fd00:10:244:1::1"}
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        });
        scene.node.pod("p1");
        scene.node.add("p1", &conf);
        scene.node.del("p1", &conf);
        beside(&scene, Ptp, &conf, 4);
    });
    assert!(done.join().is_ok());
}

/// While a plugin of a chain is at work, GC leaves alone what those before it made.
#[test]
fn the_rest_of_the_chain() {
    each(&[Tuning, Bandwidth, Firewall, Portmap], &[Families::Dual], |scene, kind| {
        let conf = begin(scene, kind);
        let mut last = Value::Null;
        // It has read its configuration by then, and knows whose ADD it is.
        for at in [80, 110] {
            let mut add = Held::start(&scene.node, "ADD", "p1", &conf, "");
            assert!(add.reach(at));
            for kind in kind.chain() {
                scene.gc(*kind, &[]).ok();
            }
            last = add.finish().ok();
            scene.check(kind.chain(), 1, &last);
            scene.node.del("p1", &conf);
        }
        scene.del(kind.chain(), 1, &last);
        assert!(!Bridge.is_there(1));
    });
}

/// Bridges that nobody is on any more are forgotten, but not one that an ADD is about to be on: wherever
/// GC is, the ADD ends with its bridge kept from others.
#[test]
fn an_add_beside_gc_has_its_bridge() {
    let done = std::thread::spawn(|| {
        let scene = Scene::new(Families::Dual);
        let conf = begin(&scene, Firewall);
        let node = &scene.node;
        let mut gc = scene.conf(Firewall, 1, &Value::Null);
        gc.as_object_mut().unwrap().remove("prevResult");
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "p1", "ifname": "eth0"}]);
        let (mut ran, mut waited) = (0, 0);
        for at in (61..).step_by(2) {
            // It leaves its bridge to GC.
            node.add("p1", &conf);
            node.del("p1", &conf);
            let mut held = Held::start(node, "GC", "p1", &gc, "");
            if !held.reach(at) {
                held.finish().ok();
                break;
            }
            let (mut add, start) = (node.call("ADD", "p1", &conf).spawn(), Instant::now());
            let ended = || start.elapsed() > Duration::from_millis(200);
            while add.try_wait().unwrap().is_none() && !ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if add.try_wait().unwrap().is_some() {
                ran += 1
            } else {
                waited += 1
            }
            held.finish().ok();
            let result = common::finish(add).ok();
            let checked = check(node, "p1", &conf, &result);
            assert_eq!(checked.code, 0, "GC at system call {at}: {}", checked.stdout);
            node.del("p1", &conf);
        }
        println!("ADD ran beside GC at {ran} points, and waited for it at {waited}");
        assert!(ran > 5 && waited > 1, "{ran} {waited}");
    });
    assert!(done.join().is_ok());
}
