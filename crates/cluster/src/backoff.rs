//! Growing pauses between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Doubling pauses from 100 ms to 15 s, each with a random part, so that the nodes of a cluster
/// do not come back to a restarted API in step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(15);

    /// The next pause: between half of the step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = Self::FIRST.saturating_mul(1 << self.attempts.min(16)).min(Self::MOST);
        self.attempts = self.attempts.saturating_add(1);
        // A fresh RandomState is seeded by the system: random enough to spread callers.
        let random = RandomState::new().hash_one(self.attempts) as u32;
        step.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }

    /// Begins anew after a success.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_anew() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!((Duration::from_millis(50)..=Backoff::FIRST).contains(&first), "{first:?}");
        let late = (0..100).map(|_| backoff.next()).last().unwrap();
        assert!((Backoff::MOST / 2..=Backoff::MOST).contains(&late), "{late:?}");
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
