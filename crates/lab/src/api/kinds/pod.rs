//! Pods: the defaults that an API server writes, what may change, and the grace period.

use serde_json::{Map, Value, json};

use crate::api::error::Cause;
use crate::api::meta::{default, items, section_mut, text};
use crate::api::store::Part;

pub(super) fn on_create(pod: &mut Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if items(pod, "/spec/containers").is_empty() {
        causes.push(Cause::required("spec.containers", "a pod has at least one container"));
    }
    for (i, container) in items(pod, "/spec/containers").iter().enumerate() {
        if text(container, "/name").is_empty() {
            causes
                .push(Cause::required(&format!("spec.containers[{i}].name"), "name the container"));
        }
    }
    defaults(pod);
    let qos = qos(pod);
    pod["status"] = json!({ "phase": "Pending", "qosClass": qos });
    causes
}

fn defaults(pod: &mut Value) {
    let Some(spec) = section_mut(pod, "spec") else { return };
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "enableServiceLinks", true);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    default(spec, "priority", 0);
    let account = spec
        .get("serviceAccountName")
        .or(spec.get("serviceAccount"))
        .cloned()
        .unwrap_or(json!("default"));
    default(spec, "serviceAccountName", account.clone());
    default(spec, "serviceAccount", account);
    default_tolerations(spec);
    let host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        let all = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        all.filter_map(Value::as_object_mut)
            .for_each(|container| container_defaults(container, host));
    }
}

/// Pods stay for five minutes on a node that is not ready or cannot be reached.
fn default_tolerations(spec: &mut Map<String, Value>) {
    default(spec, "tolerations", json!([]));
    let Some(tolerations) = spec.get_mut("tolerations").and_then(Value::as_array_mut) else {
        return;
    };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let (own, effect) = (text(t, "/key"), text(t, "/effect"));
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !tolerations.iter().any(covers) {
            tolerations.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }));
        }
    }
}

fn container_defaults(container: &mut Map<String, Value>, host_network: bool) {
    default(container, "resources", json!({}));
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let last = image.rsplit('/').next().unwrap_or("");
    let pinned = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    default(container, "imagePullPolicy", if pinned { "IfNotPresent" } else { "Always" });
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        default(port, "protocol", "TCP");
        if let (true, Some(number)) = (host_network, port.get("containerPort").cloned()) {
            default(port, "hostPort", number);
        }
    }
}

/// The quality of service class: what the resources of all containers amount to.
fn qos(pod: &Value) -> &'static str {
    let all = || items(pod, "/spec/containers").iter().map(|c| &c["resources"]);
    let none = |r: &Value| {
        ["requests", "limits"].iter().all(|k| r[*k].as_object().is_none_or(Map::is_empty))
    };
    let full = |r: &Value| {
        ["cpu", "memory"].iter().all(|k| {
            let (limit, request) = (&r["limits"][*k], &r["requests"][*k]);
            !limit.is_null() && (request.is_null() || request == limit)
        })
    };
    match (all().all(none), all().all(full)) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        _ => "Burstable",
    }
}

pub(super) fn on_update(old: &Value, new: &mut Value, part: Part) -> Vec<Cause> {
    defaults(new);
    if part == Part::Whole || frozen(old) == frozen(new) {
        return Vec::new();
    }
    let rule = "pod updates may not change fields other than `spec.containers[*].image`, \
                `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to \
                existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                previously negative)";
    vec![Cause::forbidden("spec", rule)]
}

/// The part of the specification that stays for the life of a pod.
fn frozen(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let Some(map) = spec.as_object_mut() else { return spec };
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        map.remove(field);
    }
    for list in ["containers", "initContainers"] {
        let all = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        all.filter_map(Value::as_object_mut).for_each(|c| drop(c.remove("image")));
    }
    spec
}

/// Seconds between the request to delete and the removal: none for a pod that no node runs.
pub(super) fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let finished = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
    if text(pod, "/spec/nodeName").is_empty() || finished {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match asked.unwrap_or(own) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pod_gets_the_usual_defaults() {
        let mut pod = json!({ "spec": { "containers": [{ "name": "a", "image": "r:5000/web", "ports": [{ "containerPort": 80 }] }] },
                              "status": { "phase": "Running" } });
        assert!(on_create(&mut pod).is_empty());
        assert_eq!(pod["status"], json!({ "phase": "Pending", "qosClass": "BestEffort" }));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(
            pod["spec"]["containers"][0]["ports"][0],
            json!({ "containerPort": 80, "protocol": "TCP" })
        );
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        let once = pod.clone();
        defaults(&mut pod);
        assert_eq!(pod, once);
    }

    #[test]
    fn only_some_fields_of_a_pod_change() {
        let mut pod = json!({ "spec": { "containers": [{ "name": "a", "image": "a" }] } });
        on_create(&mut pod);
        let with = |pointer: &str, value: &str| {
            let mut new = pod.clone();
            *new.pointer_mut(pointer).unwrap() = json!(value);
            on_update(&pod, &mut new, Part::Main).len()
        };
        assert_eq!(with("/spec/containers/0/image", "b"), 0);
        assert_eq!(with("/spec/containers/0/name", "b"), 1);
        assert_eq!(with("/spec/restartPolicy", "Never"), 1);
    }

    #[test]
    fn grace_is_for_pods_on_nodes() {
        let pod = |node: &str, phase: &str| json!({ "spec": { "nodeName": node }, "status": { "phase": phase } });
        assert_eq!(grace(&pod("", "Pending"), Some(5)), 0);
        assert_eq!(grace(&pod("a", "Running"), None), 30);
        assert_eq!(grace(&pod("a", "Running"), Some(0)), 0);
        assert_eq!(grace(&pod("a", "Succeeded"), None), 0);
    }
}
