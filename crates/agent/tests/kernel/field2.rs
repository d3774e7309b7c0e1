//! More failures that users of pod networks meet, by the numbers of docs/field-failures.md.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_cluster::Snapshot;
use causeway_desired::input::Config;
use causeway_types::state::Attach;
use serde_json::Value;

use crate::node::{DEADLINE, Stack, comes_back, each_stack, eventually, run, with};
use crate::world::{self, OUTSIDE, families, inside};

/// A firewall that reloads flushes all rules, its own and others'. Pods go on, and their guards and the
/// filter are back within a second.
#[test]
fn failure_18_a_firewall_reloads() {
    each_stack(|node| {
        world::surround(node);
        node.start_with(node.three());
        let pod = world::pod(node, "p1", 5);
        let rules = "nft -s list ruleset";
        let before = run(rules);
        assert!(
            before.contains("table inet causeway") && before.contains("table netdev causeway_cni")
        );
        for _ in 0..3 {
            run("nft flush ruleset");
            comes_back("all rules", rules, &before);
            for ip in &pod.addresses {
                run(&format!("ping -c1 -W2 {}", ip.addr()));
            }
        }
        node.assert_whole();
    });
}

/// Whoever reads the node file or the configuration list finds it whole, however often it changes.
#[test]
fn failure_30_files_are_whole_whenever_they_are_read() {
    with(Stack::Dual, Config::default(), |node| {
        node.start_with(node.three());
        let (paths, on) = ([node.paths.node_file.clone(), node.conflist()], AtomicBool::new(true));
        let read = || {
            let (mut seen, mut reads) = (BTreeSet::new(), 0);
            while on.load(Ordering::Relaxed) {
                for path in &paths {
                    let text = std::fs::read(path).expect("it is there all the time");
                    let whole: Value = serde_json::from_slice(&text)
                        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                    seen.extend(whole["generation"].as_u64());
                    reads += 1;
                }
            }
            (seen.len(), reads)
        };
        let (generations, reads) = std::thread::scope(|scope| {
            let reader = scope.spawn(read);
            for n in 0..30 {
                let mut view = node.three();
                let (name, mut info) = node.info(4, true);
                // Another network without masquerade each time.
                info.pod_cidrs[0] = format!("10.{}.0.0/24", 100 + n).parse().unwrap();
                view.nodes.insert(name, info);
                let before = node.status().generation;
                node.sender.send_replace(Snapshot::synced_with(view));
                eventually("another node file", DEADLINE, || {
                    let now = node.status().generation;
                    if now > before { Ok(()) } else { Err(node.wrong()) }
                });
            }
            on.store(false, Ordering::Relaxed);
            reader.join().expect("each file was whole")
        });
        println!("{generations} generations in {reads} reads");
        assert!(generations > 10 && reads > 1000, "{generations} generations in {reads} reads");
    });
}

/// systemd's sysctl.d, or an administrator, makes the reverse path filter strict again. What the bridge needs
/// is put back, and pods are reached on either attachment while it is strict elsewhere.
#[test]
fn failure_35_the_reverse_path_filter_is_reset() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(Stack::Dual, Config { attach, ..Config::default() }, |node| {
            world::surround(node);
            node.start_with(node.three());
            if attach == Attach::Bridge {
                let path = "/proc/sys/net/ipv4/conf/cni0/rp_filter";
                for value in ["1", "0"] {
                    std::fs::write(path, value).unwrap();
                    comes_back(path, &format!("cat {path}"), "2\n");
                }
            }
            for name in ["all", "default", "eth0", "cw-vxlan"] {
                let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
                std::fs::write(path, "1").unwrap();
            }
            if attach == Attach::Routed {
                world::pod(node, "p1", 5);
                for f in families(node.stack) {
                    inside("p1", || run(&format!("ping -c1 -W2 {}", OUTSIDE[f])));
                }
            } else {
                let text = run("cat /proc/sys/net/ipv4/conf/cni0/rp_filter");
                assert_eq!(text, "2\n", "the larger of `all` and its own counts");
            }
            node.assert_whole();
        });
    }
}
