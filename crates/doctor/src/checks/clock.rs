//! The clock.

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

/// Seconds by which file systems and clocks may differ.
const SLACK: u64 = 60;

/// A clock that is behind our own files was set back, or has not been set since the start.
pub(super) fn behind(facts: &Facts) -> Vec<Finding> {
    let clock = &facts.clock;
    let Some((file, time)) = &clock.youngest else { return Vec::new() };
    if *time <= clock.now + SLACK {
        return Vec::new();
    }
    let finding = Finding::new("clock-behind", Severity::Warning, file.clone())
        .says(
            format!("the clock is {} s behind the time of a file of ours", time - clock.now),
            "certificates and tokens of the API count as not valid yet, and the agent cannot log in",
        )
        .fix(["# set the clock, and let it be kept: timedatectl set-ntp true".to_owned()]);
    vec![finding]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Clock;

    #[test]
    fn files_of_the_future() {
        let at = |now| {
            let clock = Clock { now, youngest: Some(("f".into(), 1000)) };
            behind(&Facts { clock, ..Facts::default() }).len()
        };
        assert_eq!((at(1000), at(940), at(939)), (0, 0, 1));
    }
}
