//! The API is away for minutes while pods come and go, then forgets its history, and half of all
//! objects are others when it is back. Nothing flaps, nothing is lost, STATUS never fails.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_lab::{Families, KubernetesVersion, Road, Spec, delete_pod};
use causeway_types::state::Attach;
use serde_json::json;

use crate::away::{create, delete, node, readdress};
use crate::streams::under_traffic;
use crate::world::{PATIENCE, World, dual, eventually, with};

/// How long the API is away: CAUSEWAY_OUTAGE seconds, or a few.
fn outage() -> Duration {
    let given = std::env::var("CAUSEWAY_OUTAGE").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(given.unwrap_or(12))
}

/// Asks the plugins of a node every 100 ms whether they could attach a pod. Answers how often they
/// said yes, and every no.
pub(crate) fn ask_status(world: &World, on: &str, go_on: &AtomicBool) -> (u32, Vec<String>) {
    let (mut yes, mut no) = (0, Vec::new());
    let mut next = Instant::now();
    while go_on.load(Ordering::Relaxed) {
        let list = "/etc/cni/net.d/05-causeway.conflist";
        match world.causeway(on, &["cni", "status", list]) {
            (true, _) => yes += 1,
            (false, said) => no.push(said),
        }
        next += Duration::from_millis(100);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (yes, no)
}

/// `ip monitor` of a node's routes.
struct Monitor {
    child: Child,
    file: std::path::PathBuf,
}

impl Monitor {
    fn start(world: &World, on: &str) -> Self {
        let file = world.spec.dirs().root().join(format!("monitor-{on}"));
        let out = std::fs::File::create(&file).unwrap();
        let ns = world.node_ns(on);
        let child = causeway_lab::inside(&ns, || {
            let mut command = Command::new("ip");
            command.args(["-oneline", "monitor", "route"]).stdout(out).stderr(Stdio::null());
            Ok(command.spawn()?)
        });
        let monitor = Self { child: child.unwrap(), file };
        // It says nothing when it is ready: show that it hears.
        eventually("the monitor hears", PATIENCE, || {
            world
                .on(on, "ip route add 198.51.100.0/24 dev lo; ip route del 198.51.100.0/24 dev lo");
            let text = std::fs::read_to_string(&monitor.file).unwrap();
            if text.contains("198.51.100.0/24") { Ok(()) } else { Err(text) }
        });
        monitor
    }

    fn heard(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::read_to_string(&self.file).unwrap()
    }
}

/// The fault settings of the API, all of them.
pub(crate) fn faults(world: &World, settings: &serde_json::Value) {
    world.client.put("/causeway.lab/faults", settings).unwrap();
}

fn pods_come_and_go(world: &World, round: u32) {
    for on in ["node-1", "node-2"] {
        let name = format!("p{round}-{on}");
        let pod = world.pod(&name, on);
        let other = if on == "node-1" { "b" } else { "a" };
        let other = causeway_lab::find_pod(&world.client, other).unwrap();
        for family in Families::Dual.list() {
            assert!(world.reaches(&world.netns(&pod), world.ip(&other, *family), 56), "{name}");
        }
        // Every second one stays.
        if round.is_multiple_of(2) {
            delete_pod(&world.client, &name, PATIENCE).unwrap();
        }
    }
}

/// Field failure 5, too: no plugin needs the API.
fn api_away(attach: Attach, road: Road, kubernetes: KubernetesVersion) {
    with(Spec { kubernetes, ..dual(2, attach, road) }, |world| {
        let said = world.client.get("/version").unwrap()["gitVersion"].to_string();
        assert!(said.contains(&world.spec.kubernetes.release()), "{said}");
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        for i in 0..20 {
            create(world, &node(&format!("n{i}"), 100 + i, 100 + i));
        }
        let routes = || world.on("node-1", "ip route show proto 203; ip -6 route show proto 203");
        let all = |wanted: &[String], unwanted: &[String]| {
            let text = routes();
            let has = |cidr: &String| text.contains(cidr.as_str());
            match wanted.iter().all(has) && !unwanted.iter().any(has) {
                true => Ok(()),
                false => Err(text),
            }
        };
        let v4 = |n: u8| format!("10.244.{n}.0/24");
        let first: Vec<String> = (100..120).map(v4).collect();
        eventually("all nodes are known", PATIENCE, || all(&first, &[]));
        let monitor = Monitor::start(world, "node-1");
        let on = AtomicBool::new(true);
        let (report, answers) = std::thread::scope(|scope| {
            let on = &on;
            let asked =
                ["node-1", "node-2"].map(|node| scope.spawn(move || ask_status(world, node, on)));
            let report = under_traffic(world, &a, &b, || {
                let (time, start) = (outage(), Instant::now());
                faults(world, &json!({"refuseSeconds": time.as_secs_f64()}));
                // Half of the objects are others meanwhile.
                for i in 0..4 {
                    delete(world, &format!("n{i}"));
                    create(world, &node(&format!("m{i}"), 130 + i, 130 + i));
                    readdress(world, &format!("n{}", 4 + i), 140 + i);
                }
                let mut round = 0;
                while start.elapsed() < time {
                    pods_come_and_go(world, round);
                    round += 1;
                    std::thread::sleep(time / 12);
                }
                println!("{round} rounds of pods without an API");
                // It is back and knows nothing of what was; then everything else that an API does.
                for settings in [
                    json!({"goneSeconds": 2.0}),
                    json!({"stallSeconds": 2.0, "cutWatches": true}),
                    json!({"tooManyRequestsSeconds": 2.0, "cutWatches": true}),
                    json!({"latencyMs": 500, "cutWatches": true}),
                ] {
                    faults(world, &settings);
                    std::thread::sleep(Duration::from_secs(2));
                    pods_come_and_go(world, round);
                    round += 1;
                }
                faults(world, &json!({}));
                let now: Vec<String> = (104..120).chain(130..134).map(v4).collect();
                let gone: Vec<String> = (100..104).map(v4).collect();
                eventually("the new nodes and none that left", PATIENCE, || all(&now, &gone));
            });
            on.store(false, Ordering::Relaxed);
            (report, asked.map(|asked| asked.join().unwrap()))
        });
        report.nothing_lost(5_000);
        for (yes, no) in answers {
            assert!(no.is_empty(), "STATUS failed {} times: {:?}", no.len(), no.first());
            assert!(yes > 50, "STATUS was asked {yes} times");
        }
        // What did not change was not touched: neither removed nor written again.
        let heard = monitor.heard();
        for n in (108..120).chain([2]) {
            let (v4, v6) = (v4(n), format!("fd00:10:244:{n:x}::/64"));
            let flaps: Vec<&str> =
                heard.lines().filter(|l| l.contains(&v4) || l.contains(&v6)).collect();
            assert!(flaps.is_empty(), "{flaps:#?}");
        }
        for n in 0..4 {
            assert!(heard.contains(&format!("Deleted {}", v4(100 + n))), "{heard}");
            delete(world, &format!("m{n}"));
        }
        for n in 4..20 {
            delete(world, &format!("n{n}"));
        }
        world.whole();
        world.all_reach_all();
    });
}

#[test]
fn failure_5_the_api_is_away_from_a_tunnel() {
    api_away(Attach::Routed, Road::Vxlan, KubernetesVersion::OLDEST);
}

#[test]
fn failure_5_the_api_is_away_from_bridges() {
    api_away(Attach::Bridge, Road::Direct, KubernetesVersion::NEWEST);
}
