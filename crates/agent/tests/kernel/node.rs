//! A node for tests: namespaces of its own, an underlay, and an engine fed by hand.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use causeway_agent::status::{State, Status};
use causeway_agent::{Engine, Paths};
use causeway_cluster::{Health, Snapshot};
use causeway_desired::input::{ClusterView, Config, NodeInfo};
use causeway_types::{NodeName, names};
use tokio::sync::watch;

/// What is waited for at most.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// The promise: what others break is whole again within this time.
pub(crate) const REPAIR: Duration = Duration::from_secs(1);

/// The container of the node's test of itself.
pub(crate) const SELF_TEST: &str = "causeway-self-test";

/// Which families the cluster uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    V4,
    V6,
    Dual,
}

impl Stack {
    pub(crate) fn v4(self) -> bool {
        self != Stack::V6
    }

    pub(crate) fn v6(self) -> bool {
        self != Stack::V4
    }
}

/// Runs a test for each stack, each time in fresh namespaces.
pub(crate) fn each_stack(test: fn(&mut Node)) {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        with(stack, Config::default(), test);
    }
}

/// Runs a test in fresh namespaces.
pub(crate) fn with(stack: Stack, config: Config, test: impl FnOnce(&mut Node) + Send) {
    std::thread::scope(|scope| {
        let job = || {
            causeway_kernel::netns::unshare_for_test().expect("namespaces; is this root?");
            println!("{stack:?}");
            test(&mut Node::new(stack, config));
        };
        if let Err(panic) = scope.spawn(job).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) struct Node {
    pub(crate) stack: Stack,
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    pub(crate) engine: Option<Engine>,
    pub(crate) sender: watch::Sender<Snapshot>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(stack: Stack, config: Config) -> Self {
        // Either end of a veth pair is an interface like any other to the agent.
        run("ip link add eth0 type veth peer name under0");
        // Its own address of the link is there at once, and no news later.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").expect("a parameter");
        run("ip link set under0 up");
        run("ip link set eth0 up");
        if stack.v4() {
            run("ip addr add 192.168.1.11/24 dev eth0");
            run("ip route add default via 192.168.1.1");
        }
        if stack.v6() {
            run("ip addr add fd00:1::11/64 dev eth0 nodad");
            run("ip -6 route add default via fd00:1::1");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let paths = Paths::below(dir.path());
        let (sender, _) = watch::channel(Snapshot::default());
        Self { stack, config, paths, engine: None, sender, _dir: dir }
    }

    /// One node of the cluster: `node-N`, in the subnet of `node-1` or behind the router.
    pub(crate) fn info(&self, n: u8, near: bool) -> (NodeName, NodeInfo) {
        let subnet = if near { 1 } else { 2 };
        let mut info = NodeInfo::default();
        if self.stack.v4() {
            info.addresses.push(format!("192.168.{subnet}.1{n}").parse().unwrap());
            info.pod_cidrs.push(format!("10.244.{n}.0/24").parse().unwrap());
        }
        if self.stack.v6() {
            info.addresses.push(format!("fd00:{subnet}::1{n}").parse().unwrap());
            info.pod_cidrs.push(format!("fd00:10:244:{n}::/64").parse().unwrap());
        }
        (NodeName::new(format!("node-{n}")).unwrap(), info)
    }

    /// This node, `node-2` in its subnet, and `node-3` behind the router.
    pub(crate) fn three(&self) -> ClusterView {
        let nodes = [self.info(1, true), self.info(2, true), self.info(3, false)];
        ClusterView { nodes: nodes.into_iter().collect(), ..ClusterView::default() }
    }

    /// Starts the loop; what is in the channel counts.
    pub(crate) fn start(&mut self) {
        let engine = Engine::start(
            NodeName::new("node-1").unwrap(),
            self.config.clone(),
            &self.paths,
            self.sender.subscribe(),
            Health::default(),
            false,
        );
        self.engine = Some(engine.expect("the loop starts"));
    }

    pub(crate) fn stop(&mut self) {
        self.engine.take().expect("runs").stop();
    }

    /// Starts with the whole cluster known, and waits until the node is ready.
    pub(crate) fn start_with(&mut self, view: ClusterView) {
        self.sender.send_replace(Snapshot::synced_with(view));
        self.start();
        self.until_ready();
    }

    /// Waits until the node is ready and nothing of its test of itself is left.
    pub(crate) fn until_ready(&self) {
        eventually("ready", DEADLINE, || {
            self.status().ready.then_some(()).ok_or_else(|| self.wrong())
        });
        eventually("the self-test is over", DEADLINE, || {
            let candidate = self.paths.node_file.with_file_name("self-test.json");
            let pod = self.status().objects.iter().any(|o| o.owner.contains(SELF_TEST));
            let guard = names::host_veth(SELF_TEST, "eth0");
            let guarded = run("nft list chains netdev").contains(guard.as_str());
            let recorded = !self.records_of(SELF_TEST).is_empty();
            let over = !candidate.exists() && !pod && !guarded && !recorded;
            over.then_some(()).ok_or_else(|| self.wrong())
        });
    }

    /// Files beside the leases and the attachments that have a container's ID in their name.
    pub(crate) fn records_of(&self, container: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.paths.attachments) else { return Vec::new() };
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains(container)).collect()
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("runs")
    }

    pub(crate) fn status(&self) -> Status {
        self.engine().status()
    }

    /// All that is not as it should be, for messages.
    pub(crate) fn wrong(&self) -> String {
        causeway_agent::cli::status_table(&self.status(), false)
    }

    /// Every object is ok and nothing is left to do.
    pub(crate) fn assert_whole(&self) {
        let status = self.status();
        let ok = status.objects.iter().all(|o| o.state == State::Ok) && !status.objects.is_empty();
        assert!(ok, "{}", self.wrong());
        let plan = self.engine().plan().expect("a plan");
        assert_eq!(plan.lines, Vec::<String>::new());
    }

    /// The text that shows a route to a pod subnet of `node-N`, for each family in use.
    pub(crate) fn routes_to(&self, n: u8) -> Vec<String> {
        let mut lines = Vec::new();
        if self.stack.v4() {
            lines.push(run(&format!("ip -4 route show 10.244.{n}.0/24")));
        }
        if self.stack.v6() {
            lines.push(run(&format!("ip -6 route show fd00:10:244:{n}::/64")));
        }
        lines.into_iter().map(|l| l.trim().to_owned()).collect()
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.paths.conflist()
    }
}

/// Runs a program in the calling thread's namespaces.
pub(crate) fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let out = Command::new(program).args(words).output().map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("{line}: {}", String::from_utf8_lossy(&out.stderr).trim()))
    }
}

/// Of a look that takes longer so much counts: on a busy machine the time is others'.
const LOOK: Duration = Duration::from_millis(20);

/// Polls until the function succeeds; prints and answers how long that took.
pub(crate) fn eventually<T>(
    what: &str,
    within: Duration,
    mut f: impl FnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    let mut spent = Duration::ZERO;
    loop {
        let look = Instant::now();
        match f() {
            Ok(value) => {
                println!("{what}: {:?}", began.elapsed());
                return value;
            }
            Err(why) if spent > within => panic!("{what}: not within {within:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        spent += look.elapsed().min(LOOK);
    }
}

/// Waits until a command's output is as before.
pub(crate) fn comes_back(what: &str, command: &str, before: &str) {
    eventually(what, REPAIR, || {
        let now = try_run(command)?;
        if now == before { Ok(()) } else { Err(format!("{command}\n{now}instead of\n{before}")) }
    });
}
