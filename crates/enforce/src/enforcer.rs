//! The state of a node's enforcement.

mod cause;
mod come;
mod pods;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use causeway_model::nft::{Element, KeyPart, NftTable};
use causeway_policy::compile::Program;
use causeway_policy::{
    Direction, Labels, NamedPort, Node, Pod, PodName, Pods, Policy, PolicyName, PortSet, Text,
    World,
};
use causeway_types::Family;

use crate::draft::{Draft, Transaction};
use crate::part::{self, Lists, Usual};
pub use cause::Cause;

/// From which sizes on things are kept in another form. Semantics do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Selectors of more pods than this are groups: their members are kept once, not in each program.
    pub many: usize,
    /// Of addresses that a program lists, those with one set of ports are in a set of their own if they are more
    /// than this.
    pub few: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { many: 512, few: 8 }
    }
}

/// More addresses that pods gave up are not kept: pods with IPv6 never get one again.
const MOST_GIVEN_UP: usize = 1024;

/// Something changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A namespace, with its labels; `None`: it is gone.
    Namespace(Text, Option<Labels>),
    /// A pod of any node as the API has it.
    Pod(PodName, Option<Box<Pod>>),
    /// A node.
    Node(Text, Option<Node>),
    /// A policy.
    Policy(PolicyName, Option<Box<Policy>>),
    /// A pod is attached here and has these addresses, or is not any more.
    Endpoint(PodName, Option<Vec<IpAddr>>),
}

/// What the policies of a pod come to in one direction: the same for pods with equal keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    direction: Direction,
    policies: Vec<PolicyName>,
    /// The pod's own named ports, where rules ask for them.
    ports: Vec<NamedPort>,
}

#[derive(Debug)]
struct Kept {
    /// By which its chains are known.
    name: String,
    program: Program,
    /// The sets of ports that have sets of addresses.
    usual: Usual,
    /// The sets that it asks, by family.
    lists: [Lists; 2],
    /// Listed addresses with other sets of ports, and how many they may become until what is usual is asked again.
    others: usize,
    most_others: usize,
    /// One is listed that has no place in its sets.
    lacks: bool,
    users: BTreeSet<PodName>,
    /// The families of their addresses, so far: it has chains for these alone.
    families: Vec<Family>,
}

/// A set that a program has left: as it is in the kernel.
#[derive(Debug)]
struct Left {
    /// The program that asks it in the kernel.
    of: Key,
    /// The ports of the addresses that it lists.
    ports: Option<PortSet>,
    /// Those addresses, ascending; `None`: they are not at hand.
    addresses: Option<Vec<IpAddr>>,
}

/// What is done about a pod in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    /// No policy says anything.
    Open,
    /// A program.
    Program(Key),
    /// Nothing is known of the pod, and policies may apply to it: nothing passes.
    Shut,
}

impl Done {
    fn program(&self) -> Option<&Key> {
        match self {
            Self::Program(key) => Some(key),
            Self::Open | Self::Shut => None,
        }
    }
}

/// The place of a direction in [`Endpoint::done`]: as in [`Direction::ALL`].
fn place(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

/// Where packets are led.
#[derive(Clone, Copy, Debug)]
enum To<'k> {
    /// To a program.
    Program(&'k Key),
    /// To where nothing passes.
    Nothing,
}

/// What a pod attached here is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realised {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The policies that apply, of each direction that they say something of.
    pub policies: BTreeMap<Direction, Vec<PolicyName>>,
    /// Nothing is known of it, and policies may apply to it: nothing passes.
    pub shut: bool,
}

#[derive(Debug)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    done: [Done; 2],
}

/// The state of a node's enforcement. See [`Enforcer::change`] and [`Enforcer::take`].
#[derive(Debug)]
pub struct Enforcer {
    me: Text,
    sizes: Sizes,
    world: World,
    /// Pods of this node as the API has, or last had, them.
    local: BTreeMap<PodName, Pod>,
    endpoints: BTreeMap<PodName, Endpoint>,
    programs: BTreeMap<Key, Kept>,
    /// Of them those that their last pod has left.
    idle: BTreeSet<Key>,
    /// How many programs ask a group.
    groups: BTreeMap<Pods, usize>,
    /// How often programs lead to a set of ports.
    ports: BTreeMap<(Direction, PortSet), usize>,
    /// How often they do by an element.
    choices: BTreeMap<(Direction, PortSet), usize>,
    /// The sets that programs have left since changes were last taken.
    left: BTreeMap<String, Left>,
    /// Under which programs pods were when changes were last taken, of those that are under others since.
    before: BTreeMap<(PodName, Direction), Option<Key>>,
    /// Programs that have taken sets with more than they list since then, and from which; from themselves, if a peer
    /// of theirs is in two sets for a moment. Of that more it is true for that moment what was true before, so their
    /// pods were all under that one.
    lent: BTreeMap<Key, Key>,
    /// Addresses of which programs and groups have not been told yet.
    later: BTreeSet<IpAddr>,
    /// Addresses that attached pods had since all connections were judged anew.
    given_up: BTreeSet<IpAddr>,
    /// Pods with policies have come since then.
    owes: bool,
    draft: Draft,
}

/// What has to be looked at again.
#[derive(Debug, Default)]
struct Touched {
    addresses: BTreeSet<IpAddr>,
    endpoints: BTreeSet<PodName>,
    policies: BTreeSet<PolicyName>,
}

/// Where the states of a table begin that nobody knows the last one of.
fn first_state() -> u32 {
    RandomState::new().hash_one(()) as u32
}

impl Enforcer {
    /// Of a node, which knows of nothing yet.
    #[must_use]
    pub fn new(me: impl Into<Text>) -> Self {
        Self::with_sizes(me, Sizes::default())
    }

    /// As [`Enforcer::new`], with other sizes.
    #[must_use]
    pub fn with_sizes(me: impl Into<Text>, sizes: Sizes) -> Self {
        Self {
            me: me.into(),
            sizes,
            world: World::default(),
            local: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            programs: BTreeMap::new(),
            idle: BTreeSet::new(),
            groups: BTreeMap::new(),
            ports: BTreeMap::new(),
            choices: BTreeMap::new(),
            left: BTreeMap::new(),
            before: BTreeMap::new(),
            lent: BTreeMap::new(),
            later: BTreeSet::new(),
            given_up: BTreeSet::new(),
            owes: false,
            draft: Draft::new(first_state()),
        }
    }

    /// Everything that policies are asked about.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The table as it is to be.
    #[must_use]
    pub fn table(&self) -> &NftTable {
        self.draft.table()
    }

    /// What a pod that is attached here is under.
    #[must_use]
    pub fn realised(&self, pod: &PodName) -> Option<Realised> {
        let endpoint = self.endpoints.get(pod)?;
        let of = |done: &Done| match done {
            Done::Program(key) => Some((key.direction, key.policies.clone())),
            Done::Open | Done::Shut => None,
        };
        Some(Realised {
            addresses: endpoint.addresses.clone(),
            policies: endpoint.done.iter().filter_map(of).collect(),
            shut: endpoint.done.contains(&Done::Shut),
        })
    }

    /// The pods that are attached here.
    pub fn endpoints(&self) -> impl Iterator<Item = &PodName> {
        self.endpoints.keys()
    }

    /// Namespaces whose pods policies may apply to; `*`: all, also those that are not known yet.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let applies = |policy: &Policy| policy.subject.is_some();
        match self.world.cluster_policies().any(applies) {
            true => vec!["*".to_owned()],
            false => self.world.policed().map(ToString::to_string).collect(),
        }
    }

    /// Takes in what changed. What follows from it for the kernel is what [`Enforcer::take`] gives.
    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut touched = Touched::default();
        let mut all_more = true;
        for change in changes {
            all_more &= self.allows_more(&change);
            self.take_in(change, &mut touched);
        }
        if all_more && self.world.cluster_policies().next().is_none() {
            return self.bring_about(touched);
        }
        self.follow(touched);
    }

    /// Does what follows from changes of any kind.
    fn follow(&mut self, touched: Touched) {
        self.bring_about(touched);
        if self.draft.has_changes() {
            self.draft.judge_anew();
        }
    }

    fn bring_about(&mut self, mut touched: Touched) {
        touched.addresses.append(&mut self.later);
        self.recompile(&touched.policies);
        self.relist(&touched);
        self.regroup(&touched.addresses);
        self.apply(&touched.endpoints);
        self.sweep();
    }

    /// Whether there is anything for [`Enforcer::take`].
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.draft.has_changes()
    }

    /// Hands out what has to be done to the kernel's table since the last call, transaction by transaction. Behind them
    /// all is in force, and the table may have something to which nothing leads any more: see [`Enforcer::tidy`].
    ///
    /// # Errors
    /// Those of `each`, after which it is not called again. Not done, or not known to be, the table has to be read
    /// and [`Enforcer::repair`] asked.
    pub fn take<E>(&mut self, each: impl FnMut(Transaction) -> Result<(), E>) -> Result<(), E> {
        self.hand_out();
        self.draft.take(each)
    }

    /// Whether [`Enforcer::take`] has left nothing in the kernel's table to which nothing leads.
    #[must_use]
    pub fn is_tidy(&self) -> bool {
        self.draft.is_tidy()
    }

    /// Hands out what takes that away. It changes nothing for any packet.
    ///
    /// # Errors
    /// As [`Enforcer::take`].
    pub fn tidy<E>(&mut self, each: impl FnOnce(Transaction) -> Result<(), E>) -> Result<(), E> {
        self.draft.tidy(each)
    }

    fn hand_out(&mut self) {
        self.left.clear();
        self.before.clear();
        self.lent.clear();
        if self.draft.is_stale() {
            self.given_up.clear();
            self.owes = false;
        }
    }

    /// Hands out what has to be done to the kernel's table as it was found; `None`: there is none.
    ///
    /// # Errors
    /// As [`Enforcer::take`].
    pub fn repair<E>(
        &mut self,
        found: Option<NftTable>,
        each: impl FnMut(Transaction) -> Result<(), E>,
    ) -> Result<(), E> {
        self.hand_out();
        self.draft.repair(found, each)
    }

    fn take_in(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Namespace(name, labels) => {
                if self.world.namespace(&name) == labels.as_ref() {
                    return;
                }
                match labels {
                    Some(labels) => self.world.set_namespace(name.clone(), labels),
                    None => self.world.remove_namespace(&name),
                }
                for pod in self.world.pods_in(&name) {
                    touched.addresses.extend(&pod.addresses);
                }
                touched.endpoints.extend(self.endpoints_in(&name));
            }
            Change::Pod(name, pod) => self.set_pod(&name, pod.map(|pod| *pod), touched),
            Change::Node(name, node) => {
                if self.world.node(&name) == node.as_ref() {
                    return;
                }
                let addresses = |world: &World| {
                    world.node(&name).map(|node| node.addresses.clone()).unwrap_or_default()
                };
                touched.addresses.extend(addresses(&self.world));
                match node {
                    Some(node) => self.world.set_node(name.clone(), node),
                    None => self.world.remove_node(&name),
                }
                touched.addresses.extend(addresses(&self.world));
            }
            Change::Policy(name, policy) => {
                if self.world.policy(&name) == policy.as_deref() {
                    return;
                }
                match &name {
                    PolicyName::Network { namespace, .. } => {
                        touched.endpoints.extend(self.endpoints_in(namespace));
                    }
                    PolicyName::Cluster(_) => {
                        touched.endpoints.extend(self.endpoints.keys().cloned());
                    }
                }
                match policy {
                    Some(policy) => self.world.set_policy(*policy),
                    None => self.world.remove_policy(&name),
                }
                touched.policies.insert(name);
            }
            Change::Endpoint(name, addresses) => self.set_endpoint(&name, addresses, touched),
        }
    }

    fn endpoints_in(&self, namespace: &Text) -> Vec<PodName> {
        let first = PodName::new(namespace.clone(), "");
        let all = self.endpoints.range(first..).map(|(name, _)| name);
        all.take_while(|name| name.namespace == *namespace).cloned().collect()
    }

    fn set_pod(&mut self, name: &PodName, pod: Option<Pod>, touched: &mut Touched) {
        let attached = self.endpoints.contains_key(name);
        let known = || self.world.pod(name).is_some_and(|pod| self.is_here(pod));
        if pod.is_some() && pod.as_ref() == self.local.get(name) && known() {
            // It is told of again, as when a list is made anew.
            return;
        }
        match &pod {
            Some(pod) if self.is_here(pod) => {
                self.local.insert(name.clone(), pod.clone());
            }
            // One of its name on another node is not this one.
            Some(_) if attached => {}
            // Its policies stay on it as long as it is attached.
            None if attached => {}
            _ => drop(self.local.remove(name)),
        }
        if attached {
            touched.endpoints.insert(name.clone());
        }
        self.put_pod(name, pod, touched);
    }

    /// Puts a pod into the world with the addresses that it has: what is attached here is better known here than in
    /// the API, which comes to know of it later, and of its end too.
    fn put_pod(&mut self, name: &PodName, pod: Option<Pod>, touched: &mut Touched) {
        let old = self.world.pod(name);
        let Some(mut pod) = pod else {
            touched.addresses.extend(old.iter().flat_map(|old| &old.addresses));
            return self.world.remove_pod(name);
        };
        if !pod.ended && !pod.host_network && self.is_here(&pod) {
            match self.endpoints.get(name) {
                Some(_) => {
                    pod.addresses = self.own(name);
                    pod.addresses.retain(|ip| !is_link_local(*ip));
                }
                None => pod.addresses.retain(|ip| self.world.holder(*ip).is_none()),
            }
        }
        if old == Some(&pod) {
            return;
        }
        touched.addresses.extend(old.iter().flat_map(|old| &old.addresses));
        touched.addresses.extend(&pod.addresses);
        self.world.set_pod(pod);
    }

    /// Whether a pod is this node's, or no node's yet.
    fn is_here(&self, pod: &Pod) -> bool {
        pod.node.is_none() || pod.node.as_ref() == Some(&self.me)
    }

    fn set_endpoint(
        &mut self,
        name: &PodName,
        addresses: Option<Vec<IpAddr>>,
        touched: &mut Touched,
    ) {
        let old = self.endpoints.get(name).map(|e| e.addresses.clone()).unwrap_or_default();
        let new = addresses.clone().unwrap_or_default();
        if addresses.is_some() == self.endpoints.contains_key(name) && old == new {
            return;
        }
        for ip in &old {
            if self.world.holder(*ip) == Some(name) {
                self.set_owner(*ip, None, touched);
            }
        }
        match addresses {
            Some(addresses) => {
                // What it was under at its former addresses is taken back, and done anew.
                self.withdraw(name);
                let done = [Done::Open, Done::Open];
                self.endpoints.insert(name.clone(), Endpoint { addresses, done });
                // At these addresses it was under nothing.
                for direction in Direction::ALL {
                    self.before.insert((name.clone(), direction), None);
                }
            }
            None => {
                self.withdraw(name);
                self.endpoints.remove(name);
            }
        }
        self.given_up.extend(old.iter().filter(|ip| !new.contains(ip)));
        if self.given_up.len() > MOST_GIVEN_UP {
            self.draft.judge_anew();
        }
        let mut former = Vec::new();
        // Another one may have had it before, and its end is heard of later, or never.
        for ip in old.iter().filter(|ip| !new.contains(ip)) {
            let heir = self.endpoints.iter().find(|(_, e)| e.addresses.contains(ip));
            if let Some(heir) = heir.map(|(name, _)| name.clone()) {
                self.withdraw(&heir);
                self.set_owner(*ip, Some(heir.clone()), touched);
                touched.endpoints.insert(heir.clone());
                former.push(heir);
            }
        }
        for ip in &new {
            let before = self.set_owner(*ip, Some(name.clone()), touched);
            if let Some(before) = before.filter(|before| before != name) {
                self.clear(*ip);
                former.push(before);
            }
        }
        touched.endpoints.insert(name.clone());
        // Whose an address is said to be may be others' now.
        let said: Vec<PodName> = self
            .local
            .values()
            .filter(|pod| pod.addresses.iter().any(|ip| old.contains(ip) || new.contains(ip)))
            .map(|pod| pod.name.clone())
            .chain([name.clone()])
            .chain(former)
            .collect();
        for name in said {
            let here = self.world.pod(&name).is_some_and(|pod| self.is_here(pod));
            if let Some(pod) = self.local.get(&name).filter(|_| here).cloned() {
                self.put_pod(&name, Some(pod), touched);
            }
        }
        let here = self.world.pod(name).is_some_and(|pod| self.is_here(pod));
        if !self.endpoints.contains_key(name) && !here {
            self.local.remove(name);
        }
    }

    /// Whoever is attached here with an address has it, whatever objects of others say. Answers who had it before.
    fn set_owner(
        &mut self,
        ip: IpAddr,
        owner: Option<PodName>,
        touched: &mut Touched,
    ) -> Option<PodName> {
        touched.addresses.insert(ip);
        self.world.set_holder(ip, owner)
    }

    /// Puts addresses into groups and takes them out.
    fn regroup(&mut self, addresses: &BTreeSet<IpAddr>) {
        for pods in self.groups.keys() {
            for ip in addresses {
                let set = part::group(pods, Family::of(*ip));
                let element = self.selects_at(pods, *ip).then(Element::default);
                self.draft.put(&set, KeyPart::addr(*ip).into(), element);
            }
        }
    }
}

/// RFC 4291, 2.5.6.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
