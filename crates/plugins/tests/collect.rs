//! Leases that nobody gives back any more (field failure 1): found and released, after two looks.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use causeway_plugins::Paths;
use causeway_plugins::collect::{Collected, Collector, Network, Verdict};
use common::served::{Families, Mode, addresses, conf, serve};
use common::{Node, pings, sh, try_sh};

fn network(mode: Mode) -> Network {
    Network { paths: Paths::default(), name: "pod-network".into(), own: mode != Mode::Classic }
}

fn observe(collector: &mut Collector) -> Collected {
    let done = collector.observe().unwrap();
    assert_eq!(done.failed, Vec::<String>::new());
    done
}

/// The kernel removes an interface a moment after its namespace went.
fn wait_until_gone(link: &str) {
    let start = Instant::now();
    while try_sh(&format!("ip link show {link}")).0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{link} stays");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A pod whose DEL never came.
fn lost_pod(node: &Node, name: &str, conf: &serde_json::Value) -> Vec<String> {
    node.pod(name);
    let result = node.add(name, conf);
    let link = common::served::host_end(&result);
    node.remove_pod(name);
    wait_until_gone(&link);
    addresses(&result)
}

#[test]
fn failure_1_pods_that_are_gone_without_del() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let conf = conf(mode, Families::Dual);
            node.pod("stays");
            let stays = addresses(&node.add("stays", &conf));
            let lost = lost_pod(&node, "lost", &conf);
            let mut collector = Collector::new(network(mode));
            let first = observe(&mut collector);
            assert_eq!((first.released.len(), first.suspects), (0, lost.len()), "{mode:?}");
            let second = observe(&mut collector);
            let released: Vec<String> = second.released.iter().map(|r| r.0.to_string()).collect();
            assert_eq!(released, lost, "{mode:?}");
            for ip in &stays {
                sh(&format!("ping -c1 -W3 -n {ip}"));
            }
            assert_eq!(observe(&mut collector), Collected::default());
            node.del("stays", &conf);
            assert_eq!(node.residue(), "", "{mode:?}");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

/// After a reboot no namespace and no interface of before is there, and the boot ID is another.
#[test]
fn failure_1_a_reboot() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let conf = conf(mode, Families::Dual);
            for i in 0..5 {
                lost_pod(&node, &format!("p{i}"), &conf);
            }
            fs::write("/run/boot_id", "another-boot\n").unwrap();
            let paths = Paths { boot_id: PathBuf::from("/run/boot_id"), ..Paths::default() };
            let mut collector = Collector::new(Network { paths, ..network(mode) });
            assert_eq!(observe(&mut collector).suspects, 10);
            assert_eq!(observe(&mut collector).released.len(), 10);
            assert_eq!(node.residue(), "", "{mode:?}");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

fn lease(ip: &str, content: &str) -> PathBuf {
    let dir = PathBuf::from("/var/lib/cni/networks/pod-network");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(ip);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn traces_of_a_killed_plugin_and_leases_of_others() {
    let _node = serve(Mode::Routed, Families::V4);
    let trace = lease("10.244.1.9", "killed\r\neth0");
    let torn = lease("10.244.1.10", "");
    // On a network that others may serve, too, a lease without a record may be theirs.
    let verdicts = |n: &Network| -> Vec<Verdict> {
        n.look().unwrap().into_iter().map(|held| held.verdict).collect()
    };
    assert!(matches!(verdicts(&network(Mode::Classic))[..], [Verdict::Kept(_), Verdict::Kept(_)]));
    let mut careful = Collector::new(network(Mode::Classic));
    observe(&mut careful);
    assert_eq!(observe(&mut careful).released, vec![]);
    assert!(trace.exists() && torn.exists());
    // The time of a lease says nothing: since then the clock may have been set, as on a node that has
    // none of its own and asks for the time after its first pods. Only where nothing can be read...
    for path in [&torn, &trace] {
        sh(&format!("touch -d '2001-01-01' {}", path.display()));
    }
    observe(&mut careful);
    observe(&mut careful);
    assert!(trace.exists() && !torn.exists());
    // That an earlier boot has seen it tells.
    fs::write("/run/boot_id", "another-boot\n").unwrap();
    let paths = Paths { boot_id: PathBuf::from("/run/boot_id"), ..Paths::default() };
    let mut later = Collector::new(Network { paths, ..network(Mode::Classic) });
    let fresh = lease("10.244.1.12", "of-this-boot\r\neth0");
    observe(&mut later);
    assert_eq!(observe(&mut later).released.len(), 1);
    assert!(!trace.exists() && fresh.exists());
    fs::remove_file(fresh).unwrap();
    fs::remove_dir_all("/var/lib/causeway/leases").unwrap();

    let trace = lease("10.244.1.11", "killed\r\neth0");
    let mut own = Collector::new(network(Mode::Routed));
    observe(&mut own);
    assert_eq!(observe(&mut own).released.len(), 1);
    assert!(!trace.exists());
}

/// Given back and given out again between two looks: it begins anew.
#[test]
fn a_lease_that_changed_is_a_new_suspect() {
    let _node = serve(Mode::Routed, Families::V4);
    let path = lease("10.244.1.9", "one\r\neth0");
    let mut collector = Collector::new(network(Mode::Routed));
    observe(&mut collector);
    fs::remove_file(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    lease("10.244.1.9", "one\r\neth0");
    assert_eq!(observe(&mut collector).released, vec![]);
    assert_eq!(observe(&mut collector).released.len(), 1);
}

/// A state that cannot be read is no reason to release anything.
#[test]
fn what_cannot_be_read_is_kept() {
    let node = serve(Mode::Routed, Families::V4);
    let conf = conf(Mode::Routed, Families::V4);
    node.pod("p1");
    node.add("p1", &conf);
    let mut collector = Collector::new(network(Mode::Routed));
    fs::rename("/var/lib/causeway/attachments", "/var/lib/causeway/away").unwrap();
    fs::write("/var/lib/causeway/attachments", "no directory").unwrap();
    for _ in 0..3 {
        assert!(collector.observe().is_err());
    }
    fs::remove_file("/var/lib/causeway/attachments").unwrap();
    fs::rename("/var/lib/causeway/away", "/var/lib/causeway/attachments").unwrap();
    assert_eq!(observe(&mut collector), Collected::default());
    assert!(pings("p1", "192.168.77.1"));
}
