//! From a request to an answer.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::negotiate::{self, Form};
use super::route::{Query, Route, Target, route};
use super::{Context, guard, read, sub, write};
use crate::api::discovery;
use crate::api::error::ApiError;
use crate::api::faults::FaultSettings;
use crate::api::registry::Resource;

/// One request for objects, taken apart.
pub(super) struct Call {
    pub(super) context: Arc<Context>,
    pub(super) resource: Arc<Resource>,
    pub(super) target: Target,
    pub(super) method: Method,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) form: Form,
}

impl Call {
    /// `apiVersion` of the objects in the answer.
    pub(super) fn api_version(&self) -> String {
        self.resource.api_version(&self.target.version)
    }

    /// Whether objects have to be rewritten to the requested version.
    pub(super) fn converts(&self) -> bool {
        self.resource.preferred().name != self.target.version
    }

    pub(super) fn dry_run(&self) -> bool {
        self.query.given("dryRun")
    }
}

pub(super) async fn handle(context: Arc<Context>, request: Request<Incoming>) -> Response<Body> {
    match answer(context, request).await {
        Ok(response) => response,
        Err(error) => body::failure(&error),
    }
}

async fn answer(
    context: Arc<Context>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let route = route(request.uri().path());
    context.config.requests.note(&request);
    if route != Route::Faults {
        context.config.faults.delay().await;
    }
    guard::check(&context.config, &request)?;
    let throttled = context.config.faults.throttled();
    if let (Some(seconds), false) = (throttled, matches!(route, Route::Faults | Route::Health)) {
        return Ok(body::busy(seconds));
    }
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let (parts, incoming) = request.into_parts();
    match route {
        Route::Objects(target) => objects(context, target, query, parts, incoming).await,
        Route::Faults => faults(&context, &parts.method, &parts.headers, incoming).await,
        Route::Load => load(&context, &parts.method, &parts.headers, incoming).await,
        route if parts.method == Method::GET || parts.method == Method::HEAD => {
            document(&context, &route, &parts.headers)
        }
        _ => Err(ApiError::not_allowed(
            "the server does not allow this method on the requested resource",
        )),
    }
}

async fn objects(
    context: Arc<Context>,
    target: Target,
    query: Query,
    parts: http::request::Parts,
    incoming: Incoming,
) -> Result<Response<Body>, ApiError> {
    let registry = context.store.registry();
    let resource = registry.find(&target.group, &target.version, &target.plural).cloned();
    let resource = resource.ok_or_else(ApiError::no_such_path)?;
    let fits = resource.namespaced != target.namespace.is_empty();
    if !fits && (!target.namespace.is_empty() || !target.name.is_empty()) {
        return Err(ApiError::no_such_path());
    }
    let form = negotiate::form(&parts.headers, &query, context.config.version)?;
    let (method, headers) = (parts.method, parts.headers);
    let call = Call { context, resource, target, method, query, headers, form };
    if !call.target.sub.is_empty() && call.target.sub != "status" {
        return sub::answer(&call, incoming).await;
    }
    if call.target.sub == "status"
        && !call.resource.version(&call.target.version).is_some_and(|v| v.status)
    {
        return Err(ApiError::no_such_path());
    }
    match (&call.method, call.target.name.is_empty()) {
        _ if call.resource.review => sub::review(&call, incoming).await,
        (&Method::GET, true) => read::list_or_watch(&call),
        (&Method::GET, false) => read::get(&call),
        (&Method::POST, true) => write::create(&call, incoming).await,
        (&Method::PUT, false) => write::update(&call, incoming).await,
        (&Method::PATCH, false) => write::patch(&call, incoming).await,
        (&Method::DELETE, false) => write::delete(&call, incoming).await,
        (&Method::DELETE, true) => write::delete_collection(&call, incoming).await,
        _ => Err(ApiError::not_allowed(
            "the server does not allow this method on the requested resource",
        )),
    }
}

/// Everything that is the same for everybody: health, version, discovery, OpenAPI.
fn document(
    context: &Context,
    route: &Route,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let registry = context.store.registry();
    let kubernetes = context.config.version;
    let aggregated = || match negotiate::form(headers, &Query::default(), kubernetes) {
        Ok(Form::Discovery(version)) => Some(version),
        _ => None,
    };
    if let (Route::Core | Route::Groups, Some(by)) = (route, aggregated()) {
        let document = discovery::aggregated(&registry, *route == Route::Core, by.name());
        return Ok(body::bytes(200, by.media_type(), document.to_string()));
    }
    let found = match route {
        Route::Health => return Ok(body::bytes(200, "text/plain; charset=utf-8", "ok")),
        Route::OpenApi => return Ok(open_api(&kubernetes.release(), headers)),
        Route::Version => Some(version(&kubernetes.release())),
        Route::Core => Some(discovery::core_versions()),
        Route::Groups => Some(discovery::groups(&registry)),
        Route::Group(name) => discovery::group(&registry, name),
        Route::GroupVersion(group, version) => discovery::resources(&registry, group, version),
        _ => None,
    };
    found.map(|document| body::json(200, &document)).ok_or_else(ApiError::no_such_path)
}

/// `/version` (`k8s.io/apimachinery/pkg/version.Info`).
fn version(version: &str) -> Value {
    let mut numbers = version.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next().unwrap_or(""), "minor": numbers.next().unwrap_or(""),
        "gitVersion": format!("{version}+causeway-lab"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// kubectl reads the OpenAPI document before it applies or validates. An empty one says that no type
/// has a schema: it then merges by the definitions that are compiled into it, and validates nothing.
/// The empty protocol buffer message has no bytes.
fn open_api(version: &str, headers: &HeaderMap) -> Response<Body> {
    if negotiate::wants_protobuf(headers) {
        return body::bytes(200, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", "");
    }
    let info = json!({ "title": "causeway lab", "version": version });
    body::json(200, &json!({ "swagger": "2.0", "info": info, "paths": {}, "definitions": {} }))
}

async fn faults(
    context: &Context,
    method: &Method,
    headers: &HeaderMap,
    incoming: Incoming,
) -> Result<Response<Body>, ApiError> {
    let faults = &context.faults;
    if *method == Method::PUT {
        let value = body::parse(headers, &body::read(incoming).await?)?;
        let settings: FaultSettings = serde_json::from_value(value)
            .map_err(|e| ApiError::bad_request(format!("cannot read the faults: {e}")))?;
        faults.set(&settings);
    } else if *method != Method::GET {
        return Err(ApiError::not_allowed("faults are read by GET and set by PUT"));
    }
    Ok(body::json(200, &faults.get()))
}

/// Creates the items of a List, for clusters that are larger than anybody makes one object at a time.
async fn load(
    context: &Context,
    method: &Method,
    headers: &HeaderMap,
    incoming: Incoming,
) -> Result<Response<Body>, ApiError> {
    if *method != Method::POST {
        return Err(ApiError::not_allowed("objects are loaded by POST, as a List"));
    }
    let mut list = body::parse(headers, &body::read(incoming).await?)?;
    let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) else {
        return Err(ApiError::bad_request("a List has items: send {\"items\": [...]}"));
    };
    let created = context.store.load(items)?;
    Ok(body::json(201, &json!({ "created": created })))
}
