//! The few protocol buffer messages that kubectl sends although everything else is JSON: what
//! `kubectl create namespace`, `configmap`, `secret`, `serviceaccount` and `service` make, access
//! reviews, and the options of deletes.
//!
//! The envelope is four bytes and a `runtime.Unknown` (Kubernetes API concepts, "Protobuf encoding");
//! field numbers are those of the published `generated.proto` files. Fields that are not listed here
//! are skipped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::api::error::ApiError;

const MAGIC: &[u8] = b"k8s\0";

/// How the value of a field is written, and becomes JSON.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    /// Zero means absent, as in Go structures with `omitempty`.
    Number,
    /// Zero is a value.
    Pointer,
    Bool,
    Message(&'static [Field]),
    /// A map with texts for keys; the values are of the second field of each entry.
    Entry(&'static [Field]),
    IntOrString,
}

#[derive(Clone, Copy)]
struct Field {
    number: u64,
    name: &'static str,
    kind: Kind,
    repeated: bool,
}

const fn one(number: u64, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: false }
}

const fn many(number: u64, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: true }
}

const TEXTS: Kind = Kind::Entry(&[one(1, "key", Kind::Text), one(2, "value", Kind::Text)]);
const BYTES: Kind = Kind::Entry(&[one(1, "key", Kind::Text), one(2, "value", Kind::Bytes)]);

const METADATA: Field = one(
    1,
    "metadata",
    Kind::Message(&[
        one(1, "name", Kind::Text),
        one(2, "generateName", Kind::Text),
        one(3, "namespace", Kind::Text),
        one(5, "uid", Kind::Text),
        one(6, "resourceVersion", Kind::Text),
        one(11, "labels", TEXTS),
        one(12, "annotations", TEXTS),
        many(
            13,
            "ownerReferences",
            Kind::Message(&[
                one(1, "kind", Kind::Text),
                one(3, "name", Kind::Text),
                one(4, "uid", Kind::Text),
                one(5, "apiVersion", Kind::Text),
                one(6, "controller", Kind::Bool),
                one(7, "blockOwnerDeletion", Kind::Bool),
            ]),
        ),
        many(14, "finalizers", Kind::Text),
    ]),
);

const REFERENCE: Kind = Kind::Message(&[
    one(1, "kind", Kind::Text),
    one(2, "namespace", Kind::Text),
    one(3, "name", Kind::Text),
    one(4, "uid", Kind::Text),
]);

const SERVICE: Kind = Kind::Message(&[
    many(
        1,
        "ports",
        Kind::Message(&[
            one(1, "name", Kind::Text),
            one(2, "protocol", Kind::Text),
            one(3, "port", Kind::Number),
            one(4, "targetPort", Kind::IntOrString),
            one(5, "nodePort", Kind::Number),
            one(6, "appProtocol", Kind::Text),
        ]),
    ),
    one(2, "selector", TEXTS),
    one(3, "clusterIP", Kind::Text),
    one(4, "type", Kind::Text),
    many(5, "externalIPs", Kind::Text),
    one(7, "sessionAffinity", Kind::Text),
    one(10, "externalName", Kind::Text),
    one(11, "externalTrafficPolicy", Kind::Text),
    one(17, "ipFamilyPolicy", Kind::Text),
    many(18, "clusterIPs", Kind::Text),
    many(19, "ipFamilies", Kind::Text),
    one(22, "internalTrafficPolicy", Kind::Text),
]);

const ACCESS: Kind = Kind::Message(&[
    one(
        1,
        "resourceAttributes",
        Kind::Message(&[
            one(1, "namespace", Kind::Text),
            one(2, "verb", Kind::Text),
            one(3, "group", Kind::Text),
            one(4, "version", Kind::Text),
            one(5, "resource", Kind::Text),
            one(6, "subresource", Kind::Text),
            one(7, "name", Kind::Text),
        ]),
    ),
    one(
        2,
        "nonResourceAttributes",
        Kind::Message(&[one(1, "path", Kind::Text), one(2, "verb", Kind::Text)]),
    ),
]);

/// The fields of each kind.
const KINDS: &[(&str, &[Field])] = &[
    ("Namespace", &[METADATA]),
    (
        "ConfigMap",
        &[
            METADATA,
            one(2, "data", TEXTS),
            one(3, "binaryData", BYTES),
            one(4, "immutable", Kind::Bool),
        ],
    ),
    (
        "Secret",
        &[
            METADATA,
            one(2, "data", BYTES),
            one(3, "type", Kind::Text),
            one(4, "stringData", TEXTS),
            one(5, "immutable", Kind::Bool),
        ],
    ),
    (
        "ServiceAccount",
        &[
            METADATA,
            many(2, "secrets", REFERENCE),
            many(3, "imagePullSecrets", Kind::Message(&[one(1, "name", Kind::Text)])),
        ],
    ),
    ("Service", &[METADATA, one(2, "spec", SERVICE)]),
    ("SelfSubjectAccessReview", &[METADATA, one(2, "spec", ACCESS)]),
    (
        "SelfSubjectRulesReview",
        &[METADATA, one(2, "spec", Kind::Message(&[one(1, "namespace", Kind::Text)]))],
    ),
    ("SelfSubjectReview", &[METADATA]),
    (
        "DeleteOptions",
        &[
            one(1, "gracePeriodSeconds", Kind::Pointer),
            one(
                2,
                "preconditions",
                Kind::Message(&[one(1, "uid", Kind::Text), one(2, "resourceVersion", Kind::Text)]),
            ),
            one(4, "propagationPolicy", Kind::Text),
            many(5, "dryRun", Kind::Text),
        ],
    ),
];

fn schema(kind: &str) -> Option<&'static [Field]> {
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, fields)| *fields)
}

/// Reads an object in its envelope. Errors: 400 for bytes that are no such message, 415 for a kind that
/// is not known here.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    const TYPE: Kind =
        Kind::Message(&[one(1, "apiVersion", Kind::Text), one(2, "kind", Kind::Text)]);
    const ENVELOPE: &[Field] = &[one(1, "type", TYPE), one(2, "raw", Kind::Bytes)];
    let broken = || ApiError::bad_request("the body is no Kubernetes protocol buffer message");
    let unknown = body.strip_prefix(MAGIC).ok_or_else(broken)?;
    let envelope = message(ENVELOPE, unknown).ok_or_else(broken)?;
    let kind = envelope["type"]["kind"].as_str().unwrap_or("");
    let fields = schema(kind).ok_or_else(|| {
        let message = format!("the lab's API takes {kind:?} as application/json or application/yaml: set the client's content type");
        ApiError::new(415, "UnsupportedMediaType", message)
    })?;
    let raw = STANDARD.decode(envelope["raw"].as_str().unwrap_or("")).map_err(|_| broken())?;
    let mut object = message(fields, &raw).ok_or_else(broken)?;
    object["apiVersion"] = envelope["type"]["apiVersion"].clone();
    object["kind"] = json!(kind);
    Ok(object)
}

/// A number of up to 64 bits in groups of seven, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// A value as it stands on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn wire<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Bytes(take(bytes, 8)?),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => Wire::Bytes(take(bytes, 4)?),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn message(fields: &[Field], mut bytes: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let (number, value) = wire(&mut bytes)?;
        let Some(field) = fields.iter().find(|f| f.number == number) else { continue };
        let name = field.name.to_string();
        match (field.kind, value_of(field.kind, &value)?) {
            (_, Value::Null) => {}
            (Kind::Entry(_), entry) => {
                let map = object.entry(name).or_insert_with(|| json!({}));
                map[entry["key"].as_str().unwrap_or("")] =
                    entry.get("value").cloned().unwrap_or(json!(""));
            }
            (_, value) if field.repeated => {
                if let Value::Array(list) = object.entry(name).or_insert_with(|| json!([])) {
                    list.push(value);
                }
            }
            (_, value) => drop(object.insert(name, value)),
        }
    }
    Some(Value::Object(object))
}

/// The JSON of a value; null for what Go writes although it is empty.
fn value_of(kind: Kind, wire: &Wire<'_>) -> Option<Value> {
    Some(match (kind, wire) {
        (Kind::Text, Wire::Bytes([])) | (Kind::Number, Wire::Number(0)) => Value::Null,
        (Kind::Text, Wire::Bytes(text)) => json!(std::str::from_utf8(text).ok()?),
        (Kind::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Kind::Number | Kind::Pointer, Wire::Number(number)) => json!(number.cast_signed()),
        (Kind::Bool, Wire::Number(number)) => json!(*number != 0),
        (Kind::Message(fields), Wire::Bytes(bytes)) => match message(fields, bytes)? {
            empty if empty.as_object().is_some_and(Map::is_empty) => Value::Null,
            message => message,
        },
        (Kind::Entry(fields), Wire::Bytes(bytes)) => message(fields, bytes)?,
        (Kind::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        _ => return None,
    })
}

/// `intstr.IntOrString`: a type (0 number, 1 text) and both values.
fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let fields =
        [one(1, "type", Kind::Number), one(2, "number", Kind::Number), one(3, "text", Kind::Text)];
    let message = message(&fields, bytes)?;
    Some(if message.get("type").is_some() {
        message["text"].clone()
    } else {
        message["number"].clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a field of bytes.
    fn put(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        assert!(bytes.len() < 128, "one byte of length is enough here");
        out.extend([number << 3 | 2, bytes.len() as u8]);
        out.extend(bytes);
    }

    fn envelope(kind: &str, raw: &[u8]) -> Vec<u8> {
        let (mut types, mut out) = (Vec::new(), MAGIC.to_vec());
        put(&mut types, 1, b"v1");
        put(&mut types, 2, kind.as_bytes());
        put(&mut out, 1, &types);
        put(&mut out, 2, raw);
        out
    }

    #[test]
    fn a_config_map_is_read() {
        let (mut metadata, mut entry, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut metadata, 1, b"c");
        put(&mut metadata, 2, b"");
        metadata.extend([7 << 3, 0]);
        put(&mut entry, 1, b"a");
        put(&mut entry, 2, b"b");
        put(&mut raw, 1, &metadata);
        put(&mut raw, 2, &entry);
        let expected = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "a": "b" } });
        assert_eq!(parse(&envelope("ConfigMap", &raw)).unwrap(), expected);
    }

    #[test]
    fn zero_seconds_of_grace_are_not_lost() {
        assert_eq!(
            parse(&envelope("DeleteOptions", &[1 << 3, 0])).unwrap()["gracePeriodSeconds"],
            0
        );
    }

    #[test]
    fn other_kinds_and_other_bytes_are_refused() {
        assert_eq!(parse(&envelope("Pod", &[])).unwrap_err().code, 415);
        assert_eq!(parse(b"{}").unwrap_err().code, 400);
        assert_eq!(parse(b"k8s\0\xff").unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn nothing_panics(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&[MAGIC, &raw].concat());
            for kind in ["Service", "Secret", "DeleteOptions"] {
                let _ = parse(&envelope(kind, &raw));
            }
        }
    }
}
