//! What the tests share: a lab in a world of its own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use causeway_agent::client as agent;
use causeway_agent::status::Status;
use causeway_lab::{Binaries, Client, Families, Plugin, Pod, Road, Spec, create_pod, inside};
use causeway_types::Family;
use causeway_types::state::Attach;
use http::Method;

/// For what takes as long as it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// In this time a node is as it should be again, whatever others did.
pub(crate) const REPAIR: Duration = Duration::from_secs(1);

/// A lab that is taken down at the end, also of a failed test.
pub(crate) struct World {
    pub(crate) spec: Spec,
    pub(crate) client: Client,
}

/// The programs under test: those that CAUSEWAY_BIN and CAUSEWAY_CNI_BIN name, or the test build's.
pub(crate) fn binaries() -> Binaries {
    let causeway = std::env::var_os("CAUSEWAY_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_causeway")), PathBuf::from);
    let cni = std::env::var_os("CAUSEWAY_CNI_BIN")
        .map_or_else(|| causeway.with_file_name("causeway-cni"), PathBuf::from);
    Binaries { causeway, cni }
}

/// A dual stack lab with the plugin that goes with an attachment.
pub(crate) fn dual(nodes: u8, attach: Attach, road: Road) -> Spec {
    let plugin = if attach == Attach::Bridge { Plugin::Bridge } else { Plugin::Causeway };
    Spec { nodes, attach, plugin, road, families: Families::Dual, ..Spec::default() }
}

/// Runs a test in a world of its own, on a thread that nothing else lives on.
pub(crate) fn isolated(test: impl FnOnce() + Send) {
    let result = std::thread::scope(|scope| {
        let run = || {
            causeway_lab::isolate().expect("these tests need root");
            test();
        };
        scope.spawn(run).join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The test build of `causeway`, which is linked dynamically, whatever the programs under test are.
pub(crate) fn test_build() -> Binaries {
    Binaries { causeway: env!("CARGO_BIN_EXE_causeway").into(), ..binaries() }
}

/// Runs a test on a lab, and looks for residue afterwards.
pub(crate) fn with(spec: Spec, test: impl FnOnce(&World) + Send) {
    with_programs(spec, &binaries(), test);
}

/// As [`with`], with certain programs.
pub(crate) fn with_programs(spec: Spec, programs: &Binaries, test: impl FnOnce(&World) + Send) {
    isolated(move || {
        let world = World::up(spec, programs);
        test(&world);
        let name = world.spec.name.clone();
        drop(world);
        assert_eq!(causeway_lab::residue(&name), Vec::<String>::new());
    });
}

impl World {
    /// `CAUSEWAY_KUBERNETES` has the API of every lab play that version.
    pub(crate) fn up(mut spec: Spec, programs: &Binaries) -> Self {
        if let Some(version) = std::env::var_os("CAUSEWAY_KUBERNETES") {
            spec.kubernetes = version.to_string_lossy().parse().unwrap();
        }
        causeway_lab::up(&spec, programs, &mut |_| {})
            .unwrap_or_else(|e| panic!("{spec:?}: {e:#}"));
        let client = Client::open(&spec.name).unwrap();
        Self { spec, client }
    }

    /// Makes a pod.
    pub(crate) fn pod(&self, name: &str, node: &str) -> Pod {
        create_pod(&self.client, name, Some(node), &[], PATIENCE)
            .unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Two pods on each worker: `a1`, `b1`, `a2`, ….
    pub(crate) fn pods(&self) -> Vec<Pod> {
        let workers = 1..=self.spec.nodes;
        workers
            .flat_map(|n| ["a", "b"].map(|p| self.pod(&format!("{p}{n}"), &format!("node-{n}"))))
            .collect()
    }

    pub(crate) fn netns(&self, pod: &Pod) -> PathBuf {
        pod.netns(&self.spec.name)
    }

    pub(crate) fn node_ns(&self, node: &str) -> PathBuf {
        self.spec.dirs().netns(node)
    }

    /// A pod's address of a family.
    pub(crate) fn ip(&self, pod: &Pod, family: Family) -> IpAddr {
        pod.ip(family)
            .unwrap_or_else(|| panic!("{} has no {family} address: {:?}", pod.name, pod.ips))
    }

    /// A node's pod subnet.
    pub(crate) fn pod_cidr(&self, node: &str, family: Family) -> ipnet::IpNet {
        let object = self.client.get(&format!("/api/v1/nodes/{node}")).unwrap();
        let all = object["spec"]["podCIDRs"].as_array().unwrap();
        let all = all.iter().map(|c| c.as_str().unwrap().parse::<ipnet::IpNet>().unwrap());
        all.into_iter().find(|c| Family::of(c.addr()) == family).expect("a CIDR of the family")
    }

    /// Runs a shell line in a node's network; it must succeed.
    #[track_caller]
    pub(crate) fn on(&self, node: &str, line: &str) -> String {
        self.sh(&self.spec.dirs().netns(node), line)
    }

    #[track_caller]
    pub(crate) fn sh(&self, ns: &std::path::Path, line: &str) -> String {
        let (ok, text) = self.try_sh(ns, line);
        assert!(ok, "{}: {line}: {text}", ns.display());
        text
    }

    /// Runs a shell line in a namespace: whether it succeeded, and what it said.
    pub(crate) fn try_sh(&self, ns: &std::path::Path, line: &str) -> (bool, String) {
        let output = inside(ns, || Ok(Command::new("sh").args(["-c", line]).output()?)).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Asks a server by HTTP from a namespace.
    pub(crate) fn fetch(&self, ns: &std::path::Path, to: IpAddr) -> anyhow::Result<String> {
        let url = format!("http://{}/", std::net::SocketAddr::new(to, 8080));
        inside(ns, || causeway_lab::fetch(&url))
    }

    /// Sends bytes over TCP to a pod's server, in full segments, and counts what comes back beside
    /// its greeting.
    pub(crate) fn echoes(
        &self,
        ns: &std::path::Path,
        to: IpAddr,
        bytes: usize,
    ) -> anyhow::Result<usize> {
        self.echoes_at(ns, std::net::SocketAddr::new(to, 8080), bytes)
    }

    /// As [`World::echoes`], at any port.
    pub(crate) fn echoes_at(
        &self,
        ns: &std::path::Path,
        to: std::net::SocketAddr,
        bytes: usize,
    ) -> anyhow::Result<usize> {
        use std::io::{Read, Write};
        inside(ns, || {
            let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut writer = stream.try_clone()?;
            let sender = std::thread::spawn(move || {
                writer.write_all(&vec![b'x'; bytes])?;
                writer.shutdown(std::net::Shutdown::Write)
            });
            let mut text = Vec::new();
            stream.read_to_end(&mut text)?;
            sender.join().expect("the sender does not panic")?;
            let greeting = text.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            Ok(text.len() - greeting)
        })
    }

    /// `causeway WORDS` on a node: whether it succeeded, and what it said.
    pub(crate) fn causeway(&self, node: &str, words: &[&str]) -> (bool, String) {
        let causeway = binaries().causeway;
        let output = Command::new(&causeway)
            .args(["lab", "shell", "--name", &self.spec.name, node, "--"])
            .arg(&causeway)
            .args(words)
            .env("CNI_PATH", self.spec.dirs().bin())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// A shell line on a node as its agent sees it, with the node's own files: whether it succeeded,
    /// and what it said.
    pub(crate) fn causeway_shell(&self, node: &str, line: &str) -> (bool, String) {
        let output = Command::new(binaries().causeway)
            .args(["lab", "shell", "--name", &self.spec.name, node, "--", "sh", "-c", line])
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Does an echo request come back?
    pub(crate) fn reaches(&self, ns: &std::path::Path, to: IpAddr, size: usize) -> bool {
        let sent = causeway_lab::ping(ns, to, 1, size, Duration::from_secs(3));
        sent.is_ok_and(|times| times.len() == 1)
    }

    /// What the agent of a node says.
    pub(crate) fn status(&self, node: &str) -> anyhow::Result<Status> {
        agent::status(&self.socket(node))
    }

    pub(crate) fn socket(&self, node: &str) -> PathBuf {
        self.spec.dirs().node(node).join("run-causeway/agent.sock")
    }

    /// Starts, stops, restarts or kills the agent of a node.
    pub(crate) fn agent(&self, node: &str, action: &str) {
        let path = format!("/agents/{node}/{action}");
        self.client.control(Method::POST, &path).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// Waits until all agents know all nodes and have done all they want.
    #[track_caller]
    pub(crate) fn whole(&self) {
        if let Err(error) = causeway_lab::wait_until_whole(&self.spec, PATIENCE) {
            panic!("{error:#}");
        }
    }

    /// Waits until every pod runs: who does not is asked by nobody in [`Self::all_reach_all`], and
    /// the pods of a node that has booted start one after the other.
    #[track_caller]
    pub(crate) fn pods_run(&self) {
        causeway_lab::wait_for_pods(&self.client, PATIENCE, &|| Ok(())).unwrap();
    }

    /// Every pod reaches every pod and the outside, nodes reach pods.
    #[track_caller]
    pub(crate) fn all_reach_all(&self) {
        let all = causeway_lab::matrix(&self.client, &self.spec).unwrap();
        let failures: Vec<String> = all.iter().flat_map(causeway_lab::Matrix::failures).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        let pairs = all.iter().flat_map(|m| &m.cells).flatten().count();
        assert!(pairs > 0, "nobody asked anybody");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.spec.node_names() {
                let log = self.spec.dirs().node(&node).join("agent.log");
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(15).collect();
                eprintln!("--- agent of {node}");
                last.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        if let Err(error) = causeway_lab::down(&self.spec.name) {
            eprintln!("down: {error:#}");
        }
    }
}

/// Waits until something is so; says what it saw last when it does not come.
#[track_caller]
pub(crate) fn eventually(
    what: &str,
    patience: Duration,
    mut so: impl FnMut() -> Result<(), String>,
) {
    // Of a look that takes longer so much counts: on a busy machine the time is others'.
    const LOOK: Duration = Duration::from_millis(30);
    let mut spent = Duration::ZERO;
    loop {
        let look = Instant::now();
        match so() {
            Ok(()) => return,
            Err(why) if spent > patience => panic!("{what}: not within {patience:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        spent += look.elapsed().min(LOOK);
    }
}
