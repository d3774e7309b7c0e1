//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::meta::text;

pub(super) fn apply(old: &Value, operations: &Value) -> Result<Value, ApiError> {
    let list = operations
        .as_array()
        .ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    let mut new = old.clone();
    for operation in list {
        step(&mut new, operation).map_err(|why| {
            ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request: {operation}: {why}"),
            )
        })?;
    }
    Ok(new)
}

fn step(document: &mut Value, operation: &Value) -> Result<(), String> {
    let path = text(operation, "/path");
    let value = || operation.get("value").cloned().ok_or("the operation needs a value");
    let from = || document.pointer(text(operation, "/from")).cloned().ok_or("nothing is at `from`");
    match text(operation, "/op") {
        "add" => add(document, path, value()?),
        "remove" => remove(document, path).map(drop),
        "replace" => {
            let place = document.pointer_mut(path).ok_or("nothing is at `path`")?;
            *place = value()?;
            Ok(())
        }
        "copy" => {
            let value = from()?;
            add(document, path, value)
        }
        "move" if path.starts_with(&format!("{}/", text(operation, "/from"))) => {
            Err("a value cannot be moved into itself".into())
        }
        "move" => {
            let value = remove(document, text(operation, "/from"))?;
            add(document, path, value)
        }
        "test" if document.pointer(path) == operation.get("value") => Ok(()),
        "test" => Err("the test failed".into()),
        other => Err(format!("no such operation: {other:?}")),
    }
}

/// Splits a pointer into what holds the value and the last, unescaped, key.
fn parent<'a>(document: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (parent, last) = path.rsplit_once('/').ok_or("the path has to start with '/'")?;
    let holder = document.pointer_mut(parent).ok_or_else(|| format!("nothing is at {parent:?}"))?;
    Ok((holder, last.replace("~1", "/").replace("~0", "~")))
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *document = value;
        return Ok(());
    }
    match parent(document, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(list), key) if key == "-" => list.push(value),
        (Value::Array(list), key) => {
            let index =
                index(&key).filter(|i| *i <= list.len()).ok_or("the index is out of range")?;
            list.insert(index, value);
        }
        _ => return Err("the path leads into a value that is no object and no list".into()),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, String> {
    let found = match parent(document, path)? {
        (Value::Object(map), key) => map.remove(&key),
        (Value::Array(list), key) => {
            index(&key).filter(|i| *i < list.len()).map(|i| list.remove(i))
        }
        _ => None,
    };
    found.ok_or_else(|| format!("nothing is at {path:?}"))
}

/// Indexes have no sign and no leading zero (RFC 6901, section 4).
fn index(key: &str) -> Option<usize> {
    let plain = key == "0" || !key.starts_with(['0', '+']);
    key.parse().ok().filter(|_| plain)
}
