//! More failures of pod networks in the field, recreated: what plugins need, what they leave, and
//! whose address it is.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use common::served::{Families, Mode, addresses, conf, serve, write_node_file};
use common::trace::Held;
use common::ways::{Way, dual, everywhere, gc, inside};
use common::{netns_of, sh, try_sh};
use serde_json::json;

/// Field failure 5: "connection is unauthorized". Plugins hold no credential: they open no
/// connection but to the kernel and to the agent's socket on this node, and read nothing else.
#[test]
fn failure_05_no_credential_and_no_api() {
    dual(|node, conf, way, _| {
        fs::create_dir_all("/run/empty").unwrap();
        sh("mount --bind /run/empty /etc");
        node.pod("p1");
        let mut seen = Vec::new();
        for command in ["STATUS", "ADD", "DEL"] {
            let mut call = Held::start(node, command, "p1", conf, "");
            while call.next() {
                let (number, args) = call.system_call();
                match number {
                    nix::libc::SYS_socket => {
                        let local = [nix::libc::AF_NETLINK, nix::libc::AF_UNIX];
                        let family = args[0] as i32;
                        assert!(local.contains(&family), "{way:?} {command}: family {family}");
                    }
                    nix::libc::SYS_openat => seen.push(call.text_at(args[1])),
                    _ => {}
                }
            }
            call.finish().ok();
        }
        assert!(seen.iter().any(|p| p.starts_with("/var/lib/cni")), "nothing was seen: {seen:?}");
        let known = ["/var/lib/c", "/run/causeway/node.json", "/run/netns/p1", "/proc/", "/sys/"];
        let system = ["/dev/null", "/etc/ld.so.", "/lib", "/usr/lib"];
        for path in &seen {
            let fine = known.iter().chain(&system).any(|k| path.starts_with(k));
            assert!(fine || !path.starts_with('/'), "{way:?} reads {path}");
        }
        assert_eq!(node.residue(), "");
    });
}

/// The other half: without the agent a pod starts, but not where policies would be missing.
#[test]
fn failure_05_without_an_agent() {
    for mode in Mode::ALL {
        let test = move || {
            let node = serve(mode, Families::Dual);
            let conf = conf(mode, Families::Dual);
            let policies = json!({"policyNamespaces": ["guarded"]});
            write_node_file(mode, Families::Dual, policies);
            for (pod, namespace, code) in [("p1", "free", 0), ("p2", "guarded", 11)] {
                node.pod(pod);
                let mut call = node.call("ADD", pod, &conf);
                call.args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}");
                let answer = call.run();
                match code {
                    0 => drop(answer.ok()),
                    _ => assert_eq!(answer.err().0, code),
                }
            }
            assert!(!inside("p2") && !node.residue().contains("p2-eth0"));
            node.del("p1", &conf);
            node.del("p2", &conf);
            assert_eq!(node.residue(), "", "{mode:?}");
        };
        std::thread::spawn(test).join().unwrap();
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Answers each datagram with a name, inside a pod.
fn echo(pod: &str, name: &'static str, ip: &str) {
    let bind = at(ip, 5353);
    let socket = netns_of(pod).run(move || UdpSocket::bind(bind).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
}

/// What the service answers to a client that keeps its source port; empty when nothing comes.
fn asks(client: &UdpSocket, service: SocketAddr) -> String {
    let mut buffer = [0; 64];
    // Late answers to questions of before.
    client.set_nonblocking(true).unwrap();
    while client.recv(&mut buffer).is_ok() {}
    client.set_nonblocking(false).unwrap();
    // As clients of UDP do: a first packet may be lost while neighbours are looked for.
    for _ in 0..3 {
        client.send_to(b"?", service).unwrap();
        if let Ok(n) = client.recv(&mut buffer) {
            return String::from_utf8_lossy(&buffer[..n]).into_owned();
        }
    }
    String::new()
}

fn direct_to(ip: &str) {
    let family = if ip.contains(':') { "ip6" } else { "ip" };
    let vip = if ip.contains(':') { "fd99::53" } else { "10.99.0.53" };
    let to = at(ip, 5353);
    let _ = try_sh(&format!("nft delete table {family} service"));
    sh(&format!(
        "nft 'table {family} service {{ chain c {{ type nat hook prerouting priority -100; \
         {family} daddr {vip} udp dport 53 dnat to {to}; }}; }}'"
    ));
}

fn entries(ip: &str) -> usize {
    let all = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    let ip: IpAddr = ip.parse().unwrap();
    let end = |word: &str| {
        let address = word.strip_prefix("src=").or_else(|| word.strip_prefix("dst="));
        address.and_then(|a| a.parse::<IpAddr>().ok()) == Some(ip)
    };
    all.lines().filter(|l| l.split_whitespace().any(end)).count()
}

/// Field failure 7: a UDP flow is black-holed after its pod restarts, because connection tracking
/// remembers where the old one was. A foreign table plays the Service; the client keeps its port.
#[test]
fn failure_07_udp_follows_a_pod_that_restarts() {
    dual(|node, conf, way, _| {
        if !way.has_interfaces() {
            return;
        }
        // With it on, the kernel bridges what was translated to a pod of the same bridge, and
        // isolated ports drop that.
        let isolated = matches!(way, Way::Served(Mode::Bridge | Mode::Classic));
        if isolated && Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
            sh(
                "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
            );
        }
        for pod in ["client", "other", "old", "new"] {
            node.pod(pod);
        }
        node.add("client", conf);
        let other = addresses(&node.add("other", conf));
        let old = addresses(&node.add("old", conf));
        let clients: Vec<UdpSocket> = old
            .iter()
            .map(|ip| {
                // Ports of their own, because a socket of IPv6 takes the port of both.
                let any = if ip.contains(':') { at("::", 40006) } else { at("0.0.0.0", 40004) };
                let bind = move || UdpSocket::bind(any).unwrap();
                let socket = netns_of("client").run(bind).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                socket
            })
            .collect();
        let vip = |ip: &str| at(if ip.contains(':') { "fd99::53" } else { "10.99.0.53" }, 53);
        for ((ip, kept), client) in old.iter().zip(&other).zip(&clients) {
            echo("old", "old", ip);
            echo("other", "other", kept);
            direct_to(ip);
            assert_eq!(asks(client, vip(ip)), "old", "{way:?} {ip}");
            // A connection of the node to a pod that stays.
            let own =
                UdpSocket::bind(if ip.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            own.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            assert_eq!(asks(&own, at(kept, 5353)), "other");
            assert!(entries(ip) == 1 && entries(kept) == 1, "{way:?} {ip}");
        }
        node.del("old", conf);
        for (ip, kept) in old.iter().zip(&other) {
            assert_eq!((entries(ip), entries(kept)), (0, 1), "{way:?}: of {ip} and of {kept}");
        }
        // Another address, then the same address again for yet another pod.
        let moved = addresses(&node.add("new", conf));
        for (ip, client) in moved.iter().zip(&clients) {
            echo("new", "new", ip);
            direct_to(ip);
            assert_eq!(asks(client, vip(ip)), "new", "{way:?} {ip}");
        }
        node.del("new", conf);
        // The client goes on while there is no pod.
        for (ip, client) in moved.iter().zip(&clients) {
            client.send_to(b"?", vip(ip)).unwrap();
        }
        for (set, ip) in old.iter().enumerate() {
            let last = format!("/var/lib/cni/networks/pod-network/last_reserved_ip.{set}");
            fs::write(last, ip).unwrap();
        }
        node.pod("again");
        let again = addresses(&node.add("again", conf));
        assert_eq!(again, moved, "the same address again");
        for (ip, client) in again.iter().zip(&clients) {
            echo("again", "again", ip);
            assert_eq!(asks(client, vip(ip)), "again", "{way:?} {ip}");
        }
    });
}

/// Field failure 8: pods stuck in Terminating, because DEL fails on what is gone.
#[test]
fn failure_08_del_of_what_is_gone() {
    everywhere(|node, conf, way, families| {
        fs::write("/run/no-namespace", "").unwrap();
        sh("mkfifo /run/pipe");
        let paths = [
            None,
            Some(""),
            Some("/run/netns/gone"),
            Some("/run/no-namespace"),
            Some("/run/pipe"),
            Some("/run"),
        ];
        let missing = ["namespace", "interface", "record", "lease", "node file", "everything"];
        for (n, (gone, path)) in
            missing.iter().flat_map(|m| paths.iter().map(move |p| (*m, *p))).enumerate()
        {
            if families != Families::Dual && n % 3 != 0 {
                continue;
            }
            let pod = format!("p{n}");
            node.pod(&pod);
            let result = node.add(&pod, conf);
            let all = gone == "everything";
            if (all || gone == "interface") && way.has_interfaces() {
                sh(&format!("ip -n {pod} link del eth0"));
            }
            if all || gone == "namespace" {
                node.remove_pod(&pod);
            }
            if all || gone == "record" {
                let _ = fs::remove_dir_all("/var/lib/causeway/attachments");
            }
            if all || gone == "lease" {
                let _ = fs::remove_dir_all("/var/lib/cni");
                let _ = fs::remove_dir_all("/var/lib/causeway/leases");
            }
            if all || gone == "node file" {
                let _ = fs::remove_file("/run/causeway/node.json");
            }
            let mut with_result = conf.clone();
            with_result["prevResult"] = result;
            let mut call = node.call("DEL", &pod, &with_result);
            call.netns = path.map(str::to_owned);
            for _ in 0..2 {
                let answer = common::ways::soon(&call);
                assert_eq!(answer.code, 0, "{way:?}: {gone}, {path:?}: {}", answer.stdout);
            }
            // Without lease and record nobody tells the address, and only what goes by names is
            // removed. An entry by address may be the next pod's.
            if gone == "everything" || gone == "lease" && way == Way::Alone {
                assert!(!inside(&pod) && sh("ip -o link show type veth").is_empty(), "{way:?}");
                let _ = try_sh("nft delete table inet causeway_cni");
                let _ = try_sh("nft delete table netdev causeway_cni");
                sh("ip neigh flush nud permanent");
                sh("ip -6 neigh flush nud permanent; ip -6 neigh flush proxy; true");
                for line in sh("ip -6 neigh show proxy").lines() {
                    sh(&format!("ip neigh del proxy {}", line.trim_end_matches("proxy")));
                }
            }
            assert_eq!(node.residue(), "", "{way:?} {families:?}: {gone}, {path:?}");
            let lo = json!({"cniVersion": "1.1.0", "name": "lo", "type": "loopback"});
            let mut call = node.call("DEL", &pod, &lo);
            (call.ifname, call.netns) = ("lo".to_owned(), path.map(str::to_owned));
            common::ways::soon(&call).ok();
            if let Way::Served(mode) = way {
                write_node_file(mode, families, json!({}));
            }
            gc(node, conf, &[]).ok();
        }
    });
}
