//! What an API server does for single types: defaults, checks, side effects.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::error::{ApiError, Cause};
use super::meta::{default, metadata_mut, section_mut, text};
use super::registry::Resource;
use super::store::{Key, Part, State};

mod definition;
mod node;
mod pod;
mod service;

/// Namespaces that every cluster has and keeps.
const PERMANENT: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Writes defaults into a new object and says what is wrong with it.
pub(crate) fn on_create(state: &State, resource: &Resource, object: &mut Value) -> Vec<Cause> {
    match resource.key.as_str() {
        "pods" => pod::on_create(object),
        "nodes" => node::check(object),
        "services" => service::on_create(state, object),
        "namespaces" => {
            namespace_defaults(object);
            Vec::new()
        }
        "secrets" => {
            secret_defaults(object);
            Vec::new()
        }
        "networkpolicies.networking.k8s.io" => policy_defaults(object),
        "customresourcedefinitions.apiextensions.k8s.io" => definition::on_create(object),
        _ => {
            drop_new_status(resource, object);
            Vec::new()
        }
    }
}

/// Writes defaults into a changed object and says what may not be changed so.
pub(crate) fn on_update(
    state: &State,
    resource: &Resource,
    old: &Value,
    new: &mut Value,
    part: Part,
) -> Vec<Cause> {
    if part == Part::Status {
        return Vec::new();
    }
    match resource.key.as_str() {
        "pods" => pod::on_update(old, new, part),
        "nodes" => node::on_update(old, new),
        "services" => service::on_update(state, old, new),
        "namespaces" => {
            namespace_keep(old, new, part);
            Vec::new()
        }
        "secrets" => {
            secret_defaults(new);
            Vec::new()
        }
        "networkpolicies.networking.k8s.io" => policy_defaults(new),
        "customresourcedefinitions.apiextensions.k8s.io" => definition::on_update(old, new),
        _ => Vec::new(),
    }
}

/// Follows a change that has been written.
pub(crate) fn committed(state: &mut State, resource: &Resource, object: &Value, removed: bool) {
    if resource.key == "customresourcedefinitions.apiextensions.k8s.io" {
        definition::committed(state, object, removed);
    }
}

/// Refuses the removal of what has to stay.
pub(crate) fn may_delete(resource: &Resource, key: &Key) -> Result<(), ApiError> {
    match resource.key == "namespaces" && PERMANENT.contains(&key.name.as_str()) {
        true => Err(ApiError::forbidden(format!(
            "namespaces \"{}\" is forbidden: this namespace may not be deleted",
            key.name
        ))),
        false => Ok(()),
    }
}

/// Seconds that an object gets before it is removed: only pods on a node get any.
pub(crate) fn grace(resource: &Resource, object: &Value, asked: Option<i64>) -> i64 {
    if resource.key == "pods" { pod::grace(object, asked) } else { 0 }
}

/// Marks an object that waits for its removal.
pub(crate) fn deleting(resource: &Resource, object: &mut Value) {
    if resource.key == "namespaces" {
        object["status"] = json!({ "phase": "Terminating" });
    }
}

/// A status subresource alone writes the status.
fn drop_new_status(resource: &Resource, object: &mut Value) {
    if resource.has_status()
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
}

fn namespace_defaults(object: &mut Value) {
    let name = text(object, "/metadata/name").to_string();
    if let Some(metadata) = metadata_mut(object) {
        metadata.entry("labels").or_insert_with(|| json!({}));
        metadata["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
    object["spec"] = json!({ "finalizers": ["kubernetes"] });
    object["status"] = json!({ "phase": "Active" });
}

/// `spec.finalizers` of a namespace is the controller's.
fn namespace_keep(old: &Value, new: &mut Value, part: Part) {
    if part == Part::Main {
        new["spec"] = old["spec"].clone();
    }
    let name = text(old, "/metadata/name").to_string();
    if let Some(metadata) = metadata_mut(new) {
        default(metadata, "labels", json!({}));
        metadata["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
}

/// `stringData` is for writing only: it becomes `data`.
fn secret_defaults(object: &mut Value) {
    let plain = object.as_object_mut().and_then(|map| map.remove("stringData"));
    for (key, value) in plain.iter().filter_map(Value::as_object).flatten() {
        object["data"][key] = json!(STANDARD.encode(value.as_str().unwrap_or("")));
    }
    if let Some(map) = object.as_object_mut() {
        default(map, "type", "Opaque");
    }
}

fn policy_defaults(object: &mut Value) -> Vec<Cause> {
    let Some(spec) = section_mut(object, "spec") else {
        return vec![Cause::invalid("spec", "has to be an object")];
    };
    default(spec, "podSelector", json!({}));
    let egress =
        spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    default(
        spec,
        "policyTypes",
        if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
    );
    for direction in ["ingress", "egress"] {
        for rule in spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten() {
            for port in rule.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                port.as_object_mut().into_iter().for_each(|port| default(port, "protocol", "TCP"));
            }
        }
    }
    Vec::new()
}
