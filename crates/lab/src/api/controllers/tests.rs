use std::time::Duration;

use serde_json::json;

use super::*;
use crate::api::store::{DeleteOptions, StoreConfig};

fn node(name: &str, labels: Value, spec: Value) -> Value {
    json!({ "metadata": { "name": name, "labels": labels }, "spec": spec,
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })
}

fn pod(name: &str, extra: Value) -> Value {
    let mut pod = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    for (key, value) in extra.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn start() -> (Store, tokio::task::JoinHandle<()>) {
    let store = Store::new(StoreConfig::default());
    let ranges =
        ["10.244.0.0/16", "fd00:10:244::/56"].map(|cidr| PodRange::new(cidr.parse().unwrap()));
    let config = ControllersConfig { pod_ranges: ranges.to_vec(), schedule: true };
    (store.clone(), tokio::spawn(run(store, config, std::future::pending())))
}

/// Waits until the store is as it should be.
async fn eventually(what: &str, store: &Store, test: impl Fn(&Store) -> bool) {
    let waiting = async {
        let mut seen = 0;
        while !test(store) {
            seen = store.changed_after(seen).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn node_of(store: &Store, pod: &str) -> String {
    store
        .get("pods", "default", pod)
        .map(|p| text(&p, "/spec/nodeName").to_string())
        .unwrap_or_default()
}

#[tokio::test]
async fn nodes_get_pod_cidrs_in_the_order_of_their_creation() {
    let (store, _run) = start();
    for (name, second) in [
        ("cp", "fd00:10:244::/64"),
        ("node-1", "fd00:10:244:1::/64"),
        ("node-2", "fd00:10:244:2::/64"),
    ] {
        store.create("nodes", "", node(name, json!({}), json!({})), false).unwrap();
        eventually(name, &store, |s| {
            s.get("nodes", "", name).unwrap()["spec"]["podCIDRs"][1] == second
        })
        .await;
    }
    store.delete("nodes", &Key::new("", "node-1"), &DeleteOptions::default()).unwrap();
    store.create("nodes", "", node("late", json!({}), json!({})), false).unwrap();
    eventually("late", &store, |s| {
        s.get("nodes", "", "late").unwrap()["spec"]["podCIDR"] == "10.244.1.0/24"
    })
    .await;
}

#[tokio::test]
async fn pods_spread_and_respect_selectors_and_taints() {
    let (store, _run) = start();
    let taint = json!({ "taints": [{ "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" }] });
    for new in [
        node("cp", json!({}), taint),
        node("a", json!({ "disk": "ssd" }), json!({})),
        node("b", json!({}), json!({})),
    ] {
        store.create("nodes", "", new, false).unwrap();
    }
    for i in 0..6 {
        store.create("pods", "default", pod(&format!("p{i}"), json!({})), false).unwrap();
    }
    eventually("all bound", &store, |s| (0..6).all(|i| !node_of(s, &format!("p{i}")).is_empty()))
        .await;
    let on = |node: &str| (0..6).filter(|i| node_of(&store, &format!("p{i}")) == node).count();
    assert_eq!((on("a"), on("b"), on("cp")), (3, 3, 0));

    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
        { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["b"] }] }] } } });
    for (name, extra, expected) in [
        ("ssd", json!({ "nodeSelector": { "disk": "ssd" } }), "a"),
        ("pinned", json!({ "affinity": affinity }), "b"),
        ("tolerant", json!({ "tolerations": [{ "operator": "Exists" }] }), "cp"),
    ] {
        store.create("pods", "default", pod(name, extra), false).unwrap();
        eventually(name, &store, |s| node_of(s, name) == expected).await;
    }
    store
        .create("pods", "default", pod("hdd", json!({ "nodeSelector": { "disk": "hdd" } })), false)
        .unwrap();
    let reason = |s: &Store| {
        s.get("pods", "default", "hdd").unwrap()["status"]["conditions"][0]["reason"]
            == "Unschedulable"
    };
    eventually("unschedulable", &store, reason).await;
    store
        .modify("nodes", &Key::new("", "b"), Part::Main, |n| {
            n["metadata"]["labels"]["disk"] = json!("hdd")
        })
        .unwrap();
    eventually("schedulable", &store, |s| node_of(s, "hdd") == "b").await;
}

#[tokio::test]
async fn a_bound_pod_stays_bound() {
    let store = Store::new(StoreConfig::default());
    store.create("pods", "default", pod("a", json!({})), false).unwrap();
    bind(&store, "default", "a", "x").unwrap();
    assert_eq!(bind(&store, "default", "a", "y").unwrap_err().code, 409);
    assert_eq!(bind(&store, "default", "b", "y").unwrap_err().code, 404);
}

#[tokio::test]
async fn a_namespace_takes_its_objects_with_it() {
    let (store, _run) = start();
    store.create("namespaces", "", json!({ "metadata": { "name": "team" } }), false).unwrap();
    eventually("account", &store, |s| s.get("serviceaccounts", "team", "default").is_ok()).await;
    let account = Key::new("team", "default");
    store.delete("serviceaccounts", &account, &DeleteOptions::default()).unwrap();
    eventually("account again", &store, |s| s.get("serviceaccounts", "team", "default").is_ok())
        .await;
    store.create("configmaps", "team", json!({ "metadata": { "name": "c" } }), false).unwrap();
    store.create("pods", "team", pod("p", json!({ "nodeName": "a" })), false).unwrap();
    let gone =
        store.delete("namespaces", &Key::new("", "team"), &DeleteOptions::default()).unwrap().gone;
    assert!(!gone);
    eventually("map gone", &store, |s| s.get("configmaps", "team", "c").is_err()).await;
    assert_eq!(
        store
            .create("configmaps", "team", json!({ "metadata": { "name": "d" } }), false)
            .unwrap_err()
            .code,
        403
    );
    let held = store.get("pods", "team", "p").unwrap();
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(store.get("namespaces", "", "team").unwrap()["status"]["phase"], "Terminating");
    let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    store.delete("pods", &Key::new("team", "p"), &now).unwrap();
    eventually("namespace gone", &store, |s| s.get("namespaces", "", "team").is_err()).await;
}
