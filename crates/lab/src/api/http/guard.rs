//! Who may ask: the token, the host name under which the server is called, and the origin.

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, Request};

use super::Config;
use crate::api::error::ApiError;
use crate::api::tokens::Tokens;

/// Paths that need no token.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Refuses what is not meant for this server.
///
/// A web page that a browser shows can send requests to local addresses, also under a name of its
/// own that resolves to them; so the name has to be one of ours, and a page of another origin is
/// refused, whatever it knows.
pub(super) fn check<B>(config: &Config, request: &Request<B>) -> Result<(), ApiError> {
    let authority = authority(request);
    if !config.hosts.iter().any(|host| host.eq_ignore_ascii_case(host_of(&authority))) {
        return Err(ApiError::forbidden(format!(
            "the host {authority:?} is not a name of this API: call it by one of {}",
            config.hosts.join(", ")
        )));
    }
    if let Some(origin) = request.headers().get(ORIGIN)
        && !origin.as_bytes().eq_ignore_ascii_case(format!("https://{authority}").as_bytes())
    {
        return Err(ApiError::forbidden("requests from web pages of another origin are refused"));
    }
    let path = request.uri().path();
    let open = OPEN
        .iter()
        .any(|o| path.strip_prefix(o).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if open || authorized(request.headers(), &config.tokens) {
        return Ok(());
    }
    let message = "the bearer token is missing or wrong: use the lab's kubeconfig";
    Err(ApiError::new(401, "Unauthorized", message))
}

/// The authority of HTTP/2, or the Host header of HTTP/1.1.
fn authority<B>(request: &Request<B>) -> String {
    let header = || request.headers().get(HOST).and_then(|v| v.to_str().ok());
    request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(header)
        .unwrap_or("")
        .to_string()
}

/// The host without its port and without the brackets of an IPv6 address.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn authorized(headers: &HeaderMap, tokens: &Tokens) -> bool {
    let given = headers.get(AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
    given.strip_prefix(b"Bearer ").is_some_and(|given| tokens.admits(given))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn code(host: &str, headers: &[(&str, &str)], path: &str) -> u16 {
        let mut config =
            Config::new("a", vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]).unwrap();
        config.tokens = Arc::new(Tokens::new("secret".into()));
        let mut request = Request::builder().uri(path).header(HOST, host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&config, &request.body(()).unwrap()).map_or_else(|e| e.code, |()| 200)
    }

    #[test]
    fn only_the_token_opens() {
        let token = ("authorization", "Bearer secret");
        for host in ["localhost", "LOCALHOST:6443", "127.0.0.1:6443", "[::1]:6443", "[::1]"] {
            assert_eq!(code(host, &[token], "/api"), 200, "{host}");
            assert_eq!(code(host, &[], "/api"), 401, "{host}");
        }
        for wrong in ["Bearer secre", "Bearer secretx", "Bearer ", "secret", "Basic secret"] {
            assert_eq!(code("localhost", &[("authorization", wrong)], "/api"), 401, "{wrong}");
        }
        assert_eq!(code("localhost", &[], "/readyz"), 200);
        assert_eq!(code("localhost", &[], "/readyz/ping"), 200);
        assert_eq!(code("localhost", &[], "/versions"), 401);
    }

    #[test]
    fn foreign_names_and_pages_are_refused() {
        let token = ("authorization", "Bearer secret");
        assert_eq!(code("evil.example:6443", &[token], "/api"), 403);
        assert_eq!(code("", &[token], "/version"), 403);
        assert_eq!(code("localhost:1", &[token, ("origin", "https://evil.example")], "/api"), 403);
        assert_eq!(code("localhost:1", &[token, ("origin", "null")], "/api"), 403);
        assert_eq!(code("localhost:1", &[token, ("origin", "https://localhost:1")], "/api"), 200);
    }
}
