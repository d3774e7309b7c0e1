//! When the next round is: soon where something is left to be done, and seldom where it cannot be done.

use causeway_model::nft::{Base, Chain, ChainType, Hook, NftFamily, NftTable, Policy};

use super::*;
use crate::self_test::Finding;

/// How long the loop sleeps from one round to the next, with nothing happening but its own deadlines.
fn pauses(t: &mut Test, rounds: usize) -> Vec<Duration> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let wake = t.core.next_wake().expect("it is tried again");
        all.push(wake.saturating_duration_since(t.now));
        t.now = t.now.max(wake);
        t.core.reconcile(t.now);
    }
    all
}

fn become_seldom(pauses: &[Duration]) {
    let first = pauses.first().unwrap();
    assert!(*first <= Duration::from_millis(100), "{pauses:?}");
    assert!(*pauses.last().unwrap() >= Duration::from_secs(2), "{pauses:?}");
}

/// A guard for an interface that is not there.
fn guard(device: &str) -> Object {
    let mut table = NftTable::new(NftFamily::Netdev, names::NFT_PLUGINS, false);
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Ingress,
        priority: 0,
        device: Some(device.parse().unwrap()),
        policy: Policy::Accept,
    };
    table.chains.insert(device.to_owned(), Chain { base: Some(base), rules: Vec::new() });
    Object::Table(table)
}

/// What is not there any more when it is looked at again is left alone, whatever else has failed.
#[test]
fn a_guard_that_goes_by_itself() {
    let mut t = Test::new();
    t.core.port.kernel.fail_at = Some(0);
    t.view(&[1, 2, 3]);
    t.round();
    assert!(t.status().objects.iter().any(|o| o.state == State::Failed));
    t.core.port.passing = Some(guard("cw0"));
    t.core.mark_stale(Stale::ALL);
    // Before the object that failed is tried again.
    t.core.reconcile(t.now);
    let wake = t.core.next_wake().unwrap();
    assert!(wake <= t.now + Duration::from_millis(100), "what was read is planned for");
    t.round();
    t.assert_whole();
}

/// Who only wants to see a plan has read what the kernel told, and it is not told again.
#[test]
fn what_a_look_has_read_is_not_lost() {
    let mut t = Test::new();
    t.view(&[1, 2, 3]);
    t.round();
    t.assert_whole();
    let quiet = t.core.next_wake();
    t.core.plan_now(t.now).unwrap();
    assert_eq!(t.core.next_wake(), quiet, "nothing had changed");
    for blind in [false, true] {
        let route = |key: &Key| key.to_string() == "route 10.244.2.0/24";
        let (_, route) = t.core.port.kernel.state.iter().find(|(key, _)| route(key)).unwrap();
        let route = route.clone();
        t.core.port.kernel.state.remove(&route.key());
        t.core.port.changed = Stale::ALL;
        t.core.port.blind = blind;
        assert_eq!(t.core.plan_now(t.now).is_err(), blind);
        t.core.port.blind = false;
        let wake = t.core.next_wake().unwrap();
        assert!(wake <= t.now + Duration::from_millis(100));
        t.now = wake;
        t.core.reconcile(t.now);
        assert!(t.has("route 10.244.2.0/24"));
        t.assert_whole();
    }
}

/// Files that cannot be written are tried again and again, at longer and longer intervals, and pods start meanwhile by what
/// was written before.
#[test]
fn what_cannot_be_written_becomes_seldom() {
    let mut t = Test::new();
    std::fs::create_dir_all(t.paths.node_file.join("in the way")).unwrap();
    t.view(&[1, 2]);
    t.round();
    assert!(!t.status().ready);
    become_seldom(&pauses(&mut t, 8));
    let said = |t: &Test| t.status().problems.iter().any(|p| p.message.contains("node.json"));
    assert!(said(&t), "{:?}", t.status().problems);
    // What else asks for rounds changes nothing about it.
    let wake = t.core.next_wake().unwrap();
    (0..5).for_each(|_| t.core.reconcile(t.now));
    assert_eq!(t.core.next_wake(), Some(wake));
    std::fs::remove_dir_all(&t.paths.node_file).unwrap();
    pauses(&mut t, 1);
    t.assert_whole();
    assert!(!said(&t));
}

/// A test that is due where there is nothing to be tested wakes nobody.
#[test]
fn a_test_that_cannot_be_made_is_not_waited_for() {
    let mut t = Test::new();
    t.core.self_test = SelfTest::default();
    t.view(&[1, 2]);
    t.round();
    assert!(t.core.self_test.take_request().is_some());
    t.core.self_test.found(Finding::Failed("no".to_owned()), t.now);
    t.core.reconcile(t.now);
    assert!(t.core.next_wake().is_some_and(|at| at > t.now), "it is made again");
    // The Node object goes.
    t.view(&[2]);
    t.round();
    let wake = t.core.next_wake();
    assert!(wake.is_none_or(|at| at > t.now), "{:?}", wake.map(|at| t.now - at));
    t.view(&[1, 2]);
    t.round();
    assert!(t.core.self_test.take_request().is_some());
}

/// Two faults at once: an object that is refused, and a kernel that does not show itself.
#[test]
fn rounds_that_see_nothing_become_seldom() {
    let mut t = Test::new();
    t.core.port.kernel.fail_at = Some(0);
    t.view(&[1, 2]);
    t.round();
    t.core.port.blind = true;
    t.core.mark_stale(Stale::ALL);
    t.core.reconcile(t.now);
    become_seldom(&pauses(&mut t, 8));
    t.core.port.blind = false;
    pauses(&mut t, 1);
    t.assert_whole();
}
