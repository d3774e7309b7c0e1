//! Enforcement of policies: a thread of its own, so that a change of policies waits for nothing else, with a
//! socket of its own.
//!
//! It is told what policies go by (see [`Handle::sink`]), which pods are attached here ([`Handle::endpoints`]), and
//! when somebody else changed its table. Until everything is known it changes nothing: what an agent before it
//! put into the kernel stays in force.

mod bell;
mod drops;
mod state;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use causeway_cluster::{PolicyEvent, PolicyKind, PolicySink, Question};
use causeway_kernel::log::Logged;
use causeway_kernel::nft::Nft;
use causeway_policy::PodName;
use causeway_types::NodeName;
use causeway_types::state::AttachmentRecord;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::inbox::Reply;
use crate::metrics::Metrics;
use bell::{Bell, Rope, bell};
pub use drops::{DropEnd, DropRecord, DropReport, listen};
use state::State;
pub(crate) use status::Ask;
pub use status::{PolicyStatus, PolicySummary, RealisedPod};

/// How many events are taken in before the kernel is told of them.
const AT_ONCE: usize = 4096;

/// For so many objects of a list the thread is woken once.
const OF_LIST: usize = 64;

/// The watch tells of a pod before the runtime does, or a moment later; then the API is asked for it.
pub(crate) const ASK_AFTER: Duration = Duration::from_millis(200);

/// The pods that are attached here, and their addresses.
pub(crate) type Endpoints = BTreeMap<PodName, Vec<IpAddr>>;

/// What the thread is told.
enum Command {
    Event(PolicyEvent),
    Endpoints(Endpoints),
    Endpoint(PodName, Vec<IpAddr>),
    Confirm(Confirm),
    /// Sockets by which the table was changed; 0: news were lost.
    Touched(BTreeSet<u32>),
    /// Look at the table anew.
    Audit,
    Ask(Ask),
    /// Packets that the kernel dropped.
    Dropped(Vec<Logged>),
    Drops(Reply<DropReport>),
    Stop,
}

/// A plugin's pod that may start when its policies are in the kernel.
pub(crate) struct Confirm {
    pub(crate) pod: PodName,
    /// `metadata.uid`, where the runtime told: a pod of the same name may be on its way out.
    pub(crate) uid: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) reply: Reply<()>,
    pub(crate) until: Instant,
    /// When the API is asked for a pod that its watch does not tell of; `None`: it was.
    pub(crate) ask_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Namespaces whose pods have to wait for their policies; `None`: not known yet.
    namespaces: Mutex<Option<Vec<String>>>,
    problem: Mutex<Option<String>>,
    /// Where to ask the API for pods, from when somebody listens.
    ask: Mutex<Option<UnboundedSender<Question>>>,
}

/// Talks to the thread. It ends when [`Handle::stop`] is called, and leaves the table as it is.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Command>,
    rope: Rope,
    shared: Arc<Shared>,
    ends: watch::Receiver<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    /// Starts the thread in the calling thread's network namespace. `wake` is called when what
    /// [`Handle::namespaces`] or [`Handle::problem`] says has changed.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or the system a thread.
    pub(crate) fn start(
        me: &NodeName,
        metrics: &Arc<Metrics>,
        wake: impl Fn() + Send + 'static,
    ) -> anyhow::Result<(Self, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let (rope, bell) = bell().context("a pipe")?;
        let shared = Arc::new(Shared::default());
        let (wanted, ends) = watch::channel(false);
        let nft = Nft::open().context("a socket for nftables")?;
        let state = State::new(me, nft, Arc::clone(metrics));
        let job = {
            let shared = Arc::clone(&shared);
            move || Thread { receiver, bell, state, shared, wake: Box::new(wake), wanted }.run()
        };
        let thread = std::thread::Builder::new().name("policy".into()).spawn(job);
        let thread = thread.context("cannot start the policy thread")?;
        Ok((Self { sender, rope, shared, ends }, thread))
    }

    /// Whom to tell of what policies go by.
    #[must_use]
    pub fn sink(&self) -> PolicySink {
        let news = Mutex::new(News { sender: self.sender.clone(), lists: BTreeMap::new() });
        let rope = self.rope.clone();
        Arc::new(move |event| {
            if lock(&news).put(event) {
                rope.ring();
            }
        })
    }

    /// Whether pods, namespaces and nodes have to be known.
    #[must_use]
    pub fn ends(&self) -> watch::Receiver<bool> {
        self.ends.clone()
    }

    /// Pods that are to be asked for, from now on.
    #[must_use]
    pub fn questions(&self) -> UnboundedReceiver<Question> {
        let (sender, questions) = unbounded_channel();
        *lock(&self.shared.ask) = Some(sender);
        questions
    }

    /// Namespaces whose pods may start only when their policies are in the kernel (`*`: all); `None` while
    /// that is not known.
    pub(crate) fn namespaces(&self) -> Option<Vec<String>> {
        lock(&self.shared.namespaces).clone()
    }

    /// What is wrong, for a person.
    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.shared.problem).clone()
    }

    /// These pods are attached here, and no others.
    pub(crate) fn endpoints(&self, endpoints: Endpoints) {
        self.send(Command::Endpoints(endpoints));
    }

    /// This pod is attached here, too.
    pub(crate) fn endpoint(&self, pod: PodName, addresses: Vec<IpAddr>) {
        self.send(Command::Endpoint(pod, addresses));
    }

    /// Answers when a pod's policies are in the kernel.
    pub(crate) fn confirm(&self, confirm: Confirm) {
        self.send(Command::Confirm(confirm));
    }

    /// Somebody changed the table, by these sockets; 0 where news were lost.
    pub(crate) fn touched(&self, by: BTreeSet<u32>) {
        self.send(Command::Touched(by));
    }

    /// Compares the kernel's table with what it should be.
    pub(crate) fn audit(&self) {
        self.send(Command::Audit);
    }

    /// What is enforced now.
    pub(crate) fn status(&self, reply: Reply<PolicyStatus>) {
        self.send(Command::Ask(Ask::Status(reply)));
    }

    /// How much is enforced now.
    pub(crate) fn summary(&self, reply: Reply<PolicySummary>) {
        self.send(Command::Ask(Ask::Summary(reply)));
    }

    /// The kernel dropped these packets.
    pub(crate) fn dropped(&self, packets: Vec<Logged>) {
        self.send(Command::Dropped(packets));
    }

    /// What was dropped.
    pub(crate) fn drops(&self, reply: Reply<DropReport>) {
        self.send(Command::Drops(reply));
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // A thread that has ended is noticed by who asks it something.
        let _ = self.sender.send(command);
        self.rope.ring();
    }
}

/// The addresses by which a pod is known on its node: those that it was given, and the one that its
/// interface gives itself (RFC 4291, appendix A).
pub(crate) fn endpoints(records: &[AttachmentRecord]) -> Endpoints {
    // The address of one that is on its way out may be another's already.
    let whole = |record: &&AttachmentRecord| !record.pending && record.leaving.is_none();
    let taken: BTreeSet<IpAddr> =
        records.iter().filter(whole).filter_map(endpoint).flat_map(|(_, ips)| ips).collect();
    let mut all = Endpoints::new();
    for record in records {
        let Some((name, mut addresses)) = endpoint(record) else { continue };
        if !whole(&record) {
            addresses.retain(|ip| !taken.contains(ip));
        }
        all.entry(name).or_default().extend(addresses);
    }
    all
}

/// One of them; `None` where it is no pod's, as far as the runtime told.
pub(crate) fn endpoint(record: &AttachmentRecord) -> Option<(PodName, Vec<IpAddr>)> {
    let pod = record.pod.as_ref()?;
    let mut addresses: Vec<IpAddr> = record.addresses.iter().map(|net| net.addr()).collect();
    if addresses.iter().any(IpAddr::is_ipv6) {
        addresses.push(IpAddr::V6(record.mac.link_local()));
    }
    Some((PodName::new(pod.namespace.as_str(), pod.name.as_str()), addresses))
}

/// The events on their way to the thread. It need not be woken for each object of a list.
struct News {
    sender: Sender<Command>,
    /// The lists that are in progress, and how many objects each had.
    lists: BTreeMap<PolicyKind, usize>,
}

impl News {
    /// Puts an event in. Answers whether the thread is to be woken.
    fn put(&mut self, event: PolicyEvent) -> bool {
        let wakes = match &event {
            PolicyEvent::Listing(kind) => {
                self.lists.insert(*kind, 0);
                true
            }
            PolicyEvent::Listed(kind) => {
                self.lists.remove(kind);
                true
            }
            PolicyEvent::Put(object, _) => match self.lists.get_mut(&PolicyKind::of(object)) {
                Some(count) => {
                    *count += 1;
                    count.is_multiple_of(OF_LIST)
                }
                None => true,
            },
            PolicyEvent::Asked(..) | PolicyEvent::Gone(..) => true,
        };
        let _ = self.sender.send(Command::Event(event));
        wakes
    }
}

struct Thread {
    receiver: Receiver<Command>,
    bell: Bell,
    state: State,
    shared: Arc<Shared>,
    wake: Box<dyn Fn() + Send>,
    wanted: watch::Sender<bool>,
}

impl Thread {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let due = self.state.next_wake();
            let pause =
                due.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
            let mut next = match self.receiver.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => {
                    self.bell.wait(pause);
                    self.receiver.try_recv().ok()
                }
                Err(TryRecvError::Disconnected) => return,
            };
            let mut taken = 0;
            while let Some(command) = next {
                match command {
                    Command::Stop => return,
                    Command::Event(event) => self.state.event(event),
                    Command::Endpoints(all) => self.state.set_endpoints(all),
                    Command::Endpoint(pod, addresses) => {
                        self.state.set_endpoint(pod, Some(addresses));
                    }
                    Command::Confirm(confirm) => self.state.confirm(confirm),
                    Command::Touched(by) => self.state.touched(&by),
                    Command::Audit => self.state.doubt(),
                    Command::Ask(question) => self.state.ask(question),
                    Command::Dropped(packets) => self.state.dropped(&packets),
                    Command::Drops(reply) => drop(reply.send(Ok(self.state.drops()))),
                }
                taken += 1;
                next = if taken < AT_ONCE { self.receiver.try_recv().ok() } else { None };
            }
            self.state.work(Instant::now());
            let questions = self.state.take_questions();
            if let (false, Some(ask)) = (questions.is_empty(), &*lock(&self.shared.ask)) {
                // Nobody listens any more where the process ends.
                questions.into_iter().for_each(|question| drop(ask.send(question)));
            }
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.wanted.send_if_modified(|wanted| {
            let first = !*wanted && self.state.asks_for_ends();
            *wanted |= first;
            first
        });
        let (namespaces, problem) = (self.state.new_namespaces(), self.state.problem());
        let mut differs = namespaces.is_some();
        if differs {
            *lock(&self.shared.namespaces) = namespaces;
        }
        {
            let mut known = lock(&self.shared.problem);
            differs |= *known != problem;
            *known = problem;
        }
        if differs {
            (self.wake)();
        }
    }
}

#[cfg(test)]
mod tests {
    use causeway_policy::read::Object;

    use super::*;

    #[test]
    fn objects_of_a_list_wake_seldom() {
        let (sender, receiver) = channel();
        let mut news = News { sender, lists: BTreeMap::new() };
        let node = |n: usize| Object::Node(format!("node-{n}").into(), Default::default());
        let namespace = || Object::Namespace("shop".into(), Default::default());
        let kind = PolicyKind::Nodes;
        assert!(news.put(PolicyEvent::Put(node(0), None)));
        assert!(news.put(PolicyEvent::Listing(kind)));
        let wakes = (0..3 * OF_LIST).filter(|n| news.put(PolicyEvent::Put(node(*n), None)));
        assert_eq!(wakes.count(), 3);
        // What is no part of it does at once.
        assert!(news.put(PolicyEvent::Put(namespace(), None)));
        assert!(news.put(PolicyEvent::Asked(node(1), None)));
        assert!(news.put(PolicyEvent::Gone(kind, String::new(), "node-1".into())));
        assert!(!news.put(PolicyEvent::Put(node(2), None)));
        assert!(news.put(PolicyEvent::Listed(kind)));
        assert!(news.put(PolicyEvent::Put(node(3), None)));
        // All of it is there.
        assert_eq!(receiver.try_iter().count(), 3 * OF_LIST + 8);
    }
}
