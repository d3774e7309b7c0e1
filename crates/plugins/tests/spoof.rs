//! A pod sends only what is its own: address, MAC, ARP and neighbour discovery.

mod common;

use std::net::{Ipv6Addr, SocketAddrV6};

use common::served::{Families, Mode, addresses, conf, host_end, serve};
use common::{Node, netns_of, pings, sh, try_sh};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

struct Scene {
    node: Node,
    first: Value,
    second: Value,
}

fn scene(mode: Mode) -> Scene {
    let node = serve(mode, Families::Dual);
    let conf = conf(mode, Families::Dual);
    for pod in ["p1", "p2"] {
        node.pod(pod);
    }
    let first = node.add("p1", &conf);
    let second = node.add("p2", &conf);
    Scene { node, first, second }
}

fn in_each_mode(test: fn(Scene)) {
    for mode in Mode::ALL {
        let done = std::thread::spawn(move || test(scene(mode))).join();
        assert!(done.is_ok(), "{mode:?}");
    }
}

/// Packets that a drop of the pod's guard has counted, by a part of its comment.
fn dropped(result: &Value, comment: &str) -> u64 {
    let chain = sh(&format!("nft list chain netdev causeway_cni {}", host_end(result)));
    let rule = chain.lines().find(|l| l.contains("drop") && l.contains(comment));
    let rule = rule.unwrap_or_else(|| panic!("no drop for {comment}: {chain}"));
    rule.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn another_source_address() {
    in_each_mode(|s| {
        let victim = addresses(&s.second);
        for (ip, spoofed) in [(&victim[0], "10.244.1.99/32"), (&victim[1], "fd00:10:244:1::99/128")]
        {
            let before = dropped(&s.first, "source address");
            let nodad = if spoofed.contains(':') { "nodad" } else { "" };
            sh(&format!("ip -n p1 addr add {spoofed} dev eth0 {nodad}"));
            let from = spoofed.split('/').next().unwrap();
            let (ok, _) = try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n -I {from} {ip}"));
            assert!(!ok);
            assert!(dropped(&s.first, "source address") > before, "{from}");
            sh(&format!("ip -n p1 addr del {spoofed} dev eth0"));
            // The kernel goes on asking for the neighbour in the name of the first packet.
            let _ = try_sh(&format!("ip -n p1 neigh del {ip} dev eth0"));
            assert!(pings("p1", ip));
        }
        drop(s.node);
    });
}

#[test]
fn another_mac() {
    in_each_mode(|s| {
        let before = dropped(&s.first, "source MAC");
        // A permanent neighbour does not outlive the change: without one nothing would be sent.
        sh("ip -n p1 link set eth0 address 02:de:ad:be:ef:01");
        assert!(!pings("p1", &addresses(&s.second)[0]));
        assert!(dropped(&s.first, "source MAC") > before);
        drop(s.node);
    });
}

#[test]
fn arp_in_anothers_name() {
    in_each_mode(|s| {
        let victim = &addresses(&s.second)[0];
        let before = dropped(&s.first, "source address");
        // Asking for a neighbour from the victim's address announces that address.
        sh(&format!("ip -n p1 addr add {victim}/32 dev eth0"));
        sh("ip -n p1 route add 10.244.1.200/32 dev eth0");
        let _ = try_sh(&format!("ip netns exec p1 ping -c1 -W1 -n -I {victim} 10.244.1.200"));
        assert!(dropped(&s.first, "source address") > before);
        sh(&format!("ip -n p1 addr del {victim}/32 dev eth0"));
        sh(&format!("ping -c1 -W3 -n {victim}"));
        drop(s.node);
    });
}

/// Sends an ICMPv6 message from a pod to all nodes on its link.
fn send_icmpv6(pod: &str, message: &[u8]) {
    let sent = netns_of(pod).run(|| {
        let index = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").unwrap();
        let index: u32 = index
            .lines()
            .find(|l| l.contains("eth0"))
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap();
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        socket.send_to(message, &SocketAddrV6::new(all, 0, 0, index).into()).unwrap()
    });
    assert_eq!(sent.unwrap(), message.len());
}

#[test]
fn router_advertisement_and_redirect() {
    in_each_mode(|s| {
        for (kind, comment) in [(134u8, "router advertisement"), (137, "redirect")] {
            let before = dropped(&s.first, comment);
            let mut message = vec![kind, 0, 0, 0];
            message.extend([64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0]);
            message.resize(40, 0);
            send_icmpv6("p1", &message);
            assert!(dropped(&s.first, comment) > before, "{comment}");
        }
        drop(s.node);
    });
}

#[test]
fn neighbour_advertisement_for_another() {
    in_each_mode(|s| {
        let before = dropped(&s.first, "advertisement for another");
        let victim: Ipv6Addr = addresses(&s.second)[1].parse().unwrap();
        let mut message = vec![136u8, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(victim.octets());
        message.extend([2, 1, 2, 0xde, 0xad, 0xbe, 0xef, 1]);
        send_icmpv6("p1", &message);
        assert!(dropped(&s.first, "advertisement for another") > before);
        sh(&format!("ping -c1 -W3 -n {victim}"));
        drop(s.node);
    });
}
