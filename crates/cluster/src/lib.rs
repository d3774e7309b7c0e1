//! What a node needs to know of its cluster, watched in the Kubernetes API.
//!
//! Two feeds, all Nodes and the Pods of this node, are kept as small maps of exactly what the
//! desired state depends on ([`causeway_desired::input::ClusterView`]); everything else of an
//! object is dropped as it is decoded. The newest [`Snapshot`] lies in a `tokio::sync::watch`
//! channel: whoever looks sees the present state, and how many events led to it does not matter.
//!
//! This is the only crate that knows Kubernetes types, and it knows nothing of the kernel.

mod backoff;
mod connect;
mod convert;
mod feed;
mod health;
mod objects;
mod own;
mod snapshot;
pub mod survey;

pub use connect::{ConnectError, Connection};
pub use feed::optional::{OptionalKind, OptionalView};
pub use feed::policies::{PolicyEvent, PolicyKind, PolicySink, Question, policy_name};
pub use health::{FeedHealth, Health, OptionalHealth};
pub use own::{Announcement, NetworkState};
pub use snapshot::Snapshot;

use causeway_types::NodeName;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

/// The running watches. They end when this is dropped.
pub struct Cluster {
    /// The newest snapshot; changes only when its content does.
    pub snapshots: watch::Receiver<Snapshot>,
    /// How the watches fare.
    pub health: Health,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    again: watch::Sender<u64>,
    connection: Connection,
    me: NodeName,
    own: watch::Receiver<Option<own::OwnNode>>,
}

impl Cluster {
    /// Starts watching, for the node called `me`. Must be called inside a tokio runtime.
    ///
    /// It never fails: a kubeconfig that is not there yet, an API that does not answer and a
    /// missing permission are waited out with a growing pause, and show in [`Cluster::health`].
    pub fn watch(connection: Connection, me: NodeName) -> Self {
        let (sender, snapshots) = watch::channel(Snapshot::default());
        let health = Health::default();
        let (again, asked) = watch::channel(0);
        let (found, own) = watch::channel(None);
        let scope = feed::Own { me: me.clone(), sender: found };
        let feeds = feed::run(connection.clone(), scope, sender, health.clone(), asked);
        let tasks = vec![tokio::spawn(feeds)];
        Self { snapshots, health, tasks, again, connection, me, own }
    }

    /// Writes to this node's object what `said` holds, and keeps it there; see [`Announcement`]. An API
    /// that cannot be reached, or refuses, is waited out with a growing pause.
    pub fn announce(&mut self, said: watch::Receiver<Announcement>) {
        let (connection, me, own) = (self.connection.clone(), self.me.clone(), self.own.clone());
        let keeper = own::keep(connection, me, own, said, self.health.clone());
        self.tasks.push(tokio::spawn(keeper));
    }

    /// Follows a kind that the cluster may not have. It has a connection of its own, and keeps nothing
    /// else waiting: [`Snapshot::synced`] does not ask for it. How it fares shows in [`Cluster::health`].
    pub fn follow<K: OptionalKind>(&mut self) -> watch::Receiver<OptionalView<K::Info>> {
        let (sender, view) = watch::channel(OptionalView::default());
        let again = self.again.subscribe();
        let feed =
            feed::optional::run::<K>(self.connection.clone(), sender, self.health.clone(), again);
        self.tasks.push(tokio::spawn(feed));
        view
    }

    /// Follows what policies go by, and tells `sink` of it: policies at all times, pods, namespaces and nodes of
    /// the whole cluster from when `ends` is true.
    /// What `questions` name is asked for at once, whatever the watches tell.
    pub fn policies(
        &mut self,
        sink: PolicySink,
        ends: watch::Receiver<bool>,
        questions: UnboundedReceiver<Question>,
    ) {
        let again = self.again.subscribe();
        let (connection, health) = (self.connection.clone(), self.health.clone());
        let feeds = feed::policies::run(connection, sink, health, again, ends, questions);
        self.tasks.push(tokio::spawn(feeds));
    }

    /// Connects anew and lists again. For when an address of this node is gone: a watch from it
    /// would be silent, and seem to be idle, until its time is over.
    pub fn reconnect(&self) {
        self.again.send_modify(|n| *n += 1);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
