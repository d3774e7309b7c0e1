//! Every operation of every scenario's plan goes wrong: refused once, refused for a while, and the
//! last one that a dying agent did. The node comes to the same end as without.
//!
//! Scenarios are all changes below, for each attachment, road and family, from crate `desired`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use causeway_desired::input::Road;
use causeway_types::state::Attach;
use causeway_types::{Family, Vni};

use super::laws::closed;
use super::world::{Fault, Node, Setup, others};
use super::*;

/// Something somebody does to the kernel's objects.
type Damage = fn(&mut SimKernel);

fn remove(kernel: &mut SimKernel, name: &str) {
    if let Some(link) = kernel.state.get(&Key::Link(name.parse().unwrap())).cloned() {
        kernel.apply(&Op::Remove(link)).unwrap();
    }
}

/// All scenarios of one base: name, old, new, what somebody breaks, whether the agent restarts.
fn scenarios(base: &Setup) -> Vec<(&'static str, Option<Setup>, Setup, Damage, bool)> {
    let none: Damage = |_| {};
    let with = |change: &dyn Fn(&mut Setup)| {
        let mut setup = base.clone();
        change(&mut setup);
        setup
    };
    let on = base.clone();
    let mtu = |n| Some(Mtu::new(n).unwrap());
    let road = match base.config.road {
        Road::Direct => Road::Vxlan,
        Road::Auto | Road::Vxlan => Road::Direct,
    };
    let near = |s: &mut Setup| s.peers.retain(|(n, ..)| *n < 4);
    let attach = match base.config.attach {
        Attach::Routed => Attach::Bridge,
        Attach::Bridge => Attach::Routed,
    };
    let bare = with(&|s| s.pods.clear());
    let mut all: Vec<(&'static str, Option<Setup>, Setup, Damage, bool)> = vec![
        ("from nothing", None, on.clone(), none, false),
        ("peer added", Some(with(&|s| s.peers.truncate(1))), on.clone(), none, false),
        ("all peers added", Some(with(&|s| s.peers.clear())), on.clone(), none, false),
        ("peer removed", Some(on.clone()), with(&|s| s.peers.truncate(1)), none, false),
        ("all peers removed", Some(on.clone()), with(&|s| s.peers.clear()), none, false),
        ("peer's address changed", Some(on.clone()), with(&|s| s.peers[0].1 = 1), none, false),
        ("peer's CIDR changed", Some(on.clone()), with(&|s| s.peers[0].2 = 1), none, false),
        ("ranges added", Some(on.clone()), with(&|s| s.ranges = true), none, false),
        ("ranges removed", Some(with(&|s| s.ranges = true)), on.clone(), none, false),
        ("pod added", Some(bare.clone()), on.clone(), none, false),
        ("pod removed", Some(on.clone()), bare.clone(), none, false),
        (
            "road changed",
            Some(with(&near)),
            with(&|s| {
                near(s);
                s.config.road = road;
            }),
            none,
            true,
        ),
        (
            "attachment changed",
            Some(bare.clone()),
            Setup { config: Config { attach, ..bare.config.clone() }, ..bare.clone() },
            none,
            true,
        ),
        ("MTU changed", Some(on.clone()), with(&|s| s.config.mtu = mtu(1300)), none, true),
        (
            "tunnel's port changed",
            Some(on.clone()),
            with(&|s| s.config.vxlan_port = 4789),
            none,
            true,
        ),
        (
            "VNI changed",
            Some(on.clone()),
            with(&|s| s.config.vni = Vni::new(77).unwrap()),
            none,
            true,
        ),
        (
            "masquerade turned off",
            Some(on.clone()),
            with(&|s| s.config.masquerade = false),
            none,
            true,
        ),
        ("restart", Some(on.clone()), on.clone(), none, true),
    ];
    let damages: [(&'static str, Damage); 5] = [
        ("table flushed", |k| {
            k.state.retain(|key, o| !matches!(key, Key::Table { .. }) || others().contains(o))
        }),
        ("tunnel deleted", |k| remove(k, "cw-vxlan")),
        ("bridge deleted", |k| remove(k, "cni0")),
        ("routes flushed", |k| {
            k.state.retain(|_, o| {
                !matches!(o, Object::Route(r) if r.protocol == names::ROUTE_PROTOCOL)
                    || others().contains(o)
            })
        }),
        ("tunnel set down", |k| {
            let key = Key::Link("cw-vxlan".parse().unwrap());
            if let Some(Object::Link(link)) = k.state.get(&key).cloned() {
                k.state.insert(Object::Link(Link { up: false, ..link }));
            }
        }),
    ];
    for (name, damage) in damages {
        all.push((name, Some(on.clone()), on.clone(), damage, false));
        all.push((name, Some(on.clone()), on.clone(), damage, true));
    }
    all
}

/// Brings a node to where the scenario begins, and begins it.
fn begin(old: &Option<Setup>, new: &Setup, damage: Damage, restart: bool) -> Node {
    let empty = Setup { pods: Vec::new(), ..new.clone() };
    let mut node = match old {
        Some(old) => Node::new(old),
        None => {
            let mut node = Node::new(&Setup { peers: Vec::new(), pods: Vec::new(), ..new.clone() });
            node.kernel().state = others().into_iter().collect();
            std::fs::remove_file(&node.paths.owned).unwrap();
            node.restart(new);
            node
        }
    };
    node.core.port.log.clear();
    node.change(old.as_ref().unwrap_or(&empty), new);
    damage(node.kernel());
    if restart {
        node.restart(new);
    }
    // What somebody broke is open until it is mended, whatever goes wrong.
    node.core.port.wrong.clear();
    node.core.set_snapshot(Snapshot::synced_with(new.view()));
    node
}

/// One scenario with one fault.
fn survive(mut node: Node, new: &Setup, fault: Fault, open: bool, plain: &mut Node) {
    node.core.port.fault = fault.clone();
    if !node.round() {
        node.restart(new);
        node.core.set_snapshot(Snapshot::synced_with(new.view()));
    }
    if matches!(fault, Fault::Always(_)) {
        for _ in 0..3 {
            node.round();
            node.check_unrelated();
        }
    }
    node.core.port.fault = Fault::None;
    if open {
        node.core.port.wrong.clear();
    }
    node.settle();
    node.check();
    assert_eq!(node.kernel().state, plain.kernel().state);
    assert_eq!(node.owned(), plain.owned());
}

/// One scenario: without a fault, then with each one at each of its operations. Answers how many
/// faults there were, and in which it did not come to its end.
fn each_fault(
    (name, old, new, damage, restart): &(&'static str, Option<Setup>, Setup, Damage, bool),
) -> (usize, Vec<String>) {
    let start = || begin(old, new, *damage, *restart);
    let mut plain = start();
    // What somebody opened stays open until it is mended, whatever goes wrong.
    let open = closed(&plain.kernel().state).is_err();
    plain.round();
    let log = std::mem::take(&mut plain.core.port.log);
    assert!(log.iter().all(|(_, end)| end.is_ok()), "{name}: {log:?}");
    if open {
        plain.core.port.wrong.clear();
    }
    plain.settle();
    plain.check();
    let mut wrong = Vec::new();
    for (at, (op, _)) in log.iter().enumerate() {
        for fault in [Fault::Once(at), Fault::Always(at), Fault::Crash(at)] {
            let what = format!("{name}, restart {restart}: {fault:?} of {}: {op}", log.len());
            let run = || survive(start(), new, fault, open, &mut plain);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                wrong.push(what);
            }
        }
    }
    (3 * log.len(), wrong)
}

fn run(families: &[Family]) {
    let (mut faults, mut count, mut wrong) = (0, 0, Vec::new());
    for attach in [Attach::Routed, Attach::Bridge] {
        for road in [Road::Direct, Road::Vxlan, Road::Auto] {
            let mut peers = vec![(2, 0, 0), (3, 0, 0)];
            peers.extend((road != Road::Direct).then_some((4, 0, 0)));
            let mtu = Some(Mtu::new(1400).unwrap());
            let config = Config { attach, road, mtu, ..Config::default() };
            let base = Setup {
                families: families.to_vec(),
                config,
                peers,
                pods: vec![2, 3],
                ranges: false,
            };
            for scenario in scenarios(&base) {
                let (more, bad) = each_fault(&scenario);
                faults += more;
                count += 1;
                wrong.extend(bad.into_iter().map(|what| format!("{attach:?}, {road:?}: {what}")));
            }
        }
    }
    println!("{families:?}: {faults} faults in {count} scenarios");
    assert!(faults > 10 * count, "plans are too short to be true");
    assert!(wrong.is_empty(), "{} of {faults}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn ipv4() {
    run(&[Family::V4]);
}

#[test]
fn ipv6() {
    run(&[Family::V6]);
}

#[test]
fn dual_stack() {
    run(&Family::BOTH);
}
