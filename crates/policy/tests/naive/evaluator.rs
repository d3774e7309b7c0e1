//! The second evaluator.

use std::net::IpAddr;

use causeway_policy::{Protocol, Transport};
use serde_json::{Value, json};

/// A connection as the naive evaluator sees it.
pub(super) struct Connection<'a> {
    pub(super) all: &'a [Value],
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) transport: Transport,
}

pub(super) fn kind<'a>(all: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    all.iter().filter(move |o| o["kind"] == kind)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn meets(selector: &Value, labels: &Value) -> bool {
    let of_labels = selector["matchLabels"].as_object();
    let labels_met = of_labels.is_none_or(|m| m.iter().all(|(k, v)| labels[k] == *v));
    labels_met
        && list(&selector["matchExpressions"]).iter().all(|e| {
            let value = &labels[e["key"].as_str().unwrap()];
            let listed = list(&e["values"]).contains(value);
            match e["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !value.is_null(),
                "DoesNotExist" => value.is_null(),
                other => panic!("{other}"),
            }
        })
}

impl Connection<'_> {
    fn has(object: &Value, ip: IpAddr) -> bool {
        let ended = ["Succeeded", "Failed"].map(|p| object["status"]["phase"] == p).contains(&true);
        let text = ip.to_string();
        !ended && list(&object["status"]["podIPs"]).iter().any(|entry| entry["ip"] == *text)
    }

    /// The pod with a network of its own that has an address.
    fn pod(&self, ip: IpAddr) -> Option<&Value> {
        kind(self.all, "Pod").find(|p| p["spec"]["hostNetwork"] != true && Self::has(p, ip))
    }

    fn node(&self, ip: IpAddr) -> Option<&Value> {
        let text = ip.to_string();
        let has =
            |n: &&Value| list(&n["status"]["addresses"]).iter().any(|a| a["address"] == *text);
        kind(self.all, "Node").find(has)
    }

    fn namespace_labels(&self, pod: &Value) -> &Value {
        let name = &pod["metadata"]["namespace"];
        let found = kind(self.all, "Namespace").find(|n| n["metadata"]["name"] == *name);
        found.map_or(&Value::Null, |n| &n["metadata"]["labels"])
    }

    /// A peer or subject with `namespaces` or `pods`, of a cluster policy.
    fn selected(&self, which: &Value, pod: Option<&Value>) -> bool {
        let Some(pod) = pod else { return false };
        let namespace = self.namespace_labels(pod);
        match (which.get("namespaces"), which.get("pods")) {
            (Some(selector), None) => meets(selector, namespace),
            (None, Some(both)) => {
                meets(&both["namespaceSelector"], namespace)
                    && meets(&both["podSelector"], &pod["metadata"]["labels"])
            }
            _ => false,
        }
    }

    fn port(&self, protocol: Option<&str>, named: &str) -> bool {
        let Transport::Port(by, number) = self.transport else { return false };
        let Some(pod) = self.pod(self.to) else { return false };
        list(&pod["spec"]["containers"]).iter().flat_map(|c| list(&c["ports"])).any(|port| {
            let of = port["protocol"].as_str().unwrap_or("TCP");
            port["name"] == named
                && port["containerPort"] == number
                && of == word(by)
                && protocol.is_none_or(|p| p == of)
        })
    }

    fn block(&self, cidr: &Value, except: &Value, ip: IpAddr) -> bool {
        let within =
            |net: &Value| net.as_str().unwrap().parse::<ipnet::IpNet>().unwrap().contains(&ip);
        within(cidr) && !list(except).iter().any(within)
    }

    /// The other end, and the pod itself, of a direction.
    fn ends(&self, ingress: bool) -> (IpAddr, IpAddr) {
        if ingress { (self.from, self.to) } else { (self.to, self.from) }
    }

    pub(super) fn allowed(&self) -> bool {
        self.from == self.to
            || self.is_own_node()
            || self.same_pod()
            || [false, true].into_iter().all(|ingress| self.allowed_by(ingress))
    }

    fn same_pod(&self) -> bool {
        let (from, to) = (self.pod(self.from), self.pod(self.to));
        from.is_some() && from.map(|p| &p["metadata"]) == to.map(|p| &p["metadata"])
    }

    /// What comes to a pod from its own node is let in; egress does not concern a node.
    fn is_own_node(&self) -> bool {
        let (Some(node), Some(pod)) = (self.node(self.from), self.pod(self.to)) else {
            return false;
        };
        self.pod(self.from).is_none() && pod["spec"]["nodeName"] == node["metadata"]["name"]
    }

    fn allowed_by(&self, ingress: bool) -> bool {
        let Some(subject) = self.pod(self.ends(ingress).1) else { return true };
        match self.cluster(subject, ingress, "Admin") {
            Some("Accept") => return true,
            Some("Deny") => return false,
            _ => {}
        }
        let (word, key) = if ingress { ("Ingress", "ingress") } else { ("Egress", "egress") };
        let policies: Vec<&Value> = kind(self.all, "NetworkPolicy")
            .filter(|p| {
                p["metadata"]["namespace"] == subject["metadata"]["namespace"]
                    && meets(&p["spec"]["podSelector"], &subject["metadata"]["labels"])
                    && match p["spec"].get("policyTypes") {
                        Some(types) => list(types).contains(&json!(word)),
                        None => ingress || !list(&p["spec"]["egress"]).is_empty(),
                    }
            })
            .collect();
        if !policies.is_empty() {
            return policies
                .iter()
                .any(|p| list(&p["spec"][key]).iter().any(|rule| self.rule(p, rule, ingress)));
        }
        self.cluster(subject, ingress, "Baseline") != Some("Deny")
    }

    fn rule(&self, policy: &Value, rule: &Value, ingress: bool) -> bool {
        let (peer, _) = self.ends(ingress);
        let peers = list(&rule[if ingress { "from" } else { "to" }]);
        let from_peer = peers.is_empty()
            || peers.iter().any(|p| match p.get("ipBlock") {
                Some(block) => self.block(&block["cidr"], &block["except"], peer),
                None => self.pod(peer).is_some_and(|pod| {
                    let namespace = match p.get("namespaceSelector") {
                        Some(selector) => meets(selector, self.namespace_labels(pod)),
                        None => pod["metadata"]["namespace"] == policy["metadata"]["namespace"],
                    };
                    let pods = p.get("podSelector");
                    namespace && pods.is_none_or(|s| meets(s, &pod["metadata"]["labels"]))
                }),
            });
        let ports = list(&rule["ports"]);
        from_peer
            && (ports.is_empty()
                || ports.iter().any(|p| {
                    let by = p["protocol"].as_str().unwrap_or("TCP");
                    let Transport::Port(protocol, number) = self.transport else { return false };
                    by == word(protocol)
                        && match (&p["port"], p["endPort"].as_u64()) {
                            (Value::Null, _) => true,
                            (Value::String(name), _) => self.port(Some(by), name),
                            (n, None) => *n == number,
                            (n, Some(end)) => {
                                (n.as_u64().unwrap()..=end).contains(&u64::from(number))
                            }
                        }
                }))
    }

    /// What the first rule of a tier that matches does.
    fn cluster(&self, subject: &Value, ingress: bool, tier: &str) -> Option<&str> {
        let (key, peers, peer) = match ingress {
            true => ("ingress", "from", self.from),
            false => ("egress", "to", self.to),
        };
        let mut policies: Vec<&Value> = kind(self.all, "ClusterNetworkPolicy")
            .filter(|p| p["spec"]["tier"] == tier)
            .filter(|p| self.selected(&p["spec"]["subject"], Some(subject)))
            .collect();
        policies.sort_by_key(|p| {
            (p["spec"]["priority"].as_u64(), p["metadata"]["name"].as_str().unwrap().to_owned())
        });
        let rules = policies.iter().flat_map(|p| list(&p["spec"][key]));
        let mut matching = rules.filter(|rule| {
            list(&rule[peers]).iter().any(|p| {
                let networks = list(&p["networks"]);
                networks.iter().any(|net| self.block(net, &Value::Null, peer))
                    || p.get("nodes").is_some_and(|selector| {
                        self.pod(peer).is_none()
                            && self
                                .node(peer)
                                .is_some_and(|node| meets(selector, &node["metadata"]["labels"]))
                    })
                    || self.selected(p, self.pod(peer))
            }) && (rule.get("protocols").is_none()
                || list(&rule["protocols"]).iter().any(|p| self.protocol(p)))
        });
        matching.next().map(|rule| rule["action"].as_str().unwrap())
    }

    fn protocol(&self, wanted: &Value) -> bool {
        if let Some(name) = wanted["destinationNamedPort"].as_str() {
            return self.port(None, name);
        }
        let Transport::Port(protocol, number) = self.transport else { return false };
        let Some(of) = wanted.get(word(protocol).to_lowercase()) else { return false };
        let port = &of["destinationPort"];
        match (&port["number"], &port["range"]) {
            (Value::Null, Value::Null) => true,
            (n, Value::Null) => *n == number,
            (_, range) => {
                let (a, b) = (range["start"].as_u64().unwrap(), range["end"].as_u64().unwrap());
                (a..=b).contains(&u64::from(number))
            }
        }
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
