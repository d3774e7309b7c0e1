//! A rolling upgrade, as a DaemonSet does it: one node after the other, each ready before the next.

use std::sync::atomic::{AtomicBool, Ordering};

use causeway_lab::Road;
use causeway_types::state::Attach;
use http::Method;

use crate::outage::ask_status;
use crate::restarts::next_version;
use crate::streams::under_traffic;
use crate::world::{PATIENCE, dual, eventually, with};

const NODES: u8 = 5;

/// Forth to another version, and back to the one before.
#[test]
fn a_rolling_upgrade_loses_nothing_and_status_never_fails() {
    with(dual(NODES, Attach::Bridge, Road::Vxlan), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-5"));
        let versions = [1, 2].map(|n| next_version(world, n));
        let nodes: Vec<String> = (1..=NODES).map(|n| format!("node-{n}")).collect();
        let starts = |node: &str| {
            let all = world.client.control(Method::GET, "/agents").unwrap();
            all[node]["starts"].as_u64().unwrap()
        };
        let before: Vec<u64> = nodes.iter().map(|node| starts(node)).collect();
        let on = AtomicBool::new(true);
        let (report, answers) = std::thread::scope(|scope| {
            let on = &on;
            let asked =
                ["node-1", "node-3"].map(|node| scope.spawn(move || ask_status(world, node, on)));
            let report = under_traffic(world, &a, &b, || {
                for (round, version) in versions.iter().enumerate() {
                    for (i, node) in nodes.iter().enumerate() {
                        let path = format!("/agents/{node}/upgrade?to={}", version.display());
                        world.client.control(Method::POST, &path).unwrap();
                        eventually("the next version is ready", PATIENCE, || {
                            let started = starts(node) > before[i] + round as u64;
                            let status = world.status(node).map_err(|e| e.to_string())?;
                            let ready = status.ready && status.inputs.view == "api";
                            if started && ready { Ok(()) } else { Err(format!("{status:?}")) }
                        });
                        // Pods come and go on a node whose agent was exchanged a moment ago.
                        let pod = world.pod(&format!("p{i}"), node);
                        assert!(world.reaches(&world.netns(&a), pod.ips[0], 56));
                        causeway_lab::delete_pod(&world.client, &pod.name, PATIENCE).unwrap();
                    }
                }
            });
            on.store(false, Ordering::Relaxed);
            (report, asked.map(|asked| asked.join().unwrap()))
        });
        report.nothing_lost(1_000);
        for (yes, no) in answers {
            assert!(no.is_empty(), "STATUS failed {} times: {:?}", no.len(), no.first());
            assert!(yes > 10, "STATUS was asked {yes} times");
        }
        for node in &nodes {
            assert_eq!(world.status(node).unwrap().repairs, 0, "what is adopted needs no repair");
        }
        world.all_reach_all();
    });
}
