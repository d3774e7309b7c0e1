//! The thread that owns the kernel sockets and runs the rounds.

mod pace;
mod plugins;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use causeway_cluster::{Announcement, Health, Snapshot};
use causeway_desired::input::{Config, PluginType};
use causeway_plugins::collect::{Collector, Network};
use causeway_plugins::leftovers::Leftovers;
use causeway_types::NodeName;
use tokio::sync::{oneshot, watch};

use self::pace::Pace;
use self::plugins::Waiting;
use crate::dirs::Dirs;
use crate::inbox::{Command, Inbox};
use crate::leavers::Leavers;
use crate::metrics::Metrics;
use crate::netns_port::NetnsPort;
use crate::options::Paths;
use crate::policy;
use crate::port::{Port, Stale};
use crate::reconcile::Core;
use crate::report::Report;
use crate::self_test::{Candidate, Finding};
use crate::status::{CollectReport, PlanReport, Status};
use crate::voice::Voice;
use crate::{migrate, taken_over};

/// How often everything is doubted.
const AUDIT: Duration = Duration::from_secs(600);
/// How often leases are looked for that nobody needs any more: one that is found twice in a row is
/// released, so that this is also the least age of what counts as left behind. Longer than any ADD.
const COLLECT: Duration = Duration::from_secs(30);
/// How long a plugin's question may wait for an answer. The plugin gives up after 2 s.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_millis(1700);
/// A round that takes longer than this is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What other threads may know of the loop.
#[derive(Debug)]
pub(crate) struct Shared {
    report: Mutex<Arc<Report>>,
    busy_since: Mutex<Option<Instant>>,
    alive: AtomicBool,
    pub(crate) metrics: Arc<Metrics>,
    /// Counts the times that the node lost an address of its own.
    moved: watch::Sender<u64>,
    /// What the node says of itself in the API.
    said: watch::Sender<Announcement>,
    health: Health,
}

impl Shared {
    fn new(health: Health) -> Self {
        Self {
            report: Mutex::default(),
            busy_since: Mutex::default(),
            alive: AtomicBool::new(true),
            metrics: Arc::default(),
            moved: watch::Sender::new(0),
            said: watch::Sender::default(),
            health,
        }
    }

    /// The status now.
    pub(crate) fn status(&self) -> Status {
        let report = Arc::clone(&lock(&self.report));
        let status = report.status(&self.health, self.metrics.rounds(), self.metrics.repairs());
        self.metrics.set_status(&status);
        status
    }

    /// Changes each time that the node loses an address of its own: connections from it are dead.
    pub(crate) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// What the node says of itself in the API.
    pub(crate) fn said(&self) -> watch::Receiver<Announcement> {
        self.said.subscribe()
    }

    /// Pods can be attached.
    pub(crate) fn ready(&self) -> bool {
        lock(&self.report).ready
    }

    /// Why the agent should be restarted, if it should.
    pub(crate) fn sick(&self) -> Option<String> {
        if !self.alive.load(Ordering::SeqCst) {
            return Some("the reconcile loop has ended".to_owned());
        }
        let busy = lock(&self.busy_since).map(|since| since.elapsed())?;
        (busy > STUCK).then(|| format!("a round of reconciling has taken {busy:?} and goes on"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running loop. It ends when this is dropped, and leaves the network as it is.
#[derive(Debug)]
pub struct Engine {
    pub(crate) inbox: Inbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) leavers: Leavers,
    thread: Option<std::thread::JoinHandle<()>>,
    policies: Option<(policy::Handle, std::thread::JoinHandle<()>)>,
    /// Resolves when the loop has ended, however it came to that.
    pub(crate) ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts the loop in the calling thread's network namespace. The view of the cluster comes
    /// from `snapshots`. With `policies` they are enforced, by what [`Engine::policies`] is told.
    ///
    /// # Errors
    /// When the boot ID, a kernel socket or inotify cannot be had.
    pub fn start(
        me: NodeName,
        config: Config,
        paths: &Paths,
        snapshots: watch::Receiver<Snapshot>,
        health: Health,
        policies: bool,
    ) -> anyhow::Result<Self> {
        let inbox = Inbox::new().context("event queue")?;
        let shared = Arc::new(Shared::new(health));
        let boot_id = paths.read_boot_id()?;
        let dirs = Dirs::watch(paths)?;
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let (ending, ended) = oneshot::channel();
        let leavers = Leavers::start(&paths.of_plugins())?;
        let wake = {
            let inbox = inbox.clone();
            move || inbox.put(Command::Policies)
        };
        let begin = || policy::Handle::start(&me, &shared.metrics, wake);
        let policies = policies.then(begin).transpose()?;
        let enforcement = policies.as_ref().map(|(handle, _)| handle.clone());
        let job = {
            let (inbox, shared, paths) = (inbox.clone(), Arc::clone(&shared), paths.clone());
            let leavers = leavers.clone();
            let snapshots = snapshots.clone();
            move || {
                let _end = End(Arc::clone(&shared), ending);
                let taken = taken_over::load(&paths.taken_over).ok().flatten();
                let port = match NetnsPort::open(&config, taken.as_ref()) {
                    Ok(port) => port,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let metrics = Arc::clone(&shared.metrics);
                let late = Late {
                    of_this_boot: taken.is_some_and(|taken| taken.boot_id == boot_id),
                    paths: paths.clone(),
                    config: config.clone(),
                    boot_id: boot_id.clone(),
                };
                let collector = Collector::new(Network {
                    paths: paths.of_plugins(),
                    name: config.network.clone(),
                    own: config.plugin == PluginType::Causeway,
                });
                let core = Core::new(port, me, config, &paths, boot_id, metrics);
                let _ = started.send(Ok(()));
                let waiting = Vec::new();
                let paths = paths.of_plugins();
                let leftovers = Leftovers::new(paths.clone());
                let voice = Voice::default();
                // What plugins do wakes it, and it is in no hurry to see to what they are still at.
                let _ = causeway_kernel::sched::behind_who_runs();
                Loop {
                    core,
                    collector,
                    leftovers,
                    inbox,
                    snapshots,
                    dirs,
                    shared,
                    waiting,
                    leavers,
                    paths,
                    voice,
                    late,
                    policies: enforcement,
                    told: None,
                    pace: Pace::default(),
                    noted: false,
                }
                .run();
            }
        };
        let spawn = std::thread::Builder::new().name("reconcile".into()).spawn(job);
        let thread = spawn.context("cannot start the reconcile thread")?;
        start.recv().context("the reconcile thread ended at its start")??;
        forward(snapshots, inbox.clone())?;
        Ok(Self { inbox, shared, leavers, thread: Some(thread), policies, ended })
    }

    /// Where policies are enforced.
    pub fn policies(&self) -> Option<&policy::Handle> {
        self.policies.as_ref().map(|(handle, _)| handle)
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// What would be changed now.
    ///
    /// # Errors
    /// When too little is known to plan.
    pub fn plan(&self) -> Result<PlanReport, String> {
        let (reply, answer) = oneshot::channel();
        self.inbox.put(Command::Plan(reply));
        answer.blocking_recv().map_err(|_| "the reconcile loop has ended".to_owned())?
    }

    /// The node's network as a script, with or without its pods.
    ///
    /// # Errors
    /// When too little is known.
    pub fn script(&self, pods: bool) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        self.inbox.put(Command::Script(pods, reply));
        answer.blocking_recv().map_err(|_| "the reconcile loop has ended".to_owned())?
    }

    /// Ends the loop and waits for it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.inbox.put(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic in the loop has been reported already.
            let _ = thread.join();
        }
        if let Some((handle, thread)) = self.policies.take() {
            handle.stop();
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says that the loop has ended, also when it ends by a panic.
struct End(Arc<Shared>, #[allow(dead_code)] oneshot::Sender<()>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::SeqCst);
    }
}

/// Wakes the loop when the cluster changes, until nobody sends any more.
fn forward(mut snapshots: watch::Receiver<Snapshot>, inbox: Inbox) -> anyhow::Result<()> {
    let job = move || {
        while futures::executor::block_on(snapshots.changed()).is_ok() {
            inbox.put(Command::Cluster);
        }
    };
    std::thread::Builder::new()
        .name("snapshots".into())
        .spawn(job)
        .context("cannot start a thread")?;
    Ok(())
}

struct Loop<P> {
    core: Core<P>,
    collector: Collector,
    leftovers: Leftovers,
    inbox: Inbox,
    snapshots: watch::Receiver<Snapshot>,
    dirs: Dirs,
    shared: Arc<Shared>,
    waiting: Vec<Waiting>,
    leavers: Leavers,
    paths: causeway_plugins::Paths,
    voice: Voice,
    late: Late,
    policies: Option<policy::Handle>,
    /// What the policies' thread was last told of the pods that are attached here.
    told: Option<policy::Endpoints>,
    pace: Pace,
    /// Something was read in the watched directories of which a round has to know.
    noted: bool,
}

/// Pods that the former network makes after the node was taken over.
struct Late {
    of_this_boot: bool,
    paths: Paths,
    config: Config,
    boot_id: String,
}

impl Late {
    fn adopt(&self) {
        if !self.of_this_boot {
            return;
        }
        match migrate::adopt_late(&self.paths, &self.config, &self.boot_id) {
            Ok(pods) => pods.iter().for_each(|pod| tracing::info!("pod {pod} is taken over")),
            Err(error) => tracing::warn!("pods of the former network: {error:#}"),
        }
    }
}

impl<P: Port> Loop<P> {
    fn run(mut self) {
        let mut audit_at = Instant::now() + AUDIT;
        let mut collect_at = Instant::now();
        let mut commands = Vec::from([Command::Cluster]);
        // Nobody listened before.
        let mut lost_table = true;
        self.clean_up_test();
        loop {
            if commands.iter().any(|c| matches!(c, Command::Stop)) {
                return;
            }
            let now = Instant::now();
            if self.answer_at_once(&mut commands)
                && self.pace.at_work(now) > now
                && commands.is_empty()
            {
                commands = self.wait(audit_at.min(collect_at));
                continue;
            }
            self.pace.goes_on();
            let mut work = self.take_in(&mut commands, now);
            if now >= audit_at {
                audit_at = now + AUDIT;
                self.core.audit();
                self.policies.iter().for_each(policy::Handle::audit);
                self.dirs.rewatch();
                work = true;
            }
            let due = self.core.next_wake().is_some_and(|at| at <= now);
            if work || due {
                let before = self.shared.metrics.operations_done();
                self.round(now);
                let idle = before == self.shared.metrics.operations_done();
                self.pace.after_round(Instant::now(), idle);
            }
            self.test_itself(now);
            self.announce(now);
            self.answer_plugins();
            if std::mem::take(&mut lost_table) | self.core.port.take_lost_table() {
                self.restore();
            }
            if now >= collect_at {
                collect_at = now + COLLECT;
                self.collect();
            }
            self.answer(commands);
            commands = self.wait(audit_at.min(collect_at));
        }
    }

    /// Takes in what changed. True when a round is needed.
    fn take_in(&mut self, commands: &mut Vec<Command>, now: Instant) -> bool {
        if let Some(policies) = &self.policies {
            self.core.set_policies(policies.namespaces());
        }
        let snapshot = self.snapshots.borrow_and_update().clone();
        let mut work = self.core.set_snapshot(snapshot);
        let news = self.core.port.changes();
        self.tell_of_changes();
        self.core.mark_stale(news);
        self.core.heed_foreign(now);
        work |= news.any();
        work |= std::mem::take(&mut self.noted) | self.dirs.changed();
        let mut rest = Vec::new();
        for command in commands.drain(..) {
            match command {
                Command::Attachment(file, reply) => {
                    self.waiting.push(Waiting { file, reply, until: now + ANSWER_WITHIN });
                    work = true;
                }
                Command::Reconcile(reply) => {
                    self.core.mark_stale(Stale::ALL);
                    work = true;
                    rest.push(Command::Reconcile(reply));
                }
                Command::Policies => work = true,
                Command::Tested(finding) => {
                    self.core.self_test.found(finding, now);
                    work = true;
                }
                other => rest.push(other),
            }
        }
        *commands = rest;
        work
    }

    fn round(&mut self, now: Instant) {
        *lock(&self.shared.busy_since) = Some(now);
        let before = self.core.generation();
        self.core.reconcile(now);
        if self.core.generation() != before {
            // A plugin that has read the former node file has written its record by now, or reads this one.
            self.core.refresh_records();
        }
        self.tell_endpoints();
        // A round reads news too.
        self.tell_of_changes();
        if self.core.take_moved() {
            self.shared.moved.send_modify(|n| *n += 1);
        }
        *lock(&self.shared.report) = Arc::new(self.report());
        *lock(&self.shared.busy_since) = None;
    }

    /// Begins the node's test of itself where a round asked for it: the node is not called ready
    /// before. The loop goes on; it takes in what the test makes, as it does with any pod.
    fn test_itself(&mut self, now: Instant) {
        let Some(file) = self.core.self_test.take_request() else { return };
        let candidate = match Candidate::write(&self.paths, &file) {
            Ok(candidate) => candidate,
            Err(why) => return self.core.self_test.found(Finding::Failed(why), now),
        };
        let trial = self.core.trial(candidate.paths().clone(), &file);
        let inbox = self.inbox.clone();
        let job = move || {
            trial.run(|finding| inbox.put(Command::Tested(finding)));
            drop(candidate);
        };
        if let Err(error) = std::thread::Builder::new().name("self-test".into()).spawn(job) {
            let why = format!("cannot start a thread: {error}");
            self.core.self_test.found(Finding::Failed(why), now);
        }
    }

    /// Removes the test's pod if an agent before this one could not.
    fn clean_up_test(&self) {
        let Some(file) = self.core.announced().cloned() else { return };
        let trial = self.core.trial(self.paths.clone(), &file);
        let job = move || {
            if let Err(error) = trial.clean_up() {
                tracing::warn!("what a self-test left cannot be removed: {error}");
            }
        };
        // Without a thread the next agent does it.
        let _ = std::thread::Builder::new().name("self-test".into()).spawn(job);
    }

    fn announce(&mut self, now: Instant) {
        let report = Arc::clone(&lock(&self.shared.report));
        let news = self.voice.say(&report, now);
        self.shared.said.send_if_modified(|said| {
            let differs = *said != news;
            *said = news;
            differs
        });
    }

    /// Needs nothing from the cluster: a lease is judged by what the node itself shows.
    fn collect(&mut self) -> CollectReport {
        self.leavers.put_unfinished(&self.paths);
        self.late.adopt();
        let mut report = CollectReport::default();
        match self.collector.observe() {
            Ok(done) => {
                self.shared.metrics.leases_released(done.released.len());
                report.suspects = done.suspects;
                report.failed = done.failed;
                let line = |(ip, owner, why)| format!("{ip} of container {owner}: {why}");
                report.released = done.released.into_iter().map(line).collect();
            }
            Err(error) => report.failed.push(error.to_string()),
        }
        match self.leftovers.observe() {
            Ok(swept) => {
                swept.removed.iter().for_each(|what| tracing::info!("removed {what}"));
                report.failed.extend(swept.failed);
            }
            Err(error) => report.failed.push(format!("notes of pods that are gone: {error}")),
        }
        // Leases come and go without a record, too.
        if self.core.count_addresses() {
            *lock(&self.shared.report) = Arc::new(self.report());
        }
        for lease in &report.released {
            tracing::info!("released the lease of {lease}");
        }
        for failure in &report.failed {
            tracing::warn!("leases: {failure}; looked at again in {COLLECT:?}");
        }
        report
    }

    /// Brings back what plugins put into their own table for pods that live: somebody flushed all
    /// rules. Guards are among the objects of the loop.
    fn restore(&self) {
        match causeway_plugins::restore::flushed(&self.paths) {
            Ok(failed) => {
                failed.iter().for_each(|what| tracing::warn!("not brought back: {what}"));
            }
            Err(error) => tracing::warn!("rules of the plugins cannot be brought back: {error}"),
        }
    }

    fn answer(&mut self, commands: Vec<Command>) {
        let now = Instant::now();
        for command in commands {
            match command {
                Command::Reconcile(reply) => drop(reply.send(Ok(()))),
                Command::Plan(reply) => {
                    let plan = self.core.plan_now(now).map(|plan| plan_report(&plan));
                    drop(reply.send(plan));
                }
                Command::Collect(reply) => drop(reply.send(Ok(self.collect()))),
                Command::Script(pods, reply) => drop(reply.send(self.core.script(pods, now))),
                Command::Attachment(..)
                | Command::Cluster
                | Command::Policies
                | Command::Tested(_)
                | Command::Stop => {}
            }
        }
    }
}

fn plan_report(plan: &causeway_plan::Plan) -> PlanReport {
    PlanReport {
        lines: plan.ops.iter().map(ToString::to_string).collect(),
        ops: serde_json::to_value(&plan.ops).unwrap_or_default(),
        conflicts: plan.conflicts.iter().map(|c| format!("{}: {}", c.key, c.why)).collect(),
        waiting: plan.waiting.iter().map(ToString::to_string).collect(),
    }
}
