//! What the node says of itself in the API, from what the loop found.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_cluster::{Announcement, NetworkState};

use crate::report::Report;

/// How long pods must not be attachable until the Node says so: an agent that starts, or whose node
/// changes its address, is not ready for a moment, and pods in motion are not to be sent elsewhere.
const UNREADY_AFTER: Duration = Duration::from_secs(30);
/// How long a problem must last to become an Event: a Node that was made a moment ago lacks its subnet.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// Problems that are told at a time. With many peers away, the first say enough.
const MOST: usize = 20;

/// Turns reports into announcements.
#[derive(Debug, Default)]
pub(crate) struct Voice {
    unready_since: Option<Instant>,
    problems: BTreeMap<String, Instant>,
}

impl Voice {
    /// What to say after a report.
    pub(crate) fn say(&mut self, report: &Report, now: Instant) -> Announcement {
        Announcement {
            network: self.network(report, now),
            claims: report.claims.clone(),
            pod_mtu: report.pod_mtu,
            flannel: report.flannel.clone(),
            problems: self.problems(report, now),
        }
    }

    /// When there is something to say though nothing happens.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let unready = self.unready_since.map(|since| since + UNREADY_AFTER);
        let problems = self.problems.values().map(|since| *since + TOLD_AFTER);
        unready.into_iter().chain(problems).filter(|at| *at > now).min()
    }

    fn network(&mut self, report: &Report, now: Instant) -> Option<NetworkState> {
        if report.ready {
            self.unready_since = None;
            return Some(NetworkState::Ready(report.network.clone()));
        }
        let since = *self.unready_since.get_or_insert(now);
        if now.duration_since(since) < UNREADY_AFTER {
            return None;
        }
        let of_node = report.problems.iter().find(|p| p.owner == "node");
        let why = of_node.map_or("pods cannot be attached yet", |p| p.message.as_str());
        Some(NetworkState::Unready(why.to_owned()))
    }

    fn problems(&mut self, report: &Report, now: Instant) -> std::collections::BTreeSet<String> {
        let of_pods = |owner: &str| owner.starts_with("pod ");
        let problems = report.problems.iter().filter(|p| !of_pods(&p.owner) && !p.told_there);
        let problems = problems.map(|p| match p.owner.as_str() {
            "node" => p.message.clone(),
            owner => format!("{owner}: {}", p.message),
        });
        let conflicts = report.conflicts.iter().map(|(key, why)| format!("{key}: {why}"));
        let present: Vec<String> = problems.chain(conflicts).collect();
        self.problems.retain(|problem, _| present.contains(problem));
        for problem in present {
            self.problems.entry(problem).or_insert(now);
        }
        let lasting = self.problems.iter().filter(|(_, at)| now.duration_since(**at) >= TOLD_AFTER);
        lasting.map(|(problem, _)| problem.clone()).take(MOST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Problem;

    fn report(ready: bool, problems: &[(&str, &str)]) -> Report {
        let problem = |(owner, message): &(&str, &str)| Problem::new(*owner, *message);
        let problems = problems.iter().map(problem).collect();
        Report { ready, problems, network: "pods of 10.244.1.0/24".to_owned(), ..Report::default() }
    }

    #[test]
    fn a_moment_without_network_is_not_told() {
        let mut voice = Voice::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let ready = Some(NetworkState::Ready("pods of 10.244.1.0/24".to_owned()));
        assert_eq!(voice.say(&report(false, &[]), at(0)).network, None);
        assert_eq!(voice.say(&report(true, &[]), at(1)).network, ready);
        assert_eq!(voice.say(&report(false, &[]), at(40)).network, None);
        assert_eq!(voice.next_wake(at(40)), Some(at(70)));
        assert_eq!(voice.say(&report(false, &[]), at(69)).network, None);
        let why = [("peer n2", "away"), ("node", "no podCIDR")];
        let unready = Some(NetworkState::Unready("no podCIDR".to_owned()));
        assert_eq!(voice.say(&report(false, &why), at(70)).network, unready);
        assert_eq!(voice.say(&report(true, &[]), at(71)).network, ready);
        assert_eq!(voice.say(&report(false, &[]), at(99)).network, None);
    }

    #[test]
    fn problems_that_last_are_told_and_those_of_pods_are_not() {
        let mut voice = Voice::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let all = [("node", "no podCIDR"), ("peer n2", "away"), ("pod a/b", "address taken")];
        assert!(voice.say(&report(true, &all), at(0)).problems.is_empty());
        assert!(voice.say(&report(true, &all[1..]), at(9)).problems.is_empty());
        // Gone in between: the time begins anew.
        assert_eq!(
            voice.say(&report(true, &all), at(10)).problems,
            ["peer n2: away".into()].into()
        );
        assert_eq!(voice.next_wake(at(10)), Some(at(20)));
        assert_eq!(voice.say(&report(true, &all), at(20)).problems.len(), 2);
        assert_eq!(voice.next_wake(at(20)), None);
        assert!(voice.say(&report(true, &[]), at(21)).problems.is_empty());
    }

    #[test]
    fn what_a_peer_says_itself_is_not_repeated() {
        let mut voice = Voice::default();
        let mut found = report(true, &[("peer n2", "has no podCIDRs"), ("peer n3", "no route")]);
        found.problems[0].told_there = true;
        let start = Instant::now();
        voice.say(&found, start);
        let told = voice.say(&found, start + TOLD_AFTER).problems;
        assert_eq!(told, ["peer n3: no route".into()].into());
    }
}
