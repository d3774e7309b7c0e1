//! Lists: the present or a version of the past, whole or in pages of one consistent version.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Key, Objects, State};
use crate::api::error::ApiError;
use crate::api::meta::text;
use crate::api::registry::Resource;
use crate::api::selector::{FieldSelector, LabelSelector};

/// Which version a list shows (`resourceVersion` and `resourceVersionMatch`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// The newest.
    #[default]
    Newest,
    /// Any that is at least this one (the lab answers the newest).
    NotOlderThan(u64),
    /// Exactly this one.
    Exactly(u64),
}

/// What a list selects.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Selection by labels.
    pub labels: LabelSelector,
    /// Selection by fields.
    pub fields: FieldSelector,
    /// Objects per page; 0 for all of them.
    pub limit: usize,
    /// The token of the next page (`continue`).
    pub page: Option<String>,
    /// The version to show.
    pub at: At,
}

/// The answer to a list.
#[derive(Clone, Debug)]
pub struct List {
    /// The objects, ordered by namespace and name.
    pub items: Vec<Arc<Value>>,
    /// The version that the list shows.
    pub version: u64,
    /// The token of the next page, if there is one.
    pub next: Option<String>,
    /// How many objects follow this page, where that is known without selecting.
    pub remaining: Option<usize>,
}

pub(super) fn list(
    state: &State,
    resource: &Resource,
    namespace: &str,
    options: &ListOptions,
) -> Result<List, ApiError> {
    options.fields.check(|field| resource.selectable(field))?;
    let (version, after) = start(state, options)?;
    if version == state.version {
        return Ok(page(state.objects(&resource.key), namespace, options, version, after));
    }
    let past = past(state, resource, version)?;
    Ok(page(&past, namespace, options, version, after))
}

/// The version to show and the key after which the page starts.
fn start(state: &State, options: &ListOptions) -> Result<(u64, Option<Key>), ApiError> {
    if let Some(token) = &options.page {
        let (version, key) = read_token(token).ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: start the list again")
        })?;
        return Ok((version, Some(key)));
    }
    match options.at {
        At::NotOlderThan(version) | At::Exactly(version) if version > state.version => {
            Err(ApiError::too_new(version, state.version))
        }
        At::Exactly(version) => Ok((version, None)),
        At::Newest | At::NotOlderThan(_) => Ok((state.version, None)),
    }
}

/// The objects as they were, by undoing the changes since then.
fn past(state: &State, resource: &Resource, version: u64) -> Result<Objects, ApiError> {
    let changes = state.changes_after(version).ok_or_else(|| {
        ApiError::expired(
            "The provided continue parameter or resource version is too old: start the list again",
        )
    })?;
    let mut objects = state.objects(&resource.key).clone();
    for (_, change) in changes.rev().filter(|(_, c)| *c.resource == *resource.key) {
        match &change.old {
            Some(old) => objects.insert(change.key.clone(), old.clone()),
            None => objects.remove(&change.key),
        };
    }
    Ok(objects)
}

fn page(
    objects: &Objects,
    namespace: &str,
    options: &ListOptions,
    version: u64,
    after: Option<Key>,
) -> List {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let from = match (after, namespace) {
        (Some(key), _) => Excluded(key),
        (None, "") => Unbounded,
        (None, namespace) => Included(Key::new(namespace, "")),
    };
    let mut found = objects
        .range((from, Unbounded))
        .take_while(|(key, _)| namespace.is_empty() || key.namespace == namespace)
        .filter(|(_, object)| selected(&options.labels, &options.fields, object));
    if options.limit == 0 {
        return List {
            items: found.map(|(_, o)| o.clone()).collect(),
            version,
            next: None,
            remaining: None,
        };
    }
    let page: Vec<_> = found.by_ref().take(options.limit).collect();
    let remaining = found.count();
    let last = page.last().filter(|_| remaining > 0).map(|(key, _)| token(version, key));
    let whole = options.labels.is_empty() && options.fields.is_empty();
    List {
        items: page.iter().map(|(_, object)| Arc::clone(object)).collect(),
        version,
        remaining: (last.is_some() && whole).then_some(remaining),
        next: last,
    }
}

/// Whether both selectors take an object.
pub(super) fn selected(labels: &LabelSelector, fields: &FieldSelector, object: &Value) -> bool {
    labels.matches(&object["metadata"]["labels"]) && fields.matches(object)
}

fn token(version: u64, key: &Key) -> String {
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "namespace": key.namespace, "name": key.name });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    Some((value["rv"].as_u64()?, Key::new(text(&value, "/namespace"), text(&value, "/name"))))
}
