//! What answers at other nodes. Everything is asked at the same time, and of a part of the nodes
//! where there are many.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use causeway_doctor::Facts;
use causeway_doctor::checks::reach::{KUBELET, ports_of};
use causeway_doctor::facts::cluster::{Answer, Member, Probe, Site, Tunnel};
use causeway_kernel::{Error, Handle, Without, probe};
use causeway_types::{Family, names};
use ipnet::IpNet;

use super::gather::known;

/// So many other nodes are asked at most.
const NODES: usize = 16;
/// Something comes back in this time, or nothing does: two attempts of TCP (RFC 6298: after 1 s).
const PATIENCE: Duration = Duration::from_millis(2500);
/// Where this thread's network is found.
const HERE: &str = "/proc/thread-self/ns/net";

/// Tries ports of other nodes, and the tunnels to them.
pub(super) fn look(facts: &mut Facts) {
    let Some(me) = facts.site.own().cloned() else { return };
    let peers = sample(&facts.site, &me);
    let tunnels = known(facts, "routes to other nodes", tunnels(&peers));
    let ports = ports(&me, &peers);
    let found: (Vec<_>, Vec<_>) = thread::scope(|scope| {
        let ports: Vec<_> = ports
            .into_iter()
            .map(|(node, to)| scope.spawn(move || (node, to, probe::tcp(to, PATIENCE))))
            .collect();
        let tunnels: Vec<_> =
            tunnels.into_iter().map(|tunnel| scope.spawn(move || asked(tunnel))).collect();
        let ports = ports.into_iter().filter_map(|thread| thread.join().ok()).collect();
        (ports, tunnels.into_iter().filter_map(|thread| thread.join().ok()).collect())
    });
    facts.site.tunnels = found.1;
    for (node, to, answer) in found.0 {
        match answer {
            Ok(answer) => facts.site.probes.push(Probe {
                node,
                address: to.ip(),
                port: to.port(),
                answer: word(answer),
            }),
            Err(error) => return known(facts, "ports of other nodes", Err(error)),
        }
    }
}

fn word(answer: probe::Answer) -> Answer {
    match answer {
        probe::Answer::Open => Answer::Open,
        probe::Answer::Closed => Answer::Closed,
        probe::Answer::Rejected => Answer::Rejected,
        probe::Answer::Unreachable => Answer::Unreachable,
        probe::Answer::Silent => Answer::Silent,
    }
}

/// Nodes that are asked: the control plane first, then some of the others, for each node different
/// ones, and the same every time. Those that are not ready are known to be in trouble.
fn sample(site: &Site, me: &Member) -> Vec<Member> {
    let others = site.members.iter().filter(|m| m.name != me.name && m.ready != Some(false));
    // An address that is this node's as well leads here.
    let own: BTreeSet<&IpAddr> = me.addresses.iter().collect();
    let mut all: Vec<Member> =
        others.filter(|m| m.addresses.iter().all(|a| !own.contains(a))).cloned().collect();
    all.sort_by_key(|m| {
        let mut hasher = DefaultHasher::new();
        (&me.name, &m.name).hash(&mut hasher);
        (!m.control_plane, hasher.finish())
    });
    all.truncate(NODES);
    all
}

/// Ports by node, at addresses of the families that both have.
fn ports(me: &Member, peers: &[Member]) -> Vec<(String, SocketAddr)> {
    let has = |ip: &&IpAddr| me.addresses.iter().any(|own| Family::of(*own) == Family::of(**ip));
    let mut all = Vec::new();
    for peer in peers {
        for ip in peer.addresses.iter().filter(has) {
            let ports = ports_of(Some(me), peer).into_iter();
            all.extend(ports.map(|port| (peer.name.clone(), SocketAddr::new(*ip, port))));
        }
    }
    all
}

/// What lies behind the tunnel, by node and family: the node's own address inside the cluster, and
/// some pods. Whatever of them answers shows that packets pass both ways.
fn tunnels(peers: &[Member]) -> Result<Vec<Tunnel>, Error> {
    let mut handle = Handle::open()?;
    let mut all = Vec::new();
    // A node whose network is not there yet has no end of the tunnel.
    for peer in peers.iter().filter(|p| p.network) {
        for net in &peer.pod_cidrs {
            let Some(first) = first(net) else { continue };
            let way = handle.route_get(first, &Without::default())?;
            if way.is_none_or(|way| way.dev.as_str() != names::VXLAN_DEV) {
                continue;
            }
            let pods = peer.pods.iter().copied().filter(|ip| net.contains(ip));
            let asked = std::iter::once(first).chain(pods).collect();
            all.push(Tunnel { node: peer.name.clone(), asked, answered: false });
        }
    }
    Ok(all)
}

/// The first address of a subnet, which is the node's.
fn first(net: &IpNet) -> Option<IpAddr> {
    match net {
        IpNet::V4(net) => Some(std::net::Ipv4Addr::from(u32::from(net.network()) + 1).into()),
        IpNet::V6(net) => Some(std::net::Ipv6Addr::from(u128::from(net.network()) + 1).into()),
    }
    .filter(|ip| net.contains(ip))
}

/// Asks by TCP and by an echo request: firewalls may let either in.
fn asked(mut tunnel: Tunnel) -> Tunnel {
    tunnel.answered = thread::scope(|scope| {
        let mut threads = Vec::new();
        for ip in tunnel.asked.clone() {
            let tcp = move || {
                probe::tcp(SocketAddr::new(ip, KUBELET), PATIENCE).is_ok_and(|a| word(a).is_there())
            };
            let echo = move || {
                causeway_lab::ping(Path::new(HERE), ip, 2, 56, PATIENCE / 2)
                    .is_ok_and(|times| !times.is_empty())
            };
            threads.push(scope.spawn(tcp));
            threads.push(scope.spawn(echo));
        }
        threads.into_iter().any(|thread| thread.join().unwrap_or(false))
    });
    tunnel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_addresses() {
        let of = |net: &str| first(&net.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(of("10.244.1.0/24").as_deref(), Some("10.244.1.1"));
        assert_eq!(of("fd00:1::/64").as_deref(), Some("fd00:1::1"));
        assert_eq!(of("10.244.1.0/32"), None);
    }

    #[test]
    fn some_of_many_nodes() {
        let member = |i: u8, control_plane| Member {
            name: format!("n{i}"),
            addresses: vec![IpAddr::from([192, 0, 2, i])],
            control_plane,
            ..Member::default()
        };
        let members = (0..100).map(|i| member(i, i == 99)).collect();
        let mut site = Site { members, ..Site::default() };
        site.members[98].ready = Some(false);
        let names = |me: usize| -> Vec<String> {
            sample(&site, &site.members[me]).into_iter().map(|m| m.name).collect()
        };
        let (a, b) = (names(0), names(1));
        assert_eq!((a.len(), a[0].as_str()), (NODES, "n99"));
        assert!(a != b && !a.contains(&"n0".to_owned()) && !a.contains(&"n98".to_owned()));
        assert_eq!(names(0), a, "the same ones each time");
        let ports = ports(&member(0, false), &[member(99, true)]);
        assert!(ports.iter().any(|(_, to)| to.to_string() == "192.0.2.99:6443"), "{ports:?}");
    }
}
