//! What policies are asked about: pods, namespaces, nodes and the policies themselves.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use causeway_types::Family;

use crate::labels::{Labels, Text};
use crate::ports::Protocol;
use crate::rule::{Namespaces, Pods, Policy, PolicyName};

/// A pod's name in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// The namespace.
    pub namespace: Text,
    /// The name.
    pub name: Text,
}

impl PodName {
    /// Of both.
    #[must_use]
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What policies go by of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: PodName,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses: none before it has some, and none when it has ended, for another may have them.
    pub addresses: Vec<IpAddr>,
    /// It has ended for good.
    pub ended: bool,
    /// Where it runs.
    pub node: Option<Text>,
    /// It is in its node's network: no policy applies to it, and no selector of pods means it.
    pub host_network: bool,
    /// What its containers call their ports.
    pub ports: Vec<NamedPort>,
}

impl Pod {
    /// The numbers of the ports that its containers call so.
    pub fn ports_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a NamedPort> {
        self.ports.iter().filter(move |port| *port.name == *name)
    }
}

/// A port of a container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: Text,
    /// By which protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// What policies go by of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party {
    /// Who it is.
    pub who: Who,
    /// The address that it has in this connection.
    pub address: IpAddr,
}

/// Who is at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A pod with a network of its own.
    Pod(PodName),
    /// A node, or a pod in a node's network.
    Node(Text),
    /// Neither.
    Outside,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Pod(name) => write!(f, "pod {name} ({})", self.address),
            Who::Node(name) => write!(f, "node {name} ({})", self.address),
            Who::Outside => write!(f, "{}", self.address),
        }
    }
}

/// Everything that policies are asked about.
#[derive(Clone, Debug, Default)]
pub struct World {
    namespaces: BTreeMap<Text, Labels>,
    pods: BTreeMap<PodName, Pod>,
    nodes: BTreeMap<Text, Node>,
    policies: BTreeMap<PolicyName, Policy>,
    /// Whose an address is. Where several pods have one, as while one of them ends, the first by name.
    owners: HashMap<IpAddr, Vec<Who>>,
}

impl World {
    /// Adds a namespace, or replaces its labels.
    pub fn set_namespace(&mut self, name: impl Into<Text>, labels: Labels) {
        self.namespaces.insert(name.into(), labels);
    }

    /// Removes a namespace. Its pods and policies stay until they are removed themselves.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Adds a pod, or replaces it.
    pub fn set_pod(&mut self, pod: Pod) {
        self.remove_pod(&pod.name);
        if !pod.host_network {
            self.owned(&pod.addresses, &Who::Pod(pod.name.clone()));
        }
        self.pods.insert(pod.name.clone(), pod);
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, name: &PodName) {
        if let Some(pod) = self.pods.remove(name) {
            self.disowned(&pod.addresses, &Who::Pod(name.clone()));
        }
    }

    /// The pods of a namespace, by name.
    pub fn pods_in<'a>(&'a self, namespace: &Text) -> impl Iterator<Item = &'a Pod> {
        let first = PodName::new(namespace.clone(), "");
        let namespace = namespace.clone();
        let all = self.pods.range(first..).map(|(_, pod)| pod);
        all.take_while(move |pod| pod.name.namespace == namespace)
    }

    /// Adds a node, or replaces it.
    pub fn set_node(&mut self, name: impl Into<Text>, node: Node) {
        let name = name.into();
        self.remove_node(&name);
        self.owned(&node.addresses, &Who::Node(name.clone()));
        self.nodes.insert(name, node);
    }

    /// Removes a node.
    pub fn remove_node(&mut self, name: &str) {
        if let Some((name, node)) = self.nodes.remove_entry(name) {
            self.disowned(&node.addresses, &Who::Node(name));
        }
    }

    /// Adds a policy, or replaces it.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policies.insert(policy.name.clone(), policy);
    }

    /// Removes a policy.
    pub fn remove_policy(&mut self, name: &PolicyName) {
        self.policies.remove(name);
    }

    fn owned(&mut self, addresses: &[IpAddr], who: &Who) {
        for ip in addresses {
            let owners = self.owners.entry(*ip).or_default();
            if let Err(at) = owners.binary_search(who) {
                owners.insert(at, who.clone());
            }
        }
    }

    fn disowned(&mut self, addresses: &[IpAddr], who: &Who) {
        for ip in addresses {
            if let Some(owners) = self.owners.get_mut(ip) {
                owners.retain(|owner| owner != who);
                if owners.is_empty() {
                    self.owners.remove(ip);
                }
            }
        }
    }

    /// The labels of a namespace; `None` where it is not known.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// The namespaces and their labels.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Text, &Labels)> {
        self.namespaces.iter()
    }

    /// The pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The pod of a name.
    #[must_use]
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&Text, &Node)> {
        self.nodes.iter()
    }

    /// The node of a name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The policies, by kind and name.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// The policy of a name.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Whoever has an address.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Party {
        let who = self.owners.get(&address).and_then(|owners| owners.first());
        Party { who: who.cloned().unwrap_or(Who::Outside), address }
    }

    /// A pod as one end of connections of a family: by its own address, or its node's.
    #[must_use]
    pub fn party(&self, pod: &Pod, family: Family) -> Option<Party> {
        let of = |ips: &[IpAddr]| ips.iter().copied().find(|ip| Family::of(*ip) == family);
        if pod.host_network {
            let name = pod.node.clone()?;
            let own = of(&pod.addresses);
            let address = own.or_else(|| of(&self.nodes.get(&name)?.addresses))?;
            return Some(Party { who: Who::Node(name), address });
        }
        Some(Party { who: Who::Pod(pod.name.clone()), address: of(&pod.addresses)? })
    }

    /// The policies that apply to a pod, in the order in which they are asked: by tier, priority and
    /// name.
    #[must_use]
    pub fn policies_of(&self, pod: &Pod) -> Vec<&Policy> {
        let mut all: Vec<&Policy> = self
            .policies_for(&pod.name.namespace)
            .filter(|policy| self.is_subject(policy, pod))
            .collect();
        all.sort_by_key(|policy| (policy.tier, policy.priority, &policy.name));
        all
    }

    /// The policies that may apply to pods of a namespace: its own, and those of the cluster.
    pub fn policies_for<'a>(&'a self, namespace: &Text) -> impl Iterator<Item = &'a Policy> {
        let first = PolicyName::Network { namespace: namespace.clone(), name: "".into() };
        let own = self.policies.range(first..).map(|(_, policy)| policy);
        let namespace = namespace.clone();
        let own = own.take_while(
            move |p| matches!(&p.name, PolicyName::Network { namespace: n, .. } if *n == namespace),
        );
        let cluster = self.policies.range(PolicyName::Cluster("".into())..);
        own.chain(cluster.map(|(_, policy)| policy))
    }

    /// Whether a policy applies to a pod.
    #[must_use]
    pub fn is_subject(&self, policy: &Policy, pod: &Pod) -> bool {
        policy.subject.as_ref().is_some_and(|subject| self.selects(subject, pod))
    }

    /// Whether a pod is meant: one in its node's network never is, nor one of a namespace that is not
    /// known where its labels count.
    #[must_use]
    pub fn selects(&self, pods: &Pods, pod: &Pod) -> bool {
        !pod.host_network
            && pods.pods.selects(&pod.labels)
            && match &pods.namespaces {
                Namespaces::Named(name) => *name == pod.name.namespace,
                Namespaces::Selected(selector) if selector.is_everything() => true,
                Namespaces::Selected(selector) => self
                    .namespaces
                    .get(&pod.name.namespace)
                    .is_some_and(|labels| selector.selects(labels)),
            }
    }
}
