//! What policies are asked about: pods, namespaces, nodes and the policies themselves.

mod spaces;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_types::Family;

use crate::labels::{Labels, Text};
use crate::ports::Protocol;
use crate::rule::{Namespaces, Pods, Policy, PolicyName};
use spaces::Spaces;

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
    /// Its labels. In a [`World`] pods that policies cannot tell apart have the very same.
    pub labels: Arc<Labels>,
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
    namespaces: Spaces,
    /// By namespace and name.
    pods: BTreeMap<Text, BTreeMap<Text, Pod>>,
    nodes: BTreeMap<Text, Node>,
    policies: BTreeMap<PolicyName, Policy>,
    /// How many policies a namespace has.
    policed: BTreeMap<Text, usize>,
    /// Whose an address is.
    owners: HashMap<IpAddr, Owners>,
    /// Pods that policies cannot tell apart but by their addresses: there may be very many pods, and few kinds
    /// of them.
    kinds: BTreeMap<Text, HashMap<Kind, Members>>,
    /// Addresses that several have.
    shared: BTreeSet<IpAddr>,
    /// Who really has an address, where that is known by other means: see [`World::set_holder`].
    holders: HashMap<IpAddr, PodName>,
    /// Names that many pods have in common.
    texts: HashSet<Text>,
    /// So many texts were there when it was last looked for those that nobody has any more.
    swept: usize,
}

/// Whose an address is.
#[derive(Clone, Debug)]
enum Owners {
    One(Who),
    /// Several have it, as while one of them ends: the first by name counts.
    Many(BTreeSet<Who>),
}

impl Owners {
    fn first(&self) -> Option<&Who> {
        match self {
            Self::One(who) => Some(who),
            Self::Many(all) => all.first(),
        }
    }
}

/// What policies see of a pod but its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    labels: Arc<Labels>,
    ports: Vec<NamedPort>,
    host_network: bool,
}

impl Kind {
    fn of(pod: &Pod) -> Self {
        Self {
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
            host_network: pod.host_network,
        }
    }

    fn is_of(&self, pod: &Pod) -> bool {
        self.labels == pod.labels
            && self.ports == pod.ports
            && self.host_network == pod.host_network
    }
}

/// The pods of a kind.
#[derive(Clone, Debug, Default)]
struct Members {
    pods: usize,
    addresses: BTreeSet<IpAddr>,
}

/// What policies see of a pod that is not in its node's network, but its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks<'w> {
    pub(crate) namespace: &'w Text,
    pub(crate) labels: &'w Labels,
    pub(crate) ports: &'w [NamedPort],
}

impl<'w> Looks<'w> {
    fn of(pod: &'w Pod) -> Self {
        Self { namespace: &pod.name.namespace, labels: &pod.labels, ports: &pod.ports }
    }
}

/// Pods that policies cannot tell apart but by their addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alike<'w> {
    pub(crate) looks: Looks<'w>,
    /// The addresses of all of them, of which others may have some too.
    pub(crate) addresses: &'w BTreeSet<IpAddr>,
}

/// An end of a connection as rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'w> {
    pub(crate) who: SeenAs<'w>,
    pub(crate) address: IpAddr,
}

/// Who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SeenAs<'w> {
    Pod(Looks<'w>),
    Node(&'w Labels),
    Outside,
}

impl World {
    /// Adds a namespace, or replaces its labels.
    pub fn set_namespace(&mut self, name: impl Into<Text>, labels: Labels) {
        self.namespaces.set(name.into(), labels);
    }

    /// Removes a namespace. Its pods and policies stay until they are removed themselves.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Adds a pod, or replaces it.
    pub fn set_pod(&mut self, mut pod: Pod) {
        self.remove_pod(&pod.name);
        pod.name.namespace = self.shared(&pod.name.namespace);
        pod.node = pod.node.as_ref().map(|node| self.shared(node));
        if !pod.host_network {
            self.owned(&pod.addresses, &Who::Pod(pod.name.clone()));
        }
        let kind = Kind::of(&pod);
        let kinds = self.kinds.entry(pod.name.namespace.clone()).or_default();
        if let Some((known, _)) = kinds.get_key_value(&kind) {
            pod.labels = known.labels.clone();
        }
        let members = kinds.entry(kind).or_default();
        members.pods += 1;
        if !pod.host_network {
            members.addresses.extend(&pod.addresses);
        }
        let space = self.pods.entry(pod.name.namespace.clone()).or_default();
        space.insert(pod.name.name.clone(), pod);
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, name: &PodName) {
        let Some(space) = self.pods.get_mut(&name.namespace) else { return };
        let Some(pod) = space.remove(&name.name) else { return };
        if space.is_empty() {
            self.pods.remove(&name.namespace);
        }
        self.disowned(&pod.addresses, &Who::Pod(name.clone()));
        let kind = Kind::of(&pod);
        let Some(kinds) = self.kinds.get_mut(&name.namespace) else { return };
        let Some(members) = kinds.get_mut(&kind) else { return };
        members.pods -= 1;
        let space = self.pods.get(&name.namespace);
        for ip in &pod.addresses {
            let same = |who: &Who| {
                let Who::Pod(other) = who else { return false };
                other.namespace == name.namespace
                    && space
                        .and_then(|space| space.get(&other.name))
                        .is_some_and(|pod| kind.is_of(pod))
            };
            let held = match self.owners.get(ip) {
                Some(Owners::One(who)) => same(who),
                Some(Owners::Many(all)) => all.iter().any(same),
                None => false,
            };
            if !held {
                members.addresses.remove(ip);
            }
        }
        if members.pods == 0 {
            kinds.remove(&kind);
        }
        if kinds.is_empty() {
            self.kinds.remove(&name.namespace);
        }
    }

    /// One text for all that have an equal one.
    fn shared(&mut self, text: &Text) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() > 2 * self.swept + 64 {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.swept = self.texts.len();
        }
        self.texts.insert(text.clone());
        text.clone()
    }

    /// The pods that are not in their nodes' networks, by what policies see of them.
    pub(crate) fn alike(&self) -> impl Iterator<Item = Alike<'_>> {
        self.kinds.iter().flat_map(|(namespace, kinds)| alike_in(namespace, kinds))
    }

    /// Those of them that are selected. It costs what there is in namespaces that are.
    pub(crate) fn alike_selected<'w>(&'w self, pods: &Pods) -> impl Iterator<Item = Alike<'w>> {
        let of: Vec<(&Text, &HashMap<Kind, Members>)> = match &pods.namespaces {
            Namespaces::Named(name) => self.kinds.get_key_value(name).into_iter().collect(),
            Namespaces::Selected(selector) if selector.is_everything() => {
                self.kinds.iter().collect()
            }
            Namespaces::Selected(selector) => {
                let names = self.namespaces.selected(selector).into_iter();
                names.filter_map(|name| self.kinds.get_key_value(name)).collect()
            }
        };
        let pods = &pods.pods;
        of.into_iter()
            .flat_map(|(namespace, kinds)| alike_in(namespace, kinds))
            .filter(|alike| pods.selects(alike.looks.labels))
    }

    /// An end as rules see it.
    pub(crate) fn see(&self, party: &Party) -> Seen<'_> {
        let who = match &party.who {
            Who::Pod(name) => {
                let pod = self.pod(name).filter(|pod| !pod.host_network);
                pod.map(|pod| SeenAs::Pod(Looks::of(pod)))
            }
            Who::Node(name) => self.nodes.get(name).map(|node| SeenAs::Node(&node.labels)),
            Who::Outside => None,
        };
        Seen { who: who.unwrap_or(SeenAs::Outside), address: party.address }
    }

    /// The addresses of the pods that are selected.
    pub fn addresses_of(&self, pods: &Pods) -> impl Iterator<Item = IpAddr> {
        self.alike_selected(pods).flat_map(|alike| alike.addresses).copied()
    }

    /// Addresses that several have.
    pub(crate) fn shared_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.shared
    }

    /// The pods of a namespace, by name.
    pub fn pods_in(&self, namespace: &Text) -> impl Iterator<Item = &Pod> + use<'_> {
        self.pods.get(namespace).into_iter().flat_map(BTreeMap::values)
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
        let name = policy.name.clone();
        let namespace = policy.name.namespace().cloned();
        if let (None, Some(namespace)) = (self.policies.insert(name, policy), namespace) {
            *self.policed.entry(namespace).or_default() += 1;
        }
    }

    /// Removes a policy.
    pub fn remove_policy(&mut self, name: &PolicyName) {
        let Some(policy) = self.policies.remove(name) else { return };
        let Some(namespace) = policy.name.namespace() else { return };
        if let Some(count) = self.policed.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.policed.remove(namespace);
            }
        }
    }

    /// The namespaces that have policies of their own, by name.
    pub fn policed(&self) -> impl Iterator<Item = &Text> {
        self.policed.keys()
    }

    /// Says which of those that have an address in their objects really has it, as who made its interface knows;
    /// `None`: that is not known, and the first one by name counts.
    /// Answers what was known of it before.
    pub fn set_holder(&mut self, address: IpAddr, pod: Option<PodName>) -> Option<PodName> {
        match pod {
            Some(pod) => self.holders.insert(address, pod),
            None => self.holders.remove(&address),
        }
    }

    /// Who was said to have an address really.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&PodName> {
        self.holders.get(&address)
    }

    fn owned(&mut self, addresses: &[IpAddr], who: &Who) {
        for ip in addresses {
            match self.owners.get_mut(ip) {
                None => {
                    self.owners.insert(*ip, Owners::One(who.clone()));
                }
                Some(Owners::One(other)) if other == who => {}
                Some(Owners::Many(all)) => {
                    all.insert(who.clone());
                }
                Some(one) => {
                    let both = one.first().cloned().into_iter().chain([who.clone()]);
                    *one = Owners::Many(both.collect());
                    self.shared.insert(*ip);
                }
            }
        }
    }

    fn disowned(&mut self, addresses: &[IpAddr], who: &Who) {
        for ip in addresses {
            match self.owners.get_mut(ip) {
                Some(Owners::One(one)) if one == who => {
                    self.owners.remove(ip);
                }
                Some(Owners::Many(all)) => {
                    all.remove(who);
                    if let (1, Some(last)) = (all.len(), all.first()) {
                        let last = last.clone();
                        self.owners.insert(*ip, Owners::One(last));
                        self.shared.remove(ip);
                    }
                }
                _ => {}
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
        self.pods.values().flat_map(BTreeMap::values)
    }

    /// The pod of a name.
    #[must_use]
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.get(&name.namespace)?.get(&name.name)
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
        let owners = self.owners.get(&address);
        if let (Some(Owners::Many(all)), Some(pod)) = (owners, self.holders.get(&address)) {
            let holder = Who::Pod(pod.clone());
            if all.contains(&holder) {
                return Party { who: holder, address };
            }
        }
        let who = owners.and_then(Owners::first);
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
        own.chain(self.cluster_policies())
    }

    /// The policies that are of no namespace.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.range(PolicyName::Cluster("".into())..).map(|(_, policy)| policy)
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
        !pod.host_network && self.selects_looks(pods, Looks::of(pod))
    }

    pub(crate) fn selects_looks(&self, pods: &Pods, looks: Looks<'_>) -> bool {
        let labels = || pods.pods.selects(looks.labels);
        match &pods.namespaces {
            // A name is compared sooner than labels.
            Namespaces::Named(name) => name == looks.namespace && labels(),
            Namespaces::Selected(selector) if selector.is_everything() => labels(),
            Namespaces::Selected(selector) => {
                let of = || self.namespaces.get(looks.namespace);
                labels() && of().is_some_and(|labels| selector.selects(labels))
            }
        }
    }
}

fn alike_in<'w>(
    namespace: &'w Text,
    kinds: &'w HashMap<Kind, Members>,
) -> impl Iterator<Item = Alike<'w>> {
    let own = kinds.iter().filter(|(kind, _)| !kind.host_network);
    own.map(move |(kind, members)| Alike {
        looks: Looks { namespace, labels: &kind.labels, ports: &kind.ports },
        addresses: &members.addresses,
    })
}
