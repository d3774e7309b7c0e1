//! Get, list, watch.

use http::Response;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::body::{self, Body};
use super::handle::Call;
use super::negotiate::{Form, in_version};
use super::stream;
use crate::api::error::ApiError;
use crate::api::selector::{FieldSelector, LabelSelector};
use crate::api::store::{At, List, ListOptions, WatchOptions};
use crate::api::table::{partial, table};

pub(super) fn get(call: &Call) -> Result<Response<Body>, ApiError> {
    let target = &call.target;
    if call.query.flag("watch") {
        return watch(call, FieldSelector::equals("metadata.name", &target.name));
    }
    let object = call.context.store.get(&call.resource.key, &target.namespace, &target.name)?;
    Ok(object_answer(call, 200, &object))
}

/// One object in the form that the client wants.
pub(super) fn object_answer(call: &Call, code: u16, object: &Value) -> Response<Body> {
    if call.form == Form::Whole && !call.converts() {
        return body::json(code, object);
    }
    body::json(code, &shaped(call, object))
}

/// One object as a table, as metadata, or in another version.
pub(super) fn shaped(call: &Call, object: &Value) -> Value {
    match call.form {
        Form::Whole | Form::Discovery(_) if call.converts() => {
            in_version(object, &call.api_version())
        }
        Form::Whole | Form::Discovery(_) => object.clone(),
        Form::Partial => partial(object),
        Form::Table(include) => {
            let version = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            let columns =
                call.resource.version(&call.target.version).unwrap_or(call.resource.preferred());
            table(&columns.columns, std::iter::once(object), include, version)
        }
    }
}

pub(super) fn list_or_watch(call: &Call) -> Result<Response<Body>, ApiError> {
    let fields = FieldSelector::parse(call.query.text("fieldSelector"))?;
    if call.query.flag("watch") {
        return watch(call, fields);
    }
    let options = list_options(call, fields)?;
    let old = options.page.is_some() || !matches!(options.at, At::Newest);
    if old && call.context.config.faults.gone() {
        return Err(ApiError::expired(
            "the lab's API was told to answer that this version is too old",
        ));
    }
    let list = call.context.store.list(&call.resource.key, &call.target.namespace, &options)?;
    Ok(list_answer(call, &list))
}

/// Reads the parameters of a list, with the meaning that Kubernetes documents for each
/// combination of `resourceVersion` and `resourceVersionMatch`.
fn list_options(call: &Call, fields: FieldSelector) -> Result<ListOptions, ApiError> {
    let query = &call.query;
    let version: Option<u64> = query.number("resourceVersion")?;
    let limit = query.number("limit")?.unwrap_or(0);
    let page = query.given("continue").then(|| query.text("continue").to_string());
    if page.is_some() && version.is_some_and(|v| v > 0) {
        return Err(ApiError::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let at = match (version, query.text("resourceVersionMatch")) {
        (None, "") => At::Newest,
        (None, _) => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        (Some(0), "Exact") => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        (Some(0), "" | "NotOlderThan") => At::NotOlderThan(0),
        (Some(version), "Exact") => At::Exactly(version),
        (Some(version), "NotOlderThan") => At::NotOlderThan(version),
        // Without a match, pages are of exactly this version, and whole lists at least of this one.
        (Some(version), "") if limit > 0 => At::Exactly(version),
        (Some(version), "") => At::NotOlderThan(version),
        (_, other) => {
            return Err(ApiError::bad_request(format!(
                "resourceVersionMatch {other:?} is not supported"
            )));
        }
    };
    // A list of any version comes from a cache, which knows no pages.
    let limit = if at == At::NotOlderThan(0) { 0 } else { limit };
    Ok(ListOptions {
        labels: LabelSelector::parse(query.text("labelSelector"))?,
        fields,
        limit,
        page,
        at,
    })
}

fn list_answer(call: &Call, list: &List) -> Response<Body> {
    let mut metadata = json!({ "resourceVersion": list.version.to_string() });
    if let Some(next) = &list.next {
        metadata["continue"] = json!(next);
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let objects = list.items.iter().map(AsRef::as_ref);
    match call.form {
        Form::Table(include) => {
            let version =
                call.resource.version(&call.target.version).unwrap_or(call.resource.preferred());
            body::json(200, &table(&version.columns, objects, include, metadata))
        }
        Form::Partial => {
            let items: Vec<Value> = objects.map(partial).collect();
            body::json(
                200,
                &json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items }),
            )
        }
        Form::Whole | Form::Discovery(_) => body::json(200, &WholeList { call, list, metadata }),
    }
}

/// A list that is written without copying its objects.
struct WholeList<'a> {
    call: &'a Call,
    list: &'a List,
    metadata: Value,
}

impl Serialize for WholeList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("kind", &self.call.resource.list_kind)?;
        map.serialize_entry("apiVersion", &self.call.api_version())?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("items", &Items(self))?;
        map.end()
    }
}

struct Items<'a>(&'a WholeList<'a>);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let WholeList { call, list, .. } = self.0;
        let version = call.resource.custom.then(|| call.api_version());
        let mut all = serializer.serialize_seq(Some(list.items.len()))?;
        for object in &list.items {
            all.serialize_element(&Item { object, version: version.as_deref() })?;
        }
        all.end()
    }
}

/// An element of a list: of custom types with its version and kind, of built-in types without, as
/// a real API server writes them.
struct Item<'a> {
    object: &'a Value,
    version: Option<&'a str>,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.object.as_object().into_iter().flatten() {
            match (key.as_str(), self.version) {
                ("apiVersion", Some(version)) => map.serialize_entry(key, version)?,
                ("apiVersion" | "kind", None) => {}
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

fn watch(call: &Call, fields: FieldSelector) -> Result<Response<Body>, ApiError> {
    let query = &call.query;
    let initial = query.given("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
    match (initial, query.text("resourceVersionMatch")) {
        (None, "") | (Some(_), "NotOlderThan") => {}
        (Some(_), _) => {
            let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(ApiError::new(422, "Invalid", message));
        }
        (None, _) => {
            let message =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(ApiError::new(422, "Invalid", message));
        }
    }
    let bookmarks = query.flag("allowWatchBookmarks");
    // `validateWatchOptions` in apimachinery's internalversion/validation: 422, whatever the value.
    if initial.is_some() && !call.context.config.version.streams_lists() {
        return Err(ApiError::forbidden_option(
            "sendInitialEvents",
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ));
    }
    if initial == Some(true) && !bookmarks {
        let message = "sendInitialEvents requires setting allowWatchBookmarks to true";
        return Err(ApiError::new(422, "Invalid", message));
    }
    let options = WatchOptions {
        labels: LabelSelector::parse(query.text("labelSelector"))?,
        fields,
        after: query.number("resourceVersion")?,
        initial_events: initial,
    };
    let timeout = query.number("timeoutSeconds")?;
    let watch = call.context.store.watch(&call.resource.key, &call.target.namespace, options)?;
    Ok(stream::answer(call, watch, bookmarks, timeout))
}
