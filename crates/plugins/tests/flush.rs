//! Field failure 18: somebody flushes rules on a node with pods. What iptables flushes is its own;
//! what `nft flush ruleset` takes, CHECK misses, and the next ADD on the node brings back.

mod common;

use common::chained::network;
use common::outside::{EXT, NODE, at, node};
use common::traffic::{ask, serve, socket, tcp, udp};
use common::ways::check;
use common::{Node, sh, until};
use serde_json::{Value, json};

/// Everything that a pod of these tests is attached with, the main plugin first.
#[derive(Clone)]
struct Pod {
    name: &'static str,
    port: u16,
    list: Vec<Value>,
    result: Value,
}

impl Pod {
    /// What it is attached with: a port of the node for TCP and UDP, and `firewall`.
    fn new(name: &'static str, kind: &str, n: u8, port: u16) -> Self {
        let mapping =
            |protocol: &str| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
        let chained = |keys: Value| {
            let mut conf = json!({"cniVersion": "1.0.0", "name": format!("net{n}")});
            conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            conf
        };
        let mappings = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
        let portmap = chained(json!({"type": "portmap", "runtimeConfig": mappings}));
        let firewall = chained(json!({"type": "firewall"}));
        let list = vec![network(kind, n, true), portmap, firewall];
        Self { name, port, list, result: Value::Null }
    }

    /// ADD of the whole list; answers the error of the one that fails.
    fn try_add(mut self, node: &Node) -> Result<Self, String> {
        node.pod(self.name);
        for conf in &self.list {
            let conf = with(conf, &self.result);
            let answer = node.call("ADD", self.name, &conf).run();
            assert_eq!(answer.stderr, "", "{}", self.name);
            if answer.code != 0 {
                return Err(answer.stdout);
            }
            self.result = answer.json;
        }
        Ok(self)
    }

    /// The same, which must succeed, and a server.
    #[track_caller]
    fn add(self, node: &Node) -> Self {
        let name = self.name;
        let pod = self.try_add(node).unwrap_or_else(|e| panic!("{e}"));
        serve(name, "[::]:80");
        pod
    }

    #[track_caller]
    fn del(&self, node: &Node) {
        for conf in self.list.iter().rev() {
            node.del(self.name, &with(conf, &self.result));
        }
    }

    /// Which of its plugins find by CHECK that all is there.
    fn checks(&self, node: &Node) -> Vec<bool> {
        let check = |conf: &Value| check(node, self.name, conf, &self.result).code == 0;
        self.list.iter().map(check).collect()
    }

    /// Ports for both protocols, and the way out with the node's address, work in both families.
    #[track_caller]
    fn works(&self) {
        let (name, port) = (self.name, self.port);
        for (own, ext) in NODE.into_iter().zip(EXT) {
            assert_eq!(tcp("ext", &at(own, port)), format!("{name} {ext}"));
            assert_eq!(udp("ext", &at(own, port)), format!("{name} {ext}"));
            assert_eq!(tcp(name, &at(ext, 7000)), format!("ext {own}"), "masquerade of {name}");
        }
    }

    /// None of that.
    #[track_caller]
    fn is_cut(&self) {
        for (own, ext) in NODE.into_iter().zip(EXT) {
            assert_eq!(tcp("ext", &at(own, self.port)), "");
            assert_ne!(tcp(self.name, &at(ext, 7000)), format!("ext {own}"));
        }
    }
}

fn with(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    if !result.is_null() {
        conf["prevResult"] = result.clone();
    }
    conf
}

/// A node with the outside, which serves.
fn begin() -> Node {
    let node = node();
    serve("ext", "[::]:7000");
    node
}

#[test]
fn iptables_flushes_only_its_own() {
    let node = begin();
    let pod = Pod::new("p1", "bridge", 1, 8080).add(&node);
    pod.works();
    let before = sh("nft -s list ruleset");
    for program in ["iptables", "ip6tables"] {
        // Makes its tables, so that there is something to flush.
        for table in ["filter", "nat", "mangle", "raw"] {
            sh(&format!("{program} -t {table} -A OUTPUT -j ACCEPT"));
            sh(&format!("{program} -t {table} -F; {program} -t {table} -X"));
        }
        sh(&format!("printf '*nat\\nCOMMIT\\n*filter\\nCOMMIT\\n' | {program}-restore"));
    }
    let ours = |all: &str| {
        let tables = all.split("\ntable ").filter(|t| t.contains("causeway_cni"));
        tables.map(|t| t.trim_start_matches("table ").trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ours(&sh("nft -s list ruleset")), ours(&before));
    pod.works();
    assert_eq!(pod.checks(&node), [true; 3]);
}

/// `systemctl restart nftables` does it, on many systems.
#[test]
fn the_next_add_brings_back_what_a_flush_took() {
    let node = begin();
    // Two networks, and both types that masquerade.
    let first = Pod::new("p1", "bridge", 1, 8081).add(&node);
    let second = Pod::new("p2", "bridge", 1, 8082).add(&node);
    let other = Pod::new("q1", "ptp", 2, 8083).add(&node);
    let mate = Pod::new("q2", "ptp", 2, 8084).add(&node);
    // Gone without a DEL, as after a crash of the runtime.
    let gone = Pod::new("gone", "bridge", 1, 8085).try_add(&node).unwrap();
    node.remove_pod("gone");
    until("its interface is gone", || sh("ip -o link show type veth").lines().count() == 5);
    let all = [&first, &second, &other, &mate];
    all.into_iter().for_each(Pod::works);
    sh("nft flush ruleset");
    for pod in all {
        pod.is_cut();
        assert_eq!(pod.checks(&node), [false; 3], "{}", pod.name);
    }
    // A client of UDP that goes on asking meanwhile.
    let client = socket("ext", at(NODE[0], 8082).parse().unwrap());
    assert_eq!(ask(&client, at(NODE[0], 8082).parse().unwrap()), "");
    let third = Pod::new("p3", "bridge", 1, 8086).add(&node);
    third.works();
    for pod in [&first, &second] {
        pod.works();
        assert_eq!(pod.checks(&node), [true; 3], "{}", pod.name);
    }
    assert_eq!(ask(&client, at(NODE[0], 8082).parse().unwrap()), format!("p2 {}", EXT[0]));
    // Ports and `firewall` of all networks; masquerade, of which only the leases tell, with the next
    // ADD of each.
    for pod in [&other, &mate] {
        assert_eq!(tcp("ext", &at(NODE[0], pod.port)), format!("{} {}", pod.name, EXT[0]));
        assert_eq!(pod.checks(&node), [false, true, true], "{}", pod.name);
    }
    let fourth = Pod::new("q3", "ptp", 2, 8087).add(&node);
    for pod in [&other, &mate, &fourth] {
        pod.works();
        assert_eq!(pod.checks(&node), [true; 3], "{}", pod.name);
    }
    let rules = sh("nft list ruleset");
    assert!(!rules.contains("\"gone") && !rules.contains("10.1.0.4"), "{rules}");
    // All of it goes with its pods.
    for pod in [&first, &second, &other, &mate, &third, &fourth, &gone] {
        pod.del(&node);
    }
    let left = node.residue();
    assert_eq!(left.lines().filter(|l| !l.contains("up0@")).collect::<Vec<_>>(), [""; 0]);
}

/// No lease tells of addresses that other IPAM plugins give, nor of checks of MACs: the results that
/// the runtime keeps do.
#[test]
fn the_runtimes_results_tell_of_the_rest() {
    use causeway_cni_spec::runtime::{Attachment, Cache};
    let node = begin();
    let mut conf = network("bridge", 5, true);
    conf["macspoofchk"] = json!(true);
    conf["ipam"] = json!({"type": "static", "addresses": [
        {"address": "10.5.0.2/24", "gateway": "10.5.0.1"}, {"address": "fd05::2/64", "gateway": "fd05::1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let netns = node.pod("p1");
    let result = node.add("p1", &conf);
    let list = json!({"cniVersion": "1.0.0", "name": "net5", "plugins": [conf]});
    let keep = |name: &str| {
        let attachment = Attachment::new(name, netns.as_str(), "eth0");
        let cache = Cache::new("/var/lib/cni");
        cache.store("net5", &attachment, list.to_string().as_bytes(), &result).unwrap();
    };
    keep("p1");
    // Of one that is gone the file stays, as after a crash.
    keep("gone");
    let is_whole = || check(&node, "p1", &conf, &result).code == 0;
    let outside = || tcp("p1", &at(EXT[0], 7000)) == format!("ext {}", NODE[0]);
    assert!(is_whole() && outside());
    sh("nft flush ruleset");
    assert!(!is_whole() && !outside());
    let other = Pod::new("q1", "bridge", 1, 8081).add(&node);
    other.works();
    assert!(outside() && is_whole(), "{}", sh("nft list ruleset"));
    let rules = sh("nft list ruleset");
    assert!(rules.contains("source MAC is not the pod's") && !rules.contains("\"gone"), "{rules}");
    node.del("p1", &with(&conf, &result));
    let rules = sh("nft list ruleset");
    assert!(!rules.contains("source MAC") && !rules.contains("\"p1"), "{rules}");
}

/// A port that a flush took is still its pod's.
#[test]
fn a_port_stays_its_pods_over_a_flush() {
    let node = begin();
    let first = Pod::new("p1", "bridge", 1, 8080).add(&node);
    sh("nft flush ruleset");
    let error = Pod::new("p2", "bridge", 1, 8080).try_add(&node).err().unwrap();
    assert!(error.contains("is held by container p1"), "{error}");
    first.works();
    assert_eq!(first.checks(&node), [true, true, false], "firewall had no ADD");
}
