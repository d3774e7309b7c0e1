//! Checks of metadata that hold for every type.

use serde_json::Value;

use super::error::Cause;
use super::meta::{items, name};
use super::registry::Resource;

/// What is wrong with the metadata of an object.
pub(crate) fn causes(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = name(object);
    let label = ["namespaces", "services"].contains(&resource.key.as_str());
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if label && !dns_label(name) {
        let rule = "a DNS label has at most 63 lower case letters, digits and '-', and starts and ends with one of the first two";
        causes.push(Cause::invalid("metadata.name", format!("\"{name}\": {rule}")));
    } else if !dns_subdomain(name) {
        let rule = "a DNS subdomain has at most 253 lower case letters, digits, '-' and '.', and starts and ends with one of the first two";
        causes.push(Cause::invalid("metadata.name", format!("\"{name}\": {rule}")));
    }
    for map in ["labels", "annotations"] {
        for (key, value) in object["metadata"][map].as_object().into_iter().flatten() {
            let field = format!("metadata.{map}");
            if !qualified(key) {
                causes.push(Cause::invalid(
                    &field,
                    format!("\"{key}\": not a qualified name (prefix/name)"),
                ));
            }
            match value.as_str() {
                None => causes.push(Cause::invalid(
                    &field,
                    format!("{value}: the value of {key} has to be a string"),
                )),
                Some(text) if map == "labels" && !label_value(text) => {
                    let rule = "a label value has at most 63 letters, digits, '-', '_' and '.'";
                    causes.push(Cause::invalid(&field, format!("\"{text}\": {rule}")));
                }
                Some(_) => {}
            }
        }
    }
    causes
}

/// An object that is being deleted takes no new finalizers.
pub(crate) fn finalizer_causes(old: &Value, new: &Value) -> Vec<Cause> {
    if old["metadata"].get("deletionTimestamp").is_none() {
        return Vec::new();
    }
    let known = items(old, "/metadata/finalizers");
    let added = items(new, "/metadata/finalizers").iter().filter(|f| !known.contains(f));
    let message = "no new finalizers can be added if the object is being deleted";
    added
        .map(|f| {
            Cause::forbidden("metadata.finalizers", format!("{message}, found new finalizers: {f}"))
        })
        .collect()
}

fn alphanumeric_ends(text: &str) -> bool {
    let fine = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    fine(text.chars().next()) && fine(text.chars().last())
}

fn dns_label(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 63 && text.chars().all(allowed) && alphanumeric_ends(text)
}

fn dns_subdomain(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 253
        && text.split('.').all(|part| part.chars().all(allowed) && alphanumeric_ends(part))
}

fn label_value(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.is_empty() || text.len() <= 63 && text.chars().all(allowed) && alphanumeric_ends(text)
}

fn qualified(key: &str) -> bool {
    let (prefix, name) =
        key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(dns_subdomain) && !name.is_empty() && label_value(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::Registry;
    use serde_json::json;

    fn fields(resource: &str, object: Value) -> Vec<String> {
        let registry = Registry::default();
        causes(registry.get(resource).unwrap(), &object).into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn names_and_labels_follow_the_rules() {
        assert!(
            fields(
                "pods",
                json!({ "metadata": { "name": "a.b-c", "labels": { "example.com/A_b": "x.Y" } } })
            )
            .is_empty()
        );
        assert_eq!(fields("pods", json!({ "metadata": { "name": "A" } })), ["metadata.name"]);
        assert_eq!(fields("services", json!({ "metadata": { "name": "a.b" } })), ["metadata.name"]);
        assert_eq!(fields("pods", json!({})), ["metadata.name"]);
        let odd =
            json!({ "metadata": { "name": "a", "labels": { "a b": "c", "d": 1, "e": "-" } } });
        assert_eq!(fields("pods", odd), ["metadata.labels"; 3]);
    }

    #[test]
    fn a_deleted_object_takes_no_new_finalizer() {
        let old = json!({ "metadata": { "deletionTimestamp": "x", "finalizers": ["a", "b"] } });
        let causes = |list: Value| {
            finalizer_causes(&old, &json!({ "metadata": { "finalizers": list } })).len()
        };
        assert_eq!((causes(json!(["b"])), causes(json!(["a", "c"]))), (0, 1));
    }
}
