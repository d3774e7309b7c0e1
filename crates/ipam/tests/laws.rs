//! Laws of the allocator on random ranges, and a random walk beside a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_ipam::{AllocError, Owner, Range, RangeSet, State, Suspect, Suspects};
use ipnet::IpNet;
use proptest::prelude::*;

/// The address of a number below a fixed prefix, in either family.
fn address(n: u32, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    } else {
        Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(n)).into()
    }
}

/// Up to three ranges in subnets of 16 addresses each (128 apart), start and end within.
fn a_set(base: u32, ipv4: bool) -> impl Strategy<Value = RangeSet> {
    let one = (0u32..16, 0u32..16, prop::option::of(0u32..16));
    prop::collection::vec(one, 1..4).prop_map(move |specs| {
        let ranges = specs.into_iter().enumerate().map(|(i, (a, b, gateway))| {
            let first = base + 128 * i as u32;
            let len = if ipv4 { 28 } else { 124 };
            let subnet = IpNet::new(address(first, ipv4), len).unwrap();
            let (start, end) = (first + a.min(b), first + a.max(b));
            let gateway = gateway.map(|g| address(first + g, ipv4));
            Range::new(subnet, Some(address(start, ipv4)), Some(address(end, ipv4)), gateway)
        });
        RangeSet::new(ranges.collect::<Result<_, _>>().unwrap()).unwrap()
    })
}

fn sets() -> impl Strategy<Value = Vec<RangeSet>> {
    prop_oneof![
        a_set(0, true).prop_map(|s| vec![s]),
        a_set(0, false).prop_map(|s| vec![s]),
        (a_set(0, true), a_set(0, false)).prop_map(|(a, b)| vec![a, b]),
        (a_set(0, true), a_set(4096, true)).prop_map(|(a, b)| vec![a, b]),
    ]
}

/// Every address of a set in order, as a naive implementation lists them.
fn usable(set: &RangeSet) -> Vec<IpAddr> {
    let gateways: BTreeSet<_> = set.ranges().iter().filter_map(Range::gateway).collect();
    let mut all = Vec::new();
    for range in set.ranges() {
        let subnet = range.subnet();
        for ip in subnet_addresses(subnet) {
            let broadcast = range.is_ipv4() && ip == subnet.broadcast();
            if range.contains(ip) && !broadcast && ip != subnet.network() && !gateways.contains(&ip)
            {
                all.push(ip);
            }
        }
    }
    all
}

fn subnet_addresses(net: IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(net) => {
            let first = u32::from(net.network());
            (first..=u32::from(net.broadcast())).map(|n| Ipv4Addr::from(n).into()).collect()
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network());
            (first..=u128::from(net.broadcast())).map(|n| Ipv6Addr::from(n).into()).collect()
        }
    }
}

fn pod(n: usize) -> Owner {
    Owner::new(format!("c{n}"), ["eth0", "eth0", "net1"][n % 3])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without releases, the set is given out in order, completely, and no further.
    #[test]
    fn exhausted_exactly_at_capacity(set in prop_oneof![a_set(0, true), a_set(0, false)]) {
        let expected = usable(&set);
        prop_assert_eq!(set.capacity(), expected.len() as u128);
        let mut state = State::new();
        let sets = [set];
        let mut got = Vec::new();
        for n in 0..expected.len() {
            got.push(state.allocate(&sets, &pod(n), &[]).unwrap()[0].address.addr());
        }
        prop_assert_eq!(got, expected);
        let exhausted = matches!(state.allocate(&sets, &pod(9999), &[]), Err(AllocError::Exhausted { .. }));
        prop_assert!(exhausted);
    }

    /// What is freed comes back: from a full set, the one free address is always found.
    #[test]
    fn the_one_free_address_is_found(set in prop_oneof![a_set(0, true), a_set(0, false)], which in any::<prop::sample::Index>()) {
        let total = usable(&set).len();
        prop_assume!(total > 0);
        let sets = [set];
        let mut state = State::new();
        for n in 0..total {
            state.allocate(&sets, &pod(n), &[]).unwrap();
        }
        let freed = state.release(&pod(which.index(total)));
        let again = state.allocate(&sets, &pod(9999), &[]).unwrap();
        prop_assert_eq!(freed, vec![again[0].address.addr()]);
    }

    /// From a set in order with reserved networks, beside a naive model: the first range with a free
    /// address gives one; nothing reserved is given; what cools down is given only where nothing else is
    /// free, and what has done so longest first.
    #[test]
    fn in_order_without_what_is_reserved_and_what_cools_down_last(
        set in prop_oneof![a_set(0, true), a_set(0, false)],
        shut in prop::collection::vec((0u32..300, 0u8..5), 0..4),
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..60),
    ) {
        let ipv4 = set.is_ipv4();
        let whole = if ipv4 { 32 } else { 128 };
        let shut: Vec<IpNet> =
            shut.iter().map(|(n, bits)| IpNet::new(address(*n, ipv4), whole - bits).unwrap().trunc()).collect();
        let open: Vec<IpAddr> =
            usable(&set).into_iter().filter(|ip| !shut.iter().any(|net| net.contains(ip))).collect();
        let set = set.in_order().without(shut);
        prop_assert_eq!(set.capacity(), open.len() as u128);
        let sets = [set];
        let mut held: BTreeMap<IpAddr, Owner> = BTreeMap::new();
        let mut freed: Vec<IpAddr> = Vec::new();
        let mut last = None;
        for (i, (give, which)) in steps.into_iter().enumerate() {
            if !give && !held.is_empty() {
                let ip = *held.keys().nth(which.index(held.len())).unwrap();
                held.remove(&ip);
                freed.push(ip);
                continue;
            }
            let mut state = State::new();
            held.iter().for_each(|(ip, owner)| drop(state.insert(*ip, owner.clone())));
            freed.iter().enumerate().for_each(|(at, ip)| state.set_cooling(*ip, at as u64));
            last.into_iter().for_each(|ip| state.set_last(0, ip));
            let got = state.allocate(&sets, &pod(i), &[]);
            let free: Vec<IpAddr> = open.iter().copied().filter(|ip| !held.contains_key(ip)).collect();
            let warm = |ip: &&IpAddr| !freed.contains(ip);
            match (got, free.iter().find(warm)) {
                (Ok(leases), Some(first)) => {
                    let ip = leases[0].address.addr();
                    prop_assert!(open.contains(&ip) && warm(&&ip) && !held.contains_key(&ip), "{ip}");
                    // Of the same range: where in it is for round robin to say.
                    prop_assert_eq!(sets[0].range_of(ip), sets[0].range_of(*first));
                    held.insert(ip, pod(i));
                    last = Some(ip);
                }
                (Ok(leases), None) => {
                    let ip = leases[0].address.addr();
                    let longest = freed.iter().find(|ip| free.contains(ip)).copied();
                    prop_assert_eq!(Some(ip), longest);
                    freed.retain(|other| *other != ip);
                    held.insert(ip, pod(i));
                    last = Some(ip);
                }
                (Err(AllocError::Exhausted { held: n, .. }), None) => {
                    prop_assert!(free.is_empty());
                    prop_assert_eq!(n, held.len());
                }
                other => prop_assert!(false, "{:?} with {:?} free", other, free),
            }
        }
    }

    /// A random walk of a thousand steps, beside the model below.
    #[test]
    fn behaves_like_the_naive_model(sets in sets(), steps in prop::collection::vec(step(), 1..1000)) {
        let mut state = State::new();
        let mut model = Model::new(&sets);
        for step in steps {
            match step {
                Step::Allocate(n, wish) => {
                    let wish: Vec<IpAddr> = wish.map(|w| w.get(&model.all).to_owned()).into_iter().collect();
                    let got = state.allocate(&sets, &pod(n), &wish).ok();
                    let got = got.map(|l| l.into_iter().map(|l| l.address.addr()).collect::<Vec<_>>());
                    prop_assert_eq!(got, model.allocate(pod(n), wish.first().copied()));
                }
                Step::Release(n) => {
                    prop_assert_eq!(state.release(&pod(n)), model.release(|o| *o == pod(n)));
                }
                Step::Gc(below) => {
                    let valid: BTreeSet<Owner> = (0..below).map(pod).collect();
                    let got: Vec<_> = state.release_stale(&valid).into_iter().map(|(ip, _)| ip).collect();
                    prop_assert_eq!(got, model.release(|o| !valid.contains(o)));
                }
            }
            let leases: BTreeMap<_, _> = state.leases().map(|(ip, o)| (ip, o.clone())).collect();
            prop_assert_eq!(&leases, &model.leases);
            for ip in leases.keys() {
                prop_assert!(sets.iter().any(|s| s.contains(*ip)) && !sets.iter().any(|s| s.is_gateway(*ip)));
            }
        }
    }

    /// Nothing is released on one observation, and nothing that was written anew in between.
    #[test]
    fn two_observations(rounds in prop::collection::vec(prop::collection::btree_map(0u32..8, 0u64..2, 0..8), 1..8)) {
        let mut suspects = Suspects::new();
        let mut before: BTreeSet<Suspect> = BTreeSet::new();
        for round in rounds {
            let now: BTreeSet<Suspect> = round
                .into_iter()
                .map(|(n, generation)| Suspect { ip: address(n, true), owner: pod(n as usize), generation })
                .collect();
            let released = suspects.observe(now.clone());
            prop_assert_eq!(released, now.intersection(&before).cloned().collect::<Vec<_>>());
            before = now;
        }
    }
}

/// A million calls on networks of each kind, the state and the model going on through all of them.
/// `CAUSEWAY_SEED` repeats a walk.
#[test]
fn a_million_calls() {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let range = |base: u32, ipv4| {
        let net = IpNet::new(address(base, ipv4), if ipv4 { 28 } else { 124 }).unwrap();
        Range::new(net, None, None, None).unwrap()
    };
    let set = |ipv4| RangeSet::new(vec![range(0, ipv4), range(128, ipv4)]).unwrap();
    for sets in [vec![set(true)], vec![set(false)], vec![set(true), set(false)]] {
        let (mut state, mut model) = (State::new(), Model::new(&sets));
        let (mut random, mut given) = (seed, 0);
        for n in 0..333_334 {
            // SplitMix64.
            let mut below = |n: usize| {
                random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) % n as u64) as usize
            };
            let (what, owner) = (below(200), pod(below(60)));
            match what {
                0..110 => {
                    let wish = (what < 10).then(|| model.all[below(model.all.len())]);
                    let got = state.allocate(&sets, &owner, &Vec::from_iter(wish)).ok();
                    let got: Option<Vec<IpAddr>> =
                        got.map(|l| l.into_iter().map(|l| l.address.addr()).collect());
                    given += usize::from(got.is_some());
                    assert_eq!(got, model.allocate(owner, wish), "step {n}, CAUSEWAY_SEED={seed}");
                }
                110 => {
                    let valid: BTreeSet<Owner> = (0..below(60)).map(pod).collect();
                    let got = state.release_stale(&valid).into_iter().map(|(ip, _)| ip);
                    let want = model.release(|o| !valid.contains(o));
                    assert_eq!(Vec::from_iter(got), want, "step {n}, CAUSEWAY_SEED={seed}");
                }
                _ => {
                    let want = model.release(|o| *o == owner);
                    assert_eq!(state.release(&owner), want, "step {n}, CAUSEWAY_SEED={seed}");
                }
            }
            if n % 64 == 0 {
                let leases: BTreeMap<_, _> = state.leases().map(|(i, o)| (i, o.clone())).collect();
                assert_eq!(leases, model.leases, "step {n}, CAUSEWAY_SEED={seed}");
            }
        }
        assert!(given > 30_000, "only {given} were given");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, Option<prop::sample::Index>),
    Release(usize),
    Gc(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..60).prop_map(|n| Step::Allocate(n, None)),
        1 => (0usize..60, any::<prop::sample::Index>()).prop_map(|(n, w)| Step::Allocate(n, Some(w))),
        4 => (0usize..60).prop_map(Step::Release),
        1 => (0usize..60).prop_map(Step::Gc),
    ]
}

/// The allocator written as lists: all addresses, looked through from the one after the last.
struct Model {
    usable: Vec<Vec<IpAddr>>,
    all: Vec<IpAddr>,
    last: Vec<Option<IpAddr>>,
    leases: BTreeMap<IpAddr, Owner>,
}

impl Model {
    fn new(sets: &[RangeSet]) -> Self {
        let usable: Vec<_> = sets.iter().map(usable).collect();
        let gateways = sets.iter().flat_map(|s| s.ranges()).filter_map(Range::gateway);
        let wishes =
            usable.iter().flatten().copied().chain(gateways).chain([address(99_999, true)]);
        let (all, last) = (wishes.collect(), vec![None; sets.len()]);
        Model { usable, all, last, leases: BTreeMap::new() }
    }

    fn allocate(&mut self, owner: Owner, wish: Option<IpAddr>) -> Option<Vec<IpAddr>> {
        if wish.is_some_and(|w| !self.usable.iter().flatten().any(|ip| *ip == w)) {
            return None;
        }
        let mut got = Vec::new();
        for (i, usable) in self.usable.iter().enumerate() {
            if usable.iter().any(|ip| self.leases.get(ip) == Some(&owner)) {
                return None;
            }
            let wish = wish.filter(|w| usable.contains(w));
            let after_last =
                self.last[i].map_or(0, |l| usable.iter().position(|ip| *ip == l).unwrap() + 1);
            let (before, after) = usable.split_at(after_last);
            let candidates: Vec<IpAddr> = match wish {
                Some(w) => vec![w],
                None => after.iter().chain(before).copied().collect(),
            };
            got.push(candidates.into_iter().find(|ip| !self.leases.contains_key(ip))?);
        }
        for (i, ip) in got.iter().enumerate() {
            self.last[i] = Some(*ip);
            self.leases.insert(*ip, owner.clone());
        }
        Some(got)
    }

    fn release(&mut self, gone: impl Fn(&Owner) -> bool) -> Vec<IpAddr> {
        let ips: Vec<_> = self.leases.iter().filter(|(_, o)| gone(o)).map(|(ip, _)| *ip).collect();
        self.leases.retain(|_, o| !gone(o));
        ips
    }
}
