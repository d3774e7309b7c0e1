//! From Kubernetes objects to the inputs of desired state. Nothing here fails: what cannot be
//! read becomes a sentence in `problems`, and the rest of the object counts.

use std::net::IpAddr;

use causeway_desired::input::{NodeInfo, PodInfo};
use causeway_desired::{flannel, ranges};
use causeway_types::{Cidr, Mtu, NodeName, PodRef, names};
use serde_json::Value;

use crate::objects::{NodeObject, PodObject};
use crate::own::{self, Condition, OwnNode};

/// Annotation of the object that a kubelet makes for a pod that it read from a file
/// (`kubelet/pkg/types`, `ConfigMirrorAnnotationKey`).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The key and content of a Node. `None` for a name that no Node can have.
pub(crate) fn node(object: &NodeObject) -> Option<(NodeName, NodeInfo)> {
    let name = NodeName::new(object.metadata.name.clone()?).ok()?;
    let mut info = NodeInfo::default();
    info.addresses = addresses(&object.status.addresses, &mut info.problems);
    info.pod_cidrs = pod_cidrs(object, &mut info.problems);
    let annotation = |name: &str| object.metadata.annotations.as_ref()?.get(name);
    if let Some(text) = annotation(names::EXTRA_POD_CIDRS) {
        (info.extra_cidrs, info.range_problems) = ranges::parse(names::EXTRA_POD_CIDRS, text);
    }
    if let Some(text) = annotation(names::CLAIMED_POD_CIDRS) {
        // The node's agent puts right what it did not write.
        info.claimed_cidrs = ranges::parse(names::CLAIMED_POD_CIDRS, text).0;
    }
    info.pod_mtu = annotation(names::POD_MTU).and_then(|text| Mtu::new(text.parse().ok()?).ok());
    info.flannel = flannel::ends(|key| annotation(key).map(String::as_str));
    Some((name, info))
}

/// What this node's own object says of its network.
pub(crate) fn own(object: &NodeObject) -> OwnNode {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, key: &str| {
        entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let condition = list(&object.status.conditions)
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(own::CONDITION))
        .map(|c| Condition {
            status: text(c, "status"),
            reason: text(c, "reason"),
            message: text(c, "message"),
        });
    let annotation = |name: &str| object.metadata.annotations.as_ref()?.get(name).cloned();
    let ours = |t: &Value| t.get("key").and_then(Value::as_str) == Some(own::TAINT);
    OwnNode {
        resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
        condition,
        taint: list(&object.spec.taints).iter().position(ours),
        claims: annotation(names::CLAIMED_POD_CIDRS),
        pod_mtu: annotation(names::POD_MTU),
        flannel: object
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| flannel::KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    }
}

/// Addresses of type InternalIP in their order.
fn addresses(list: &Value, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for entry in entries(list, "status.addresses", problems) {
        if entry.get("type").and_then(Value::as_str) != Some("InternalIP") {
            continue;
        }
        let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
        match text.parse() {
            Ok(address) if !found.contains(&address) => found.push(address),
            Ok(_) => {}
            Err(_) => problems.push(format!(
                "status.addresses: InternalIP {text:?} is not an IP address; it is left out"
            )),
        }
    }
    found
}

/// `spec.podCIDRs`, or `spec.podCIDR` where an old controller wrote only that.
fn pod_cidrs(object: &NodeObject, problems: &mut Vec<String>) -> Vec<Cidr> {
    let mut texts = entries(&object.spec.pod_cidrs, "spec.podCIDRs", problems);
    if texts.is_empty() && object.spec.pod_cidr.as_str().is_some_and(|t| !t.is_empty()) {
        texts.push(&object.spec.pod_cidr);
    }
    let mut found: Vec<Cidr> = Vec::new();
    for text in texts {
        let Some(text) = text.as_str() else {
            problems.push(format!("spec.podCIDRs: {text} is not a string; it is left out"));
            continue;
        };
        match text.parse::<Cidr>() {
            Ok(cidr) => match found.iter().find(|c| c.family() == cidr.family()) {
                None => found.push(cidr),
                Some(first) => problems.push(format!(
                    "spec.podCIDRs: {cidr} is a second {} subnet; only the first, {first}, counts",
                    cidr.family()
                )),
            },
            Err(error) => problems.push(format!("spec.podCIDRs: {error}; it is left out")),
        }
    }
    found
}

/// The entries of a list that may be absent.
fn entries<'a>(list: &'a Value, field: &str, problems: &mut Vec<String>) -> Vec<&'a Value> {
    match list {
        Value::Null => Vec::new(),
        Value::Array(entries) => entries.iter().collect(),
        _ => {
            problems.push(format!("{field}: is not a list; it is left out"));
            Vec::new()
        }
    }
}

/// The key and content of a Pod. `None` without a name.
pub(crate) fn pod(object: &PodObject) -> Option<(String, PodInfo)> {
    let pod = PodRef {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone()?,
        uid: object.metadata.uid.clone(),
    };
    let annotation = |name: &str| object.metadata.annotations.as_ref()?.get(name);
    let phase = object.status.phase.as_deref().unwrap_or_default();
    let info = PodInfo {
        host_network: object.spec.host_network.unwrap_or(false),
        finished: matches!(phase, "Succeeded" | "Failed"),
        ips: pod_ips(object),
        fixed_ip: annotation(names::POD_IP).cloned(),
        mirror: annotation(MIRROR).is_some(),
        pod,
    };
    Some((info.pod.to_string(), info))
}

fn pod_ips(object: &PodObject) -> Vec<IpAddr> {
    let listed = object.status.pod_ips.as_array().into_iter().flatten();
    let texts = listed.filter_map(|e| e.get("ip")?.as_str());
    let mut ips: Vec<IpAddr> = texts.filter_map(|t| t.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(object.status.pod_ip.as_deref().and_then(|t| t.parse::<IpAddr>().ok()));
    }
    ips
}

#[cfg(test)]
mod tests {
    use causeway_types::Family;
    use serde_json::json;

    use super::*;

    fn node_of(value: Value) -> (NodeName, NodeInfo) {
        node(&serde_json::from_value(value).expect("decodes")).expect("has a name")
    }

    #[test]
    fn a_dual_stack_node() {
        let (name, info) = node_of(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-1", "labels": {"a": "b"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "192.168.1.11"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "fd00::11"}
            ], "images": [{"names": ["x"]}]}
        }));
        assert_eq!(name.as_str(), "node-1");
        assert_eq!(info.problems, Vec::<String>::new());
        assert_eq!(info.address(Family::V4), Some("192.168.1.11".parse().unwrap()));
        assert_eq!(info.address(Family::V6), Some("fd00::11".parse().unwrap()));
        assert_eq!(info.pod_cidr(Family::V6), Some("fd00:10:244:1::/64".parse().unwrap()));
    }

    #[test]
    fn ranges_of_a_node_are_read_strictly() {
        let (_, info) = node_of(json!({"metadata": {"name": "n", "annotations": {
            "causeway.dev/extra-pod-cidrs": "10.250.0.0/24, fd00:250::/112,10.250.1.5/24,,x,10.250.0.0/24,127.0.0.0/8",
            "causeway.dev/claimed-pod-cidrs": "10.250.0.0/24,junk",
            "causeway.dev/pod-mtu": "1450",
        }}}));
        let c = |t: &str| t.parse::<Cidr>().unwrap();
        assert_eq!(info.extra_cidrs, [c("10.250.0.0/24"), c("fd00:250::/112")]);
        assert_eq!(info.claimed_cidrs, [c("10.250.0.0/24")]);
        assert_eq!(info.pod_mtu, Mtu::new(1450).ok());
        assert_eq!(info.problems, Vec::<String>::new());
        let words = [
            "did you mean 10.250.1.0/24",
            "an entry is empty",
            "\"x\"",
            "twice",
            "no pod can have",
        ];
        assert_eq!(info.range_problems.len(), words.len());
        for (problem, word) in info.range_problems.iter().zip(words) {
            assert!(problem.contains(word) && problem.contains("extra-pod-cidrs"), "{problem}");
        }
    }

    #[test]
    fn the_old_field_counts_when_it_is_alone() {
        let (_, info) =
            node_of(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.244.1.0/24"}}));
        assert_eq!(info.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        let (_, info) = node_of(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": ""}}));
        assert!(info.pod_cidrs.is_empty() && info.problems.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_counts() {
        let (_, info) = node_of(json!({
            "metadata": {"name": "n"},
            "spec": {"podCIDRs": ["10.244.1.5/24", "10.244.2.0/24", "10.244.3.0/24", 7]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "somewhere"},
                {"type": "InternalIP", "address": "192.168.1.11"}
            ]}
        }));
        assert_eq!(info.addresses, ["192.168.1.11".parse::<IpAddr>().unwrap()]);
        assert_eq!(info.pod_cidrs, ["10.244.2.0/24".parse().unwrap()]);
        let all = info.problems.join("\n");
        for part in ["somewhere", "did you mean 10.244.1.0/24", "second IPv4", "7 is not a string"]
        {
            assert!(all.contains(part), "{part} in {all}");
        }
        let (_, info) = node_of(json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": "x"}}));
        assert!(info.problems[0].contains("not a list"), "{:?}", info.problems);
    }

    #[test]
    fn a_pod() {
        let object = json!({
            "metadata": {"name": "a", "namespace": "default", "uid": "u1"},
            "spec": {"hostNetwork": true, "containers": []},
            "status": {"phase": "Failed", "podIP": "10.244.1.2",
                       "podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00::2"}]}
        });
        let (key, info) = pod(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(key, "default/a");
        assert!(info.host_network && info.finished);
        assert_eq!(info.ips.len(), 2);
        let object = json!({"metadata": {"name": "a", "namespace": "default"},
                            "status": {"podIP": "10.244.1.2"}});
        let (_, info) = pod(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(info.ips, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
        assert!(!info.finished && !info.host_network);
    }
}
