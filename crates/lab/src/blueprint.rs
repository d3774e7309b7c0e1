//! What a lab takes over from a cluster: which node of the lab plays which of the cluster, which pods run
//! there, and what cannot be as it is. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_types::Family;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::spec::Families;

/// Workers that a lab has at most where nothing else is said: each has an agent, which is a process.
pub const MOST_WORKERS: u8 = 16;
/// Pods that a lab has at most where nothing else is said: each is a namespace and a process.
pub const MOST_PODS: usize = 300;
/// Workers for pods that have no nodes yet: with two there are neighbours, and pods of other nodes.
const WORKERS: u8 = 2;
/// Addresses of a node's part of the lab's range.
const MOST_ON_NODE: usize = 250;
/// Longer names of pods and their namespaces have no room in the name of a network namespace.
const LONGEST: usize = 225;

/// The kind of policies that are not in the API of every cluster, and the one version that agents go by.
pub(crate) const CLUSTER_POLICIES: (&str, &str) =
    ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2");

/// A lab in the likeness of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blueprint {
    /// So many workers it needs.
    pub workers: u8,
    /// The families of the cluster's addresses; both where it has no addresses yet.
    pub families: Families,
    /// Which node of the lab plays which of the cluster, by the latter's name.
    pub nodes: BTreeMap<String, String>,
    /// What is not as in the cluster, a line each.
    pub left_out: Vec<String>,
    /// The labels of the lab's nodes.
    pub(crate) labels: BTreeMap<String, Value>,
    pub(crate) namespaces: Vec<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) policies: Vec<Value>,
}

/// Name of an object in its namespace.
type Key = (String, String);

/// The objects of a cluster, by kind and name.
#[derive(Default)]
struct Sorted<'a> {
    namespaces: BTreeMap<String, &'a Value>,
    nodes: BTreeMap<String, &'a Value>,
    pods: BTreeMap<Key, &'a Value>,
    policies: BTreeMap<(String, Key), &'a Value>,
    left_out: Vec<String>,
}

impl Blueprint {
    /// Of the objects of a cluster, in any order: as they are, or as manifests have them. `workers` and
    /// `most_pods` bound the lab.
    pub fn of<'a>(
        objects: impl IntoIterator<Item = &'a Value>,
        workers: Option<u8>,
        most_pods: usize,
    ) -> Self {
        let sorted = sort(objects);
        let mut all = Self { left_out: sorted.left_out, ..Self::default() };
        all.families = families(&sorted.nodes, &sorted.pods);
        all.place_nodes(&sorted.nodes, &sorted.pods, workers);
        let pods = all.choose(&sorted.pods, most_pods);
        let named = |key: &Key| key.0.clone();
        let mut namespaces: BTreeSet<String> = sorted.namespaces.keys().cloned().collect();
        namespaces.extend(pods.iter().map(|(key, ..)| named(key)));
        namespaces.extend(sorted.policies.keys().map(|(_, key)| named(key)));
        namespaces.remove("");
        all.namespaces = namespaces
            .iter()
            .map(|name| {
                let labels =
                    sorted.namespaces.get(name).map(|object| &object["metadata"]["labels"]);
                json!({"apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": name, "labels": map(labels)}})
            })
            .collect();
        all.pods = pods.into_iter().map(|(key, node, object)| pod(&key, &node, object)).collect();
        all.policies = sorted.policies.values().map(|object| policy(object)).collect();
        all
    }

    /// How many pods it has.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// How many policies it has.
    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    /// The first control-plane node is played by the lab's own, each other by a worker: where there are more,
    /// a worker plays several, so that pods of one node are on one node.
    fn place_nodes(
        &mut self,
        nodes: &BTreeMap<String, &Value>,
        pods: &BTreeMap<Key, &Value>,
        workers: Option<u8>,
    ) {
        let mut names: BTreeSet<&str> = nodes.keys().map(String::as_str).collect();
        names.extend(pods.values().map(|pod| text(pod, "/spec/nodeName")));
        names.remove("");
        let is_control = |name: &&&str| {
            let labels = nodes.get(**name).map(|node| &node["metadata"]["labels"]);
            let has = |role| labels.is_some_and(|labels| !labels[role].is_null());
            has("node-role.kubernetes.io/control-plane") || has("node-role.kubernetes.io/master")
        };
        let control = names.iter().find(is_control).copied();
        let rest: Vec<&str> = names.iter().copied().filter(|name| Some(*name) != control).collect();
        let limit = usize::from(workers.unwrap_or(MOST_WORKERS).max(1));
        self.workers = match names.is_empty() {
            true => workers.unwrap_or(WORKERS).max(1),
            false => u8::try_from(rest.len().clamp(1, limit)).unwrap_or(u8::MAX),
        };
        let worker = |i: usize| format!("node-{}", i % usize::from(self.workers) + 1);
        let mut places: Vec<(&str, String)> =
            rest.iter().enumerate().map(|(i, name)| (*name, worker(i))).collect();
        places.extend(control.map(|name| (name, "cp".to_owned())));
        for (i, (name, place)) in places.iter().enumerate() {
            if i < usize::from(self.workers) || place == "cp" {
                let labels = nodes.get(*name).map(|node| &node["metadata"]["labels"]);
                if labels.is_some() {
                    self.labels.insert(place.clone(), map(labels));
                }
            }
            self.nodes.insert((*name).to_owned(), place.clone());
        }
        let again: Vec<String> = rest
            .iter()
            .enumerate()
            .skip(usize::from(self.workers))
            .map(|(i, name)| format!("{name} on {}", worker(i)))
            .collect();
        if !again.is_empty() {
            self.left_out.push(format!(
                "{} nodes are more than the lab's {} workers (--nodes): their pods are on workers that play \
                 others, their labels are nowhere: {}",
                again.len(),
                self.workers,
                some(&again)
            ));
        }
        if !names.is_empty() {
            if control.is_none() {
                self.left_out
                    .push("cp plays no node of the cluster: none is a control-plane node".into());
            }
            if rest.is_empty() {
                self.left_out
                    .push("node-1 plays no node of the cluster: it has one node alone".into());
            }
        }
    }

    /// The pods that the lab has room for, each with its place: of pods that are alike some rather than of
    /// others none.
    fn choose<'a>(
        &mut self,
        all: &BTreeMap<Key, &'a Value>,
        most: usize,
    ) -> Vec<(Key, String, &'a Value)> {
        let mut ranked: Vec<(usize, &Key, &'a Value)> = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (key, pod) in all {
            let rank = seen.entry(likeness(pod)).or_default();
            ranked.push((*rank, key, pod));
            *rank += 1;
        }
        ranked.sort_by_key(|(rank, key, _)| (*rank, *key));
        let mut on_node: BTreeMap<String, usize> = BTreeMap::new();
        let (mut chosen, mut left, mut long, mut host) =
            (Vec::new(), Vec::new(), Vec::new(), vec![]);
        let (mut own, mut turn) = (0, 0);
        for (_, key, pod) in ranked {
            let name = format!("{}/{}", key.0, key.1);
            let node = self.nodes.get(text(pod, "/spec/nodeName")).cloned().unwrap_or_else(|| {
                turn += 1;
                format!("node-{}", (turn - 1) % usize::from(self.workers) + 1)
            });
            if is_host(pod) {
                host.push(name);
            } else if name.len() > LONGEST {
                long.push(name);
                continue;
            } else {
                let there = on_node.entry(node.clone()).or_default();
                if own == most || *there == MOST_ON_NODE {
                    left.push(name);
                    continue;
                }
                own += 1;
                *there += 1;
            }
            chosen.push((key.clone(), node, pod));
        }
        let mut say = |names: &[String], why: String| {
            if !names.is_empty() {
                self.left_out.push(format!("{why}: {}", some(names)));
            }
        };
        let much = format!(
            "{} pods are more than the lab takes ({most}, --pods; {MOST_ON_NODE} a node) and are left out",
            left.len()
        );
        say(&left, much);
        say(&long, format!("{} pods have too long names and are left out", long.len()));
        let server = "their node's network run no server of their own, they are their node";
        say(&host, format!("{} pods in {server}", host.len()));
        chosen.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        chosen
    }
}

fn sort<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Sorted<'a> {
    let mut all = Sorted::default();
    let (mut ended, mut ending, mut twice) = (Vec::new(), Vec::new(), Vec::new());
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    for object in objects {
        let name = text(object, "/metadata/name").to_owned();
        let namespace = match text(object, "/metadata/namespace") {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        let (kind, version) = (text(object, "/kind"), text(object, "/apiVersion"));
        match (kind, version) {
            ("Namespace", "v1") => drop(all.namespaces.insert(name, object)),
            ("Node", "v1") => drop(all.nodes.insert(name, object)),
            ("Pod", "v1") => {
                let label = format!("{namespace}/{name}");
                if ["Succeeded", "Failed"].contains(&text(object, "/status/phase")) {
                    ended.push(label);
                } else if !object["metadata"]["deletionTimestamp"].is_null() {
                    ending.push(label);
                } else if all.pods.insert((namespace, name), object).is_some() {
                    twice.push(label);
                }
            }
            ("NetworkPolicy", "networking.k8s.io/v1") => {
                let label = format!("NetworkPolicy {namespace}/{name}");
                if all.policies.insert((kind.to_owned(), (namespace, name)), object).is_some() {
                    twice.push(label);
                }
            }
            known if known == CLUSTER_POLICIES => {
                let label = format!("{kind} {name}");
                let key = (kind.to_owned(), (String::new(), name));
                if all.policies.insert(key, object).is_some() {
                    twice.push(label);
                }
            }
            (kind, other) if kind == CLUSTER_POLICIES.0 => all.left_out.push(format!(
                "{kind} {name} is of {other}, which agents do not go by: write it as {}",
                CLUSTER_POLICIES.1
            )),
            // What is expected of policies is no part of a cluster.
            ("PolicyTest", _) => {}
            (kind, _) => *others.entry(kind.to_owned()).or_default() += 1,
        }
    }
    let mut say = |names: &[String], why: &str| {
        if !names.is_empty() {
            all.left_out.push(format!("{} {why}: {}", names.len(), some(names)));
        }
    };
    say(&ended, "pods have ended");
    say(&ending, "pods are being deleted");
    say(&twice, "objects are there twice, and the last of each counts");
    let others: Vec<String> = others.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    if !others.is_empty() {
        let what = "no Namespace, Node, Pod, workload or policy, and not copied";
        all.left_out.push(format!("{what}: {}", others.join(", ")));
    }
    all
}

/// What pods have in common that one workload made: labels that tell its pods apart do not count.
fn likeness(pod: &Value) -> String {
    const OF_ONE: [&str; 5] = [
        "pod-template-hash",
        "controller-revision-hash",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
    ];
    let mut labels = pod["metadata"]["labels"].clone();
    if let Some(labels) = labels.as_object_mut() {
        labels.retain(|key, _| !OF_ONE.contains(&key.as_str()));
    }
    format!("{} {labels} {}", text(pod, "/metadata/namespace"), is_host(pod))
}

/// The families of addresses that the cluster has.
fn families(nodes: &BTreeMap<String, &Value>, pods: &BTreeMap<Key, &Value>) -> Families {
    let cidrs = nodes.values().flat_map(|node| list(&node["spec"]["podCIDRs"]));
    let cidrs = cidrs.filter_map(|cidr| Some(cidr.as_str()?.parse::<IpNet>().ok()?.addr()));
    let ips = pods.values().flat_map(|pod| list(&pod["status"]["podIPs"]));
    let ips = ips.filter_map(|ip| ip["ip"].as_str()?.parse::<IpAddr>().ok());
    let all: BTreeSet<bool> = cidrs.chain(ips).map(|ip| Family::of(ip) == Family::V4).collect();
    match (all.contains(&true), all.contains(&false)) {
        (true, false) => Families::Ipv4,
        (false, true) => Families::Ipv6,
        _ => Families::Dual,
    }
}

/// A pod of the lab: its name, labels and ports, for policies go by those, and a place.
fn pod(key: &Key, node: &str, object: &Value) -> Value {
    let beside = list(&object["spec"]["initContainers"]);
    // Those run beside the others, and have ports as they do.
    let beside = beside.iter().filter(|c| c["restartPolicy"] == "Always");
    let own = list(&object["spec"]["containers"]).iter();
    let mut containers: Vec<Value> = own
        .chain(beside)
        .enumerate()
        .map(|(i, container)| {
            let name = container["name"].as_str().map_or_else(|| format!("c{i}"), str::to_owned);
            let image = container["image"].as_str().unwrap_or("none");
            let ports = list(&container["ports"]).iter().map(port);
            json!({"name": name, "image": image, "ports": ports.collect::<Vec<_>>()})
        })
        .collect();
    if containers.is_empty() {
        containers.push(json!({"name": "main", "image": "none"}));
    }
    let mut spec = json!({"nodeName": node, "containers": containers});
    if is_host(object) {
        spec["hostNetwork"] = true.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": key.1, "namespace": key.0,
            "labels": map(Some(&object["metadata"]["labels"]))},
    })
}

/// Without the node's port: nothing translates it there.
fn port(port: &Value) -> Value {
    let keep = ["name", "containerPort", "protocol"];
    let kept = keep.iter().filter(|key| !port[**key].is_null());
    kept.map(|key| ((*key).to_owned(), port[*key].clone())).collect::<Map<_, _>>().into()
}

/// A policy as it is, without what the cluster's API wrote into it.
fn policy(object: &Value) -> Value {
    let mut metadata = json!({"name": object["metadata"]["name"]});
    if object["kind"] != CLUSTER_POLICIES.0 {
        let namespace = &object["metadata"]["namespace"];
        metadata["namespace"] = namespace.as_str().unwrap_or("default").into();
    }
    metadata["labels"] = map(Some(&object["metadata"]["labels"]));
    let (kind, version, spec) = (&object["kind"], &object["apiVersion"], &object["spec"]);
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

fn is_host(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] == true
}

/// The names of a few, and how many more there are.
fn some(names: &[String]) -> String {
    const FEW: usize = 8;
    match names.len() {
        n if n > FEW => format!("{} and {} more", names[..FEW].join(", "), n - FEW),
        _ => names.join(", "),
    }
}

fn map(value: Option<&Value>) -> Value {
    value.filter(|value| value.is_object()).cloned().unwrap_or_else(|| json!({}))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
