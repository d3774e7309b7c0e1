//! Attachments that an agent serves, for both plugin types, both ways to attach and all families.

mod common;

use std::fs;

use common::served::{Families, Mode, addresses, agent, conf, host_end, serve, write_node_file};
use common::{Node, in_pod, pings, sh};
use serde_json::{Value, json};

/// Runs a test for every way to attach and all families, each in a node of its own.
fn everywhere(test: impl Fn(&Node, Mode, Families) + Copy + Send + Sync + 'static) {
    for mode in Mode::ALL {
        for families in Families::ALL {
            let run = move || test(&serve(mode, families), mode, families);
            let done =
                std::thread::Builder::new().name(format!("{mode:?} {families:?}")).spawn(run);
            assert!(done.unwrap().join().is_ok(), "{mode:?} {families:?}");
        }
    }
}

fn record(pod: &str) -> Value {
    let path = format!("/var/lib/causeway/attachments/{pod}-eth0.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn pods_reach_pods_and_node_and_leave_nothing() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        let mut all = Vec::new();
        for pod in ["p1", "p2"] {
            node.pod(pod);
            let mut call = node.call("ADD", pod, &conf);
            call.args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};IgnoreUnknown=1");
            let result = call.run().ok();
            let noted = record(pod);
            assert_eq!(noted["pending"], false);
            assert_eq!(noted["pod"]["name"], pod);
            assert_eq!(noted["mtu"], 1450);
            assert!(in_pod(pod, "ip link show eth0").contains("mtu 1450"));
            all.push(addresses(&result));
        }
        assert_eq!(all[0].len(), families.cidrs().len());
        for (own, other) in [("p1", &all[1]), ("p2", &all[0])] {
            for ip in other {
                assert!(pings(own, ip), "{own} -> {ip}");
                let node_ip = if ip.contains(':') { "fd77::1" } else { "192.168.77.1" };
                assert!(pings(own, node_ip), "{own} -> node");
                sh(&format!("ping -c1 -W3 -n {ip}"));
            }
        }
        for ip in &all[0] {
            let lease = fs::read_to_string(format!("/var/lib/cni/networks/pod-network/{ip}"));
            assert_eq!(lease.unwrap(), "p1\r\neth0");
            let beside = format!("/var/lib/causeway/leases/pod-network/{ip}.json");
            let beside: Value = serde_json::from_slice(&fs::read(beside).unwrap()).unwrap();
            assert_eq!(beside["containerId"], "p1");
            assert_eq!(beside["pod"]["namespace"], "default");
        }
        node.del("p1", &conf);
        for ip in &all[1] {
            sh(&format!("ping -c1 -W3 -n {ip}"));
        }
        node.del("p2", &conf);
        node.del("p2", &conf);
        assert_eq!(node.residue(), "");
    });
}

#[test]
fn same_node_packets_pass_the_forward_hook() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        node.add("p1", &conf);
        let second = node.add("p2", &conf);
        sh("nft 'table inet seen { chain f { type filter hook forward priority 0; \
            meta l4proto { icmp, ipv6-icmp } counter; }; }'");
        for ip in addresses(&second) {
            assert!(pings("p1", &ip));
        }
        let seen = sh("nft list table inet seen");
        let packets = 2 * families.cidrs().len();
        assert!(seen.contains(&format!("packets {packets} ")), "{seen}");
    });
}

/// The agent masquerades for all pods, by a list that follows the cluster. What a plugin would
/// write down when a pod starts makes nodes that join later the outside (field failure 28).
#[test]
fn pods_of_a_served_network_are_not_masqueraded_by_the_plugin() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        node.pod("p1");
        node.add("p1", &conf);
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("masquerade"), "{rules}");
        node.del("p1", &conf);
        assert_eq!(node.residue(), "");
    });
}

/// A pod that was attached before the agent came is taken down after.
#[test]
fn pods_from_before_the_agent_leave_nothing() {
    let node = serve(Mode::Classic, Families::Dual);
    let conf = conf(Mode::Classic, Families::Dual);
    node.pod("p1");
    fs::remove_file("/run/causeway/node.json").unwrap();
    node.add("p1", &conf);
    assert!(sh("nft list ruleset").contains("masquerade"));
    write_node_file(Mode::Classic, Families::Dual, json!({}));
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// The configuration list outlives a boot, the node file does not: a pod that is started before the
/// agent waits for it, or it would be without guard and record for good.
#[test]
fn after_a_boot_pods_wait_for_the_agent() {
    let node = serve(Mode::Classic, Families::V4);
    let mut conf = conf(Mode::Classic, Families::V4);
    conf["cniVersion"] = json!("1.1.0");
    node.pod("p1");
    node.add("p1", &conf);
    node.del("p1", &conf);
    fs::remove_file("/run/causeway/node.json").unwrap();
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("/run/causeway/node.json"), "{message}");
    assert!(message.contains("causeway agent"), "{message}");
    assert_eq!(node.residue(), "");
    assert_eq!(node.call("STATUS", "", &conf).run().err().0, 50);
    node.del("p1", &conf);
    // Networks that no agent ever served are as without one.
    let mut other = conf.clone();
    other["name"] = json!("podman");
    other["bridge"] = json!("podman0");
    node.add("p1", &other);
    node.del("p1", &other);
    write_node_file(Mode::Classic, Families::V4, json!({}));
    node.add("p1", &conf);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn full_size_packets_pass() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        node.add("p1", &conf);
        for ip in addresses(&node.add("p2", &conf)) {
            let size = if ip.contains(':') { 1450 - 48 } else { 1450 - 28 };
            in_pod("p1", &format!("ping -c1 -W3 -M do -s {size} -n {ip}"));
        }
    });
}

#[test]
fn del_without_namespace_record_or_node_file() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        node.pod("p1");
        node.add("p1", &conf);
        node.remove_pod("p1");
        fs::remove_dir_all("/var/lib/causeway/attachments").unwrap();
        let mut call = node.call("DEL", "p1", &conf);
        call.netns = None;
        call.run().ok();
        assert_eq!(node.residue(), "");

        node.pod("p2");
        node.add("p2", &conf);
        fs::remove_file("/run/causeway/node.json").unwrap();
        node.del("p2", &conf);
        assert_eq!(node.residue(), "");
    });
}

#[test]
fn check_finds_each_damage() {
    everywhere(|node, mode, families| {
        let mut conf = conf(mode, families);
        node.pod("p1");
        let result = node.add("p1", &conf);
        let host = host_end(&result);
        let ip = addresses(&result)[0].clone();
        conf["prevResult"] = result;
        let check = || node.call("CHECK", "p1", &conf).run();
        assert_eq!(check().code, 0, "{:?}", check());
        let v = if ip.contains(':') { "-6" } else { "-4" };
        let gateway = record("p1")["gateways"][0].as_str().unwrap().to_owned();
        let default = format!("ip {v} -n p1 route replace default via {gateway} dev eth0");
        let mac = in_pod("p1", "cat /sys/class/net/eth0/address").trim().to_owned();
        let lease = format!("/var/lib/cni/networks/pod-network/{ip}");
        let damages = [
            (format!("ip {v} -n p1 route del default"), default),
            (
                format!("ip {v} neigh del {ip} dev {host}"),
                format!("ip {v} neigh replace {ip} lladdr {mac} nud permanent dev {host}"),
            ),
            (format!("mv {lease} /run/lease"), format!("mv /run/lease {lease}")),
        ];
        for (damage, repair) in damages {
            sh(&damage);
            let (code, message) = check().err();
            assert_eq!(code, 999, "{damage}: {message}");
            sh(&repair);
            assert_eq!(check().code, 0, "{repair}: {:?}", check());
        }
        sh(&format!("nft flush chain netdev causeway_cni {host}"));
        assert_eq!(check().err().0, 999);
    });
}

#[test]
fn gc_and_status() {
    everywhere(|node, mode, families| {
        let mut conf = conf(mode, families);
        conf["cniVersion"] = json!("1.1.0");
        assert_eq!(node.call("STATUS", "", &conf).run().code, 0);
        for pod in ["p1", "p2", "p3"] {
            node.pod(pod);
            node.add(pod, &conf);
        }
        node.remove_pod("p3");
        conf["cni.dev/valid-attachments"] = json!([{"containerID": "p2", "ifname": "eth0"}]);
        node.call("GC", "", &conf).run().ok();
        assert!(record("p2")["pending"] == false);
        let to = if mode == Mode::Routed { "fd77::1" } else { "fd00:10:244:1::1" };
        let to = if families == Families::V6 { to } else { "192.168.77.1" };
        assert!(pings("p2", to));
        node.del("p2", &conf);
        assert_eq!(node.residue(), "");
    });
}

#[test]
fn a_killed_add_is_put_right_by_the_next() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        node.pod("p1");
        node.add("p1", &conf);
        // As a kill before the last step leaves it.
        let path = "/var/lib/causeway/attachments/p1-eth0.json";
        let pending =
            fs::read_to_string(path).unwrap().replace("\"pending\": false", "\"pending\": true");
        fs::write(path, pending).unwrap();
        let result = node.add("p1", &conf);
        for ip in addresses(&result) {
            sh(&format!("ping -c1 -W3 -n {ip}"));
        }
        let (code, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(code, 999);
        assert!(message.contains("duplicate allocation is not allowed"), "{message}");
        node.del("p1", &conf);
        assert_eq!(node.residue(), "");
    });
}

#[test]
fn without_the_node_file() {
    let node = Node::new();
    node.pod("p1");
    let mut conf = conf(Mode::Routed, Families::V4);
    let (code, message) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 11);
    assert!(message.contains("/run/causeway/node.json") && message.contains("agent"), "{message}");
    conf["cniVersion"] = json!("1.1.0");
    let (code, message) = node.call("STATUS", "p1", &conf).run().err();
    assert_eq!(code, 50);
    assert!(message.contains("agent"), "{message}");
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
    fs::write("/run/causeway/node.json", "{").unwrap();
    assert_eq!(node.call("STATUS", "p1", &conf).run().err().0, 50);
}

#[test]
fn what_type_causeway_does_not_take() {
    let node = serve(Mode::Routed, Families::V4);
    node.pod("p1");
    let base = conf(Mode::Routed, Families::V4);
    for (key, value, code) in [
        ("ipam", json!({"type": "host-local", "subnet": "10.0.0.0/24"}), 7),
        ("runtimeConfig", json!({"ipRanges": [[{"subnet": "10.99.0.0/24"}]]}), 2),
        ("runtimeConfig", json!({"ips": ["10.99.0.1"]}), 7),
    ] {
        let mut conf = base.clone();
        conf[key] = value;
        let (got, message) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{message}");
        assert_eq!(node.residue(), "");
    }
    let mut conf = base.clone();
    conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 0, "containerPort": 80}],
        "ips": ["10.244.1.77/24"], "mac": "02:aa:bb:cc:dd:ee",
    });
    let result = node.add("p1", &conf);
    assert_eq!(addresses(&result), ["10.244.1.77"]);
    assert!(in_pod("p1", "ip link show eth0").contains("02:aa:bb:cc:dd:ee"));
    assert!(pings("p1", "192.168.77.1"));
}

#[test]
fn the_agents_word_counts_where_policies_are() {
    let node = serve(Mode::Routed, Families::V4);
    let mut conf = conf(Mode::Routed, Families::V4);
    // As runtimes say it: nobody needs to be asked for the pod's address.
    conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {}});
    write_node_file(Mode::Routed, Families::V4, json!({"policyNamespaces": ["guarded"]}));
    let add = |pod: &str, namespace: &str| {
        let mut call = node.call("ADD", pod, &conf);
        call.args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}");
        call.run()
    };
    for pod in ["p1", "p2", "p3", "p4"] {
        node.pod(pod);
    }
    // No agent: only the namespace without policies gets its pod.
    add("p1", "free").ok();
    let (code, message) = add("p2", "guarded").err();
    assert_eq!(code, 11);
    assert!(message.contains("guarded") && message.contains("agent"), "{message}");
    assert!(!node.residue().contains("p2-eth0"));
    assert!(!sh("ip -n p2 link").contains("eth0"));

    // An agent that confirms.
    let (ok, no) = (
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Busy\r\ncontent-length: 3\r\n\r\nno\n",
    );
    let question = |pod: &str| format!("POST /v1/attachments/{pod}-eth0 HTTP/1.1");
    let asked = agent(&[ok]);
    add("p3", "guarded").ok();
    assert_eq!(asked.join().unwrap(), [question("p3")]);
    // It is asked before there is an interface: here there will be none.
    sh("ip -n p4 link add eth0 type veth peer name x0");
    let why = || "GET /v1/finding HTTP/1.1".to_owned();
    let asked = agent(&[ok, ok]);
    let (code, message) = add("p4", "guarded").err();
    assert_eq!(code, 999, "{message}");
    assert_eq!(asked.join().unwrap(), [question("p4"), why()]);
    assert!(!node.residue().contains("p4-eth0"));
    sh("ip -n p4 link del eth0");
    // One that restarts meanwhile is asked again, one that says no is not.
    let asked = agent(&["", ok]);
    add("p4", "guarded").ok();
    assert_eq!(asked.join().unwrap(), [question("p4"), question("p4")]);
    let asked = agent(&[no, ok]);
    let (code, message) = add("p2", "guarded").err();
    assert_eq!(code, 11);
    assert!(message.contains("503: no"), "{message}");
    assert_eq!(asked.join().unwrap(), [question("p2"), why()]);
    assert!(!sh("ip -n p2 link").contains("eth0"));
    for pod in ["p1", "p3", "p4"] {
        node.del(pod, &conf);
    }
    assert_eq!(node.residue(), "");
}

#[test]
fn many_at_once() {
    everywhere(|node, mode, families| {
        let conf = conf(mode, families);
        let pods: Vec<String> = (0..16).map(|n| format!("p{n}")).collect();
        for pod in &pods {
            node.pod(pod);
        }
        let running: Vec<_> = pods.iter().map(|p| node.call("ADD", p, &conf).spawn()).collect();
        let results: Vec<Value> = running.into_iter().map(|c| common::finish(c).ok()).collect();
        let mut all: Vec<String> = results.iter().flat_map(addresses).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), pods.len() * families.cidrs().len());
        for ip in addresses(&results[15]) {
            assert!(pings("p0", &ip));
        }
        let running: Vec<_> = pods.iter().map(|p| node.call("DEL", p, &conf).spawn()).collect();
        for child in running {
            common::finish(child).ok();
        }
        assert_eq!(node.residue(), "");
    });
}
