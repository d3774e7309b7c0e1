//! The order and the refusals of host-local, by example, for both families.

use std::net::IpAddr;

use causeway_ipam::{AllocError, Lease, Owner, Range, RangeError, RangeSet, State, check_disjoint};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Result<Range, RangeError> {
    let opt = |t: &str| (!t.is_empty()).then(|| ip(t));
    Range::new(subnet.parse().unwrap(), opt(start), opt(end), opt(gateway))
}

fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
    RangeSet::new(ranges.iter().map(|(s, a, b)| range(s, a, b, "").unwrap()).collect()).unwrap()
}

fn pod(n: usize) -> Owner {
    Owner::new(format!("c{n}"), "eth0")
}

fn addresses(leases: &[Lease]) -> Vec<String> {
    leases.iter().map(|l| l.address.to_string()).collect()
}

fn take(state: &mut State, sets: &[RangeSet], n: usize) -> Vec<String> {
    addresses(&state.allocate(sets, &pod(n), &[]).unwrap())
}

#[test]
fn defaults_of_a_range() {
    for (subnet, gateway, start, end) in [
        ("10.1.2.0/24", "10.1.2.1", "10.1.2.1", "10.1.2.254"),
        ("10.1.2.4/30", "10.1.2.5", "10.1.2.5", "10.1.2.6"),
        ("fd00:1::/64", "fd00:1::1", "fd00:1::1", "fd00:1::ffff:ffff:ffff:ffff"),
        ("fd00:1::/126", "fd00:1::1", "fd00:1::1", "fd00:1::3"),
        ("0.0.0.0/0", "0.0.0.1", "0.0.0.1", "255.255.255.254"),
        ("::/0", "::1", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ] {
        let r = range(subnet, "", "", "").unwrap();
        let is = (r.gateway().unwrap(), r.start(), r.end());
        assert_eq!(is, (ip(gateway), ip(start), ip(end)), "{subnet}");
    }
}

#[test]
fn refusals_of_a_range_say_what_would_be_right() {
    for (subnet, start, end, gateway, message) in [
        (
            "10.1.2.0/31",
            "",
            "",
            "",
            "network 10.1.2.0/31 is too small to allocate from: use a prefix of at most /30",
        ),
        (
            "fd00::/127",
            "",
            "",
            "",
            "network fd00::/127 is too small to allocate from: use a prefix of at most /126",
        ),
        (
            "10.1.2.3/24",
            "",
            "",
            "",
            "network 10.1.2.3/24 has host bits set: the network of that length is 10.1.2.0/24",
        ),
        ("10.1.2.0/24", "10.1.3.1", "", "", "rangeStart 10.1.3.1 is not in network 10.1.2.0/24"),
        ("10.1.2.0/24", "", "fd00::1", "", "rangeEnd fd00::1 is not in network 10.1.2.0/24"),
        ("10.1.2.0/24", "", "", "fd00::1", "gateway fd00::1 is not in network 10.1.2.0/24"),
        (
            "10.1.2.0/24",
            "10.1.2.9",
            "10.1.2.8",
            "",
            "rangeStart 10.1.2.9 is after rangeEnd 10.1.2.8 in network 10.1.2.0/24",
        ),
    ] {
        assert_eq!(range(subnet, start, end, gateway).unwrap_err().to_string(), message);
    }
}

#[test]
fn refusals_of_sets() {
    assert_eq!(RangeSet::new(vec![]), Err(RangeError::Empty));
    let v4 = range("10.1.2.0/24", "", "", "").unwrap();
    let v6 = range("fd00::/64", "", "", "").unwrap();
    let half = range("10.1.2.0/25", "", "", "").unwrap();
    assert!(matches!(RangeSet::new(vec![v4.clone(), v6]), Err(RangeError::Mixed(..))));
    assert!(matches!(RangeSet::new(vec![v4.clone(), half.clone()]), Err(RangeError::Overlap(..))));
    let (a, b) = (RangeSet::new(vec![v4]).unwrap(), RangeSet::new(vec![half]).unwrap());
    assert_eq!(
        check_disjoint(&[a, b]).unwrap_err().to_string(),
        "ranges 10.1.2.1-10.1.2.254 and 10.1.2.1-10.1.2.126 overlap"
    );
}

#[test]
fn round_robin_goes_on_after_the_last_and_comes_back() {
    for (subnet, want) in [
        ("10.1.2.0/29", ["10.1.2.2/29", "10.1.2.3/29", "10.1.2.6/29", "10.1.2.3/29"]),
        ("fd00::/125", ["fd00::2/125", "fd00::3/125", "fd00::6/125", "fd00::3/125"]),
    ] {
        let sets = [set(&[(subnet, "", "")])];
        let mut state = State::new();
        assert_eq!(take(&mut state, &sets, 1), [want[0]]);
        assert_eq!(take(&mut state, &sets, 2), [want[1]]);
        // The freed address is not given out again at once.
        state.release(&pod(2));
        take(&mut state, &sets, 3);
        take(&mut state, &sets, 4);
        assert_eq!(take(&mut state, &sets, 5), [want[2]]);
        if subnet.contains(':') {
            take(&mut state, &sets, 6);
        }
        // Around: 1 is the gateway, 2 is taken, 3 is free.
        assert_eq!(take(&mut state, &sets, 7), [want[3]]);
    }
}

#[test]
fn the_last_address_itself_is_tried_last() {
    let sets = [set(&[("10.1.2.0/30", "", "")])];
    let mut state = State::new();
    assert_eq!(take(&mut state, &sets, 1), ["10.1.2.2/30"]);
    state.release(&pod(1));
    assert_eq!(take(&mut state, &sets, 2), ["10.1.2.2/30"]);
}

#[test]
fn a_last_address_outside_the_set_is_ignored() {
    let sets = [set(&[("10.1.2.0/24", "", "")])];
    for junk in ["10.9.9.9", "fd00::1"] {
        let mut state = State::new();
        state.set_last(0, ip(junk));
        assert_eq!(take(&mut state, &sets, 1), ["10.1.2.2/24"]);
    }
}

#[test]
fn ranges_of_a_set_follow_each_other() {
    let sets = [set(&[
        ("10.1.0.0/24", "10.1.0.10", "10.1.0.11"),
        ("10.2.0.0/16", "10.2.0.1", "10.2.0.3"),
    ])];
    let mut state = State::new();
    let got: Vec<_> = (0..4).flat_map(|n| take(&mut state, &sets, n)).collect();
    assert_eq!(got, ["10.1.0.10/24", "10.1.0.11/24", "10.2.0.2/16", "10.2.0.3/16"]);
    let error = state.allocate(&sets, &pod(9), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no IP addresses available in range set: 10.1.0.10-10.1.0.11,10.2.0.1-10.2.0.3: all 4 are taken (4 leases)"
    );
}

#[test]
fn the_gateway_of_one_range_is_nobodys_in_another() {
    let a = range("10.1.0.0/24", "10.1.0.10", "10.1.0.12", "").unwrap();
    let b = range("10.1.0.0/24", "10.1.0.20", "10.1.0.21", "10.1.0.11").unwrap();
    let sets = [RangeSet::new(vec![a, b]).unwrap()];
    let mut state = State::new();
    let got: Vec<_> = (0..4).flat_map(|n| take(&mut state, &sets, n)).collect();
    assert_eq!(got, ["10.1.0.10/24", "10.1.0.12/24", "10.1.0.20/24", "10.1.0.21/24"]);
}

#[test]
fn network_and_broadcast_are_skipped_even_where_the_range_names_them() {
    let sets = [set(&[("10.1.0.0/30", "10.1.0.0", "10.1.0.3")])];
    let mut state = State::new();
    assert_eq!(sets[0].capacity(), 1);
    assert_eq!(take(&mut state, &sets, 1), ["10.1.0.2/30"]);
    assert!(matches!(state.allocate(&sets, &pod(2), &[]), Err(AllocError::Exhausted { .. })));
    // IPv6 has no broadcast.
    let sets = [set(&[("fd00::/126", "fd00::", "fd00::3")])];
    assert_eq!(sets[0].capacity(), 2);
}

#[test]
fn without_a_gateway_the_first_address_is_a_pods() {
    let range = Range::without_gateway("10.1.0.0/24".parse().unwrap(), None, None).unwrap();
    let sets = [RangeSet::new(vec![range]).unwrap()];
    let leases = State::new().allocate(&sets, &pod(1), &[]).unwrap();
    assert_eq!(addresses(&leases), ["10.1.0.1/24"]);
    assert_eq!(leases[0].gateway, None);
}

#[test]
fn one_address_of_each_set_or_none() {
    let sets = [set(&[("10.1.0.0/24", "", "")]), set(&[("fd00::/126", "", "")])];
    let mut state = State::new();
    assert_eq!(take(&mut state, &sets, 1), ["10.1.0.2/24", "fd00::2/126"]);
    take(&mut state, &sets, 2);
    let before = state.clone();
    assert!(matches!(state.allocate(&sets, &pod(3), &[]), Err(AllocError::Exhausted { .. })));
    assert_eq!(state, before, "a failure changes nothing");
}

#[test]
fn requested_addresses() {
    let sets = [set(&[("10.1.0.0/24", "", "")]), set(&[("fd00::/64", "", "")])];
    let mut state = State::new();
    let leases = state.allocate(&sets, &pod(1), &[ip("fd00::77"), ip("10.1.0.77")]).unwrap();
    assert_eq!(addresses(&leases), ["10.1.0.77/24", "fd00::77/64"]);
    // As with host-local, a requested address counts as the last one.
    assert_eq!(take(&mut state, &sets, 2), ["10.1.0.78/24", "fd00::78/64"]);
    for (wish, message) in [
        (
            "10.1.0.77",
            "requested IP address 10.1.0.77 is not available in range set 10.1.0.1-10.1.0.254: c1 (eth0) has it",
        ),
        ("10.1.0.1", "requested ip 10.1.0.1 is subnet's gateway"),
        (
            "10.9.0.1",
            "failed to allocate all requested IPs: 10.9.0.1: not in any range set, or more than one in the same",
        ),
    ] {
        let before = state.clone();
        let error = state.allocate(&sets, &pod(3), &[ip(wish)]).unwrap_err();
        assert_eq!((error.to_string().as_str(), &state), (message, &before));
    }
    let two = [ip("10.1.0.5"), ip("10.1.0.6")];
    let error = state.allocate(&sets, &pod(3), &two).unwrap_err();
    assert_eq!(error, AllocError::NotInRanges(vec![two[1]]));
}

#[test]
fn the_same_attachment_twice_is_refused() {
    let sets = [set(&[("10.1.0.0/24", "", "")])];
    let mut state = State::new();
    take(&mut state, &sets, 1);
    for wish in [&[][..], &[ip("10.1.0.9")][..]] {
        assert_eq!(
            state.allocate(&sets, &pod(1), wish).unwrap_err().to_string(),
            "10.1.0.2 has been allocated to c1 (eth0), duplicate allocation is not allowed"
        );
    }
    // Another interface of the same container is another attachment.
    state.allocate(&sets, &Owner::new("c1", "net1"), &[]).unwrap();
}

#[test]
fn leases_in_the_old_form_belong_to_the_container() {
    let mut state = State::new();
    state.insert(ip("10.1.0.2"), Owner::new("c1", ""));
    state.insert(ip("10.1.0.3"), Owner::unknown());
    assert_eq!(state.leases_of(&pod(1)), [ip("10.1.0.2")]);
    assert_eq!(state.leases_of(&Owner::unknown()), Vec::<IpAddr>::new());
    let stale = state.stale(&[pod(1)].into());
    assert_eq!(stale, [(ip("10.1.0.3"), Owner::unknown())]);
    assert_eq!(state.release(&pod(1)), [ip("10.1.0.2")]);
    assert!(state.release(&pod(1)).is_empty());
}

#[test]
fn the_end_of_the_address_space_is_no_trap() {
    let sets = [set(&[(
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe",
        "",
    )])];
    let mut state = State::new();
    take(&mut state, &sets, 1);
    take(&mut state, &sets, 2);
    assert!(state.allocate(&sets, &pod(3), &[]).is_err());
    state.release(&pod(1));
    assert_eq!(take(&mut state, &sets, 4), ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/124"]);
}

/// A /64 costs what its leases cost, and a full /16 is walked once.
#[test]
fn large_networks_are_not_materialised() {
    let sets = [set(&[("10.1.0.0/16", "", "")]), set(&[("fd00::/64", "", "")])];
    assert_eq!(sets[1].capacity(), u128::from(u64::MAX) - 1);
    let mut state = State::new();
    for n in 0..65_533 {
        state.allocate(&sets, &pod(n), &[]).unwrap();
    }
    assert!(state.allocate(&sets, &pod(70_000), &[]).is_err());
}
