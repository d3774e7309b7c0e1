//! Subresources other than status, and access reviews.

use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::handle::Call;
use super::read::object_answer;
use crate::api::controllers::bind;
use crate::api::error::ApiError;
use crate::api::meta::text;
use crate::api::store::{Key, Part};

pub(super) async fn answer(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let sub = call.target.sub.as_str();
    if !call.resource.subresources.contains(&sub) {
        return Err(ApiError::no_such_path());
    }
    match (sub, &call.method) {
        ("binding", &Method::POST) => binding(call, incoming).await,
        ("finalize", &Method::PUT) => finalize(call, incoming).await,
        ("log" | "exec" | "attach" | "portforward", _) => Err(elsewhere(call)),
        _ => Err(ApiError::not_allowed(
            "the server does not allow this method on the requested resource",
        )),
    }
}

/// Binds a pod to a node, once.
async fn binding(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let given = body::parse(&call.headers, &body::read(incoming).await?)?;
    let node = text(&given, "/target/name");
    if node.is_empty() {
        return Err(ApiError::bad_request("a binding needs target.name, the name of a node"));
    }
    if !call.dry_run() {
        bind(&call.context.store, &call.target.namespace, &call.target.name, node)?;
    }
    Ok(body::json(
        201,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    ))
}

/// Writes `spec.finalizers` of a namespace: what a namespace controller does last.
async fn finalize(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    let given = body::parse(&call.headers, &body::read(incoming).await?)?;
    let finalizers = given.pointer("/spec/finalizers").cloned().unwrap_or(json!([]));
    let key = Key::new("", &call.target.name);
    let object = call.context.store.modify("namespaces", &key, Part::Whole, |namespace| {
        namespace["spec"]["finalizers"] = finalizers;
    })?;
    Ok(object_answer(call, 200, &object))
}

/// The API has no containers behind it: the command line of the lab reaches them.
fn elsewhere(call: &Call) -> ApiError {
    let (namespace, name) = (call.target.namespace.as_str(), call.target.name.as_str());
    if let Err(missing) = call.context.store.get("pods", namespace, name) {
        return missing;
    }
    let pod = if namespace == "default" { name.to_string() } else { format!("{namespace}/{name}") };
    let command = match call.query.all("command") {
        [] => "sh".to_string(),
        words => words.join(" "),
    };
    let what = call.target.sub.as_str();
    ApiError::bad_request(format!(
        "the lab's API has no {what}: run: causeway lab exec {pod} -- {command}"
    ))
}

/// Answers an access review: who has the token may do everything.
pub(super) async fn review(call: &Call, incoming: Incoming) -> Result<Response<Body>, ApiError> {
    if call.method != Method::POST || !call.target.name.is_empty() {
        return Err(ApiError::not_allowed("reviews are only created"));
    }
    let mut review: Value = body::parse(&call.headers, &body::read(incoming).await?)?;
    if !review.is_object() {
        return Err(ApiError::bad_request("a review is an object"));
    }
    review["kind"] = json!(call.resource.kind);
    review["apiVersion"] = json!(call.api_version());
    let all = json!(["*"]);
    review["status"] = match call.resource.kind.as_str() {
        "SelfSubjectReview" => {
            json!({ "userInfo": { "username": "causeway-lab", "groups": ["system:masters", "system:authenticated"] } })
        }
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{ "verbs": all, "apiGroups": all, "resources": all }],
            "nonResourceRules": [{ "verbs": all, "nonResourceURLs": all }], "incomplete": false,
        }),
        _ => {
            json!({ "allowed": true, "reason": "the lab has no roles: its token may do everything" })
        }
    };
    Ok(body::json(201, &review))
}
