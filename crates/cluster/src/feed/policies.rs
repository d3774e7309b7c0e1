//! The feeds of what policies go by: NetworkPolicies and ClusterNetworkPolicies at all times; pods, namespaces and
//! nodes of the whole cluster as soon as there is a policy that asks for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use causeway_policy::PolicyName;
use causeway_policy::read::{Object, Unreadable};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::source::{Event, Failure, Source};
use super::{RECONNECT_AFTER, pause, plain, unauthorized};
use crate::backoff::Backoff;
use crate::connect::Connection;
use crate::health::Health;
use crate::objects::{Ruled, RuledKind};

/// How often a kind that is not there is asked for where nothing tells of its definition.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Between watches that end at once.
const SHORT_PAUSE: Duration = Duration::from_secs(5);
/// How long the answer to a question may take: a plugin waits for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A definition that cannot be watched is tried again after so long.
const DEFINITION_AGAIN: Duration = Duration::from_secs(60);

/// A kind that policies go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// NetworkPolicies.
    Network,
    /// ClusterNetworkPolicies, which a cluster may not have.
    Cluster,
    /// Namespaces.
    Namespaces,
    /// Pods of all nodes.
    Pods,
    /// Nodes.
    Nodes,
}

impl PolicyKind {
    /// Those that are followed only where there are policies.
    pub const ENDS: [Self; 3] = [Self::Namespaces, Self::Pods, Self::Nodes];

    /// The kind of an object.
    #[must_use]
    pub fn of(object: &Object) -> Self {
        match object {
            Object::Namespace(..) => Self::Namespaces,
            Object::Pod(_) => Self::Pods,
            Object::Node(..) => Self::Nodes,
            Object::Policy(policy) => match policy.name {
                PolicyName::Network { .. } => Self::Network,
                PolicyName::Cluster(_) => Self::Cluster,
            },
        }
    }
}

/// What happens to what policies go by.
#[derive(Clone, Debug)]
pub enum PolicyEvent {
    /// A list begins. What it does not have when it ends is gone.
    Listing(PolicyKind),
    /// An object is there, or changed: a pod with its `metadata.uid`, a policy with its `metadata.resourceVersion`.
    Put(Object, Option<String>),
    /// As [`PolicyEvent::Put`], of an object that was asked for by itself (see [`Question`]).
    Asked(Object, Option<String>),
    /// An object is gone: its namespace, where its kind has any, and its name.
    Gone(PolicyKind, String, String),
    /// The list is complete, or there is no such kind.
    Listed(PolicyKind),
}

/// Somebody waits for a pod that the watch has not told of: its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The namespace, which may not be known either.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

/// Who is told.
pub type PolicySink = Arc<dyn Fn(PolicyEvent) + Send + Sync>;

/// Follows all of it, for ever. `ends` tells whether there are policies that ask for pods.
pub(crate) async fn run(
    connection: Connection,
    sink: PolicySink,
    health: Health,
    again: watch::Receiver<u64>,
    mut ends: watch::Receiver<bool>,
    mut questions: UnboundedReceiver<Question>,
) {
    let (defined, definition) = watch::channel(0);
    let client = Mutex::new(None);
    let keep = Keeper { connection, client, sink, health, again, definition };
    tokio::join!(
        keep.keep(PolicyKind::Network),
        keep.keep(PolicyKind::Cluster),
        keep.watch_definition(&defined),
        async {
            while let Some(question) = questions.recv().await {
                keep.answer(question).await;
            }
        },
        async {
            if ends.wait_for(|wanted| *wanted).await.is_err() {
                return;
            }
            tokio::join!(
                keep.keep(PolicyKind::Namespaces),
                keep.keep(PolicyKind::Pods),
                keep.keep(PolicyKind::Nodes)
            );
        }
    );
}

impl PolicyKind {
    fn ruled(self) -> RuledKind {
        match self {
            Self::Network => RuledKind::NETWORK_POLICY,
            Self::Cluster => RuledKind::CLUSTER_POLICY,
            Self::Namespaces => RuledKind::NAMESPACE,
            Self::Pods => RuledKind::POD,
            Self::Nodes => RuledKind::NODE,
        }
    }

    /// As it is called in status.
    fn name(self) -> String {
        let kind = self.ruled();
        match kind.group.is_empty() {
            true => format!("{} (policies)", kind.plural),
            false => format!("{}.{}", kind.plural, kind.group),
        }
    }
}

struct Keeper {
    connection: Connection,
    /// One for all kinds, until it fails.
    client: Mutex<Option<Client>>,
    sink: PolicySink,
    health: Health,
    again: watch::Receiver<u64>,
    /// Changes with the definition of ClusterNetworkPolicies.
    definition: watch::Receiver<u64>,
}

impl Keeper {
    /// Connects, follows one kind, and connects again when that ends.
    async fn keep(&self, kind: PolicyKind) {
        let (mut backoff, mut listed) = (Backoff::default(), false);
        let mut again = self.again.clone();
        loop {
            again.mark_unchanged();
            match self.client().await {
                Ok(client) => {
                    tokio::select! {
                        () = self.feed(kind, client, &mut backoff, &mut listed) => {}
                        Ok(()) = again.changed() => backoff.reset(),
                    }
                    self.drop_client();
                }
                Err(error) => self.wait(kind, error, backoff.next()).await,
            }
        }
    }

    async fn client(&self) -> Result<Client, String> {
        let kept = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = kept {
            return Ok(client);
        }
        let client = self.connection.client().await.map_err(|error| error.to_string())?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    fn drop_client(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn wait(&self, kind: PolicyKind, why: String, time: Duration) {
        tracing::warn!(kind = kind.name(), "{why}");
        self.health.optional(&kind.name(), |health| health.feed.failed(why));
        sleep(time).await;
    }

    /// Follows a kind until the connection should be made anew.
    /// `listed`: it was there once.
    async fn feed(
        &self,
        kind: PolicyKind,
        client: Client,
        backoff: &mut Backoff,
        listed: &mut bool,
    ) {
        let mut source = Source::new(Api::<Ruled>::all_with(client, &kind.ruled()), None);
        let mut definition = self.definition.clone();
        definition.mark_unchanged();
        let mut failures = 0;
        loop {
            let next = tokio::select! {
                next = source.next() => next,
                // It may be gone, or of another form.
                Ok(()) = definition.changed(), if kind == PolicyKind::Cluster => return,
            };
            let failure = match next {
                Ok(event) => {
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        backoff.reset();
                        failures = 0;
                        *listed = true;
                        self.health.optional(&kind.name(), |health| {
                            health.served = true;
                            health.feed.contact();
                        });
                    }
                    self.tell(kind, event);
                    continue;
                }
                Err(Failure::NotStreaming) => continue,
                Err(failure) => failure,
            };
            let not_found = failure.status().is_some_and(|status| status.code == 404);
            if not_found && (kind == PolicyKind::Cluster || !*listed) {
                if std::mem::take(listed) {
                    // One of several servers may not have it yet: another list tells.
                    sleep(backoff.next()).await;
                    return;
                }
                self.absent(kind);
                tokio::select! {
                    () = sleep(ASK_AGAIN) => {}
                    // One that has come is served a moment later.
                    Ok(()) = definition.changed() => sleep(backoff.next()).await,
                }
                return;
            }
            self.wait(kind, plain(&failure), pause(&failure, backoff)).await;
            failures += u32::from(!matches!(failure, Failure::Short));
            if failures >= RECONNECT_AFTER || unauthorized(&failure) {
                return;
            }
        }
    }

    /// The API does not have the kind: there is none of it, and it keeps nobody waiting.
    fn absent(&self, kind: PolicyKind) {
        self.health.optional(&kind.name(), |health| {
            health.served = false;
            health.feed.error = None;
        });
        (self.sink)(PolicyEvent::Listing(kind));
        (self.sink)(PolicyEvent::Listed(kind));
    }

    /// Asks for a pod and its namespace. Each question has its own time, so that none holds up others.
    async fn answer(&self, question: Question) {
        let Ok(Ok(client)) = timeout(ANSWER_WITHIN, self.client()).await else { return };
        let sink = self.sink.clone();
        let Question { namespace, name } = question;
        let asking = async move {
            let of = PolicyKind::Namespaces;
            let namespaces = Api::<Ruled>::all_with(client.clone(), &of.ruled());
            ask(&sink, of, &namespaces, &namespace).await;
            let of = PolicyKind::Pods;
            let pods = Api::<Ruled>::namespaced_with(client, &namespace, &of.ruled());
            ask(&sink, of, &pods, &name).await;
        };
        tokio::spawn(timeout(ANSWER_WITHIN, asking));
    }

    fn tell(&self, kind: PolicyKind, event: Event<Ruled>) {
        let event = match event {
            Event::Idle => return,
            Event::Init => PolicyEvent::Listing(kind),
            Event::InitDone => PolicyEvent::Listed(kind),
            Event::Delete(object) => gone(kind, &object),
            Event::Apply(mut object) | Event::InitApply(mut object) => {
                match read(kind, &mut object) {
                    Ok(read @ Object::Policy(_)) => {
                        PolicyEvent::Put(read, object.resource_version())
                    }
                    Ok(read) => PolicyEvent::Put(read, uid(object)),
                    Err(error) => {
                        // What it said before may be more than it says now.
                        tracing::warn!("{error}; it is left out");
                        gone(kind, &object)
                    }
                }
            }
        };
        (self.sink)(event);
    }

    /// Counts the changes of the definition of ClusterNetworkPolicies. Where it may not be read, the kind is asked
    /// for now and then.
    async fn watch_definition(&self, defined: &watch::Sender<u64>) {
        let kind = RuledKind::CLUSTER_POLICY;
        let selector = format!("metadata.name={}.{}", kind.plural, kind.group);
        loop {
            if let Ok(client) = self.client().await {
                let api = Api::<Ruled>::all_with(client, &RuledKind::DEFINITION);
                let mut source = Source::new(api, Some(&selector));
                let mut there = None;
                loop {
                    let now = match source.next().await {
                        Ok(Event::Apply(object) | Event::InitApply(object)) => object.uid(),
                        Ok(Event::Delete(_)) => None,
                        Ok(_) | Err(Failure::NotStreaming) => continue,
                        Err(Failure::Short) => {
                            sleep(SHORT_PAUSE).await;
                            continue;
                        }
                        Err(failure) => {
                            tracing::debug!(error = plain(&failure), "no news of definitions");
                            break;
                        }
                    };
                    if now != there {
                        there = now;
                        defined.send_modify(|n| *n += 1);
                    }
                }
            }
            sleep(DEFINITION_AGAIN).await;
        }
    }
}

async fn ask(sink: &PolicySink, kind: PolicyKind, api: &Api<Ruled>, name: &str) {
    match api.get_opt(name).await {
        Ok(Some(mut object)) => match read(kind, &mut object) {
            Ok(read) => sink(PolicyEvent::Asked(read, uid(object))),
            Err(error) => tracing::warn!("{error}; it is left out"),
        },
        Ok(None) => {}
        Err(error) => tracing::debug!(kind = kind.name(), name, %error, "asked in vain"),
    }
}

/// Takes out of an object what it says.
fn read(kind: PolicyKind, object: &mut Ruled) -> Result<Object, Unreadable> {
    let ruled = kind.ruled();
    let api = match ruled.group {
        "" => ruled.version.to_owned(),
        group => format!("{group}/{}", ruled.version),
    };
    let mut said = std::mem::take(&mut object.said);
    said.insert("apiVersion".to_owned(), api.into());
    said.insert("kind".to_owned(), ruled.kind.into());
    Ok(Object::read(&Value::Object(said))?.expect("a kind that policies go by"))
}

/// By what the kubelet knows a pod.
fn uid(object: Ruled) -> Option<String> {
    object.own_uid.or(object.metadata.uid)
}

fn gone(kind: PolicyKind, object: &Ruled) -> PolicyEvent {
    let namespace = object.namespace().unwrap_or_default();
    PolicyEvent::Gone(kind, namespace, object.name_any())
}

/// A policy's name by what is told of it.
#[must_use]
pub fn policy_name(namespace: &str, name: &str) -> PolicyName {
    match namespace.is_empty() {
        true => PolicyName::Cluster(name.into()),
        false => PolicyName::Network { namespace: namespace.into(), name: name.into() },
    }
}
