//! Records of what policies dropped, and why.
//!
//! The kernel hands over some of the packets that it drops (so many a second of each kind), and counts all. What is
//! handed over is told by pods, policy and rule, as the policies are now.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use causeway_enforce::{Cause, Enforcer, LOG_BYTES, LOG_GROUP, Reason, Way};
use causeway_kernel::log::{End, Log, Logged};
use causeway_policy::judge::By;
use causeway_policy::{Party, Protocol, Transport, Who};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::Handle;

/// Kinds of drops that are kept; the one that was seen least lately goes first.
const MOST: usize = 512;
/// How long to wait when the kernel's group cannot be had.
const RETRY: Duration = Duration::from_secs(5);

/// What was dropped on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropReport {
    /// All packets that were dropped since this agent began, by reason: `ingress` and `egress` (policies),
    /// `invalid`, `midstream`.
    pub packets: BTreeMap<String, u64>,
    /// What is known of them, the last seen at the end. Of many packets a second some are told of.
    pub records: Vec<DropRecord>,
}

/// Packets of one kind that were dropped: with equal ends, port and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRecord {
    /// When the first one was seen, in milliseconds of Unix time.
    pub first: u64,
    /// When the last one was.
    pub last: u64,
    /// How many the kernel told of: at least so many were dropped.
    pub seen: u64,
    /// Who opened the connection, or sent the packet where it is of none.
    pub from: DropEnd,
    /// Who is to answer it, or was to get the packet.
    pub to: DropEnd,
    /// What was asked for, where that is another address or port than that of who answers: a Service. Kernels
    /// without `CONFIG_NETFILTER_NETLINK_GLUE_CT` do not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// By what: `tcp/80`, `icmp`, `protocol 47`.
    pub transport: String,
    /// `ingress`, `egress`, `invalid` or `midstream`.
    pub reason: String,
    /// Answers are dropped, too, or alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
    /// The pod whose policies did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The policies that did it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The rule that did it; absent where no rule allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why, for a person.
    pub why: String,
}

/// One end of what was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropEnd {
    /// Its address.
    pub address: IpAddr,
    /// `NAMESPACE/NAME`, where it is a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl DropEnd {
    fn of(party: &Party) -> Self {
        let (pod, node) = match &party.who {
            Who::Pod(name) => (Some(name.to_string()), None),
            Who::Node(name) => (None, Some(name.to_string())),
            Who::Outside => (None, None),
        };
        Self { address: party.address, pod, node }
    }
}

/// `pod web/a (10.244.1.3)`.
impl std::fmt::Display for DropEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.pod, &self.node) {
            (Some(pod), _) => write!(f, "pod {pod} ({})", self.address),
            (None, Some(node)) => write!(f, "node {node} ({})", self.address),
            (None, None) => self.address.fmt(f),
        }
    }
}

/// What a drop counts as in metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) reason: &'static str,
    pub(super) policy: String,
    pub(super) rule: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: Option<u16>,
    reason: Reason,
}

#[derive(Debug)]
struct Kept {
    record: DropRecord,
    count: Count,
    /// The table's revision by which it was judged.
    revision: u64,
}

/// The records.
#[derive(Debug, Default)]
pub(super) struct Drops {
    all: HashMap<Key, Kept>,
    /// Of each chain that counts: what it had counted last, and all that it counted in this process's time.
    counted: BTreeMap<String, (u64, u64)>,
}

/// The word of a reason in reports.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Ingress => "ingress",
        Reason::Egress => "egress",
        Reason::Invalid => "invalid",
        Reason::Midstream => "midstream",
    }
}

impl Drops {
    /// Takes in a packet at a time and a revision of the table. Answers what it counts as.
    pub(super) fn take_in(
        &mut self,
        packet: &Logged,
        enforcer: &Enforcer,
        revision: u64,
        now: SystemTime,
    ) -> Option<Count> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let (reason, way) = Reason::of(&packet.prefix)?;
        let (from, to, protocol) = ends(packet, reason, way)?;
        let key = Key { from: from.0, to: to.0, protocol, port: to.1, reason };
        if self.all.get(&key).is_none_or(|kept| kept.revision != revision) {
            let mut fresh = judge(packet, key, enforcer, revision);
            (fresh.record.first, fresh.record.last) = (now, now);
            if let Some(before) = self.all.get(&key) {
                fresh.record.first = before.record.first;
                fresh.record.seen = before.record.seen;
                fresh.record.answers = before.record.answers;
            } else if self.all.len() >= MOST {
                let oldest = self.all.iter().min_by_key(|(_, kept)| kept.record.last);
                if let Some(oldest) = oldest.map(|(key, _)| *key) {
                    self.all.remove(&oldest);
                }
            }
            self.all.insert(key, fresh);
        }
        let kept = self.all.get_mut(&key)?;
        kept.record.seen += 1;
        kept.record.last = now;
        kept.record.answers |= way == Way::Reply;
        Some(kept.count.clone())
    }

    /// What chains have counted until now, as `read` says, was in the time of another agent.
    pub(super) fn begin(&mut self, mut read: impl FnMut(&str) -> Option<u64>) {
        let chains = Reason::ALL.into_iter().flat_map(Reason::chains);
        self.counted =
            chains.filter_map(|chain| Some((chain.clone(), (read(&chain)?, 0)))).collect();
    }

    /// What was dropped; `read` says what a chain has counted.
    pub(super) fn report(&mut self, mut read: impl FnMut(&str) -> Option<u64>) -> DropReport {
        let mut packets = BTreeMap::new();
        for reason in Reason::ALL {
            let count = |chain: String| self.count(chain, &mut read);
            packets.insert(word(reason).to_owned(), reason.chains().into_iter().map(count).sum());
        }
        let mut records: Vec<DropRecord> =
            self.all.values().map(|kept| kept.record.clone()).collect();
        records.sort_by_key(|record| (record.last, record.first));
        DropReport { packets, records }
    }

    /// A counter begins anew where its chain is made anew.
    fn count(&mut self, chain: String, read: &mut impl FnMut(&str) -> Option<u64>) -> u64 {
        let before = self.counted.get(&chain).copied();
        let Some(now) = read(&chain) else { return before.map_or(0, |(_, all)| all) };
        let all = match before {
            None => now,
            Some((last, all)) if now >= last => all + (now - last),
            Some((_, all)) => all + now,
        };
        self.counted.insert(chain, (now, all));
        all
    }
}

/// Between whom, as policies see it: who opened the connection and who answers it. The rules are where a header
/// has both, before and behind any translation.
fn ends(packet: &Logged, reason: Reason, way: Way) -> Option<(End, End, u8)> {
    if let (Some(of), Some(_)) = (packet.connection, reason.direction()) {
        return Some((of.client, of.server, of.protocol));
    }
    let header = packet.header?;
    // An error goes the other way than what it is about.
    let (header, original) = match (packet.about, way) {
        (_, Way::Untracked) => (header, true),
        (Some(about), _) if reason.direction().is_some() => (about, way == Way::Reply),
        _ => (header, way == Way::Original),
    };
    Some(match original {
        true => (header.from, header.to, header.protocol),
        false => (header.to, header.from, header.protocol),
    })
}

fn judge(packet: &Logged, key: Key, enforcer: &Enforcer, revision: u64) -> Kept {
    let (named, transport) = transport(key.protocol, key.port);
    let mut record = DropRecord {
        first: 0,
        last: 0,
        seen: 0,
        from: DropEnd::of(&enforcer.party(key.from)),
        to: DropEnd::of(&enforcer.party(key.to)),
        asked: asked(packet, key),
        transport: named,
        reason: word(key.reason).to_owned(),
        answers: false,
        pod: None,
        policies: Vec::new(),
        rule: None,
        why: String::new(),
    };
    let Some(direction) = key.reason.direction() else {
        record.why = match key.reason {
            Reason::Midstream => {
                "in the middle of a TCP connection that this node does not know (any more), and not \
                 from its client by the ports: it goes on when the client sends something"
            }
            _ => {
                "out of place in its connection (conntrack: invalid), and a pod with policies is at \
                 one end"
            }
        }
        .to_owned();
        return kept(record, key, revision);
    };
    match enforcer.cause(direction, key.from, key.to, transport) {
        None => {
            record.why = "the pod whose policies it was is not attached here any more".to_owned();
        }
        Some((pod, Cause::Shut)) => {
            record.why = format!(
                "the Kubernetes API has not told of pod {pod}, and policies may apply to it: nothing \
                 passes until it does"
            );
            record.pod = Some(pod.to_string());
        }
        Some((pod, Cause::Policies(decision))) => {
            record.pod = Some(pod.to_string());
            record.why = match decision.allowed {
                false => format!("{direction} of pod {pod}: {}", decision.reason()),
                true => format!(
                    "{direction} of pod {pod}: the policies allow it now ({}); before their last \
                     change they did not",
                    decision.reason()
                ),
            };
            match (decision.allowed, decision.by) {
                (false, By::Rule(rule)) => {
                    record.policies = vec![rule.policy.to_string()];
                    record.rule = Some(rule.to_string());
                }
                (false, By::Isolation(policies)) => {
                    record.policies = policies.iter().map(ToString::to_string).collect();
                }
                _ => {}
            }
        }
    }
    kept(record, key, revision)
}

fn kept(record: DropRecord, key: Key, revision: u64) -> Kept {
    let policy = match record.policies.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        // A pod may be under a thousand of them.
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    let rule = record.rule.clone().unwrap_or_default();
    Kept { count: Count { reason: word(key.reason), policy, rule }, record, revision }
}

/// A protocol and port in words, and as policies know them.
fn transport(protocol: u8, port: Option<u16>) -> (String, Transport) {
    let known = Protocol::ALL.into_iter().find(|known| known.number() == protocol);
    match (known, port) {
        (Some(protocol), Some(port)) => {
            let transport = Transport::Port(protocol, port);
            (transport.to_string(), transport)
        }
        (Some(protocol), None) => (format!("{protocol} (later fragment)"), Transport::Other),
        (None, _) if matches!(protocol, 1 | 58) => ("icmp".to_owned(), Transport::Other),
        (None, _) => (format!("protocol {protocol}"), Transport::Other),
    }
}

/// What was asked for, where somebody else answers.
fn asked(packet: &Logged, key: Key) -> Option<String> {
    let connection = packet.connection.filter(|c| c.asked != c.server)?;
    key.reason.direction()?;
    let (ip, port) = connection.asked;
    Some(match port {
        Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    })
}

/// Listens to what the kernel drops for policies in the calling thread's network namespace, from when there are
/// some; tells the thread of policies of it. Does so until the process ends.
pub async fn listen(handle: Handle) {
    let mut wanted = handle.ends();
    if wanted.wait_for(|wanted| *wanted).await.is_err() {
        return;
    }
    let job = move || {
        let mut said = String::new();
        loop {
            let Err(error) = follow(&handle);
            let words = error.to_string();
            if said != words {
                tracing::warn!(
                    "what policies drop is not told of: {words}; it is tried again every {RETRY:?}"
                );
                said = words;
            }
            std::thread::sleep(RETRY);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("drops".into()).spawn(job) {
        tracing::warn!("what policies drop is not told of: cannot start a thread: {error}");
    }
}

fn follow(handle: &Handle) -> Result<Infallible, causeway_kernel::Error> {
    let mut log = Log::open(LOG_GROUP, LOG_BYTES)?;
    loop {
        // An interrupted wait is a short one.
        let _ = poll(&mut [PollFd::new(&log, PollFlags::IN)], None);
        // What could not be handed over is counted all the same.
        let (packets, _lost) = log.read()?;
        if !packets.is_empty() {
            handle.dropped(packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opened_it_is_told() {
        let end = |n: u8, port| (IpAddr::from([10, 0, 0, n]), port);
        let header = |from, to, protocol| causeway_kernel::log::Header { protocol, from, to };
        let (client, server) = (end(1, Some(40_000)), end(2, Some(80)));
        let router = header(end(9, None), end(1, None), 1);
        let (asks, answers) = (header(client, server, 6), header(server, client, 6));
        let tcp = Some((client, server, 6));
        let alone = Some((end(9, None), end(1, None), 1));
        for (prefix, of, about, wanted) in [
            ("causeway ingress", asks, None, tcp),
            ("causeway egress reply", answers, None, tcp),
            // Errors about what was asked go to who opened it, and about answers the other way.
            ("causeway ingress reply", router, Some(asks), tcp),
            ("causeway ingress", router, Some(answers), tcp),
            ("causeway ingress untracked", router, Some(asks), alone),
            ("causeway ingress untracked", answers, None, Some((server, client, 6))),
            ("causeway invalid", router, Some(asks), alone),
            ("causeway midstream", answers, None, Some((server, client, 6))),
        ] {
            let prefix = prefix.to_owned();
            let packet = Logged { prefix, header: Some(of), about, connection: None };
            let (reason, way) = Reason::of(&packet.prefix).unwrap();
            assert_eq!(ends(&packet, reason, way), wanted, "{packet:?}");
        }
    }

    #[test]
    fn counters_go_on_where_a_chain_is_made_anew() {
        let mut drops = Drops::default();
        let mut at = |n: u64| drops.report(|chain| Some(if chain == "in_deny_t" { n } else { 0 }));
        for (kernel, all) in [(3, 3), (5, 5), (2, 7), (2, 7), (4, 9)] {
            assert_eq!(at(kernel).packets["ingress"], all, "{kernel}");
        }
        let mut after_another = Drops::default();
        after_another.begin(|_| Some(7));
        assert_eq!(after_another.report(|_| Some(7)).packets["egress"], 0);
        assert_eq!(after_another.report(|_| Some(8)).packets["egress"], 2, "of two chains");
        assert_eq!(after_another.report(|_| None).packets["egress"], 2);
    }
}
