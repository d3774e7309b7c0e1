//! Random clusters and random changes: a kernel that takes every transaction judges each connection as the
//! evaluator does, at the pods of one node.

#[path = "../../../policy/tests/naive/clusters.rs"]
mod clusters;
mod crowd;
mod kernel;
mod ranges;
mod scenarios;

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

use kernel::{commit, mark, without_mark};

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
    mark(kernel);
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

/// Takes in changes as an agent does that is asked by pods that come. While what is left is not done nothing passes
/// that is not to.
fn change_first(
    enforcer: &mut Enforcer,
    changes: Vec<Change>,
    kernel: &mut Option<NftTable>,
) -> Result<(), TestCaseError> {
    let before = kernel.clone().unwrap();
    let come = |change: &Change| match change {
        Change::Endpoint(name, Some(addresses)) => Some((name.clone(), addresses.clone())),
        _ => None,
    };
    let come: BTreeMap<PodName, Vec<IpAddr>> = changes.iter().filter_map(come).collect();
    enforcer.change_first(changes);
    let mut all = |enforcer: &mut Enforcer| {
        each(enforcer, kernel, |_| {});
        kernel.clone().unwrap()
    };
    let between = all(enforcer);
    let world = enforcer.world();
    let here: Vec<&PodName> = enforcer.endpoints().collect();
    // One that the API has on another node while it is still attached here is under what it was under.
    let moved = |pod: &Pod| here.contains(&&pod.name) && pod.node.as_deref() != Some(ME);
    let pods = world.pods().filter(|pod| !moved(pod));
    let ends: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
    for from in &ends {
        for to in ends.iter().filter(|to| Family::of(**to) == Family::of(*from)) {
            let want = expected(world, &here, &world.at(*from), &world.at(*to));
            for (transport, protocol, port) in transports() {
                let packet = packet(*from, *to, protocol, port);
                let passes = passes(&between, Hook::Forward, &packet);
                let text = || format!("{from} -> {to} {transport} passes too early");
                prop_assert!(!passes || want.contains(transport), "{}", text());
            }
        }
    }
    enforcer.settle();
    let after = all(enforcer);
    // Of what passed before all still does, or is judged anew.
    let pods = enforcer.world().pods();
    let ends: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
    let old = |ip: &IpAddr| !come.values().flatten().any(|new| new == ip);
    let mut steps = vec![(&before, &between, false), (&between, &after, true)];
    // What was remembered of their addresses before is forgotten in a moment.
    let end = enforcer.owes().then(|| {
        enforcer.forget_all();
        all(enforcer)
    });
    prop_assert!(!enforcer.owes());
    let end = end.unwrap_or_else(|| after.clone());
    steps.push((&before, &end, true));
    for (one, other, fresh) in steps {
        if mark(one) != mark(other) {
            continue;
        }
        let ends: Vec<&IpAddr> = ends.iter().filter(|ip| fresh || old(ip)).collect();
        for from in &ends {
            for to in ends.iter().filter(|to| Family::of(***to) == Family::of(**from)) {
                for (transport, protocol, port) in transports() {
                    let packet = packet(**from, **to, protocol, port);
                    let [was, is] = [one, other].map(|t| passes(t, Hook::Forward, &packet));
                    prop_assert!(is || !was, "{from} -> {to} {transport} is remembered too long");
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

/// Does what is to be done, with a word after each transaction, but for what takes away what nothing leads to.
fn each(
    enforcer: &mut Enforcer,
    kernel: &mut Option<NftTable>,
    mut seen: impl FnMut(&Option<NftTable>),
) {
    let Ok(()) = enforcer.take(|Transaction { ops, .. }| {
        commit(kernel, &ops);
        seen(kernel);
        Ok::<(), Infallible>(())
    });
}

/// Takes away what nothing leads to: no packet sees a difference. Answers whether there was anything.
fn tidy(enforcer: &mut Enforcer, kernel: &mut Option<NftTable>) -> bool {
    let mut some = false;
    assert!(!enforcer.has_changes());
    let Ok(()) = enforcer.tidy(|Transaction { ops, prepares }| {
        use NftOp::{DelChain, DelSet, FlushChain};
        let takes_away = |op| matches!(op, &FlushChain { .. } | &DelSet { .. } | &DelChain { .. });
        assert!(!prepares && ops.iter().all(takes_away), "{ops:?}");
        commit(kernel, &ops);
        some = true;
        Ok::<(), Infallible>(())
    });
    assert!(enforcer.is_tidy());
    some
}

/// Does what is to be done for one change. What is allowed before a transaction and behind it passes also if it comes
/// in the packet's time.
///
/// Not so with several changes by one transaction (a pod leaves a program in the moment in which that denies others), and
/// of groups, which are asked one after another: who changes groups may be found in both or none. And where denial moves
/// from the end that is asked last to the one that is asked first a packet in between passes; the next one does not.
fn take(enforcer: &mut Enforcer, kernel: &mut Option<NftTable>) -> Result<(), TestCaseError> {
    take_with(enforcer, kernel, true)?;
    tidy(enforcer, kernel);
    Ok(())
}

/// As [`take`]. `anew`: connections that may pass no more are judged anew.
fn take_with(
    enforcer: &mut Enforcer,
    kernel: &mut Option<NftTable>,
    anew: bool,
) -> Result<(), TestCaseError> {
    let mut transactions = Vec::new();
    let Ok(()) = enforcer.take(|transaction| {
        transactions.push(transaction);
        Ok::<(), Infallible>(())
    });
    for Transaction { ops, prepares } in transactions {
        let before = kernel.clone().unwrap();
        commit(kernel, &ops);
        let after = kernel.as_ref().unwrap();
        // Connections of before are judged anew, unless nothing leads yet to what is new.
        let remembered = mark(&before) == mark(after);
        prop_assert!(!prepares || remembered);
        let must_forget = anew && remembered && !prepares;
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
                let text = || format!("{client} -> {server} is remembered too long");
                prop_assert!(!must_forget || known != [true, false], "{}", text());
                if known != [true, true] {
                    continue;
                }
                // No packet asks more often.
                for number in 0..17 {
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

/// Does what is to be done for many changes. At each pod and in each direction every transaction allows nothing that
/// is not allowed before them all or behind them all, and everything that is allowed before and behind.
fn take_all(enforcer: &mut Enforcer, kernel: &mut Option<NftTable>) -> Result<(), TestCaseError> {
    let mut steps = vec![kernel.clone().unwrap()];
    each(enforcer, kernel, |kernel| steps.push(kernel.clone().unwrap()));
    if steps.len() < 3 {
        return Ok(());
    }
    let pods = enforcer.world().pods().flat_map(|pod| pod.addresses.clone());
    let ends: BTreeSet<IpAddr> = pods.chain(["192.0.2.1".parse().unwrap()]).collect();
    for other in ["out", "in"] {
        let mut steps = steps.clone();
        for (name, set) in steps.iter_mut().flat_map(|table| &mut table.sets) {
            if ["4_t", "4_u", "6_t", "6_u"].iter().any(|end| *name == format!("{other}{end}")) {
                set.elements.clear();
            }
        }
        for from in &ends {
            for to in ends.iter().filter(|to| Family::of(**to) == Family::of(*from)) {
                for (transport, protocol, port) in transports() {
                    let packet = packet(*from, *to, protocol, port);
                    let passes: Vec<bool> =
                        steps.iter().map(|t| passes(t, Hook::Forward, &packet)).collect();
                    let ends = [passes[0], passes[passes.len() - 1]];
                    let as_an_end = passes.iter().all(|step| ends.contains(step));
                    prop_assert!(as_an_end, "{from} -> {to} {transport}, not {other}: {passes:?}");
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
        hastily in any::<bool>(),
        tidily in any::<bool>(),
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
                    if hastily {
                        change_first(&mut enforcer, vec![change], &mut kernel)?;
                    } else {
                        enforcer.change([change]);
                        take_with(&mut enforcer, &mut kernel, true)?;
                    }
                    if tidily {
                        tidy(&mut enforcer, &mut kernel);
                    }
                }
            } else if hastily {
                change_first(&mut enforcer, changes, &mut kernel)?;
            } else {
                enforcer.change(changes);
                take_all(&mut enforcer, &mut kernel)?;
            }
            tidy(&mut enforcer, &mut kernel);
            check(&enforcer, kernel.as_ref().unwrap())?;
            now = next;
        }
        // Another agent of the same knowledge finds all as it should be.
        let mut second = Enforcer::with_sizes(ME, Sizes { many, few });
        second.change(between(&Objects::new(), &now));
        if !lost {
            let before = mark(kernel.as_ref().unwrap());
            repair(&mut second, &mut kernel);
            check(&second, kernel.as_ref().unwrap())?;
            // It goes on from the state that it found.
            let next = 0xc000_0000 | before.wrapping_add(1) & 0x0fff_ffff;
            prop_assert_eq!(mark(kernel.as_ref().unwrap()), next);
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
        prop_assert_eq!(without_mark(kernel.as_ref().unwrap()), without_mark(none.table()));
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}
