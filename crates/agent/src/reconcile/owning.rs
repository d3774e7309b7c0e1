//! What of the kernel's objects is ours: to be changed, to be removed, to be written down.

use std::collections::BTreeSet;

use causeway_model::{Key, Object, Owner};
use causeway_plan::{Op, Ownership};
use causeway_types::names;

use super::Core;
use crate::port::Port;
use crate::{marks, wishes};

impl<P: Port> Core<P> {
    pub(super) fn ownership(&self) -> Ownership {
        let mut recorded = self.owned.keys().clone();
        // A plugin is at work on these: neither wanted nor to be taken from under its hands.
        for key in self.pending_keys() {
            recorded.remove(&key);
        }
        if !self.records.all_understood() {
            recorded.retain(|key| !marks::may_be_of_a_pod(key));
        }
        Ownership {
            recorded,
            route_protocol: self.config.route_protocol,
            allow_removals: self.synced() && self.known,
            makes_veths: false,
            taken: self.taken.tunnels(),
        }
    }

    /// Keys of what the node holds for pods that a plugin is making or removing right now.
    pub(super) fn pending_keys(&self) -> BTreeSet<Key> {
        let pending = self.records.pending();
        if pending.is_empty() {
            return BTreeSet::new();
        }
        wishes::host_keys(&pending, &self.config)
    }

    /// Takes wanted objects that carry our marks into the record: after the record was lost, or
    /// when a plugin made what the agent keeps.
    pub(super) fn adopt(&mut self) -> Result<(), String> {
        let ours = |key: &Key, owner: &Owner| {
            !matches!(owner, Owner::Pod(_))
                && self
                    .seen
                    .get(key)
                    .is_some_and(|o| marks::ours(o, &self.config, self.taken.over()))
        };
        let found: Vec<Key> = self
            .desired
            .iter()
            .filter(|(key, entry)| !self.owned.keys().contains(*key) && ours(key, &entry.owner))
            .map(|(key, _)| key.clone())
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        tracing::info!(count = found.len(), "adopted objects that carry our marks");
        self.owned
            .record(found)
            .map_err(|e| format!("cannot write the record of what we made: {e}"))
    }

    /// Writes down what is about to be made, before the kernel hears of it.
    pub(super) fn write_intent(&mut self, due: &[Op]) -> Result<(), String> {
        let made = due.iter().filter_map(|op| match op {
            Op::Create(Object::Sysctl(_)) | Op::Change { .. } | Op::Remove(_) => None,
            Op::Create(object) => Some(object.key()),
            Op::Nft { table, .. } => (table.name == names::NFT_AGENT).then(|| op.key()),
        });
        let made: Vec<Key> = made.filter(|key| !self.owned.keys().contains(key)).collect();
        self.owned.record(made).map_err(|e| format!("cannot write the record of what we made: {e}"))
    }
}
