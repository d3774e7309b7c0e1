//! Server-side apply without ownership: what is applied wins, what the same manager applied before
//! and leaves out now goes.

use serde_json::{Map, Value};

use super::keys::{self, Merge, Rules};
use crate::api::registry::Resource;

pub(super) fn apply(
    resource: &Resource,
    old: &Value,
    object: &Value,
    last: Option<&Value>,
) -> Value {
    let mut new = old.clone();
    if let Some(last) = last {
        prune(resource, &mut new, last, Some(object), &mut Vec::new());
    }
    merge(resource, &mut new, object, &mut Vec::new());
    new
}

fn merge<'a>(resource: &Resource, target: &mut Value, applied: &'a Value, path: &mut Vec<&'a str>) {
    match (target, applied) {
        (Value::Object(target), Value::Object(applied)) if !keys::atomic_map(resource, path) => {
            for (key, value) in applied {
                path.push(key);
                match value {
                    Value::Null => drop(target.remove(key)),
                    value => merge(
                        resource,
                        target.entry(key.clone()).or_insert(Value::Null),
                        value,
                        path,
                    ),
                }
                path.pop();
            }
        }
        (Value::Array(target), Value::Array(applied)) => {
            merge_list(resource, target, applied, path)
        }
        (target, applied) => *target = applied.clone(),
    }
}

fn merge_list<'a>(
    resource: &Resource,
    target: &mut Vec<Value>,
    applied: &'a [Value],
    path: &mut Vec<&'a str>,
) {
    match keys::list(resource, path, Rules::Apply) {
        Merge::Atomic => *target = applied.to_vec(),
        Merge::Set => {
            let new: Vec<Value> = applied.iter().filter(|v| !target.contains(v)).cloned().collect();
            target.extend(new);
        }
        Merge::By(keys) => {
            for element in applied {
                match target.iter_mut().find(|known| keys::same(keys, known, element)) {
                    Some(known) => merge(resource, known, element, path),
                    None => target.push(element.clone()),
                }
            }
        }
    }
}

/// Takes out of `target` what `last` has and `applied` has not.
fn prune<'a>(
    resource: &Resource,
    target: &mut Value,
    last: &'a Value,
    applied: Option<&Value>,
    path: &mut Vec<&'a str>,
) {
    match (target, last) {
        (Value::Object(target), Value::Object(last)) => {
            for (key, was) in last {
                if identity(path, key) {
                    continue;
                }
                let now = applied.and_then(|a| a.get(key));
                path.push(key);
                if prune_field(resource, target.get_mut(key), was, now, path) {
                    target.remove(key);
                }
                path.pop();
            }
        }
        (Value::Array(target), Value::Array(last)) => {
            let now = applied.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            prune_list(resource, target, last, now, path);
        }
        _ => {}
    }
}

/// Prunes one field; true if nothing of it is left and it was applied before and is not now.
fn prune_field<'a>(
    resource: &Resource,
    field: Option<&mut Value>,
    was: &'a Value,
    now: Option<&Value>,
    path: &mut Vec<&'a str>,
) -> bool {
    let Some(field) = field else { return false };
    let whole = match was {
        Value::Object(_) => keys::atomic_map(resource, path),
        Value::Array(_) => keys::list(resource, path, Rules::Apply) == Merge::Atomic,
        _ => true,
    };
    if whole {
        return now.is_none();
    }
    prune(resource, field, was, now, path);
    let empty =
        field.as_object().is_some_and(Map::is_empty) || field.as_array().is_some_and(Vec::is_empty);
    now.is_none() && empty
}

fn prune_list<'a>(
    resource: &Resource,
    target: &mut Vec<Value>,
    last: &'a [Value],
    now: &[Value],
    path: &mut Vec<&'a str>,
) {
    match keys::list(resource, path, Rules::Apply) {
        Merge::Atomic => {}
        Merge::Set => target.retain(|element| !last.contains(element) || now.contains(element)),
        Merge::By(keys) => {
            for was in last {
                let Some(at) = target.iter().position(|known| keys::same(keys, known, was)) else {
                    continue;
                };
                let kept = now.iter().find(|element| keys::same(keys, element, was));
                prune(resource, &mut target[at], was, kept, path);
                // The server's defaults do not keep an element that nobody applies any more.
                if kept.is_none() {
                    target.remove(at);
                }
            }
        }
    }
}

/// What names the object is never pruned.
fn identity(path: &[&str], key: &str) -> bool {
    path.is_empty() && (key == "apiVersion" || key == "kind")
        || path == ["metadata"] && ["name", "namespace", "uid", "resourceVersion"].contains(&key)
}
