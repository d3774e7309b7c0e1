//! Rounds of reconciling: look, decide, plan, write intent, apply, look again.
//!
//! Everything that a round does follows from its inputs and from what it sees; which event began
//! it does not matter. The kernel is behind [`Port`].

mod answers;
mod closing;
mod foreign;
mod guards;
mod inputs;
mod isolation;
mod live;
mod owning;
mod ready;
mod taken;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_cluster::Snapshot;
use causeway_desired::flannel::Annotations;
use causeway_desired::input::{ClusterView, Config, Inputs, NodeFacts};
use causeway_model::nft::NftFamily;
use causeway_model::{Desired, Key, Object, Observed, Owner};
use causeway_plan::{Op, Plan, plan};
use causeway_plugins::usage::Usage;
use causeway_types::state::{AttachmentRecord, NodeFile};
use causeway_types::{Cidr, NodeName};

use crate::facts;
use crate::marks;
use crate::metrics::Metrics;
use crate::options::Paths;
use crate::outputs::{LastView, ReadyFiles};
use crate::owned::Owned;
use crate::port::{Look, Port, Stale, replace, table_of};
use crate::records::Records;
use crate::report::ViewFrom;
use crate::retry::{Failure, Failures};
use crate::self_test::SelfTest;
use crate::status::Problem;
use foreign::Foreign;
use live::Live;
use taken::Taken;

/// More passes than any change of desired state needs: links, then what stands on them.
const MAX_PASSES: usize = 8;

/// How long the API may take to answer before the last good view is used.
pub(crate) const API_PATIENCE: Duration = Duration::from_secs(1);

/// How soon a round follows one that did as much as a round may.
const RESUME_AFTER: Duration = Duration::from_millis(100);

/// What a plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The record is taken in, and what it asks of the node is there.
    Done,
    /// Not now, for this reason; a later round may change that.
    NotYet(String),
    /// No round will change that.
    Never(String),
}

/// Everything the loop knows.
pub(crate) struct Core<P> {
    pub(crate) port: P,
    me: NodeName,
    config: Config,
    live: Live,
    foreign: Foreign,
    pub(crate) taken: Taken,
    boot_id: String,
    conf_dir: PathBuf,
    metrics: Arc<Metrics>,
    started: Instant,

    // Inputs.
    snapshot: Snapshot,
    /// The view of the snapshot as it was told, without the namespaces of policies.
    told_view: Arc<ClusterView>,
    /// Namespaces with policies; `None`: not known yet.
    policies: Option<Vec<String>>,
    /// Those of which an agent before this one knew. Where none did, all pods have to wait until it is known
    /// whose do.
    remembered: Vec<String>,
    disk_view: Option<Arc<ClusterView>>,
    /// The last good view has been looked for.
    disk_asked: bool,
    pub(crate) records: Records,
    facts: NodeFacts,
    asked: BTreeSet<std::net::IpAddr>,
    underlay: Option<Observed>,
    underlay_checked: bool,
    moved: bool,

    // What is, and what of it may be out of date.
    seen: Observed,
    stale: Stale,
    looked_at: Look,
    /// News were read of which no plan has been made.
    unplanned: bool,
    /// When to go on with what a round left.
    resume: Option<Instant>,

    // What should be.
    desired: Arc<Desired>,
    decided: bool,
    /// The node's own part of it can be said.
    known: bool,
    node_file: Option<NodeFile>,
    claims: Option<Vec<Cidr>>,
    /// What the node file on disk gave out beside the pod subnets before the records were last read:
    /// whoever has read that file, and gave an address out, may have come after.
    offered: Vec<Cidr>,
    flannel: Option<Annotations>,
    /// How many addresses are taken and free, and why that is not known.
    usage: Result<Vec<Usage>, String>,
    plugins: causeway_plugins::Paths,
    problems: Vec<Problem>,
    path_problems: Vec<String>,
    last_view_problem: Option<String>,

    // What came of it.
    owned: Owned,
    failures: Failures,
    trouble: Option<Failure>,
    /// What plugins and the next agent are told could not be written.
    unwritten: Option<Failure>,
    /// The last round came as far as to ask for the node's test of itself.
    may_test: bool,
    settled: BTreeSet<Key>,
    /// What was done in this round.
    done: BTreeSet<Key>,
    /// Neighbours of pods that were taken over are to be looked at again.
    look_again: bool,
    last_plan: Plan,
    ready_files: ReadyFiles,
    pub(crate) self_test: SelfTest,
    ready: bool,
    last_view: LastView,
    last_view_at: Option<Instant>,
}

impl<P: Port> Core<P> {
    /// Nothing known yet. Reads what a former agent left.
    pub(crate) fn new(
        port: P,
        me: NodeName,
        config: Config,
        paths: &Paths,
        boot_id: String,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut looked_at = Look { kinds: Stale::ALL, ..Look::default() };
        looked_at.tables.extend([marks::table(), guards::table()]);
        let ready_files = ReadyFiles::new(paths);
        let announced = ready_files.written().is_some();
        let last_view = LastView::new(paths.last_view.clone());
        let remembered = match ready_files.written() {
            Some(file) => Some(file.policy_namespaces.clone()),
            None => last_view.load().ok().flatten().map(|view| view.policy_namespaces),
        };
        let remembered = remembered.unwrap_or_else(|| vec!["*".to_owned()]);
        let self_test = if announced { SelfTest::passed() } else { SelfTest::default() };
        Self {
            port,
            me,
            config,
            live: Live::new(&paths.config),
            foreign: Foreign::default(),
            taken: Taken::load(&paths.taken_over),
            boot_id: boot_id.clone(),
            conf_dir: paths.conf_dir.clone(),
            metrics,
            started: Instant::now(),
            snapshot: Snapshot::default(),
            told_view: Arc::default(),
            policies: Some(Vec::new()),
            remembered,
            disk_view: None,
            disk_asked: false,
            records: Records::new(paths.attachments.clone(), boot_id),
            facts: NodeFacts::default(),
            asked: BTreeSet::new(),
            underlay: None,
            underlay_checked: false,
            moved: false,
            seen: Observed::default(),
            stale: Stale::ALL,
            looked_at,
            unplanned: false,
            resume: None,
            desired: Arc::default(),
            decided: false,
            known: false,
            node_file: None,
            claims: None,
            offered: Vec::new(),
            flannel: None,
            usage: Ok(Vec::new()),
            plugins: paths.of_plugins(),
            problems: Vec::new(),
            path_problems: Vec::new(),
            last_view_problem: None,
            owned: Owned::load(paths.owned.clone()),
            failures: Failures::default(),
            trouble: None,
            unwritten: None,
            may_test: false,
            settled: BTreeSet::new(),
            done: BTreeSet::new(),
            look_again: true,
            last_plan: Plan::default(),
            ready_files,
            self_test,
            ready: false,
            last_view,
            last_view_at: None,
        }
    }

    /// Notes that objects of these kinds may have changed.
    pub(crate) fn mark_stale(&mut self, stale: Stale) {
        self.stale.merge(stale);
    }

    /// Doubts everything: what is seen, the paths to peers, the records.
    pub(crate) fn audit(&mut self) {
        self.stale = Stale::ALL;
        self.underlay = None;
        self.underlay_checked = false;
        self.asked.clear();
        self.decided = false;
    }

    /// The view to go by, and where it comes from.
    fn view(&self) -> (ViewFrom, Option<&Arc<ClusterView>>) {
        if self.snapshot.nodes_synced {
            (ViewFrom::Api, Some(&self.snapshot.view))
        } else if let Some(view) = &self.disk_view {
            (ViewFrom::Disk, Some(view))
        } else {
            (ViewFrom::Nowhere, None)
        }
    }

    /// Every input is known completely: what nobody wants any more may go.
    fn synced(&self) -> bool {
        self.snapshot.synced() && self.records.unreadable.is_none()
    }

    /// One round.
    pub(crate) fn reconcile(&mut self, now: Instant) {
        let began = Instant::now();
        self.offered = self.ready_files.offered().to_vec();
        if self.records.refresh() {
            self.decided = false;
        }
        if self.live.refresh(&mut self.config, now) {
            self.decided = false;
        }
        self.use_last_view(now);
        match self.passes(now) {
            Ok(()) => self.trouble = None,
            Err(error) => {
                tracing::warn!("{error}");
                match &mut self.trouble {
                    Some(trouble) => trouble.again(error, now),
                    None => self.trouble = Some(Failure::first(error, now)),
                }
            }
        }
        // A round does only so much. One that failed has its own time.
        let left = self.trouble.is_none() && (self.stale.any() || self.unplanned);
        self.resume = left.then(|| now + RESUME_AFTER);
        self.write_outputs(now);
        self.look_at_foreign(now);
        if self.offered != self.ready_files.offered() {
            // A range goes when the records were read once more.
            self.resume.get_or_insert(now + RESUME_AFTER);
        }
        self.metrics.round(began.elapsed());
    }

    /// After a boot with the API away the last good view serves until it answers.
    fn use_last_view(&mut self, now: Instant) {
        let waited = now.duration_since(self.started) >= API_PATIENCE;
        if !waited || self.snapshot.nodes_synced || self.disk_view.is_some() {
            return;
        }
        self.disk_asked = true;
        match self.last_view.load() {
            Ok(None) => {}
            Ok(Some(view)) => {
                tracing::warn!("the Kubernetes API does not answer: the last good view is used");
                self.disk_view = Some(Arc::new(view));
                self.decided = false;
            }
            Err(error) => self.last_view_problem = Some(error),
        }
    }

    /// Looks, plans and applies until nothing is left to do now.
    fn passes(&mut self, now: Instant) -> Result<(), String> {
        self.done.clear();
        for pass in 0..MAX_PASSES {
            self.look()?;
            self.unplanned = false;
            if self.view().1.is_none() {
                return Ok(());
            }
            self.decide(now);
            self.look_further()?;
            self.adopt()?;
            let plan = plan(&self.desired, &self.seen, &self.ownership());
            let wanted: BTreeSet<Key> = plan.ops.iter().map(Op::key).collect();
            self.failures.retain(|key| wanted.contains(key));
            for key in wanted.intersection(&self.done) {
                let text = "the kernel took it, and shows something else: it is changed back by \
                            somebody else, or cannot be so on this kernel";
                self.failures.failed(key.clone(), text.to_owned(), now);
            }
            let (due, waiting): (Vec<Op>, Vec<Op>) =
                plan.ops.iter().cloned().partition(|op| !self.failures.must_wait(&op.key(), now));
            let due = closing::allowed(&due, &waiting, &plan.ops);
            let (joining, due): (Vec<Op>, Vec<Op>) =
                due.into_iter().partition(isolation::is_joining);
            if pass == 0 {
                self.count_repairs(&due);
            }
            self.last_plan = plan;
            let due = without_neighbours_in_use(due);
            self.write_intent(&due)?;
            let made = self.apply_closed(&due, waiting, now);
            let idle = due.is_empty();
            self.done.extend(made);
            let isolated = self.isolate(joining, now);
            if idle && isolated.is_empty() {
                break;
            }
            self.done.extend(isolated);
        }
        self.look_again();
        self.sweep_guards(now)?;
        self.settle();
        Ok(())
    }

    /// Brings the stale part of what is seen up to date.
    fn look(&mut self) -> Result<(), String> {
        // Changes up to here are covered by the look that follows, those of our own included.
        let news = self.port.changes();
        self.unplanned |= news.any();
        self.stale.merge(news);
        if !self.stale.any() {
            return Ok(());
        }
        // Interfaces are read each time: everything else is told by their names.
        let kinds = Stale { links: true, ..self.stale };
        let look = Look { kinds, ..self.looked_at.clone() };
        let fresh =
            self.port.observe(&look).map_err(|e| format!("cannot look at the kernel: {e}"))?;
        replace(&mut self.seen, &look, fresh);
        if self.stale.links || self.stale.addrs || self.stale.routes {
            self.underlay_checked = false;
        }
        self.stale = Stale::NONE;
        Ok(())
    }

    /// Looks at tables and parameters that desired state names for the first time.
    fn look_further(&mut self) -> Result<(), String> {
        let mut more = Look::default();
        for (key, entry) in self.desired.iter() {
            match key {
                Key::Sysctl(path) if !self.looked_at.sysctls.contains(path) => {
                    more.sysctls.insert(path.clone());
                }
                _ => {
                    let table = table_of(&entry.object);
                    more.tables.extend(table.filter(|id| !self.looked_at.tables.contains(id)));
                }
            }
        }
        more.kinds.sysctls = !more.sysctls.is_empty();
        for table in &more.tables {
            more.kinds.merge(Stale::of_table(&table.name));
        }
        if !more.kinds.any() {
            return Ok(());
        }
        more.kinds.links = true;
        let fresh =
            self.port.observe(&more).map_err(|e| format!("cannot look at the kernel: {e}"))?;
        replace(&mut self.seen, &more, fresh);
        self.looked_at.tables.extend(more.tables);
        self.looked_at.sysctls.extend(more.sysctls);
        Ok(())
    }

    /// Finds the facts anew where the underlay changed.
    fn find_facts(&mut self) {
        if self.underlay_checked {
            self.decided &= !self.find_paths();
            return;
        }
        self.underlay_checked = true;
        let underlay = facts::underlay(&self.seen, &self.config, self.taken.over());
        if self.underlay.as_ref() != Some(&underlay) {
            let mut facts = facts::gather(&underlay, &self.config, &mut self.port);
            let lost = |old| !facts.addresses.contains(old);
            self.moved |= self.facts.addresses.iter().any(lost);
            self.asked.clear();
            // Kept for the comparison below: most paths come out as they were.
            facts.paths.clone_from(&self.facts.paths);
            if facts != self.facts {
                self.decided = false;
            }
            facts.paths.clear();
            let old = std::mem::replace(&mut self.facts, facts);
            self.underlay = Some(underlay);
            self.find_paths();
            if old.paths != self.facts.paths {
                self.decided = false;
            }
        } else if self.find_paths() {
            self.decided = false;
        }
    }

    /// Whether the node has lost an address of its own since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn find_paths(&mut self) -> bool {
        let (_, view) = self.view();
        let peers = view.map(|v| facts::peer_addresses(v, &self.me)).unwrap_or_default();
        if self.asked == peers {
            return false;
        }
        self.path_problems.clear();
        facts::find_paths(
            &mut self.facts,
            &mut self.asked,
            &peers,
            &mut self.port,
            &mut self.path_problems,
        )
    }

    /// Computes desired state, if any input is another one than the last time.
    fn decide(&mut self, now: Instant) {
        self.find_facts();
        if self.decided {
            return;
        }
        // Also what a plugin is making or removing has its addresses.
        let inputs = self.inputs(self.records.all());
        let mut outcome = causeway_desired::node::node_objects(&inputs);
        self.known = outcome.known;
        if !outcome.known {
            self.keep_node_part(&mut outcome.desired);
        }
        // What is wanted otherwise than before has nobody broken, nor what goes with such a device.
        let differs = |key: &Key| {
            let object = |d: &Desired| d.get(key).map(|e| e.object.clone());
            object(&self.desired) != object(&outcome.desired)
        };
        self.settled.retain(|key| {
            let device = self.desired.get(key).and_then(|e| marks::device(&e.object));
            !differs(key) && device.is_none_or(|dev| !differs(&Key::Link(dev.clone())))
        });
        if *self.desired != outcome.desired {
            self.failures.hurry(now);
            let of =
                |key: &Key| outcome.desired.get(key).is_some() || self.owned.keys().contains(key);
            self.looked_at.sysctls.retain(|path| of(&Key::Sysctl(path.clone())));
            self.desired = Arc::new(outcome.desired);
        }
        self.node_file = outcome.node_file;
        self.claims = outcome.claims;
        self.flannel = outcome.flannel;
        self.problems = outcome
            .problems
            .into_iter()
            .map(|p| Problem {
                told_there: p.told_there,
                ..Problem::new(p.owner.to_string(), p.message)
            })
            .collect();
        self.decided = true;
    }

    /// While it cannot be said what the node should hold, what was wanted before still is: pods
    /// talk by it. A Node object that is deleted and registered again, or an address that goes and
    /// comes back, costs no pod its network.
    fn keep_node_part(&self, desired: &mut Desired) {
        for (_, entry) in self.desired.iter() {
            if !matches!(entry.owner, Owner::Pod(_)) {
                desired.add(entry.owner.clone(), entry.why.clone(), entry.object.clone());
            }
        }
    }

    /// What desired state is a function of.
    fn inputs(&self, attachments: Vec<AttachmentRecord>) -> Inputs {
        let (_, view) = self.view();
        Inputs {
            me: Some(self.me.clone()),
            view: view.map(|v| ClusterView::clone(v)).unwrap_or_default(),
            facts: self.facts.clone(),
            config: self.config.clone(),
            attachments,
            taken: self.taken.over().cloned(),
            boot_id: self.boot_id.clone(),
        }
    }

    /// Does the operations, part by part: what closes is done before what it closes is opened.
    /// Answers the keys of those that succeeded.
    fn apply_closed(&mut self, due: &[Op], mut undone: Vec<Op>, now: Instant) -> Vec<Key> {
        let plan = std::mem::take(&mut self.last_plan.ops);
        let mut done = Vec::new();
        for part in due.chunk_by(|a, b| a.closes() == b.closes()) {
            let part = closing::allowed(part, &undone, &plan);
            let made = self.apply(&part, now);
            undone.extend(part.into_iter().filter(|op| !made.contains(&op.key())));
            done.extend(made);
        }
        self.last_plan.ops = plan;
        done
    }

    /// Does the operations. Answers the keys of those that succeeded.
    fn apply(&mut self, due: &[Op], now: Instant) -> Vec<Key> {
        let results = self.port.apply(due);
        let mut done = Vec::new();
        for (op, result) in due.iter().zip(results) {
            self.stale.merge(Stale::after(op));
            self.metrics.operation(marks::kind(&op.key()), result.is_ok());
            match result {
                Ok(()) => {
                    tracing::debug!("{op}");
                    done.push(op.key());
                }
                Err(error) => {
                    tracing::warn!("{op}: {error}");
                    self.failures.failed(op.key(), error, now);
                }
            }
        }
        done
    }

    /// Objects that were as they should be, and now have to be made or changed: somebody else did
    /// that.
    fn count_repairs(&self, due: &[Op]) {
        let lost: Vec<Key> =
            due.iter().map(Op::key).filter(|key| self.settled.contains(key)).collect();
        for key in &lost {
            tracing::warn!("{key} was removed or changed by somebody else: it is put back");
        }
        self.metrics.repaired(lost.len() as u64);
    }

    /// Notes what is as it should be, and forgets records of what is gone.
    fn settle(&mut self) {
        let plan = &self.last_plan;
        let open: BTreeSet<Key> = plan
            .ops
            .iter()
            .map(Op::key)
            .chain(plan.conflicts.iter().map(|c| c.key.clone()))
            .chain(plan.waiting.iter().cloned())
            .collect();
        // While a pod interface is missing, a table is there without that interface's chains.
        let guards = |key: &Key| matches!(key, Key::Table { family: NftFamily::Netdev, .. });
        let partial = |key: &Key| !plan.waiting.is_empty() && guards(key);
        let whole = |key: &&Key| !open.contains(*key) && !partial(key);
        self.settled = self.desired.iter().map(|(key, _)| key).filter(whole).cloned().collect();
        let (desired, seen) = (&self.desired, &self.seen);
        self.owned.erase(|key| desired.get(key).is_none() && seen.get(key).is_none());
    }
}

/// While routes change, the neighbours of before stay until the next pass: a packet that has found its
/// route a moment ago still looks for them.
fn without_neighbours_in_use(mut due: Vec<Op>) -> Vec<Op> {
    if due.iter().any(|op| matches!(op, Op::Change { to: Object::Route(_), .. })) {
        due.retain(|op| !matches!(op, Op::Remove(Object::Neigh(_) | Object::Fdb(_))));
    }
    due
}
