//! CustomResourceDefinitions: accepted at once, served from the moment they are stored.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::error::Cause;
use crate::api::meta::{default, items, section_mut, text, timestamp};
use crate::api::store::{Key, State};

pub(super) fn on_create(definition: &mut Value) -> Vec<Cause> {
    let causes = check(definition);
    if causes.is_empty() {
        accept(definition);
    }
    causes
}

pub(super) fn on_update(old: &Value, new: &mut Value) -> Vec<Cause> {
    let mut causes = check(new);
    for field in ["group", "scope"] {
        if old["spec"][field] != new["spec"][field] {
            causes.push(Cause::invalid(&format!("spec.{field}"), "field is immutable"));
        }
    }
    if causes.is_empty() {
        new["status"]["acceptedNames"] = new["spec"]["names"].clone();
    }
    causes
}

fn check(definition: &mut Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["/spec/group", "/spec/names/plural", "/spec/names/kind"] {
        if text(definition, field).is_empty() {
            causes.push(Cause::required(&field[1..].replace('/', "."), "must be given"));
        }
    }
    let expected =
        format!("{}.{}", text(definition, "/spec/names/plural"), text(definition, "/spec/group"));
    if causes.is_empty() && text(definition, "/metadata/name") != expected {
        causes.push(Cause::invalid(
            "metadata.name",
            format!("must be spec.names.plural+\".\"+spec.group ({expected})"),
        ));
    }
    if !["Cluster", "Namespaced"].contains(&text(definition, "/spec/scope")) {
        causes.push(Cause::invalid("spec.scope", "must be Cluster or Namespaced"));
    }
    let stored =
        items(definition, "/spec/versions").iter().filter(|v| v["storage"] == true).count();
    if stored != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            "must have exactly one version marked as storage version",
        ));
    }
    causes
}

fn accept(definition: &mut Value) {
    let kind = text(definition, "/spec/names/kind").to_string();
    if let Some(names) = section_mut(definition, "spec")
        .and_then(|s| s.get_mut("names"))
        .and_then(Value::as_object_mut)
    {
        default(names, "singular", kind.to_lowercase());
        default(names, "listKind", format!("{kind}List"));
    }
    if let Some(spec) = section_mut(definition, "spec") {
        default(spec, "conversion", json!({ "strategy": "None" }));
    }
    let condition = |kind: &str, reason: &str, message: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": timestamp() });
    let stored: Vec<&str> = items(definition, "/spec/versions")
        .iter()
        .filter(|v| v["storage"] == true)
        .map(|v| text(v, "/name"))
        .collect();
    definition["status"] = json!({
        "acceptedNames": definition["spec"]["names"],
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    });
}

/// Serves or stops serving the type; its objects go with it.
pub(super) fn committed(state: &mut State, definition: &Value, removed: bool) {
    if !removed {
        Arc::make_mut(&mut state.registry).define(definition);
        return;
    }
    let key = text(definition, "/metadata/name");
    let Some(resource) = state.registry.get(key).filter(|r| r.custom).cloned() else { return };
    let all: Vec<(Key, Value)> = state
        .objects(key)
        .iter()
        .map(|(key, object)| (key.clone(), Value::clone(object)))
        .collect();
    for (key, object) in all {
        state.commit(&resource, &key, object, true);
    }
    Arc::make_mut(&mut state.registry).undefine(key);
}
