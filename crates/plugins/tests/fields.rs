//! Fields of type `bridge` beyond the tutorial's, without an agent: what each does to packets.

mod common;

use common::served::{Families, addresses};
use common::{Node, in_pod, pings, sh, try_sh, tutorial};
use serde_json::{Value, json};

fn conf(families: Families, fields: &Value) -> Value {
    let mut conf = tutorial("1.0.0");
    conf["ipMasq"] = json!(false);
    let range = |subnet: &str| json!([{"subnet": subnet}]);
    let (v4, v6) = (range("10.9.0.0/24"), range("fd09::/64"));
    let ranges = match families {
        Families::V4 => json!([v4]),
        Families::V6 => json!([v6]),
        Families::Dual => json!([v4, v6]),
    };
    conf["ipam"] = json!({"type": "host-local", "ranges": ranges});
    for (key, value) in fields.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// Runs a test for all families, each in a node of its own.
fn each(test: fn(Families)) {
    for families in Families::ALL {
        assert!(std::thread::spawn(move || test(families)).join().is_ok(), "{families:?}");
    }
}

fn check(node: &Node, pod: &str, conf: &Value, result: &Value) -> common::Answer {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    node.call("CHECK", pod, &conf).run()
}

#[test]
fn macspoofchk_drops_other_macs() {
    each(|families| {
        let node = Node::new();
        let conf = conf(families, &json!({"macspoofchk": true}));
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        let (first, second) = (node.add("p1", &conf), node.add("p2", &conf));
        let peers = addresses(&second);
        assert!(peers.iter().all(|ip| pings("p1", ip)));
        check(&node, "p1", &conf, &first).ok();
        // An address of one's own choice is nobody's business here, another MAC is.
        let mac = in_pod("p1", "cat /sys/class/net/eth0/address");
        in_pod("p1", "ip link set eth0 address 02:00:00:00:00:99");
        for ip in &peers {
            assert!(!try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n {ip}")).0, "{ip}");
        }
        in_pod("p1", &format!("ip link set eth0 address {mac}"));
        assert!(peers.iter().all(|ip| pings("p1", ip)));
        sh("nft delete table netdev causeway_cni");
        let (code, why) = check(&node, "p1", &conf, &first).err();
        assert!(code == 999 && why.contains("netdev causeway_cni"), "{why}");
        for pod in ["p1", "p2", "p2"] {
            node.del(pod, &conf);
        }
        assert_eq!(node.residue(), "");
    });
}

#[test]
fn macspoofchk_leaves_no_chain() {
    let node = Node::new();
    let conf = conf(Families::Dual, &json!({"macspoofchk": true}));
    node.pod("p1");
    node.add("p1", &conf);
    assert!(sh("nft list ruleset").contains("chain cw"));
    node.del("p1", &conf);
    assert!(!sh("nft list ruleset").contains("chain cw"));
    // Its namespace, and the link with it, went before DEL came.
    node.add("p1", &conf);
    node.remove_pod("p1");
    std::thread::sleep(std::time::Duration::from_millis(200));
    node.del("p1", &conf);
    assert!(!sh("nft list ruleset").contains("chain cw"));
    assert_eq!(node.residue(), "");
}

#[test]
fn port_isolation_keeps_pods_apart() {
    each(|families| {
        let node = Node::new();
        let conf = conf(families, &json!({"portIsolation": true}));
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        let (first, second) = (node.add("p1", &conf), node.add("p2", &conf));
        for (own, ip) in addresses(&first).iter().zip(addresses(&second)) {
            assert!(!try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n {ip}")).0, "{ip}");
            sh(&format!("ping -c1 -W3 -n {own}"));
        }
        check(&node, "p1", &conf, &first).ok();
        sh(
            "bridge link set dev $(ip -o link show master cni0 | head -n1 | cut -d: -f2 | cut -d@ -f1) \
            isolated off",
        );
        let broken = [("p1", &first), ("p2", &second)]
            .into_iter()
            .filter(|(pod, result)| check(&node, pod, &conf, result).code != 0);
        assert_eq!(broken.count(), 1);
    });
}

#[test]
fn enabledad_waits_for_the_answer() {
    let node = Node::new();
    let conf = conf(Families::Dual, &json!({"enabledad": true}));
    for pod in ["p1", "p2"] {
        node.pod(pod);
    }
    let first = node.add("p1", &conf);
    let sysctl = |name: &str| in_pod("p1", &format!("cat /proc/sys/net/ipv6/conf/eth0/{name}"));
    assert_eq!((sysctl("accept_dad"), sysctl("enhanced_dad")), ("1\n".into(), "1\n".into()));
    let ip = &addresses(&first)[1];
    let state = in_pod("p1", "ip -6 -o addr show dev eth0 scope global");
    assert!(state.contains(ip.as_str()) && !state.contains("tentative"), "{state}");
    assert!(!state.contains("nodad"), "{state}");
    // The next in turn is on the bridge already, at a host that no plugin knows of.
    sh("ip netns add other && ip link add o0 type veth peer name o1 netns other && \
        ip link set o0 master cni0 up && ip -n other link set o1 up && \
        ip -n other addr add fd09::3/64 dev o1 nodad && sleep 1");
    let (code, why) = node.call("ADD", "p2", &conf).run().err();
    assert!(code == 999 && why.contains("fd09::3") && why.contains("duplicate"), "{why}");
    assert!(!in_pod("p2", "ip link").contains("eth0"));
    // The kernel takes a namespace down on its own time.
    sh("ip link del o0; ip netns del other");
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

#[test]
fn disable_container_interface_leaves_it_down() {
    let node = Node::new();
    let mut conf = conf(Families::V4, &json!({"disableContainerInterface": true}));
    conf.as_object_mut().unwrap().remove("ipam");
    node.pod("p1");
    let result = node.add("p1", &conf);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result.get("ips"), None);
    assert!(in_pod("p1", "ip -o link show eth0").contains("state DOWN"));
    check(&node, "p1", &conf, &result).ok();
    in_pod("p1", "ip link set eth0 up");
    assert_eq!(check(&node, "p1", &conf, &result).err().0, 999);
    node.del("p1", &conf);
    assert_eq!(node.residue(), "");
}

/// The link-local address of a new bridge solicits the first pod's neighbours.
#[test]
fn the_first_pod_of_a_bridge_is_reached_at_once() {
    let node = Node::new();
    let conf = conf(Families::V6, &json!({"isGateway": true}));
    sh("ip netns add far && ip link add n0 type veth peer name n1 netns far && \
        ip addr add fd77::1/64 dev n0 nodad && ip link set n0 up && \
        ip -n far addr add fd77::2/64 dev n1 nodad && ip -n far link set n1 up && sleep 2 && \
        ip -n far -6 route add default via fd77::1");
    node.pod("p1");
    sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let result = node.add("p1", &conf);
    in_pod("p1", "ip -6 route add default via fd09::1");
    let ip = &addresses(&result)[0];
    sh(&format!("ip netns exec far ping -c1 -W1 -n {ip}"));
    node.del("p1", &conf);
}

/// True where the kernel can keep VLANs apart.
fn kernel_has_vlans() -> bool {
    let has = try_sh("ip link add cw-probe type bridge vlan_filtering 1 && ip link del cw-probe").0
        && try_sh(
            "ip link add cw-probe type bridge vlan_filtering 1 && \
            ip link add cw-p0 type veth peer name cw-p1 && ip link set cw-p0 master cw-probe && \
            bridge vlan add dev cw-p0 vid 100",
        )
        .0;
    let _ = try_sh("ip link del cw-probe; ip link del cw-p0");
    if !has {
        println!("this kernel has no BRIDGE_VLAN_FILTERING: see ./dev vm");
    }
    has
}

/// Without the kernel's help an ADD says so and leaves nothing.
#[test]
fn vlans_without_the_kernel() {
    let node = Node::new();
    if kernel_has_vlans() {
        return;
    }
    let conf = conf(Families::Dual, &json!({"vlan": 100, "isGateway": true}));
    node.pod("p1");
    let (code, why) = node.call("ADD", "p1", &conf).run().err();
    assert!(code == 999 && why.contains("BRIDGE_VLAN_FILTERING"), "{code} {why}");
    assert!(!in_pod("p1", "ip link").contains("eth0"));
}

fn port_of(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().to_owned()
}

/// The VLANs of a port, as `bridge` shows them.
fn vlans_of(port: &str) -> Vec<String> {
    let text = sh(&format!("bridge vlan show dev {port}"));
    let lines = text.lines().skip(1).map(|line| line.trim().trim_start_matches(port).trim());
    lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

#[test]
fn vlan_ports_are_apart_and_share_a_gateway() {
    each(|families| {
        let node = Node::new();
        if !kernel_has_vlans() {
            return;
        }
        let red = json!({"vlan": 100, "isGateway": true, "preserveDefaultVlan": false});
        let red = conf(families, &red);
        let mut blue = red.clone();
        blue["vlan"] = json!(200);
        blue["isGateway"] = json!(false);
        for pod in ["r1", "r2", "b1"] {
            node.pod(pod);
        }
        let (r1, r2) = (node.add("r1", &red), node.add("r2", &red));
        let b1 = node.add("b1", &blue);
        let names: Vec<&str> = r1["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["name"].as_str().unwrap())
            .collect();
        assert_eq!((names[0], names[2], names[3]), ("cni0", "eth0", "cni0.100"));
        assert_eq!(vlans_of(&port_of(&r1)), ["100 PVID Egress Untagged"]);
        assert_eq!(vlans_of(&port_of(&b1)), ["200 PVID Egress Untagged"]);
        for (first, other) in addresses(&r1).iter().zip(addresses(&b1)) {
            assert!(pings("r2", first), "{first}");
            assert!(!try_sh(&format!("ip netns exec r2 ping -c1 -W1 -n {other}")).0, "{other}");
        }
        for ip in r1["ips"].as_array().unwrap() {
            assert!(pings("r1", ip["gateway"].as_str().unwrap()));
        }
        check(&node, "r1", &red, &r1).ok();
        sh(&format!("bridge vlan add dev {} vid 300", port_of(&r1)));
        let (code, why) = check(&node, "r1", &red, &r1).err();
        assert!(code == 999 && why.contains("300"), "{why}");
        check(&node, "r2", &red, &r2).ok();
        for (pod, conf) in [("r1", &red), ("r2", &red), ("b1", &blue)] {
            node.del(pod, conf);
            node.del(pod, conf);
        }
        let gateway = sh("ip -o link show type veth");
        assert_eq!(gateway.lines().count(), 2, "the gateway stays, as the bridge does: {gateway}");
    });
}

#[test]
fn a_trunk_takes_tagged_frames() {
    let node = Node::new();
    if !kernel_has_vlans() {
        return;
    }
    let mut trunk =
        conf(Families::V4, &json!({"vlanTrunk": [{"id": 100}, {"minID": 300, "maxID": 302}]}));
    trunk.as_object_mut().unwrap().remove("ipam");
    trunk["isGateway"] = json!(false);
    let access = conf(Families::Dual, &json!({"vlan": 100, "isGateway": false}));
    for pod in ["t1", "a1"] {
        node.pod(pod);
    }
    let (t1, a1) = (node.add("t1", &trunk), node.add("a1", &access));
    let vlans = vlans_of(&port_of(&t1));
    assert_eq!(vlans, ["1 PVID Egress Untagged", "100", "300", "301", "302"]);
    assert_eq!(vlans_of(&port_of(&a1)), ["1 Egress Untagged", "100 PVID Egress Untagged"]);
    check(&node, "t1", &trunk, &t1).ok();
    sh("ip -n t1 link add link eth0 name eth0.100 type vlan id 100 && \
        ip -n t1 addr add 10.9.0.99/24 dev eth0.100 && \
        ip -n t1 addr add fd09::99/64 dev eth0.100 nodad && ip -n t1 link set eth0.100 up && sleep 1");
    for ip in addresses(&a1) {
        assert!(pings("t1", &ip), "{ip}");
    }
    node.del("t1", &trunk);
    node.del("a1", &access);
    assert_eq!(node.residue(), "");
}

/// Keys of routes beyond destination and gateway: the kernel has them all, CHECK misses each, and TCP
/// asks for segments of the size.
#[test]
fn routes_with_all_their_keys() {
    // Results of versions before 1.1.0 say nothing of these keys.
    for (kind, version) in
        [("bridge", "1.1.0"), ("ptp", "1.1.0"), ("bridge", "0.4.0"), ("ptp", "1.0.0")]
    {
        let test = move || {
            let node = Node::new();
            let keys = json!({"mtu": 1300, "advmss": 1111, "priority": 77, "table": 100});
            let route = |dst: &str| {
                let mut route = keys.clone();
                route["dst"] = json!(dst);
                route
            };
            let mut conf = conf(Families::Dual, &json!({"type": kind, "isGateway": true}));
            conf["cniVersion"] = json!(version);
            conf["ipam"]["routes"] = json!([
                route("198.18.0.0/15"), route("2001:db8::/32"),
                {"dst": "0.0.0.0/0", "advmss": 1111}, {"dst": "::/0", "advmss": 1111}
            ]);
            node.pod("p1");
            let result = node.add("p1", &conf);
            for (family, dst) in [("-4", "198.18.0.0/15"), ("-6", "2001:db8::/32")] {
                let line = in_pod("p1", &format!("ip {family} route show table 100"));
                for word in [dst, "metric 77", "mtu 1300", "advmss 1111"] {
                    assert!(line.contains(word), "{kind}: {word}: {line}");
                }
                assert_eq!(check(&node, "p1", &conf, &result).code, 0);
                let changed = line.trim().replace("advmss 1111", "advmss 1112");
                in_pod("p1", &format!("ip {family} route replace {changed} table 100"));
                assert_eq!(check(&node, "p1", &conf, &result).code, 1, "{kind}: {changed}");
                in_pod("p1", &format!("ip {family} route replace {} table 100", line.trim()));
            }
            sh("nft 'table inet seen { chain c { type filter hook prerouting priority 0; \
                meta nfproto ipv4 tcp flags syn tcp option maxseg size 1111 counter; \
                meta nfproto ipv6 tcp flags syn tcp option maxseg size 1111 counter; }; }'");
            sh(
                "ip link set lo up; ip addr add 192.168.77.1/32 dev lo; ip addr add fd77::1/128 dev lo nodad",
            );
            for to in ["192.168.77.1:80", "[fd77::1]:80"] {
                common::traffic::tcp("p1", to);
            }
            let seen = sh("nft list chain inet seen c");
            assert!(!seen.contains("packets 0 "), "{kind}: {seen}");
            let mut large = conf.clone();
            large["ipam"]["routes"][0]["advmss"] = json!(65500);
            node.pod("p2");
            let (code, message) = node.call("ADD", "p2", &large).run().err();
            assert!(code == 7 && message.contains("advmss 65500"), "{message}");
            node.del("p1", &conf);
            assert_eq!(node.residue(), "", "{kind}");
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{kind}");
    }
}
