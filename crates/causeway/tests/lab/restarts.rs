//! Field failure 6: agents are restarted, stopped, killed and upgraded under traffic, at random moments. Not a
//! packet is lost.

use std::path::PathBuf;
use std::time::Duration;

use causeway_lab::Road;
use causeway_types::state::Attach;
use http::Method;

use crate::streams::under_traffic;
use crate::world::{World, binaries, dual, with};

/// Of each kind. What is stopped stays down until the next order for it.
const TIMES: usize = 20;

/// Another program file with the same meaning, as the next version of it is.
pub(crate) fn next_version(world: &World, number: usize) -> PathBuf {
    let path = world.spec.dirs().root().join(format!("causeway-{number}"));
    let mut bytes = std::fs::read(binaries().causeway).unwrap();
    // What comes after the program's own parts is not loaded.
    bytes.extend_from_slice(format!("version {number}\n").as_bytes());
    std::fs::write(&path, bytes).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The orders in a random order, and the moments between them in milliseconds.
fn orders(versions: &[PathBuf]) -> Vec<(String, u64)> {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new();
    let mut all: Vec<(u64, String)> = (0..TIMES)
        .flat_map(|i| {
            let to = versions[i % versions.len()].display();
            let plain = ["restart", "kill", "stop"].map(str::to_owned);
            plain.into_iter().chain([format!("upgrade?to={to}")])
        })
        .enumerate()
        .map(|(i, order)| (random.hash_one(i), order))
        .collect();
    all.sort();
    let pause = |i: usize| 20 + random.hash_one(i) % 330;
    let with_pauses: Vec<(String, u64)> =
        all.into_iter().enumerate().map(|(i, (_, order))| (order, pause(i + TIMES * 4))).collect();
    println!("{with_pauses:?}");
    with_pauses
}

fn restarts(attach: Attach, road: Road) {
    with(dual(2, attach, road), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        let versions = [next_version(world, 1), next_version(world, 2)];
        let report = under_traffic(world, &a, &b, || {
            for (i, (order, pause)) in orders(&versions).into_iter().enumerate() {
                std::thread::sleep(Duration::from_millis(pause));
                let path = format!("/agents/node-{}/{order}", i % 2 + 1);
                let began = std::time::Instant::now();
                let done = world.client.control(Method::POST, &path);
                let took = began.elapsed();
                if took > Duration::from_secs(2) {
                    let log = std::fs::read_to_string(world.spec.dirs().root().join("lab.log"));
                    println!("{path} took {took:?}: {}", log.unwrap_or_default());
                }
                done.unwrap_or_else(|e| panic!("{path}: {e:#}"));
            }
            for node in ["node-1", "node-2"] {
                world.agent(node, "start");
            }
            world.whole();
        });
        report.nothing_lost(5_000);
        for node in ["node-1", "node-2"] {
            let starts = world.client.control(Method::GET, "/agents").unwrap()[node]["starts"]
                .as_u64()
                .unwrap();
            assert!(starts > TIMES as u64, "{starts} starts of the agent of {node}");
            assert_eq!(world.status(node).unwrap().repairs, 0, "what is adopted needs no repair");
        }
        world.all_reach_all();
    });
}

#[test]
fn failure_6_restarts_of_routed_nodes_in_a_tunnel() {
    restarts(Attach::Routed, Road::Vxlan);
}

#[test]
fn failure_6_restarts_of_bridges_on_direct_roads() {
    restarts(Attach::Bridge, Road::Direct);
}
