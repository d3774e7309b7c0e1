//! The expressions of the ValidatingAdmissionPolicy, by an implementation of CEL that is not the API
//! server's: requests as the agent makes them, and as somebody with its token would like to.

use cel::{Context, Program, Value as Cel};
use serde_json::{Value, json};
use xtask::chart;

const NODE: &str = "authentication.kubernetes.io/node-name";

fn policy() -> Value {
    let manifest = chart::render(&json!({"admissionPolicy": {"enabled": true}})).unwrap();
    let text = manifest.split("---\n").find(|d| d.contains("kind: ValidatingAdmissionPolicy\n"));
    serde_saphyr::from_str(text.expect("the policy")).unwrap()
}

fn evaluate(expression: &str, context: &Context<'_, '_>) -> Result<Cel, String> {
    let program = Program::compile(expression).map_err(|e| format!("{expression}: {e}"))?;
    program.execute(context).map_err(|e| format!("{expression}: {e}"))
}

/// What of the API server's libraries (strings; IP and CIDR, `k8s.io/apiserver/pkg/cel/library`) the
/// expressions use. A prefix stays a text here.
fn library(context: &mut Context<'_, '_>) {
    use cel::extractors::This;
    use std::sync::Arc;
    type Text = Arc<String>;
    let net = |text: &str| text.parse::<ipnet::IpNet>();
    let split = |This(text): This<Text>, by: Text| {
        let parts = text.split(by.as_str()).map(|part| Cel::from(part.to_owned()));
        Cel::from(parts.collect::<Vec<Cel>>())
    };
    let contains = move |This(prefix): This<Text>, ip: Text| {
        let ip = ip.parse::<std::net::IpAddr>().expect("an address");
        net(&prefix).expect("a prefix").contains(&ip)
    };
    context.add_function("split", split).unwrap();
    context.add_function("trim", |This(text): This<Text>| text.trim().to_owned()).unwrap();
    context.add_function("isCIDR", move |text: Text| net(&text).is_ok()).unwrap();
    context.add_function("cidr", |text: Text| text).unwrap();
    context.add_function("containsIP", contains).unwrap();
}

/// What the API server does with an update: nothing where no condition matches, else every variable
/// and every validation. An error refuses, as `failurePolicy: Fail` says.
fn admits(policy: &Value, user: &Value, old: &Value, new: &Value) -> Result<(), String> {
    let mut context = Context::default();
    context.add_variable("request", json!({"userInfo": user})).unwrap();
    context.add_variable("oldObject", old.clone()).unwrap();
    context.add_variable("object", new.clone()).unwrap();
    library(&mut context);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |key: &str| policy["spec"][key].as_array().cloned().unwrap_or_default();
    for condition in list("matchConditions") {
        if evaluate(&text(&condition["expression"]), &context)? != Cel::Bool(true) {
            return Ok(());
        }
    }
    let mut variables = std::collections::HashMap::new();
    for variable in list("variables") {
        let value = evaluate(&text(&variable["expression"]), &context)?;
        variables.insert(text(&variable["name"]), value);
        context.add_variable_from_value("variables", Cel::from(variables.clone()));
    }
    for validation in list("validations") {
        if evaluate(&text(&validation["expression"]), &context)? == Cel::Bool(true) {
            continue;
        }
        if validation["message"].is_string() {
            return Err(text(&validation["message"]));
        }
        return match evaluate(&text(&validation["messageExpression"]), &context)? {
            Cel::String(message) => Err(message.to_string()),
            other => panic!("no message: {other:?}"),
        };
    }
    Ok(())
}

fn agent_of(node: &str) -> Value {
    json!({"username": "system:serviceaccount:kube-system:causeway", "extra": {NODE: [node]}})
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": "n1", "uid": "u", "resourceVersion": "7", "generation": 1,
            "labels": {"kubernetes.io/hostname": "n1"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0", "flannel.alpha.coreos.com/backend-type": "vxlan"},
            "managedFields": [{"manager": "kubelet"}]
        },
        "spec": {
            "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"],
            "taints": [
                {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
                {"key": "causeway.dev/not-ready", "effect": "NoSchedule"}
            ]
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "False"}],
            "capacity": {"pods": "110"}
        }
    })
}

/// One change of a Node.
fn changed(pointer: &str, value: Value) -> Value {
    let mut node = node();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = node.pointer_mut(parent).unwrap();
    let key = key.replace("~1", "/");
    match value {
        Value::Null => drop(parent.as_object_mut().unwrap().remove(&key)),
        value => parent[key.as_str()] = value,
    }
    node
}

#[test]
fn the_agent_may_do_its_work() {
    let policy = policy();
    let own = [
        node(),
        changed("/metadata/annotations/causeway.dev~1ip", json!("192.0.2.1")),
        changed("/metadata/annotations/flannel.alpha.coreos.com~1backend-type", Value::Null),
        changed("/metadata/annotations/flannel.alpha.coreos.com~1backend-data", json!("{}")),
        changed("/metadata/annotations/flannel.alpha.coreos.com~1backend-v6-data", json!("{}")),
        changed("/metadata/annotations/flannel.alpha.coreos.com~1public-ip", json!("192.0.2.1")),
        changed("/metadata/annotations/flannel.alpha.coreos.com~1public-ipv6", json!("fd00::1")),
        changed(
            "/metadata/annotations/flannel.alpha.coreos.com~1kube-subnet-manager",
            json!("true"),
        ),
        changed("/metadata/resourceVersion", json!("8")),
        changed("/metadata/managedFields", json!([{"manager": "causeway"}])),
        changed(
            "/spec/taints",
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]),
        ),
        changed(
            "/status/conditions",
            json!([
                {"type": "NetworkUnavailable", "status": "False", "reason": "CausewayIsReady"},
                {"type": "Ready", "status": "False"}
            ]),
        ),
    ];
    for new in own {
        assert_eq!(admits(&policy, &agent_of("n1"), &node(), &new), Ok(()), "{new}");
        // And back.
        assert_eq!(admits(&policy, &agent_of("n1"), &new, &node()), Ok(()), "{new}");
    }
    // On a Node that has none of these yet.
    let bare = json!({"metadata": {"name": "n1"}, "spec": {}, "status": {}});
    let mut first = bare.clone();
    first["metadata"]["annotations"] = json!({"causeway.dev/ip": "192.0.2.1"});
    first["spec"]["taints"] = json!([{"key": "causeway.dev/not-ready", "effect": "NoSchedule"}]);
    first["status"]["conditions"] = json!([{"type": "NetworkUnavailable", "status": "True"}]);
    assert_eq!(admits(&policy, &agent_of("n1"), &bare, &first), Ok(()));
    assert_eq!(admits(&policy, &agent_of("n1"), &first, &bare), Ok(()));
}

#[test]
fn and_nothing_else() {
    let policy = policy();
    let bad = [
        ("annotations", changed("/metadata/annotations/other", json!("x"))),
        (
            "annotations",
            changed(
                "/metadata/annotations/flannel.alpha.coreos.com~1public-ip-overwrite",
                json!("x"),
            ),
        ),
        ("annotations", changed("/metadata/annotations/node.alpha.kubernetes.io~1ttl", json!("1"))),
        (
            "annotations",
            changed("/metadata/annotations/node.alpha.kubernetes.io~1ttl", Value::Null),
        ),
        ("annotations", changed("/metadata/annotations", Value::Null)),
        ("annotations", changed("/metadata/annotations/causeway.development", json!("x"))),
        ("metadata", changed("/metadata/labels/node-role.kubernetes.io~1control-plane", json!(""))),
        ("metadata", changed("/metadata/labels", Value::Null)),
        ("metadata", changed("/metadata/finalizers", json!(["f"]))),
        ("metadata", changed("/metadata/ownerReferences", json!([{"uid": "x"}]))),
        ("spec", changed("/spec/unschedulable", json!(true))),
        ("spec", changed("/spec/podCIDRs", json!(["10.244.0.0/16"]))),
        ("spec", changed("/spec/podCIDR", Value::Null)),
        ("spec", changed("/spec/fieldToCome", json!(1))),
        ("spec", changed("/spec/taints", Value::Null)),
        (
            "spec",
            changed(
                "/spec/taints",
                json!([{"key": "causeway.dev/not-ready", "effect": "NoSchedule"}]),
            ),
        ),
        (
            "spec",
            changed(
                "/spec/taints",
                json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]),
            ),
        ),
        (
            "status",
            changed("/status/addresses", json!([{"type": "InternalIP", "address": "192.0.2.66"}])),
        ),
        ("status", changed("/status/conditions", json!([{"type": "Ready", "status": "True"}]))),
        ("status", changed("/status/conditions", json!([]))),
        ("status", changed("/status/capacity", json!({"pods": "1000"}))),
        ("status", changed("/status/fieldToCome", json!(1))),
    ];
    for (of, new) in bad {
        let word = match of {
            "annotations" => "causeway: the agent may change annotations".to_owned(),
            of => format!("causeway: of {of} "),
        };
        let refused = admits(&policy, &agent_of("n1"), &node(), &new).expect_err(of);
        assert!(refused.starts_with(&word), "{refused}: {new}");
    }
}

/// A Node with ranges, as an administrator gave them, and claims.
fn ranged(ranges: Option<&str>, claims: Option<&str>) -> Value {
    let mut node = node();
    for (key, text) in [("extra", ranges), ("claimed", claims)] {
        if let Some(text) = text {
            node["metadata"]["annotations"][format!("causeway.dev/{key}-pod-cidrs")] = json!(text);
        }
    }
    node
}

#[test]
fn claims_are_of_what_the_node_was_given() {
    let policy = policy();
    let admits = |old: Value, new: Value| admits(&policy, &agent_of("n1"), &old, &new);
    let ranges = Some("10.250.1.0/24, fd00:250::/112,nonsense");
    for (given, before, after) in [
        (ranges, None, Some("10.250.1.0/24,fd00:250::/112")),
        (ranges, Some("10.250.1.0/24"), None),
        (None, Some("10.250.1.0/24"), Some("10.250.1.7/32,10.250.1.9/32")),
        (None, Some("fd00:250::/112"), Some("fd00:250::7/128")),
        (None, Some("10.250.1.7/32"), Some("10.250.1.7/32")),
    ] {
        let new = ranged(given, after);
        assert_eq!(admits(ranged(given, before), new), Ok(()), "{before:?} -> {after:?}");
    }
    for (given, before, after) in [
        (ranges, None, "10.250.0.0/16"),
        (ranges, None, "10.244.2.5/32"),
        (ranges, None, "fd00::/32"),
        (ranges, Some("10.250.1.0/24"), "10.250.1.0/24,0.0.0.0/1"),
        (None, Some("10.250.1.7/32"), "10.250.1.8/32"),
        (None, None, "10.250.1.0/24"),
    ] {
        let refused = admits(ranged(given, before), ranged(given, Some(after))).unwrap_err();
        assert!(refused.contains("may claim nothing but"), "{after}: {refused}");
    }
    for (old, new) in [(None, ranges), (ranges, None), (ranges, Some("10.250.1.0/24"))] {
        let refused = admits(ranged(old, None), ranged(new, None)).unwrap_err();
        assert!(refused.contains("may not change its own ranges"), "{refused}");
    }
}

#[test]
fn only_the_own_node() {
    let policy = policy();
    let new = changed("/metadata/annotations/causeway.dev~1ip", json!("192.0.2.1"));
    let refused = |user: Value| admits(&policy, &user, &node(), &new).unwrap_err();
    assert!(refused(agent_of("n2")).contains("node \"n2\""));
    let name = "system:serviceaccount:kube-system:causeway";
    // A token that says no node: of a version before 1.30, or made by hand.
    refused(json!({"username": name}));
    refused(json!({"username": name, "extra": {}}));
    refused(json!({"username": name, "extra": {NODE: []}}));
    refused(json!({"username": name, "extra": {NODE: ["n1", "n2"]}}));
    // Nobody else is meant.
    let kubelet = json!({"username": "system:node:n1", "groups": ["system:nodes"]});
    let all = changed("/spec/unschedulable", json!(true));
    assert_eq!(admits(&policy, &kubelet, &node(), &all), Ok(()));
    let namesake = json!({"username": "system:serviceaccount:default:causeway"});
    assert_eq!(admits(&policy, &namesake, &node(), &all), Ok(()));
}
