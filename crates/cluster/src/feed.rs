//! The watches themselves.

#[cfg(test)]
mod api;
pub(crate) mod optional;
pub(crate) mod policies;
#[cfg(test)]
mod sequences;
mod source;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use causeway_desired::input::{ClusterView, NodeInfo, PodInfo};
use causeway_types::NodeName;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::connect::Connection;
use crate::convert;
use crate::health::{Health, Which};
use crate::objects::{NodeObject, PodObject};
use crate::own::OwnNode;
use crate::snapshot::Snapshot;
pub(crate) use source::WATCH_SECONDS;
use source::{Event, Failure, Source};

/// Failures in a row after which the connection is made anew: its credentials may be out of date.
const RECONNECT_AFTER: u32 = 3;

/// Keeps both feeds going, for ever. Each has a connection of its own, so that one that may not
/// be read (a missing permission) does not disturb the other.
pub(crate) async fn run(
    connection: Connection,
    own: Own,
    sender: watch::Sender<Snapshot>,
    health: Health,
    again: watch::Receiver<u64>,
) {
    let of_me = format!("spec.nodeName={}", own.me);
    let all = Scope { selector: None, own: Some(&own) };
    let mine = Scope { selector: Some(&of_me), own: None };
    tokio::join!(
        keep::<Nodes>(&connection, all, &sender, &health, again.clone()),
        keep::<Pods>(&connection, mine, &sender, &health, again),
    );
}

/// Where this node's own object goes, with what nobody else needs of it.
pub(crate) struct Own {
    pub(crate) me: NodeName,
    pub(crate) sender: watch::Sender<Option<OwnNode>>,
}

/// What a feed asks for, and what it keeps beside the view.
#[derive(Clone, Copy, Default)]
struct Scope<'a> {
    selector: Option<&'a str>,
    own: Option<&'a Own>,
}

/// Connects, follows one kind, and connects again when that ends.
async fn keep<K: Kind>(
    connection: &Connection,
    scope: Scope<'_>,
    sender: &watch::Sender<Snapshot>,
    health: &Health,
    mut again: watch::Receiver<u64>,
) {
    let mut backoff = Backoff::default();
    loop {
        again.mark_unchanged();
        match connection.client().await {
            Ok(client) => {
                tokio::select! {
                    () = feed::<K>(Api::all(client), scope, sender, health, &mut backoff) => {}
                    Ok(()) = again.changed() => {
                        tracing::info!(feed = ?K::WHICH, "connecting to the Kubernetes API anew");
                        backoff.reset();
                    }
                }
            }
            Err(error) => {
                tracing::warn!(feed = ?K::WHICH, %error, "cannot connect to the Kubernetes API");
                health.failed(K::WHICH, error.to_string());
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// What differs between the kinds.
trait Kind {
    type Object: kube::Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static;
    type Key: Ord + Clone;
    type Info: PartialEq + Clone;
    const WHICH: Which;
    fn convert(object: &Self::Object) -> Option<(Self::Key, Self::Info)>;
    fn map(view: &ClusterView) -> &BTreeMap<Self::Key, Self::Info>;
    fn map_mut(view: &mut ClusterView) -> &mut BTreeMap<Self::Key, Self::Info>;
    fn synced(snapshot: &mut Snapshot) -> &mut bool;
    /// What is kept of an object beside the view, where it is this node's own.
    fn own(_: &Self::Object) -> Option<OwnNode> {
        None
    }
}

struct Nodes;
struct Pods;

impl Kind for Nodes {
    type Object = NodeObject;
    type Key = NodeName;
    type Info = NodeInfo;
    const WHICH: Which = Which::Nodes;
    fn convert(object: &NodeObject) -> Option<(NodeName, NodeInfo)> {
        convert::node(object)
    }
    fn map(view: &ClusterView) -> &BTreeMap<NodeName, NodeInfo> {
        &view.nodes
    }
    fn map_mut(view: &mut ClusterView) -> &mut BTreeMap<NodeName, NodeInfo> {
        &mut view.nodes
    }
    fn synced(snapshot: &mut Snapshot) -> &mut bool {
        &mut snapshot.nodes_synced
    }
    fn own(object: &NodeObject) -> Option<OwnNode> {
        Some(convert::own(object))
    }
}

impl Kind for Pods {
    type Object = PodObject;
    type Key = String;
    type Info = PodInfo;
    const WHICH: Which = Which::Pods;
    fn convert(object: &PodObject) -> Option<(String, PodInfo)> {
        convert::pod(object)
    }
    fn map(view: &ClusterView) -> &BTreeMap<String, PodInfo> {
        &view.pods
    }
    fn map_mut(view: &mut ClusterView) -> &mut BTreeMap<String, PodInfo> {
        &mut view.pods
    }
    fn synced(snapshot: &mut Snapshot) -> &mut bool {
        &mut snapshot.pods_synced
    }
}

/// Follows one kind until the connection should be made anew.
async fn feed<K: Kind>(
    api: Api<K::Object>,
    scope: Scope<'_>,
    sender: &watch::Sender<Snapshot>,
    health: &Health,
    backoff: &mut Backoff,
) {
    let mut source = Source::new(api, scope.selector);
    let mut mirror = Mirror::<K> { fresh: None, own: scope.own };
    let mut failures = 0;
    loop {
        let failure = match source.next().await {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    health.contact(K::WHICH);
                }
                // A list may fail again and again before its end.
                if !matches!(event, Event::Init | Event::InitApply(_)) {
                    backoff.reset();
                    failures = 0;
                }
                mirror.take(event, sender);
                continue;
            }
            Err(Failure::NotStreaming) => {
                tracing::info!(feed = ?K::WHICH, "no streaming lists here: paged ones are used");
                continue;
            }
            Err(failure) => failure,
        };
        report::<K>(health, plain(&failure));
        tokio::time::sleep(pause(&failure, backoff)).await;
        if matches!(failure, Failure::Short) {
            // There is nothing wrong with who we are or where the API is.
            continue;
        }
        failures += 1;
        if failures >= RECONNECT_AFTER || unauthorized(&failure) {
            return;
        }
    }
}

fn report<K: Kind>(health: &Health, message: String) {
    tracing::warn!(feed = ?K::WHICH, "{message}");
    health.failed(K::WHICH, message);
}

/// The token or certificate has ended. The file that it is from has a new one by now, as a rule.
fn unauthorized(failure: &Failure) -> bool {
    failure.status().is_some_and(|status| status.code == 401)
}

/// One line for people: the API's message or the chain of causes.
fn plain(failure: &Failure) -> String {
    if let Some(status) = failure.status() {
        return format!("the API answers {} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// How long to wait; the API's own wish (Retry-After) counts where it is longer.
fn pause(failure: &Failure, backoff: &mut Backoff) -> Duration {
    let asked = failure.status().map_or(0, |status| match &status.details {
        Some(details) if details.retry_after_seconds > 0 => details.retry_after_seconds,
        // An API server with too much to do says so in plain text, and the time in a header that
        // does not get here: 1 s at least (`tooManyRequests` in apiserver/pkg/server/filters).
        _ if status.code == 429 => 1,
        _ => 0,
    });
    backoff.next().max(Duration::from_secs(u64::from(asked.min(60))))
}

/// Turns events into changes of the snapshot.
struct Mirror<'a, K: Kind> {
    /// The list in progress. The old view stays until it is complete.
    fresh: Option<BTreeMap<K::Key, K::Info>>,
    own: Option<&'a Own>,
}

impl<K: Kind> Mirror<'_, K> {
    fn take_own(&self, object: &K::Object, there: bool) {
        let Some(own) = self.own else { return };
        if object.meta().name.as_deref() != Some(own.me.as_str()) {
            return;
        }
        let found = K::own(object).filter(|_| there);
        own.sender.send_if_modified(|kept| {
            let differs = *kept != found;
            *kept = found;
            differs
        });
    }

    fn take(&mut self, event: Event<K::Object>, sender: &watch::Sender<Snapshot>) {
        match &event {
            Event::Apply(object) | Event::InitApply(object) => self.take_own(object, true),
            Event::Delete(object) => self.take_own(object, false),
            Event::Init | Event::InitDone | Event::Idle => {}
        }
        match event {
            Event::Idle => {}
            Event::Init => self.fresh = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let entry = K::convert(&object);
                self.fresh.get_or_insert_default().extend(entry);
            }
            Event::InitDone => {
                let all = self.fresh.take().unwrap_or_default();
                publish::<K>(sender, |map| *map = all);
                sender.send_if_modified(|snapshot| !std::mem::replace(K::synced(snapshot), true));
            }
            Event::Apply(object) => {
                let Some((key, info)) = K::convert(&object) else { return };
                // Most updates change nothing that we keep, and copying a map costs.
                let known = K::map(&sender.borrow().view).get(&key) == Some(&info);
                if !known {
                    publish::<K>(sender, |map| drop(map.insert(key, info)));
                }
            }
            Event::Delete(object) => {
                let Some((key, _)) = K::convert(&object) else { return };
                if let Some(fresh) = &mut self.fresh {
                    fresh.remove(&key);
                } else {
                    publish::<K>(sender, |map| drop(map.remove(&key)));
                }
            }
        }
    }
}

/// Changes one map of the view; readers are woken only when it comes out different.
fn publish<K: Kind>(
    sender: &watch::Sender<Snapshot>,
    change: impl FnOnce(&mut BTreeMap<K::Key, K::Info>),
) {
    sender.send_if_modified(|snapshot| {
        let mut map = K::map(&snapshot.view).clone();
        change(&mut map);
        if map == *K::map(&snapshot.view) {
            return false;
        }
        *K::map_mut(Arc::make_mut(&mut snapshot.view)) = map;
        true
    });
}
