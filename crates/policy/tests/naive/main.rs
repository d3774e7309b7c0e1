//! Random clusters, judged by the crate and by a second evaluator that is as plain as can be: straight from
//! the texts of the API, on the objects as they are written, for one connection at a time.

mod clusters;
mod evaluator;

use std::net::IpAddr;

use causeway_policy::compile::Program;
use causeway_policy::read::Object;
use causeway_policy::{Direction, PortSet, Protocol, Transport, Who, World};
use clusters::{PORTS, cluster};
use evaluator::{Connection, kind, list};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

fn world(all: &[Value]) -> World {
    let mut world = World::default();
    for value in all {
        let object = Object::read(value).unwrap_or_else(|e| panic!("{e}: {value}"));
        let object = object.unwrap_or_else(|| panic!("{value}"));
        if let Object::Policy(policy) = &object {
            let expected = |p: &causeway_policy::Problem| p.what.ends_with("the rules do nothing");
            assert!(policy.problems.iter().all(expected), "{value}: {:?}", policy.problems);
        }
        object.put(&mut world);
    }
    world
}

fn ends(all: &[Value]) -> Vec<IpAddr> {
    let pods = kind(all, "Pod").flat_map(|p| list(&p["status"]["podIPs"]));
    let pods = pods.map(|entry| entry["ip"].as_str().unwrap());
    let others = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "2001:db8::1"];
    let mut ips: Vec<IpAddr> = pods.chain(others).map(|ip| ip.parse().unwrap()).collect();
    ips.sort();
    ips.dedup();
    ips
}

fn transports() -> Vec<Transport> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ports = all.into_iter().flat_map(|p| PORTS.map(|n| Transport::Port(p, n)));
    ports.chain([Transport::Port(Protocol::Tcp, 8080), Transport::Other]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_as_the_naive_evaluator(all in cluster()) {
        let world = world(&all);
        for from in ends(&all) {
            for to in ends(&all).into_iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
                let (a, b) = (world.at(from), world.at(to));
                let ports = world.allowed(&a, &b);
                for transport in transports() {
                    let naive = Connection { all: &all, from, to, transport }.allowed();
                    let judgement = world.judge(&a, &b, transport);
                    prop_assert_eq!(
                        judgement.allowed(), naive,
                        "{} to {}, {}: {}", &a, &b, transport, judgement.reason()
                    );
                    prop_assert_eq!(ports.contains(transport), naive, "{} to {}, {}: {}", &a, &b, transport, &ports);
                    // What explains it agrees with it.
                    let explained = world.explain(&a, &b, transport);
                    prop_assert_eq!(explained.missing.is_empty(), naive);
                }
            }
        }
    }

    /// A program decides by an address what the rules decide of whoever has it.
    #[test]
    fn programs_are_what_they_are_compiled_of(all in cluster(), many in select(&[0usize, 1, 2, 100][..])) {
        let world = world(&all);
        for pod in world.pods().filter(|pod| !pod.host_network) {
            let subject = world.subject(pod);
            for direction in Direction::ALL {
                let program = Program::of(&subject, direction, many);
                for ip in ends(&all) {
                    let peer = world.at(ip);
                    let want = subject.by_rules(direction, &peer);
                    let Some(program) = &program else {
                        prop_assert_eq!(want, PortSet::all());
                        continue;
                    };
                    let groups = match &peer.who {
                        Who::Pod(name) => program.groups.iter().enumerate().map(|(i, group)| {
                            u8::from(world.selects(group, world.pod(name).unwrap())) << i
                        }).sum(),
                        _ => 0,
                    };
                    prop_assert_eq!(
                        program.allowed(ip, groups), &want,
                        "{} {} {}: {:?}", pod.name, direction, &peer, program
                    );
                    prop_assert!(program.groups.len() <= 3);
                }
            }
        }
    }

    /// Whatever comes as an object is read, or refused with a reason.
    #[test]
    fn nothing_breaks_the_reader(mut all in cluster(), at in any::<prop::sample::Index>(), junk in junk()) {
        for object in &mut all {
            spoil(object, at, &junk);
            let _ = Object::read(object);
        }
    }
}

fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(|n| json!(n)),
        ".{0,8}".prop_map(|s| json!(s)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{"a": []}])),
    ]
}

/// Puts something else in a place of an object.
fn spoil(object: &mut Value, at: prop::sample::Index, junk: &Value) {
    fn places(value: &Value) -> usize {
        1 + match value {
            Value::Object(map) => map.values().map(places).sum(),
            Value::Array(list) => list.iter().map(places).sum(),
            _ => 0,
        }
    }
    fn put(value: &mut Value, at: &mut usize, junk: &Value) {
        if *at == 0 {
            *value = junk.clone();
        }
        *at = at.wrapping_sub(1);
        match value {
            Value::Object(map) => map.values_mut().for_each(|v| put(v, at, junk)),
            Value::Array(list) => list.iter_mut().for_each(|v| put(v, at, junk)),
            _ => {}
        }
    }
    let mut place = at.index(places(object));
    put(object, &mut place, junk);
}

/// The two evaluators do not both say one thing of everything.
#[test]
fn clusters_are_of_all_kinds() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut dropped, mut kinds) = (0u32, 0u32, Map::new());
    for _ in 0..100 {
        let all = cluster().new_tree(&mut runner).unwrap().current();
        let world = world(&all);
        for (from, to) in
            ends(&all).iter().flat_map(|a| ends(&all).into_iter().map(move |b| (*a, b)))
        {
            if from.is_ipv4() != to.is_ipv4() {
                continue;
            }
            let (a, b) = (world.at(from), world.at(to));
            let judgement = world.judge(&a, &b, Transport::Port(Protocol::Tcp, 80));
            *(if judgement.allowed() { &mut allowed } else { &mut dropped }) += 1;
            let by = format!("{:?}", judgement.ingress.by);
            let word = by.split(['(', '{']).next().unwrap_or_default();
            *kinds.entry(word.to_owned()).or_insert(json!(0)) =
                json!(kinds.get(word).and_then(Value::as_u64).unwrap_or(0) + 1);
            let _ = matches!(a.who, Who::Outside);
        }
    }
    println!("{allowed} allowed, {dropped} dropped, {kinds:?}");
    assert!(allowed > 500 && dropped > 500, "{allowed} allowed, {dropped} dropped");
    for word in ["Exempt", "Nothing", "Rule", "Isolation"] {
        assert!(kinds.get(word).and_then(Value::as_u64).unwrap_or(0) > 50, "{word}: {kinds:?}");
    }
}
