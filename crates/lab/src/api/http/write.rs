//! Create, update, patch, delete.

use http::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::handle::Call;
use super::read::{object_answer, shaped};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::api::patch::Patch;
use crate::api::selector::{FieldSelector, LabelSelector};
use crate::api::store::{DeleteOptions, Deleted, Key, ListOptions, Part};

const SERVICES: &str = "the lab stores Services, but nothing translates their addresses yet: call pods by their own address";

const CONTAINERS: &str = "the lab starts no containers: each pod runs a small server that answers on the declared ports; image and command are ignored";

fn key(call: &Call) -> Key {
    Key::new(&call.target.namespace, &call.target.name)
}

fn part(call: &Call) -> Part {
    if call.target.sub == "status" { Part::Status } else { Part::Main }
}

/// The answer to a write, with the warning that belongs to the type.
fn written(call: &Call, code: u16, object: &Value) -> Response<Body> {
    let mut response = object_answer(call, code, object);
    if call.resource.key == "services" && object["spec"]["clusterIP"] != "None" {
        body::warn(&mut response, SERVICES);
    }
    if call.resource.key == "pods" && code == 201 {
        body::warn(&mut response, CONTAINERS);
    }
    response
}

pub(super) async fn create(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let object = body::parse(&call.headers, &body::read(incoming).await?)?;
    if call.resource.namespaced && call.target.namespace.is_empty() {
        return Err(ApiError::not_allowed(
            "objects of this type are created in a namespace: name it in the path",
        ));
    }
    let store = &call.context.store;
    let object =
        store.create(&call.resource.key, &call.target.namespace, object, call.dry_run())?;
    Ok(written(call, 201, &object))
}

pub(super) async fn update(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let object = body::parse(&call.headers, &body::read(incoming).await?)?;
    if meta::name(&object).is_empty() {
        return Err(ApiError::bad_request("the object has no metadata.name"));
    }
    let store = &call.context.store;
    let object =
        store.update(&call.resource.key, &key(call), part(call), object, call.dry_run())?;
    Ok(written(call, 200, &object))
}

pub(super) async fn patch(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let kind = body::content_type(&call.headers).to_string();
    let text = body::read(incoming).await?;
    let value = body::parse(&call.headers, &text)?;
    let patch = match kind.as_str() {
        "application/json-patch+json" => Patch::Json(value),
        "application/merge-patch+json" => Patch::Merge(value),
        "application/strategic-merge-patch+json" => Patch::Strategic(value),
        "application/apply-patch+yaml" => Patch::apply_as(call.query.text("fieldManager"), value),
        other => {
            let message = format!(
                "the patch format {other:?} is not known: use application/json-patch+json, \
                 application/merge-patch+json, application/strategic-merge-patch+json or application/apply-patch+yaml"
            );
            return Err(ApiError::new(415, "UnsupportedMediaType", message));
        }
    };
    let store = &call.context.store;
    let (object, created) =
        store.patch(&call.resource.key, &key(call), part(call), &patch, call.dry_run())?;
    Ok(written(call, if created { 201 } else { 200 }, &object))
}

/// `DeleteOptions` from the body and the query, as both are allowed. Propagation needs no reading:
/// owner references are stored, and no collector follows them.
async fn delete_options(call: &Call, incoming: Incoming) -> Result<DeleteOptions, ApiError> {
    let bytes = body::read(incoming).await?;
    let given = if bytes.is_empty() { Value::Null } else { body::parse(&call.headers, &bytes)? };
    let text = |pointer: &str| given.pointer(pointer).and_then(Value::as_str).map(String::from);
    let grace = call.query.number("gracePeriodSeconds")?.or(given["gracePeriodSeconds"].as_i64());
    Ok(DeleteOptions {
        grace_period_seconds: grace,
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        dry_run: call.dry_run() || given["dryRun"].as_array().is_some_and(|all| !all.is_empty()),
    })
}

pub(super) async fn delete(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let options = delete_options(call, incoming).await?;
    let Deleted { object, gone } =
        call.context.store.delete(&call.resource.key, &key(call), &options)?;
    if gone && call.resource.key != "pods" {
        return Ok(body::json(200, &success(call, &object)));
    }
    Ok(object_answer(call, 200, &object))
}

fn success(call: &Call, object: &Value) -> Value {
    let mut details = json!({
        "name": meta::name(object), "kind": call.resource.plural, "uid": object["metadata"]["uid"],
    });
    if !call.resource.group.is_empty() {
        details["group"] = json!(call.resource.group);
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

pub(super) async fn delete_collection(
    call: &Call,
    incoming: Incoming,
) -> Result<Response<Body>, ApiError> {
    if call.resource.namespaced && call.target.namespace.is_empty() {
        return Err(ApiError::not_allowed(
            "collections of this type are deleted in a namespace: name it in the path",
        ));
    }
    let selection = ListOptions {
        labels: LabelSelector::parse(call.query.text("labelSelector"))?,
        fields: FieldSelector::parse(call.query.text("fieldSelector"))?,
        ..ListOptions::default()
    };
    let options = delete_options(call, incoming).await?;
    let store = &call.context.store;
    let list = store.list(&call.resource.key, &call.target.namespace, &selection)?;
    let mut items = Vec::new();
    for object in &list.items {
        let key = Key::new(meta::namespace(object), meta::name(object));
        match store.delete(&call.resource.key, &key, &options) {
            Ok(deleted) => items.push(shaped(call, &deleted.object)),
            // Somebody else was faster.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let version = json!({ "resourceVersion": store.version().to_string() });
    let kind = &call.resource.list_kind;
    Ok(body::json(
        200,
        &json!({ "kind": kind, "apiVersion": call.api_version(), "metadata": version, "items": items }),
    ))
}
