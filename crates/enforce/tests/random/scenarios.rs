//! Single courses of events that random ones meet seldom.

use super::*;

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
        let mut count = |Transaction { ops, .. }| {
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
        };
        let Ok(()) = enforcer.take(&mut count);
        let Ok(()) = enforcer.tidy(&mut count);
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
        (moved, transactions)
    };
    // The pod's own address is led elsewhere: in both maps. Connections get another mark.
    let lead = 3;
    assert_eq!(step(&policy("a", "a", 81), true), ([lead, lead], 2));
    assert_eq!(step(&policy("b", "b", 82), true), ([lead + 20, lead], 2));
    assert_eq!(step(&policy("b", "b", 83), true), ([lead, lead], 2));
    assert_eq!(step(&policy("b", "b", 83), false), ([lead, lead + 20], 2));
    // Of one and the same addresses some are for another set of ports now.
    assert_eq!(step(&pod(10, "b"), true), ([1, 2], 1));
    assert!(opens(&kernel, address(11), address(1), 81));
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

/// A program that lists what a group had lists it in a set of its own: the group may come back.
#[test]
fn a_list_is_no_group() {
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let policy = |name: &str, peers: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": peers, "ports": [{"port": 80}]}]}})
    };
    let of = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    let all = policy("all", json!([{"podSelector": {}}]));
    let listed = policy("listed", json!([of("a"), of("b"), of("web")]));
    let mut enforcer = Enforcer::with_sizes(ME, Sizes { many: 4, few: 8 });
    let mut kernel = None;
    let mut first = vec![change(&all, true), change(&pod(1, "web"), true)];
    first.extend((10..14).map(|n| change(&pod(n, "a"), true)));
    first.extend((20..24).map(|n| change(&pod(n, "b"), true)));
    let web = PodName::new("x", "p1");
    first.push(Change::Endpoint(web, Some(vec![IpAddr::from([10, 0, 0, 1])])));
    enforcer.change(first);
    repair(&mut enforcer, &mut kernel);
    // One after the other before anything is done about them.
    enforcer.change([change(&all, false)]);
    enforcer.change([change(&listed, true)]);
    take(&mut enforcer, &mut kernel).unwrap();
    let groups = enforcer.table().sets.keys().filter(|name| name.starts_with("pods_"));
    assert_eq!(groups.count(), 0);
    check(&enforcer, kernel.as_ref().unwrap()).unwrap();
}

/// A set that a program leaves is taken over as the kernel has it, and not with what it was about to get.
#[test]
fn a_set_is_taken_over_as_the_kernel_has_it() {
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let policy = |name: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 80}],
                "from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]}})
    };
    let mut enforcer = Enforcer::new(ME);
    let mut kernel = None;
    let mut first = vec![change(&policy("one"), true), change(&pod(1, "web"), true)];
    first.extend((10..30).map(|n| change(&pod(n, "a"), true)));
    let web = IpAddr::from([10, 0, 0, 1]);
    first.push(Change::Endpoint(PodName::new("x", "p1"), Some(vec![web])));
    enforcer.change(first);
    repair(&mut enforcer, &mut kernel);
    // All before anything is done about it.
    enforcer.change([change(&pod(30, "a"), true), change(&pod(10, "b"), true)]);
    enforcer.change([change(&policy("two"), true)]);
    take(&mut enforcer, &mut kernel).unwrap();
    assert!(opens(&kernel, IpAddr::from([10, 0, 0, 30]), web, 80));
    check(&enforcer, kernel.as_ref().unwrap()).unwrap();
}

/// What a set that is taken over has more is true for a moment: for pods alone for which it was true before.
#[test]
fn a_set_with_more_is_taken_for_its_own_pods() {
    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let policy = |name: &str, app: &str, from: &[&str]| {
        let from: Vec<Value> =
            from.iter().map(|app| json!({"podSelector": {"matchLabels": {"app": app}}})).collect();
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": app}},
                "ingress": [{"from": from, "ports": [{"port": 80}]}]}})
    };
    // Few addresses are in a map, many in a set of their own.
    for (few, many) in [(1, 2), (20, 24)] {
        let mut first = vec![
            change(&policy("a", "a", &["wanted", "more"]), true),
            change(&policy("b", "b", &["none"]), true),
        ];
        let here = [(1, "a"), (2, "b"), (3, "late")];
        first.extend(here.map(|(n, app)| change(&pod(n, app), true)));
        first.extend((0..few).map(|n| change(&pod(10 + n, "wanted"), true)));
        first.extend((few..many).map(|n| change(&pod(10 + n, "more"), true)));
        let attached =
            |n: u8| Change::Endpoint(PodName::new("x", format!("p{n}")), Some(vec![ip(n)]));
        first.extend(here.map(|(n, _)| attached(n)));
        let start = || {
            let (mut enforcer, mut kernel) = (Enforcer::new(ME), None);
            enforcer.change(first.clone());
            repair(&mut enforcer, &mut kernel);
            assert!(opens(&kernel, ip(10), ip(1), 80) && opens(&kernel, ip(10 + few), ip(1), 80));
            (enforcer, kernel)
        };
        let never = |(mut enforcer, mut kernel): (Enforcer, Option<NftTable>), to: u8| {
            each(&mut enforcer, &mut kernel, |kernel| {
                assert!(!opens(kernel, ip(10 + few), ip(to), 80), "{few}: let in for a moment");
            });
            tidy(&mut enforcer, &mut kernel);
            assert!(opens(&kernel, ip(10), ip(to), 80), "{few}");
            check(&enforcer, kernel.as_ref().unwrap()).unwrap();
        };
        // Another pod takes over what that one leaves.
        let (mut enforcer, kernel) = start();
        enforcer.change([
            change(&policy("a", "a", &[]), false),
            change(&policy("b", "b", &["wanted"]), true),
        ]);
        never((enforcer, kernel), 2);
        // The same pod does, and another one comes to its new policies.
        let (mut enforcer, mut kernel) = start();
        enforcer.change([
            change(&policy("a", "a", &[]), false),
            change(&policy("c", "a", &["wanted"]), true),
        ]);
        enforcer.change([change(&pod(3, "a"), true)]);
        enforcer.change([Change::Endpoint(PodName::new("x", "p3"), None)]);
        enforcer.change([attached(3)]);
        let mut open = Vec::new();
        each(&mut enforcer, &mut kernel, |kernel| {
            open.push(opens(kernel, ip(10 + few), ip(3), 80));
        });
        tidy(&mut enforcer, &mut kernel);
        assert!(open.iter().all(|open| !open), "{few}: {open:?}");
        check(&enforcer, kernel.as_ref().unwrap()).unwrap();
    }
}

/// A peer that moves from one set of ports to another is in both for a moment. To a pod that comes to their program just
/// then it is not, whichever of the two is heard of first.
#[test]
fn who_comes_while_a_peer_moves_sees_it_in_one_place() {
    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
    let pod = |n: u8, app: &str| pod(ME, &format!("p{n}"), app, &format!("10.0.0.{n}"));
    let rule = |app: &str, port: u16| {
        json!({"from": [{"podSelector": {"matchLabels": {"app": app}}}],
            "ports": [{"port": port}]})
    };
    let policy = |more: &[u16]| {
        let more = more.iter().map(|port| rule("none", *port));
        let ingress: Vec<Value> = [rule("a", 80), rule("b", 81)].into_iter().chain(more).collect();
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress}})
    };
    let attached = |n: u8| Change::Endpoint(PodName::new("x", format!("p{n}")), Some(vec![ip(n)]));
    let comes = || change(&pod(2, "web"), true);
    let moves = || change(&pod(10, "b"), true);
    let orders = [
        vec![vec![comes(), moves()]],
        vec![vec![comes()], vec![moves()]],
        vec![vec![moves()], vec![comes()]],
        // Pods that come and go between leave it as it is.
        vec![vec![moves()], vec![comes()], vec![change(&pod(2, "late"), true)], vec![comes()]],
        // The policy changes in the same moment, and names what is listed as before.
        vec![vec![change(&policy(&[82]), true), comes(), moves()]],
        vec![vec![moves()], vec![change(&policy(&[82]), true)], vec![comes()]],
    ];
    // Each set of ports has a set of addresses, or all are in a map, where a peer is in one place always.
    for few in [0, 100] {
        for order in orders.clone() {
            let mut enforcer = Enforcer::with_sizes(ME, Sizes { many: 100, few });
            let mut kernel = None;
            let mut first = vec![change(&policy(&[]), true)];
            first.extend([(1, "web"), (2, "late")].map(|(n, app)| change(&pod(n, app), true)));
            first.extend((10..14).map(|n| change(&pod(n, "a"), true)));
            first.extend((20..24).map(|n| change(&pod(n, "b"), true)));
            first.extend([attached(1), attached(2)]);
            enforcer.change(first);
            repair(&mut enforcer, &mut kernel);
            // It is under another policy until then: it may not be reached by anybody.
            let none = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "x", "name": "late"},
                "spec": {"podSelector": {"matchLabels": {"app": "late"}}}});
            enforcer.change([change(&none, true)]);
            take(&mut enforcer, &mut kernel).unwrap();
            let said = format!("{few}: {order:?}");
            for changes in order {
                enforcer.change(changes);
            }
            let mut open = Vec::new();
            each(&mut enforcer, &mut kernel, |kernel| {
                open.push([80, 81].map(|port| opens(kernel, ip(10), ip(2), port)));
            });
            tidy(&mut enforcer, &mut kernel);
            assert!(open.iter().all(|[former, _]| !former), "{open:?} {said}");
            assert_eq!(open.last(), Some(&[false, true]), "{said}");
            check(&enforcer, kernel.as_ref().unwrap()).unwrap();
        }
    }
}

/// A pod that comes is isolated first, and let in by others behind that; at once where a ClusterNetworkPolicy might deny
/// others something of it.
#[test]
fn isolation_comes_first() {
    let policy = |app: &str, from: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": app},
            "spec": {"podSelector": {"matchLabels": {"app": app}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]}})
    };
    let admin = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy", "metadata": {"name": "admin"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}});
    let [web, late] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
    for with_admin in [false, true] {
        let mut enforcer = Enforcer::new(ME);
        let mut kernel = None;
        repair(&mut enforcer, &mut kernel);
        let mut unborn = pod(ME, "late", "late", "10.0.0.2");
        unborn["status"] = json!({});
        enforcer.change([
            change(&policy("web", "late"), true),
            change(&policy("late", "none"), true),
            change(&pod(ME, "web", "web", "10.0.0.1"), true),
            Change::Endpoint(PodName::new("x", "web"), Some(vec![web])),
            change(&unborn, true),
        ]);
        if with_admin {
            enforcer.change([change(&admin, true)]);
        }
        take(&mut enforcer, &mut kernel).unwrap();
        enforcer.change_first(vec![Change::Endpoint(PodName::new("x", "late"), Some(vec![late]))]);
        take_with(&mut enforcer, &mut kernel, false).unwrap();
        assert!(!opens(&kernel, web, late, 80));
        assert_eq!(opens(&kernel, late, web, 80), with_admin);
        // Whatever comes next settles it, too.
        if with_admin {
            enforcer.settle()
        } else {
            enforcer.change([change(&admin, false)])
        }
        take(&mut enforcer, &mut kernel).unwrap();
        assert!(!opens(&kernel, web, late, 80) && opens(&kernel, late, web, 80));
    }
}

/// A pod that comes with policies has all connections judged anew in a moment, and at once where another one had its
/// address before; one without policies does not.
#[test]
fn what_is_remembered_when_pods_come_and_go() {
    let deny = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "shut"}}}});
    let mut enforcer = Enforcer::new(ME);
    let mut kernel = None;
    repair(&mut enforcer, &mut kernel);
    enforcer.change([change(&deny, true)]);
    let unborn = |name: &str, app: &str| {
        let mut pod = pod(ME, name, app, "10.0.0.1");
        pod["status"] = json!({});
        change(&pod, true)
    };
    enforcer.change(["open", "shut", "late"].map(|name| match name {
        "open" => unborn(name, "open"),
        other => unborn(other, "shut"),
    }));
    let endpoint = |name: &str, last: Option<u8>| {
        let addresses = last.map(|last| vec![IpAddr::from([10, 0, 0, last])]);
        vec![Change::Endpoint(PodName::new("x", name), addresses)]
    };
    let mut step = |changes: Vec<Change>| {
        let before = mark(kernel.as_ref().unwrap());
        enforcer.change_first(changes);
        take_with(&mut enforcer, &mut kernel, false).unwrap();
        enforcer.settle();
        take_with(&mut enforcer, &mut kernel, false).unwrap();
        let (anew, owes) = (mark(kernel.as_ref().unwrap()) != before, enforcer.owes());
        if owes {
            let before = mark(kernel.as_ref().unwrap());
            enforcer.forget_all();
            take_with(&mut enforcer, &mut kernel, false).unwrap();
            assert!(mark(kernel.as_ref().unwrap()) != before && !enforcer.owes());
        }
        (anew, owes)
    };
    assert_eq!(step(endpoint("open", Some(1))), (false, false));
    assert_eq!(step(endpoint("shut", Some(2))), (false, true));
    // Nothing is about its going.
    assert_eq!(step(endpoint("open", None)), (false, false));
    assert_eq!(step(endpoint("late", Some(1))), (true, false));
    // Another address of the same pod.
    assert!(step(endpoint("late", Some(3))).0);
    // Pods that come and go for ever are not all kept in mind.
    let mut anew = 0;
    for n in 0..3000u16 {
        let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
        let name = || PodName::new("x", "open");
        enforcer.change_first(vec![Change::Endpoint(name(), Some(vec![address]))]);
        enforcer.change_first(vec![Change::Endpoint(name(), None)]);
        enforcer.settle();
        anew += u32::from(enforcer.has_changes());
        take_with(&mut enforcer, &mut kernel, false).unwrap();
    }
    assert_eq!(anew, 2);
}
