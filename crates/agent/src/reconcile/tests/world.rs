//! A node whose every operation can go wrong, and what others have on it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use causeway_desired::pod::{PodContext, host_objects};
use causeway_model::nft::{NftFamily, NftTable};
use causeway_plan::sim::Refusal;
use causeway_plan::withdraw;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, IfName, Mac};
use serde_json::json;

use super::laws::{closed, stands_on};
use super::*;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    /// The operation of a number is refused, once.
    Once(usize),
    /// Every operation on the same object as that of the number is refused, until it is let go.
    Always(usize),
    /// The agent dies after the operation of the number.
    Crash(usize),
}

struct Died;

/// The simulated kernel with faults, looked at after each operation.
pub(super) struct Watched {
    pub(super) sim: SimPort,
    pub(super) fault: Fault,
    /// The object whose operations are refused.
    refused: Option<Key>,
    /// What was asked for since the start of the scenario, and how it ended.
    pub(super) log: Vec<(Op, Result<(), Refusal>)>,
    pub(super) wrong: Vec<String>,
}

impl Watched {
    fn one(&mut self, op: &Op) -> Result<(), Refusal> {
        let number = self.log.len();
        if matches!(self.fault, Fault::Once(at) | Fault::Always(at) if at == number) {
            self.refused = Some(op.key());
        }
        let refuse = match self.fault {
            Fault::Once(at) => at == number,
            Fault::Always(_) => self.refused == Some(op.key()),
            Fault::None | Fault::Crash(_) => false,
        };
        let end = if refuse { Err(Refusal::Injected) } else { self.sim.kernel.apply(op) };
        self.log.push((op.clone(), end));
        if let Err(open) = closed(&self.sim.kernel.state) {
            self.wrong.push(format!("{open} after {op}"));
        }
        if self.fault == Fault::Crash(number) {
            resume_unwind(Box::new(Died));
        }
        end
    }
}

impl Port for Watched {
    fn observe(&mut self, look: &Look) -> Result<Observed, String> {
        self.sim.observe(look)
    }
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), String>> {
        ops.iter().map(|op| self.one(op).map_err(|e| format!("{e:?}"))).collect()
    }
    /// Nodes 1 to 3 are neighbours, others are behind a router.
    fn path(&mut self, to: IpAddr) -> Result<Option<Path>, String> {
        let near: [ipnet::IpNet; 2] =
            ["192.168.1.0/24", "fd00:192:168:1::/64"].map(|n| n.parse().unwrap());
        let on_link = near.iter().any(|n| n.contains(&to));
        Ok(Some(Path { dev: "eth0".parse().unwrap(), on_link, mtu: Mtu::new(1500).unwrap() }))
    }
    fn parameter(&mut self, _: &str) -> Option<String> {
        None
    }
    fn changes(&mut self) -> Stale {
        self.sim.changes()
    }
    fn changes_fd(&self) -> BorrowedFd<'_> {
        self.sim.changes_fd()
    }
}

/// What others have on the node. None of it may change.
pub(super) fn others() -> Vec<Object> {
    let mut all = eth0();
    let dev: IfName = "eth0".parse().unwrap();
    let Some(Object::Route(connected)) = all.last().cloned() else { panic!("a route") };
    let route = |dst: &str, protocol| {
        let dst: Cidr = dst.parse().unwrap();
        let metric = Route::default_metric(dst.family());
        Object::Route(Route { dst, metric, protocol, ..connected.clone() })
    };
    let addr =
        |dev: &IfName, addr: &str| Object::Addr(Addr::new(dev.clone(), addr.parse().unwrap()));
    all.push(addr(&dev, "fd00:192:168:1::1/64"));
    all.push(route("fd00:192:168:1::/64", 2));
    // Static, and one that carries our number and is not ours.
    all.push(route("203.0.113.0/24", 4));
    all.push(route("198.51.100.0/24", names::ROUTE_PROTOCOL));
    let bridge: IfName = "docker0".parse().unwrap();
    all.push(Object::Link(Link::up(bridge.clone(), LinkKind::Bridge)));
    all.push(addr(&bridge, "172.17.0.1/16"));
    all.push(Object::Table(NftTable::new(NftFamily::Inet, "kube-proxy", false)));
    all
}

/// What a scenario begins or ends with.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) families: Vec<Family>,
    pub(super) config: Config,
    /// Number, variant of the address, variant of the subnet.
    pub(super) peers: Vec<(u8, u8, u8)>,
    pub(super) pods: Vec<u8>,
    /// Every node has an extra range of each family, and claims it.
    pub(super) ranges: bool,
}

impl Setup {
    pub(super) fn view(&self) -> ClusterView {
        let own = (1, 0, 0);
        let node = |&(n, address, subnet): &(u8, u8, u8)| {
            let link = if n < 4 { 1 } else { 2 };
            let host = if n == 1 { 1 } else { n + 20 * address };
            let net = n + 20 * subnet;
            let each = |f: &Family| match f {
                Family::V4 => {
                    (format!("192.168.{link}.{}", host + 10), format!("10.244.{net}.0/24"))
                }
                Family::V6 => {
                    (format!("fd00:192:168:{link}::{host}"), format!("fd00:10:244:{net}::/64"))
                }
            };
            let both: Vec<(String, String)> = self.families.iter().map(each).collect();
            let range = |f: &Family| match f {
                Family::V4 => format!("10.250.{net}.0/28"),
                Family::V6 => format!("fd00:250:{net}::/120"),
            };
            let ranges = self.families.iter().filter(|_| self.ranges);
            let ranges: Vec<_> = ranges.map(|f| range(f).parse().unwrap()).collect();
            let info = NodeInfo {
                extra_cidrs: ranges.clone(),
                claimed_cidrs: ranges,
                addresses: both.iter().map(|(a, _)| a.parse().unwrap()).collect(),
                pod_cidrs: both.iter().map(|(_, c)| c.parse().unwrap()).collect(),
                ..NodeInfo::default()
            };
            (format!("node-{n}").parse().unwrap(), info)
        };
        let nodes = self.peers.iter().chain([&own]).map(node).collect();
        ClusterView { nodes, ..ClusterView::default() }
    }

    fn record(&self, n: u8) -> AttachmentRecord {
        let routed = self.config.attach == Attach::Routed;
        let each = |f: &Family| match (f, routed) {
            (Family::V4, true) => (format!("10.244.1.{n}/32"), "169.254.1.1"),
            (Family::V4, false) => (format!("10.244.1.{n}/24"), "10.244.1.1"),
            (Family::V6, true) => (format!("fd00:10:244:1::{n}/128"), "fe80::1"),
            (Family::V6, false) => (format!("fd00:10:244:1::{n}/64"), "fd00:10:244:1::1"),
        };
        let (addresses, gateways): (Vec<_>, Vec<_>) = self.families.iter().map(each).unzip();
        let bridge = (!routed).then(|| self.config.bridge.clone());
        let container = format!("c{n}");
        let json = json!({"containerId": container, "ifname": "eth0", "netns": "/run/netns/x",
            "network": "pod-network", "attach": self.config.attach, "pending": false,
            "hostIfname": names::host_veth(&container, "eth0"), "mac": Mac::derived(&container),
            "hostMac": Mac::derived(&format!("{container}/host")), "mtu": 1400,
            "addresses": addresses, "gateways": gateways, "bridge": bridge, "bootId": "boot"});
        serde_json::from_value(json).unwrap()
    }
}

const POD: PodContext =
    PodContext { served: true, hairpin: false, route_protocol: names::ROUTE_PROTOCOL };

pub(super) struct Node {
    pub(super) core: Core<Watched>,
    now: Instant,
    pub(super) paths: Paths,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(super) fn new(setup: &Setup) -> Self {
        let shm = std::path::Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(place).unwrap();
        let paths = Paths::below(dir.path());
        std::fs::create_dir(&paths.attachments).unwrap();
        let core = watched(&paths, &setup.config, others().into_iter().collect());
        let mut node = Self { core, now: Instant::now(), paths, _dir: dir };
        node.change(&Setup { pods: Vec::new(), ..setup.clone() }, setup);
        node.core.set_snapshot(Snapshot::synced_with(setup.view()));
        node.settle();
        node
    }

    pub(super) fn kernel(&mut self) -> &mut SimKernel {
        &mut self.core.port.sim.kernel
    }

    /// What the plugins and the administrator do between two setups. The agent takes a new
    /// configuration by a restart.
    pub(super) fn change(&mut self, old: &Setup, new: &Setup) {
        let file = |record: &AttachmentRecord| {
            self.paths.attachments.join(AttachmentRecord::file_name(&record.container_id, "eth0"))
        };
        for n in new.pods.iter().filter(|n| !old.pods.contains(n)) {
            // Killed after it made the interface: the agent makes the rest.
            let record = new.record(*n);
            std::fs::write(file(&record), serde_json::to_vec(&record).unwrap()).unwrap();
            let kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
            let mut link = Link::up(record.host_ifname.clone(), kind);
            link.mtu = Some(record.mtu);
            link.mac = Some(record.host_mac);
            self.core.port.sim.kernel.state.insert(Object::Link(link));
        }
        for n in old.pods.iter().filter(|n| !new.pods.contains(n)) {
            let record = old.record(*n);
            std::fs::remove_file(file(&record)).unwrap();
            self.core.port.sim.kernel.apply_all(&withdraw(&host_objects(&record, &POD)));
        }
        if old.config != new.config {
            self.restart(new);
        }
    }

    pub(super) fn restart(&mut self, setup: &Setup) {
        let state = self.kernel().state.clone();
        let old = std::mem::replace(&mut self.core, watched(&self.paths, &setup.config, state));
        self.core.port.log = old.port.log;
        self.core.port.wrong = old.port.wrong;
    }

    /// One round with every pause over; `false` when the agent died in it.
    pub(super) fn round(&mut self) -> bool {
        self.now += Duration::from_secs(60);
        self.core.mark_stale(Stale::ALL);
        let (core, now) = (&mut self.core, self.now);
        match catch_unwind(AssertUnwindSafe(|| core.reconcile(now))) {
            Ok(()) => true,
            Err(why) if why.is::<Died>() => false,
            Err(why) => resume_unwind(why),
        }
    }

    /// Rounds until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..6 {
            self.round();
        }
        let status = self.core.report().status(&causeway_cluster::Health::default(), 0, 0);
        let table = crate::cli::status_table(&status, false);
        assert!(status.ready, "{table}");
        assert!(status.objects.iter().all(|o| o.state == State::Ok), "{table}");
        assert_eq!(self.core.port.wrong, Vec::<String>::new());
        let before = self.core.port.log.len();
        assert!(self.round());
        assert_eq!(self.core.port.log.len(), before, "nothing more to do");
    }

    pub(super) fn owned(&self) -> String {
        std::fs::read_to_string(&self.paths.owned).unwrap_or_default()
    }

    /// What others have is as it was; of ours nothing is there but what is wanted.
    pub(super) fn check(&mut self) {
        for object in others() {
            let have = self.kernel().state.get(&object.key()).cloned();
            assert_eq!(have.as_ref(), Some(&object), "of others");
        }
        let desired = self.core.desired.clone();
        let foreign: BTreeSet<Key> = others().iter().map(Object::key).collect();
        for (key, _) in self.kernel().state.clone().iter() {
            let shared =
                matches!(key, Key::Sysctl(_) | Key::Table { family: NftFamily::Netdev, .. });
            assert!(
                foreign.contains(key) || shared || desired.get(key).is_some(),
                "{key} is left over"
            );
        }
    }

    /// All that does not stand on the refused object is done.
    pub(super) fn check_unrelated(&mut self) {
        let refused = self.core.port.refused.clone().expect("refused");
        let desired = self.core.desired.clone();
        let state = self.kernel().state.clone();
        let mut away: Vec<Key> = vec![refused.clone()];
        // What stands on what stands on it.
        for _ in 0..4 {
            let more = desired.iter().filter(|(key, entry)| {
                !away.contains(key) && away.iter().any(|on| stands_on(&entry.object, on))
            });
            let more: Vec<Key> = more.map(|(key, _)| key.clone()).collect();
            away.extend(more);
        }
        for (key, entry) in desired.iter().filter(|(key, _)| !away.contains(key)) {
            let have = state.get(key);
            let done = have.is_some_and(|have| entry.object.satisfied_by(have));
            assert!(done, "{key} waits for {refused}: {have:?}");
        }
    }
}

fn watched(paths: &Paths, config: &Config, state: Observed) -> Core<Watched> {
    let mut sim = core(paths, state).port;
    // Kernels of both kinds.
    sim.kernel.keeps_ingress_chains = config.attach == Attach::Bridge;
    let port =
        Watched { sim, fault: Fault::None, refused: None, log: Vec::new(), wrong: Vec::new() };
    let me = "node-1".parse().unwrap();
    let metrics = Arc::new(Metrics::default());
    let mut core = Core::new(port, me, config.clone(), paths, "boot".into(), metrics);
    // There is no node whose pods could be reached.
    core.self_test = SelfTest::passed();
    core
}
