//! How the watches fare, and what is written, for status and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

/// The state of both feeds, shared with the tasks that keep it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    nodes: FeedHealth,
    pods: FeedHealth,
    optional: BTreeMap<String, OptionalHealth>,
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

/// The state of the feed of a kind that a cluster may not have.
#[derive(Clone, Debug, Default)]
pub struct OptionalHealth {
    /// The API serves the kind; false also while that is not known.
    pub served: bool,
    /// The feed, while it does.
    pub feed: FeedHealth,
}

impl FeedHealth {
    pub(crate) fn contact(&mut self) {
        self.last_contact = Some(Instant::now());
        self.error = None;
    }

    pub(crate) fn failed(&mut self, message: String) {
        self.restarts += 1;
        self.error = Some((SystemTime::now(), message));
    }
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

    /// Feeds of kinds that the cluster may not have, by `PLURAL.GROUP`.
    pub fn optionals(&self) -> BTreeMap<String, OptionalHealth> {
        self.lock().optional.clone()
    }

    pub(crate) fn optional(&self, name: &str, change: impl FnOnce(&mut OptionalHealth)) {
        change(self.lock().optional.entry(name.to_owned()).or_default());
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
        inner.of(which).contact();
    }

    pub(crate) fn failed(&self, which: Which, message: String) {
        let mut inner = self.lock();
        inner.of(which).failed(message);
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
