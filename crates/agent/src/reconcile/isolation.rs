//! Ports that become isolated under pods that live.
//!
//! A port of ours is isolated from birth. One that another network made is not, and its pod and others
//! know each other by their own MACs. So the node first gets ready to answer for pods and to route
//! between them; then the ports learn and flood no more, so that a pod that asks hears the bridge alone;
//! then what pods know of each other becomes the bridge; only then the ports are isolated; and what was
//! learned in between is put right. Whoever is cut off in between goes on from what the kernel shows.

use std::time::Instant;

use causeway_model::{Key, Link, Object, Owner, PortFlags};
use causeway_plan::Op;
use causeway_types::Mac;
use causeway_types::state::{Attach, AttachmentRecord};

use super::Core;
use crate::port::Port;
use crate::redirect::Redirect;

/// How often pods are looked at again at most: one look finds nothing as a rule.
const LOOKS: usize = 5;

/// A port that is to become isolated.
pub(super) fn is_joining(op: &Op) -> bool {
    let Op::Change { from: Object::Link(from), to: Object::Link(to) } = op else { return false };
    let isolated = |link: &Link| link.port.is_some_and(|port| port.isolated);
    from.master.is_some() && from.master == to.master && isolated(to) && !isolated(from)
}

impl<P: Port> Core<P> {
    /// Isolates ports, in the order that costs no pod a packet. Answers the keys of those that are.
    pub(super) fn isolate(&mut self, joining: Vec<Op>, now: Instant) -> Vec<Key> {
        if joining.is_empty() || self.is_unready(&joining) {
            return Vec::new();
        }
        let Some(redirect) = self.redirect() else { return Vec::new() };
        let quiet: Vec<Op> = joining.iter().map(quieted).collect();
        self.port.apply(&quiet);
        let pods = self.bridged();
        if let Err(error) = self.port.redirect(&Redirect { hold: true, ..redirect.clone() }, &pods)
        {
            let error = format!("not isolated, as pods would lose each other: {error}");
            tracing::warn!("{error}");
            for op in &joining {
                self.failures.failed(op.key(), error.clone(), now);
            }
            return Vec::new();
        }
        let ports: Vec<Op> =
            joining.iter().zip(&quiet).map(|(op, quiet)| after(op, quiet)).collect();
        let done = self.apply(&ports, now);
        tracing::info!(count = done.len(), "ports of pods that live are isolated");
        self.let_go(&redirect, &pods);
        done
    }

    /// What pods were made to hold is let go, and what they learned meanwhile is put right. An agent
    /// before this one may have died in between, so that the first round of each does it too.
    pub(super) fn look_again(&mut self) {
        let Some(redirect) = self.redirect().filter(|_| self.look_again) else { return };
        self.look_again = false;
        let pods = self.bridged();
        if pods.iter().any(AttachmentRecord::is_taken_over) {
            self.let_go(&redirect, &pods);
        }
    }

    fn let_go(&mut self, redirect: &Redirect, pods: &[AttachmentRecord]) {
        for _ in 0..LOOKS {
            match self.port.redirect(redirect, pods) {
                Ok(0) => return,
                Ok(count) => tracing::info!(count, "neighbours of pods that led past the bridge"),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// Something that pods need to reach each other by way of the node is still to be done.
    fn is_unready(&self, joining: &[Op]) -> bool {
        let of_node = |key: &Key| {
            let entry = self.desired.get(key);
            entry.is_some_and(|e| matches!(e.owner, Owner::Node | Owner::Pod(_)))
        };
        let open = |op: &Op| of_node(&op.key()) && !joining.iter().any(|j| j.key() == op.key());
        self.last_plan.ops.iter().any(|op| open(op) && !self.done.contains(&op.key()))
    }

    /// Pods on the bridge.
    fn bridged(&self) -> Vec<AttachmentRecord> {
        let mut all = self.records.desired();
        all.retain(|r| {
            r.attach == Attach::Bridge && r.bridge.as_ref() == Some(&self.config.bridge)
        });
        all
    }

    fn redirect(&self) -> Option<Redirect> {
        let nets = self.node_file.as_ref()?.ranges().collect();
        Some(Redirect { nets, mac: self.bridge_mac()?, hold: false })
    }

    fn bridge_mac(&self) -> Option<Mac> {
        match &self.desired.get(&Key::Link(self.config.bridge.clone()))?.object {
            Object::Link(link) => link.mac,
            _ => None,
        }
    }
}

/// The port as it is to be, and not isolated yet.
fn quieted(op: &Op) -> Op {
    let mut op = op.clone();
    if let Op::Change { to: Object::Link(to), .. } = &mut op {
        to.port = to.port.map(|port| PortFlags { isolated: false, ..port });
    }
    op
}

/// The rest of the way.
fn after(op: &Op, quiet: &Op) -> Op {
    match (op, quiet) {
        (Op::Change { to, .. }, Op::Change { to: from, .. }) => {
            Op::Change { from: from.clone(), to: to.clone() }
        }
        _ => op.clone(),
    }
}
