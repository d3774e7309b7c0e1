//! Growing pauses between attempts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A number from 0 to 1 that spreads callers.
pub(crate) fn random() -> f64 {
    // A fresh RandomState is seeded by the system: random enough for that.
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

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
        step.mul_f64(0.5 + 0.5 * random())
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
