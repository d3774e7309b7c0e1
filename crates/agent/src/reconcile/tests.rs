//! Rounds against the simulated kernel of crate `plan`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_cluster::Snapshot;
use causeway_desired::input::{ClusterView, Config, NodeInfo, Path};
use causeway_model::{Addr, Key, Link, LinkKind, Object, Observed, Route, RouteKind, RouteScope};
use causeway_plan::Op;
use causeway_plan::sim::SimKernel;
use causeway_types::{Mtu, names};
use rustix::event::{EventfdFlags, eventfd};

mod claims;
mod laws;
mod scenarios;
mod waits;
mod world;

use super::Core;
use crate::metrics::Metrics;
use crate::options::Paths;
use crate::port::{Look, Port, Stale};
use crate::self_test::SelfTest;
use crate::status::{State, Status};

/// The simulated kernel, which here can also refuse to show itself.
struct SimPort {
    kernel: SimKernel,
    parameters: BTreeMap<String, String>,
    changed: Stale,
    blind: bool,
    /// Shown to the next look alone; then it has changed.
    passing: Option<Object>,
    looks: usize,
    fd: OwnedFd,
}

impl Port for SimPort {
    fn observe(&mut self, look: &Look) -> Result<Observed, String> {
        self.looks += 1;
        if self.blind {
            return Err("no buffer space available".to_owned());
        }
        let mut seen = self.kernel.state.clone();
        seen.retain(|key, object| {
            look.kinds.covers(key)
                && match object {
                    Object::Sysctl(s) => look.sysctls.contains(&s.path),
                    Object::Table(t) => look.tables.contains(&causeway_plan::TableId::of(t)),
                    _ => true,
                }
        });
        if let Some(object) = self.passing.take() {
            seen.insert(object);
            self.changed = Stale::ALL;
        }
        Ok(seen)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), String>> {
        ops.iter().map(|op| self.kernel.apply(op).map_err(|e| format!("{e:?}"))).collect()
    }

    fn path(&mut self, to: IpAddr) -> Result<Option<Path>, String> {
        let near: ipnet::IpNet = "192.168.1.0/24".parse().unwrap();
        let dev = "eth0".parse().unwrap();
        Ok(Some(Path { dev, on_link: near.contains(&to), mtu: Mtu::new(1500).unwrap() }))
    }

    fn parameter(&mut self, path: &str) -> Option<String> {
        self.parameters.get(path).cloned()
    }

    fn changes(&mut self) -> Stale {
        std::mem::take(&mut self.changed)
    }

    fn changes_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn eth0() -> Vec<Object> {
    let dev: causeway_types::IfName = "eth0".parse().unwrap();
    let mut link = Link::up(dev.clone(), LinkKind::Other(String::new()));
    link.mtu = Some(Mtu::new(1500).unwrap());
    let addr = "192.168.1.11/24".parse().unwrap();
    let connected = Route {
        dst: "192.168.1.0/24".parse().unwrap(),
        table: Route::MAIN,
        metric: 0,
        kind: RouteKind::Unicast,
        dev: Some(dev.clone()),
        via: None,
        onlink: false,
        src: None,
        scope: RouteScope::Link,
        protocol: 2,
        mtu: None,
        advmss: None,
    };
    vec![Object::Link(link), Object::Addr(Addr::new(dev, addr)), Object::Route(connected)]
}

struct Test {
    core: Core<SimPort>,
    now: Instant,
    paths: Paths,
    _dir: tempfile::TempDir,
}

impl Test {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        Self {
            core: core(&paths, eth0().into_iter().collect()),
            now: Instant::now(),
            paths,
            _dir: dir,
        }
    }

    /// A new agent on the same kernel and files.
    fn restart(&mut self) {
        let state = self.core.port.kernel.state.clone();
        self.core = core(&self.paths, state);
    }

    fn view(&mut self, nodes: &[u8]) {
        self.core.set_snapshot(Snapshot::synced_with(view(nodes)));
    }

    /// A round, an hour after the last one: every pause is over.
    fn round(&mut self) {
        self.now += Duration::from_secs(3600);
        self.core.mark_stale(Stale::ALL);
        self.core.reconcile(self.now);
    }

    fn status(&self) -> Status {
        self.core.report().status(&causeway_cluster::Health::default(), 0, 0)
    }

    fn has(&self, key: &str) -> bool {
        self.core.port.kernel.state.iter().any(|(k, _)| k.to_string() == key)
    }

    fn assert_whole(&self) {
        let status = self.status();
        let table = crate::cli::status_table(&status, false);
        assert!(status.ready, "{table}");
        assert!(status.objects.iter().all(|o| o.state == State::Ok), "{table}");
    }

    fn owned(&self) -> String {
        std::fs::read_to_string(&self.paths.owned).unwrap_or_default()
    }
}

fn core(paths: &Paths, state: Observed) -> Core<SimPort> {
    let port = SimPort {
        kernel: SimKernel::holding(state),
        parameters: BTreeMap::new(),
        changed: Stale::NONE,
        blind: false,
        passing: None,
        looks: 0,
        fd: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
    };
    let me = "node-1".parse().unwrap();
    let metrics = Arc::new(Metrics::default());
    let mut core = Core::new(port, me, Config::default(), paths, "boot".into(), metrics);
    // There is no node whose pods could be reached.
    core.self_test = SelfTest::passed();
    core
}

/// Nodes by number; 3 and above are behind a router.
fn view(nodes: &[u8]) -> ClusterView {
    let node = |n: u8| {
        let subnet = if n < 3 { 1 } else { 2 };
        let info = NodeInfo {
            addresses: vec![format!("192.168.{subnet}.1{n}").parse().unwrap()],
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse().unwrap()],
            ..NodeInfo::default()
        };
        (format!("node-{n}").parse().unwrap(), info)
    };
    ClusterView { nodes: nodes.iter().map(|n| node(*n)).collect(), ..ClusterView::default() }
}

#[test]
fn one_round_makes_a_node_whole_and_the_next_does_nothing() {
    let mut t = Test::new();
    t.round();
    assert_eq!(t.core.port.kernel.done, 0, "nothing is known yet");
    t.view(&[1, 2, 3]);
    t.round();
    t.assert_whole();
    assert!(t.has("route 10.244.2.0/24") && t.has("link cw-vxlan"));
    assert!(t.paths.conflist().exists() && t.paths.node_file.exists());
    let (done, looks) = (t.core.port.kernel.done, t.core.port.looks);
    t.core.reconcile(t.now);
    assert_eq!(t.core.port.looks, looks, "nothing changed, nothing is looked at");
    t.round();
    assert_eq!(t.core.port.kernel.done, done);
    assert_eq!(t.core.metrics.repairs(), 0);
}

#[test]
fn a_fault_at_any_operation_is_shown_and_made_good() {
    let mut t = Test::new();
    t.view(&[1, 2, 3]);
    t.round();
    let count = t.core.port.kernel.done;
    assert!(count >= 9, "{count} operations");
    for fail_at in 0..count {
        let mut t = Test::new();
        t.core.port.kernel.fail_at = Some(fail_at);
        t.view(&[1, 2, 3]);
        t.round();
        let failed: Vec<_> =
            t.status().objects.into_iter().filter(|o| o.state == State::Failed).collect();
        assert!(!failed.is_empty(), "operation {fail_at}");
        for object in failed {
            assert!(object.error.is_some() && object.since.is_some() && object.retries == 1);
        }
        let wake = t.core.next_wake().expect("it is tried again");
        assert!(wake <= t.now + Duration::from_millis(100));
        // At its own time, without any event.
        for _ in 0..10 {
            t.now += Duration::from_secs(60);
            t.core.reconcile(t.now);
        }
        t.assert_whole();
    }
}

/// Its pod starts while the loop looks at the node.
#[test]
fn a_plugin_is_answered_before_a_round() {
    let mut t = Test::new();
    let name = "c1-eth0.json";
    let record = serde_json::json!({
        "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/x", "network": "pod-network",
        "attach": "routed", "pending": false, "mtu": 1400, "bootId": "boot",
        "hostIfname": causeway_types::names::host_veth("c1", "eth0"),
        "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02",
        "addresses": ["10.244.1.5/32"], "gateways": ["169.254.1.1"],
    });
    std::fs::create_dir_all(&t.paths.attachments).unwrap();
    let file = t.paths.attachments.join(name);
    std::fs::write(&file, record.to_string()).unwrap();
    assert!(!t.core.knows_at_once(name), "the cluster is not known");
    t.view(&[1, 2]);
    assert!(!t.core.knows_at_once(name), "the node is not ready");
    std::fs::remove_file(&file).unwrap();
    t.round();
    t.assert_whole();
    assert!(!t.core.knows_at_once(name), "there is no record");
    std::fs::write(&file, record.to_string()).unwrap();
    assert!(t.core.knows_at_once(name));
    assert_eq!(t.core.attachment_answer(name), super::Answer::Done);
    for elsewhere in ["../attachments/c1-eth0.json", ".c1-eth0.json", "c2-eth0.json"] {
        assert!(!t.core.knows_at_once(elsewhere), "{elsewhere}");
    }
    // The next round knows it, too.
    t.round();
    assert_eq!(t.core.report().attachments, 1);
}

#[test]
fn a_restart_adopts_with_and_without_the_record() {
    for lost in [false, true] {
        let mut t = Test::new();
        t.view(&[1, 2, 3]);
        t.round();
        let before = t.owned();
        if lost {
            std::fs::remove_file(&t.paths.owned).unwrap();
        }
        t.restart();
        t.view(&[1, 2, 3]);
        t.round();
        t.assert_whole();
        assert_eq!(t.core.port.kernel.done, 0, "nothing is written");
        assert_eq!(t.owned(), before);
        t.view(&[1]);
        t.round();
        assert!(!t.has("route 10.244.2.0/24") && !t.has("link cw-vxlan"));
        t.assert_whole();
        assert!(!t.owned().contains("cw-vxlan"), "{}", t.owned());
    }
}

#[test]
fn nothing_is_removed_before_every_input_is_in_sync() {
    let mut t = Test::new();
    t.view(&[1, 2, 3]);
    t.round();
    t.restart();
    let mut snapshot = Snapshot::synced_with(view(&[1]));
    snapshot.pods_synced = false;
    t.core.set_snapshot(snapshot.clone());
    t.round();
    assert!(t.has("route 10.244.2.0/24") && t.has("link cw-vxlan"));
    snapshot.pods_synced = true;
    t.core.set_snapshot(snapshot);
    t.round();
    assert!(!t.has("route 10.244.2.0/24") && !t.has("link cw-vxlan"));
}

#[test]
fn the_last_view_serves_until_the_api_answers() {
    let mut t = Test::new();
    t.view(&[1, 2, 3]);
    t.round();
    t.core = core(&t.paths, eth0().into_iter().collect());
    t.core.reconcile(Instant::now());
    assert_eq!(t.core.port.kernel.done, 0, "the API gets a second");
    // Though nothing happens meanwhile.
    let wake = t.core.next_wake().expect("it wakes by itself");
    std::thread::sleep(wake.saturating_duration_since(Instant::now()));
    let now = Instant::now();
    assert!(t.core.next_wake().is_some_and(|at| at <= now), "it is due");
    t.core.reconcile(now);
    assert_ne!(t.core.port.kernel.done, 0);
    t.round();
    t.assert_whole();
    let status = t.status();
    assert_eq!((status.inputs.view.as_str(), status.inputs.synced), ("last view", false));
}

#[test]
fn a_kernel_that_does_not_show_itself_is_no_empty_one() {
    let mut t = Test::new();
    t.view(&[1, 2]);
    t.round();
    let done = t.core.port.kernel.done;
    t.core.port.blind = true;
    t.view(&[1]);
    t.round();
    assert_eq!(t.core.port.kernel.done, done);
    assert!(!t.status().ready && t.core.next_wake().is_some());
    assert!(t.status().problems.iter().any(|p| p.message.contains("no buffer space")));
    t.core.port.blind = false;
    t.now += Duration::from_secs(60);
    t.core.reconcile(t.now);
    t.assert_whole();
    assert!(!t.has("route 10.244.2.0/24"));
}

/// The record is written before the object is made, and an object that cannot be recorded is not
/// made.
#[test]
fn intent_comes_first() {
    let mut t = Test::new();
    std::fs::create_dir(&t.paths.owned).unwrap();
    t.view(&[1, 2]);
    t.round();
    assert_eq!(t.core.port.kernel.done, 0);
    assert!(t.status().problems.iter().any(|p| p.message.contains("owned.json")));
    std::fs::remove_dir(&t.paths.owned).unwrap();
    t.round();
    t.assert_whole();
}

#[test]
fn what_others_break_is_counted_as_repaired() {
    let mut t = Test::new();
    t.view(&[1, 2, 3]);
    t.round();
    let key = Key::Route { table: 254, dst: "10.244.2.0/24".parse().unwrap(), metric: 0 };
    t.core.port.kernel.state.remove(&key);
    t.round();
    t.assert_whole();
    assert_eq!(t.core.metrics.repairs(), 1);
    // A peer that leaves and comes back is none of that.
    t.view(&[1, 3]);
    t.round();
    t.view(&[1, 2, 3]);
    t.round();
    assert_eq!(t.core.metrics.repairs(), 1);
}

#[test]
fn marked_strangers_are_reported_and_stay() {
    let mut t = Test::new();
    let Some(Object::Route(mut route)) = eth0().pop() else { panic!("a route") };
    route.dst = "203.0.113.0/24".parse().unwrap();
    route.protocol = names::ROUTE_PROTOCOL;
    t.core.port.kernel.state.insert(Object::Route(route));
    t.view(&[1, 2]);
    t.round();
    t.assert_whole();
    assert_eq!(t.status().strangers, ["route 203.0.113.0/24"]);
    assert!(t.has("route 203.0.113.0/24"));
}

/// With forwarding on the kernel stops listening to routers unless accept_ra is 2: an interface
/// that lives by them gets that, and keeps it when the agent finds its own 2 later.
#[test]
fn an_interface_with_routes_from_routers_keeps_listening() {
    let mut t = Test::new();
    let mut me = view(&[1]);
    for info in me.nodes.values_mut() {
        info.addresses.push("fd00:1::11".parse().unwrap());
        info.pod_cidrs.push("fd00:10:244:1::/64".parse().unwrap());
    }
    let advertised = Route {
        dst: "::/0".parse().unwrap(),
        table: Route::MAIN,
        metric: 1024,
        kind: RouteKind::Unicast,
        dev: Some("eth0".parse().unwrap()),
        via: Some("fe80::1".parse().unwrap()),
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: 9,
        mtu: None,
        advmss: None,
    };
    t.core.port.kernel.state.insert(Object::Route(advertised));
    for value in ["1", "2"] {
        t.core.port.parameters.insert("net/ipv6/conf/eth0/accept_ra".into(), value.into());
        t.core.audit();
        t.core.set_snapshot(Snapshot::synced_with(me.clone()));
        t.round();
        t.assert_whole();
        assert!(t.has("sysctl net/ipv6/conf/eth0/accept_ra"), "{value}");
    }
    // Somebody wants it off altogether: that is respected.
    t.core.port.parameters.insert("net/ipv6/conf/eth0/accept_ra".into(), "0".into());
    t.core.audit();
    t.round();
    assert!(t.status().objects.iter().all(|o| !o.key.contains("accept_ra")));
}

/// The first advertisement may come after forwarding was turned on. Where others have turned it on
/// before us, an uplink that does not listen is their decision.
#[test]
fn an_uplink_goes_on_listening_for_its_first_router() {
    for (forwarding, listens) in [("0", true), ("1", false)] {
        let mut t = Test::new();
        let mut me = view(&[1]);
        for info in me.nodes.values_mut() {
            info.addresses.push("fd00:1::11".parse().unwrap());
            info.pod_cidrs.push("fd00:10:244:1::/64".parse().unwrap());
        }
        let uplink = Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            table: Route::MAIN,
            metric: 0,
            kind: RouteKind::Unicast,
            dev: Some("eth0".parse().unwrap()),
            via: Some("192.168.1.1".parse().unwrap()),
            onlink: false,
            src: None,
            scope: RouteScope::Universe,
            protocol: 4,
            mtu: None,
            advmss: None,
        };
        t.core.port.kernel.state.insert(Object::Route(uplink));
        t.core.port.parameters.insert("net/ipv6/conf/all/forwarding".into(), forwarding.into());
        t.core.port.parameters.insert("net/ipv6/conf/eth0/accept_ra".into(), "1".into());
        t.core.audit();
        t.core.set_snapshot(Snapshot::synced_with(me));
        t.round();
        t.assert_whole();
        assert_eq!(
            t.has("sysctl net/ipv6/conf/eth0/accept_ra"),
            listens,
            "forwarding {forwarding}"
        );
    }
}
