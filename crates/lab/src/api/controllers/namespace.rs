//! Namespaces: a service account when they begin, everything gone when they end.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{changed, key_of, watch_all};
use crate::api::meta::{self, name, text};
use crate::api::store::{DeleteOptions, Key, ListOptions, Part, Store};

pub(super) async fn run(store: &Store) {
    loop {
        let (Some(mut namespaces), Some(mut accounts)) =
            (watch_all(store, "namespaces"), watch_all(store, "serviceaccounts"))
        else {
            return;
        };
        // Those that end. Others need nothing of what happens in them, and there may be very many.
        let (mut ending, mut seen) = (BTreeSet::new(), 0);
        loop {
            let result = tokio::select! {
                biased;
                event = namespaces.next() => changed(event).map(|event| {
                    if let Some((namespace, gone)) = event {
                        on_namespace(store, &namespace, gone, &mut ending);
                    }
                }),
                event = accounts.next() => changed(event).map(|event| {
                    if let Some((account, true)) = event {
                        on_lost_account(store, &account);
                    }
                }),
                version = store.changed_after(seen), if !ending.is_empty() => {
                    seen = version;
                    for namespace in &ending {
                        // One of its name may have been made since.
                        let known = store.get("namespaces", "", namespace);
                        if known.is_ok_and(|namespace| !lives(&namespace)) {
                            end(store, namespace);
                        }
                    }
                    Ok(())
                }
            };
            if result.is_err() {
                break;
            }
        }
    }
}

fn on_namespace(store: &Store, namespace: &Value, gone: bool, ending: &mut BTreeSet<String>) {
    let (name, ends) = (name(namespace), !lives(namespace));
    match (gone, ends) {
        (true, _) => drop(ending.remove(name)),
        (false, true) => {
            ending.insert(name.to_owned());
            end(store, name);
        }
        (false, false) => begin(store, name),
    }
}

/// Each namespace that lives has its own.
fn on_lost_account(store: &Store, account: &Value) {
    let of = meta::namespace(account);
    if store.get("namespaces", "", of).is_ok_and(|namespace| lives(&namespace)) {
        begin(store, of);
    }
}

fn lives(namespace: &Value) -> bool {
    text(namespace, "/metadata/deletionTimestamp").is_empty()
}

fn list(store: &Store, resource: &str, namespace: &str) -> Vec<std::sync::Arc<Value>> {
    store
        .list(resource, namespace, &ListOptions::default())
        .map(|list| list.items)
        .unwrap_or_default()
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
