//! Bodies of answers and requests.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::Value;

use super::protobuf;
use crate::api::error::ApiError;

/// The largest request: as much as etcd takes.
const LIMIT: usize = 3 * 1024 * 1024;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer of bytes.
pub(super) fn bytes(code: u16, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer of JSON.
pub(super) fn json(code: u16, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => bytes(code, "application/json", text),
        Err(error) => failure(&ApiError::new(
            500,
            "InternalError",
            format!("cannot write the answer: {error}"),
        )),
    }
}

/// The answer to a request that failed.
pub(super) fn failure(error: &ApiError) -> Response<Body> {
    let mut response = bytes(error.code, "application/json", error.status().to_string());
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// 429 as an overloaded API server says it: in plain text, with no `Status`, the time to wait in the
/// header alone (`tooManyRequests` in `apiserver/pkg/server/filters/maxinflight.go`).
pub(super) fn busy(seconds: u32) -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let mut response = bytes(429, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

/// Adds a warning that kubectl shows (RFC 7234, section 5.5; code 299).
pub(super) fn warn(response: &mut Response<Body>, text: &'static str) {
    if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
        response.headers_mut().append(WARNING, value);
    }
}

/// Reads a whole request body.
pub(super) async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the request is larger than {LIMIT} bytes: send less at once");
            Err(ApiError::new(413, "RequestEntityTooLarge", message))
        }
        Err(error) => Err(ApiError::bad_request(format!("cannot read the request: {error}"))),
    }
}

/// Content type without parameters.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// Parses a body of JSON, or of YAML or protocol buffers where it says so.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let kind = content_type(headers);
    if kind == "application/vnd.kubernetes.protobuf" {
        return protobuf::parse(body);
    }
    if kind.contains("cbor") {
        let message = "the lab's API takes application/json and application/yaml: set the client's content type";
        return Err(ApiError::new(415, "UnsupportedMediaType", message));
    }
    if kind.contains("yaml") {
        // Most of what is called YAML is JSON, which is read faster.
        return serde_json::from_slice(body)
            .or_else(|_| serde_saphyr::from_slice(body))
            .map_err(|error| ApiError::bad_request(format!("the body is not YAML: {error}")));
    }
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the body is not JSON: {e}")))
}
