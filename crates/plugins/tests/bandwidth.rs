//! Type `bandwidth`, measured with real traffic and beside the reference.

mod common;

use std::net::{IpAddr, SocketAddr, TcpListener};

use common::chained::{after, for_all_families, in_version, pod, reference};
use common::limits::{
    BURST, RATE, SOME, from, gateways, is_free, is_limited, limits, measure, towards,
};
use common::reference::installed;
use common::served::{Families, Mode, addresses, conf, host_end};
use common::{Node, netns_of, pings, sh};
use serde_json::{Value, json};

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
            // 274 s at a byte a second are two pings, of which neighbour discovery may take one.
            let holds_a_ping = rate > 8 || subnets == json!([]);
            for ip in gateways(&result).iter().filter(|_| holds_a_ping) {
                assert!(pings("p1", ip), "{rate} {burst} {subnets}");
                if rate >= RATE {
                    assert!(from("p1", ip, 1_000_000) > 0);
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
