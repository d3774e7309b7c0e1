//! What the thread makes of what it is told, in a network of its own.

use causeway_kernel::netns::NetNs;
use causeway_policy::read;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;

const ME: &str = "node-1";

/// A state that is told everything, on a kernel without a table.
fn state(policies: &[Value], pods: &[Value]) -> State {
    let ns = NetNs::unnamed().unwrap();
    let nft = Nft::open_in(&ns).unwrap();
    let mut state = State::new(&ME.parse().unwrap(), nft, Arc::default());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let ends = [PolicyKind::Namespaces, PolicyKind::Pods, PolicyKind::Nodes];
    for kind in [PolicyKind::Network, PolicyKind::Cluster].into_iter().chain(ends) {
        state.event(PolicyEvent::Listing(kind));
        for value in policies.iter().chain(pods).chain([&namespace]) {
            let object = Object::read(value).unwrap().unwrap();
            if PolicyKind::of(&object) == kind {
                state.event(PolicyEvent::Put(object, None));
            }
        }
        state.event(PolicyEvent::Listed(kind));
    }
    state.set_endpoints(Endpoints::new());
    state.work(Instant::now());
    state
}

fn policy(ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": ports}]}})
}

fn pod(node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "db-0"},
        "spec": {"nodeName": node, "containers": []}})
}

/// What a plugin is told, if anything yet.
fn ask(state: &mut State, now: Instant) -> oneshot::Receiver<Result<(), String>> {
    let (reply, answer) = oneshot::channel();
    let pod = PodName::new("x", "db-0");
    let addresses = vec![IpAddr::from([10, 0, 0, 1])];
    let uid = Some("new".to_owned());
    let until = now + Duration::from_secs(2);
    state.confirm(Confirm { pod, uid, addresses, reply, until, ask_at: Some(now) });
    state.work(now);
    answer
}

/// A pod that was on another node before is asked for, when the watch is late: nothing would pass.
#[test]
fn a_pod_that_was_on_another_node_is_not_known() {
    let mut state = state(&[policy(&[80])], &[pod("node-2")]);
    let now = Instant::now();
    let mut answer = ask(&mut state, now);
    assert!(answer.try_recv().is_err(), "it is not known here");
    assert_eq!(state.take_questions().len(), 1);
    let here = Box::new(read::pod(&pod(ME)).unwrap());
    state.event(PolicyEvent::Asked(Object::Pod(here), Some("new".to_owned())));
    state.work(now);
    assert_eq!(answer.try_recv().unwrap(), Ok(()));
}

/// What a change leaves stays for a moment, be it that what another one left goes just then.
#[test]
fn what_each_change_leaves_stays_for_a_moment() {
    let mut state = state(&[policy(&[80])], &[pod(ME)]);
    let start = Instant::now();
    ask(&mut state, start).try_recv().unwrap().unwrap();
    let change = |state: &mut State, port: u16, now: Instant| {
        let object = Object::read(&policy(&[port])).unwrap().unwrap();
        state.event(PolicyEvent::Put(object, None));
        state.work(now);
        state.enforcer.is_tidy()
    };
    let mut now = start;
    for port in 81..91 {
        assert!(!change(&mut state, port, now), "{port}");
        // Just when it would be time for what the first has left.
        now += TIDY_AFTER;
    }
    // But not for ever.
    assert!(change(&mut state, 91, start + TIDY_MOST));
}
