//! When the node is ready for pods, and what it says then.

use std::net::IpAddr;
use std::time::Instant;

use causeway_model::Owner;
use causeway_plugins::{Paths, usage};
use causeway_types::state::NodeFile;

use super::Core;
use crate::port::Port;
use crate::report::ViewFrom;
use crate::retry::Failure;
use crate::self_test::Trial;

impl<P: Port> Core<P> {
    /// The node file, the configuration list and the last good view.
    pub(super) fn write_outputs(&mut self, now: Instant) {
        let (from, view) = self.view();
        if from == ViewFrom::Api && self.policies.is_some() {
            let view = view.cloned().unwrap_or_default();
            self.last_view_at = self.last_view.keep(&view, now);
        }
        self.count_addresses();
        let full = self.usage.as_ref().is_ok_and(|usage| !usage::exhausted(usage).is_empty());
        let node_ok = self
            .desired
            .iter()
            .all(|(key, entry)| entry.owner != Owner::Node || self.settled.contains(key));
        self.ready = match &self.node_file {
            // Without a free address there is no pod to test with, nor any to keep from starting.
            Some(file)
                if node_ok
                    && self.trouble.is_none()
                    && from != ViewFrom::Nowhere
                    && (full || self.self_test.allows(file, now)) =>
            {
                let config = &self.config;
                let render = |file: &NodeFile| causeway_desired::conflist::render(config, file);
                let written = self.ready_files.write(file.clone(), render);
                match written.and_then(|()| self.taken.put_aside(&self.conf_dir)) {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!("{error}");
                        self.trouble.get_or_insert_with(|| Failure::first(error, now));
                        false
                    }
                }
            }
            _ => false,
        };
    }

    /// Looks how many addresses of the node's ranges are left. True when that has changed.
    pub(crate) fn count_addresses(&mut self) -> bool {
        let Some(file) = &self.node_file else { return false };
        let found = usage::usage(&self.plugins, &self.config.network, file);
        let found = found.map_err(|error| error.to_string());
        let differs = found != self.usage;
        self.usage = found;
        if let Ok(usage) = &self.usage {
            self.metrics.set_addresses(usage);
        }
        differs
    }

    /// A test of this node with a node file as it is going to be.
    pub(crate) fn trial(&self, paths: Paths, file: &NodeFile) -> Trial {
        let (_, view) = self.view();
        let own = view.and_then(|v| v.nodes.get(&self.me)).map(|node| node.addresses.clone());
        let there =
            |address: &IpAddr| self.facts.addresses.iter().any(|(_, a)| a.addr() == *address);
        let addresses = own.unwrap_or_default().into_iter().filter(there).collect();
        Trial::new(paths, &self.config, file, addresses)
    }

    /// What an agent before this one said of the node in this boot.
    pub(crate) fn announced(&self) -> Option<&NodeFile> {
        self.ready_files.written()
    }
}
