//! Watches: a walk through the window of history, with waiting at its end.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use super::list::selected;
use super::{Change, Store};
use crate::api::error::ApiError;
use crate::api::registry::Resource;
use crate::api::selector::{FieldSelector, LabelSelector};

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is there, or has moved into the selection.
    Added(Arc<Value>),
    /// An object has changed.
    Modified(Arc<Value>),
    /// An object is gone (its last state), or has moved out of the selection.
    Deleted(Arc<Value>),
    /// Everything up to this version has been told.
    Bookmark {
        /// The version.
        version: u64,
        /// Whether it marks the end of the initial events of a streaming list.
        initial_end: bool,
    },
    /// The watch has ended, for example because its version has left the window.
    Error(ApiError),
}

/// What a watch selects and where it starts.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Selection by labels.
    pub labels: LabelSelector,
    /// Selection by fields.
    pub fields: FieldSelector,
    /// The version after which changes are told; `None` or 0 starts with the present objects.
    pub after: Option<u64>,
    /// `sendInitialEvents`: tell all present objects first, then a bookmark that says so.
    pub initial_events: Option<bool>,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    resource: Arc<Resource>,
    namespace: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// The version up to which the queue is filled.
    position: u64,
    queue: VecDeque<Event>,
    newest: tokio::sync::watch::Receiver<u64>,
    ended: bool,
}

impl Watch {
    pub(super) fn start(
        store: &Store,
        resource: &str,
        namespace: &str,
        options: WatchOptions,
    ) -> Result<Self, ApiError> {
        let newest = store.0.newest.subscribe();
        let state = store.lock();
        let resource = state.resource(resource)?;
        options.fields.check(|field| resource.selectable(field))?;
        let after = options.after.unwrap_or(0);
        let (initial, position) = match options.initial_events {
            Some(true) if after > state.version => {
                return Err(ApiError::too_new(after, state.version));
            }
            Some(true) => (true, state.version),
            None if after == 0 => (true, state.version),
            _ if after == 0 => (false, state.version),
            _ => (false, after),
        };
        let mut watch = Watch {
            store: store.clone(),
            resource,
            namespace: namespace.into(),
            labels: options.labels,
            fields: options.fields,
            position,
            queue: VecDeque::new(),
            newest,
            ended: false,
        };
        if initial {
            let all = state.objects(&watch.resource.key).iter();
            let chosen = all.filter(|(key, object)| {
                watch.in_namespace(&key.namespace) && watch.selects(object)
            });
            watch.queue = chosen.map(|(_, object)| Event::Added(object.clone())).collect();
        }
        if options.initial_events == Some(true) {
            watch.queue.push_back(Event::Bookmark { version: position, initial_end: true });
        }
        Ok(watch)
    }

    /// The watched type.
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// A bookmark for what has been told so far; `None` while events wait to be told.
    pub fn bookmark(&mut self) -> Option<Event> {
        self.fill();
        self.queue
            .is_empty()
            .then_some(Event::Bookmark { version: self.position, initial_end: false })
    }

    /// The next event, if it is at hand.
    pub fn ready(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }

    /// The next event; waits for one. After an error, and when the store is gone, there is none.
    /// May be dropped and called again without losing an event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.newest.borrow_and_update();
            self.fill();
            if self.queue.is_empty() && self.newest.changed().await.is_err() {
                return None;
            }
        }
    }

    fn in_namespace(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }

    fn selects(&self, object: &Value) -> bool {
        selected(&self.labels, &self.fields, object)
    }

    /// Moves what has happened since the last call into the queue.
    fn fill(&mut self) {
        if self.ended {
            return;
        }
        let store = self.store.clone();
        let state = store.lock();
        let Some(changes) = state.changes_after(self.position) else {
            let message =
                format!("too old resource version: {} ({})", self.position, state.oldest());
            self.queue.push_back(Event::Error(ApiError::expired(message)));
            self.ended = true;
            return;
        };
        let events: Vec<Event> = changes
            .filter(|(_, c)| {
                *c.resource == *self.resource.key && self.in_namespace(&c.key.namespace)
            })
            .filter_map(|(version, change)| self.event(version, change))
            .collect();
        self.queue.extend(events);
        self.position = state.version;
    }

    fn event(&self, version: u64, change: &Change) -> Option<Event> {
        let before = change.old.as_ref().filter(|old| self.selects(old));
        let after = Some(&change.object).filter(|new| !change.removed && self.selects(new));
        match (before, after) {
            (None, None) => None,
            (None, Some(new)) => Some(Event::Added(new.clone())),
            (Some(_), Some(new)) => Some(Event::Modified(new.clone())),
            (Some(_), None) if change.removed => Some(Event::Deleted(change.object.clone())),
            // Out of the selection: the watcher knows the old state, at the version of the move.
            (Some(old), None) => {
                let mut last = Value::clone(old);
                last["metadata"]["resourceVersion"] = json!(version.to_string());
                Some(Event::Deleted(Arc::new(last)))
            }
        }
    }
}
