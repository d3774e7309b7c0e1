//! When the node is ready for pods, and what it says then.

use std::net::IpAddr;
use std::time::Instant;

use causeway_model::Owner;
use causeway_plugins::{Paths, usage};
use causeway_types::state::NodeFile;

use super::{API_PATIENCE, Core};
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
        let able = node_ok && self.trouble.is_none() && from != ViewFrom::Nowhere;
        self.may_test = able && self.node_file.is_some() && !full;
        self.ready = match &self.node_file {
            // Without a free address there is no pod to test with, nor any to keep from starting.
            Some(file) if able && (full || self.self_test.allows(file, now)) => {
                let config = &self.config;
                let render = |file: &NodeFile| causeway_desired::conflist::render(config, file);
                let written = self.ready_files.write(file.clone(), render);
                let written = written.and_then(|()| self.taken.put_aside(&self.conf_dir));
                self.note_written(written, now)
            }
            _ => {
                self.unwritten = None;
                false
            }
        };
    }

    /// Notes whether all was written: a round that something else asked for is no attempt more.
    fn note_written(&mut self, written: Result<(), String>, now: Instant) -> bool {
        let Err(error) = written else {
            self.unwritten = None;
            return true;
        };
        match &mut self.unwritten {
            Some(failure) if failure.next > now => failure.error = error,
            Some(failure) => {
                tracing::warn!("{error}");
                failure.again(error, now);
            }
            None => {
                tracing::warn!("{error}");
                self.unwritten = Some(Failure::first(error, now));
            }
        }
        false
    }

    /// When the next round is due even if nothing happens. What a round does not come to is no reason for one.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let patience =
            (self.view().1.is_none() && !self.disk_asked).then(|| self.started + API_PATIENCE);
        let at = |failure: &Option<Failure>| failure.as_ref().map(|failure| failure.next);
        let (trouble, unwritten) = (at(&self.trouble), at(&self.unwritten));
        let failures = self.failures.next().filter(|_| trouble.is_none());
        let test = self.self_test.next_wake().filter(|_| self.may_test);
        let (foreign, live) = (self.foreign.next_wake(), self.live.next_wake());
        let own = [failures, trouble, unwritten, self.last_view_at, patience, self.resume];
        own.into_iter().chain([test, foreign, live]).flatten().min()
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
