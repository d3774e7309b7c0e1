//! Sets of ranges: the kernel fills them a moment after a transaction, so none of them changes.

use super::*;

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

/// Nor do those that a program has taken over from one before it, and that have its name.
#[test]
fn ranges_that_were_taken_over_do_not_change() {
    let rule = |cidr: &str, port: u16| json!({"from": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": port}]});
    let policy = |ingress: &[serde_json::Value]| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"podSelector": {}, "ingress": ingress}})
    };
    let (first, second) = (rule("10.128.0.0/9", 80), rule("192.0.2.0/24", 443));
    let attached = || {
        let web =
            Change::Endpoint(PodName::new("x", "web"), Some(vec![IpAddr::from([10, 0, 0, 1])]));
        [change(&pod(ME, "web", "web", "10.0.0.1"), true), web]
    };
    let (mut enforcer, mut kernel) = (Enforcer::new(ME), None);
    enforcer.change([change(&policy(std::slice::from_ref(&first)), true)]);
    enforcer.change(attached());
    repair(&mut enforcer, &mut kernel);
    let both = policy(&[first, second]);
    enforcer.change([change(&both, true)]);
    take(&mut enforcer, &mut kernel).unwrap();
    // Another agent finds that.
    let mut enforcer = Enforcer::new(ME);
    enforcer.change([change(&both, true)]);
    enforcer.change(attached());
    let there: Vec<String> = kernel.as_ref().unwrap().sets.keys().cloned().collect();
    let Ok(()) = enforcer.repair(kernel.clone(), |Transaction { ops, .. }| {
        for op in &ops {
            if let NftOp::AddElements { set, of, .. } | NftOp::DelElements { set, of, .. } = op {
                assert!(!of.interval || !there.contains(set), "{set} is changed");
            }
        }
        commit(&mut kernel, &ops);
        Ok::<(), Infallible>(())
    });
    check(&enforcer, kernel.as_ref().unwrap()).unwrap();
}
