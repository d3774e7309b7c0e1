//! Packets that rules hand to a group, with their connections, on the real kernel.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use causeway_kernel::log::{Log, Logged};

mod common;

fn sh(line: &str) {
    let out = std::process::Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Waits until of all that was told one is as wanted.
fn told(
    log: &mut Log,
    all: &mut Vec<Logged>,
    what: &str,
    wanted: impl Fn(&Logged) -> bool,
) -> Logged {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        all.extend(log.read().unwrap().0);
        if let Some(found) = all.iter().find(|one| wanted(one)) {
            return found.clone();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what}: {all:?}");
}

/// Who asked, what was asked for and who answers: behind a translation of ports, of both directions.
#[test]
fn connections_are_told_with_packets() {
    let _handle = common::start();
    sh("ip link set lo up; nft -f - <<END
        table inet t {
          chain nat { type nat hook output priority -100; udp dport 53 redirect to :5353; }
          chain out { type filter hook output priority 0;
            meta l4proto udp ct direction original log prefix \"asks\" group 7 snaplen 128
            meta l4proto udp ct direction reply log prefix \"answers\" group 7 snaplen 128
            tcp dport 81 log prefix \"of tcp\" group 7 snaplen 128 drop
            meta l4proto { icmp, icmpv6 } log prefix \"error\" group 7 snaplen 128
          }
        }
END");
    let mut log = Log::open(7, 128).unwrap();
    let mut all = Vec::new();
    println!("the kernel tells of connections: {}", log.tells_of_connections());
    for ip in ["127.0.0.1", "::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        let server = UdpSocket::bind((ip, 5353)).unwrap();
        let client = UdpSocket::bind((ip, 4000)).unwrap();
        client.send_to(b"hello", (ip, 53)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(b"there", from).unwrap();
        client.recv_from(&mut [0; 16]).unwrap();
        for (prefix, to) in [("asks", 5353), ("answers", 4000)] {
            let found = told(&mut log, &mut all, prefix, |one| {
                one.prefix == prefix && one.header.is_some_and(|header| header.from.0 == ip)
            });
            let header = found.header.unwrap();
            assert_eq!((header.protocol, header.to), (17, (ip, Some(to))), "{prefix}");
            assert_eq!(found.about, None);
            assert_eq!(found.connection.is_some(), log.tells_of_connections(), "{found:?}");
            if let Some(of) = found.connection {
                assert_eq!(of.protocol, 17);
                assert_eq!(of.client, (ip, Some(4000)), "who asked");
                assert_eq!(of.asked, (ip, Some(53)), "what was asked for");
                assert_eq!(of.server, (ip, Some(5353)), "who answers");
            }
        }
        // An error is about what it answers.
        client.send_to(b"hello", (ip, 9)).unwrap();
        let found = told(&mut log, &mut all, "error", |one| {
            one.about.is_some_and(|about| about.from == (ip, Some(4000)))
        });
        assert_eq!(found.about.unwrap().to, (ip, Some(9)));
        assert_eq!(found.header.unwrap().from, (ip, None));
        // What is dropped is told of all the same.
        let _listener = TcpListener::bind((ip, 81)).unwrap();
        let to = (ip, 81).into();
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(100)).unwrap_err();
        let found = told(&mut log, &mut all, "tcp", |one| {
            one.prefix == "of tcp" && one.header.is_some_and(|header| header.to.0 == ip)
        });
        assert_eq!(found.header.unwrap().to, (ip, Some(81)));
        if let Some(of) = found.connection {
            assert_eq!(of.server, (ip, Some(81)));
        }
    }
}

/// One process at a time listens at a group, and says so to the next.
#[test]
fn a_group_is_taken() {
    let _handle = common::start();
    let first = Log::open(7, 128).unwrap();
    let error = Log::open(7, 128).unwrap_err().to_string();
    assert!(error.contains("log group 7"), "{error}");
    drop(first);
    let start = Instant::now();
    while let Err(error) = Log::open(7, 128) {
        assert!(start.elapsed() < Duration::from_secs(5), "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("free again after {:?}", start.elapsed());
}
