//! Decoding with messages that name the key and the value that are wrong.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::CniError;

/// A JSON object with its keys.
pub type Object = Map<String, Value>;

/// Parses bytes that must hold one JSON object. `what` says what they are.
///
/// # Errors
/// Code 6 with line and column.
pub fn object_from_slice(bytes: &[u8], what: &str) -> Result<Object, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CniError::decoding(format!("{what} is empty: expected a JSON object")));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(CniError::decoding(format!("{what} is {}: expected a JSON object", kind(&other))))
        }
        Err(error) => Err(CniError::decoding(format!("{what} is not valid JSON: {error}"))),
    }
}

/// Decodes a value into `T`. `at` is the path of the value itself (`ipam`, or empty for the top),
/// and the message names the full path of the key that does not fit, and what it holds.
///
/// # Errors
/// Code 6.
pub fn decode<T: DeserializeOwned>(value: &Value, at: &str) -> Result<T, CniError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, found) = locate(value, at, error.path());
        let why = explain(&error.inner().to_string());
        // A missing key is told by its parent, whose own value would only be noise.
        let found = found.filter(|_| !why.starts_with("missing field"));
        let found = found.map(|v| format!(" is {}", shorten(v))).unwrap_or_default();
        let key =
            if path.is_empty() { "the top level".to_owned() } else { format!("key \"{path}\"") };
        CniError::decoding(format!("{key}{found}: {why}"))
    })
}

/// Addresses without a length read with a helpful message already; what remains under this one
/// is a network.
fn explain(message: &str) -> String {
    match message {
        "invalid IP address syntax" => {
            "expected a network, ADDRESS/LENGTH, such as \"10.244.0.0/16\" or \"fd00:10::/64\""
                .into()
        }
        other => other.to_owned(),
    }
}

/// The value under `key`; `null` counts as absent, as Go runtimes write it so.
pub fn get<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !v.is_null())
}

/// Decodes the value under `key`, or gives the default if it is absent or `null`.
///
/// # Errors
/// Code 6.
pub fn decode_key<T: DeserializeOwned + Default>(
    object: &Object,
    key: &str,
) -> Result<T, CniError> {
    get(object, key).map_or_else(|| Ok(T::default()), |value| decode(value, key))
}

fn locate<'a>(
    root: &'a Value,
    at: &str,
    path: &serde_path_to_error::Path,
) -> (String, Option<&'a Value>) {
    use serde_path_to_error::Segment;
    let mut text = at.to_owned();
    let mut found = Some(root);
    for segment in path {
        match segment {
            Segment::Seq { index } => {
                text.push_str(&format!("[{index}]"));
                found = found.and_then(|v| v.get(index));
            }
            Segment::Map { key } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
                found = found.and_then(|v| v.get(key));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    (text, found)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Scalars in full, containers by kind: a message stays one readable line.
fn shorten(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        Value::String(s) if s.len() > 60 => {
            format!("{:?}…", s.chars().take(60).collect::<String>())
        }
        other => other.to_string(),
    }
}
