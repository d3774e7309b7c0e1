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
/// A plugin that asks, or has written a record, is at work for some milliseconds more, and where one comes others do: a
/// round, tens of milliseconds beside hundreds of pods, would take the one's processor, and have the next wait for its
/// answer.
const AFTER_PLUGIN: Duration = Duration::from_millis(60);
/// A round is put off for so long at the most while plugins are at work.
const PUT_OFF: Duration = Duration::from_millis(500);

/// When the next round is to be.
#[derive(Debug, Default)]
pub(super) struct Pace {
    gather: Duration,
    last: Option<Instant>,
    next: Option<Next>,
}

/// A round that something asks for.
#[derive(Clone, Copy, Debug)]
struct Next {
    /// Since when.
    since: Instant,
    at: Instant,
}

impl Pace {
    fn gather(&self, now: Instant) -> Duration {
        let calm = self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM);
        if calm { GATHER } else { self.gather.max(GATHER) }
    }

    /// Something happened, now or before: when the round for it is to be.
    fn happened(&mut self, now: Instant) -> Instant {
        let gather = self.gather(now);
        self.next.get_or_insert(Next { since: now, at: now + gather }).at
    }

    /// A plugin was answered, or has written something down: it is at work. Answers when the next round is to be.
    pub(super) fn at_work(&mut self, now: Instant) -> Instant {
        let next = self.next.get_or_insert(Next { since: now, at: now });
        next.at = next.at.max(now + AFTER_PLUGIN).min(next.since + PUT_OFF);
        next.at
    }

    /// What was asked for is looked into.
    pub(super) fn goes_on(&mut self) {
        self.next = None;
    }

    /// There was a round, and it found nothing to do (`idle`), or did something. Half of the rounds beside
    /// plugins at work meet one half-way and do something of its work: they are to become seldom as well.
    pub(super) fn after_round(&mut self, now: Instant, idle: bool) {
        let gather = self.gather(now);
        let next = if idle { gather * 2 } else { gather / 2 };
        self.gather = next.clamp(GATHER, GATHER_MOST);
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
        let asked = self.noted || self.pace.next.is_some() || {
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
        let mut until = self.pace.happened(Instant::now());
        while !commands.iter().any(urgent) {
            if self.heed_records() {
                until = self.pace.at_work(Instant::now());
            }
            let mut fds =
                [PollFd::new(&self.inbox, PollFlags::IN), PollFd::new(&self.dirs, PollFlags::IN)];
            if !wait_for(&mut fds, until) {
                break;
            }
            commands.extend(self.inbox.take());
        }
        commands
    }

    /// Who is attached here counts at once for policies, which may name him: that costs no look at the kernel. True when
    /// plugins wrote records.
    fn heed_records(&mut self) -> bool {
        if !self.dirs.changed() {
            return false;
        }
        self.noted = true;
        let changed = self.dirs.take_records();
        self.core.reread(&changed);
        self.tell_of(&changed);
        changed.are_named()
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
        // There was something to do: it may go on, or is a part of what others do by themselves.
        pace.after_round(now, false);
        assert_eq!(pace.gather(now), GATHER_MOST / 2);
        (0..8).for_each(|_| pace.after_round(now, false));
        assert_eq!(pace.gather(now), GATHER);
        (0..4).for_each(|_| pace.after_round(now, true));
        assert_eq!(pace.gather(now + CALM), GATHER_MOST);
        now += CALM + Duration::from_millis(1);
        assert_eq!(pace.gather(now), GATHER);
        pace.after_round(now, true);
        assert_eq!(pace.gather(now), GATHER * 2);
    }

    #[test]
    fn a_round_waits_for_plugins_but_not_for_ever() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(pace.happened(at(0)), at(10));
        assert_eq!(pace.at_work(at(5)), at(65));
        assert_eq!(pace.happened(at(6)), at(65), "what comes later changes nothing");
        // Plugin after plugin.
        (1..=8).for_each(|n| assert_eq!(pace.at_work(at(50 * n)), at(50 * n + 60)));
        assert_eq!(pace.at_work(at(450)), at(500));
        assert_eq!(pace.happened(at(451)), at(500));
        assert_eq!(pace.at_work(at(501)), at(500));
        pace.goes_on();
        // A question alone, of which nothing has been heard otherwise yet.
        assert_eq!(pace.at_work(at(600)), at(660));
        assert_eq!(pace.happened(at(601)), at(660));
    }
}
