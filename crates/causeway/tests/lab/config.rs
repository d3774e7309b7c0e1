//! Each key of the configuration is changed under running pods: what the table in docs/install.md says of it
//! is what happens. No agent is started anew but where the table says so, and no pod at all.

use causeway_lab::{Families, Plugin, Pod, Road, Spec, delete_pod};
use causeway_types::state::Attach;
use http::Method;
use serde_json::Value;

use crate::world::{PATIENCE, World, dual, eventually, with};

struct Stage<'a> {
    world: &'a World,
    pods: [Pod; 2],
    starts: String,
}

/// The file of a node.
fn file(world: &World, node: &str) -> std::path::PathBuf {
    world.spec.dirs().node(node).join("etc-causeway/config.yaml")
}

/// How often each agent was started.
fn starts(world: &World) -> String {
    let all: Value = world.client.control(Method::GET, "/agents").unwrap();
    let all = all.as_object().unwrap();
    all.iter().map(|(node, state)| format!("{node} {}, ", state["starts"])).collect()
}

impl<'a> Stage<'a> {
    fn new(world: &'a World) -> Self {
        let pods = [world.pod("a", "node-1"), world.pod("b", "node-2")];
        world.whole();
        let stage = Self { world, pods, starts: starts(world) };
        stage.pods_talk();
        stage
    }

    /// Gives a key another value on all nodes, as the kubelet brings a changed ConfigMap; `None` takes it out.
    fn set(&self, key: &str, value: Option<&str>) {
        for node in self.world.spec.node_names() {
            let path = file(self.world, &node);
            let text = std::fs::read_to_string(&path).unwrap();
            let own = format!("{key}:");
            let mut lines: Vec<&str> = text.lines().filter(|l| !l.starts_with(&own)).collect();
            let line = value.map(|value| format!("{key}: {value}"));
            lines.extend(line.as_deref());
            let aside = path.with_extension("new");
            std::fs::write(&aside, lines.join("\n") + "\n").unwrap();
            std::fs::rename(&aside, &path).unwrap();
        }
    }

    /// On both nodes a line shows these words, or does not, and then the pods talk.
    #[track_caller]
    fn shows(&self, what: &str, line: &str, words: &str, there: bool) {
        for node in ["node-1", "node-2"] {
            eventually(&format!("{what} on {node}"), PATIENCE, || {
                let (_, text) = self.world.try_sh(&self.world.node_ns(node), line);
                if text.contains(words) == there { Ok(()) } else { Err(text) }
            });
        }
        self.pods_talk();
        assert_eq!(starts(self.world), self.starts, "{what}: an agent was started anew");
    }

    /// In full segments, both ways, by both families.
    #[track_caller]
    fn pods_talk(&self) {
        let [a, b] = &self.pods;
        for (from, to) in [(a, b), (b, a)] {
            for family in Families::Dual.list() {
                eventually("pods talk", PATIENCE, || {
                    let ip = self.world.ip(to, *family);
                    let back = self.world.echoes(&self.world.netns(from), ip, 200_000);
                    match back.map_err(|e| format!("{e:#}"))? {
                        200_000 => Ok(()),
                        n => Err(format!("{n} bytes came back")),
                    }
                });
            }
        }
    }

    fn node_file(&self, what: &str, words: &str) {
        for node in ["node-1", "node-2"] {
            let path = self.world.spec.dirs().node(node).join("run-causeway/node.json");
            eventually(&format!("{what} in the node file"), PATIENCE, || {
                let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
                if text.contains(words) { Ok(()) } else { Err(text) }
            });
        }
        self.pods_talk();
    }

    fn mtu_inside(&self, pod: &Pod) -> String {
        let text = self.world.sh(&self.world.netns(pod), "ip -o link show eth0");
        let mut words = text.split(' ').skip_while(|word| *word != "mtu");
        words.nth(1).expect("an MTU").to_owned()
    }
}

const TUNNEL: &str = "ip -d link show cw-vxlan";
const RULES: &str = "nft list table inet causeway";

#[test]
fn keys_that_count_at_once() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let stage = Stage::new(world);
        // Road: the tunnel goes, and comes again.
        stage.set("road", Some("direct"));
        stage.shows("no tunnel", "ip link", "cw-vxlan", false);
        stage.set("road", Some("vxlan"));
        stage.shows("a tunnel", "ip link", "cw-vxlan", true);
        stage.set("vni", Some("4711"));
        stage.shows("another VNI", TUNNEL, "vxlan id 4711", true);
        stage.set("vxlanPort", Some("4790"));
        stage.shows("another port", TUNNEL, "dstport 4790", true);
        stage.shows("the other port is closed", RULES, "4790", true);
        // Of the MTU running pods keep theirs; path MTU discovery makes the difference good.
        let before = stage.mtu_inside(&stage.pods[0]);
        stage.set("mtu", Some("1300"));
        stage.shows("another MTU", TUNNEL, "mtu 1300", true);
        stage.node_file("another MTU", "\"mtu\": 1300");
        assert_eq!(stage.mtu_inside(&stage.pods[0]), before);
        let new = world.pod("c", "node-1");
        assert_eq!(stage.mtu_inside(&new), "1300");
        stage.set("mtu", None);
        stage.shows("the MTU that fits", TUNNEL, "mtu 1450", true);
        // What leaves the cluster.
        stage.set("masqueradeExcept", Some("[198.51.100.0/24]"));
        stage.shows("an exception", RULES, "198.51.100.0/24", true);
        stage.set("clusterCIDRs", Some("[10.128.0.0/9]"));
        stage.shows("more of the cluster", RULES, "10.128.0.0/9", true);
        stage.set("masquerade", Some("false"));
        stage.shows("no masquerade", RULES, "masquerade", false);
        stage.set("masquerade", None);
        stage.shows("masquerade", RULES, "masquerade", true);
        // Which addresses are given out.
        stage.set("reserved", Some("[10.244.255.0/28]"));
        stage.set("coolDown", Some("7"));
        stage.node_file("seconds of cool-down", "\"coolDown\": 7");
        stage.set("coolDown", None);
        stage.set("reserved", None);
        logs_more_and_less(&stage);
        world.whole();
        assert_eq!(starts(world), stage.starts);
    });
}

fn logs_more_and_less(stage: &Stage<'_>) {
    let log = stage.world.spec.dirs().node("node-1").join("agent.log");
    let lines = || std::fs::read_to_string(&log).unwrap().matches(" DEBUG ").count();
    assert_eq!(lines(), 0);
    let stir = || stage.world.on("node-1", "ip route del 10.244.2.0/24 2>&1 || true");
    stage.set("logLevel", Some("debug"));
    eventually("more is logged", PATIENCE, || {
        stir();
        if lines() > 0 { Ok(()) } else { Err("no line".to_owned()) }
    });
    stage.set("logLevel", None);
    eventually("less is logged", PATIENCE, || {
        let before = lines();
        stir();
        std::thread::sleep(std::time::Duration::from_secs(1));
        if lines() == before { Ok(()) } else { Err("still more".to_owned()) }
    });
}

/// What the agent and running pods are built around changes nothing before the agents start again, and is
/// named until then.
#[test]
fn keys_that_count_when_the_agent_starts() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let stage = Stage::new(world);
        let waits = [
            ("healthAddress", "127.0.0.1:9570"),
            ("metricsAddress", "127.0.0.1:9571"),
            ("k8sServicePort", "1"),
            ("nodeName", "somebody-else"),
            ("network", "another"),
            ("bridge", "br7"),
            ("routeProtocol", "204"),
            ("attach", "bridge"),
        ];
        let before = world.on("node-1", "ip route; ip -6 route; nft -s list ruleset");
        for (key, value) in waits {
            stage.set(key, Some(value));
            for node in ["node-1", "node-2"] {
                eventually(&format!("{key} is named on {node}"), PATIENCE, || {
                    let problems = world.status(node).map_err(|e| format!("{e:#}"))?.problems;
                    let text = format!("{key} counts when the agent starts again");
                    let told = problems.iter().any(|p| p.message.contains(&text));
                    if told { Ok(()) } else { Err(format!("{problems:?}")) }
                });
            }
            assert_eq!(world.on("node-1", "ip route; ip -6 route; nft -s list ruleset"), before);
            stage.set(key, None);
        }
        eventually("nothing waits any more", PATIENCE, || {
            let problems = world.status("node-1").map_err(|e| format!("{e:#}"))?.problems;
            if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
        });
        // A file that makes no sense, and one that is gone.
        stage.set("mtu", Some("twelve"));
        eventually("the error is named", PATIENCE, || {
            let problems = world.status("node-1").map_err(|e| format!("{e:#}"))?.problems;
            let told =
                problems.iter().any(|p| p.message.contains("the former configuration counts"));
            if told { Ok(()) } else { Err(format!("{problems:?}")) }
        });
        assert_eq!(world.on("node-1", "ip route; ip -6 route; nft -s list ruleset"), before);
        stage.set("mtu", None);
        stage.pods_talk();
        assert_eq!(starts(world), stage.starts);
    });
}

/// After the agents' restart new pods get the other attachment. Running pods keep theirs, and all reach all.
#[test]
fn another_attachment_is_for_new_pods() {
    for (from, to) in [(Attach::Routed, "bridge"), (Attach::Bridge, "routed")] {
        // Of type `causeway` both ways.
        let plugin = Plugin::Causeway;
        with(Spec { plugin, ..dual(2, from, Road::Vxlan) }, |world| {
            let stage = Stage::new(world);
            stage.set("attach", Some(to));
            for node in ["cp", "node-1", "node-2"] {
                world.agent(node, "restart");
            }
            world.whole();
            stage.pods_talk();
            let new = [world.pod("c", "node-1"), world.pod("d", "node-2")];
            let ports = world.on("node-1", "ip -o link show type veth");
            assert_eq!(ports.matches("master cni0").count(), 1, "one pod of each kind: {ports}");
            stage.pods_talk();
            let all: Vec<&Pod> = stage.pods.iter().chain(&new).collect();
            for family in Families::Dual.list() {
                for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
                    let reached = world.reaches(&world.netns(a), world.ip(b, *family), 1000);
                    assert!(reached, "{} to {} by {family}, then {to}", a.name, b.name);
                }
            }
            if from == Attach::Bridge {
                // The bridge goes with the last of its pods.
                for pod in &stage.pods {
                    delete_pod(&world.client, &pod.name, PATIENCE).unwrap();
                }
                for node in ["cp", "node-1", "node-2"] {
                    eventually("no bridge", PATIENCE, || {
                        let text = world.on(node, "ip link");
                        if text.contains("cni0") { Err(text) } else { Ok(()) }
                    });
                }
                world.whole();
                for family in Families::Dual.list() {
                    assert!(world.reaches(&world.netns(&new[0]), world.ip(&new[1], *family), 1000));
                }
            }
        });
    }
}
