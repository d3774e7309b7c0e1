//! What is around a node: its underlay with peers, strangers and the outside, in one namespace,
//! and pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

use causeway_kernel::{NetNs, netns};
use causeway_types::Mac;
use causeway_types::state::AttachmentRecord;
use socket2::{Domain, Protocol, Socket, Type};

use crate::node::{DEADLINE, Node, Stack, eventually, run};

/// An address of no node, on the node's own link.
pub(crate) const STRANGER: [&str; 2] = ["192.168.1.99", "fd00:1::99"];
/// An address beyond the router.
pub(crate) const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

fn open(name: &str) -> NetNs {
    NetNs::open(Path::new(&format!("/run/netns/{name}"))).expect("a namespace")
}

/// Runs in a namespace by name.
pub(crate) fn inside<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> T {
    open(name).run(f).expect("a namespace")
}

/// Puts the other end of the node's cable into a namespace `world` that has the addresses of the
/// router, of `node-2` to `node-4`, of a stranger and of the outside.
pub(crate) fn surround(node: &Node) {
    netns::create_named(Path::new("/run/netns/world")).expect("a namespace");
    run("ip link set under0 netns world");
    run("ip -n world link set under0 up");
    run("ip -n world link set lo up");
    if node.stack.v4() {
        for address in ["192.168.1.1/24", "192.168.1.12/24", "192.168.1.14/24", "192.168.1.99/24"] {
            run(&format!("ip -n world addr add {address} dev under0"));
        }
        run("ip -n world addr add 192.168.2.13/32 dev lo");
        run("ip -n world addr add 203.0.113.9/32 dev lo");
    }
    if node.stack.v6() {
        for address in ["fd00:1::1/64", "fd00:1::12/64", "fd00:1::14/64", "fd00:1::99/64"] {
            run(&format!("ip -n world addr add {address} dev under0 nodad"));
        }
        run("ip -n world addr add fd00:2::13/128 dev lo");
        run("ip -n world addr add 2001:db8::9/128 dev lo");
    }
}

/// Does the world know the way to the node's pods?
pub(crate) fn world_knows_pods(node: &Node) {
    if node.stack.v4() {
        run("ip -n world route add 10.244.1.0/24 via 192.168.1.11");
    }
    if node.stack.v6() {
        run("ip -n world route add fd00:10:244:1::/64 via fd00:1::11");
    }
}

/// A routed pod in a namespace of its own, as a plugin makes it, and its record.
pub(crate) fn pod(node: &Node, name: &str, n: u8) -> AttachmentRecord {
    let mut record = crate::pods::record(node, name);
    record.netns = format!("/run/netns/{name}");
    record.addresses.clear();
    record.gateways.clear();
    if node.stack.v4() {
        record.addresses.push(format!("10.244.1.{n}/32").parse().unwrap());
        record.gateways.push("169.254.1.1".parse().unwrap());
    }
    if node.stack.v6() {
        record.addresses.push(format!("fd00:10:244:1::{n}/128").parse().unwrap());
        record.gateways.push("fe80::1".parse().unwrap());
    }
    netns::create_named(Path::new(&record.netns)).expect("a namespace");
    let host = record.host_ifname.clone();
    run(&format!(
        "ip link add {host} mtu 1450 address {} type veth peer name eth0 mtu 1450 address {} netns {name}",
        record.host_mac, record.mac
    ));
    run(&format!("ip -n {name} link set eth0 up"));
    run(&format!("ip link set {host} up"));
    for (address, gateway) in record.addresses.iter().zip(&record.gateways) {
        let (v, nodad) = if gateway.is_ipv6() { ("-6", "nodad") } else { ("-4", "") };
        run(&format!("ip {v} -n {name} addr add {address} dev eth0 {nodad}"));
        run(&format!(
            "ip {v} -n {name} neigh add {gateway} lladdr {} nud permanent dev eth0",
            record.host_mac
        ));
        run(&format!("ip {v} -n {name} route add default via {gateway} dev eth0 onlink"));
    }
    crate::pods::write(node, &record);
    eventually("the pod's part", DEADLINE, || {
        let objects = node.status().objects;
        let own = objects.iter().filter(|o| o.owner == format!("pod {name}"));
        let states: Vec<_> = own.map(|o| o.state).collect();
        let whole =
            !states.is_empty() && states.iter().all(|s| *s == causeway_agent::status::State::Ok);
        if whole { Ok(()) } else { Err(node.wrong()) }
    });
    record
}

/// The families of a node: index 0 is IPv4, 1 is IPv6.
pub(crate) fn families(stack: Stack) -> Vec<usize> {
    [(0, stack.v4()), (1, stack.v6())].into_iter().filter(|(_, on)| *on).map(|(i, _)| i).collect()
}

/// Sends one UDP packet from an address of the calling thread's namespace.
pub(crate) fn send_udp(from: &str, to: &str, port: u16, payload: &[u8]) {
    let from: IpAddr = from.parse().unwrap();
    let to: IpAddr = to.parse().unwrap();
    let socket = std::net::UdpSocket::bind(SocketAddr::new(from, 0)).expect("a local address");
    // Refusals of packets before show here; they are not what is asked.
    let _ = socket.send_to(payload, SocketAddr::new(to, port));
}

/// Sends one packet of an IP protocol from the calling thread's namespace.
pub(crate) fn send_raw(to: &str, protocol: i32, payload: &[u8]) {
    let to: IpAddr = to.parse().unwrap();
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).expect("root");
    let _ = socket.send_to(payload, &SocketAddr::new(to, 0).into());
}

/// Sends one IPv6 packet of a protocol to a multicast group, with the hop limit of neighbours.
pub(crate) fn send_raw_from(device: &str, group: &str, protocol: i32, payload: &[u8]) {
    let text = run(&format!("ip -o link show {device}"));
    let index: u32 = text.split(':').next().unwrap().parse().expect("an index");
    let socket =
        Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(protocol))).expect("root");
    socket.set_multicast_hops_v6(255).unwrap();
    socket.set_multicast_if_v6(index).unwrap();
    let to = SocketAddrV6::new(group.parse().unwrap(), 0, 0, index);
    // Until the device has a link-local address there is nothing to send from.
    let _ = socket.send_to(payload, &to.into());
}

/// A VXLAN packet with an IPv4 or IPv6 packet (protocol UDP, no content) for the device `mac`.
pub(crate) fn vxlan(vni: u32, mac: Mac, from: &str, to: &str) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(mac.0);
    bytes.extend([2, 0, 0, 0, 0, 9]);
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([8, 0]);
            bytes.extend(ipv4(from, to));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd]);
            bytes.extend(ipv6(from, to));
        }
        _ => panic!("two families"),
    }
    bytes
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    header
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend([0, 9, 0, 9, 0, 8, 0xff, 0xff]);
    header
}

/// Packets counted by the rules of a chain whose text holds `what`.
pub(crate) fn counted(chain: &str, what: &str) -> u64 {
    let text = run(&format!("nft list chain {chain}"));
    let rules = text.lines().filter(|l| l.contains(what));
    let packets = rules.map(|l| {
        let after = l.split("packets ").nth(1).unwrap_or_else(|| panic!("no counter: {l}"));
        after.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    packets.sum()
}
