//! What stands in the cells.

use serde_json::{Value, json};

use crate::api::meta::{self, items, text};

pub(crate) fn at(object: &Value, pointer: &str) -> Value {
    json!(text(object, pointer))
}

fn or(object: &Value, pointer: &str, otherwise: &str) -> Value {
    match text(object, pointer) {
        "" => json!(otherwise),
        found => json!(found),
    }
}

pub(crate) fn or_none(object: &Value, pointer: &str) -> Value {
    or(object, pointer, "<none>")
}

pub(crate) fn known(object: &Value, pointer: &str) -> Value {
    or(object, pointer, "<unknown>")
}

pub(crate) fn name(object: &Value) -> Value {
    json!(meta::name(object))
}

pub(crate) fn age(object: &Value) -> Value {
    json!(meta::age(text(object, "/metadata/creationTimestamp")))
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn joined_or_none(parts: Vec<String>) -> Value {
    if parts.is_empty() { json!("<none>") } else { json!(parts.join(",")) }
}

/// The first three of a list, with a count of the rest.
fn shortened(parts: Vec<String>) -> Value {
    match parts.len() {
        0 => json!("<none>"),
        1..=3 => json!(parts.join(",")),
        all => json!(format!("{} + {} more...", parts[..3].join(","), all - 3)),
    }
}

/// `a=b,c=d` of a map of labels.
pub(crate) fn labels(object: &Value, pointer: &str) -> Value {
    let map = object.pointer(pointer).and_then(Value::as_object);
    let parts = map
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
        .collect();
    joined_or_none(parts)
}

pub(crate) fn data_count(object: &Value) -> Value {
    let count = |key: &str| object[key].as_object().map_or(0, serde_json::Map::len);
    json!(count("data") + count("binaryData"))
}

pub(crate) fn secret_type(object: &Value) -> Value {
    or(object, "/type", "Opaque")
}

pub(crate) fn secret_count(object: &Value) -> Value {
    json!(items(object, "/secrets").len())
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, "/status/conditions").iter().find(|c| c["type"] == kind)
}

pub(crate) fn node_status(node: &Value) -> Value {
    let ready = match condition(node, "Ready").map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    json!(if cordoned { format!("{ready},SchedulingDisabled") } else { ready.to_string() })
}

pub(crate) fn node_roles(node: &Value) -> Value {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role.to_string()),
            _ => (key == "kubernetes.io/role").then(|| value.as_str().unwrap_or("").to_string()),
        })
        .collect();
    roles.sort();
    roles.dedup();
    joined_or_none(roles)
}

pub(crate) fn node_address(node: &Value, kind: &str) -> Value {
    let mut all = items(node, "/status/addresses").iter().filter(|a| a["type"] == kind);
    json!(all.next().map_or("<none>", |a| text(a, "/address")))
}

pub(crate) fn pod_ready(pod: &Value) -> Value {
    let ready =
        items(pod, "/status/containerStatuses").iter().filter(|s| s["ready"] == true).count();
    json!(format!("{ready}/{}", items(pod, "/spec/containers").len()))
}

pub(crate) fn pod_status(pod: &Value) -> Value {
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        return json!("Terminating");
    }
    let why = items(pod, "/status/containerStatuses").iter().find_map(|status| {
        ["/state/waiting/reason", "/state/terminated/reason"]
            .iter()
            .map(|p| text(status, p))
            .find(|r| !r.is_empty())
    });
    match (why, text(pod, "/status/reason")) {
        (Some(reason), _) => json!(reason),
        (None, "") => known(pod, "/status/phase"),
        (None, reason) => json!(reason),
    }
}

pub(crate) fn pod_restarts(pod: &Value) -> Value {
    let counts =
        items(pod, "/status/containerStatuses").iter().filter_map(|s| s["restartCount"].as_u64());
    json!(counts.sum::<u64>().to_string())
}

pub(crate) fn readiness_gates(pod: &Value) -> Value {
    let gates = items(pod, "/spec/readinessGates");
    let met = |gate: &&Value| {
        condition(pod, text(gate, "/conditionType")).is_some_and(|c| c["status"] == "True")
    };
    match gates.len() {
        0 => json!("<none>"),
        all => json!(format!("{}/{all}", gates.iter().filter(met).count())),
    }
}

pub(crate) fn service_external(service: &Value) -> Value {
    let mut all: Vec<String> = items(service, "/spec/externalIPs")
        .iter()
        .filter_map(|v| v.as_str().map(Into::into))
        .collect();
    all.extend(
        items(service, "/status/loadBalancer/ingress").iter().map(|i| text(i, "/ip").to_string()),
    );
    match text(service, "/spec/type") {
        "ExternalName" => at(service, "/spec/externalName"),
        "LoadBalancer" if all.is_empty() => json!("<pending>"),
        _ => joined_or_none(all),
    }
}

pub(crate) fn service_ports(service: &Value) -> Value {
    let port = |p: &Value| match p["nodePort"].as_u64() {
        Some(node) if node > 0 => format!("{}:{node}/{}", p["port"], text(p, "/protocol")),
        _ => format!("{}/{}", p["port"], text(p, "/protocol")),
    };
    joined_or_none(items(service, "/spec/ports").iter().map(port).collect())
}

pub(crate) fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        for address in items(subset, "/addresses") {
            let ip = bracketed(text(address, "/ip"));
            match items(subset, "/ports") {
                [] => all.push(ip),
                ports => all.extend(ports.iter().map(|p| format!("{ip}:{}", p["port"]))),
            }
        }
    }
    shortened(all)
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() }
}

pub(crate) fn slice_ports(slice: &Value) -> Value {
    let port = |p: &Value| {
        p["port"].as_u64().map_or_else(|| text(p, "/name").to_string(), |n| n.to_string())
    };
    match items(slice, "/ports") {
        [] => json!("<unset>"),
        ports => shortened(ports.iter().map(port).collect()),
    }
}

pub(crate) fn slice_endpoints(slice: &Value) -> Value {
    let all = items(slice, "/endpoints").iter().flat_map(|e| items(e, "/addresses"));
    match all.filter_map(|a| a.as_str().map(String::from)).collect::<Vec<_>>() {
        none if none.is_empty() => json!("<unset>"),
        all => shortened(all),
    }
}

pub(crate) fn pod_selector(policy: &Value) -> Value {
    let mut parts = Vec::new();
    if let Some(map) = policy.pointer("/spec/podSelector/matchLabels").and_then(Value::as_object) {
        parts.extend(map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))));
    }
    for e in items(policy, "/spec/podSelector/matchExpressions") {
        let (key, values) =
            (text(e, "/key"), joined(items(e, "/values").iter().filter_map(Value::as_str)));
        parts.push(match text(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_string(),
        });
    }
    joined_or_none(parts)
}

pub(crate) fn event_seen(event: &Value) -> Value {
    let times =
        ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let seen = times.iter().map(|p| text(event, p)).find(|t| !t.is_empty());
    json!(meta::age(seen.unwrap_or("")))
}

pub(crate) fn event_first(event: &Value) -> Value {
    let times = ["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let seen = times.iter().map(|p| text(event, p)).find(|t| !t.is_empty());
    json!(meta::age(seen.unwrap_or("")))
}

pub(crate) fn event_object(event: &Value) -> Value {
    let kind = text(event, "/involvedObject/kind").to_lowercase();
    json!(format!("{kind}/{}", text(event, "/involvedObject/name")))
}

pub(crate) fn event_source(event: &Value) -> Value {
    let parts = [text(event, "/source/component"), text(event, "/source/host")];
    json!(parts.iter().copied().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", "))
}

pub(crate) fn event_count(event: &Value) -> Value {
    json!(event["count"].as_u64().unwrap_or(1).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_state_role_and_address() {
        let node = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } },
            "spec": { "unschedulable": true },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }],
                        "addresses": [{ "type": "InternalIP", "address": "192.168.1.10" }] } });
        assert_eq!(node_status(&node), "Ready,SchedulingDisabled");
        assert_eq!(node_roles(&node), "control-plane");
        assert_eq!(node_address(&node, "InternalIP"), "192.168.1.10");
        assert_eq!(node_address(&node, "ExternalIP"), "<none>");
    }

    #[test]
    fn a_pod_shows_what_its_containers_do() {
        let mut pod = json!({ "metadata": {}, "spec": { "containers": [{}, {}] },
            "status": { "phase": "Running", "containerStatuses": [{ "ready": true, "restartCount": 2 }] } });
        assert_eq!(
            (pod_ready(&pod), pod_status(&pod), pod_restarts(&pod)),
            (json!("1/2"), json!("Running"), json!("2"))
        );
        pod["status"]["containerStatuses"][0]["state"] =
            json!({ "waiting": { "reason": "ContainerCreating" } });
        assert_eq!(pod_status(&pod), "ContainerCreating");
        pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        assert_eq!(pod_status(&pod), "Terminating");
    }

    #[test]
    fn services_slices_and_policies_show_their_essence() {
        let service = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080, "protocol": "TCP" }] } });
        assert_eq!(service_ports(&service), "80:30080/TCP");
        let slice = json!({ "ports": [{ "port": 80 }], "endpoints": [{ "addresses": ["10.0.0.1", "10.0.0.2", "10.0.0.3"] }, { "addresses": ["10.0.0.4"] }] });
        assert_eq!(slice_endpoints(&slice), "10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...");
        let policy = json!({ "spec": { "podSelector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["a", "b"] }] } } });
        assert_eq!(pod_selector(&policy), "app=web,tier in (a,b)");
        assert_eq!(pod_selector(&json!({ "spec": { "podSelector": {} } })), "<none>");
    }
}
