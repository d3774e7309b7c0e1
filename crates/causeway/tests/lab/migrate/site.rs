//! Nodes of another network, and one of ours that has never been anything else.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use causeway_agent::client as agent;
use causeway_kernel::NetNs;
use causeway_kernel::monitor::Monitor;
use causeway_lab::{Pod, Road, Spec};
use causeway_types::Family;
use serde_json::{Value, json};

use super::{REFERENCE, WORKERS};
use crate::world::{PATIENCE, World, binaries, eventually};

/// A process of the test, ended with it.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nodes of another network, and one of ours that has never been anything else (`cp`).
pub(super) struct Site<'a> {
    pub(super) world: &'a World,
    pub(super) road: Road,
    pub(super) servers: Vec<Process>,
    pub(super) agents: BTreeMap<String, Process>,
}

impl<'a> Site<'a> {
    pub(super) fn new(world: &'a World, road: Road) -> Self {
        Self { world, road, servers: Vec::new(), agents: BTreeMap::new() }
    }

    pub(super) fn families(&self) -> &'static [Family] {
        self.world.spec.families.list()
    }

    /// A shell line on a node, with its own files; it must succeed.
    #[track_caller]
    pub(super) fn shell(&self, node: &str, line: &str) -> String {
        let (ok, said) = self.world.causeway_shell(node, line);
        assert!(ok, "{node}: {line}: {said}");
        said
    }

    /// The agent's configuration on a node.
    pub(super) fn configure(&self, node: &str, network: &str) {
        let path = self.world.spec.dirs().node(node).join("etc-causeway/config.yaml");
        let road = json!(self.road);
        let text = format!(
            "{}network: {network}\nvni: 1\n",
            self.world
                .spec
                .agent_config()
                .replace("road: vxlan", &format!("road: {}", road.as_str().unwrap()))
        );
        std::fs::write(path, text).unwrap();
    }

    /// What runs on a node, whose processes end with the test.
    pub(super) fn spawn(&self, node: &str, words: &[&str]) -> Process {
        let log = self.world.spec.dirs().node(node).join("agent.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let causeway = binaries().causeway;
        let mut command = Command::new(causeway);
        command.args(["lab", "shell", "--name", &self.world.spec.name, node, "--"]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Process(command.spawn().unwrap())
    }

    /// Listens to what changes on a node from now on.
    pub(super) fn news(&self, node: &str) -> Monitor {
        Monitor::open_in(&NetNs::open(self.world.node_ns(node)).unwrap()).unwrap()
    }

    pub(super) fn start_agent(&mut self, node: &str) {
        let causeway = binaries().causeway;
        let words = [causeway.to_str().unwrap(), "agent", "--node-name", node];
        let process = self.spawn(node, &words);
        self.agents.insert(node.to_owned(), process);
    }

    /// Waits until an agent has done all that it wants.
    #[track_caller]
    pub(super) fn settled(&self, node: &str) {
        eventually(&format!("the agent of {node} is done"), PATIENCE, || {
            let status = self.world.status(node).map_err(|e| format!("{e:#}"))?;
            let open: Vec<_> = status
                .objects
                .iter()
                .filter(|o| o.state.word() != "ok")
                .map(|o| (&o.key, o.state.word(), &o.error))
                .collect();
            let all = status.inputs.nodes.objects == WORKERS.len() + 1;
            match status.ready && all && open.is_empty() && status.problems.is_empty() {
                true => Ok(()),
                false => Err(format!("{open:?} {:?} {:?}", status.inputs, status.problems)),
            }
        });
        let plan = agent::plan(&self.world.socket(node)).unwrap();
        assert_eq!(plan.lines, Vec::<String>::new(), "{node}");
    }

    /// A pod's namespace, with its server.
    pub(super) fn namespace(&mut self, node: &str, name: &str) -> Pod {
        let pod = Pod {
            namespace: "default".into(),
            name: name.into(),
            node: node.into(),
            phase: "Running".into(),
            ips: vec![],
            message: String::new(),
            host_network: false,
        };
        let ns = self.world.netns(&pod);
        let netns = ns.file_name().unwrap().to_str().unwrap();
        let made = Command::new("ip").args(["netns", "add", netns]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self.world.sh(&ns, "ip link set lo up");
        pod
    }

    pub(super) fn serve(&mut self, pod: &Pod) {
        let ns = self.world.netns(pod);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", ns.file_name().unwrap().to_str().unwrap()]);
        command.arg(binaries().causeway).args(["lab", "__podserver", &pod.name, "8080"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(Process(command.spawn().unwrap()));
    }

    /// A pod that a list makes with plugins of a directory, as a runtime has it made.
    pub(super) fn pod(&mut self, node: &str, name: &str, list: &str, bin: &Path) -> Pod {
        let mut pod = self.namespace(node, name);
        let said = self.cni("add", &pod, list, bin);
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        let ips = said["ips"].as_array().unwrap().iter();
        let net = |ip: &Value| ip["address"].as_str().unwrap().parse::<ipnet::IpNet>().unwrap();
        pod.ips = ips.map(|ip| net(ip).addr()).collect();
        self.serve(&pod);
        let ns = self.world.netns(&pod);
        eventually("the pod's server listens", PATIENCE, || {
            self.world.fetch(&ns, pod.ips[0]).map(drop).map_err(|e| format!("{e:#}"))
        });
        pod
    }

    #[track_caller]
    pub(super) fn cni(&self, what: &str, pod: &Pod, list: &str, bin: &Path) -> String {
        let ns = self.world.netns(pod);
        let words = ["cni", what, list, ns.to_str().unwrap(), "--container", &pod.name];
        let words = [&words[..], &["--cni-path", bin.to_str().unwrap()]].concat();
        let (ok, said) = self.world.causeway(&pod.node, &words);
        assert!(ok, "{what} of {}: {said}", pod.name);
        said
    }

    /// A pod of flannel's or of the hand-made network's.
    pub(super) fn old_pod(&mut self, node: &str, name: &str) -> Pod {
        let pod = self.pod(node, name, "/etc/cni/delegate.conflist", Path::new(REFERENCE));
        self.shell(
            node,
            &format!("mkdir -p /var/lib/cni/flannel; echo '{{}}' > /var/lib/cni/flannel/{name}"),
        );
        pod
    }

    /// A pod as the list has it that runtimes load first.
    pub(super) fn new_pod(&mut self, node: &str, name: &str) -> Pod {
        let list = self.shell(node, "ls /etc/cni/net.d/*.conflist | head -n 1");
        assert!(list.contains("05-causeway"), "{list}");
        self.pod(node, name, list.trim(), &self.world.spec.dirs().bin())
    }

    /// The list of plugins of a node by which its pods are made.
    pub(super) fn delegate(&self, node: &str, network: &str, masquerade: bool) {
        let subnets = self.families().iter().map(|f| self.world.pod_cidr(node, *f));
        let ranges: Vec<Value> = subnets.map(|net| json!([{"subnet": net}])).collect();
        let routes = self.world.spec.cluster_cidrs().into_iter().map(|c| json!({"dst": c}));
        let list = json!({"cniVersion": "1.0.0", "name": network, "plugins": [{
            "type": "bridge", "bridge": "cni0", "hairpinMode": true, "isGateway": true,
            "isDefaultGateway": true, "ipMasq": masquerade, "mtu": self.mtu(),
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes.collect::<Vec<_>>()},
        }]});
        let path = self.world.spec.dirs().node(node).join("etc-cni/delegate.conflist");
        std::fs::write(path, list.to_string()).unwrap();
    }

    pub(super) fn mtu(&self) -> u32 {
        let outer = if self.families()[0] == Family::V4 { 50 } else { 70 };
        if self.road == Road::Vxlan { 1500 - outer } else { 1500 }
    }

    /// All pods reach each other, and the world outside, at once.
    #[track_caller]
    pub(super) fn all_talk(&self, pods: &[Pod]) {
        for a in pods {
            let ns = self.world.netns(a);
            for ip in pods.iter().filter(|b| b.name != a.name).flat_map(|b| b.ips.clone()) {
                if let Err(e) = self.world.fetch(&ns, ip) {
                    panic!("{} does not reach {ip}: {e:#}", a.name);
                }
            }
            for family in self.families() {
                let (outside, _) = Spec::outside(*family);
                if let Err(e) = self.world.fetch(&ns, outside.addr()) {
                    panic!("{} does not reach the world outside: {e:#}", a.name);
                }
            }
        }
        for node in WORKERS.into_iter().chain(["cp"]) {
            for ip in pods.iter().flat_map(|p| p.ips.clone()) {
                if let Err(e) = self.world.fetch(&self.world.node_ns(node), ip) {
                    panic!("{node} does not reach {ip}: {e:#}");
                }
            }
        }
    }

    /// Takes a node over.
    pub(super) fn migrate(&mut self, node: &str, from: &str) {
        let state = "cat /etc/cni/net.d/*; ip -br link; ip -o addr | awk '{print $2, $4}'; ip route
            ip neigh show nud permanent; find /var/lib/causeway /run/causeway -type f | grep -v lock; true";
        let before = self.shell(node, state);
        let words = |more: &[&'static str]| -> Vec<String> {
            let all = ["migrate", "--from", from, "--node-name", node];
            let file = format!("/var/lib/cni/{node}-subnet.env");
            let mut all: Vec<String> = all.iter().chain(more).map(|w| (*w).to_owned()).collect();
            all.extend(["--subnet-file".to_owned(), file]);
            all
        };
        let run = |more: &[&'static str]| {
            let all = words(more);
            self.world.causeway(node, &all.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (done, said) = run(&[]);
        assert!(done && said.contains("Nothing was changed. Say --yes"), "{said}");
        assert_eq!(self.shell(node, state), before, "nothing was changed");
        let (done, said) = run(&["--yes"]);
        assert!(done && said.contains("Taken over:"), "{said}");

        // Again, as after a run that was cut off.
        let records = "cat /var/lib/causeway/attachments/*";
        let written = self.shell(node, records);
        let (done, said) = run(&["--yes"]);
        assert!(done && !said.contains("  pod "), "{said}");
        assert_eq!(self.shell(node, records), written);
        self.start_agent(node);
        self.settled(node);
        let (done, said) = run(&["--yes"]);
        assert!(done && said.contains("Nothing was changed."), "{said}");
    }
}
