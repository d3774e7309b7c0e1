//! Type `bandwidth`, measured with real traffic and beside the reference.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::chained::{after, for_all_families, in_version, kill_everywhere, pod, reference};
use common::reference::installed;
use common::served::{Families, Mode, addresses, conf, host_end, serve};
use common::{Node, in_pod, netns_of, pings, sh, try_sh};
use serde_json::{Value, json};

/// 5,000,000 bytes a second.
const RATE: u64 = 40_000_000;
const BURST: u64 = 2_000_000;

fn limits(towards: bool, from: bool) -> Value {
    let mut keys = json!({});
    if towards {
        keys["ingressRate"] = json!(RATE);
        keys["ingressBurst"] = json!(BURST);
    }
    if from {
        keys["egressRate"] = json!(RATE);
        keys["egressBurst"] = json!(BURST);
    }
    keys
}

fn send(mut to: TcpStream, bytes: usize) {
    let chunk = [7; 16 * 1024];
    for _ in 0..bytes / chunk.len() {
        to.write_all(&chunk).unwrap();
    }
}

fn receive(mut from: TcpStream) -> usize {
    let (mut buffer, mut all) = (vec![0; 64 * 1024], 0);
    loop {
        match from.read(&mut buffer).unwrap() {
            0 => return all,
            n => all += n,
        }
    }
}

/// Bits a second from here to an address of a pod.
fn towards(pod: &str, ip: &str, bytes: usize) -> u64 {
    let at = SocketAddr::new(ip.parse().unwrap(), 0);
    let listener = netns_of(pod).run(|| TcpListener::bind(at).unwrap()).unwrap();
    measure(|to| TcpStream::connect(to).unwrap(), listener, bytes)
}

/// Bits a second from a pod to an address of the node.
fn from(pod: &str, ip: &str, bytes: usize) -> u64 {
    let listener = TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    let ns = netns_of(pod);
    measure(|to| ns.run(|| TcpStream::connect(to).unwrap()).unwrap(), listener, bytes)
}

fn measure(connect: impl Fn(SocketAddr) -> TcpStream, listener: TcpListener, bytes: usize) -> u64 {
    let to = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || receive(listener.accept().unwrap().0));
    let stream = connect(to);
    let start = Instant::now();
    send(stream, bytes);
    let got = receiver.join().unwrap();
    let took = start.elapsed().max(Duration::from_micros(1));
    (got as u128 * 8_000_000 / took.as_micros()) as u64
}

/// A busy machine may be slow for a moment, but never lets too much pass.
#[track_caller]
fn is_limited(what: &str, measured: &dyn Fn() -> u64) {
    let mut rate = 0;
    for _ in 0..8 {
        rate = measured();
        println!("{what}: {rate} bit/s");
        assert!(rate < RATE * 2, "{what}: {rate} bit/s, limit {RATE}");
        if rate > RATE / 2 {
            return;
        }
    }
    panic!("{what}: {rate} bit/s, limit {RATE}");
}

#[track_caller]
fn is_free(what: &str, measured: &dyn Fn() -> u64) {
    let mut rate = 0;
    for _ in 0..8 {
        rate = measured();
        println!("{what}: {rate} bit/s");
        if rate > RATE * 3 {
            return;
        }
    }
    panic!("{what}: {rate} bit/s, limit of others {RATE}");
}

/// The node's addresses on the bridge.
fn gateways(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["gateway"].as_str().unwrap().to_owned()).collect()
}

const SOME: usize = 6_000_000;

/// Each way by itself and both at once; after DEL nothing is limited any more.
#[test]
fn measured_both_ways() {
    for_all_families(|families| {
        let node = Node::new();
        let result = pod(&node, "p1", families);
        for (to, of) in [(true, false), (false, true), (true, true)] {
            let conf = after("bandwidth", &limits(to, of), &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            for (ip, gateway) in addresses(&result).iter().zip(gateways(&result)) {
                let judge = |limited| if limited { is_limited } else { is_free };
                judge(to)(&format!("to {ip}"), &|| towards("p1", ip, SOME));
                judge(of)(&format!("from {ip}"), &|| from("p1", &gateway, SOME));
            }
            node.del("p1", &conf);
            assert_eq!(sh("ip -o link show type ifb"), "");
            for (ip, gateway) in addresses(&result).iter().zip(gateways(&result)) {
                is_free("to, after DEL", &|| towards("p1", ip, SOME));
                is_free("from, after DEL", &|| from("p1", &gateway, SOME));
            }
        }
    });
}

/// Networks without a limit, and networks alone with one: by the address at the other end.
#[test]
fn subnets() {
    for_all_families(|families| {
        let node = Node::new();
        let result = pod(&node, "p1", families);
        let far = match families {
            Families::V4 => vec!["10.99.0.1"],
            Families::V6 => vec!["fd99::1"],
            Families::Dual => vec!["10.99.0.1", "fd99::1"],
        };
        let nets: Vec<String> = far
            .iter()
            .map(|ip| {
                let (len, nodad) = if ip.contains(':') { (64, "nodad") } else { (16, "") };
                sh(&format!("ip addr add {ip}/{len} dev lo {nodad}"));
                format!("{ip}/{len}")
            })
            .collect();
        for (key, listed_is_limited) in [("unshapedSubnets", false), ("shapedSubnets", true)] {
            let mut keys = limits(true, true);
            keys[key] = json!(nets);
            let conf = after("bandwidth", &keys, &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            for ((ip, gateway), far) in addresses(&result).iter().zip(gateways(&result)).zip(&far) {
                let judge = |limited| if limited { is_limited } else { is_free };
                judge(!listed_is_limited)("to, from a near address", &|| towards("p1", ip, SOME));
                judge(!listed_is_limited)("from, to a near address", &|| {
                    from("p1", &gateway, SOME)
                });
                judge(listed_is_limited)("from, to a far address", &|| from("p1", far, SOME));
                // What the node sends from the far address.
                let back = || bound(far, ip);
                judge(listed_is_limited)("to, from a far address", &back);
            }
            node.del("p1", &conf);
        }
    });
}

/// Bits a second from one of the node's addresses to a pod's.
fn bound(source: &str, ip: &str) -> u64 {
    let at = SocketAddr::new(ip.parse().unwrap(), 0);
    let listener = netns_of("p1").run(|| TcpListener::bind(at).unwrap()).unwrap();
    let source: IpAddr = source.parse().unwrap();
    let connect = |to: SocketAddr| {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.into()
    };
    measure(connect, listener, SOME)
}

/// Other subnets, another rate, a missing filter, device or queue: CHECK tells.
#[test]
fn check_tells_what_is_wrong() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let host = host_end(&result);
    let mut keys = limits(true, true);
    let conf = after("bandwidth", &keys, &result);
    let ifb = node.add("p1", &conf)["interfaces"][3]["name"].as_str().unwrap().to_owned();
    let says = |conf: &Value| node.call("CHECK", "p1", conf).run().err().1;
    keys["ingressRate"] = json!(RATE + 8);
    assert!(says(&after("bandwidth", &keys, &result)).contains("its limit is"));
    keys = limits(true, true);
    keys["egressBurst"] = json!(BURST + BURST / 100);
    assert!(says(&after("bandwidth", &keys, &result)).contains(&ifb));
    keys = limits(true, true);
    keys["unshapedSubnets"] = json!(["10.0.0.0/8"]);
    assert!(says(&after("bandwidth", &keys, &result)).contains("root queue"));
    for (harm, word) in [
        (format!("tc filter del dev {host} ingress"), "does not go through"),
        (format!("tc qdisc del dev {ifb} root"), "its limit is missing"),
        (format!("tc qdisc del dev {host} root"), "its limit is missing"),
        (
            format!(
                "tc qdisc replace dev {host} root handle 1: tbf rate 1mbit burst 10k latency 25ms"
            ),
            "its limit is",
        ),
        (format!("ip link set {ifb} down"), "is down"),
        (format!("ip link del {ifb}"), "is missing"),
    ] {
        sh(&harm);
        let said = says(&conf);
        assert!(said.contains(word), "{harm}: {said}");
        node.del("p1", &conf);
        node.add("p1", &conf);
        node.call("CHECK", "p1", &conf).run().ok();
    }
    keys = limits(true, true);
    keys["shapedSubnets"] = json!(["10.0.0.0/8", "fd00::/8"]);
    node.del("p1", &conf);
    node.add("p1", &after("bandwidth", &keys, &result));
    keys["shapedSubnets"] = json!(["10.0.0.0/8", "fd00::/9"]);
    assert!(says(&after("bandwidth", &keys, &result)).contains("subnets"));
}

#[test]
fn configurations() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::V4);
    for (keys, code, word) in [
        (json!({"ingressRate": 8000}), 7, "if rate is set, burst must also be set"),
        (json!({"ingressBurst": 8000}), 7, "if burst is set, rate must also be set"),
        (json!({"egressRate": 8000}), 7, "egressBurst"),
        (json!({"egressBurst": 8000}), 7, "egressRate"),
        (json!({"egressRate": 7, "egressBurst": 8000}), 7, "at least 8 bits"),
        (json!({"egressRate": 8, "egressBurst": 7}), 7, "at least 8 bits"),
        (json!({"egressRate": 8, "egressBurst": 34_359_738_360u64}), 7, "more than 4 GB"),
        (json!({"egressRate": -1}), 6, "egressRate"),
        (json!({"egressRate": "fast"}), 6, "egressRate"),
        (json!({"ingressRate": 8, "ingressBurst": 8, "unshapedSubnets": ["x"]}), 6, "unshaped"),
        (json!({"unshapedSubnets": ["10.0.0.0/8"], "shapedSubnets": ["10.0.0.0/8"]}), 7, "shaped"),
        (json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8}}}), 7, "runtimeConfig.bandwidth"),
        (json!({"runtimeConfig": {"bandwidth": {"ingressRate": "8"}}}), 6, "runtimeConfig"),
    ] {
        let conf = after("bandwidth", &keys, &result);
        let (got, said) = node.call("ADD", "p1", &conf).run().err();
        assert_eq!(got, code, "{keys}: {said}");
        assert!(said.contains(word), "{keys}: {said}");
        assert_eq!(sh("tc qdisc show").matches("tbf").count(), 0);
        let status = in_version(&conf, "1.1.0");
        let status = node.call("STATUS", "", &status).run();
        assert_eq!(status.code, 1);
        // DEL of what was never made.
        if code == 7 {
            node.del("p1", &conf);
        }
    }
    let mut conf = after("bandwidth", &limits(true, true), &result);
    conf.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(node.call("ADD", "p1", &conf).run().err().0, 7);
    let other = json!({"ips": [], "interfaces": [{"name": "lo"}]});
    let conf = after("bandwidth", &limits(true, true), &other);
    let mut call = node.call("ADD", "p1", &conf);
    call.ifname = "eth9".to_owned();
    let (code, said) = call.run().err();
    assert_eq!(code, 7);
    assert!(said.contains("veth"), "{said}");
}

/// No limit passes the result on; those of the configuration count more than the runtime's.
#[test]
fn where_limits_come_from() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    for keys in [
        json!({}),
        json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}),
        json!({"runtimeConfig": {"bandwidth": {}}}),
        json!({"runtimeConfig": {"bandwidth": null}}),
    ] {
        let conf = after("bandwidth", &keys, &result);
        assert_eq!(node.add("p1", &conf), result);
        node.call("CHECK", "p1", &conf).run().ok();
        assert!(!sh("tc qdisc show").contains("tbf"));
        node.del("p1", &conf);
    }
    let runtime = json!({"bandwidth": limits(true, false)});
    let conf = after("bandwidth", &json!({"runtimeConfig": runtime}), &result);
    assert_eq!(node.add("p1", &conf), result);
    assert!(sh("tc qdisc show").contains("rate 40Mbit burst 250000b lat 25ms"));
    node.del("p1", &conf);
    let both = json!({"runtimeConfig": runtime, "ingressRate": 8_000_000, "ingressBurst": 800_000});
    let conf = after("bandwidth", &both, &result);
    node.add("p1", &conf);
    assert!(sh("tc qdisc show").contains("rate 8Mbit burst 100000b lat 25ms"));
}

/// Rates beyond 32 bits of bytes, and a bucket smaller than a packet.
#[test]
fn extremes() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    for (rate, burst) in [
        (100_000_000_000u64, 8_000_000u64),
        (u64::MAX, 34_359_738_352),
        (RATE, 8),
        (8, 34_359_738_352),
        (1_000_000, 34_359_738_352),
        (1_000_003, 1_000_003),
    ] {
        for subnets in [json!([]), json!(["10.77.0.0/16", "fd77::/16", "0.0.0.0/0", "::/0"])] {
            let keys = json!({
                "ingressRate": rate, "ingressBurst": burst, "egressRate": rate,
                "egressBurst": burst, "shapedSubnets": subnets
            });
            let conf = after("bandwidth", &keys, &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            let mut other = conf.clone();
            other["ingressBurst"] = json!(burst / 2 + 64);
            // A class cannot say more than 274 s, and a bucket of one packet is one of one packet.
            let exact = burst / rate < 200 || (subnets == json!([]) && rate > 8);
            if exact && burst > 100_000 && rate < u64::MAX {
                let (_, said) = node.call("CHECK", "p1", &other).run().err();
                assert!(said.contains("its limit is"), "{said}");
            }
            for ip in gateways(&result) {
                assert!(pings("p1", &ip), "{rate} {burst}");
                if rate >= RATE {
                    assert!(from("p1", &ip, 1_000_000) > 0);
                }
            }
            node.del("p1", &conf);
        }
    }
}

/// The queues and the redirect as tc shows them, without what differs by nature.
fn seen(host: &str) -> (Value, bool) {
    let mut queues: Value = serde_json::from_str(&sh("tc -j qdisc show")).unwrap();
    for queue in queues.as_array_mut().unwrap() {
        let name = queue["dev"].as_str().unwrap().to_owned();
        queue["dev"] = json!(if name == host { "host" } else { name.as_str() });
    }
    let mut all: Vec<Value> = queues.as_array().unwrap().clone();
    all.retain(|q| ["tbf", "ingress"].contains(&q["kind"].as_str().unwrap()));
    (
        json!(all),
        sh(&format!("tc filter show dev {host} ingress")).contains("mirred (Egress Redirect"),
    )
}

#[test]
fn beside_the_reference() {
    if !installed("bandwidth") {
        return;
    }
    let run = |ours: bool| {
        std::thread::spawn(move || {
            let node = Node::new();
            let mut all = Vec::new();
            for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
                node.pod("p1");
                let main = in_version(&conf(Mode::Classic, Families::Dual), version);
                let result = node.add("p1", &main);
                for (to, of) in [(true, true), (true, false), (false, true), (false, false)] {
                    let conf = in_version(&after("bandwidth", &limits(to, of), &result), version);
                    let call = |command: &str, ours: bool| {
                        if ours {
                            node.call(command, "p1", &conf).run()
                        } else {
                            reference(&node, command, "p1", &conf)
                        }
                    };
                    let mut added = call("ADD", ours).ok();
                    for interface in added["interfaces"].as_array_mut().unwrap() {
                        let mac = interface["mac"].as_str().unwrap().len();
                        interface["mac"] = json!(mac);
                        // Version 1.0.0 has none; the reference prints what it was given.
                        interface.as_object_mut().unwrap().remove("mtu");
                    }
                    if added["dns"] == json!({}) {
                        added.as_object_mut().unwrap().remove("dns");
                    }
                    all.push((added, seen(&host_end(&result))));
                    if to || of {
                        // Each checks and removes what the other made.
                        if version >= "0.4.0" {
                            call("CHECK", true).ok();
                            call("CHECK", false).ok();
                        }
                    }
                    call("DEL", !ours).ok();
                    assert_eq!(sh("ip -o link show type ifb"), "");
                    call("DEL", true).ok();
                }
                node.del("p1", &main);
                node.remove_pod("p1");
            }
            all
        })
        .join()
        .unwrap()
    };
    assert_eq!(run(true), run(false));
}

/// Two interfaces of a container in one network: with the reference the second fails.
#[test]
fn two_interfaces_of_a_container() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let mut main = conf(Mode::Classic, Families::Dual);
    main["ipam"]["routes"] = json!([]);
    let mut call = node.call("ADD", "p1", &main);
    call.ifname = "eth1".to_owned();
    let second = call.run().ok();
    let first = after("bandwidth", &limits(true, true), &result);
    let second = after("bandwidth", &limits(true, true), &second);
    node.add("p1", &first);
    let on = |command, conf| {
        let mut call = node.call(command, "p1", conf);
        call.ifname = "eth1".to_owned();
        call.run()
    };
    on("ADD", &second).ok();
    assert_eq!(sh("ip -o link show type ifb").lines().count(), 2);
    node.call("CHECK", "p1", &first).run().ok();
    on("CHECK", &second).ok();
    on("DEL", &second).ok();
    on("DEL", &second).ok();
    node.call("CHECK", "p1", &first).run().ok();
    on("ADD", &second).ok();
    node.del("p1", &first);
    node.del("p1", &first);
    on("CHECK", &second).ok();
    on("DEL", &second).ok();
    assert_eq!(sh("ip -o link show type ifb"), "");
}

/// DEL without a result, without a namespace, repeated; GC; and nothing of others is touched.
#[test]
fn removal() {
    let node = Node::new();
    let conf = after("bandwidth", &limits(true, true), &pod(&node, "p1", Families::Dual));
    let other = after("bandwidth", &limits(true, true), &pod(&node, "p2", Families::Dual));
    let mut elsewhere = after("bandwidth", &limits(true, true), &pod(&node, "p3", Families::Dual));
    elsewhere["name"] = json!("pod-network-2");
    sh("ip link add ifb-mine type ifb && ip link add bwp000000000000 type ifb");
    let ifbs = || sh("ip -o link show type ifb").lines().count();
    node.add("p1", &conf);
    node.add("p2", &other);
    node.add("p3", &elsewhere);
    assert_eq!(ifbs(), 5);
    let gc = |valid: Value| {
        let mut conf = in_version(&conf, "1.1.0");
        conf.as_object_mut().unwrap().remove("prevResult");
        conf["cni.dev/valid-attachments"] = valid;
        let mut call = node.call("GC", "", &conf);
        (call.ifname, call.netns) = (String::new(), None);
        call.run().ok();
    };
    gc(json!([{"containerID": "p1", "ifname": "eth0"}, {"containerID": "p2", "ifname": "eth0"}]));
    assert_eq!(ifbs(), 5);
    gc(json!([{"containerID": "p2", "ifname": "eth0"}, {"containerID": "p1", "ifname": "eth1"}]));
    assert_eq!(ifbs(), 4);
    node.call("CHECK", "p2", &other).run().ok();
    node.call("CHECK", "p3", &elsewhere).run().ok();
    gc(json!([]));
    assert_eq!(ifbs(), 3, "that of another network and two of others");
    node.add("p1", &conf);
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    node.del("p1", &bare);
    assert_eq!(ifbs(), 3);
    assert!(pings("p1", "10.244.1.1"), "it sends again");
    node.add("p1", &conf);
    node.remove_pod("p1");
    for _ in 0..2 {
        node.del("p1", &conf);
        assert_eq!(ifbs(), 3);
    }
    let mut call = node.call("DEL", "p3", &elsewhere);
    call.netns = None;
    call.run().ok();
    assert_eq!(ifbs(), 2);
    // A device of the right name that is no ifb, or another's, is left alone.
    let name = node.add("p2", &other)["interfaces"][3]["name"].as_str().unwrap().to_owned();
    node.del("p2", &other);
    for make in [
        format!("ip link add {name} type bridge"),
        format!("ip link add {name} type ifb && ip link set {name} alias another"),
    ] {
        sh(&make);
        let made = node.add("p2", &other)["interfaces"][3]["name"].as_str().unwrap().to_owned();
        assert_ne!(made, name);
        node.call("CHECK", "p2", &other).run().ok();
        node.del("p2", &other);
        assert!(try_sh(&format!("ip link show {name}")).0);
        assert!(!try_sh(&format!("ip link show {made}")).0);
        sh(&format!("ip link del {name}"));
    }
}

/// A pair with any names, as other plugins make them: the previous result says which is its end.
#[test]
fn a_pair_of_another_plugin() {
    let node = Node::new();
    node.pod("p1");
    sh("ip link add vethx type veth peer name eth0 netns p1 && ip link set vethx up");
    sh("ip link add vethy type veth peer name eth0 && ip link set vethy up");
    sh("ip -n p1 link set eth0 up && ip -n p1 addr add 10.3.0.2/24 dev eth0");
    sh("ip -n p1 addr add fd03::2/64 dev eth0 nodad && ip addr add 10.3.0.1/24 dev vethx");
    sh("ip addr add fd03::1/64 dev vethx nodad");
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "vethy"}, {"name": "vethx"}, {"name": "gone"},
            {"name": "eth0", "sandbox": "/run/netns/p1"}],
        "ips": [{"interface": 3, "address": "10.3.0.2/24"}, {"interface": 3, "address": "fd03::2/64"}],
    });
    let conf = after("bandwidth", &limits(true, true), &result);
    node.add("p1", &conf);
    node.call("CHECK", "p1", &conf).run().ok();
    for (pod, node) in [("10.3.0.2", "10.3.0.1"), ("fd03::2", "fd03::1")] {
        is_limited("to", &|| towards("p1", pod, SOME));
        is_limited("from", &|| from("p1", node, SOME));
    }
    assert!(!sh("tc qdisc show dev vethy").contains("tbf"));
    node.del("p1", &conf);
    assert!(!sh("tc qdisc show").contains("tbf"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    let stranger = after(
        "bandwidth",
        &limits(true, true),
        &json!({
            "cniVersion": "1.0.0", "interfaces": [{"name": "vethy"}, {"name": "lo"}], "ips": []
        }),
    );
    let (code, said) = node.call("ADD", "p1", &stranger).run().err();
    assert_eq!(code, 7);
    assert!(said.contains("other end"), "{said}");
    assert!(!sh("tc qdisc show").contains("tbf"));
}

/// A root queue that somebody else made is no reason to remove it.
#[test]
fn others_queues() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::V4);
    let host = host_end(&result);
    sh(&format!("tc qdisc add dev {host} root handle 7: tbf rate 1gbit burst 1m latency 25ms"));
    let conf = after("bandwidth", &limits(true, true), &result);
    let (code, said) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999);
    assert!(said.contains(&host) && said.contains("tbf 7:"), "{said}");
    node.del("p1", &conf);
    assert!(sh("tc qdisc show").contains("tbf 7:"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    // Somebody's classifier at the ingress stays, and ours works beside it.
    sh(&format!("tc qdisc del dev {host} root && tc qdisc add dev {host} clsact"));
    sh(&format!(
        "tc filter add dev {host} ingress pref 99 protocol ip u32 match u32 0 0 flowid 1:1"
    ));
    node.add("p1", &conf);
    is_limited("from", &|| from("p1", "10.244.1.1", SOME));
    node.del("p1", &conf);
    assert!(sh(&format!("tc filter show dev {host} ingress")).contains("pref 99"));
    is_free("from", &|| from("p1", "10.244.1.1", SOME));
}

/// An ADD that fails half way leaves nothing.
#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    let host = host_end(&result);
    // Another's filter of another kind of protocol holds the place of ours.
    sh(&format!("tc qdisc add dev {host} clsact"));
    sh(&format!("tc filter add dev {host} ingress pref 1 protocol ip u32 match u32 0 0"));
    let conf = after("bandwidth", &limits(true, true), &result);
    let (code, said) = node.call("ADD", "p1", &conf).run().err();
    assert_eq!(code, 999, "{said}");
    assert!(said.contains(&host), "{said}");
    assert!(!sh("tc qdisc show").contains("tbf"));
    assert_eq!(sh("ip -o link show type ifb"), "");
    assert!(sh(&format!("tc filter show dev {host} ingress")).contains("protocol ip pref 1 "));
}

/// On a served network a pod whose rate is limited sends only with its own addresses all the same,
/// though what comes back from the device passes no ingress chain.
#[test]
fn limited_pods_are_guarded() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let main = conf(mode, Families::Dual);
            node.pod("p1");
            node.pod("p2");
            let result = node.add("p1", &main);
            let victim = addresses(&node.add("p2", &main));
            let conf = after("bandwidth", &limits(true, true), &result);
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            for (to, node) in addresses(&result).iter().zip(["192.168.77.1", "fd77::1"]) {
                is_limited("to", &|| towards("p1", to, SOME));
                is_limited("from", &|| from("p1", node, SOME));
            }
            let dropped = || dropped(&host_end(&result));
            let spoofed = [("10.244.1.99/32", &victim[0]), ("fd00:10:244:1::99/128", &victim[1])];
            for (from, to) in spoofed {
                assert!(pings("p1", to), "{to}");
                let nodad = if from.contains(':') { "nodad" } else { "" };
                let before = dropped();
                sh(&format!("ip -n p1 addr add {from} dev eth0 {nodad}"));
                let from = from.split('/').next().unwrap();
                let (ok, _) = try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n -I {from} {to}"));
                assert!(!ok);
                assert!(dropped() > before, "{from}");
            }
            let before = dropped();
            in_pod("p1", "ip link set eth0 address 02:de:ad:be:ef:01");
            assert!(!pings("p1", &victim[0]));
            assert!(dropped() > before, "another MAC");
            sh(&format!("nft flush chain netdev causeway_cni {}", ifb()));
            let (_, said) = node.call("CHECK", "p1", &conf).run().err();
            assert!(said.contains("does not go through"), "{said}");
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.add("p1", &conf);
            node.call("CHECK", "p1", &conf).run().ok();
            sh(&format!("ip link del {}", ifb()));
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.add("p1", &conf);
            // In the wrong order, and without the namespace.
            node.del("p1", &main);
            node.remove_pod("p1");
            node.del("p1", &conf);
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.pod("p1");
            let result = node.add("p1", &main);
            let conf = after("bandwidth", &limits(true, true), &result);
            node.add("p1", &conf);
            let mut gc = in_version(&conf, "1.1.0");
            gc["cni.dev/valid-attachments"] = json!([]);
            let mut call = node.call("GC", "", &gc);
            (call.ifname, call.netns) = (String::new(), None);
            call.run().ok();
            assert!(!sh("nft list ruleset").contains("bwp"), "the chain is gone");
            node.del("p1", &main);
            node.del("p2", &main);
            assert_eq!(sh("ip -o link show type ifb"), "");
            assert_eq!(node.residue(), "");
        };
        assert!(std::thread::spawn(test).join().is_ok(), "{mode:?}");
    }
}

/// The only device of the kind.
fn ifb() -> String {
    let all: Value = serde_json::from_str(&sh("ip -j link show type ifb")).unwrap();
    all[0]["ifname"].as_str().unwrap().to_owned()
}

/// Packets that the chain of an interface has dropped.
fn dropped(host: &str) -> u64 {
    let chain = sh(&format!("nft list chain netdev causeway_cni {host}"));
    let count = |l: &str| l.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    chain.lines().filter(|l| l.contains("drop")).filter_map(count).sum()
}

#[test]
fn killed_at_any_system_call() {
    let node = Node::new();
    let result = pod(&node, "p1", Families::Dual);
    kill_both(&node, &after("bandwidth", &limits(true, true), &result));
}

#[test]
fn killed_at_any_system_call_on_a_served_network() {
    let node = serve(Mode::Routed, Families::Dual);
    node.pod("p1");
    let result = node.add("p1", &conf(Mode::Routed, Families::Dual));
    kill_both(&node, &after("bandwidth", &limits(true, true), &result));
}

fn kill_both(node: &Node, conf: &Value) {
    let clean = |when: &str| {
        assert!(!sh("nft list ruleset").contains("bwp"), "{when}");
        assert_eq!(sh("ip -o link show type ifb"), "", "{when}");
        let queues = sh("tc qdisc show");
        assert!(!queues.contains("tbf") && !queues.contains("ingress"), "{when}: {queues}");
    };
    let add = kill_everywhere(
        node,
        "ADD",
        "p1",
        conf,
        || (),
        |at| {
            if at % 2 == 0 {
                // Another ADD in its place.
                node.add("p1", conf);
                node.call("CHECK", "p1", conf).run().ok();
            }
            node.del("p1", conf);
            clean(&format!("ADD killed at {at}"));
        },
    );
    let ready = || drop(node.add("p1", conf));
    let del = kill_everywhere(node, "DEL", "p1", conf, ready, |at| {
        node.del("p1", conf);
        clean(&format!("DEL killed at {at}"));
    });
    println!("killed at {add} system calls of ADD and {del} of DEL");
    assert!(add > 30 && del > 20, "{add} and {del} are too few to be true");
}

/// The result of the chain names the limit's device beside the node's end: CHECK of the first plugin
/// takes neither for the other.
#[test]
fn check_of_the_whole_chain() {
    for_all_families(|families| {
        let node = Node::new();
        let result = pod(&node, "p1", families);
        let conf = after("bandwidth", &limits(true, true), &result);
        let last = node.add("p1", &conf);
        let mut first = common::served::conf(common::served::Mode::Classic, families);
        first["cniVersion"] = json!("1.0.0");
        first["prevResult"] = last;
        node.call("CHECK", "p1", &first).run().ok();
        sh(&format!("ip link set {} nomaster", result["interfaces"][1]["name"].as_str().unwrap()));
        let (code, why) = node.call("CHECK", "p1", &first).run().err();
        assert!(code == 999 && why.contains("has been changed"), "{why}");
        node.del("p1", &conf);
    });
}
