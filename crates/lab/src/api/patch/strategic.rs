//! Strategic merge patch: a merge patch that knows which lists are maps, and a few directives.

use serde_json::{Map, Value};

use super::keys::{self, Merge, Rules};
use crate::api::error::ApiError;
use crate::api::registry::Resource;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

pub(super) fn apply(resource: &Resource, old: &Value, patch: &Value) -> Result<Value, ApiError> {
    let (Value::Object(old), Value::Object(patch)) = (old, patch) else {
        return Err(ApiError::bad_request("a strategic merge patch is an object"));
    };
    let mut new = old.clone();
    merge(resource, &mut new, patch, &mut Vec::new());
    Ok(Value::Object(new))
}

fn merge<'a>(
    resource: &Resource,
    target: &mut Map<String, Value>,
    patch: &'a Map<String, Value>,
    path: &mut Vec<&'a str>,
) {
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => target.clear(),
        Some("delete") => return target.clear(),
        _ => {}
    }
    if let Some(keep) = patch.get(RETAIN).and_then(Value::as_array) {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        path.push(key);
        field(resource, target, key, value, path);
        path.pop();
    }
    for (key, value) in patch {
        let values = value.as_array().map_or(&[][..], Vec::as_slice);
        if let Some(list) =
            key.strip_prefix(DELETE).and_then(|k| target.get_mut(k)).and_then(Value::as_array_mut)
        {
            list.retain(|element| !values.contains(element));
        }
        if let Some(name) = key.strip_prefix(ORDER) {
            path.push(name);
            let how = keys::list(resource, path, Rules::Strategic);
            path.pop();
            if let Some(list) = target.get_mut(name).and_then(Value::as_array_mut) {
                order(list, values, how);
            }
        }
    }
}

fn field<'a>(
    resource: &Resource,
    target: &mut Map<String, Value>,
    key: &str,
    value: &'a Value,
    path: &mut Vec<&'a str>,
) {
    match value {
        Value::Null => drop(target.remove(key)),
        Value::Object(patch) => {
            let entry = target.entry(key.to_string()).or_insert(Value::Null);
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            entry.as_object_mut().into_iter().for_each(|map| merge(resource, map, patch, path));
        }
        Value::Array(patch) => {
            let entry = target.entry(key.to_string()).or_insert(Value::Null);
            if !entry.is_array() {
                *entry = Value::Array(Vec::new());
            }
            if let Value::Array(list) = entry {
                merge_list(resource, list, patch, path);
            }
        }
        plain => drop(target.insert(key.to_string(), plain.clone())),
    }
}

fn directive(element: &Value) -> &str {
    element.get(PATCH).and_then(Value::as_str).unwrap_or("")
}

fn merge_list<'a>(
    resource: &Resource,
    list: &mut Vec<Value>,
    patch: &'a [Value],
    path: &mut Vec<&'a str>,
) {
    let how = keys::list(resource, path, Rules::Strategic);
    let keys = match how {
        Merge::By(keys) => keys,
        Merge::Set => {
            let new = patch.iter().filter(|v| !list.contains(v)).cloned().collect::<Vec<_>>();
            return list.extend(new);
        }
        Merge::Atomic => {
            *list = patch.iter().filter(|v| directive(v).is_empty()).cloned().collect();
            return;
        }
    };
    if patch.iter().any(|element| directive(element) == "replace") {
        list.clear();
    }
    for element in patch {
        let found = list.iter_mut().find(|known| keys::same(keys, known, element));
        match (directive(element), element, found) {
            ("delete", ..) => list.retain(|known| !keys::same(keys, known, element)),
            (_, Value::Object(patch), Some(Value::Object(known))) => {
                merge(resource, known, patch, path)
            }
            ("replace", Value::Object(patch), _) if patch.len() == 1 => {}
            (_, Value::Object(patch), _) => {
                let mut new = Map::new();
                merge(resource, &mut new, patch, path);
                list.push(Value::Object(new));
            }
            (_, plain, _) => list.push(plain.clone()),
        }
    }
}

/// Brings the listed elements into the given order; the others follow in theirs.
fn order(list: &mut [Value], wanted: &[Value], how: Merge) {
    let place = |element: &Value| {
        let same = |want: &Value| match how {
            Merge::By(keys) => keys::same(keys, want, element),
            _ => want == element,
        };
        wanted.iter().position(same).unwrap_or(usize::MAX)
    };
    list.sort_by_key(place);
}
