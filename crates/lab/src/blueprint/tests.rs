use super::*;

fn node(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": ["10.9.0.0/24"]}})
}

fn control(name: &str) -> Value {
    node(name, json!({"node-role.kubernetes.io/control-plane": ""}))
}

fn at(name: &str, node: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]}})
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (path, key) = pointer.rsplit_once('/').unwrap();
    let mut target = &mut object;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        target = &mut target[part];
    }
    target[key] = value;
    object
}

fn of(objects: &[Value], workers: Option<u8>, pods: usize) -> Blueprint {
    Blueprint::of(objects, workers, pods)
}

fn places(blueprint: &Blueprint) -> Vec<String> {
    let place =
        |pod: &Value| format!("{} {}", text(pod, "/metadata/name"), text(pod, "/spec/nodeName"));
    blueprint.pods.iter().map(place).collect()
}

#[test]
fn pods_of_one_node_are_on_one_node() {
    let objects = [
        control("alpha"),
        node("beta", json!({"zone": "b"})),
        node("gamma", json!({"zone": "g"})),
        at("x/a", "gamma"),
        at("x/b", "beta"),
        at("x/c", "gamma"),
        at("x/d", "alpha"),
    ];
    let all = of(&objects, None, MOST_PODS);
    assert_eq!(all.workers, 2);
    assert_eq!(places(&all), ["a node-2", "b node-1", "c node-2", "d cp"]);
    assert_eq!(all.labels["node-2"], json!({"zone": "g"}));
    assert_eq!(all.labels["cp"]["node-role.kubernetes.io/control-plane"], "");
    assert_eq!(all.families, Families::Ipv4);
    assert_eq!(all.left_out, Vec::<String>::new());
    // Fewer workers than nodes: one plays several, and it is said.
    let all = of(&objects, Some(1), MOST_PODS);
    assert_eq!(
        (all.workers, places(&all).join(" ")),
        (1, "a node-1 b node-1 c node-1 d cp".into())
    );
    assert_eq!(all.labels["node-1"], json!({"zone": "b"}));
    assert!(all.left_out[0].contains("gamma on node-1"), "{:?}", all.left_out);
    // A node that only pods name.
    let all = of(&[at("x/a", "n9")], None, MOST_PODS);
    assert_eq!((all.workers, places(&all)), (1, vec!["a node-1".to_owned()]));
    assert!(
        all.left_out.iter().any(|line| line.contains("cp plays no node")),
        "{:?}",
        all.left_out
    );
}

#[test]
fn manifests_have_neighbours_and_others() {
    let bare = |name| with(at(name, ""), "/spec/nodeName", Value::Null);
    let objects = [bare("x/a"), bare("x/b"), bare("y/c")];
    let all = of(&objects, None, MOST_PODS);
    assert_eq!((all.workers, all.families), (2, Families::Dual));
    assert_eq!(places(&all), ["a node-1", "b node-2", "c node-1"]);
    assert_eq!(all.left_out, Vec::<String>::new());
    let names: Vec<&str> = all.namespaces.iter().map(|n| text(n, "/metadata/name")).collect();
    assert_eq!(names, ["x", "y"]);
    assert_eq!(of(&objects, Some(3), MOST_PODS).workers, 3);
    assert_eq!(
        of(&[], None, MOST_PODS),
        Blueprint { workers: 2, families: Families::Dual, ..Blueprint::default() }
    );
}

#[test]
fn what_policies_go_by_is_taken() {
    let full = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "x", "uid": "1", "labels": {"a": "b"},
            "annotations": {"causeway.dev/ip": "10.9.0.7"}},
        "spec": {
            "initContainers": [
                {"name": "once", "ports": [{"name": "gone", "containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
            ],
            "containers": [{"image": "i", "ports": [
                {"name": "dns", "containerPort": 53, "protocol": "UDP", "hostPort": 53}]}],
        },
        "status": {"podIPs": [{"ip": "10.9.0.7"}, {"ip": "fd00::7"}]},
    });
    let open = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "open", "namespace": "z", "resourceVersion": "7", "labels": {"l": "1"}},
        "spec": {"podSelector": {}}, "status": {"conditions": []}});
    let admin = json!({"apiVersion": CLUSTER_POLICIES.1, "kind": CLUSTER_POLICIES.0,
        "metadata": {"name": "admin", "generation": 2}, "spec": {"tier": "Admin"}});
    let all = of(&[full, open, admin.clone()], None, MOST_PODS);
    assert_eq!(all.families, Families::Dual);
    let pod = &all.pods[0];
    assert_eq!(pod["metadata"], json!({"name": "p", "namespace": "x", "labels": {"a": "b"}}));
    assert_eq!(
        pod["spec"]["containers"],
        json!([
            {"name": "c0", "image": "i", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
            {"name": "side", "image": "none", "ports": [{"name": "proxy", "containerPort": 15001}]},
        ])
    );
    assert_eq!(all.policies[0]["metadata"], json!({"name": "admin", "labels": {}}));
    let open = json!({"name": "open", "namespace": "z", "labels": {"l": "1"}});
    assert_eq!(all.policies[1]["metadata"], open);
    assert_eq!((all.policies[1]["status"].clone(), all.policy_count()), (Value::Null, 2));
    // The namespace of a policy is there, be it in the manifests or not.
    assert_eq!(all.namespaces.last().unwrap()["metadata"]["name"], "z");
    // Another version of the kind is not what agents go by.
    let newer = with(admin, "/apiVersion", "policy.networking.k8s.io/v1".into());
    let all = of(&[newer], None, MOST_PODS);
    assert!(all.policies.is_empty() && all.left_out[0].contains("v1alpha2"), "{:?}", all.left_out);
}

#[test]
fn nothing_is_dropped_without_a_word() {
    let objects = [
        node("n", json!({})),
        at("x/lives", "n"),
        with(at("x/done", "n"), "/status/phase", "Succeeded".into()),
        with(at("x/going", "n"), "/metadata/deletionTimestamp", "2026-01-01T00:00:00Z".into()),
        with(at("x/proxy", "n"), "/spec/hostNetwork", true.into()),
        at("x/lives", "n"),
        at(&format!("x/{}", "l".repeat(240)), "n"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}),
        json!({"apiVersion": "causeway.dev/v1alpha1", "kind": "PolicyTest"}),
    ];
    let all = of(&objects, None, MOST_PODS);
    assert_eq!(places(&all), ["lives node-1", "proxy node-1"]);
    let said = all.left_out.join("\n");
    for words in [
        "1 pods have ended: x/done",
        "1 pods are being deleted: x/going",
        "they are their node: x/proxy",
        "the last of each counts: x/lives",
        "too long names and are left out: x/lll",
        "not copied: 1 Service",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("PolicyTest"), "{said}");
}

#[test]
fn of_pods_that_are_alike_some_are_taken() {
    let replica = |i: usize| {
        let pod = at(&format!("x/web-{i}"), "n");
        with(pod, "/metadata/labels", json!({"app": "web", "pod-template-hash": format!("h{i}")}))
    };
    let mut objects: Vec<Value> = (0..5).map(replica).collect();
    objects.push(at("x/zz", "n"));
    let all = of(&objects, None, 3);
    assert_eq!(places(&all), ["web-0 node-1", "web-1 node-1", "zz node-1"]);
    let said = all.left_out.join("\n");
    assert!(said.contains("3 pods are more than the lab takes (3, --pods"), "{said}");
    assert!(said.contains("x/web-2, x/web-3, x/web-4"), "{said}");
}
