use serde_json::{Value, json};

use super::Patch;
use crate::api::registry::{Registry, Resource};

fn pods() -> Resource {
    resource("pods")
}

fn resource(key: &str) -> Resource {
    Resource::clone(Registry::default().get(key).unwrap())
}

fn patched(resource: &Resource, patch: Patch, old: Value) -> Value {
    patch.apply(resource, &old).unwrap()
}

/// The example of RFC 7386, appendix A, in parts.
#[test]
fn merge_patch_follows_its_standard() {
    for (old, patch, new) in [
        (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
        (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
        (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
        (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
        (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
        (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
    ] {
        assert_eq!(patched(&pods(), Patch::Merge(patch), old), new);
    }
}

/// Examples of RFC 6902, appendix A.
#[test]
fn json_patch_follows_its_standard() {
    for (old, patch, new) in [
        (
            json!({"foo":["bar","baz"]}),
            json!([{"op":"add","path":"/foo/1","value":"qux"}]),
            json!({"foo":["bar","qux","baz"]}),
        ),
        (
            json!({"foo":["a"]}),
            json!([{"op":"add","path":"/foo/-","value":["b"]}]),
            json!({"foo":["a",["b"]]}),
        ),
        (json!({"a":1,"b":2}), json!([{"op":"remove","path":"/a"}]), json!({"b":2})),
        (
            json!({"a":{"b":1},"c":{}}),
            json!([{"op":"move","from":"/a/b","path":"/c/d"}]),
            json!({"a":{},"c":{"d":1}}),
        ),
        (
            json!({"a":1}),
            json!([{"op":"copy","from":"/a","path":"/b"},{"op":"replace","path":"/a","value":2}]),
            json!({"a":2,"b":1}),
        ),
        (
            json!({"a/b":1,"m~n":2}),
            json!([{"op":"test","path":"/a~1b","value":1},{"op":"remove","path":"/m~0n"}]),
            json!({"a/b":1}),
        ),
    ] {
        assert_eq!(patched(&pods(), Patch::Json(patch), old), new);
    }
    for wrong in [
        json!([{"op":"test","path":"/a","value":2}]),
        json!([{"op":"remove","path":"/x"}]),
        json!([{"op":"replace","path":"/x","value":1}]),
        json!([{"op":"add","path":"/l/7","value":1}]),
        json!([{"op":"add","path":"/l/01","value":1}]),
        json!([{"op":"move","from":"/l","path":"/l/0"}]),
        json!([{"op":"jump","path":"/a"}]),
        json!({"a":1}),
    ] {
        assert!(
            Patch::Json(wrong.clone()).apply(&pods(), &json!({"a":1,"l":[1,2]})).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn strategic_merge_takes_lists_for_maps() {
    let old = json!({"spec":{"containers":[
        {"name":"a","image":"a:1","ports":[{"containerPort":80,"protocol":"TCP"}],"env":[{"name":"X","value":"1"}],"args":["x"]},
        {"name":"b","image":"b:1"}],
        "tolerations":[{"key":"t"}]}});
    let patch = json!({"spec":{
        "$setElementOrder/containers":[{"name":"c"},{"name":"a"}],
        "containers":[
            {"name":"a","image":"a:2","ports":[{"containerPort":81}],"env":[{"name":"X","value":"2"},{"name":"Y","value":"3"}],"args":["y"]},
            {"name":"b","$patch":"delete"},
            {"name":"c","image":"c:1"}],
        "tolerations":[{"key":"u"}]}});
    assert_eq!(
        patched(&pods(), Patch::Strategic(patch), old),
        json!({"spec":{"containers":[
            {"name":"c","image":"c:1"},
            {"name":"a","image":"a:2","ports":[{"containerPort":80,"protocol":"TCP"},{"containerPort":81}],
             "env":[{"name":"X","value":"2"},{"name":"Y","value":"3"}],"args":["y"]}],
            "tolerations":[{"key":"u"}]}})
    );
}

#[test]
fn strategic_directives_delete_replace_and_retain() {
    let nodes = resource("nodes");
    let old = json!({"metadata":{"labels":{"a":"1","b":"2"},"finalizers":["x","y"]},
        "status":{"conditions":[{"type":"Ready","status":"False","reason":"r"}],"addresses":[{"type":"InternalIP","address":"1.1.1.1"}]}});
    let patch = json!({"metadata":{"labels":{"a":null,"c":"3"},"$deleteFromPrimitiveList/finalizers":["x"],"finalizers":["z"]},
        "status":{"conditions":[{"type":"Ready","status":"True"}],
                  "addresses":[{"$patch":"replace"},{"type":"InternalIP","address":"2.2.2.2"},{"type":"InternalIP","address":"fd00::2"}]}});
    let new = patched(&nodes, Patch::Strategic(patch), old);
    assert_eq!(new["metadata"], json!({"labels":{"b":"2","c":"3"},"finalizers":["y","z"]}));
    assert_eq!(new["status"]["conditions"], json!([{"type":"Ready","status":"True","reason":"r"}]));
    // Two elements of one key merge, as they do in a real API server.
    assert_eq!(new["status"]["addresses"], json!([{"type":"InternalIP","address":"fd00::2"}]));

    let old = json!({"spec":{"volumes":[{"name":"v","emptyDir":{}}]},"metadata":{"annotations":{"a":"b"}}});
    let patch = json!({"spec":{"volumes":[{"name":"v","$retainKeys":["name","hostPath"],"hostPath":{"path":"/x"}}]},
                       "metadata":{"annotations":{"$patch":"replace","c":"d"}}});
    let new = patched(&pods(), Patch::Strategic(patch), old);
    assert_eq!(
        new,
        json!({"spec":{"volumes":[{"name":"v","hostPath":{"path":"/x"}}]},"metadata":{"annotations":{"c":"d"}}})
    );
}

#[test]
fn owner_references_merge_by_uid_and_taints_are_replaced() {
    let old = json!({"metadata":{"ownerReferences":[{"uid":"1","name":"a"}]},"spec":{"taints":[{"key":"a"}]}});
    let patch = json!({"metadata":{"ownerReferences":[{"uid":"2","name":"b"},{"uid":"1","name":"c"}]},"spec":{"taints":[{"key":"b"}]}});
    let new = patched(&resource("nodes"), Patch::Strategic(patch), old);
    assert_eq!(
        new["metadata"]["ownerReferences"],
        json!([{"uid":"1","name":"c"},{"uid":"2","name":"b"}])
    );
    assert_eq!(new["spec"]["taints"], json!([{"key":"b"}]));
}

#[test]
fn apply_merges_by_keys_and_drops_what_its_manager_left_out() {
    let last = json!({"metadata":{"name":"s","labels":{"gone":"1","kept":"1"}},
        "spec":{"selector":{"a":"b"},"ports":[{"port":80},{"port":53,"protocol":"UDP"}]}});
    let old = json!({"metadata":{"name":"s","labels":{"gone":"1","kept":"1","foreign":"x"}},
        "spec":{"clusterIP":"10.96.0.1","selector":{"a":"b"},"ports":[{"port":80,"protocol":"TCP","targetPort":80},{"port":53,"protocol":"UDP"},{"port":53,"protocol":"TCP"}]}});
    let object = json!({"metadata":{"name":"s","labels":{"kept":"2"}},"spec":{"selector":{"c":"d"},"ports":[{"port":80,"targetPort":8080}]}});
    let patch = Patch::Apply { object, manager: "m".into(), last: Some(last) };
    assert_eq!(
        patched(&resource("services"), patch, old),
        json!({"metadata":{"name":"s","labels":{"kept":"2","foreign":"x"}},
            "spec":{"clusterIP":"10.96.0.1","selector":{"c":"d"},
                    "ports":[{"port":80,"protocol":"TCP","targetPort":8080},{"port":53,"protocol":"TCP"}]}})
    );
}

#[test]
fn custom_types_refuse_strategic_merges() {
    let mut roads = pods();
    roads.custom = true;
    assert_eq!(Patch::Strategic(json!({})).apply(&roads, &json!({})).unwrap_err().code, 415);
}

mod laws {
    use super::*;
    use proptest::prelude::*;

    fn container() -> impl Strategy<Value = Value> {
        let ports = prop::collection::btree_set(1u16..5, 0..4);
        ("[a-d]", "[x-z]", ports).prop_map(|(name, image, ports)| {
            let ports: Vec<Value> = ports.iter().map(|p| json!({ "containerPort": p })).collect();
            json!({ "name": name, "image": image, "ports": ports })
        })
    }

    fn pod() -> impl Strategy<Value = Value> {
        let labels = prop::collection::btree_map("[a-c]", "[a-c]", 0..3);
        (prop::collection::vec(container(), 0..4), labels).prop_map(|(mut containers, labels)| {
            containers.sort_by_key(|c| c["name"].to_string());
            containers.dedup_by_key(|c| c["name"].to_string());
            json!({ "metadata": { "labels": labels }, "spec": { "containers": containers } })
        })
    }

    proptest! {
        #[test]
        fn every_merge_is_idempotent(old in pod(), patch in pod()) {
            for patch in [Patch::Merge(patch.clone()), Patch::Strategic(patch.clone()), Patch::apply_as("m", patch)] {
                let once = patched(&pods(), patch.clone(), old.clone());
                prop_assert_eq!(patched(&pods(), patch, once.clone()), once);
            }
        }

        #[test]
        fn a_strategic_merge_and_an_apply_keep_all_names(old in pod(), patch in pod()) {
            for how in [Patch::Strategic(patch.clone()), Patch::apply_as("m", patch.clone())] {
                let new = patched(&pods(), how, old.clone());
                let names = |v: &Value| v["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].to_string()).collect::<std::collections::BTreeSet<_>>();
                prop_assert_eq!(names(&new), &names(&old) | &names(&patch));
            }
        }

        #[test]
        fn applying_the_empty_configuration_undoes_the_apply(old in pod(), patch in pod()) {
            let with = patched(&pods(), Patch::apply_as("m", patch.clone()), json!({ "metadata": {}, "spec": {} }));
            let undo = Patch::Apply { object: json!({}), manager: "m".into(), last: Some(patch) };
            let without = patched(&pods(), undo, with);
            prop_assert_eq!(without["spec"]["containers"].as_array().map_or(0, Vec::len), 0);
            let _ = old;
        }
    }
}
