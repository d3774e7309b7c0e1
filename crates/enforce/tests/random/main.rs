//! Random clusters and random changes: a kernel that takes every transaction judges each connection as the
//! evaluator does, at the pods of one node.

#[path = "../../../policy/tests/naive/clusters.rs"]
mod clusters;
mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;

use causeway_enforce::trace::{self, ESTABLISHED, INVALID, NEW, NO_CONNECTION, Packet};
use causeway_enforce::{Change, Enforcer, Sizes, Transaction};
use causeway_model::nft::{Hook, NftTable};
use causeway_plan::NftOp;
use causeway_policy::read::Object;
use causeway_policy::{Direction, Party, Pod, PodName, PortSet, Protocol, Transport, Who, World};
use causeway_types::Family;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use kernel::commit;

const ME: &str = "n1";

/// An object's identity, and the object; `None` removes it.
type Objects = BTreeMap<String, Value>;

fn key(value: &Value) -> String {
    let meta = &value["metadata"];
    format!("{} {} {}", value["kind"], meta["namespace"], meta["name"])
}

fn change(value: &Value, there: bool) -> Change {
    match Object::read(value).unwrap().unwrap() {
        Object::Namespace(name, labels) => Change::Namespace(name, there.then_some(labels)),
        Object::Node(name, node) => Change::Node(name, there.then_some(node)),
        Object::Pod(pod) => Change::Pod(pod.name.clone(), there.then_some(pod)),
        Object::Policy(policy) => Change::Policy(policy.name.clone(), there.then_some(policy)),
    }
}

/// The pods of this node that are attached.
fn attached(objects: &Objects) -> BTreeMap<PodName, Vec<IpAddr>> {
    let pods = objects.values().filter(|value| value["kind"] == "Pod");
    let pods = pods.map(|value| causeway_policy::read::pod(value).unwrap());
    let here = |pod: &Pod| pod.node.as_deref() == Some(ME) && !pod.host_network && !pod.ended;
    pods.filter(here).map(|pod| (pod.name, pod.addresses)).collect()
}

/// Everything that differs between two clusters, with what is attached.
fn between(old: &Objects, new: &Objects) -> Vec<Change> {
    let mut all = Vec::new();
    for (key, value) in old {
        if !new.contains_key(key) {
            all.push(change(value, false));
        }
    }
    for (key, value) in new {
        if old.get(key) != Some(value) {
            all.push(change(value, true));
        }
    }
    let (before, now) = (attached(old), attached(new));
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        all.push(Change::Endpoint(name.clone(), None));
    }
    for (name, addresses) in &now {
        if before.get(name) != Some(addresses) {
            all.push(Change::Endpoint(name.clone(), Some(addresses.clone())));
        }
    }
    all
}

/// By what a connection is allowed at the pods of this node, as the evaluator has it.
fn expected(world: &World, here: &[&PodName], from: &Party, to: &Party) -> PortSet {
    if matches!(&from.who, Who::Pod(_)) && from.who == to.who {
        return PortSet::all();
    }
    let at = |own: &Party, direction, peer: &Party| match &own.who {
        Who::Pod(name) if here.contains(&name) => {
            world.subject_at(own).unwrap().by_rules(direction, peer)
        }
        _ => PortSet::all(),
    };
    at(from, Direction::Egress, to).and(&at(to, Direction::Ingress, from))
}

fn transports() -> Vec<(Transport, u8, u16)> {
    let number = |p| match p {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let ported = Protocol::ALL.into_iter().flat_map(|p| {
        clusters::PORTS.iter().map(move |port| (Transport::Port(p, *port), number(p), *port))
    });
    // Of ICMP's identifiers some are like ports.
    ported.chain([(Transport::Other, 1, 80), (Transport::Other, 58, 7)]).collect()
}

fn passes(table: &NftTable, hook: Hook, packet: &Packet) -> bool {
    trace::passes(table, hook, packet).expect("the table has nothing else")
}

/// One of a known connection.
fn packet(client: IpAddr, server: IpAddr, protocol: u8, port: u16) -> Packet {
    Packet {
        client,
        server,
        protocol,
        port,
        state: ESTABLISHED,
        reply: false,
        syn: false,
        client_port: 40_000,
    }
}

/// Whether a TCP connection can be opened.
fn opens(kernel: &Option<NftTable>, client: IpAddr, server: IpAddr, port: u16) -> bool {
    let first = Packet { state: NEW, syn: true, ..packet(client, server, 6, port) };
    passes(kernel.as_ref().unwrap(), Hook::Forward, &first)
}

/// A pod of namespace `x`.
fn pod(node: &str, name: &str, app: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "labels": {"app": app}},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": [{"ip": ip}]}})
}

fn check(enforcer: &Enforcer, kernel: &NftTable) -> Result<(), TestCaseError> {
    prop_assert_eq!(kernel, enforcer.table());
    let world = enforcer.world();
    let here: Vec<&PodName> = enforcer.endpoints().collect();
    let pods = world.pods().flat_map(|pod| pod.addresses.clone());
    let others = ["10.0.0.9", "10.0.0.14", "fd00::6", "192.0.2.1", "192.0.2.3", "2001:db8::7"];
    let others = others.into_iter().chain(["198.51.100.1"]).map(|ip| ip.parse().unwrap());
    let ends: BTreeSet<IpAddr> = pods.chain(others).collect();
    for from in &ends {
        for to in ends.iter().filter(|to| Family::of(**to) == Family::of(*from)) {
            let (a, b) = (world.at(*from), world.at(*to));
            let local = |p: &Party| matches!(&p.who, Who::Pod(n) if here.contains(&n));
            if !local(&a) && !local(&b) {
                continue;
            }
            let want = expected(world, &here, &a, &b);
            for (transport, protocol, port) in transports() {
                let packet = packet(*from, *to, protocol, port);
                let allowed = want.contains(transport);
                let of = |packet: Packet| passes(kernel, Hook::Forward, &packet);
                let text = || format!("{a} -> {b} {transport}: {allowed} {want}");
                prop_assert_eq!(of(packet), allowed, "{}", text());
                prop_assert_eq!(of(Packet { reply: true, ..packet }), allowed, "reply {}", text());
                let first = Packet { state: NEW, syn: true, ..packet };
                prop_assert_eq!(of(first), allowed, "new {}", text());
                let aside = Packet { state: NO_CONNECTION, ..packet };
                prop_assert_eq!(of(aside), allowed, "untracked {}", text());
                if local(&a) {
                    // To the node itself, where no ingress is asked.
                    let egress = passes(kernel, Hook::Input, &first);
                    let alone = if a.who == b.who {
                        true
                    } else {
                        world
                            .subject_at(&a)
                            .unwrap()
                            .by_rules(Direction::Egress, &b)
                            .contains(transport)
                    };
                    prop_assert_eq!(egress, alone, "input {}", text());
                    let answer = Packet { reply: true, ..packet };
                    prop_assert!(passes(kernel, Hook::Input, &answer), "an answer to the node");
                }
                let said = |p: &Party| match &p.who {
                    Who::Pod(name) => {
                        enforcer.realised(name).is_some_and(|r| !r.policies.is_empty())
                    }
                    _ => false,
                };
                let isolated = said(&a) || said(&b);
                let invalid = Packet { state: INVALID, ..packet };
                prop_assert_eq!(of(invalid), !isolated, "invalid {}", text());
                if protocol == 6 && port < 0x8000 {
                    let middle = Packet { state: NEW, ..packet };
                    prop_assert_eq!(of(middle), allowed, "midstream {}", text());
                    let answer = Packet { state: NEW, reply: true, ..packet };
                    prop_assert_eq!(of(answer), !isolated, "midstream reply {}", text());
                }
            }
        }
    }
    Ok(())
}

/// Changes one object: removes it, or gives it what another of its kind has. Names and addresses stay.
fn edit(objects: &mut Objects, donors: &[Value], at: usize, from: usize, remove: bool) {
    let Some(key) = objects.keys().nth(at % objects.len().max(1)).cloned() else { return };
    if remove {
        objects.remove(&key);
        return;
    }
    let object = objects.get_mut(&key).unwrap();
    let donors: Vec<&Value> = donors.iter().filter(|d| d["kind"] == object["kind"]).collect();
    let Some(donor) = donors.get(from % donors.len().max(1)) else { return };
    for part in ["/metadata/labels", "/spec"] {
        let Some(new) = donor.pointer(part) else { continue };
        let (parent, name) = part.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[name] = new.clone();
    }
    if object["kind"] == "Pod" {
        object["status"]["phase"] = donor["status"]["phase"].clone();
    }
}

/// Does what is to be done for one change. What is allowed before a transaction and behind it passes also if it comes
/// in the packet's time.
///
/// Not so with several changes by one transaction (a pod leaves a program in the moment in which that denies others), and
/// of groups, which are asked one after another: who changes groups may be found in both or none. And where denial moves
/// from the end that is asked last to the one that is asked first a packet in between passes; the next one does not.
fn take(enforcer: &mut Enforcer, kernel: &mut Option<NftTable>) -> Result<(), TestCaseError> {
    let mut transactions = Vec::new();
    let Ok(()) = enforcer.take(|Transaction { ops, .. }| {
        transactions.push(ops);
        Ok::<(), Infallible>(())
    });
    for ops in transactions {
        let before = kernel.clone().unwrap();
        commit(kernel, &ops);
        let after = kernel.as_ref().unwrap();
        if after.sets.keys().any(|name| name.starts_with("pods_")) {
            continue;
        }
        let pods = enforcer.world().pods().flat_map(|pod| pod.addresses.clone());
        let ends: BTreeSet<IpAddr> = pods.chain(["192.0.2.1".parse().unwrap()]).collect();
        let of_family = |a: &IpAddr, b: &IpAddr| Family::of(*a) == Family::of(*b);
        for client in &ends {
            for server in ends.iter().filter(|ip| of_family(ip, client)) {
                let packet = packet(*client, *server, 6, clusters::PORTS[0]);
                let known = [&before, after].map(|table| passes(table, Hook::Forward, &packet));
                if known != [true, true] {
                    continue;
                }
                // No packet asks more often.
                for number in 0..16 {
                    let passes =
                        trace::passes_while(&before, after, number, Hook::Forward, &packet);
                    let passes = passes.expect("both have nothing else");
                    prop_assert!(passes, "{client} -> {server}: lost after {number} look-ups");
                }
            }
        }
    }
    Ok(())
}

/// Puts right what there is. Answers how many transactions that took.
fn repair(enforcer: &mut Enforcer, kernel: &mut Option<NftTable>) -> usize {
    let mut transactions = 0;
    let Ok(()) = enforcer.repair(kernel.clone(), |Transaction { ops, .. }| {
        commit(kernel, &ops);
        transactions += 1;
        Ok::<(), Infallible>(())
    });
    transactions
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn the_kernel_does_what_policies_say(
        first in clusters::cluster(),
        donors in clusters::cluster(),
        edits in vec((any::<usize>(), any::<usize>(), proptest::bool::weighted(0.2)), 1..16),
        at_once in 1..4usize,
        one_by_one in any::<bool>(),
        many in 0..4usize,
        few in 0..4usize,
        lost in any::<bool>(),
    ) {
        let first: Objects = first.into_iter().map(|value| (key(&value), value)).collect();
        let mut states = vec![first.clone()];
        for some in edits.chunks(at_once) {
            let mut next = states.last().unwrap().clone();
            some.iter().for_each(|(at, from, remove)| edit(&mut next, &donors, *at, *from, *remove));
            states.push(next);
        }
        // And back to what it was.
        states.push(first);
        let mut enforcer = Enforcer::with_sizes(ME, Sizes { many, few });
        let mut kernel = None;
        repair(&mut enforcer, &mut kernel);
        let mut now = Objects::new();
        for next in states {
            let changes = between(&now, &next);
            if one_by_one {
                for change in changes {
                    enforcer.change([change]);
                    take(&mut enforcer, &mut kernel)?;
                }
            } else {
                enforcer.change(changes);
                let Ok(()) = enforcer.take(|Transaction { ops, .. }| {
                    commit(&mut kernel, &ops);
                    Ok::<(), Infallible>(())
                });
            }
            check(&enforcer, kernel.as_ref().unwrap())?;
            now = next;
        }
        // Another agent of the same knowledge finds all as it should be.
        let mut second = Enforcer::with_sizes(ME, Sizes { many, few });
        second.change(between(&Objects::new(), &now));
        if !lost {
            repair(&mut second, &mut kernel);
            check(&second, kernel.as_ref().unwrap())?;
            prop_assert_eq!(repair(&mut second, &mut kernel), 0);
        }
        // One without any takes all out.
        enforcer.change(between(&now, &Objects::new()));
        if lost {
            repair(&mut enforcer, &mut kernel);
        } else {
            kernel = None;
            repair(&mut enforcer, &mut kernel);
        }
        let mut none = Enforcer::new(ME);
        none.change([]);
        prop_assert_eq!(kernel.as_ref().unwrap(), none.table());
    }
}

/// A pod gets the address of one whose end has not been heard of yet: it is under its own policies from then on, also
/// when the other one's end is heard of, and also when it has none.
#[test]
fn an_address_that_changes_hands() {
    let pod = |name: &str, app: &str| pod(ME, name, app, "10.0.0.1");
    let policy = |name: &str, app: &str, port: u16| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"ports": [{"port": port}]}]}})
    };
    for (app, allowed) in [("b", [false, true]), ("none", [true, true])] {
        for pod_first in [true, false] {
            let mut enforcer = Enforcer::new(ME);
            let mut kernel = None;
            repair(&mut enforcer, &mut kernel);
            let name = |name: &str| PodName::new("x", name);
            let addresses: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap()];
            let (p, q) = (policy("p", "a", 80), policy("q", "b", 443));
            enforcer.change([
                change(&p, true),
                change(&q, true),
                change(&pod("old", "a"), true),
                Change::Endpoint(name("old"), Some(addresses.clone())),
            ]);
            take(&mut enforcer, &mut kernel).unwrap();
            let ports = |kernel: &Option<NftTable>| {
                let client = "192.0.2.7".parse().unwrap();
                [80, 443].map(|port| opens(kernel, client, addresses[0], port))
            };
            assert_eq!(ports(&kernel), [true, false]);
            let new = change(&pod("new", app), true);
            let attached = Change::Endpoint(name("new"), Some(addresses.clone()));
            let changes = if pod_first { [new, attached] } else { [attached, new] };
            for change in changes {
                enforcer.change([change]);
                take(&mut enforcer, &mut kernel).unwrap();
            }
            assert_eq!(ports(&kernel), allowed, "{app}");
            for change in [Change::Endpoint(name("old"), None), change(&pod("old", "a"), false)] {
                enforcer.change([change]);
                take(&mut enforcer, &mut kernel).unwrap();
                assert_eq!(ports(&kernel), allowed, "{app}: the other one is gone");
            }
            enforcer.change([Change::Endpoint(name("new"), None)]);
            take(&mut enforcer, &mut kernel).unwrap();
            assert_eq!(ports(&kernel), [true, true]);
        }
    }
}

/// A pod of another node has in its object the address of one that is attached here, as when a node was made anew and
/// took its range over: whoever is attached has it, as an end and as a peer.
#[test]
fn an_address_that_another_node_claims() {
    let pod = |node: &str, name: &str, ip: &str| pod(node, name, name, ip);
    let from = |app: &str, peer: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": app},
            "spec": {"podSelector": {"matchLabels": {"app": app}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": peer}}}]}]}})
    };
    let name = |name: &str| PodName::new("x", name);
    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
    let attach = |at: &str, n: u8| Change::Endpoint(name(at), Some(vec![ip(n)]));
    let all = [
        change(&from("web", "peer"), true),
        change(&from("peer", "web"), true),
        change(&pod(ME, "web", "10.0.0.1"), true),
        attach("web", 1),
        // Its name comes first.
        change(&pod("n2", "claims", "10.0.0.2"), true),
        change(&pod(ME, "peer", "10.0.0.2"), true),
        attach("peer", 2),
    ];
    for first in 0..all.len() {
        let mut enforcer = Enforcer::new(ME);
        let mut kernel = None;
        repair(&mut enforcer, &mut kernel);
        for change in all.iter().cycle().skip(first).take(all.len()) {
            enforcer.change([change.clone()]);
            take(&mut enforcer, &mut kernel).unwrap();
        }
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
        assert_eq!(enforcer.world().at(ip(2)).who, Who::Pod(name("peer")));
        let opens = |client: u8, server: u8| opens(&kernel, ip(client), ip(server), 80);
        assert!(opens(1, 2) && opens(2, 1) && !opens(9, 2), "{first}");
        // It ends: the other one has it now.
        enforcer.change([Change::Endpoint(name("peer"), None)]);
        take(&mut enforcer, &mut kernel).unwrap();
        enforcer.change([change(&pod(ME, "peer", "10.0.0.2"), false)]);
        take(&mut enforcer, &mut kernel).unwrap();
        assert_eq!(enforcer.world().at(ip(2)).who, Who::Pod(name("claims")));
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
    }
}

/// A policy that names others than before, and then one of them comes: only by a later change of that pod is its
/// program asked.
#[test]
fn a_policy_that_names_others() {
    let pod = |name: &str, n: u8, app: &str| pod(ME, name, app, &format!("10.0.0.{n}"));
    let policy = |from: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]}})
    };
    let mut enforcer = Enforcer::new(ME);
    let mut kernel = None;
    repair(&mut enforcer, &mut kernel);
    let web = PodName::new("x", "web");
    let steps = [
        change(&policy("a"), true),
        change(&pod("web", 1, "web"), true),
        Change::Endpoint(web, Some(vec![IpAddr::from([10, 0, 0, 1])])),
        change(&policy("b"), true),
        change(&pod("late", 2, "b"), true),
        change(&policy("a"), true),
        change(&pod("late", 2, "a"), true),
    ];
    for step in steps {
        enforcer.change([step]);
        take(&mut enforcer, &mut kernel).unwrap();
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
    }
}

/// A peer for which other ports are allowed moves between a program's sets of addresses: what both allow passes at
/// any time.
#[test]
fn a_peer_that_moves_between_sets() {
    let port = clusters::PORTS[0];
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let rule = |app: &str, ports: &[u16]| {
        let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
        json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": ports})
    };
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            rule("a", &[port]), rule("b", &[port, 444]), rule("c", &[port, 445]),
            rule("d", &[port, 446]), rule("e", &[port, 447])]}});
    // Of some more pods than of others, so that their sets have an order; the last ones are in the map.
    for few in [0, 100] {
        let mut enforcer = Enforcer::with_sizes(ME, Sizes { many: 100, few });
        let mut kernel = None;
        let web = PodName::new("x", "p1");
        let mut all = vec![change(&policy, true), change(&pod(1, "web"), true)];
        let apps = ["a", "a", "a", "a", "b", "b", "b", "c", "c", "d", "e"];
        for (n, app) in (10..).zip(apps) {
            all.push(change(&pod(n, app), true));
        }
        all.push(Change::Endpoint(web, Some(vec![IpAddr::from([10, 0, 0, 1])])));
        enforcer.change(all);
        repair(&mut enforcer, &mut kernel);
        let sets = kernel.as_ref().unwrap().sets.keys().filter(|name| name.ends_with("_4_p1"));
        assert_eq!(sets.count(), usize::from(few == 0));
        for from in apps {
            for to in apps {
                enforcer.change([change(&pod(30, from), true)]);
                take(&mut enforcer, &mut kernel).unwrap();
                enforcer.change([change(&pod(30, to), true)]);
                take(&mut enforcer, &mut kernel).unwrap();
                check(&enforcer, kernel.as_ref().unwrap()).unwrap();
            }
        }
    }
}

/// Addresses that are listed before and behind a change of policies are not put in anew, and what a program leads to
/// comes by the transaction that leads there.
#[test]
fn what_stays_listed_stays_in_the_table() {
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let policy = |name: &str, from: &str, port: u16| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": from}}}], "ports": [{"port": port}]},
                {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.0/30"]}}]}]}})
    };
    let mut enforcer = Enforcer::with_sizes(ME, Sizes { many: 100, few: 8 });
    let mut kernel = None;
    let mut all = vec![change(&policy("a", "a", 80), true), change(&pod(1, "web"), true)];
    all.extend((10..30).map(|n| change(&pod(n, "a"), true)));
    all.extend((30..50).map(|n| change(&pod(n, "b"), true)));
    let address = |n: u8| IpAddr::from([10, 0, 0, n]);
    all.push(Change::Endpoint(PodName::new("x", "p1"), Some(vec![address(1)])));
    enforcer.change(all);
    repair(&mut enforcer, &mut kernel);
    // How many addresses of others come and go, and by how many transactions.
    let mut step = |object: &Value, there: bool| {
        enforcer.change([change(object, there)]);
        let (mut moved, mut transactions) = ([0, 0], 0);
        let Ok(()) = enforcer.take(|Transaction { ops, .. }| {
            for op in &ops {
                match op {
                    NftOp::AddElements { elements, .. } => moved[0] += elements.len(),
                    NftOp::DelElements { elements, .. } => moved[1] += elements.len(),
                    NftOp::DelSet { name } => {
                        moved[1] += kernel.as_ref().unwrap().sets[name].elements.len();
                    }
                    _ => {}
                }
            }
            transactions += 1;
            commit(&mut kernel, &ops);
            Ok::<(), Infallible>(())
        });
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
        (moved, transactions)
    };
    // The pod's own address is led elsewhere: in both maps. A set of ports has an element.
    let lead = 2;
    assert_eq!(step(&policy("a", "a", 81), true), ([lead + 1, lead + 1], 2));
    assert_eq!(step(&policy("b", "b", 82), true), ([lead + 1 + 20, lead], 2));
    assert_eq!(step(&policy("b", "b", 83), true), ([lead + 1, lead + 1], 2));
    assert_eq!(step(&policy("b", "b", 83), false), ([lead, lead + 1 + 20], 2));
    // Of one and the same addresses some are for another set of ports now.
    assert_eq!(step(&pod(10, "b"), true), ([0, 1], 1));
    assert!(opens(&kernel, address(11), address(1), 81));
}

/// The kernel fills sets of ranges a moment after a transaction: an agent that finds those of another one, and a policy
/// that was changed meanwhile, makes others.
#[test]
fn ranges_that_an_agent_finds_do_not_change() {
    let policy = |cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}})
    };
    let mut kernel = None;
    for (cidr, made) in [("192.0.2.0/24", 1), ("198.51.100.0/24", 1), ("198.51.100.0/24", 0)] {
        let mut enforcer = Enforcer::new(ME);
        let web = PodName::new("x", "web");
        let attached = Change::Endpoint(web, Some(vec![IpAddr::from([10, 0, 0, 1])]));
        let pod = change(&pod(ME, "web", "web", "10.0.0.1"), true);
        enforcer.change([change(&policy(cidr), true), pod, attached]);
        let mut sets = 0;
        let Ok(()) = enforcer.repair(kernel.clone(), |Transaction { ops, .. }| {
            let is_new = |op: &&NftOp| matches!(op, NftOp::AddSet { set, .. } if set.interval);
            sets += ops.iter().filter(is_new).count();
            commit(&mut kernel, &ops);
            Ok::<(), Infallible>(())
        });
        assert_eq!(sets, made, "{cidr}");
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
    }
}

/// A pod that leaves the policies of another: what becomes of its packets is not judged by its own.
#[test]
fn a_pod_that_leaves_a_program_of_two() {
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "a"}}}});
    let address = |n: u8| -> IpAddr { format!("10.0.0.{n}").parse().unwrap() };
    for leaver in [1, 2] {
        let mut enforcer = Enforcer::new(ME);
        let mut kernel = None;
        repair(&mut enforcer, &mut kernel);
        enforcer.change([change(&policy, true)]);
        for n in [1, 2] {
            let name = PodName::new("x", format!("p{n}"));
            let attached = Change::Endpoint(name, Some(vec![address(n)]));
            enforcer.change([change(&pod(n, "a"), true), attached]);
        }
        take(&mut enforcer, &mut kernel).unwrap();
        enforcer.change([change(&pod(leaver, "b"), true)]);
        take(&mut enforcer, &mut kernel).unwrap();
        assert!(!opens(&kernel, address(leaver), address(3 - leaver), 80), "{leaver}");
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}
