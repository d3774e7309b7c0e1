//! Random clusters, as objects are written.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub(super) const PORTS: [u16; 6] = [1, 79, 80, 81, 443, 65535];
const NAMES: [&str; 2] = ["web", "dns"];

fn labels() -> impl Strategy<Value = Value> {
    btree_map(select(&KEYS[..]), select(&VALUES[..]), 0..3).prop_map(|m| json!(m))
}

fn selector() -> impl Strategy<Value = Value> {
    let listed = (select(&KEYS[..]), select(&["In", "NotIn"][..]), subsequence(&VALUES[..], 1..3))
        .prop_map(
            |(key, operator, values)| json!({"key": key, "operator": operator, "values": values}),
        );
    let bare = (select(&KEYS[..]), select(&["Exists", "DoesNotExist"][..]))
        .prop_map(|(key, operator)| json!({"key": key, "operator": operator}));
    let one = prop_oneof![listed, bare];
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|l| json!({"matchLabels": l})),
        2 => vec(one, 1..3).prop_map(|e| json!({"matchExpressions": e})),
    ]
}

fn cidr() -> impl Strategy<Value = (Value, Value)> {
    prop_oneof![
        Just((json!("0.0.0.0/0"), json!(["10.0.0.0/29"]))),
        Just((json!("10.0.0.0/28"), json!(["10.0.0.2/31", "10.0.0.8/30"]))),
        Just((json!("10.0.0.4/30"), json!(null))),
        Just((json!("192.0.2.0/30"), json!(["192.0.2.1/32"]))),
        Just((json!("::/0"), json!(["fd00::4/126"]))),
        Just((json!("fd00::/125"), json!([]))),
        Just((json!("2001:db8::/32"), json!(null))),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        cidr().prop_map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}})),
    ]
}

fn protocol() -> impl Strategy<Value = &'static str> {
    select(&["TCP", "UDP", "SCTP"][..])
}

fn range() -> impl Strategy<Value = (u16, u16)> {
    (0..PORTS.len(), 0..PORTS.len())
        .prop_map(|(a, b)| (PORTS[a.min(b)], PORTS[a.max(b)]))
        .prop_filter("two ends", |(a, b)| a < b)
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(&PORTS[..]).prop_map(|n| json!({"port": n})),
        (protocol(), select(&PORTS[..])).prop_map(|(p, n)| json!({"protocol": p, "port": n})),
        (protocol(), range())
            .prop_map(|(p, (a, b))| json!({"protocol": p, "port": a, "endPort": b})),
        (protocol(), select(&NAMES[..])).prop_map(|(p, n)| json!({"protocol": p, "port": n})),
        protocol().prop_map(|p| json!({"protocol": p})),
    ]
}

fn rules(key: &'static str) -> impl Strategy<Value = Value> {
    let rule = (vec(peer(), 0..3), vec(port(), 0..3))
        .prop_map(move |(peers, ports)| json!({key: peers, "ports": ports}));
    vec(rule, 0..3).prop_map(|all| json!(all))
}

fn network_policy() -> impl Strategy<Value = Value> {
    let types =
        prop_oneof![Just(None), subsequence(&["Ingress", "Egress"][..], 1..=2).prop_map(Some),];
    (select(&NAMESPACES[..]), selector(), types, rules("from"), rules("to")).prop_map(
        |(namespace, pods, types, ingress, egress)| {
            let mut spec = json!({"podSelector": pods, "ingress": ingress, "egress": egress});
            if let Some(types) = types {
                spec["policyTypes"] = json!(types);
            }
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace}, "spec": spec,
            })
        },
    )
}

fn cluster_pods() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|s| json!({"namespaces": s})),
        (selector(), selector())
            .prop_map(|(n, p)| json!({"pods": {"namespaceSelector": n, "podSelector": p}})),
    ]
}

fn cluster_protocol() -> impl Strategy<Value = Value> {
    let protocol = || select(&["tcp", "udp", "sctp"][..]);
    prop_oneof![
        (protocol(), select(&PORTS[..]))
            .prop_map(|(p, n)| json!({p: {"destinationPort": {"number": n}}})),
        (protocol(), range()).prop_map(
            |(p, (a, b))| json!({p: {"destinationPort": {"range": {"start": a, "end": b}}}})
        ),
        protocol().prop_map(|p| json!({p: {}})),
        select(&NAMES[..]).prop_map(|n| json!({"destinationNamedPort": n})),
    ]
}

fn cluster_rules(egress: bool) -> impl Strategy<Value = Value> {
    let peer = match egress {
        false => cluster_pods().boxed(),
        true => prop_oneof![
            3 => cluster_pods(),
            1 => cidr().prop_map(|(cidr, _)| json!({"networks": [cidr, "192.0.2.3/32"]})),
            1 => selector().prop_map(|s| json!({"nodes": s})),
        ]
        .boxed(),
    };
    let key = if egress { "to" } else { "from" };
    let action = select(&["Accept", "Deny", "Pass"][..]);
    let rule = (action, vec(peer, 1..3), vec(cluster_protocol(), 0..3)).prop_map(
        move |(action, peers, protocols)| {
            let mut rule = json!({"action": action, key: peers});
            if !protocols.is_empty() {
                rule["protocols"] = json!(protocols);
            }
            rule
        },
    );
    vec(rule, 0..4).prop_map(|all| json!(all))
}

fn cluster_policy() -> impl Strategy<Value = Value> {
    let tier = select(&["Admin", "Baseline"][..]);
    (tier, 0..3u16, cluster_pods(), cluster_rules(false), cluster_rules(true)).prop_map(
        |(tier, priority, subject, ingress, egress)| {
            json!({
                "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                "metadata": {},
                "spec": {
                    "tier": tier, "priority": priority, "subject": subject,
                    "ingress": ingress, "egress": egress,
                },
            })
        },
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let ports = vec((select(&NAMES[..]), select(&PORTS[..]), protocol()), 0..3).prop_map(|all| {
        let port =
            |(n, p, by): (&str, u16, &str)| json!({"name": n, "containerPort": p, "protocol": by});
        json!([{"ports": all.into_iter().map(port).collect::<Vec<_>>()}])
    });
    let phase = prop_oneof![5 => Just("Running"), 1 => Just("Failed")];
    let host = prop_oneof![5 => Just(false), 1 => Just(true)];
    (select(&NAMESPACES[..]), labels(), select(&["n1", "n2"][..]), ports, phase, host).prop_map(
        |(namespace, labels, node, containers, phase, host)| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "labels": labels},
                "spec": {"nodeName": node, "hostNetwork": host, "containers": containers},
                "status": {"phase": phase},
            })
        },
    )
}

/// Gives names and addresses.
pub(super) fn cluster() -> impl Strategy<Value = Vec<Value>> {
    (
        vec(labels(), NAMESPACES.len()),
        vec(labels(), 2),
        vec(pod(), 1..8),
        vec(network_policy(), 0..5),
        vec(cluster_policy(), 0..4),
    )
        .prop_map(|(namespaces, nodes, pods, network, cluster)| {
            let mut all = Vec::new();
            for (name, labels) in NAMESPACES.iter().zip(namespaces) {
                let metadata = json!({"name": name, "labels": labels});
                all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
            }
            for (i, labels) in nodes.into_iter().enumerate() {
                let address = format!("192.0.2.{}", i + 1);
                all.push(json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": format!("n{}", i + 1), "labels": labels},
                    "status": {"addresses": [{"address": address}, {"address": format!("n{i}")}]},
                }));
            }
            for (i, mut object) in pods.into_iter().chain(network).chain(cluster).enumerate() {
                object["metadata"]["name"] = json!(format!("o{i}"));
                if object["kind"] == "Pod" {
                    let ips = match object["spec"]["hostNetwork"] == true {
                        true => json!([{"ip": "192.0.2.1"}]),
                        false => json!([{"ip": format!("10.0.0.{}", i + 1)}, {"ip": format!("fd00::{:x}", i + 1)}]),
                    };
                    object["status"]["podIPs"] = ips;
                }
                all.push(object);
            }
            all
        })
}
