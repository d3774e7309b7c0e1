//! How the loop waits, and how often it goes round.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Loop;
use crate::inbox::Command;
use crate::port::Port;

/// How long events are gathered before a round, unless somebody waits for it.
const GATHER: Duration = Duration::from_millis(10);
/// The same while round after round finds nothing to do: something nearby changes all the time, or
/// plugins make pods, of which each costs events and nothing else.
const GATHER_MOST: Duration = Duration::from_millis(160);
/// What comes after no round for this time is no part of what was before.
const CALM: Duration = Duration::from_secs(1);

/// How long events are gathered.
#[derive(Debug, Default)]
pub(super) struct Pace {
    gather: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// Before the next round.
    fn gather(&self, now: Instant) -> Duration {
        let calm = self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM);
        if calm { GATHER } else { self.gather.max(GATHER) }
    }

    /// There was a round, and it found nothing to do (`idle`), or did something.
    pub(super) fn after_round(&mut self, now: Instant, idle: bool) {
        let gather = self.gather(now);
        self.gather = if idle { (gather * 2).min(GATHER_MOST) } else { GATHER };
        self.last = Some(now);
    }
}

impl<P: Port> Loop<P> {
    /// Sleeps until something happens or is due. Events of the kernel, of directories and of the
    /// cluster come in bursts and are gathered for a moment; a question is not kept waiting.
    pub(super) fn wait(&mut self, audit_at: Instant) -> Vec<Command> {
        let voice = self.voice.next_wake(Instant::now());
        let until = [self.core.next_wake(), voice, self.waiting.iter().map(|w| w.until).min()];
        let until = until.into_iter().flatten().fold(audit_at, Instant::min);
        let asked = self.noted || {
            let changes = self.core.port.changes_fd();
            let mut fds = [
                PollFd::new(&self.inbox, PollFlags::IN),
                PollFd::new(&changes, PollFlags::IN),
                PollFd::new(&self.dirs, PollFlags::IN),
            ];
            wait_for(&mut fds, until)
        };
        let mut commands: Vec<Command> = self.inbox.take().into();
        if !asked {
            return commands;
        }
        let until = Instant::now() + self.pace.gather(Instant::now());
        while !commands.iter().any(urgent) {
            self.heed_records();
            let mut fds =
                [PollFd::new(&self.inbox, PollFlags::IN), PollFd::new(&self.dirs, PollFlags::IN)];
            if !wait_for(&mut fds, until) {
                break;
            }
            commands.extend(self.inbox.take());
        }
        commands
    }

    /// Who is attached here counts at once for policies, which may name him: that costs no look at the kernel.
    fn heed_records(&mut self) {
        if self.dirs.changed() {
            self.noted = true;
            let changed = self.dirs.take_records();
            self.core.reread(&changed);
            self.tell_of(&changed);
        }
    }
}

/// True when somebody waits for the answer.
fn urgent(command: &Command) -> bool {
    !matches!(command, Command::Cluster)
}

/// True when one of the descriptors became readable in time.
fn wait_for(fds: &mut [PollFd<'_>], until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    // An interrupted wait is a short one.
    poll(fds, Some(&timeout)).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_for_nothing_become_seldom_until_it_is_calm() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert_eq!(pace.gather(now), GATHER);
        let mut all = Vec::new();
        for _ in 0..6 {
            pace.after_round(now, true);
            all.push(pace.gather(now).as_millis());
            now += Duration::from_millis(300);
        }
        assert_eq!(all, [20, 40, 80, 160, 160, 160]);
        // There was something to do: it may go on.
        pace.after_round(now, false);
        assert_eq!(pace.gather(now), GATHER);
        (0..4).for_each(|_| pace.after_round(now, true));
        assert_eq!(pace.gather(now + CALM), GATHER_MOST);
        now += CALM + Duration::from_millis(1);
        assert_eq!(pace.gather(now), GATHER);
        pace.after_round(now, true);
        assert_eq!(pace.gather(now), GATHER * 2);
    }
}
