use super::*;

fn reply(request: &Request) -> Reply<'_> {
    Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body: &request.body }
}

const FAST: Limit = Limit { rate: 12_500_000_000, burst: 4_000_000 };
const SLOW: Limit = Limit { rate: 1000, burst: u32::MAX };

#[test]
fn limits_are_read_as_they_are_written() {
    for limit in [FAST, SLOW, Limit { rate: 1_000_000, burst: 100_000 }] {
        let root = root(reply(&tbf(7, limit)), 7).unwrap();
        assert_eq!((root.kind.as_str(), root.rate), ("tbf", limit.rate));
        assert!(root.is_limit() && root.is_for(false) && !root.is_for(true));
        assert_eq!(super::root(reply(&tbf(7, limit)), 8), None, "another device");
    }
    let root = root(reply(&tbf(7, FAST)), 7).unwrap();
    assert!(FAST.is(&root));
    assert!(!Limit { rate: FAST.rate + 1, ..FAST }.is(&root));
    assert!(!Limit { burst: FAST.burst * 2, ..FAST }.is(&root));
}

/// Three bursts that take 320 µs, 100 ms and 4.3 million seconds.
#[test]
fn queues_and_bursts() {
    assert_eq!(FAST.ticks(), 5_000);
    assert_eq!(FAST.queue(), 312_500_000 + 4_000_000);
    let plain = Limit { rate: 1_000_000, burst: 100_000 };
    assert_eq!((plain.ticks(), plain.queue()), (1_562_500, 125_000));
    assert_eq!(SLOW.queue(), u32::MAX);
    assert!(SLOW.ticks() > u128::from(u32::MAX));
}

#[test]
fn selections() {
    let nets: Vec<IpNet> =
        ["10.1.2.3/8", "0.0.0.0/0", "fd00:1:2::/47", "::/0"].map(|n| n.parse().unwrap()).to_vec();
    for (end, v4, v6) in [(End::Source, 12, 8), (End::Destination, 16, 24)] {
        for limited in [false, true] {
            let selection = Selection { subnets: &nets, end, limited };
            let requests = htb(7, FAST, &selection);
            let read: Vec<Filter> =
                requests.iter().filter_map(|r| Some(filter(reply(r))?.filter)).collect();
            assert_eq!(read, filters(&selection));
            assert_eq!(read[0].keys, [[0xffu32, 10, v4]]);
            assert_eq!(read[1].keys, [[0; 3]]);
            assert_eq!(read[2].keys.iter().map(|k| k[2]).collect::<Vec<_>>(), [v6, v6 + 4]);
            let class = requests.iter().find_map(|r| limited_class(reply(r), 7)).unwrap();
            assert_eq!(class, (FAST.rate, 5_000));
        }
    }
}

#[test]
fn redirects() {
    let read = filter(reply(&redirect(7, 9))).unwrap();
    assert_eq!(read.filter.through, Some(9));
}

/// Torn and mangled messages are read as something or nothing.
#[test]
fn garbage_is_no_danger() {
    let nets: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().unwrap()).to_vec();
    let selection = Selection { subnets: &nets, end: End::Source, limited: true };
    let mut all = htb(7, FAST, &selection);
    all.extend([tbf(7, FAST), redirect(7, 9), ingress(7)]);
    all.extend(create_ifb(&IfName::new("bwp0").unwrap(), 1500, "note"));
    let look = |r: Reply<'_>| {
        let _ = (root(r, 7), limited_class(r, 7), is_ingress(r, 7), filter(r));
    };
    for request in all {
        for len in 0..request.body.len() {
            look(Reply { body: &request.body[..len], ..reply(&request) });
        }
        for at in 0..request.body.len() {
            for flip in [0xff, 1, 0x80] {
                let mut body = request.body.clone();
                body[at] ^= flip;
                look(Reply { body: &body, ..reply(&request) });
            }
        }
    }
}
