//! The watches themselves.

#[cfg(test)]
mod api;
#[cfg(test)]
mod sequences;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use causeway_desired::input::{ClusterView, NodeInfo, PodInfo};
use causeway_types::NodeName;
use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
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

/// `timeoutSeconds` of each watch. The server ends it then, and a connection that died without a
/// word is noticed 5 s later (kube's idle limit).
pub(crate) const WATCH_SECONDS: u32 = 180;

/// How long a first list may say nothing at all. A server that passes over `sendInitialEvents`
/// never sends the bookmark that ends it.
const LIST_SILENCE: Duration = Duration::from_secs(20);

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

/// Why a stream is given up.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Go on with this stream: it recovers by itself.
    Continue,
    /// Begin a new stream: what this one stands on is gone (410).
    Restart,
    /// Begin a new stream with paged lists: the API has no streaming ones.
    Paged,
}

/// Follows one kind until the connection should be made anew.
async fn feed<K: Kind>(
    api: Api<K::Object>,
    scope: Scope<'_>,
    sender: &watch::Sender<Snapshot>,
    health: &Health,
    backoff: &mut Backoff,
) {
    let mut streaming = true;
    let mut failures = 0;
    'streams: loop {
        let mut stream = Box::pin(watcher::watcher(api.clone(), config(scope.selector, streaming)));
        let mut mirror = Mirror::<K> { fresh: None, listed: false, own: scope.own };
        loop {
            let silence = if mirror.complete() { Duration::MAX } else { LIST_SILENCE };
            let error = match tokio::time::timeout(silence, stream.next()).await {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, Event::Init) {
                        health.contact(K::WHICH);
                        backoff.reset();
                        failures = 0;
                    }
                    mirror.take(event, sender);
                    continue;
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => return,
                Err(_) => {
                    report::<K>(health, format!("a list said nothing for {LIST_SILENCE:?}"));
                    // The two ways of listing take turns: the fault may be of either.
                    streaming = !streaming;
                    continue 'streams;
                }
            };
            let next = judge(&error, streaming);
            if next == Next::Paged {
                tracing::info!(feed = ?K::WHICH, "no streaming lists here: paged ones are used");
                streaming = false;
                continue 'streams;
            }
            report::<K>(health, plain(&error));
            tokio::time::sleep(pause(&error, backoff)).await;
            failures += 1;
            if failures >= RECONNECT_AFTER {
                return;
            }
            if next == Next::Restart {
                continue 'streams;
            }
        }
    }
}

fn report<K: Kind>(health: &Health, message: String) {
    tracing::warn!(feed = ?K::WHICH, "{message}");
    health.failed(K::WHICH, message);
}

fn config(selector: Option<&str>, streaming: bool) -> watcher::Config {
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    if let Some(selector) = selector {
        config = config.fields(selector);
    }
    if streaming { config.streaming_lists() } else { config }
}

/// The API's own answer in an error, where there is one.
fn status(error: &watcher::Error) -> Option<&kube::core::Status> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        _ => None,
    }
}

fn judge(error: &watcher::Error, streaming: bool) -> Next {
    match status(error).map(|s| s.code) {
        // Servers before 1.27 or without WatchList refuse `sendInitialEvents` or
        // `resourceVersionMatch` on a watch with one of these.
        Some(400 | 405 | 422) if streaming => Next::Paged,
        // An event with this code restarts the stream by itself; an HTTP answer does not.
        Some(410) => Next::Restart,
        _ => Next::Continue,
    }
}

/// One line for people: the API's message or the chain of causes.
fn plain(error: &watcher::Error) -> String {
    if let Some(status) = status(error) {
        return format!("the API answers {} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
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
fn pause(error: &watcher::Error, backoff: &mut Backoff) -> Duration {
    let asked = status(error)
        .and_then(|s| s.details.as_ref())
        .map_or(0, |d| u64::from(d.retry_after_seconds));
    backoff.next().max(Duration::from_secs(asked.min(60)))
}

/// Turns events into changes of the snapshot.
struct Mirror<'a, K: Kind> {
    /// The list in progress. The old view stays until it is complete.
    fresh: Option<BTreeMap<K::Key, K::Info>>,
    listed: bool,
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

    /// True when no list is in progress.
    fn complete(&self) -> bool {
        self.listed && self.fresh.is_none()
    }

    fn take(&mut self, event: Event<K::Object>, sender: &watch::Sender<Snapshot>) {
        match &event {
            Event::Apply(object) | Event::InitApply(object) => self.take_own(object, true),
            Event::Delete(object) => self.take_own(object, false),
            Event::Init | Event::InitDone => {}
        }
        match event {
            Event::Init => self.fresh = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let entry = K::convert(&object);
                self.fresh.get_or_insert_default().extend(entry);
            }
            Event::InitDone => {
                let all = self.fresh.take().unwrap_or_default();
                self.listed = true;
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
                if let Some((key, _)) = K::convert(&object) {
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
