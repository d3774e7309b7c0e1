//! Labs like a cluster, and what is expected of policies, tried in them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use causeway_lab::{Client, Record, Road, names};
use causeway_types::state::Attach;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::enforce::{apply, namespace, settled, truth};
use crate::world::{PATIENCE, World, binaries, dual, eventually, isolated};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policy")
}

fn causeway(words: &[&str]) -> Command {
    let mut command = Command::new(binaries().causeway);
    command.args(words).env("CAUSEWAY_CNI_BIN", binaries().cni).env_remove("KUBECONFIG");
    command
}

/// The exit code, what was said, and what was said beside it.
fn run(words: &[&str]) -> (i32, String, String) {
    let output = causeway(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// The lab that a command made, removed at the end.
fn made(name: &str) -> World {
    World { spec: Record::load(name).unwrap().spec, client: Client::open(name).unwrap() }
}

#[track_caller]
fn nothing_is_left() {
    assert_eq!(names(), Vec::<String>::new());
    let left: Vec<_> =
        std::fs::read_dir("/run/netns").unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_lab_like_manifests() {
    isolated(|| {
        let from = examples();
        let words = ["lab", "up", "--name", "shop", "--from", from.to_str().unwrap()];
        let (code, text, beside) = run(&words);
        assert_eq!(code, 0, "{text}{beside}");
        assert!(text.contains("3 pods and 4 policies are as in the original"), "{text}");
        // Nothing of the example is left out.
        assert!(!text.contains("\n  "), "{text}");
        let world = made("shop");
        let pods = causeway_lab::pods(&world.client).unwrap();
        let all: Vec<String> = pods.iter().map(|p| format!("{} {}", p.label(), p.node)).collect();
        assert_eq!(all, ["shop/api node-1", "shop/db node-2", "shop/front node-1"]);
        assert!(pods.iter().all(|pod| pod.ips.len() == 2), "{pods:?}");
        settled(&world, 4);
        assert!(truth(&world, &pods, "the example") > 100);
        // What the example is about, seen by packets.
        let server = |name: &str| pods.iter().find(|pod| pod.name == name).unwrap();
        let to = std::net::SocketAddr::new(server("db").ips[0], 5432);
        let tcp = |from: &str| crate::enforce::tcp(&world.netns(server(from)), to);
        assert_eq!((tcp("api"), tcp("front")), (true, false));
        drop(world);
        nothing_is_left();
    });
}

/// A cluster with what policies go by: labels of nodes and namespaces, pods of nodes' networks, names of
/// ports, blocks of addresses, policies of both kinds.
fn cluster() -> World {
    let world = World::up(
        causeway_lab::Spec { name: "real".into(), ..dual(2, Attach::Routed, Road::Vxlan) },
        &binaries(),
    );
    let path = "/api/v1/nodes/node-2";
    eventually("node-2 is labelled", PATIENCE, || {
        let mut node = world.client.get(path).unwrap();
        node["metadata"]["labels"]["rack"] = "r2".into();
        world.client.put(path, &node).map(drop).map_err(|e| format!("{e:#}"))
    });
    namespace(&world, "shop", &json!({"team": "blue"}));
    namespace(&world, "desk", &json!({}));
    for (name, node, labels, more) in [
        ("shop/db", "node-2", json!({"app": "db"}), json!({})),
        ("shop/web", "node-2", json!({"app": "web"}), json!({})),
        ("desk/a", "node-1", json!({}), json!({})),
        ("desk/proxy", "node-1", json!({}), json!({"hostNetwork": true})),
        ("desk/done", "", json!({}), json!({"schedulerName": "none"})),
    ] {
        let (of, name) = name.split_once('/').unwrap();
        let ports = json!([{"name": "sql", "containerPort": 5432}]);
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": of, "labels": labels},
            "spec": {"containers": [{"name": "main", "image": "lab", "ports": ports}]},
        });
        for (key, value) in more.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        if !node.is_empty() {
            object["spec"]["nodeName"] = node.into();
        }
        world.client.post(&format!("/api/v1/namespaces/{of}/pods"), &object).unwrap();
    }
    let path = "/api/v1/namespaces/desk/pods/done";
    let mut done = world.client.get(path).unwrap();
    done["status"]["phase"] = "Succeeded".into();
    world.client.put(&format!("{path}/status"), &done).unwrap();
    eventually("pods run", PATIENCE, || {
        let all = causeway_lab::pods(&world.client).unwrap();
        let late: Vec<_> = all.iter().filter(|pod| pod.phase == "Pending").collect();
        if late.is_empty() { Ok(()) } else { Err(format!("{late:?}")) }
    });
    let db = json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "sql"}]},
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
        ],
    });
    apply(&world, "shop", "db", &db);
    causeway_lab::define_cluster_policies(&world.client).unwrap();
    let admin = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "racks"},
        "spec": {"tier": "Admin", "priority": 1,
            "subject": {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "desk"}}},
            "egress": [{"action": "Deny", "to": [{"nodes": {"matchLabels": {"rack": "r2"}}}]}]},
    });
    let path = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
    world.client.post(path, &admin).unwrap();
    world
}

const OF_CLUSTER: &str = "
apiVersion: causeway.dev/v1alpha1
kind: PolicyTest
allowed:
- {from: shop/web, to: shop/db, port: 5432, by: db}
- {from: 192.0.2.7, to: shop/db, port: [5432, udp/53, icmp], by: db}
# Its own node, and what is in that node's network.
- {from: 'node:node-2', to: shop/db, port: [80, icmp]}
- {from: desk/a, to: ['node:node-1', 192.0.2.7], port: [7777, udp/7777, icmp]}
- {from: desk/proxy, to: desk/a, port: 80}
dropped:
- {from: [desk/a, 'node:node-1', desk/proxy, 198.51.100.1, '2001:db8::7'], to: shop/db, port: [5432, udp/53, icmp]}
- {from: desk/a, to: 'node:node-2', port: [7777, udp/7777, icmp], by: racks}
";

#[test]
fn a_lab_like_a_cluster() {
    isolated(|| {
        let real = cluster();
        let kubeconfig = real.spec.dirs().kubeconfig();
        let kubeconfig = kubeconfig.to_str().unwrap();
        let (code, text, beside) =
            run(&["lab", "up", "--name", "copy", "--from", "cluster", "--kubeconfig", kubeconfig]);
        assert_eq!(code, 0, "{text}{beside}");
        for words in [
            "4 pods and 2 policies are as in the original; cp plays cp, node-1 plays node-1",
            "1 pods have ended: desk/done",
            "they are their node: desk/proxy",
            "NetworkPolicy shop/db: the block 192.0.2.0/24 means addresses outside",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let copy = made("copy");
        let pods = causeway_lab::pods(&copy.client).unwrap();
        let all: Vec<String> = pods.iter().map(|p| format!("{} {}", p.label(), p.node)).collect();
        let want = ["desk/a node-1", "desk/proxy node-1", "shop/db node-2", "shop/web node-2"];
        assert_eq!(all, want);
        let labels = |world: &World, path: &str| {
            world.client.get(path).unwrap()["metadata"]["labels"].clone()
        };
        for path in [
            "/api/v1/nodes/cp",
            "/api/v1/nodes/node-2",
            "/api/v1/namespaces/shop",
            "/api/v1/namespaces/desk",
        ] {
            assert_eq!(labels(&copy, path), labels(&real, path), "{path}");
        }
        let db = copy.client.get("/api/v1/namespaces/shop/pods/db").unwrap();
        assert_eq!(db["metadata"]["labels"], json!({"app": "db"}));
        assert_eq!(db["spec"]["containers"][0]["ports"][0]["name"], "sql");
        settled(&copy, 2);
        let own: Vec<_> = pods.into_iter().filter(|pod| !pod.host_network).collect();
        assert!(truth(&copy, &own, "the copy") > 100);

        // The same cluster in a lab of its own, with what is expected of it.
        let dir = tempfile::tempdir_in("/run").unwrap();
        let file = write(dir.path(), "expected.yaml", OF_CLUSTER);
        let words = [
            "policy",
            "test",
            "--lab",
            "-f",
            "cluster",
            "-f",
            &file,
            "--kubeconfig",
            kubeconfig,
            "--json",
        ];
        let (code, text, beside) = run(&words);
        let said: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{beside}"));
        assert_eq!(
            (code, &said["failed"], &said["differences"]),
            (0, &json!([]), &json!([])),
            "{text}"
        );
        // All of them, by both families.
        assert_eq!(
            (&said["tried"], &said["notTried"]),
            (&said["connections"], &json!({})),
            "{text}"
        );
        assert_eq!(said["connections"], 50, "{text}");
        assert_eq!(names(), ["copy", "real"], "its lab is gone, and others are there");
        drop(copy);
        drop(real);
        nothing_is_left();
    });
}

#[test]
fn the_example_is_tried_with_packets() {
    isolated(|| {
        let from = examples();
        let (code, text, beside) = run(&["policy", "test", "--lab", "-f", from.to_str().unwrap()]);
        let want =
            "6 expectations, 20 connections, 20 of them tried with packets: all as expected\n";
        assert_eq!((code, text.as_str()), (0, want), "{beside}");
        nothing_is_left();
    });
}

/// The example, with something else expected.
fn other_example(dir: &Path, expected: &str) -> [String; 2] {
    let shop = std::fs::read_to_string(examples().join("shop.yaml")).unwrap();
    let test = format!("apiVersion: causeway.dev/v1alpha1\nkind: PolicyTest\n{expected}");
    [write(dir, "shop.yaml", &shop), write(dir, "expected.yaml", &test)]
}

#[test]
fn what_is_not_as_expected_is_told() {
    isolated(|| {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let expected = "allowed:\n- {from: [shop/front, 192.0.2.1], to: shop/db, port: [5432, sctp/1]}\n\
            - {from: 10.244.7.7, to: shop/front, port: 8080}\n\
            dropped:\n- {from: shop/front, to: shop/api, port: 8080}\n- {from: shop/none, to: shop/db, port: 1}\n";
        let [shop, test] = other_example(dir.path(), expected);
        let words = ["policy", "test", "--lab", "-f", &shop, "-f", &test];
        let (code, text, beside) = run(&words);
        assert_eq!(code, 1, "{text}{beside}");
        for words in [
            "expected.yaml: allowed[0]: pod shop/front",
            "tcp/5432: expected allowed, is dropped: ingress: NetworkPolicy shop/db, NetworkPolicy",
            "; packets are dropped",
            "expected.yaml: dropped[0]: pod shop/front",
            "expected dropped, is allowed: ingress: NetworkPolicy shop/api, ingress rule 1",
            "; packets pass",
            "dropped[1].from: there is no pod shop/none",
            "sctp/1: expected allowed, is dropped: ingress: NetworkPolicy shop/db",
            "10.244.7.7 is an address of the lab's own",
            "4 expectations, 9 connections, 8 of them tried with packets: 9 not as expected",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        nothing_is_left();
        // What cannot be tried at all shows nothing.
        let expected = "dropped:\n- {from: 10.244.7.7, to: shop/db, port: 1}\n";
        let [shop, test] = other_example(dir.path(), expected);
        let (code, text, _) = run(&["policy", "test", "--lab", "-f", &shop, "-f", &test]);
        assert!(code == 1 && text.contains("no connection was tried"), "{text}");
        nothing_is_left();
        // A lab of one node with room for one pod.
        let expected = "dropped:\n- {from: shop/front, to: shop/db, port: 1}\n";
        let [shop, test] = other_example(dir.path(), expected);
        let small = ["--nodes", "1", "--pods", "1", "-f", &shop, "-f", &test];
        let (code, text, _) = run(&[&["policy", "test", "--lab"], &small[..]].concat());
        assert!(code == 1 && text.contains("is not in the lab"), "{text}");
        nothing_is_left();
        let (code, _, beside) = run(&[&["policy", "test"], &small[..]].concat());
        assert!(code == 2 && beside.contains("--lab"), "{beside}");
    });
}

/// Runs a test of 400 connections that are to be dropped, and does something when it is under way.
fn disturbed(disturb: impl FnOnce(u32)) -> (i32, String) {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let ports: Vec<String> = (1..=100).map(|port| port.to_string()).collect();
    let expected =
        format!("dropped:\n- {{from: shop/*, to: shop/db, port: [{}]}}\n", ports.join(", "));
    let [shop, test] = other_example(dir.path(), &expected);
    let words = ["policy", "test", "--lab", "-f", &shop, "-f", &test];
    let mut child = causeway(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let stdout = std::thread::spawn(move || std::io::read_to_string(&mut stdout).unwrap());
    let mut beside = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    for line in beside.by_ref() {
        let line = line.unwrap();
        said += &format!("{line}\n");
        if line.ends_with("connections, with policies") {
            break;
        }
    }
    disturb(child.id());
    // To the end, so that it may go on speaking.
    let rest: Vec<String> = beside.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    (status.code().unwrap_or(-1), said + &rest.join("\n") + &stdout.join().unwrap())
}

/// Packets that the kernel lets pass though it should not are found, whatever the evaluator says.
#[test]
fn a_kernel_that_lets_all_pass_is_found() {
    isolated(|| {
        let (code, text) = disturbed(|pid| {
            let spec = Record::load(&format!("pt{pid}")).unwrap().spec;
            for node in causeway_lab::nodes(&spec).unwrap() {
                // An agent would put it right within 50 ms.
                let agent = Pid::from_raw(node.process.pid.unwrap()).unwrap();
                kill_process(agent, Signal::STOP).unwrap();
                let mut nft = Command::new("nft");
                nft.args(["delete", "table", "inet", "causeway_policy"]);
                let gone =
                    causeway_lab::inside(&spec.dirs().netns(&node.name), || Ok(nft.status()?));
                assert!(gone.unwrap().success());
            }
        });
        assert_eq!(code, 1, "{text}");
        for words in
            ["packets pass, the evaluator says dropped", "a bug of Causeway: please report it"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.contains("0 not as expected, "), "{text}");
        nothing_is_left();
    });
}

#[test]
fn who_is_interrupted_leaves_nothing() {
    isolated(|| {
        let (code, text) = disturbed(|pid| {
            assert_eq!(names(), [format!("pt{pid}")]);
            let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
            kill_process(pid, Signal::INT).unwrap();
        });
        assert!(code == 130 && text.contains("interrupted; the lab is removed"), "{code}: {text}");
        nothing_is_left();
    });
}
