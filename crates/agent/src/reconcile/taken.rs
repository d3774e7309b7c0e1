//! What was taken over of another network, as the loop knows it.

use std::collections::BTreeSet;
use std::path::Path;

use causeway_desired::input::TakenOver;
use causeway_types::IfName;

use crate::taken_over::{self, ASIDE};

/// The record, read when the agent starts: it changes only while none runs.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    over: Option<TakenOver>,
    problem: Option<String>,
}

impl Taken {
    pub(super) fn load(path: &Path) -> Self {
        match taken_over::load(path) {
            Ok(over) => Self { over, problem: None },
            Err(error) => {
                let what = "what was taken over of another network is not known to be ours";
                Self { over: None, problem: Some(format!("{error}; {what}")) }
            }
        }
    }

    pub(crate) fn over(&self) -> Option<&TakenOver> {
        self.over.as_ref()
    }

    /// Moves the configurations of the former network to names that no runtime loads. The own list is
    /// there by then, and comes first.
    ///
    /// # Errors
    /// When a file cannot be moved; it is tried again after the next round.
    pub(super) fn put_aside(&self, dir: &Path) -> Result<(), String> {
        for name in self.over.iter().flat_map(|over| &over.configurations) {
            let (from, to) = (dir.join(name), dir.join(format!("{name}{ASIDE}")));
            match std::fs::rename(&from, &to) {
                Ok(()) => {
                    tracing::info!(to = %to.display(), "the former network's configuration moved")
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(format!("{}: cannot be moved aside: {e}", from.display())),
            }
        }
        Ok(())
    }

    /// Names of tunnel devices.
    pub(super) fn tunnels(&self) -> BTreeSet<IfName> {
        self.over.iter().flat_map(|all| all.tunnels.iter().map(|t| t.name.clone())).collect()
    }

    /// Why the record cannot be used.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problem.iter()
    }
}
