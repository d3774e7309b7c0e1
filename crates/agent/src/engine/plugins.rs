//! Plugins that ask whether their pods may start.

use std::net::IpAddr;
use std::time::Instant;

use super::{ANSWER_WITHIN, Loop};
use crate::dirs::Records;
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
                // This is word of it as well, and it may be gone again with the next round.
                if let Some(told) = &mut self.told {
                    let others = told.get(&pod).is_some_and(|before| *before != addresses);
                    // Where it has had others it is told of again, whatever it has then.
                    let now = if others { Vec::new() } else { addresses.clone() };
                    told.insert(pod.clone(), now);
                }
                let ask_at = Some(Instant::now() + policy::ASK_AFTER);
                policies.confirm(Confirm { pod, uid, addresses, reply, until, ask_at });
            }
            // Whoever asked may have given up.
            _ => drop(reply.send(Ok(()))),
        }
    }

    /// Tells the policies' thread of pods whose records were written just now. Who is new here with addresses
    /// that nobody had is told of alone.
    pub(super) fn tell_of(&mut self, changed: &Records) {
        let new = |name: &String| {
            let (pod, addresses) = policy::endpoint(self.core.records.get(name)?)?;
            let told = self.told.as_ref()?;
            let taken = |ip: &IpAddr| told.values().flatten().any(|other| other == ip);
            let new = !told.contains_key(&pod) && !addresses.iter().any(taken);
            new.then_some((pod, addresses))
        };
        let known = |name: &String| {
            let told = self.told.as_ref().zip(self.core.records.get(name));
            let same = told.and_then(|(told, record)| {
                let (pod, addresses) = policy::endpoint(record)?;
                Some(record.leaving.is_none() && told.get(&pod) == Some(&addresses))
            });
            same == Some(true)
        };
        let one = match changed {
            Records::Named(names) if names.iter().all(known) => return,
            Records::Named(names) if names.len() == 1 => names.first().and_then(new),
            _ => None,
        };
        match (&self.policies, &mut self.told, one) {
            (Some(policies), Some(told), Some((pod, addresses))) => {
                policies.endpoint(pod.clone(), addresses.clone());
                told.insert(pod, addresses);
            }
            _ => self.tell_endpoints(),
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
