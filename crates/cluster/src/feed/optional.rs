//! Kinds that a cluster may not have: their definition is installed later, by others, or never.
//!
//! Discovery says whether the API serves the kind (`/apis/GROUP/VERSION`, which every server answers,
//! also one with aggregated discovery). While it does not, the kind is known and empty. The watch of
//! its definition, one object by name, tells when to ask again; where that may not be read, or the kind has
//! no definition of its own (an aggregated API), it is asked again now and then.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::source::{Event, Failure, Source};
use super::{RECONNECT_AFTER, pause, plain, unauthorized};
use crate::backoff::Backoff;
use crate::connect::Connection;
use crate::health::Health;

/// How often discovery is asked where nothing tells of the definition.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long an answer of discovery may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// A definition that cannot be watched is tried again after so long.
const DEFINITION_AGAIN: Duration = Duration::from_secs(60);

/// A kind that a cluster may not have, and what is kept of it.
pub trait OptionalKind: 'static {
    /// The object as it is decoded: what is not looked at is best left out.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;
    /// What is kept of one.
    type Info: PartialEq + Clone + Debug + Send + Sync + 'static;

    /// The key and content of an object; `None` leaves it out.
    fn convert(object: &Self::Object) -> Option<(String, Self::Info)>;

    /// `PLURAL.GROUP`, as its definition is called.
    fn name() -> String {
        format!("{}.{}", Self::Object::plural(&()), Self::Object::group(&()))
    }
}

/// What is known of such a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalView<T> {
    /// The API serves the kind; false also while that is not known.
    pub served: bool,
    /// What there is is known completely: all objects have been listed, or there is no such kind. Until
    /// then nothing may be removed on the strength of this view. It stays true when the API goes away.
    pub synced: bool,
    /// By the keys of [`OptionalKind::convert`].
    pub objects: BTreeMap<String, T>,
}

impl<T> Default for OptionalView<T> {
    fn default() -> Self {
        Self { served: false, synced: false, objects: BTreeMap::new() }
    }
}

/// Follows a kind, for ever.
pub(crate) async fn run<K: OptionalKind>(
    connection: Connection,
    sender: watch::Sender<OptionalView<K::Info>>,
    health: Health,
    again: watch::Receiver<u64>,
) {
    let (defined, definition) = watch::channel(None);
    let mut follower = Follower::<K> {
        connection: connection.clone(),
        sender,
        health,
        again: again.clone(),
        definition,
        backoff: Backoff::default(),
    };
    let name = K::name();
    tokio::join!(watch_definition(&connection, &name, &defined, again), follower.run());
}

/// Whether the definition is there, and how often it changed; `None` while that cannot be told.
type Defined = Option<(bool, u64)>;

/// Keeps telling of one definition.
async fn watch_definition(
    connection: &Connection,
    name: &str,
    defined: &watch::Sender<Defined>,
    mut again: watch::Receiver<u64>,
) {
    let selector = format!("metadata.name={name}");
    loop {
        again.mark_unchanged();
        if let Ok(client) = connection.client().await {
            tokio::select! {
                failure = follow_definition(client, &selector, defined) => {
                    tracing::debug!(name, error = plain(&failure), "the definition cannot be watched");
                }
                Ok(()) = again.changed() => continue,
            }
        }
        defined.send_replace(None);
        sleep(DEFINITION_AGAIN).await;
    }
}

/// Answers why it cannot go on: faults that may pass are waited out.
async fn follow_definition(
    client: Client,
    selector: &str,
    defined: &watch::Sender<Defined>,
) -> Failure {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let mut source = Source::new(api, Some(selector));
    let mut backoff = Backoff::default();
    let (mut listed, mut changes, mut failures) = (false, 0, 0);
    loop {
        let there = match source.next().await {
            Ok(Event::Init) => {
                listed = false;
                continue;
            }
            Ok(Event::InitApply(_)) => {
                listed = true;
                continue;
            }
            Ok(Event::InitDone) => listed,
            Ok(Event::Apply(_)) => true,
            Ok(Event::Delete(_)) => false,
            Ok(Event::Idle) | Err(Failure::NotStreaming) => continue,
            Err(failure) => {
                failures += 1;
                let refused = failure.status().is_some_and(|s| [401, 403, 404].contains(&s.code));
                if refused || failures >= RECONNECT_AFTER {
                    return failure;
                }
                sleep(pause(&failure, &mut backoff)).await;
                continue;
            }
        };
        failures = 0;
        backoff.reset();
        changes += 1;
        defined.send_replace(Some((there, changes)));
    }
}

struct Follower<K: OptionalKind> {
    connection: Connection,
    sender: watch::Sender<OptionalView<K::Info>>,
    health: Health,
    again: watch::Receiver<u64>,
    definition: watch::Receiver<Defined>,
    backoff: Backoff,
}

impl<K: OptionalKind> Follower<K> {
    async fn run(&mut self) {
        loop {
            self.again.mark_unchanged();
            self.definition.mark_unchanged();
            let client = match self.connection.client().await {
                Ok(client) => client,
                Err(error) => {
                    self.failed(error.to_string());
                    sleep(self.backoff.next()).await;
                    continue;
                }
            };
            match served::<K>(&client).await {
                Ok(true) => self.follow(client).await,
                Ok(false) => {
                    self.absent();
                    self.until_it_may_be_there().await;
                }
                // What is not known is not removed.
                Err(failure) => {
                    self.failed(plain(&failure));
                    sleep(pause(&failure, &mut self.backoff)).await;
                }
            }
        }
    }

    /// The kind is known, and there is none of it.
    fn absent(&self) {
        self.health.optional(&K::name(), |health| {
            health.served = false;
            health.feed.error = None;
        });
        let none = OptionalView { served: false, synced: true, objects: BTreeMap::new() };
        let changed = self.sender.send_if_modified(|view| {
            let differs = *view != none;
            *view = none;
            differs
        });
        if changed {
            tracing::info!(kind = K::name(), "the API does not have this kind");
        }
    }

    /// A definition that has come is served a moment later.
    async fn until_it_may_be_there(&mut self) {
        let pause = match *self.definition.borrow() {
            Some((true, _)) => self.backoff.next(),
            Some((false, _)) => Duration::MAX,
            None => ASK_AGAIN,
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = self.definition.changed() => self.backoff.reset(),
            Ok(()) = self.again.changed() => {}
        }
    }

    /// Follows the objects until the connection should be made anew, or the kind may be gone.
    async fn follow(&mut self, client: Client) {
        self.health.optional(&K::name(), |health| health.served = true);
        let (mut definition, mut again) = (self.definition.clone(), self.again.clone());
        let gone = async {
            loop {
                if definition.changed().await.is_err() {
                    return std::future::pending().await;
                }
                if matches!(served::<K>(&client).await, Ok(false)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.objects(Api::all(client.clone())) => {}
            () = gone => {}
            Ok(()) = again.changed() => {}
        }
    }

    async fn objects(&mut self, api: Api<K::Object>) {
        let mut source = Source::new(api, None);
        let mut fresh = None;
        let mut failures = 0;
        loop {
            let failure = match source.next().await {
                Ok(event) => {
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        self.backoff.reset();
                        failures = 0;
                        self.health.optional(&K::name(), |health| health.feed.contact());
                    }
                    self.take(event, &mut fresh);
                    continue;
                }
                Err(Failure::NotStreaming) => continue,
                Err(failure) => failure,
            };
            self.failed(plain(&failure));
            sleep(pause(&failure, &mut self.backoff)).await;
            failures += u32::from(!matches!(failure, Failure::Short));
            // 404: the kind went. Whether it did discovery says.
            let gone = failure.status().is_some_and(|status| status.code == 404);
            if gone || failures >= RECONNECT_AFTER || unauthorized(&failure) {
                return;
            }
        }
    }

    fn take(&self, event: Event<K::Object>, fresh: &mut Option<BTreeMap<String, K::Info>>) {
        let change = |change: &dyn Fn(&mut OptionalView<K::Info>)| {
            self.sender.send_if_modified(|view| {
                let mut next = view.clone();
                change(&mut next);
                let differs = next != *view;
                *view = next;
                differs
            });
        };
        match event {
            Event::Idle => {}
            Event::Init => *fresh = Some(BTreeMap::new()),
            Event::InitApply(object) => fresh.get_or_insert_default().extend(K::convert(&object)),
            Event::InitDone => {
                let objects = fresh.take().unwrap_or_default();
                change(&|view| {
                    *view = OptionalView { served: true, synced: true, objects: objects.clone() };
                });
            }
            Event::Apply(object) => {
                let Some((key, info)) = K::convert(&object) else { return };
                change(&|view| drop(view.objects.insert(key.clone(), info.clone())));
            }
            Event::Delete(object) => {
                let Some((key, _)) = K::convert(&object) else { return };
                match fresh {
                    Some(fresh) => drop(fresh.remove(&key)),
                    None => change(&|view| drop(view.objects.remove(&key))),
                }
            }
        }
    }

    fn failed(&self, message: String) {
        tracing::warn!(kind = K::name(), "{message}");
        self.health.optional(&K::name(), |health| health.feed.failed(message));
    }
}

/// Whether the API serves the kind.
async fn served<K: OptionalKind>(client: &Client) -> Result<bool, Failure> {
    let version = format!("{}/{}", K::Object::group(&()), K::Object::version(&()));
    let asked = timeout(ANSWERS_WITHIN, client.list_api_group_resources(&version)).await;
    match asked.map_err(|_| Failure::Silence(ANSWERS_WITHIN))? {
        Ok(list) => Ok(list.resources.iter().any(|r| r.name == K::Object::plural(&()))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}
