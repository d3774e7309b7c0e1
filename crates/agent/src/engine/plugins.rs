//! Plugins that ask whether their pods may start.

use std::time::Instant;

use super::{ANSWER_WITHIN, Loop};
use crate::inbox::{Command, Reply};
use crate::policy::{self, Confirm};
use crate::port::Port;
use crate::reconcile::Answer;
use crate::report::Report;
use crate::status::Problem;

/// A plugin that waits for its answer.
pub(super) struct Waiting {
    pub(super) file: String,
    pub(super) reply: Reply<()>,
    pub(super) until: Instant,
}

impl<P: Port> Loop<P> {
    /// Answers the plugins whose attachments need nothing that a round would do. True when there was one:
    /// what the kernel and the directories have to tell of it can wait until its pod runs.
    pub(super) fn answer_at_once(&mut self, commands: &mut Vec<Command>) -> bool {
        let (attachments, rest): (Vec<Command>, Vec<Command>) =
            commands.drain(..).partition(|c| matches!(c, Command::Attachment(..)));
        *commands = rest;
        let mut answered = false;
        for command in attachments {
            match command {
                Command::Attachment(file, reply) if self.core.knows_at_once(&file) => {
                    let until = Instant::now() + ANSWER_WITHIN;
                    self.attached(Waiting { file, reply, until });
                    answered = true;
                }
                other => commands.push(other),
            }
        }
        answered
    }

    /// Answers those whose rounds have come, or whose time is over.
    pub(super) fn answer_plugins(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let answer = match self.core.attachment_answer(&waiting.file) {
                Answer::Done => {
                    self.attached(waiting);
                    continue;
                }
                Answer::Never(why) => Err(why),
                Answer::NotYet(why) if now >= waiting.until => Err(why),
                Answer::NotYet(_) => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            // Whoever asked may have given up.
            let _ = waiting.reply.send(answer);
        }
    }

    /// A pod is attached as it should be: it may start, once its policies are in the kernel.
    fn attached(&mut self, waiting: Waiting) {
        let Waiting { file, reply, until } = waiting;
        let record = self.core.records.get(&file);
        let endpoint = record.and_then(|record| Some((policy::endpoint(record)?, record)));
        match (&self.policies, endpoint) {
            (Some(policies), Some(((pod, addresses), record))) => {
                let uid = record.pod.as_ref().and_then(|pod| pod.uid.clone());
                // All are told of again with the next round: it may have had other addresses, and be gone
                // again when that comes.
                self.told = None;
                let ask_at = Some(Instant::now() + policy::ASK_AFTER);
                policies.confirm(Confirm { pod, uid, addresses, reply, until, ask_at });
            }
            // Whoever asked may have given up.
            _ => drop(reply.send(Ok(()))),
        }
    }

    /// Tells the policies' thread which pods are attached here, where that changed.
    pub(super) fn tell_endpoints(&mut self) {
        let Some(policies) = &self.policies else { return };
        // What cannot be read is not gone.
        if self.core.records.unreadable.is_some() {
            return;
        }
        let now = policy::endpoints(&self.core.records.all());
        if self.told.as_ref() != Some(&now) {
            policies.endpoints(now.clone());
            self.told = Some(now);
        }
    }

    /// Tells the policies' thread that its table was changed, and by whom.
    pub(super) fn tell_of_changes(&mut self) {
        if let (Some(policies), Some(by)) = (&self.policies, self.core.port.take_policy_change()) {
            policies.touched(by);
        }
    }

    /// What the status is made of.
    pub(super) fn report(&self) -> Report {
        let mut report = self.core.report();
        let problem = self.policies.as_ref().and_then(policy::Handle::problem);
        report.problems.extend(problem.map(|text| Problem::new("node", text)));
        report
    }
}
