use serde_json::{Value, json};

use super::*;
use crate::api::selector::{FieldSelector, LabelSelector};

fn store(history: usize) -> Store {
    Store::new(StoreConfig { history, ..StoreConfig::default() })
}

fn map(name: &str, labels: Value) -> Value {
    json!({ "metadata": { "name": name, "labels": labels }, "data": { "a": "b" } })
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn key(name: &str) -> Key {
    Key::new("default", name)
}

fn put(store: &Store, name: &str, labels: Value) -> Arc<Value> {
    store.create("configmaps", "default", map(name, labels), false).unwrap()
}

fn names(list: &List) -> Vec<&str> {
    list.items.iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn creation_fills_metadata_and_refuses_what_is_taken() {
    let store = store(100);
    let one = put(&store, "one", json!({}));
    assert_eq!((one["kind"].as_str(), one["apiVersion"].as_str()), (Some("ConfigMap"), Some("v1")));
    assert_eq!(version(&one), store.version());
    assert_eq!(one["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert_eq!(
        store.create("configmaps", "default", map("one", json!({})), false).unwrap_err().reason,
        "AlreadyExists"
    );
    assert_eq!(
        store.create("configmaps", "nowhere", map("one", json!({})), false).unwrap_err().code,
        404
    );
    assert_eq!(
        store.create("configmaps", "default", json!({ "metadata": {} }), false).unwrap_err().code,
        422
    );
    assert_eq!(
        store.create("configmaps", "default", json!({ "kind": "Pod" }), false).unwrap_err().code,
        400
    );
    assert_eq!(store.create("widgets", "default", json!({}), false).unwrap_err().code, 404);
    let generated = json!({ "metadata": { "generateName": "web-" } });
    let name = store.create("configmaps", "default", generated, false).unwrap()["metadata"]["name"]
        .clone();
    assert!(name.as_str().unwrap().starts_with("web-") && name.as_str().unwrap().len() == 9);
}

#[test]
fn loaded_objects_have_their_status_and_come_up_to_the_first_that_is_refused() {
    let store = store(100);
    let before = store.version();
    let pod = |name: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
                "spec": { "nodeName": "far", "containers": [{ "name": "main" }] },
                "status": { "phase": "Running", "podIP": "10.1.2.3" } })
    };
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "far" } });
    assert_eq!(store.load(vec![node, pod("a"), pod("b")]).unwrap(), 3);
    let found = store.get("pods", "default", "a").unwrap();
    assert_eq!(found["status"]["podIP"], "10.1.2.3");
    assert_eq!(found["spec"]["restartPolicy"], "Always");
    assert_eq!(store.version(), before + 3);
    assert_eq!(store.load(vec![pod("c"), pod("a"), pod("d")]).unwrap_err().code, 409);
    assert!(store.get("pods", "default", "c").is_ok());
    assert_eq!(store.get("pods", "default", "d").unwrap_err().code, 404);
    assert_eq!(store.load(vec![json!({ "kind": "Road" })]).unwrap_err().code, 400);
}

#[test]
fn a_dry_run_changes_nothing() {
    let store = store(100);
    let before = store.version();
    store.create("configmaps", "default", map("one", json!({})), true).unwrap();
    put(&store, "two", json!({}));
    store
        .update("configmaps", &key("two"), Part::Main, map("two", json!({ "a": "b" })), true)
        .unwrap();
    store
        .delete("configmaps", &key("two"), &DeleteOptions { dry_run: true, ..Default::default() })
        .unwrap();
    assert_eq!(store.version(), before + 1);
}

#[test]
fn updates_conflict_count_generations_and_skip_what_is_equal() {
    let store = store(100);
    let policy = json!({ "metadata": { "name": "p" }, "spec": { "podSelector": {} } });
    let resource = "networkpolicies.networking.k8s.io";
    let first = store.create(resource, "default", policy, false).unwrap();
    assert_eq!(first["spec"]["policyTypes"], json!(["Ingress"]));
    let same = store.update(resource, &key("p"), Part::Main, Value::clone(&first), false).unwrap();
    assert_eq!(version(&same), version(&first));
    let labelled = store
        .modify(resource, &key("p"), Part::Main, |p| p["metadata"]["labels"] = json!({ "a": "b" }))
        .unwrap();
    assert_eq!(labelled["metadata"]["generation"], 1);
    let changed = store
        .modify(resource, &key("p"), Part::Main, |p| p["spec"]["egress"] = json!([{}]))
        .unwrap();
    assert_eq!(changed["metadata"]["generation"], 2);
    let mut stale = Value::clone(&first);
    stale["spec"]["egress"] = json!([]);
    assert_eq!(
        store.update(resource, &key("p"), Part::Main, stale.clone(), false).unwrap_err().reason,
        "Conflict"
    );
    stale["metadata"]["resourceVersion"] = json!("");
    stale["metadata"]["uid"] = json!("other");
    assert_eq!(store.update(resource, &key("p"), Part::Main, stale, false).unwrap_err().code, 409);
}

#[test]
fn status_and_the_rest_are_written_apart() {
    let store = store(100);
    let node = json!({ "metadata": { "name": "a" }, "spec": {}, "status": { "phase": "one" } });
    store.create("nodes", "", node.clone(), false).unwrap();
    let both = json!({ "metadata": { "name": "a", "labels": { "x": "y" } }, "spec": { "providerID": "p" }, "status": { "phase": "two" } });
    let key = Key::new("", "a");
    let status = store.update("nodes", &key, Part::Status, both.clone(), false).unwrap();
    assert_eq!((&status["spec"], &status["status"]["phase"]), (&json!({}), &json!("two")));
    assert!(status["metadata"].get("labels").is_none());
    let main = store.update("nodes", &key, Part::Main, node, false).unwrap();
    assert_eq!(main["status"]["phase"], "two");
}

#[test]
fn pod_cidrs_are_set_once() {
    let store = store(100);
    let key = Key::new("", "a");
    store.create("nodes", "", json!({ "metadata": { "name": "a" } }), false).unwrap();
    let set =
        |cidrs: Value| store.modify("nodes", &key, Part::Main, |n| n["spec"]["podCIDRs"] = cidrs);
    assert_eq!(
        set(json!(["10.0.0.0/24", "10.0.1.0/24"])).unwrap_err().causes[0].field,
        "spec.podCIDRs"
    );
    assert_eq!(set(json!(["nonsense"])).unwrap_err().code, 422);
    assert_eq!(set(json!(["10.0.0.0/24", "fd00::/64"])).unwrap()["spec"]["podCIDR"], "10.0.0.0/24");
    let error = set(json!(["10.0.9.0/24"])).unwrap_err();
    assert_eq!((error.code, error.causes[0].reason), (422, "FieldValueForbidden"));
    assert_eq!(
        store.modify("nodes", &key, Part::Main, |n| n["spec"] = json!({})).unwrap_err().code,
        422
    );
}

#[test]
fn finalizers_hold_an_object_until_they_are_gone() {
    let store = store(100);
    let mut object = map("one", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    object["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "u" }]);
    store.create("configmaps", "default", object, false).unwrap();
    let deleted = store.delete("configmaps", &key("one"), &DeleteOptions::default()).unwrap();
    assert!(!deleted.gone && deleted.object["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(deleted.object["metadata"]["ownerReferences"][0]["uid"], "u");
    let at = store.version();
    assert!(!store.delete("configmaps", &key("one"), &DeleteOptions::default()).unwrap().gone);
    assert_eq!(store.version(), at);
    store
        .modify("configmaps", &key("one"), Part::Main, |o| o["metadata"]["finalizers"] = json!([]))
        .unwrap();
    assert_eq!(store.get("configmaps", "default", "one").unwrap_err().code, 404);
}

#[test]
fn pods_on_a_node_leave_in_two_steps() {
    let store = store(100);
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "a", "containers": [{ "name": "c" }] } });
    store.create("pods", "default", pod, false).unwrap();
    let asked = store.delete("pods", &key("p"), &DeleteOptions::default()).unwrap();
    assert_eq!(
        (asked.gone, &asked.object["metadata"]["deletionGracePeriodSeconds"]),
        (false, &json!(30))
    );
    let sooner = DeleteOptions { grace_period_seconds: Some(5), ..Default::default() };
    assert_eq!(
        store.delete("pods", &key("p"), &sooner).unwrap().object["metadata"]["deletionGracePeriodSeconds"],
        5
    );
    let status = store
        .modify("pods", &key("p"), Part::Status, |p| p["status"]["phase"] = json!("Running"))
        .unwrap();
    assert_eq!(status["metadata"]["deletionGracePeriodSeconds"], 5);
    let other = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some("other".into()),
        ..Default::default()
    };
    assert_eq!(store.delete("pods", &key("p"), &other).unwrap_err().code, 409);
    let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    assert!(store.delete("pods", &key("p"), &now).unwrap().gone);
}

#[test]
fn services_get_addresses_that_come_back() {
    let config = StoreConfig {
        service_cidrs: vec!["10.96.0.0/30".parse().unwrap(), "fd00::/112".parse().unwrap()],
        ..StoreConfig::default()
    };
    let store = Store::new(config);
    let service = |name: &str, extra: Value| {
        let mut service =
            json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
        extra.as_object().unwrap().iter().for_each(|(k, v)| service["spec"][k] = v.clone());
        store.create("services", "default", service, false)
    };
    let a = service("a", json!({})).unwrap();
    assert_eq!(a["spec"]["clusterIPs"], json!(["10.96.0.1"]));
    assert_eq!(a["spec"]["ports"][0], json!({ "port": 80, "protocol": "TCP", "targetPort": 80 }));
    let b = service("b", json!({ "ipFamilyPolicy": "PreferDualStack" })).unwrap();
    assert_eq!(b["spec"]["clusterIPs"], json!(["10.96.0.2", "fd00::1"]));
    assert_eq!(service("c", json!({})).unwrap_err().code, 422);
    store.delete("services", &key("a"), &DeleteOptions::default()).unwrap();
    assert_eq!(service("c", json!({})).unwrap()["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(service("d", json!({ "clusterIP": "10.96.0.2" })).unwrap_err().code, 422);
    assert_eq!(
        service("e", json!({ "clusterIP": "None" })).unwrap()["spec"]["clusterIPs"],
        json!(["None"])
    );
    let f = service("f", json!({ "ipFamilies": ["IPv6"], "type": "NodePort" })).unwrap();
    assert_eq!(
        (&f["spec"]["clusterIP"], &f["spec"]["ports"][0]["nodePort"]),
        (&json!("fd00::2"), &json!(30000))
    );
    let patched = Patch::Merge(json!({ "spec": { "clusterIP": "10.96.0.9" } }));
    assert_eq!(
        store.patch("services", &key("b"), Part::Main, &patched, false).unwrap_err().code,
        422
    );
}

#[test]
fn pages_show_one_version_and_expire() {
    let store = store(10);
    (0..5).for_each(|i| {
        drop(put(&store, &format!("m{i}"), json!({ "even": (i % 2 == 0).to_string() })))
    });
    let first = ListOptions { limit: 2, ..Default::default() };
    let page = store.list("configmaps", "default", &first).unwrap();
    assert_eq!((names(&page), page.remaining), (vec!["m0", "m1"], Some(3)));
    put(&store, "m2x", json!({}));
    store.delete("configmaps", &key("m3"), &DeleteOptions::default()).unwrap();
    let second = ListOptions { page: page.next.clone(), ..Default::default() };
    let rest = store.list("configmaps", "default", &second).unwrap();
    assert_eq!(
        (names(&rest), rest.version, rest.next.is_none()),
        (vec!["m2", "m3", "m4"], page.version, true)
    );
    let even = ListOptions {
        limit: 2,
        labels: LabelSelector::parse("even=true").unwrap(),
        ..Default::default()
    };
    let even = store.list("configmaps", "", &even).unwrap();
    assert_eq!((names(&even), even.remaining), (vec!["m0", "m2"], None));
    (0..10).for_each(|i| drop(put(&store, &format!("n{i}"), json!({}))));
    assert_eq!(store.list("configmaps", "default", &second).unwrap_err().code, 410);
    let bad = ListOptions { page: Some("x".into()), ..Default::default() };
    assert_eq!(store.list("configmaps", "default", &bad).unwrap_err().code, 400);
    let future = ListOptions { at: At::NotOlderThan(store.version() + 1), ..Default::default() };
    assert_eq!(store.list("configmaps", "default", &future).unwrap_err().code, 504);
}

async fn told(watch: &mut Watch) -> String {
    match watch.next().await {
        Some(Event::Added(o)) => format!("+{}", o["metadata"]["name"].as_str().unwrap()),
        Some(Event::Modified(o)) => format!("~{}", o["metadata"]["name"].as_str().unwrap()),
        Some(Event::Deleted(o)) => format!("-{}", o["metadata"]["name"].as_str().unwrap()),
        Some(Event::Bookmark { initial_end, .. }) => format!("mark {initial_end}"),
        Some(Event::Error(error)) => format!("error {}", error.code),
        None => "end".into(),
    }
}

#[tokio::test]
async fn watches_follow_objects_in_and_out_of_the_selection() {
    let store = store(100);
    let start = put(&store, "a", json!({ "on": "1" }));
    put(&store, "b", json!({}));
    let labels = LabelSelector::parse("on=1").unwrap();
    let options = WatchOptions { labels, after: Some(version(&start) - 1), ..Default::default() };
    let mut watch = store.watch("configmaps", "default", options).unwrap();
    let label = |name: &str, on: Value| {
        store
            .modify("configmaps", &key(name), Part::Main, |o| o["metadata"]["labels"] = on)
            .unwrap();
    };
    label("b", json!({ "on": "1" }));
    label("b", json!({ "on": "1", "x": "y" }));
    label("a", json!({}));
    label("a", json!({ "q": "r" }));
    store.delete("configmaps", &key("b"), &DeleteOptions::default()).unwrap();
    for expected in ["+a", "+b", "~b", "-a", "-b"] {
        assert_eq!(told(&mut watch).await, expected);
    }
    assert!(
        matches!(watch.bookmark(), Some(Event::Bookmark { version, .. }) if version == store.version())
    );
    let later = tokio::spawn(async move { told(&mut watch).await });
    tokio::task::yield_now().await;
    put(&store, "c", json!({ "on": "1" }));
    assert_eq!(later.await.unwrap(), "+c");
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark_and_old_versions_with_an_error() {
    let store = store(5);
    let start = put(&store, "a", json!({}));
    put(&store, "b", json!({}));
    let options = WatchOptions { initial_events: Some(true), ..Default::default() };
    let mut watch = store.watch("configmaps", "", options.clone()).unwrap();
    for expected in ["+a", "+b", "mark true"] {
        assert_eq!(told(&mut watch).await, expected);
    }
    let one = WatchOptions { fields: FieldSelector::equals("metadata.name", "b"), ..options };
    let mut watch = store.watch("configmaps", "", one).unwrap();
    assert_eq!(
        (told(&mut watch).await.as_str(), told(&mut watch).await.as_str()),
        ("+b", "mark true")
    );
    (0..5).for_each(|i| drop(put(&store, &format!("n{i}"), json!({}))));
    for after in [version(&start), store.version() + 1] {
        let options = WatchOptions { after: Some(after), ..Default::default() };
        let mut old = store.watch("configmaps", "", options).unwrap();
        assert_eq!(
            (told(&mut old).await.as_str(), told(&mut old).await.as_str()),
            ("error 410", "end")
        );
    }
    let odd =
        WatchOptions { fields: FieldSelector::equals("spec.color", "red"), ..Default::default() };
    assert_eq!(store.watch("configmaps", "", odd).unwrap_err().code, 400);
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_told_so() {
    let store = store(3);
    let mut watch = store.watch("configmaps", "", WatchOptions::default()).unwrap();
    (0..4).for_each(|i| drop(put(&store, &format!("n{i}"), json!({}))));
    assert_eq!(told(&mut watch).await, "error 410");
}

#[test]
fn definitions_bring_and_take_their_types() {
    let store = store(100);
    let definition = json!({ "metadata": { "name": "roads.example.dev" }, "spec": {
        "group": "example.dev", "scope": "Cluster", "names": { "plural": "roads", "kind": "Road" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} } }] } });
    let definitions = "customresourcedefinitions.apiextensions.k8s.io";
    let stored = store.create(definitions, "", definition, false).unwrap();
    assert_eq!(stored["status"]["conditions"][1]["type"], "Established");
    let road = json!({ "apiVersion": "example.dev/v1", "kind": "Road", "metadata": { "name": "r" }, "spec": {}, "status": { "a": 1 } });
    let road = store.create("roads.example.dev", "", road, false).unwrap();
    assert!(road.get("status").is_none() && road["metadata"]["generation"] == 1);
    store
        .delete(definitions, &Key::new("", "roads.example.dev"), &DeleteOptions::default())
        .unwrap();
    assert_eq!(store.get("roads.example.dev", "", "r").unwrap_err().code, 404);
}

#[test]
fn an_apply_creates_and_then_remembers_what_it_applied() {
    let store = store(100);
    let apply = |manager: &str, labels: Value| {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "labels": labels } });
        store
            .patch("configmaps", &key("a"), Part::Main, &Patch::apply_as(manager, object), false)
            .unwrap()
    };
    assert!(apply("one", json!({ "x": "1", "y": "1" })).1);
    assert!(!apply("two", json!({ "z": "1" })).1);
    let (object, _) = apply("one", json!({ "x": "2" }));
    assert_eq!(object["metadata"]["labels"], json!({ "x": "2", "z": "1" }));
}

mod laws {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let put = (0u8..5, 0u8..3).prop_map(|(name, value)| Step::Put(name, value));
        prop::collection::vec(prop_oneof![3 => put, 1 => (0u8..5).prop_map(Step::Delete)], 0..40)
    }

    fn run(store: &Store, step: &Step) {
        match step {
            Step::Put(name, value) => {
                let object = map(&format!("m{name}"), json!({ "v": value.to_string() }));
                let patch = Patch::Merge(object.clone());
                if store
                    .patch("configmaps", &key(&format!("m{name}")), Part::Main, &patch, false)
                    .is_err()
                {
                    store.create("configmaps", "default", object, false).unwrap();
                }
            }
            Step::Delete(name) => {
                let _ = store.delete(
                    "configmaps",
                    &key(&format!("m{name}")),
                    &DeleteOptions::default(),
                );
            }
        }
    }

    fn all(store: &Store, at: At) -> Vec<Arc<Value>> {
        store.list("configmaps", "", &ListOptions { at, ..Default::default() }).unwrap().items
    }

    proptest! {
        /// A list of the past, brought forward by a watch from there, is the present.
        #[test]
        fn a_list_and_a_watch_give_the_present(before in steps(), after in steps(), selector in prop::option::of(0u8..3)) {
            let store = store(1000);
            let labels = selector.map_or(LabelSelector::default(), |v| LabelSelector::parse(&format!("v={v}")).unwrap());
            before.iter().for_each(|step| run(&store, step));
            let version = store.version();
            let then = all(&store, At::Newest);
            after.iter().for_each(|step| run(&store, step));
            prop_assert_eq!(&all(&store, At::Exactly(version)), &then);

            let options = WatchOptions { labels: labels.clone(), after: Some(version), ..Default::default() };
            let mut watch = store.watch("configmaps", "", options).unwrap();
            let name = |o: &Value| o["metadata"]["name"].to_string();
            let chosen = |o: &&Arc<Value>| labels.matches(&o["metadata"]["labels"]);
            let mut view: BTreeMap<String, Arc<Value>> = then.iter().filter(chosen).map(|o| (name(o), o.clone())).collect();
            while watch.bookmark().is_none() {
                match futures::executor::block_on(watch.next()) {
                    Some(Event::Added(o)) => prop_assert!(view.insert(name(&o), o).is_none()),
                    Some(Event::Modified(o)) => prop_assert!(view.insert(name(&o), o).is_some()),
                    Some(Event::Deleted(o)) => prop_assert!(view.remove(&name(&o)).is_some()),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let now: Vec<Arc<Value>> = all(&store, At::Newest).iter().filter(chosen).cloned().collect();
            prop_assert_eq!(view.into_values().collect::<Vec<_>>(), now);
        }
    }
}
