//! What the watches hand on.

use std::sync::Arc;

use causeway_desired::input::ClusterView;

/// The cluster as it is known now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What is known. Empty maps until the first complete list of a kind.
    pub view: Arc<ClusterView>,
    /// All Nodes have been listed at least once since the start.
    pub nodes_synced: bool,
    /// All Pods of this node have been listed at least once since the start.
    pub pods_synced: bool,
}

impl Snapshot {
    /// A snapshot in which everything has been listed.
    pub fn synced_with(view: ClusterView) -> Self {
        Self { view: Arc::new(view), nodes_synced: true, pods_synced: true }
    }

    /// True once every kind has been listed completely. It stays true when the API goes away
    /// later: the view is then the last that was true, and nothing in it is missing by accident.
    pub fn synced(&self) -> bool {
        self.nodes_synced && self.pods_synced
    }
}
