//! What other threads ask of the loop.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::self_test::Finding;
use crate::status::{CollectReport, PlanReport};

/// The answer to a request: a value, or why there is none.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// A request.
#[derive(Debug)]
pub(crate) enum Command {
    /// A plugin wrote this record file; answer once the loop has taken it in.
    Attachment(String, Reply<()>),
    /// Look at everything again; answer when that is done.
    Reconcile(Reply<()>),
    /// What would be changed now?
    Plan(Reply<PlanReport>),
    /// The node's network as a script, with or without pods.
    Script(bool, Reply<String>),
    /// Look once for leases that nobody needs any more.
    Collect(Reply<CollectReport>),
    /// The node's test of itself found this.
    Tested(Finding),
    /// The cluster changed.
    Cluster,
    /// Which namespaces have policies, or what is wrong with them, changed: plugins go by it.
    Policies,
    /// End.
    Stop,
}

/// Both ends of the loop's queue: anybody may put in, only the loop takes out. The file
/// descriptor becomes readable when something is in it.
#[derive(Clone, Debug)]
pub(crate) struct Inbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Mutex<VecDeque<Command>>,
    wake: OwnedFd,
}

impl Inbox {
    /// An empty queue.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(crate) fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { queue: Mutex::default(), wake })))
    }

    /// Puts a request in.
    pub(crate) fn put(&self, command: Command) {
        self.queue().push_back(command);
        // Fails only when the counter is full, and then the loop is awake anyway.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    /// Takes all requests out.
    pub(crate) fn take(&self) -> VecDeque<Command> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.wake, &mut count);
        std::mem::take(&mut *self.queue())
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}
