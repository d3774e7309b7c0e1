use causeway_policy::judge::{By, Decision, Judgement};
use causeway_policy::read::Object;
use causeway_policy::{PolicyName, expect};
use serde_json::json;

use super::*;

fn judgement(allowed: bool) -> Judgement {
    let name = PolicyName::Network { namespace: "x".into(), name: "closed".into() };
    let open = Decision { allowed: true, by: By::Nothing, passed: Vec::new() };
    let closed = Decision { allowed: false, by: By::Isolation(vec![name]), passed: Vec::new() };
    Judgement { egress: open.clone(), ingress: if allowed { open } else { closed } }
}

#[test]
fn what_packets_show() {
    use Outcome::{Dropped, Taken, There};
    let of = |there, here, found| verdict(judgement(there), judgement(here), found);
    assert_eq!(of(true, true, (There, There)), Verdict::Agrees);
    assert_eq!(of(false, false, (There, Dropped)), Verdict::Agrees);
    let Verdict::Differs(why) = of(false, false, (There, There)) else { panic!() };
    assert!(why.contains("NetworkPolicy x/closed applies"), "{why}");
    assert!(matches!(of(true, true, (There, Dropped)), Verdict::Differs(_)));
    // What does not get there without policies shows nothing of them, be it expected so or not.
    assert_eq!(of(false, false, (Dropped, Dropped)), Verdict::Broken);
    assert_eq!(of(true, true, (Dropped, There)), Verdict::Broken);
    // Of a lab that is another in what counts nothing is concluded.
    let Verdict::NotTried(why) = of(true, false, (There, Dropped)) else { panic!() };
    assert!(why.contains("in the lab") && why.contains("dropped"), "{why}");
    assert!(matches!(of(true, true, (Taken, Taken)), Verdict::NotTried(_)));
}

fn question(port: u16, from: &str) -> Question {
    let party = |ip: &str| Party { who: Who::Outside, address: ip.parse().unwrap() };
    Question {
        there: "there".into(),
        ask: Ask::Tcp(port),
        to: party("192.0.2.1"),
        ns: "here".into(),
        from: party(from),
    }
}

#[test]
fn no_more_is_listened_to_than_can_be() {
    let mut all: Vec<Question> = (0..600).map(|port| question(port, "192.0.2.2")).collect();
    all.push(question(7, "192.0.2.3"));
    all.sort();
    let all: Vec<&Question> = all.iter().collect();
    let parts = batches(&all);
    let sizes: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    // One port of the first part is asked for twice.
    assert_eq!(sizes, [LISTENED + 1, LISTENED, 600 - 2 * LISTENED]);
    assert_eq!(parts.concat(), all);
    assert_eq!(batches(&[]), [&[] as &[&Question]]);
}

/// A world of two pods, the second of which nobody reaches.
fn closed() -> World {
    let mut world = World::default();
    let pod = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x"},
            "status": {"podIPs": [{"ip": ip}]}})
    };
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "x"}, "spec": {"podSelector": {}}});
    for object in [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy] {
        Object::read(&object).unwrap().unwrap().put(&mut world);
    }
    world
}

#[test]
fn what_is_said_of_it() {
    let world = closed();
    let test = json!({"apiVersion": expect::API_VERSION, "kind": expect::KIND,
        "allowed": [{"from": "x/a", "to": "x/b", "port": 80}],
        "dropped": [{"from": "x/a", "to": "x/b", "port": [80, 81, "sctp/9", "sctp/10"]}]});
    let expected = expect::read(&test).unwrap();
    let trials: Vec<Trial<'_>> = expected
        .iter()
        .flat_map(|expectation| {
            let all = expectation.connections(&world).unwrap();
            all.into_iter().map(move |connection| Trial { file: "t.yaml", expectation, connection })
        })
        .collect();
    let mut report = Report { connections: trials.len(), ..Report::default() };
    let not_there = || Verdict::NotTried("not there".into());
    let verdicts = [
        Verdict::Agrees,
        Verdict::Agrees,
        Verdict::Differs("why".into()),
        not_there(),
        not_there(),
    ];
    for (trial, verdict) in trials.iter().zip(verdicts) {
        report.take(trial, &world, verdict);
    }
    report.finish();
    assert!(!report.is_good());
    assert_eq!((report.connections, report.tried, report.failed.len()), (5, 3, 1));
    let said = &report.failed[0];
    assert!(
        said.starts_with("t.yaml: allowed[0]: pod x/a") && said.ends_with("; packets are dropped"),
        "{said}"
    );
    let said = &report.differences[0];
    assert!(said.contains("tcp/81: packets pass, the evaluator says dropped: why"), "{said}");
    assert_eq!(report.not_tried["not there"].len(), 2);

    let mut nothing = Report { connections: 1, ..Report::default() };
    nothing.take(&trials[3], &world, not_there());
    nothing.finish();
    assert!(!nothing.is_good(), "{nothing:?}");
    let good = Report { connections: 1, tried: 1, ..Report::default() };
    assert!(good.is_good());
}
