//! What comes back from ports, by each family, from hosts that take, refuse, reject and drop.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use causeway_kernel::NetNs;
use causeway_kernel::probe::{Answer, tcp};

mod common;

fn sh(line: &str) {
    let out = std::process::Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

const PATIENCE: Duration = Duration::from_millis(300);

#[test]
fn ports_answer_as_they_are() {
    let _handle = common::start();
    sh("ip link set lo up; ip netns add far; ip link add near type veth peer name far netns far
            for d in near:1 far:2; do
              x=; [ ${d%:*} = far ] && x='ip netns exec far'
              $x sysctl -qw net.ipv6.conf.${d%:*}.accept_dad=0
              $x ip addr add 192.0.2.${d#*:}/24 dev ${d%:*}
              $x ip addr add 2001:db8::${d#*:}/64 dev ${d%:*} nodad
              $x ip link set ${d%:*} up
            done
            ip netns exec far nft -f - <<END
            table inet fw {
              chain in {
                type filter hook input priority 0;
                tcp dport 2 reject
                tcp dport 3 reject with icmpx admin-prohibited
                tcp dport 4 drop
                tcp dport 5 reject with tcp reset
              }
            }
END");
    let far = NetNs::open("/run/netns/far").unwrap();
    let listeners =
        far.run(|| ["0.0.0.0:9", "[::]:9"].map(|a| listen(a.parse().unwrap()))).unwrap();
    for ip in ["192.0.2.2", "2001:db8::2"] {
        let ip: IpAddr = ip.parse().unwrap();
        let at = |port| tcp(SocketAddr::new(ip, port), PATIENCE).unwrap();
        // The first packet may be lost while the link comes up.
        let first = tcp(SocketAddr::new(ip, 9), Duration::from_secs(10)).unwrap();
        assert_eq!((first, at(9)), (Answer::Open, Answer::Open), "{ip}");
        assert_eq!(at(1), Answer::Closed, "{ip}");
        assert_eq!(at(2), Answer::Rejected, "{ip}: its own word of iptables");
        assert_eq!(at(3), Answer::Rejected, "{ip}: prohibited");
        assert_eq!(at(4), Answer::Silent, "{ip}");
        assert_eq!(at(5), Answer::Closed, "{ip}: a reset is a reset");
    }
    drop(listeners);
    for ip in ["198.51.100.1", "2001:db8:1::1"] {
        let to = SocketAddr::new(ip.parse().unwrap(), 1);
        assert_eq!(tcp(to, PATIENCE).unwrap(), Answer::Unreachable, "{ip}: no route");
    }
}

/// Of IPv6 alone where that is said.
fn listen(at: SocketAddr) -> TcpListener {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let found = socket(family, SocketType::STREAM, None).unwrap();
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&found, true).unwrap();
    }
    bind(&found, &at).unwrap();
    listen(&found, 8).unwrap();
    found.into()
}

#[test]
fn neighbours_that_the_kernel_learned() {
    let mut handle = common::start();
    sh("ip link add near type veth peer name far address 02:00:00:00:00:02; ip link set near up
            ip addr add 192.0.2.1/24 dev near
            ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 nud reachable dev near
            ip neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 nud stale dev near
            ip neigh add 192.0.2.3 lladdr 02:00:00:00:00:03 nud permanent dev near
            ip neigh add 192.0.2.4 lladdr 02:00:00:00:00:04 nud failed dev near");
    let found = handle.neighbours().unwrap();
    let mut found: Vec<String> =
        found.iter().map(|(dev, ip, mac)| format!("{dev} {ip} {mac}")).collect();
    found.sort();
    let expected = [
        "near 192.0.2.2 02:00:00:00:00:02",
        "near 192.0.2.3 02:00:00:00:00:03",
        "near 2001:db8::2 02:00:00:00:00:02",
    ];
    assert_eq!(found, expected);
}
