//! What the thread knows, and what it does about it.

mod answers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_cluster::{PolicyEvent, PolicyKind, Question, policy_name};
use causeway_enforce::{Change, Enforcer, Transaction};
use causeway_kernel::OpError;
use causeway_kernel::log::Logged;
use causeway_kernel::nft::Nft;
use causeway_model::nft::NftFamily;
use causeway_plan::{NftOp, TableId};
use causeway_policy::read::Object;
use causeway_policy::{PodName, PolicyName, Text};
use causeway_types::{NodeName, names};

use super::drops::Drops;
use super::{Ask, Confirm, DropReport, Endpoints};
use crate::metrics::Metrics;

/// How long to wait after a refusal of the kernel, at first and at most.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// Looking at the whole table is put off for so long, so that many changes cost one look.
const LOOK_AFTER: Duration = Duration::from_millis(50);
/// How long after a pod has come others are told of it: its plugin, which waits for nothing more, is at work, and
/// other pods may come that they can be told of with it.
const SETTLE_AFTER: Duration = Duration::from_millis(3);
/// How long after a pod with policies has come connections are judged anew: its plugin is done by then, and its
/// containers have not been started.
const FORGET_AFTER: Duration = Duration::from_millis(100);
/// How long what nothing leads to any more stays in the table: nobody waits for it to go, and what several changes
/// leave goes by one transaction.
const TIDY_AFTER: Duration = Duration::from_millis(100);
/// While there are changes all the time, at most.
const TIDY_MOST: Duration = Duration::from_secs(1);
/// While a list is in progress what there is of it is taken in at least so often.
const LISTING_LOOK: Duration = Duration::from_millis(500);
/// Steps of a transaction that is tried in parts, and elements of one of them.
const PART: usize = 64;
const PART_ELEMENTS: usize = 512;

/// A list in progress, and what it had so far.
type Listing = HashSet<(Text, Text)>;

pub(super) struct State {
    enforcer: Enforcer,
    nft: Nft,
    me: String,
    listings: BTreeMap<PolicyKind, Listing>,
    listed: BTreeSet<PolicyKind>,
    /// `metadata.uid` of this node's pods.
    uids: HashMap<PodName, String>,
    /// `metadata.resourceVersion` of policies.
    versions: BTreeMap<String, String>,
    endpoints: Endpoints,
    /// The pods that are attached here were told of.
    told: bool,
    changes: Vec<Change>,
    waiting: Vec<Confirm>,
    asked: Vec<Ask>,
    /// Everything was known once, and the kernel was told.
    begun: bool,
    /// The table is to be looked at, at this time.
    look_at: Option<Instant>,
    retry: Duration,
    in_parts: bool,
    refused: Option<String>,
    revision: u64,
    changed: Option<SystemTime>,
    repairs: u64,
    port: Option<u32>,
    /// There is a table in the kernel, as far as is known.
    table: bool,
    metrics: Arc<Metrics>,
    drops: Drops,
    /// The kernel's table was looked at.
    looked: bool,
    /// Pods that were asked for and that the watch has not told of.
    borrowed: BTreeSet<PodName>,
    questions: Vec<Question>,
    /// Namespaces with policies, as they were last told of.
    namespaces: Option<Vec<String>>,
    /// There are other policies since.
    other_policies: bool,
    /// When pods that have come are let in by others.
    settle_at: Option<Instant>,
    /// When connections are judged anew for them.
    forget_at: Option<Instant>,
    /// When what nothing leads to any more is taken away.
    tidy_at: Option<Instant>,
    /// By when it is at the latest.
    tidy_by: Option<Instant>,
}

fn table_id() -> TableId {
    TableId { family: NftFamily::Inet, name: names::NFT_POLICY.to_owned() }
}

impl State {
    pub(super) fn new(me: &NodeName, nft: Nft, metrics: Arc<Metrics>) -> Self {
        Self {
            enforcer: Enforcer::new(me.as_str()),
            port: nft.port().ok(),
            nft,
            me: me.to_string(),
            listings: BTreeMap::new(),
            listed: BTreeSet::new(),
            uids: HashMap::new(),
            versions: BTreeMap::new(),
            endpoints: Endpoints::new(),
            told: false,
            changes: Vec::new(),
            waiting: Vec::new(),
            asked: Vec::new(),
            begun: false,
            look_at: None,
            retry: RETRY,
            in_parts: false,
            refused: None,
            revision: 0,
            changed: None,
            repairs: 0,
            table: true,
            metrics,
            drops: Drops::default(),
            looked: false,
            borrowed: BTreeSet::new(),
            questions: Vec::new(),
            namespaces: None,
            other_policies: true,
            settle_at: None,
            forget_at: None,
            tidy_at: None,
            tidy_by: None,
        }
    }

    // --- what it is told ---------------------------------------------------------------------------

    pub(super) fn event(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::Listing(kind) => {
                self.listings.insert(kind, Listing::new());
            }
            PolicyEvent::Listed(kind) => {
                if let Some(listing) = self.listings.remove(&kind) {
                    for known in self.known(kind) {
                        if !listing.contains(&known) {
                            self.gone(kind, known.0, known.1);
                        }
                    }
                }
                self.listed.insert(kind);
            }
            PolicyEvent::Gone(kind, namespace, name) => {
                let (namespace, name) = (Text::from(namespace), Text::from(name));
                if let Some(listing) = self.listings.get_mut(&kind) {
                    listing.remove(&(namespace.clone(), name.clone()));
                }
                self.gone(kind, namespace, name);
            }
            PolicyEvent::Put(object, uid) => {
                if let Object::Pod(pod) = &object {
                    self.borrowed.remove(&pod.name);
                }
                self.put(object, uid);
            }
            PolicyEvent::Asked(object, uid) => self.asked_for(object, uid),
        }
    }

    fn put(&mut self, object: Object, uid: Option<String>) {
        if let Some(listing) = self.listings.get_mut(&PolicyKind::of(&object)) {
            let none = || Text::from("");
            listing.insert(match &object {
                Object::Namespace(name, _) | Object::Node(name, _) => (none(), name.clone()),
                Object::Pod(pod) => (pod.name.namespace.clone(), pod.name.name.clone()),
                Object::Policy(policy) => match &policy.name {
                    PolicyName::Network { namespace, name } => (namespace.clone(), name.clone()),
                    PolicyName::Cluster(name) => (none(), name.clone()),
                },
            });
        }
        self.changes.push(match object {
            Object::Namespace(name, labels) => Change::Namespace(name, Some(labels)),
            Object::Node(name, node) => Change::Node(name, Some(node)),
            Object::Policy(policy) => {
                self.versions.insert(policy.name.to_string(), uid.unwrap_or_default());
                Change::Policy(policy.name.clone(), Some(policy))
            }
            Object::Pod(pod) => {
                match uid.filter(|_| pod.node.as_deref() == Some(&self.me)) {
                    Some(uid) => self.uids.insert(pod.name.clone(), uid),
                    None => self.uids.remove(&pod.name),
                };
                Change::Pod(pod.name.clone(), Some(pod))
            }
        });
    }

    fn gone(&mut self, kind: PolicyKind, namespace: Text, name: Text) {
        self.changes.push(match kind {
            PolicyKind::Network | PolicyKind::Cluster => {
                let name = policy_name(&namespace, &name);
                self.versions.remove(&name.to_string());
                Change::Policy(name, None)
            }
            PolicyKind::Namespaces => Change::Namespace(name, None),
            PolicyKind::Nodes => Change::Node(name, None),
            PolicyKind::Pods => {
                let pod = PodName::new(namespace, name);
                self.uids.remove(&pod);
                self.borrowed.remove(&pod);
                Change::Pod(pod, None)
            }
        });
    }

    /// What is known of a kind, with what has not been taken in yet.
    fn known(&mut self, kind: PolicyKind) -> Vec<(Text, Text)> {
        self.take_in();
        let world = self.enforcer.world();
        let bare = |name: &Text| (Text::from(""), name.clone());
        match kind {
            PolicyKind::Namespaces => world.namespaces().map(|(name, _)| bare(name)).collect(),
            PolicyKind::Nodes => world.nodes().map(|(name, _)| bare(name)).collect(),
            PolicyKind::Pods => {
                world.pods().map(|p| (p.name.namespace.clone(), p.name.name.clone())).collect()
            }
            PolicyKind::Network | PolicyKind::Cluster => {
                let pair = |name: &PolicyName| match (name, kind) {
                    (PolicyName::Network { namespace, name }, PolicyKind::Network) => {
                        Some((namespace.clone(), name.clone()))
                    }
                    (PolicyName::Cluster(name), PolicyKind::Cluster) => Some(bare(name)),
                    _ => None,
                };
                world.policies().filter_map(|policy| pair(&policy.name)).collect()
            }
        }
    }

    pub(super) fn set_endpoints(&mut self, all: Endpoints) {
        self.told = true;
        let gone = self.endpoints.keys().filter(|name| !all.contains_key(*name)).cloned();
        for name in gone.collect::<Vec<_>>() {
            self.set_endpoint(name, None);
        }
        for (name, addresses) in all {
            self.set_endpoint(name, Some(addresses));
        }
    }

    pub(super) fn set_endpoint(&mut self, name: PodName, addresses: Option<Vec<IpAddr>>) {
        if self.endpoints.get(&name) == addresses.as_ref() {
            return;
        }
        match &addresses {
            Some(addresses) => self.endpoints.insert(name.clone(), addresses.clone()),
            None => self.endpoints.remove(&name),
        };
        if self.begun {
            self.changes.push(Change::Endpoint(name.clone(), addresses.clone()));
        }
        // The watch never told of it: it may have ended before, and nobody tells of its end.
        if addresses.is_none() && self.borrowed.remove(&name) {
            self.uids.remove(&name);
            self.changes.push(Change::Pod(name, None));
        }
    }

    pub(super) fn confirm(&mut self, confirm: Confirm) {
        let mut addresses = self.endpoints.get(&confirm.pod).cloned().unwrap_or_default();
        let more = confirm.addresses.iter().filter(|ip| !addresses.contains(ip)).copied();
        let more: Vec<IpAddr> = more.collect();
        addresses.extend(more);
        self.set_endpoint(confirm.pod.clone(), Some(addresses));
        self.waiting.push(confirm);
    }

    /// Others changed the table by these sockets, or news of it were lost.
    pub(super) fn touched(&mut self, by: &BTreeSet<u32>) {
        if by.iter().any(|port| Some(*port) != self.port) {
            self.doubt();
        }
    }

    /// The table is to be looked at.
    pub(super) fn doubt(&mut self) {
        self.look_at.get_or_insert_with(|| Instant::now() + LOOK_AFTER);
    }

    /// The kernel dropped these packets.
    pub(super) fn dropped(&mut self, packets: &[Logged]) {
        // What they are judged by here is what the table was made of.
        self.take_in();
        let now = SystemTime::now();
        for packet in packets {
            let count = self.drops.take_in(packet, &self.enforcer, self.revision, now);
            if let Some(count) = count {
                self.metrics.dropped(count.reason, &count.policy, &count.rule);
            }
        }
    }

    // --- what it tells -----------------------------------------------------------------------------

    /// Pods, namespaces and nodes have to be known.
    pub(super) fn asks_for_ends(&self) -> bool {
        self.enforcer.world().policies().next().is_some()
    }

    /// What was dropped so far.
    pub(super) fn drops(&mut self) -> DropReport {
        let (nft, table) = (&mut self.nft, self.table);
        self.drops.report(|chain| match table {
            true => nft.counted(&table_id(), chain).ok(),
            false => Some(0),
        })
    }

    fn missing(&self) -> Option<&'static str> {
        let of = |kind| match kind {
            PolicyKind::Network => "NetworkPolicies",
            PolicyKind::Cluster => "ClusterNetworkPolicies",
            PolicyKind::Namespaces => "namespaces",
            PolicyKind::Pods => "the pods of all nodes",
            PolicyKind::Nodes => "nodes",
        };
        if !self.told {
            return Some("the pods that are attached here");
        }
        let mut all = vec![PolicyKind::Network, PolicyKind::Cluster];
        if self.asks_for_ends() {
            all.extend(PolicyKind::ENDS);
        }
        all.into_iter().find(|kind| !self.listed.contains(kind)).map(of)
    }

    /// Namespaces whose pods have to wait for policies, if that is another answer than the last. There may be very
    /// many policies: they are looked through when one of them has changed.
    pub(super) fn new_namespaces(&mut self) -> Option<Vec<String>> {
        // Which namespaces have policies is known before their pods are.
        let listed = |kind| self.listed.contains(&kind);
        let known = listed(PolicyKind::Network) && listed(PolicyKind::Cluster);
        if !known || !std::mem::take(&mut self.other_policies) {
            return None;
        }
        let now = self.enforcer.namespaces();
        let differs = self.namespaces.as_ref() != Some(&now);
        self.namespaces = Some(now);
        self.namespaces.clone().filter(|_| differs)
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.refused.as_ref().map(|why| {
            format!(
                "policies: {why}; what was enforced before stays in force, and it is tried again"
            )
        })
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let known = self.missing().is_none();
        let answers = self.waiting.iter().map(|confirm| match confirm.ask_at {
            Some(ask_at) if known => ask_at.min(confirm.until),
            _ => confirm.until,
        });
        let able = self.begun && known;
        let due = self.settle_at.into_iter().chain(self.forget_at).chain(self.tidy_at);
        // Nobody rings for the last objects of a list that has broken off.
        let listing = !self.listings.is_empty();
        let due = due.chain(listing.then(|| Instant::now() + LISTING_LOOK));
        answers.chain(self.look_at.filter(|_| able)).chain(due).min()
    }

    // --- what it does ------------------------------------------------------------------------------

    fn take_in(&mut self) {
        let changes = self.take_changes();
        if !changes.is_empty() {
            self.enforcer.change_first(changes);
        }
    }

    fn take_changes(&mut self) -> Vec<Change> {
        let changes = std::mem::take(&mut self.changes);
        self.other_policies |= changes.iter().any(|one| matches!(one, Change::Policy(..)));
        changes
    }

    pub(super) fn work(&mut self, now: Instant) {
        self.take_in();
        if !self.asked.is_empty() {
            // What is told of is all of it.
            self.enforcer.settle();
        }
        if !self.begun && self.missing().is_none() {
            self.begun = true;
            let all = self.endpoints.clone().into_iter();
            self.enforcer
                .change(all.map(|(name, addresses)| Change::Endpoint(name, Some(addresses))));
            self.look_at = Some(now);
        }
        // The first policy of a cluster asks for pods that are not known yet.
        if self.begun && self.missing().is_none() {
            self.enforce(now);
        }
        self.answer(now);
        // A pod that comes is isolated, and whoever waits for that has heard of it: it is let in in a moment.
        if self.enforcer.is_settled() {
            self.settle_at = None;
        } else if now >= *self.settle_at.get_or_insert(now + SETTLE_AFTER) {
            self.settle_at = None;
            self.enforcer.settle();
            if self.begun && self.missing().is_none() {
                self.enforce(now);
            }
        }
        let able = self.begun && self.missing().is_none();
        if !able || !self.enforcer.owes() {
            self.forget_at = None;
        } else if now >= *self.forget_at.get_or_insert(now + FORGET_AFTER) {
            self.forget_at = None;
            self.enforcer.forget_all();
            self.enforce(now);
        }
        // One that refused something is looked at first.
        if self.enforcer.is_tidy() || self.refused.is_some() {
            (self.tidy_at, self.tidy_by) = (None, None);
        } else if now >= *self.tidy_at.get_or_insert(now + TIDY_AFTER) {
            (self.tidy_at, self.tidy_by) = (None, None);
            // Somebody else has changed something. What is in force is so all the same, and a look tells.
            if self.tidy().is_err() {
                self.doubt();
            }
        }
    }

    /// Takes away what nothing leads to.
    fn tidy(&mut self) -> Result<(), OpError> {
        let nft = &mut self.nft;
        self.enforcer.tidy(|Transaction { ops, .. }| nft.apply(&table_id(), &ops))
    }

    fn enforce(&mut self, now: Instant) {
        let wanted = self.asks_for_ends();
        if !wanted {
            // Nothing is kept where there is nothing to enforce: connections need not be tracked for it.
            let Ok(()) = self.enforcer.take(|_| Ok::<(), Infallible>(()));
            let Ok(()) = self.enforcer.tidy(|_| Ok::<(), Infallible>(()));
            if self.table || self.look_at.is_some_and(|at| at <= now) {
                self.remove(now);
            }
            return;
        }
        if !self.table {
            self.look_at = Some(now);
        }
        if self.look_at.is_some_and(|at| at <= now) {
            return self.look(now);
        }
        if self.refused.is_some() || self.look_at.is_some() && !self.table {
            // Only a look tells what is to be done.
            return;
        }
        self.commit(now, |enforcer, each| enforcer.take(each));
    }

    /// Looks at the kernel's table and puts right what is wrong with it.
    fn look(&mut self, now: Instant) {
        let first = self.revision == 0;
        // What it has left is nobody else's change. If it is not there any more, that is looked at now; and after a refusal
        // something may lead to it still.
        if self.refused.is_none() {
            let _ = self.tidy();
        }
        let found = match self.nft.read_table(NftFamily::Inet, names::NFT_POLICY) {
            Ok(found) => found,
            Err(error) => return self.refuse(format!("the table cannot be read: {error}"), now),
        };
        self.look_at = None;
        if !std::mem::replace(&mut self.looked, true) && found.is_some() {
            self.drops.begin(|chain| self.nft.counted(&table_id(), chain).ok());
        }
        let expected = first || self.enforcer.has_changes() || self.refused.is_some();
        self.table = true;
        let some = self.commit(now, |enforcer, each| enforcer.repair(found, each));
        if some && !expected {
            self.repairs += 1;
            tracing::warn!("the table of policies was changed by somebody else: it is put right");
        }
    }

    /// Carries out what is handed out. Answers whether there was anything.
    fn commit(
        &mut self,
        now: Instant,
        hand_out: impl FnOnce(
            &mut Enforcer,
            &mut dyn FnMut(Transaction) -> Result<(), OpError>,
        ) -> Result<(), OpError>,
    ) -> bool {
        let mut some = false;
        let (nft, in_parts) = (&mut self.nft, self.in_parts);
        let outcome = hand_out(&mut self.enforcer, &mut |Transaction { ops, prepares }| {
            some = true;
            let parts = if prepares && in_parts { in_small_parts(ops) } else { vec![ops] };
            parts.iter().try_for_each(|part| nft.apply(&table_id(), part))
        });
        if let Err(error) = outcome {
            self.refuse(format!("cannot {}: {}", error.attempted, error.message), now);
            return some;
        }
        if some {
            self.revision += 1;
            self.changed = Some(SystemTime::now());
            if !self.enforcer.is_tidy() {
                // Packets are on their way through what this one has left, too.
                let by = *self.tidy_by.get_or_insert(now + TIDY_MOST);
                self.tidy_at = Some(by.min(now + TIDY_AFTER));
            }
        }
        self.refused = None;
        self.in_parts = false;
        self.retry = RETRY;
        some
    }

    fn remove(&mut self, now: Instant) {
        match self.nft.read_table(NftFamily::Inet, names::NFT_POLICY) {
            Ok(None) => {}
            Ok(Some(_)) => {
                if let Err(error) = self.nft.apply(&table_id(), &[NftOp::DelTable]) {
                    let why = format!("the table cannot be removed: {}", error.message);
                    return self.refuse(why, now);
                }
                self.revision += 1;
                self.changed = Some(SystemTime::now());
            }
            Err(error) => return self.refuse(format!("the table cannot be read: {error}"), now),
        }
        self.table = false;
        self.look_at = None;
        self.refused = None;
        self.retry = RETRY;
    }

    /// Notes what the kernel refused; the table is looked at before it is tried again.
    fn refuse(&mut self, why: String, now: Instant) {
        if self.refused.as_ref() != Some(&why) {
            tracing::warn!("policies: {why}");
        }
        self.refused = Some(why);
        self.in_parts = true;
        self.look_at = Some(now + self.retry);
        self.retry = (self.retry * 2).min(RETRY_MOST);
    }
}

/// A transaction that the kernel refused may be too large for it.
fn in_small_parts(ops: Vec<NftOp>) -> Vec<Vec<NftOp>> {
    let small = ops.into_iter().flat_map(|op| match op {
        NftOp::AddElements { set, of, elements } => {
            let all: Vec<_> = elements.into_iter().collect();
            let some = all.chunks(PART_ELEMENTS).map(|some| NftOp::AddElements {
                set: set.clone(),
                of: of.clone(),
                elements: some.iter().cloned().collect(),
            });
            some.collect()
        }
        op => vec![op],
    });
    let small: Vec<NftOp> = small.collect();
    small.chunks(PART).map(<[NftOp]>::to_vec).collect()
}
