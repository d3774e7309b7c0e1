//! Connections that were judged are remembered until something changes, and no longer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use causeway_lab::{Pod, Road, inside};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::enforce::{apply, pod, settled};
use crate::enforce_life::{Talk, change, served};
use crate::world::{PATIENCE, World, dual, with};

/// Where a server of files is asked, and from where it sends one.
const ASKED: u16 = 2121;
const SENDS: u16 = 2200;

/// In this time nothing comes that is stopped.
const SHORT: Duration = Duration::from_millis(500);

/// Counts packets around the policies' chain of the server's node; has the kernel read what servers of files say;
/// and gives connections to one port a mark of its own.
const COUNTERS: &str = "table inet look {
    counter remembered {}
    counter unknown {}
    counter theirs {}
    counter brought {}
    ct helper files { type \"ftp\" protocol tcp; }
    chain first { type filter hook prerouting priority -10;
        tcp dport 2121 ct helper set \"files\"
        tcp dport 8081 ct state new ct mark set 0x5
    }
    chain before { type filter hook forward priority -1;
        ct state related tcp dport 2200 counter name brought
        ct state established ct mark & 0xf0000000 == 0xc0000000 counter name remembered
        ct state established ct mark 0 counter name unknown
    }
    chain after { type filter hook forward priority 1;
        ct mark 0x5 counter name theirs
    }
}";

fn counted(world: &World, counter: &str) -> u64 {
    let text = world.on("node-1", &format!("nft list counter inet look {counter}"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

/// A listing of the table in whatever order it was made, but for its mark.
pub(crate) fn but_for_mark(listing: &str) -> String {
    let of_mark = |line: &&str| line.contains("ct mark set") || line.contains("elements = { 0xc");
    let mut lines: Vec<&str> = listing.lines().filter(|line| !of_mark(line)).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The mark of now.
fn mark(world: &World) -> String {
    let set = world.on("node-1", "nft list set inet causeway_policy judged");
    let elements = set.split_once("elements = {").unwrap().1;
    elements.split_once('}').unwrap().0.trim().to_owned()
}

fn from_clients(ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
    let clients = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [clients], "ports": ports}]})
}

/// Where a server listens in a pod.
fn listen(world: &World, pod: &Pod, port: u16) -> TcpListener {
    inside(&world.netns(pod), || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?)).unwrap()
}

/// Whether a pod reaches a port of another one within some time.
fn reaches(world: &World, from: &Pod, to: SocketAddr, patience: Duration) -> bool {
    let connect = || Ok(TcpStream::connect_timeout(&to, patience).is_ok());
    inside(&world.netns(from), connect).unwrap()
}

#[test]
fn what_was_judged_is_remembered_until_something_changes() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        let server = pod(world, "server", "node-1", &json!({"app": "server"}));
        let client = pod(world, "client", "node-2", &json!({"app": "client"}));
        world.whole();
        apply(world, "default", "p", &from_clients(&[8080, 8081, ASKED]));
        settled(world, 1);
        world.on("node-1", &format!("nft '{COUNTERS}'"));
        for family in Family::BOTH {
            change(world, "p", &from_clients(&[8080, 8081, ASKED]));
            let mut talk = Talk::open(&world.netns(&client), served(&server, family));
            settled(world, 1);
            assert!(talk.goes_on());
            // Nothing changes: no packet is unknown.
            let before = ["remembered", "unknown"].map(|name| counted(world, name));
            assert!((0..20).all(|_| talk.goes_on()));
            let after = ["remembered", "unknown"].map(|name| counted(world, name));
            assert!(after[0] >= before[0] + 40, "{family}: {before:?} {after:?}");
            assert_eq!(after[1], before[1], "{family}");
            // Something does that allows the same, and something that does not.
            let first = mark(world);
            change(world, "p", &from_clients(&[8079, 8080]));
            settled(world, 1);
            assert_ne!(mark(world), first);
            assert!(talk.goes_on(), "{family}");
            change(world, "p", &from_clients(&[8079]));
            settled(world, 1);
            assert!(!talk.goes_on(), "{family}");
        }
        a_mark_of_others(world, &client, &server);
        brought_about(world, &client, &server);
    });
}

/// It stays, and the connection is judged packet by packet.
fn a_mark_of_others(world: &World, client: &Pod, server: &Pod) {
    change(world, "p", &from_clients(&[8081]));
    settled(world, 1);
    let listener = listen(world, server, 8081);
    let to = SocketAddr::new(server.ip(Family::V4).unwrap(), 8081);
    let mut near = inside(&world.netns(client), || {
        Ok(TcpStream::connect_timeout(&to, Duration::from_secs(5))?)
    })
    .unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let mut there = |byte: u8, patience: Duration| {
        near.write_all(&[byte]).unwrap();
        let mut read = [0; 64];
        far.set_read_timeout(Some(patience)).unwrap();
        far.read(&mut read).is_ok_and(|n| read[..n].contains(&byte))
    };
    let before = counted(world, "theirs");
    assert!((1..=10).all(|byte| there(byte, PATIENCE)));
    assert!(counted(world, "theirs") >= before + 10);
    change(world, "p", &from_clients(&[8079]));
    settled(world, 1);
    assert!(!there(11, SHORT));
    change(world, "p", &from_clients(&[8081]));
    settled(world, 1);
    // What was held up comes too.
    assert!((12..100).any(|byte| there(byte, SHORT)));
}

/// A connection that another one brings about has its mark, and is judged by itself.
fn brought_about(world: &World, client: &Pod, server: &Pod) {
    let asked = listen(world, server, ASKED);
    let _sends = listen(world, server, SENDS);
    let ip = server.ip(Family::V4).unwrap();
    let data = SocketAddr::new(ip, SENDS);
    let ask = || {
        let control =
            inside(&world.netns(client), || Ok(TcpStream::connect((ip, ASKED))?)).unwrap();
        let (mut answers, _) = asked.accept().unwrap();
        let text = ip.to_string().replace('.', ",");
        let (high, low) = (SENDS / 256, SENDS % 256);
        // The kernel reads what comes behind a whole line.
        let passive = format!("227 Entering Passive Mode ({text},{high},{low})\r\n");
        for line in ["220 ready\r\n", &passive] {
            answers.write_all(line.as_bytes()).unwrap();
            let mut read = vec![0; line.len()];
            (&control).read_exact(&mut read).unwrap();
        }
        // They are to stay.
        (control, answers)
    };
    for (ports, allowed) in [(&[ASKED][..], false), (&[ASKED, SENDS][..], true)] {
        change(world, "p", &from_clients(ports));
        settled(world, 1);
        let _both = ask();
        let before = counted(world, "brought");
        let patience = if allowed { PATIENCE } else { SHORT };
        assert_eq!(reaches(world, client, data, patience), allowed, "{ports:?}");
        assert!(counted(world, "brought") > before, "the kernel sees not whose it is");
    }
}
