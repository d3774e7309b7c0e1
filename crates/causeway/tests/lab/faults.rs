//! `causeway lab fault`: everything that can go wrong goes wrong, by the command that people use, and
//! the network is whole again.

use std::process::Command;

use causeway_lab::{Families, Fault, Road, Spec, delete_pod};
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::world::{
    PATIENCE, REPAIR, World, binaries, dual, eventually, test_build, with, with_programs,
};

/// `causeway lab WORDS`: whether it succeeded, and what it said.
fn lab(world: &World, words: &[&str]) -> (bool, String) {
    let name = ["--name", &world.spec.name];
    let mut command = Command::new(binaries().causeway);
    let output = command.arg("lab").args(words).args(name).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn fault(world: &World, words: &[&str]) -> String {
    let (done, said) = lab(world, &[&["fault"], words].concat());
    assert!(done, "{words:?}: {said}");
    said
}

/// What the agent of a node made there.
fn view(world: &World, node: &str) -> String {
    let line = "ip route show proto 203; ip -6 route show proto 203; bridge fdb show | grep -F 'dst ' | \
                sort; nft -s list table inet causeway";
    world.try_sh(&world.node_ns(node), line).1
}

/// The lines that only one of two texts has, marked as `diff` marks them.
fn differing(before: &str, now: &str) -> String {
    let only = |mark: char, of: &str, in_other: &str| {
        of.lines()
            .filter(|line| !in_other.lines().any(|other| other == *line))
            .map(|line| format!("{mark} {line}\n"))
            .collect::<String>()
    };
    only('-', before, now) + &only('+', now, before)
}

#[test]
fn all_of_them_are_survived() {
    for (attach, road) in [(Attach::Routed, Road::Vxlan), (Attach::Bridge, Road::Direct)] {
        with(dual(2, attach, road), |world| {
            world.pods();
            world.all_reach_all();
            for fault in Fault::ALL {
                one(world, fault);
            }
        });
    }
}

fn one(world: &World, which: Fault) {
    let before = view(world, "node-1");
    let again = || match differing(&before, &view(world, "node-1")) {
        lines if lines.is_empty() => Ok(()),
        lines => Err(format!("after {which}:\n{lines}")),
    };
    let mut words = vec![which.name(), "--seconds", "2"];
    let mut ready = PATIENCE;
    match which {
        Fault::PluginKilled => words.extend(["--times", "6"]),
        Fault::ClockJump => words.extend(["--jump-seconds", "315360000"]),
        Fault::RouteDeleted | Fault::NftFlushed => ready = REPAIR,
        _ => {}
    }
    let restarts = || world.status("node-1").map_or(0, |s| s.inputs.nodes.restarts);
    let watched = restarts();
    let (done, said) = lab(world, &[&["fault"], words.as_slice()].concat());
    // What is delivered takes no false clock, and the command says what does.
    let never = which == Fault::ClockJump && said.contains("linked statically");
    assert!(done || never, "{words:?}: {said}");
    match which {
        Fault::Down | Fault::Gone => {
            eventually("the watch begins anew", PATIENCE, || match restarts() {
                now if now > watched => Ok(()),
                now => Err(format!("{now} restarts")),
            });
        }
        Fault::RouteDeleted | Fault::NftFlushed => {
            eventually(which.name(), ready, again);
        }
        Fault::MtuBlackHole => black_hole(world),
        _ => {}
    }
    // Whatever is wrong, pods start, talk and end.
    let new = world.pod("new", "node-1");
    let far = causeway_lab::find_pod(&world.client, "a2").unwrap();
    for family in Families::Dual.list() {
        eventually("the new pod reaches another node", PATIENCE, || {
            match world.reaches(&world.netns(&new), world.ip(&far, *family), 56) {
                true => Ok(()),
                false => Err(format!("{which} {family}: {}", view(world, "node-1"))),
            }
        });
    }
    delete_pod(&world.client, "new", PATIENCE).unwrap_or_else(|e| panic!("{which}: {e:#}"));
    fault(world, &["clear"]);
    if which == Fault::PluginKilled {
        // Of one whose ADD and DEL were both killed nobody tells. The agent finds it by two observations, by itself half
        // a minute apart.
        let (done, said) = world.causeway("node-1", &["ipam", "gc"]);
        assert!(done, "{said}");
    }
    world.whole();
    world.pods_run();
    world.all_reach_all();
    if which != Fault::AddressChanged && which != Fault::Rebooted {
        eventually("as it was", PATIENCE, again);
    }
}

/// Small packets pass, large ones are lost without a word.
fn black_hole(world: &World) {
    for (family, headers) in [(Family::V4, 28), (Family::V6, 48)] {
        let to = world.spec.node_addr("node-2", family).addr();
        let ns = world.node_ns("node-1");
        assert!(world.reaches(&ns, to, 1380 - headers), "{family}");
        let (reached, said) =
            world.try_sh(&ns, &format!("ping -M do -s {} -c 2 -W 1 -n {to}", 1420 - headers));
        assert!(!reached && said.contains("100% packet loss"), "{said}");
        assert!(!said.contains("errors"), "nobody tells: {said}");
    }
}

/// Field failure 1: a node reboots and no DEL ever comes. Nothing of the former boot is left, by
/// itself, and pods that start meanwhile do not get in its way.
#[test]
fn failure_1_a_reboot_leaks_no_lease() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(dual(2, attach, Road::Vxlan), |world| {
            let pods = world.pods();
            let old: Vec<_> = pods.iter().filter(|p| p.node == "node-1").collect();
            let boot = || {
                std::fs::read_to_string(world.spec.dirs().node("node-1").join("boot_id")).unwrap()
            };
            let before = boot();
            fault(world, &["rebooted"]);
            assert_ne!(boot(), before);
            let new: Vec<_> = old
                .iter()
                .map(|pod| {
                    let mut found = (*pod).clone();
                    eventually("the pod runs again", PATIENCE, || {
                        found = causeway_lab::find_pod(&world.client, &pod.name).unwrap();
                        if found.phase == "Running" { Ok(()) } else { Err(format!("{found:?}")) }
                    });
                    found
                })
                .collect();
            world.whole();
            world.all_reach_all();
            // An address is given out again only when what had it is known to be gone.
            for ip in old.iter().flat_map(|p| &p.ips) {
                assert!(!new.iter().any(|p| p.ips.contains(ip)), "{new:?}");
            }
            let held: Vec<String> =
                new.iter().flat_map(|p| &p.ips).map(|ip| ip.to_string()).collect();
            // Two looks, half a minute apart.
            eventually("the leases of the former boot are released", PATIENCE * 2, || {
                let mut left: Vec<String> = world
                    .spec
                    .dirs()
                    .node("node-1")
                    .join("lib-cni/networks")
                    .read_dir()
                    .unwrap()
                    .flatten()
                    .flat_map(|network| network.path().read_dir().unwrap().flatten())
                    .filter_map(|f| f.file_name().into_string().ok())
                    .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
                    .collect();
                let mut held = held.clone();
                left.sort();
                held.sort();
                if left == held { Ok(()) } else { Err(format!("{left:?} instead of {held:?}")) }
            });
            let (_, said) = world.causeway("node-1", &["ipam", "check"]);
            assert!(!said.contains("stale"), "{said}");
            world.all_reach_all();
        });
    }
}

/// The wall clock jumps ten years there and back while watches are cut: the API's certificate is not
/// valid at such a time. What was built stays, pods start and end, and the agent is back with the time.
#[test]
fn a_clock_that_jumps() {
    with_programs(dual(2, Attach::Routed, Road::Vxlan), &test_build(), |world| {
        world.pods();
        for years in [10, -10] {
            let before = view(world, "node-1");
            let seconds = (years * 31_536_000_i64).to_string();
            fault(world, &["clock-jump", "--jump-seconds", &seconds]);
            fault(world, &["down", "--seconds", "1"]);
            eventually("it says that the API is away", PATIENCE, || {
                let status = world.status("node-1").map_err(|e| e.to_string())?;
                let error = format!("{:?}", status.inputs);
                if error.contains("ertificate") { Ok(()) } else { Err(error) }
            });
            assert_eq!(view(world, "node-1"), before);
            let new = world.pod("new", "node-1");
            let far = causeway_lab::find_pod(&world.client, "a2").unwrap();
            for family in Families::Dual.list() {
                assert!(world.reaches(&world.netns(&new), world.ip(&far, *family), 56));
            }
            // A node that joins meanwhile is known afterwards.
            let node = serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "late"},
                "spec": {"podCIDRs": ["10.244.88.0/24", "fd00:10:244:88::/64"],
                         "podCIDR": "10.244.88.0/24"},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": "192.168.1.188"},
                    {"type": "InternalIP", "address": "fd00:192:168:1::188"}]},
            });
            world.client.post("/api/v1/nodes", &node).unwrap();
            fault(world, &["clear"]);
            eventually("the late node's subnet", PATIENCE, || {
                let now = view(world, "node-1");
                let known = now.contains("10.244.88.0/24") && now.contains("fd00:10:244:88::/64");
                if known { Ok(()) } else { Err(now) }
            });
            world.client.delete("/api/v1/nodes/late").unwrap();
            delete_pod(&world.client, "new", PATIENCE).unwrap();
            eventually("as it was", PATIENCE, || match view(world, "node-1") {
                now if now == before => Ok(()),
                now => Err(now),
            });
            world.whole();
        }
    });
}

#[test]
fn wrong_words_are_told_what_there_is() {
    with(Spec { nodes: 1, ..Spec::default() }, |world| {
        let list = fault(world, &["list"]);
        for fault in Fault::ALL {
            assert!(list.lines().any(|l| l.starts_with(fault.name())), "{list}");
        }
        for (words, part) in [
            (vec!["flood"], "cut, down, stall, watch-stall, 410"),
            (vec!["rebooted", "--node", "cp"], "reboot another node"),
            (vec!["rebooted", "--node", "node-7"], "there are: cp, node-1"),
            (vec!["down", "--seconds", "0"], "positive number"),
            (vec!["mtu-black-hole", "--bytes", "9000"], "1280 to 1499"),
        ] {
            let (done, said) = lab(world, &[vec!["fault"], words.clone()].concat());
            assert!(!done && said.contains(part), "{words:?}: {said}");
        }
    });
}
