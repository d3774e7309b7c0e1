//! Namespaces: a service account when they begin, everything gone when they end.

use serde_json::{Value, json};

use super::key_of;
use crate::api::meta::{name, text};
use crate::api::store::{DeleteOptions, Key, ListOptions, Part, Store};

pub(super) async fn run(store: &Store) {
    let mut seen = 0;
    loop {
        seen = store.changed_after(seen).await;
        step(store);
    }
}

fn list(store: &Store, resource: &str, namespace: &str) -> Vec<std::sync::Arc<Value>> {
    store
        .list(resource, namespace, &ListOptions::default())
        .map(|list| list.items)
        .unwrap_or_default()
}

/// Brings every namespace one step further.
fn step(store: &Store) {
    for namespace in list(store, "namespaces", "") {
        match text(&namespace, "/metadata/deletionTimestamp") {
            "" => begin(store, name(&namespace)),
            _ => end(store, name(&namespace)),
        }
    }
}

fn begin(store: &Store, namespace: &str) {
    if store.get("serviceaccounts", namespace, "default").is_err() {
        let account = json!({ "metadata": { "name": "default" } });
        if let Err(error) = store.create("serviceaccounts", namespace, account, false) {
            tracing::debug!("cannot create the service account of namespace {namespace}: {error}");
        }
    }
}

/// Deletes what is in the namespace; pods keep their grace period. When nothing is left, the
/// namespace loses its finalizer and goes.
fn end(store: &Store, namespace: &str) {
    let registry = store.registry();
    let mut left = false;
    for resource in registry.all().filter(|r| r.namespaced && !r.review) {
        for object in list(store, &resource.key, namespace) {
            if text(&object, "/metadata/deletionTimestamp").is_empty() {
                let _ = store.delete(&resource.key, &key_of(&object), &DeleteOptions::default());
            }
        }
        left |= !list(store, &resource.key, namespace).is_empty();
    }
    if left {
        return;
    }
    let result = store.modify("namespaces", &Key::new("", namespace), Part::Whole, |namespace| {
        namespace["spec"]["finalizers"] = json!([]);
    });
    match result {
        Err(error) if error.code != 404 => {
            tracing::warn!("cannot finish namespace {namespace}: {error}")
        }
        _ => {}
    }
}
