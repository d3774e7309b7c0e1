//! Bearer tokens: the lab's own, which is good for as long as the lab, and others that end, as those
//! that a kubelet gets for a pod's service account and replaces in time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who may ask. Shared, changed at run time.
#[derive(Debug)]
pub struct Tokens {
    own: String,
    bound: Mutex<BTreeMap<String, Instant>>,
}

impl Tokens {
    /// Nobody but who has this token.
    pub fn new(own: String) -> Self {
        Self { own, bound: Mutex::default() }
    }

    /// The token that does not end.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// A new token that is refused (401) when its time is over.
    pub fn issue(&self, lifetime: Duration) -> String {
        let token = super::random_token();
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        bound.retain(|_, end| *end > now);
        bound.insert(token.clone(), now + lifetime);
        token
    }

    /// Ends a token now, or does nothing where there is none.
    pub fn revoke(&self, token: &str) {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
    }

    /// Whether a token is good now. Compares without telling by the time taken how much was right.
    pub(crate) fn admits(&self, given: &[u8]) -> bool {
        let now = Instant::now();
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let good = bound.iter().filter(|(_, end)| **end > now).map(|(token, _)| token.as_str());
        good.chain([self.own.as_str()]).fold(false, |found, token| found | same(given, token))
    }
}

fn same(given: &[u8], token: &str) -> bool {
    let token = token.as_bytes();
    let differences = given.iter().zip(token).fold(0, |all, (a, b)| all | (a ^ b));
    !token.is_empty() && given.len() == token.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_good_until_they_end() {
        let tokens = Tokens::new("secret".into());
        let (long, short) = (tokens.issue(Duration::from_secs(600)), tokens.issue(Duration::ZERO));
        assert_ne!(long, short);
        assert!(tokens.admits(long.as_bytes()) && tokens.admits(b"secret"));
        for bad in [short.as_bytes(), b"", b"secre", b"secretx", &long.as_bytes()[1..]] {
            assert!(!tokens.admits(bad));
        }
        tokens.revoke(&long);
        tokens.revoke("secret");
        assert!(!tokens.admits(long.as_bytes()) && tokens.admits(b"secret"));
        assert!(!Tokens::new(String::new()).admits(b""));
    }
}
