//! What the loop is told of the cluster, and what it reads again.

use std::sync::Arc;
use std::time::Instant;

use causeway_cluster::Snapshot;

use super::Core;
use crate::dirs::Records as Changed;
use crate::port::Port;

impl<P: Port> Core<P> {
    /// The generation of the node file.
    pub(crate) fn generation(&self) -> u64 {
        self.ready_files.generation()
    }

    /// Reads the attachment records that changed.
    pub(crate) fn refresh_records(&mut self) {
        if self.records.refresh() {
            self.decided = false;
            self.resume = Some(Instant::now());
        }
    }

    /// Takes in what plugins wrote. What follows from it is the next round's.
    pub(crate) fn reread(&mut self, changed: &Changed) {
        let differ = match changed {
            // What could not be read at all is read as a whole.
            Changed::Named(names) if self.records.unreadable.is_none() => {
                names.iter().fold(false, |differ, name| differ | self.records.read(name))
            }
            Changed::Named(_) | Changed::Any => self.records.refresh(),
        };
        self.decided &= !differ;
    }

    /// Takes in which namespaces have policies: `None`: that is to be known, and is not yet. True when that is
    /// another answer.
    pub(crate) fn set_policies(&mut self, namespaces: Option<Vec<String>>) -> bool {
        let differs = self.policies != namespaces;
        self.policies = namespaces;
        differs
    }

    /// Takes in the newest view of the cluster. True when it is another one.
    pub(crate) fn set_snapshot(&mut self, mut snapshot: Snapshot) -> bool {
        let namespaces = self.policies.as_ref().unwrap_or(&self.remembered);
        let same = self.snapshot.view.policy_namespaces == *namespaces;
        if same && Arc::ptr_eq(&snapshot.view, &self.told_view) {
            snapshot.view = Arc::clone(&self.snapshot.view);
        } else {
            self.told_view = Arc::clone(&snapshot.view);
            if snapshot.view.policy_namespaces != *namespaces {
                Arc::make_mut(&mut snapshot.view).policy_namespaces.clone_from(namespaces);
            }
        }
        if snapshot == self.snapshot {
            return false;
        }
        self.snapshot = snapshot;
        self.decided = false;
        true
    }
}
