//! Plugins that ask whether their pods may start.

use std::time::Instant;

use super::Loop;
use crate::inbox::{Command, Reply};
use crate::port::Port;
use crate::reconcile::Answer;

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
                    // Whoever asked may have given up.
                    let _ = reply.send(Ok(()));
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
                Answer::Done => Ok(()),
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
}
