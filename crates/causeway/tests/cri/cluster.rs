//! Workers with containerd and the agent's container, in a lab with an API.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use causeway_cri::containerd::{self, Images};
use causeway_cri::{Agent, Client, Groups, Machine, Manifest, Pod};
use causeway_lab::{Road, Spec, inside};
use causeway_types::state::Attach;

use crate::world::{PATIENCE, World, binaries, dual, eventually};

/// A worker.
pub(crate) struct Worker {
    pub(crate) agent: Agent,
    pub(crate) client: Client,
    pub(crate) machine: Machine,
    /// What it held before its first pod.
    pub(crate) before: String,
}

/// In the order of their end.
pub(crate) struct Cluster {
    pub(crate) workers: Vec<Worker>,
    pub(crate) manifest: Manifest,
    pub(crate) groups: Groups,
    pub(crate) world: World,
}

impl Cluster {
    /// Brings workers up, and looks on the way at what each says of itself.
    pub(crate) fn up(name: &str, nodes: u8, attach: Attach) -> Self {
        let spec = Spec { name: name.into(), bare: true, ..dual(nodes, attach, Road::Vxlan) };
        let world = World::up(spec, &binaries());
        let attach = match attach {
            Attach::Routed => "attach: routed",
            Attach::Bridge => "attach: bridge",
        };
        let (groups, manifest) = (Groups::new(name), Manifest::load(&[attach]).unwrap());
        images(&manifest).put().unwrap();
        let names: Vec<String> = (1..=nodes).map(|n| format!("node-{n}")).collect();
        let workers = names.iter().map(|name| worker(&world, name, &groups, &manifest));
        let workers = workers.collect();
        let cluster = Self { workers, manifest, groups, world };
        for worker in &cluster.workers {
            eventually("its agent knows all and did all", PATIENCE, || {
                let status =
                    cluster.world.status(worker.machine.name()).map_err(|e| e.to_string())?;
                let open: Vec<_> =
                    status.objects.iter().filter(|o| o.state.word() != "ok").collect();
                match status.inputs.nodes.objects == usize::from(nodes) + 1 && open.is_empty() {
                    true if status.problems.is_empty() => Ok(()),
                    _ => Err(format!("{open:?} {:?} {:?}", status.inputs, status.problems)),
                }
            });
        }
        let mut cluster = cluster;
        for worker in &mut cluster.workers {
            eventually("nothing of the agent's self-test is left", PATIENCE, || {
                worker.before = worker.holds();
                let left = worker.before.lines().find(|line| line.contains("self-test"));
                left.map_or(Ok(()), |left| Err(left.to_owned()))
            });
        }
        cluster
    }

    /// A pod whose control groups go with the test.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        Pod::new(name, self.groups.name())
    }
}

/// The programs in them are those that are delivered.
fn images(manifest: &Manifest) -> &'static Images {
    static MADE: OnceLock<Images> = OnceLock::new();
    MADE.get_or_init(|| {
        let dist = match std::env::var_os("CAUSEWAY_BIN").map(PathBuf::from) {
            Some(program) => program.parent().unwrap().to_owned(),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist"),
        };
        Images::make(&dist, manifest.image().unwrap()).unwrap()
    })
}

/// A machine with containerd, which has no network for pods before the agent is ready, and none later
/// than that.
fn worker(world: &World, name: &str, groups: &Groups, manifest: &Manifest) -> Worker {
    let machine = Machine::boot(&world.spec, name).unwrap();
    let client = containerd::start(&machine).unwrap();
    let (ready, why) = containerd::network(&client).unwrap();
    assert!(!ready && why.contains("cni plugin not initialized"), "{why}");
    let refused = client.run_sandbox(Pod::new("early", groups.name()).sandbox()).unwrap_err();
    assert!(format!("{refused:#}").contains("cni plugin not initialized"), "{refused:#}");
    assert_eq!(condition(world, name), None, "nobody has said anything of the network");
    let started = Agent::start(&machine, &client, &world.spec, manifest, groups.name());
    let (agent, _) = started.unwrap();
    eventually("the runtime has a network", PATIENCE, || {
        let (ready, why) = containerd::network(&client).unwrap();
        let can = agent.probe(&machine).is_ok();
        assert!(!ready || can, "pods would be made before the agent is ready");
        if ready { Ok(()) } else { Err(format!("{why}; {}", agent.said(&machine))) }
    });
    agent.ready(&machine).unwrap();
    eventually("the Node says so", PATIENCE, || match condition(world, name) {
        Some(status) if status == "False" => Ok(()),
        other => Err(format!("NetworkUnavailable: {other:?}")),
    });
    Worker { agent, client, machine, before: String::new() }
}

/// The Node's condition NetworkUnavailable.
fn condition(world: &World, node: &str) -> Option<String> {
    let node = world.client.get(&format!("/api/v1/nodes/{node}")).unwrap();
    let all = node["status"]["conditions"].as_array()?;
    let found = all.iter().find(|c| c["type"] == "NetworkUnavailable")?;
    found["status"].as_str().map(str::to_owned)
}

/// Everything that pods may leave on a node, as text.
const HOLDS: &str = r#"
ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
find /var/lib/cni /var/lib/causeway/attachments /var/lib/causeway/leases -type f |
    grep -v -e '/lock$' -e '/.new$' -e '/.other-mac-' -e '/last_reserved_ip'
find /run/netns -type f
nft -s list ruleset | grep -e 'elements =' -e 'chain cw'
for f in -4 -6; do
    ip $f neigh show nud permanent
    ip $f neigh show proxy
    ip $f route show proto 203
done
true
"#;

impl Worker {
    /// What it holds now.
    pub(crate) fn holds(&self) -> String {
        let text = self.machine.sh(HOLDS).unwrap();
        let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// It holds what it did before its first pod.
    #[track_caller]
    pub(crate) fn holds_nothing(&self) {
        eventually("nothing of pods is left", PATIENCE, || {
            let now = self.holds();
            let now: BTreeSet<&str> = now.lines().collect();
            let before: BTreeSet<&str> = self.before.lines().collect();
            // containerd forgets the namespace of a sandbox that it refuses for want of a network.
            let early = |line: &&&str| !line.starts_with("/run/netns/");
            let less: Vec<_> = before.difference(&now).filter(early).collect();
            let more: Vec<_> = now.difference(&before).collect();
            match more.is_empty() && less.is_empty() {
                true => Ok(()),
                false => Err(format!("left: {more:?}, missing: {less:?}")),
            }
        });
    }

    /// Addresses that are leased.
    pub(crate) fn leased(&self) -> BTreeSet<IpAddr> {
        let line = "find /var/lib/cni/networks -type f -printf '%f\n'";
        let names = self.machine.sh(line).unwrap();
        names.lines().filter_map(|name| name.parse().ok()).collect()
    }
}

/// What a server of pods or of the world outside says: its name, and whom it sees.
pub(crate) fn ask(from: &Path, to: IpAddr, port: u16) -> Result<(String, IpAddr), String> {
    let url = format!("http://{}/", SocketAddr::new(to, port));
    let said = inside(from, || causeway_lab::fetch(&url)).map_err(|e| format!("{to}: {e:#}"))?;
    let parts = said.trim().split_once("; you are ");
    let (name, peer) = parts.ok_or_else(|| said.clone())?;
    let peer: SocketAddr = peer.parse().map_err(|e| format!("{said}: {e}"))?;
    Ok((name.to_owned(), peer.ip()))
}
