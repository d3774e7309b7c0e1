//! Type `portmap`: ports of the node that lead to a pod, with real packets.

mod common;

use common::outside::uplink;
use common::ports::{
    address, bridge, chained, first, mapping, node, node_result, portmap, rules, start, start_on,
};
use common::traffic::{ask, serve, socket, tcp, udp};
use common::ways::check;
use common::{in_pod, sh, try_sh};
use serde_json::{Value, json};

#[test]
fn from_everywhere_in_both_families() {
    from_everywhere(false);
}

/// With br_netfilter a pod reaches its own port only by a port of the bridge that takes a packet
/// back to where it came from.
#[test]
fn from_everywhere_with_br_netfilter() {
    from_everywhere(true);
}

fn from_everywhere(br_netfilter: bool) {
    let node = node();
    if br_netfilter && !try_sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1").0 {
        println!("skipped: br_netfilter is not loaded");
        return;
    }
    if br_netfilter {
        sh("sysctl -qw net.bridge.bridge-nf-call-ip6tables=1");
    }
    let mut ports = portmap(json!([
        mapping(8080, 80, "tcp"),
        mapping(8080, 80, "udp"),
        mapping(0, 81, "tcp"),
        mapping(9999, 99, "SCTP"),
        {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.7.1"},
        {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "fd07::1"},
        {"hostPort": 9191, "containerPort": 80, "hostIP": "0.0.0.0"},
        {"hostPort": 9292, "containerPort": 80, "hostIP": "127.0.0.1"},
    ]));
    let result = start_on(&node, "p1", &ports, br_netfilter);
    start_on(&node, "p2", &portmap(Value::Null), br_netfilter);
    serve("p1", "[::]:80");

    // From outside, and the client keeps its address.
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p1 192.168.7.2");
    assert_eq!(udp("ext", "192.168.7.1:8080"), "p1 192.168.7.2");
    assert_eq!(tcp("ext", "[fd07::1]:8080"), "p1 fd07::2");
    assert_eq!(udp("ext", "[fd07::1]:8080"), "p1 fd07::2");
    // From the node by each of its addresses.
    assert_eq!(tcp("", "192.168.7.1:8080"), "p1 192.168.7.1");
    assert_eq!(tcp("", "[fd07::1]:8080"), "p1 fd07::1");
    assert_eq!(tcp("", "127.0.0.1:8080"), "p1 10.9.0.1");
    assert_eq!(udp("", "127.0.0.1:8080"), "p1 10.9.0.1");
    assert_eq!(tcp("", "127.0.0.1:9292"), "p1 10.9.0.1");
    // From the pod itself and from its neighbour, by the node's address.
    for pod in ["p1", "p2"] {
        assert_eq!(tcp(pod, "192.168.7.1:8080"), "p1 10.9.0.1", "{pod}");
        assert_eq!(udp(pod, "192.168.7.1:8080"), "p1 10.9.0.1", "{pod}");
        assert_eq!(tcp(pod, "[fd07::1]:8080"), "p1 fd09::1", "{pod}");
    }
    // One address of the node alone, and one family alone.
    assert_eq!(tcp("ext", "192.168.7.1:9090"), "p1 192.168.7.2");
    assert_eq!(tcp("ext", "[fd07::1]:9090"), "p1 fd07::2");
    assert_eq!(tcp("", "10.9.0.1:9090"), "");
    assert_eq!(tcp("ext", "192.168.7.1:9191"), "p1 192.168.7.2");
    assert_eq!(tcp("ext", "[fd07::1]:9191"), "");
    assert_eq!(tcp("ext", "192.168.7.1:9292"), "");
    // What goes through the node to the same port of others is left alone.
    in_pod("ext", "ip route add 10.9.0.0/24 via 192.168.7.1");
    serve("p2", "[::]:8080");
    assert_eq!(tcp("ext", "10.9.0.3:8080"), "p2 192.168.7.2");

    let rules = sh("nft list table inet causeway_cni");
    assert!(rules.contains("132 . 9999") || rules.contains("sctp . 9999"), "{rules}");
    assert_eq!(check(&node, "p1", &ports, &result).code, 0);
    ports["prevResult"] = result;
    for _ in 0..2 {
        node.del("p1", &ports);
        assert_eq!(tcp("ext", "192.168.7.1:8080"), "");
        assert_eq!(udp("", "127.0.0.1:8080"), "");
    }
    for pod in ["p1", "p2"] {
        node.del(pod, &bridge());
    }
    sh("ip link del up0");
    assert_eq!(node.residue(), "");
}

/// There is no `route_localnet` for IPv6: who asks there is told at once that nobody listens, and
/// may go on to 127.0.0.1.
#[test]
fn localhost_of_ipv6_is_refused_at_once() {
    let node = node();
    start(&node, "p1", &portmap(json!([mapping(8080, 80, "tcp")])));
    serve("p1", "[::]:80");
    let begin = std::time::Instant::now();
    assert_eq!(tcp("", "[::1]:8080"), "");
    assert!(begin.elapsed() < std::time::Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!(tcp("", "127.0.0.1:8080"), "p1 10.9.0.1");
}

/// CVE-2020-8558: with `route_localnet` a neighbour could reach what listens on 127.0.0.1.
#[test]
fn loopback_is_not_exposed_to_neighbours() {
    let node = node();
    start(&node, "p1", &portmap(json!([mapping(8080, 80, "tcp")])));
    assert_eq!(sh("sysctl -n net.ipv4.conf.cni0.route_localnet").trim(), "1");
    // A node may have it on everywhere, as kube-proxy sets it.
    sh("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    serve("", "127.0.0.1:7777");
    serve("", "0.0.0.0:7778");
    for (pod, dev, gateway, own) in
        [("p1", "eth0", "10.9.0.1", "10.9.0.2"), ("ext", "up0", "192.168.7.1", "192.168.7.2")]
    {
        in_pod(pod, &format!("sysctl -qw net.ipv4.conf.{dev}.route_localnet=1"));
        in_pod(pod, "ip link set lo down");
        let _ = try_sh(&format!("ip -n {pod} route del local 127.0.0.0/8 dev lo table local"));
        let _ = try_sh(&format!("ip -n {pod} route del local 127.0.0.1 dev lo table local"));
        in_pod(pod, &format!("ip route add 127.0.0.1/32 via {gateway} dev {dev} src {own}"));
        assert_eq!(udp(pod, "127.0.0.1:7777"), "", "{pod}");
        assert_eq!(tcp(pod, "127.0.0.1:7777"), "", "{pod}");
        // Without the rule they would get there.
        sh("nft flush chain inet causeway_cni localnet");
        assert_ne!(udp(pod, "127.0.0.1:7777"), "", "{pod}: the test would see nothing");
        assert_ne!(
            check(&node, "p1", &portmap(json!([mapping(8080, 80, "tcp")])), &first(&node)).code,
            0
        );
        // Before an ADD opens an interface for it, it sees that the rule is there.
        sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0 net.ipv4.conf.all.route_localnet=0");
        let ports = portmap(json!([mapping(8080, 80, "tcp")]));
        node.add("p1", &chained(&ports, &first(&node)));
        sh("sysctl -qw net.ipv4.conf.all.route_localnet=1");
        assert_eq!(udp(pod, "127.0.0.1:7777"), "", "{pod}");
    }
}

/// Networks of one family alone.
#[test]
fn one_family_alone() {
    for (family, own) in [(0, ["192.168.7.1", "[fd07::1]"]), (1, ["[fd07::1]", "192.168.7.1"])] {
        let run = move || {
            let node = node();
            let mut net = bridge();
            net["ipam"]["ranges"] = json!([net["ipam"]["ranges"][family]]);
            net["ipam"]["routes"] = json!([net["ipam"]["routes"][family]]);
            let ports = portmap(json!([
                mapping(8080, 80, "tcp"),
                mapping(8080, 80, "udp"),
                {"hostPort": 9090, "containerPort": 80, "hostIP": "192.168.7.1"},
                {"hostPort": 9090, "containerPort": 80, "hostIP": "fd07::1"}
            ]));
            node.pod("p1");
            let result = node.add("p1", &net);
            while !sh("ip -6 addr show dev cni0 tentative").is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            node.add("p1", &chained(&ports, &result));
            serve("p1", "[::]:80");
            for from in ["ext", "", "p1"] {
                assert!(tcp(from, &format!("{}:8080", own[0])).starts_with("p1 "), "{from}");
                assert!(udp(from, &format!("{}:8080", own[0])).starts_with("p1 "), "{from}");
                assert!(tcp(from, &format!("{}:9090", own[0])).starts_with("p1 "), "{from}");
            }
            for port in [8080, 9090] {
                assert_eq!(tcp("ext", &format!("{}:{port}", own[1])), "");
            }
            assert_eq!(check(&node, "p1", &ports, &result).code, 0);
            node.del("p1", &chained(&ports, &result));
            assert!(!rules().contains("p1 eth0"));
        };
        std::thread::spawn(run).join().unwrap();
    }
}

/// Behind type `causeway`, whose pods have an interface of the node each.
#[test]
fn behind_routed_pods() {
    use common::served::{Families, Mode, conf, serve as agent};
    let node = agent(Mode::Routed, Families::Dual);
    uplink(&node);
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let mut ports = portmap(json!([mapping(8080, 80, "tcp")]));
    ports["name"] = json!("pod-network");
    ports["cniVersion"] = json!("1.0.0");
    let mut main = conf(Mode::Routed, Families::Dual);
    main["cniVersion"] = json!("1.0.0");
    node.pod("p1");
    let result = node.add("p1", &main);
    node.add("p1", &chained(&ports, &result));
    node.pod("p2");
    node.add("p2", &main);
    serve("p1", "[::]:80");
    for from in ["", "p1", "p2"] {
        for to in ["192.168.7.1:8080", "[fd07::1]:8080"] {
            assert!(tcp(from, to).starts_with("p1 "), "{from} to {to}");
        }
    }
    assert!(tcp("", "127.0.0.1:8080").starts_with("p1 "));
    assert_eq!(tcp("ext", "192.168.7.1:8080"), "p1 192.168.7.2");
    assert_eq!(tcp("ext", "[fd07::1]:8080"), "p1 fd07::2");
    // Neighbours are seen with their own address: nothing but the pod itself is in its subnet.
    let second = in_pod("p2", "ip -4 -o addr show eth0");
    let second = second.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    assert_eq!(tcp("p2", "192.168.7.1:8080"), format!("p1 {second}"));
    node.del("p1", &chained(&ports, &result));
    assert_eq!(tcp("", "192.168.7.1:8080"), "");
}

/// Of many that want a port at once one gets it, and the others are told who has it.
#[test]
fn many_at_once_for_one_port() {
    let node = node();
    let ports = portmap(json!([mapping(8080, 80, "tcp"), mapping(8080, 80, "udp")]));
    let pods: Vec<String> = (0..12).map(|n| format!("p{n}")).collect();
    let confs: Vec<Value> = pods
        .iter()
        .map(|pod| {
            node.pod(pod);
            chained(&ports, &node.add(pod, &bridge()))
        })
        .collect();
    let calls: Vec<_> =
        pods.iter().zip(&confs).map(|(pod, conf)| node.call("ADD", pod, conf).spawn()).collect();
    let answers: Vec<_> = calls.into_iter().map(common::finish).collect();
    let winners: Vec<&String> =
        pods.iter().zip(&answers).filter(|(_, a)| a.code == 0).map(|(pod, _)| pod).collect();
    // Two may meet in the middle and both give way.
    assert!(winners.len() <= 1, "{winners:?}");
    let rules = rules();
    for (pod, answer) in pods.iter().zip(answers) {
        let wins = answer.code == 0;
        assert_eq!(rules.contains(&format!("\"{pod} eth0\"")), wins, "{pod}: {rules}");
        if !wins {
            let (_, message) = answer.err();
            assert!(message.contains("is held by container p"), "{message}");
        }
    }
}

/// Field failure 7: a client of UDP that does not stop sending would be led to the old pod for ever.
#[test]
fn udp_finds_the_new_pod() {
    let node = node();
    let ports = portmap(json!([mapping(5353, 53, "udp"), mapping(5454, 54, "udp")]));
    for target in ["192.168.7.1:5353", "[fd07::1]:5353"] {
        let target: std::net::SocketAddr = target.parse().unwrap();
        let client = socket("ext", target);
        // Somebody asked before there was any pod.
        assert_eq!(ask(&client, target), "");
        start(&node, "p1", &ports);
        serve("p1", "[::]:53");
        assert!(ask(&client, target).starts_with("p1 "));
        // A connection through the node to the same port of somebody else lives on.
        in_pod("ext", "ip route replace 10.9.0.0/24 via 192.168.7.1");
        node.pod("p3");
        node.add("p3", &bridge());
        serve("p3", "[::]:5353");
        let third = format!("{}:5353", address(&node_result("p3"), 0)).parse().unwrap();
        let through = socket("ext", third);
        assert!(ask(&through, third).starts_with("p3 "));
        let before = tracked(&third.ip().to_string());
        // Without the result it is not known that another plugin ends the pod's connections.
        node.del("p1", &ports);
        assert_eq!(ask(&client, target), "");
        // The addresses of the first are not free for the second.
        let second = start(&node, "p2", &ports);
        serve("p2", "[::]:53");
        assert!(ask(&client, target).starts_with("p2 "), "the client is led to the old pod");
        assert_eq!(tracked(&third.ip().to_string()), before, "a stranger's connection was ended");
        node.del("p2", &chained(&ports, &second));
        for pod in ["p1", "p2", "p3"] {
            node.del(pod, &bridge());
            node.remove_pod(pod);
        }
    }
}

/// The main plugin ends all connections of the pod's addresses; to look for those of its ports before
/// that would cost a walk over the kernel's table. Where it does not come to that, portmap looks.
#[test]
fn connections_of_ports_end_once() {
    let node = node();
    let ports = portmap(json!([mapping(5353, 53, "udp")]));
    for target in ["192.168.7.1:5353", "[fd07::1]:5353"] {
        let target: std::net::SocketAddr = target.parse().unwrap();
        let client = socket("ext", target);
        let ip = target.ip().to_string();
        for gone in [false, true] {
            let result = start(&node, "p1", &ports);
            serve("p1", "[::]:53");
            assert!(ask(&client, target).starts_with("p1 "), "{gone}");
            assert_eq!(of_ports(&ip).len(), 1, "{gone}");
            if gone {
                sh("ip -n p1 link del eth0");
            }
            node.del("p1", &chained(&ports, &result));
            assert_eq!(of_ports(&ip).len(), usize::from(!gone), "after DEL of portmap, {gone}");
            node.del("p1", &chained(&bridge(), &result));
            assert_eq!(of_ports(&ip), [""; 0], "{gone}");
            node.remove_pod("p1");
        }
    }
}

/// The tracked connections to port 5353 of an address of the node.
fn of_ports(ip: &str) -> Vec<String> {
    let full = match ip.parse().unwrap() {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => ip.segments().map(|s| format!("{s:04x}")).join(":"),
    };
    let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    let its = |l: &&str| l.contains(&format!("dst={full} ")) && l.contains(" dport=5353 ");
    table.lines().filter(its).map(str::to_owned).collect()
}

/// The tracked connections of UDP to an address: their ports.
fn tracked(ip: &str) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    let lines = table.lines().filter(|l| l.contains("udp") && l.contains(&format!("dst={ip} ")));
    lines.map(|l| l.split("sport=").nth(1).unwrap()[..12].to_owned()).collect()
}
