//! Real dumps of the kernel, mangled by chance: no reader panics, and none goes on for ever.
//!
//! Bounded to a few seconds; `CAUSEWAY_FUZZ_SECONDS` is how long. Each case has a seed, which a failure
//! prints; `CAUSEWAY_FUZZ_SEED` begins with it.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use causeway_types::IfName;

use crate::rtnl::read::Names;
use crate::rtnl::{addr, fdb, link, neigh, route};
use crate::sock::{DumpReader, Reply, Request, attributes};
use crate::tc::{End, Limit, Selection};
use crate::{Handle, netns, route_get, rule, tc, tune};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("CAUSEWAY_FUZZ_SEED={}", self.0);
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn sh(command: &str) {
    let done = std::process::Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A namespace with something of everything that is read.
fn furnish(handle: &mut Handle) {
    sh("ip link add br0 type bridge && ip link add v0 type veth peer name v1 && ip link set v0 master br0
        ip link add vx0 type vxlan id 7 dstport 4789 local 10.0.0.1 nolearning
        ip link set br0 up && ip link set v0 up && ip link set v1 up && ip link set vx0 up
        ip addr add 10.0.0.1/24 dev br0 && ip addr add fd00::1/64 dev br0 nodad
        ip route add 10.1.0.0/16 via 10.0.0.7 && ip -6 route add fd01::/32 via fd00::7 mtu 1400
        ip route add unreachable 10.2.0.0/16 table 77
        ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev br0 && ip neigh add proxy 10.0.0.8 dev br0
        bridge fdb add 02:00:00:00:00:09 dev vx0 dst 10.0.0.9
        ip rule add from 10.0.0.1 lookup 100 && ip -6 rule add from fd00::1 fwmark 1 lookup 1000");
    let name = |text: &str| IfName::new(text).unwrap();
    let limit = Limit { rate: 10_000_000_000, burst: 100_000 };
    let subnets = ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().unwrap());
    let selection = Selection { subnets: &subnets, end: End::Source, limited: true };
    handle.create_ifb(&name("ifb7"), 1500, "whose it is").unwrap();
    handle.set_limit(&name("ifb7"), limit, None).unwrap();
    handle.set_up(&name("ifb7")).unwrap();
    handle.set_limit(&name("v1"), limit, Some(&selection)).unwrap();
    handle.redirect(&name("v1"), &name("ifb7")).unwrap();
}

/// All that the kernel tells, as whole messages.
fn dumps(handle: &mut Handle) -> (Vec<Vec<u8>>, Names) {
    let links = handle.route.dump("links", link::dump(), link::decode).unwrap();
    let names: Names = links.into_iter().map(|s| (s.index, s.link.name)).collect();
    let mut requests = vec![link::dump(), addr::dump(), fdb::dump()];
    requests.extend([false, true].map(neigh::dump));
    for family in causeway_types::Family::BOTH {
        requests.push(route::dump(family, None));
        requests.push(rule::dump(family));
    }
    for index in names.keys() {
        requests.extend(tc::requests(*index));
    }
    let mut all = Vec::new();
    for request in requests {
        let whole = |reply: Reply<'_>| Some(message(reply));
        // Some devices have no queues.
        all.extend(handle.route.dump("something", request, whole).unwrap_or_default());
    }
    (all, names)
}

/// A message with its header.
fn message(reply: Reply<'_>) -> Vec<u8> {
    let mut bytes = ((16 + reply.body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(reply.kind.to_ne_bytes());
    bytes.extend(reply.flags.to_ne_bytes());
    bytes.extend(7u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(reply.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// All readers on one message; answers how many took it.
fn read(reply: Reply<'_>, names: &Names) -> usize {
    let _ = (reply.outcome(), attributes(reply.body).count());
    let took = [
        link::decode(reply).is_some(),
        addr::decode(reply, names).is_some(),
        route::decode(reply, names).is_some(),
        neigh::decode(reply, names).is_some(),
        fdb::decode(reply, names).is_some(),
        rule::decode(reply).is_some(),
        tune::decode(reply).is_some(),
        route_get::decode(reply).is_some(),
        tc::decode(reply),
    ];
    took.into_iter().filter(|took| *took).count()
}

fn mangle(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(6) {
        let at = rng.below(bytes.len());
        match rng.below(6) {
            0 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            // Lengths and types, which lead a reader on.
            2 if at + 2 <= bytes.len() => {
                let value = [0, 1, 3, 4, 5, 0x7fff, 0xffff][rng.below(7)];
                bytes[at & !1..][..2].copy_from_slice(&u16::to_ne_bytes(value));
            }
            3 => drop(bytes.drain(at..(at + rng.below(12)).min(bytes.len()))),
            4 => bytes.insert(at, rng.next() as u8),
            5 if rng.below(4) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
}

#[test]
fn mangled_dumps() {
    netns::unshare_for_test().expect("this test needs root");
    let mut handle = Handle::open().unwrap();
    furnish(&mut handle);
    let (messages, names) = dumps(&mut handle);
    let whole: usize = messages
        .iter()
        .map(|m| Reply::split(m).map(|reply| read(reply, &names)).sum::<usize>())
        .sum();
    assert!(messages.len() > 40 && whole > messages.len() / 2, "{} {whole}", messages.len());

    let seconds = variable("CAUSEWAY_FUZZ_SECONDS").unwrap_or(4);
    let first = variable("CAUSEWAY_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let case = Case(first.wrapping_add(count));
        let mut rng = Rng(case.0);
        let mut datagram = Vec::new();
        for _ in 0..=rng.below(4) {
            datagram.extend(&messages[rng.below(messages.len())]);
        }
        mangle(&mut rng, &mut datagram);
        let long = datagram.len();
        let mut n = 0;
        for reply in Reply::split(&datagram) {
            n += 1;
            read(reply, &names);
        }
        assert!(n <= long / 16 + 1, "more messages than fit");
        let each = |reply: Reply<'_>| {
            read(reply, &names);
        };
        let _ = DumpReader::default().read(&datagram, 7, each);
        count += 1;
    }
    println!("{count} cases from seed {first}");
}

/// Keeps what is only sent from being called unused.
#[test]
fn requests_are_messages() {
    let request: Request = link::dump();
    let reply = Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body: &request.body };
    assert_eq!(Reply::split(&message(reply)).count(), 1);
}
