//! What failed, since when, and when it is tried again.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use causeway_model::Key;

/// The first pause after a failure.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const MOST: Duration = Duration::from_secs(30);

/// One object whose last operation failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What was attempted and what the kernel said.
    pub(crate) error: String,
    /// When it failed first.
    pub(crate) since: SystemTime,
    /// Failed attempts.
    pub(crate) attempts: u32,
    /// When it is tried again.
    pub(crate) next: Instant,
}

impl Failure {
    /// The first failed attempt.
    pub(crate) fn first(error: String, now: Instant) -> Self {
        Self { error, since: SystemTime::now(), attempts: 1, next: now + pause(0) }
    }

    /// One more failed attempt.
    pub(crate) fn again(&mut self, error: String, now: Instant) {
        self.error = error;
        self.next = now + pause(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
    }
}

/// All failures by the object's key.
#[derive(Debug, Default)]
pub(crate) struct Failures(BTreeMap<Key, Failure>);

impl Failures {
    /// Takes a failed attempt down and sets the next one's time: doubling from 100 ms to 30 s,
    /// each pause with a random part.
    pub(crate) fn failed(&mut self, key: Key, error: String, now: Instant) {
        match self.0.get_mut(&key) {
            Some(failure) => failure.again(error, now),
            None => {
                self.0.insert(key, Failure::first(error, now));
            }
        }
    }

    /// Forgets objects for which the function answers false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Key) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// True when an object's turn has not come yet.
    pub(crate) fn must_wait(&self, key: &Key, now: Instant) -> bool {
        self.0.get(key).is_some_and(|f| f.next > now)
    }

    /// Lets every failed object have its turn at once, because something changed.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for failure in self.0.values_mut() {
            failure.next = failure.next.min(now);
        }
    }

    /// When the next attempt is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().map(|f| f.next).min()
    }

    /// The failure of an object.
    pub(crate) fn get(&self, key: &Key) -> Option<&Failure> {
        self.0.get(key)
    }

    /// All failures.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Failure)> {
        self.0.iter()
    }
}

/// The pause after so many failures before: between half of the step and all of it.
fn pause(attempts: u32) -> Duration {
    let step = FIRST.saturating_mul(1 << attempts.min(16)).min(MOST);
    // A fresh RandomState is seeded by the system: random enough to spread nodes.
    let random = RandomState::new().hash_one(attempts) as u32;
    step.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let key = Key::Link("cw-vxlan".parse().unwrap());
        let now = Instant::now();
        let mut failures = Failures::default();
        for attempt in 0..20 {
            failures.failed(key.clone(), "no".into(), now);
            let wait = failures.next().unwrap() - now;
            let step = FIRST.saturating_mul(1 << attempt).min(MOST);
            assert!(wait >= step / 2 && wait <= step, "{attempt}: {wait:?}");
            assert!(failures.must_wait(&key, now));
            assert!(!failures.must_wait(&key, now + step));
        }
        assert_eq!(failures.get(&key).unwrap().attempts, 20);
        failures.hurry(now);
        assert!(!failures.must_wait(&key, now));
        failures.retain(|_| false);
        assert!(failures.next().is_none());
    }
}
