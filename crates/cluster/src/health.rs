//! How the watches fare, and what is written, for status and metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

/// The state of both feeds, shared with the tasks that keep it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    nodes: FeedHealth,
    pods: FeedHealth,
    unsaid: Option<String>,
}

/// The state of one feed.
#[derive(Clone, Debug, Default)]
pub struct FeedHealth {
    /// When the API last said anything on this feed.
    pub last_contact: Option<Instant>,
    /// How often the watch had to be begun anew after an error.
    pub restarts: u64,
    /// The last error and when it came; `None` once the feed works again.
    pub error: Option<(SystemTime, String)>,
}

/// Which feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Nodes,
    Pods,
}

impl Health {
    /// The feed of Nodes.
    pub fn nodes(&self) -> FeedHealth {
        self.lock().nodes.clone()
    }

    /// The feed of this node's Pods.
    pub fn pods(&self) -> FeedHealth {
        self.lock().pods.clone()
    }

    /// Why this node cannot say in the API how its network is; `None` while it can.
    pub fn unsaid(&self) -> Option<String> {
        self.lock().unsaid.clone()
    }

    pub(crate) fn set_unsaid(&self, why: Option<String>) {
        self.lock().unsaid = why;
    }

    pub(crate) fn contact(&self, which: Which) {
        let mut inner = self.lock();
        let feed = inner.of(which);
        feed.last_contact = Some(Instant::now());
        feed.error = None;
    }

    pub(crate) fn failed(&self, which: Which, message: String) {
        let mut inner = self.lock();
        let feed = inner.of(which);
        feed.restarts += 1;
        feed.error = Some((SystemTime::now(), message));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn of(&mut self, which: Which) -> &mut FeedHealth {
        match which {
            Which::Nodes => &mut self.nodes,
            Which::Pods => &mut self.pods,
        }
    }
}
