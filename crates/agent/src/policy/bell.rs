//! Wakes the policies' thread.
//!
//! By a pipe: the kernel takes the write for the last thing that the writer does for a while (`WF_SYNC`, `pipe_write`
//! in fs/pipe.c), and where caches are not shared lets the reader run where the writer ran. After a futex, which
//! channels wait at, it goes to where it ran before, even if that is where a plugin is at work.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

/// What wakes.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    pipe: Arc<OwnedFd>,
    rung: Arc<AtomicBool>,
}

/// What is woken.
#[derive(Debug)]
pub(super) struct Bell {
    pipe: OwnedFd,
    rung: Arc<AtomicBool>,
}

/// Both ends.
pub(super) fn bell() -> io::Result<(Rope, Bell)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let rung = Arc::new(AtomicBool::new(false));
    Ok((Rope { pipe: Arc::new(writer), rung: rung.clone() }, Bell { pipe: reader, rung }))
}

impl Rope {
    /// There is something to do, which can be seen by now.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Full it cannot be, and without a reader nobody is to be woken.
            let _ = rustix::io::write(&*self.pipe, &[0]);
        }
    }
}

impl Bell {
    /// Waits until there is something to do, nobody is left who could have something, or the time is over.
    pub(super) fn wait(&self, pause: Duration) {
        let timeout = Timespec {
            tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        };
        // An interrupted wait is a short one.
        if poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0)
        {
            let _ = rustix::io::read(&self.pipe, &mut [0u8; 8]);
            // Whoever saw it rung before this has put in what he has.
            self.rung.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn nothing_that_is_put_in_is_slept_over() {
        let (rope, bell) = bell().unwrap();
        let (sender, receiver) = channel();
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let (sender, rope) = (sender.clone(), rope.clone());
                std::thread::spawn(move || {
                    for n in 0..20_000u32 {
                        sender.send(n).unwrap();
                        rope.ring();
                        if n % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop((sender, rope));
        let start = Instant::now();
        let mut got = 0;
        loop {
            match receiver.try_recv() {
                Ok(_) => got += 1,
                Err(TryRecvError::Empty) => bell.wait(LONG),
                // Those who have gone wake, too.
                Err(TryRecvError::Disconnected) => break,
            }
        }
        assert_eq!(got, 80_000);
        assert!(start.elapsed() < LONG, "it was slept over");
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }

    #[test]
    fn a_pause_ends() {
        let (rope, bell) = bell().unwrap();
        let start = Instant::now();
        bell.wait(Duration::from_millis(30));
        assert!(start.elapsed() >= Duration::from_millis(30));
        rope.ring();
        rope.ring();
        bell.wait(LONG);
        assert!(start.elapsed() < LONG);
    }
}
