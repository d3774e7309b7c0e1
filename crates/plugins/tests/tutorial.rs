//! The configuration that every Kubernetes networking tutorial shows, without an agent.

mod common;

use std::fs;

use common::{Node, in_pod, pings, sh, try_sh, tutorial};
use serde_json::{Value, json};

/// The result with MACs (derived, so they vary with names only) checked and taken out.
fn without_macs(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let mac = interface.as_object_mut().unwrap().remove("mac").unwrap();
        assert_eq!(mac.as_str().unwrap().len(), 17);
    }
    result
}

#[test]
fn two_pods_talk_and_leave_nothing() {
    let node = Node::new();
    let conf = tutorial("0.3.1");
    node.pod("p1");
    node.pod("p2");
    let result = node.add("p1", &conf);
    let host = result["interfaces"][1]["name"].clone();
    assert_eq!(
        without_macs(result),
        json!({
            "cniVersion": "0.3.1",
            "interfaces": [
                {"name": "cni0"},
                {"name": host},
                {"name": "eth0", "sandbox": "/run/netns/p1"},
            ],
            "ips": [{
                "version": "4", "interface": 2, "address": "10.244.0.2/16",
                "gateway": "10.244.0.1",
            }],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        })
    );
    node.add("p2", &conf);

    assert!(
        sh("ip -o -4 addr show cni0").contains("10.244.0.1/16 brd 10.244.255.255 scope global")
    );
    assert!(in_pod("p1", "ip -o -4 addr show eth0").contains("10.244.0.2/16"));
    assert_eq!(
        in_pod("p1", "ip route"),
        "default via 10.244.0.1 dev eth0 \n\
         10.244.0.0/16 dev eth0 proto kernel scope link src 10.244.0.2 \n"
    );
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv6/conf/cni0/accept_ra").unwrap(), "0\n");
    let lease = "/var/lib/cni/networks/pod-network/10.244.0.2";
    assert_eq!(fs::read_to_string(lease).unwrap(), "p1\r\neth0");
    assert!(pings("p1", "10.244.0.3"));
    assert!(pings("p2", "10.244.0.2"));
    assert!(pings("p1", "10.244.0.1"));

    node.del("p1", &conf);
    assert!(!in_pod("p1", "ip link").contains("eth0"));
    assert!(pings("p2", "10.244.0.1"));
    node.del("p2", &conf);
    node.del("p2", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn what_leaves_the_subnet_is_masqueraded() {
    let node = Node::new();
    let conf = tutorial("1.0.0");
    outside(&node);
    node.pod("p1");
    node.add("p1", &conf);
    node.pod("p2");
    node.add("p2", &conf);
    // The outside has no route to pods: only a masqueraded packet gets an answer.
    assert!(pings("p1", "203.0.113.2"));
    in_pod("p2", "nft add table ip t");
    in_pod("p2", "nft 'add chain ip t c { type filter hook input priority 0; }'");
    in_pod("p2", "nft add rule ip t c ip saddr 10.244.0.2 counter accept");
    assert!(pings("p1", "10.244.0.3"));
    let counted = in_pod("p2", "nft list chain ip t c");
    assert!(counted.contains("packets 1"), "pods see each other's own addresses: {counted}");
    node.del("p1", &conf);
    node.del("p2", &conf);
    assert_eq!(node.residue().replace(&sh("ip -o link show type veth"), ""), "");
}

/// A neighbour outside of the cluster that knows only the node's own address.
fn outside(node: &Node) {
    node.pod("out");
    sh("ip link add up0 type veth peer name eth0 netns out");
    sh("ip addr add 203.0.113.1/24 dev up0 && ip link set up0 up");
    in_pod("out", "ip addr add 203.0.113.2/24 dev eth0");
    in_pod("out", "ip link set eth0 up");
}

#[test]
fn every_version_answers_in_its_own_words() {
    let node = Node::new();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = tutorial(version);
        let pod = format!("p{}", version.replace('.', ""));
        node.pod(&pod);
        let result = node.add(&pod, &conf);
        assert_eq!(result["cniVersion"], version);
        match version {
            "0.1.0" | "0.2.0" => {
                assert!(result["ip4"]["ip"].as_str().unwrap().ends_with("/16"), "{result}");
                assert!(result.get("interfaces").is_none());
            }
            _ => assert_eq!(result["ips"][0]["interface"], 2),
        }
        if ["0.4.0", "1.0.0", "1.1.0"].contains(&version) {
            let mut check = conf.clone();
            check["prevResult"] = result;
            assert_eq!(node.call("CHECK", &pod, &check).run().code, 0);
        } else {
            assert_eq!(node.call("CHECK", &pod, &conf).run().err().0, 1);
        }
        let (ok, _) = try_sh(&format!("ip netns exec {pod} ping -c1 -W3 10.244.0.1"));
        assert!(ok);
        node.del(&pod, &conf);
    }
    assert_eq!(node.residue(), "");
    let reply = node.call("VERSION", "x", &json!({"cniVersion": "1.0.0"})).run().ok();
    assert_eq!(reply["supportedVersions"].as_array().unwrap().len(), 7);
}

#[test]
fn dual_stack_and_default_gateway() {
    let node = Node::new();
    let conf = json!({
        "cniVersion": "1.1.0", "name": "dual", "type": "bridge", "bridge": "br-dual",
        "isDefaultGateway": true, "ipMasq": true, "mtu": 1400, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [
            [{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}],
        ], "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {"nameservers": ["10.9.0.1"]},
    });
    for pod in ["p1", "p2"] {
        node.pod(pod);
        let result = node.add(pod, &conf);
        assert_eq!(result["routes"].as_array().unwrap().len(), 2, "{result}");
        assert_eq!(result["dns"]["nameservers"][0], "10.9.0.1");
        assert_eq!(result["interfaces"][2]["mtu"], 1400);
    }
    assert!(pings("p1", "10.9.0.3"));
    assert!(pings("p1", "fd00:9::3"));
    assert!(pings("p1", "fd00:9::1"));
    assert!(in_pod("p1", "ip -6 route").contains("default via fd00:9::1"));
    assert!(in_pod("p1", "ip link show eth0").contains("mtu 1400"));
    assert!(sh("bridge -d link").contains("hairpin on"));
    for pod in ["p1", "p2"] {
        node.del(pod, &conf);
    }
    assert_eq!(node.residue(), "");
}

#[test]
fn del_finds_its_way_without_the_namespace() {
    let node = Node::new();
    let conf = tutorial("1.0.0");
    node.pod("p1");
    node.add("p1", &conf);
    node.remove_pod("p1");
    let mut call = node.call("DEL", "p1", &conf);
    call.netns = None;
    call.run().ok();
    assert_eq!(node.residue(), "");
}

#[test]
fn mac_and_address_can_be_asked_for() {
    let node = Node::new();
    let mut conf = tutorial("1.0.0");
    conf["runtimeConfig"] = json!({"mac": "02:11:22:33:44:55", "ips": ["10.244.7.7"]});
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    assert_eq!(result["ips"][0]["address"], "10.244.7.7/16");
    assert!(in_pod("p1", "ip link show eth0").contains("02:11:22:33:44:55"));
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn the_bridge_keeps_its_mac_and_its_address() {
    let node = Node::new();
    let conf = tutorial("1.0.0");
    node.pod("p1");
    let before = node.add("p1", &conf)["interfaces"][0]["mac"].clone();
    for pod in ["p2", "p3", "p4"] {
        node.pod(pod);
        assert_eq!(node.add(pod, &conf)["interfaces"][0]["mac"], before);
    }
    node.del("p1", &conf);
    assert!(sh("ip link show cni0").contains(before.as_str().unwrap()));

    let mut other = conf.clone();
    other["name"] = json!("other");
    other["ipam"]["subnet"] = json!("10.99.0.0/16");
    node.pod("q1");
    let (code, message) = node.call("ADD", "q1", &other).run().err();
    assert_eq!(code, 999);
    assert!(
        message.contains("\"cni0\" already has an IP address different from 10.99.0.1/16"),
        "{message}"
    );
    other["forceAddress"] = json!(true);
    node.add("q1", &other);
    let addrs = sh("ip -o -4 addr show cni0");
    assert!(addrs.contains("10.99.0.1/16") && !addrs.contains("10.244.0.1"), "{addrs}");
}

#[test]
fn loopback_is_up_and_down() {
    let node = Node::new();
    node.pod("p1");
    let conf = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let mut call = node.call("ADD", "p1", &conf);
    call.ifname = "lo".to_owned();
    let result = call.run().ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["ips"][1]["address"], "::1/128");
    let mut check = conf.clone();
    check["prevResult"] = result;
    call.command = "CHECK";
    call.conf = &check;
    assert_eq!(call.run().code, 0);
    in_pod("p1", "ip link set lo down");
    assert_eq!(call.run().err().0, 999);
    call.command = "DEL";
    call.run().ok();
    call.netns = Some("/run/netns/gone".into());
    call.run().ok();
}
