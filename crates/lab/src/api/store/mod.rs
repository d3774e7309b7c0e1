//! The objects, their one sequence of versions, and the window of history that lists and watches
//! can reach back into.
//!
//! Every change has a number of its own, one more than the last: the `resourceVersion` of
//! Kubernetes. The window keeps for each of the newest changes what was there before and after, so
//! that a watch is a walk through the window and an older list is the present with changes undone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::error::ApiError;
use super::meta::{now, text};
use super::patch::Patch;
use super::registry::{Registry, Resource};

mod list;
mod watch;
mod write;

pub use list::{At, List, ListOptions};
pub use watch::{Event, Watch, WatchOptions};
pub use write::{DeleteOptions, Deleted, Part};

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Changes that watches and lists can reach back; older versions are answered with `410 Gone`.
    /// At least 1.
    pub history: usize,
    /// Ranges that Service addresses come from, the first one being the default family.
    pub service_cidrs: Vec<IpNet>,
    /// Version before the first change. The default comes from the clock, so that a lab that is
    /// started again never repeats a version that a client still remembers.
    pub first_version: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let v4 = IpNet::V4(ipnet::Ipv4Net::new_assert([10, 96, 0, 0].into(), 16));
        StoreConfig { history: 10_000, service_cidrs: vec![v4], first_version: now() * 100 }
    }
}

/// Where an object is: its namespace (empty for cluster-wide types) and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Key { namespace: namespace.into(), name: name.into() }
    }
}

/// Objects of one type, in the order of lists.
pub(crate) type Objects = BTreeMap<Key, Arc<Value>>;

/// One change: what was there, and what is there now (or was there last).
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) resource: Arc<str>,
    pub(crate) key: Key,
    pub(crate) old: Option<Arc<Value>>,
    /// The new object; for a removal the last state under the version of the removal.
    pub(crate) object: Arc<Value>,
    pub(crate) removed: bool,
    /// When that was, since the machine's start (`CLOCK_MONOTONIC`, which has no offset here).
    pub(crate) at: Duration,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: StoreConfig,
    pub(crate) registry: Arc<Registry>,
    /// The newest version.
    pub(crate) version: u64,
    objects: HashMap<Arc<str>, Objects>,
    history: VecDeque<Change>,
    /// What each manager applied last, by the uid of the object.
    pub(crate) applied: HashMap<String, HashMap<(String, Part), Value>>,
}

impl State {
    /// The type with this key.
    pub(crate) fn resource(&self, key: &str) -> Result<Arc<Resource>, ApiError> {
        self.registry.get(key).filter(|r| !r.review).cloned().ok_or_else(ApiError::no_such_path)
    }

    /// The objects of a type.
    pub(crate) fn objects(&self, resource: &str) -> &Objects {
        static NONE: Objects = BTreeMap::new();
        self.objects.get(resource).unwrap_or(&NONE)
    }

    /// The oldest version from which changes can still be told.
    pub(crate) fn oldest(&self) -> u64 {
        self.version - self.history.len() as u64
    }

    /// The changes after a version, with their versions; `None` once it has left the window or
    /// if it never was.
    pub(crate) fn changes_after(
        &self,
        version: u64,
    ) -> Option<impl DoubleEndedIterator<Item = (u64, &Change)>> {
        let skip = version.checked_sub(self.oldest()).filter(|_| version <= self.version)?;
        let range = self.history.range(usize::try_from(skip).ok()?..);
        Some(range.enumerate().map(move |(i, change)| (version + 1 + i as u64, change)))
    }

    /// Writes one change and gives it its version.
    pub(crate) fn commit(
        &mut self,
        resource: &Resource,
        key: &Key,
        mut object: Value,
        removed: bool,
    ) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let objects = self.objects.entry(resource.key.as_str().into()).or_default();
        let old = match removed {
            true => objects.remove(key),
            false => objects.insert(key.clone(), object.clone()),
        };
        if removed {
            self.applied.remove(text(&object, "/metadata/uid"));
        }
        if self.history.len() >= self.config.history.max(1) {
            self.history.pop_front();
        }
        let change = Change {
            resource: resource.key.as_str().into(),
            key: key.clone(),
            old,
            object: object.clone(),
            removed,
            at: since_start(),
        };
        self.history.push_back(change);
        object
    }
}

/// The time since the machine's start (`CLOCK_MONOTONIC`): the same for all processes.
pub fn since_start() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is ever negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The newest version, for those who wait for changes.
    newest: tokio::sync::watch::Sender<u64>,
}

/// The lab's cluster: a handle that is cheap to clone; all clones are the same store.
///
/// Types are named by their key, `plural` or `plural.group` (`pods`,
/// `networkpolicies.networking.k8s.io`); the namespace of cluster-wide types is the empty string.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

impl Store {
    /// A store with the namespaces that every cluster has.
    pub fn new(config: StoreConfig) -> Self {
        let version = config.first_version;
        let state = State {
            config,
            registry: Arc::default(),
            version,
            objects: HashMap::new(),
            history: VecDeque::new(),
            applied: HashMap::new(),
        };
        let (newest, _) = tokio::sync::watch::channel(version);
        let store = Store(Arc::new(Shared { state: Mutex::new(state), newest }));
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({ "metadata": { "name": name } });
            if let Err(error) = store.create("namespaces", "", namespace, false) {
                tracing::error!("cannot create namespace {name}: {error}");
            }
        }
        store
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change and wakes those who wait for one.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let mut state = self.lock();
        let result = change(&mut state);
        let version = state.version;
        drop(state);
        self.0
            .newest
            .send_if_modified(|newest| std::mem::replace(newest, (*newest).max(version)) < version);
        result
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Waits until there is a version after this one, and tells the newest.
    pub async fn changed_after(&self, version: u64) -> u64 {
        let mut newest = self.0.newest.subscribe();
        // The sender lives as long as the store that is borrowed here.
        newest.wait_for(|newest| *newest > version).await.map_or(version, |newest| *newest)
    }

    /// When an object of a type was changed last, on the clock of [`since_start`], as far back as changes are told.
    pub fn last_change(&self, resource: &str) -> Option<Duration> {
        let state = self.lock();
        let of_type = |change: &&Change| *change.resource == *resource;
        state.history.iter().rev().find(of_type).map(|change| change.at)
    }

    /// The table of served types as it is now.
    pub fn registry(&self) -> Arc<Registry> {
        self.lock().registry.clone()
    }

    /// A served type by its key. Errors: 404.
    pub fn resource(&self, resource: &str) -> Result<Arc<Resource>, ApiError> {
        self.lock().resource(resource)
    }

    /// One object. Errors: 404.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        let state = self.lock();
        let resource = state.resource(resource)?;
        let found = state.objects(&resource.key).get(&Key::new(namespace, name));
        found.cloned().ok_or_else(|| ApiError::not_found(&resource.key, name))
    }

    /// Objects of a type; an empty namespace means all namespaces. Errors: 400 (a field that cannot
    /// be selected by, a broken page token), 404, 410 (version has left the window), 504 (version
    /// does not exist yet).
    pub fn list(
        &self,
        resource: &str,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List, ApiError> {
        let state = self.lock();
        let resource = state.resource(resource)?;
        list::list(&state, &resource, namespace, options)
    }

    /// Creates an object, with the defaults that an API server writes. Errors: 400, 403 (the
    /// namespace is going away), 404 (no such namespace), 409 (the name is taken), 422.
    pub fn create(
        &self,
        resource: &str,
        namespace: &str,
        object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        self.change(|state| {
            let resource = state.resource(resource)?;
            state.create(&resource, namespace, object, dry_run)
        })
    }

    /// Creates objects of any types, each in the namespace and with the status that it says itself, so that pods
    /// can be there whose node nobody runs. Tells how many; those before one that is refused stay. Errors: as
    /// [`Store::create`].
    pub fn load(&self, objects: Vec<Value>) -> Result<usize, ApiError> {
        self.change(|state| {
            let count = objects.len();
            objects.into_iter().try_for_each(|object| state.load(object))?;
            Ok(count)
        })
    }

    /// Replaces an object, or its status. Errors: 400, 404, 409 (the object has a `resourceVersion`
    /// that is not the newest), 422.
    pub fn update(
        &self,
        resource: &str,
        key: &Key,
        part: Part,
        object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        self.change(|state| {
            let resource = state.resource(resource)?;
            state.update(&resource, key, part, dry_run, |_| Ok(object))
        })
    }

    /// Patches an object, or its status; an apply creates the object where it is missing (the flag
    /// says whether it did). Errors: as [`Store::update`], and 415 for a strategic merge patch of a
    /// type that was defined by a CustomResourceDefinition.
    pub fn patch(
        &self,
        resource: &str,
        key: &Key,
        part: Part,
        patch: &Patch,
        dry_run: bool,
    ) -> Result<(Arc<Value>, bool), ApiError> {
        self.change(|state| {
            let resource = state.resource(resource)?;
            state.patch(&resource, key, part, patch, dry_run)
        })
    }

    /// Reads, changes and writes an object (or its status) in one step, so that no conflict is
    /// possible. Errors: 404, 422.
    pub fn modify(
        &self,
        resource: &str,
        key: &Key,
        part: Part,
        change: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, ApiError> {
        self.try_modify(resource, key, part, |object| {
            change(object);
            Ok(())
        })
    }

    /// As [`Store::modify`], with a change that may refuse. Errors: also those of the change.
    pub fn try_modify(
        &self,
        resource: &str,
        key: &Key,
        part: Part,
        change: impl FnOnce(&mut Value) -> Result<(), ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        self.change(|state| {
            let resource = state.resource(resource)?;
            state.update(&resource, key, part, false, |old| {
                let mut new = old.clone();
                change(&mut new)?;
                Ok(new)
            })
        })
    }

    /// Deletes an object, or marks it as deleted where finalizers or a pod's grace period hold it.
    /// Errors: 403 (a namespace that has to stay), 404, 409 (a precondition does not hold).
    pub fn delete(
        &self,
        resource: &str,
        key: &Key,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        self.change(|state| {
            let resource = state.resource(resource)?;
            state.delete(&resource, key, options)
        })
    }

    /// Watches a type; an empty namespace means all namespaces. A version that has left the window
    /// is told by an event, as the API does. Errors: 400, 404, 504.
    pub fn watch(
        &self,
        resource: &str,
        namespace: &str,
        options: WatchOptions,
    ) -> Result<Watch, ApiError> {
        Watch::start(self, resource, namespace, options)
    }
}

#[cfg(test)]
mod tests;
