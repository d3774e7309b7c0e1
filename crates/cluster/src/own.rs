//! What a node says of itself in the API: the condition `NetworkUnavailable`, the taint that it takes
//! away when pods can be attached, and Events for people.
//!
//! Level-triggered like everything: what should be said is compared with what the Node says now,
//! whoever changed it, and only a difference is written. Nothing here disturbs the watches.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use causeway_desired::flannel::Annotations;
use causeway_types::{Cidr, Mtu, NodeName, names};
use k8s_openapi::api::core::v1::{Event, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::backoff::Backoff;
use crate::connect::{ConnectError, Connection};
use crate::health::Health;

/// The condition that tells whether a node's pod network is there
/// (`k8s.io/api/core/v1.NodeNetworkUnavailable`). Where it is True the node controller taints the node,
/// and no pod is sent there.
pub(crate) const CONDITION: &str = "NetworkUnavailable";
/// The taint that keeps pods away from a node until its network was seen to work.
pub(crate) const TAINT: &str = "causeway.dev/not-ready";
/// Who writes, in the fields that say so.
const MANAGER: &str = "causeway";
/// Events that are there already, for as long as the API keeps them, are counted up instead.
const ALREADY_EXISTS: u16 = 409;
/// A write is repeated when the watch has not shown its effect in this time.
const SHOWS_WITHIN: Duration = Duration::from_secs(10);
/// A request that is not answered in this time has failed, as for a kubelet that tells of its node. The
/// connection may be from an address that the node has lost.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// What stood for so long is written again at once when somebody changes it.
const STOOD: Duration = Duration::from_secs(120);
/// The longest text of an Event (`validation.go` of the Event API).
const LONGEST_NOTE: usize = 1024;

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Whether pods can be attached; `None` while that is not known, which changes nothing.
    pub network: Option<NetworkState>,
    /// What beside its pod subnets the node's pods have addresses of, or may get; `None` while that is
    /// not known, which changes nothing.
    pub claims: Option<Vec<Cidr>>,
    /// MTU of the node's pods; `None` while that is not known, which changes nothing.
    pub pod_mtu: Option<Mtu>,
    /// What the Node's annotations should tell nodes of flannel; `None` while that is not known or not
    /// ours to say, which changes nothing.
    pub flannel: Option<Annotations>,
    /// What an operator must know. Each becomes an Event when it is new.
    pub problems: BTreeSet<String>,
}

/// Whether pods can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkState {
    /// They can; with what there is, for people.
    Ready(String),
    /// They cannot, and why.
    Unready(String),
}

/// A condition as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What this node's object in the API says of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnNode {
    pub(crate) resource_version: String,
    pub(crate) condition: Option<Condition>,
    /// The place of our taint among the node's.
    pub(crate) taint: Option<usize>,
    /// The annotation with the node's claims, as it stands there.
    pub(crate) claims: Option<String>,
    /// The annotation with its pods' MTU.
    pub(crate) pod_mtu: Option<String>,
    /// The annotations for nodes of flannel, as they stand there.
    pub(crate) flannel: BTreeMap<String, String>,
}

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Write {
    Condition(Condition),
    RemoveTaint(usize),
    /// An annotation by its name; `None` takes it away.
    Annotation(&'static str, Option<String>),
    /// Annotations for nodes of flannel that differ.
    Flannel(Annotations),
}

/// What the Node lacks of what should be said. Only a network that works takes the taint away; one that
/// fails later does not bring it back: pods that are there would gain nothing, and the condition keeps
/// new ones away.
fn lacks(wanted: &Announcement, node: &OwnNode) -> Vec<Write> {
    // First: addresses are given out when the claim stands.
    let mut writes: Vec<Write> = claims(wanted, node).into_iter().collect();
    let mtu = wanted.pod_mtu.map(|mtu| mtu.to_string());
    if mtu.is_some() && mtu != node.pod_mtu {
        writes.push(Write::Annotation(names::POD_MTU, mtu));
    }
    writes.extend(flannel(wanted, node));
    if let Some(network) = &wanted.network {
        writes.extend(network_writes(network, node));
    }
    writes
}

fn claims(wanted: &Announcement, node: &OwnNode) -> Option<Write> {
    let claims: Vec<String> = wanted.claims.as_ref()?.iter().map(Cidr::to_string).collect();
    let text = Some(claims.join(",")).filter(|text| !text.is_empty());
    (text != node.claims).then_some(Write::Annotation(names::CLAIMED_POD_CIDRS, text))
}

fn flannel(wanted: &Announcement, node: &OwnNode) -> Option<Write> {
    let mut differing = wanted.flannel.clone()?;
    differing.retain(|key, value| node.flannel.get(key) != value.as_ref());
    (!differing.is_empty()).then_some(Write::Flannel(differing))
}

fn network_writes(network: &NetworkState, node: &OwnNode) -> Vec<Write> {
    let (status, reason, message) = match network {
        NetworkState::Ready(message) => ("False", "CausewayIsUp", message),
        NetworkState::Unready(message) => ("True", "CausewayIsNotReady", message),
    };
    let wanted = Condition {
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.clone(),
    };
    let mut writes = Vec::new();
    if node.condition.as_ref() != Some(&wanted) {
        writes.push(Write::Condition(wanted));
    }
    if let (NetworkState::Ready(_), Some(at)) = (network, node.taint) {
        writes.push(Write::RemoveTaint(at));
    }
    writes
}

/// The body of a strategic merge patch of the Node's status.
fn condition_patch(condition: &Condition, before: Option<&Condition>, now: Timestamp) -> Value {
    let mut entry = json!({
        "type": CONDITION,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastHeartbeatTime": seconds(now),
    });
    if before.is_none_or(|before| before.status != condition.status) {
        entry["lastTransitionTime"] = json!(seconds(now));
    }
    json!({"status": {"conditions": [entry]}})
}

/// RFC 3339 without a fraction, as the API's type Time is written.
fn seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A JSON patch (RFC 6902) that fails where the taint is not in its place any more.
fn taint_patch(at: usize) -> Result<json_patch::Patch, serde_json::Error> {
    let path = format!("/spec/taints/{at}");
    serde_json::from_value(json!([
        {"op": "test", "path": format!("{path}/key"), "value": TAINT},
        {"op": "remove", "path": path},
    ]))
}

/// The Event for a problem. Its name follows from the node and the text, so that the same is not told
/// twice, whoever told it.
fn event(me: &NodeName, problem: &str, now: Timestamp) -> Value {
    let mut hasher = DefaultHasher::new();
    problem.hash(&mut hasher);
    let mut note = problem.to_owned();
    let whole = note.len();
    note.truncate(
        (0..=LONGEST_NOTE.min(whole)).rev().find(|n| note.is_char_boundary(*n)).unwrap_or(0),
    );
    json!({
        "metadata": {"name": format!("{me}.{:016x}", hasher.finish()), "namespace": "default"},
        // As the kubelet does: `kubectl describe node` looks for Events whose uid is the node's name.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": me, "uid": me},
        "reason": "PodNetwork",
        "message": note,
        "type": "Warning",
        "source": {"component": MANAGER, "host": me},
        "reportingComponent": "causeway.dev/agent",
        "reportingInstance": me,
        "firstTimestamp": seconds(now),
        "lastTimestamp": seconds(now),
        "count": 1,
    })
}

/// Why something could not be said.
#[derive(Debug, thiserror::Error)]
enum SayError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Body(#[from] serde_json::Error),
    #[error("the API does not answer within {ANSWERED_WITHIN:?}")]
    Silent,
}

async fn in_time<T>(work: impl Future<Output = Result<T, SayError>>) -> Result<T, SayError> {
    timeout(ANSWERED_WITHIN, work).await.map_err(|_| SayError::Silent)?
}

/// Keeps the Node saying what it should, for ever.
pub(crate) async fn keep(
    connection: Connection,
    me: NodeName,
    mut node: watch::Receiver<Option<OwnNode>>,
    mut said: watch::Receiver<Announcement>,
    health: Health,
) {
    let mut keeper = Keeper {
        connection,
        me,
        client: None,
        written: None,
        again: Again::default(),
        told: BTreeSet::new(),
    };
    let mut backoff = Backoff::default();
    loop {
        let (now, wanted) = (node.borrow_and_update().clone(), said.borrow_and_update().clone());
        let pause = match keeper.say(now.as_ref(), &wanted).await {
            Ok(Next::Wait(pause)) => pause,
            Ok(Next::Said(pause)) => {
                backoff.reset();
                health.set_unsaid(None);
                pause
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell the Node how its network is");
                health.set_unsaid(Some(error.to_string()));
                keeper.client = None;
                keeper.written = None;
                backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => keeper.written = None,
            Ok(()) = node.changed() => {}
            Ok(()) = said.changed() => {}
            else => return,
        }
    }
}

struct Keeper {
    connection: Connection,
    me: NodeName,
    /// Made anew after an error: credentials may have been replaced.
    client: Option<Client>,
    /// The version of the Node on which a write was based, and which the watch still shows.
    written: Option<String>,
    again: Again,
    /// Problems that became Events.
    told: BTreeSet<String>,
}

/// What comes after an attempt. Nothing is done for so long unless there is news.
enum Next {
    /// All is said, as far as is known.
    Said(Duration),
    /// It is too early for another attempt.
    Wait(Duration),
}

/// When the same may be written once more. Somebody who changes it back each time, be it another
/// controller or a webhook, is not answered without a pause, by each node of a cluster.
#[derive(Debug, Default)]
struct Again {
    said: Option<(Option<NetworkState>, Option<Vec<Cidr>>)>,
    pauses: Backoff,
    not_before: Option<Instant>,
}

impl Again {
    /// How long to wait before this is written; zero is told once, for one attempt.
    fn pause(&mut self, wanted: &Announcement, now: Instant) -> Duration {
        let said = Some((wanted.network.clone(), wanted.claims.clone()));
        let not_before = self.not_before.filter(|at| said == self.said && now < *at + STOOD);
        if not_before.is_none() {
            self.pauses.reset();
        }
        self.said = said;
        let pause = not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if pause.is_zero() {
            self.not_before = Some(now + self.pauses.next());
        }
        pause
    }
}

impl Keeper {
    /// Writes what the Node lacks.
    async fn say(
        &mut self,
        node: Option<&OwnNode>,
        wanted: &Announcement,
    ) -> Result<Next, SayError> {
        self.told.retain(|problem| wanted.problems.contains(problem));
        // A Node that is not there is not made here: the kubelet registers it.
        let Some(node) = node else { return Ok(Next::Said(Duration::MAX)) };
        let next = self.say_state(wanted, node).await?;
        // Last: whoever may not write Events can still be scheduled to.
        for problem in &wanted.problems {
            if !self.told.contains(problem) {
                in_time(self.tell(problem)).await?;
                self.told.insert(problem.clone());
            }
        }
        Ok(next)
    }

    async fn say_state(&mut self, wanted: &Announcement, node: &OwnNode) -> Result<Next, SayError> {
        // What was written shows in the watch; if not, it is written again.
        if self.written.as_ref() == Some(&node.resource_version) {
            return Ok(Next::Said(SHOWS_WITHIN));
        }
        let writes = lacks(wanted, node);
        if writes.is_empty() {
            return Ok(Next::Said(Duration::MAX));
        }
        let pause = self.again.pause(wanted, Instant::now());
        if !pause.is_zero() {
            return Ok(Next::Wait(pause));
        }
        for write in &writes {
            in_time(self.write(write, node)).await?;
        }
        self.written = Some(node.resource_version.clone());
        Ok(Next::Said(SHOWS_WITHIN))
    }

    async fn write(&mut self, write: &Write, node: &OwnNode) -> Result<(), SayError> {
        let api: Api<Node> = Api::all(self.client().await?);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..<_>::default() };
        match write {
            Write::Condition(condition) => {
                let body = condition_patch(condition, node.condition.as_ref(), Timestamp::now());
                api.patch_status(self.me.as_str(), &params, &Patch::Strategic(body)).await?;
                tracing::info!(status = condition.status, "condition {CONDITION} written");
            }
            Write::Annotation(name, text) => {
                let body = json!({"metadata": {"annotations": {*name: text}}});
                api.patch(self.me.as_str(), &params, &Patch::Merge(body)).await?;
                tracing::info!(
                    text = text.as_deref().unwrap_or("none"),
                    "annotation {name} written"
                );
            }
            Write::Flannel(annotations) => {
                let body = json!({"metadata": {"annotations": annotations}});
                api.patch(self.me.as_str(), &params, &Patch::Merge(body)).await?;
                tracing::info!("annotations for nodes of flannel written");
            }
            Write::RemoveTaint(at) => {
                let patch: Patch<()> = Patch::Json(taint_patch(*at)?);
                api.patch(self.me.as_str(), &params, &patch).await?;
                tracing::info!("taint {TAINT} removed");
            }
        }
        Ok(())
    }

    async fn tell(&mut self, problem: &str) -> Result<(), SayError> {
        let api: Api<Event> = Api::namespaced(self.client().await?, "default");
        let event: Event = serde_json::from_value(event(&self.me, problem, Timestamp::now()))?;
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == ALREADY_EXISTS => {
                let count = api.get(&name).await?.count.unwrap_or(1).saturating_add(1);
                let body = json!({"count": count, "lastTimestamp": event.last_timestamp});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await?;
            }
            other => drop(other?),
        }
        Ok(())
    }

    async fn client(&mut self) -> Result<Client, SayError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connection.client().await?,
        };
        Ok(self.client.insert(client).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: &str, message: &str, taint: Option<usize>) -> OwnNode {
        let condition = Condition {
            status: status.to_owned(),
            reason: if status == "True" { "CausewayIsNotReady" } else { "CausewayIsUp" }.to_owned(),
            message: message.to_owned(),
        };
        OwnNode {
            resource_version: "1".to_owned(),
            condition: Some(condition),
            taint,
            claims: None,
            pod_mtu: None,
            flannel: BTreeMap::new(),
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let say = |network| Announcement { network: Some(network), ..Announcement::default() };
        let up = say(NetworkState::Ready("m".to_owned()));
        let down = say(NetworkState::Unready("m".to_owned()));
        assert_eq!(lacks(&up, &node("False", "m", None)), []);
        assert_eq!(lacks(&down, &node("True", "m", None)), []);
        assert_eq!(lacks(&down, &node("True", "m", Some(0))), [], "the taint stays");
        assert_eq!(lacks(&up, &node("False", "m", Some(2))), [Write::RemoveTaint(2)]);
        for (state, node) in [(&up, node("True", "m", None)), (&down, node("False", "m", None))] {
            assert!(matches!(lacks(state, &node)[..], [Write::Condition(_)]), "{state:?}");
        }
        let bare = OwnNode { condition: None, ..node("", "", None) };
        assert!(matches!(lacks(&up, &bare)[..], [Write::Condition(_)]));
        // Others' words, for example of a cloud's route controller.
        assert!(matches!(lacks(&up, &node("False", "x", None))[..], [Write::Condition(_)]));
    }

    #[test]
    fn claims_are_written_when_they_are_known_and_others_stand_there() {
        let say = |claims: Option<&[&str]>| Announcement {
            claims: claims.map(|all| all.iter().map(|c| c.parse().unwrap()).collect()),
            ..Announcement::default()
        };
        let found = |text: Option<&str>| OwnNode {
            claims: text.map(str::to_owned),
            ..node("False", "m", None)
        };
        let both = "10.250.0.0/24,fd00:250::/112";
        let list = ["10.250.0.0/24", "fd00:250::/112"];
        assert_eq!(lacks(&say(None), &found(Some("x"))), []);
        assert_eq!(lacks(&say(Some(&[])), &found(None)), []);
        assert_eq!(lacks(&say(Some(&list)), &found(Some(both))), []);
        let claims = |text: Option<&str>| {
            [Write::Annotation(names::CLAIMED_POD_CIDRS, text.map(str::to_owned))]
        };
        let write = claims(Some(both));
        assert_eq!(lacks(&say(Some(&list)), &found(None)), write);
        assert_eq!(lacks(&say(Some(&[])), &found(Some(both))), claims(None));
        let mtu = Announcement { pod_mtu: Mtu::new(1450).ok(), ..Announcement::default() };
        let text = Some("1450".to_owned());
        let write = [Write::Annotation(names::POD_MTU, text.clone())];
        assert_eq!(lacks(&mtu, &found(None)), write);
        assert_eq!(lacks(&mtu, &OwnNode { pod_mtu: text, ..found(None) }), []);
    }

    #[test]
    fn what_nodes_of_flannel_read_is_written_where_it_differs() {
        let pairs = [("a", Some("1")), ("b", Some("2")), ("c", None)];
        let wanted = pairs.map(|(k, v)| (k.to_owned(), v.map(str::to_owned)));
        let say = |flannel| Announcement { flannel, ..Announcement::default() };
        let found = |list: &[(&str, &str)]| OwnNode {
            flannel: list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..node("False", "m", None)
        };
        let wanted = say(Some(wanted.into()));
        assert_eq!(lacks(&say(None), &found(&[("c", "3")])), []);
        assert_eq!(lacks(&wanted, &found(&[("a", "1"), ("b", "2")])), []);
        let write = [("b".to_owned(), Some("2".to_owned())), ("c".to_owned(), None)];
        let writes = lacks(&wanted, &found(&[("a", "1"), ("b", "0"), ("c", "3")]));
        assert_eq!(writes, [Write::Flannel(write.into())]);
    }

    #[test]
    fn the_time_of_the_change_is_that_of_the_status() {
        let now: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let OwnNode { condition, .. } = node("False", "m", None);
        let condition = condition.unwrap();
        let entry = |before: Option<&Condition>| {
            condition_patch(&condition, before, now)["status"]["conditions"][0].clone()
        };
        assert_eq!(entry(None)["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let other = Condition { status: "True".to_owned(), ..condition.clone() };
        assert_eq!(entry(Some(&other))["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let same = Condition { message: "x".to_owned(), ..condition.clone() };
        assert_eq!(entry(Some(&same)).get("lastTransitionTime"), None);
        assert_eq!(entry(Some(&same))["lastHeartbeatTime"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn an_event_has_the_same_name_for_the_same_text_and_is_short() {
        let (me, now) = ("n1".parse().unwrap(), Timestamp::now());
        let name = |text: &str| event(&me, text, now)["metadata"]["name"].clone();
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        let long = event(&me, &"ü".repeat(2000), now);
        assert_eq!(long["message"].as_str().unwrap().len(), LONGEST_NOTE);
        let decoded: Event = serde_json::from_value(long).unwrap();
        assert_eq!(decoded.involved_object.name.as_deref(), Some("n1"));
    }
}
