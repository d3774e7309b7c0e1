//! Many at once, for the types and chains that `crowd` does not have: 64 pods come, go, and come and go
//! while the runtime collects garbage.

mod common;

use common::served::{Families, addresses};
use common::types::{Kind, Scene};
use common::{in_pod, sh};
use serde_json::Value;

use Kind::*;

const MANY: usize = 64;

const CHAINS: [&[Kind]; 4] = [
    &[Bridge, Tuning, Bandwidth, Firewall, Portmap, Sbr],
    &[Ptp, Tuning, Bandwidth, Portmap],
    &[Macvlan, Tuning, Sbr],
    &[HostDevice, Tuning, Sbr],
];

/// Does something for many pods at once. What the threads start lives in the node of this one.
fn all<T: Send>(pods: &[usize], act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |n: &usize| {
            let (n, act) = (*n, &act);
            scope.spawn(move || act(n))
        };
        let running: Vec<_> = pods.iter().map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn chains(test: fn(&Scene, &'static [Kind])) {
    for chain in CHAINS {
        let run = move || {
            let scene = Scene::new(Families::Dual);
            if matches!(chain[0], Macvlan | HostDevice) {
                scene.gateways_on_lan();
            }
            (1..=MANY).for_each(|n| scene.pod(n));
            test(&scene, chain);
        };
        assert!(std::thread::spawn(run).join().is_ok(), "{chain:?}");
    }
}

/// The pods have all of the chain, and reach the gateways.
fn whole(scene: &Scene, chain: &[Kind], pods: &[usize], results: &[Value]) {
    all(pods, |n| {
        let result = &results[pods.iter().position(|p| *p == n).unwrap()];
        scene.check(chain, n, result);
        for ip in addresses(result) {
            let gateway = if ip.contains(':') { "fd00:10:244:1::1" } else { "10.244.1.1" };
            // With `sbr` it depends on the source where a packet goes.
            in_pod(&format!("p{n}"), &format!("ping -c1 -W5 -n -I {ip} {gateway}"));
        }
    });
}

#[test]
fn sixty_four_at_once() {
    chains(|scene, chain| {
        let pods: Vec<usize> = (1..=MANY).collect();
        // Bridge and tables stay.
        let first = scene.add(chain, 1);
        scene.del(chain, 1, &first);
        let before = scene.state(&[]);
        let results = all(&pods, |n| scene.add(chain, n));
        whole(scene, chain, &pods, &results);
        all(&pods, |n| scene.del(chain, n, &results[n - 1]));
        assert!(pods.iter().all(|n| !chain[0].is_there(*n)));
        scene.back(&before, &[], "after all");
    });
}

/// Half of them go while the other half comes, with GC of the whole chain running in between.
#[test]
fn coming_and_going_and_garbage_collection() {
    chains(|scene, chain| {
        let pods: Vec<usize> = (1..=MANY).collect();
        let first = scene.add(chain, 1);
        scene.del(chain, 1, &first);
        let before = scene.state(&[]);
        let (old, new) = pods.split_at(MANY / 2);
        let results = all(old, |n| scene.add(chain, n));
        let come = all(&pods, |n| {
            if n % 16 == 0 {
                // As a runtime may list them: what it has, and what is about to come.
                chain.iter().for_each(|kind| drop(scene.gc(*kind, &pods).ok()));
            }
            if n <= old.len() {
                scene.del(chain, n, &results[n - 1]);
                Value::Null
            } else {
                scene.add(chain, n)
            }
        });
        whole(scene, chain, new, &come[old.len()..]);
        // The runtime forgot all of them but one.
        let last = MANY;
        for kind in chain.iter().rev() {
            scene.gc(*kind, &[last]).ok();
        }
        scene.check(chain, last, &come[last - 1]);
        for kind in chain.iter().filter(|kind| !matches!(kind, Tuning | Sbr)) {
            assert!(new.iter().all(|n| *n == last || !kind.is_there(*n)), "{kind:?}");
        }
        scene.del(chain, last, &come[last - 1]);
        if chain[0] == HostDevice {
            // GC has none of the results that would tell in which order to put back.
            for n in new {
                sh(&format!("ip link set d{n} mtu 1500 promisc off allmulticast off"));
            }
        }
        scene.back(&before, &[], "after all");
    });
}
