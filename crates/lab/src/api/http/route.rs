//! Paths and query parameters.

use std::collections::HashMap;

use crate::api::error::ApiError;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    Version,
    /// `/api`.
    Core,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    GroupVersion(String, String),
    /// Objects of a type.
    Objects(Target),
    OpenApi,
    Faults,
    /// Many objects at once.
    Load,
    Unknown,
}

/// Objects of a type: all, those of a namespace, one, or a subresource of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    /// Empty for all namespaces and for cluster-wide types.
    pub(super) namespace: String,
    /// Empty for a collection.
    pub(super) name: String,
    /// Empty for the object itself.
    pub(super) sub: String,
}

/// Reads a path.
pub(super) fn route(path: &str) -> Route {
    let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Route::Health,
        ["version"] => Route::Version,
        ["openapi", "v2"] => Route::OpenApi,
        ["causeway.lab", "faults"] => Route::Faults,
        ["causeway.lab", "objects"] => Route::Load,
        ["api"] => Route::Core,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).into()),
        ["api", version] => Route::GroupVersion(String::new(), (*version).into()),
        ["apis", group, version] => Route::GroupVersion((*group).into(), (*version).into()),
        ["api", version, rest @ ..] => target("", version, rest),
        ["apis", group, version, rest @ ..] => target(group, version, rest),
        _ => Route::Unknown,
    }
}

fn target(group: &str, version: &str, rest: &[&str]) -> Route {
    let (namespace, plural, name, sub) = match *rest {
        // A namespace itself, and its own subresources.
        ["namespaces"] => ("", "namespaces", "", ""),
        ["namespaces", name] => ("", "namespaces", name, ""),
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            ("", "namespaces", name, sub)
        }
        ["namespaces", namespace, plural] => (namespace, plural, "", ""),
        ["namespaces", namespace, plural, name] => (namespace, plural, name, ""),
        ["namespaces", namespace, plural, name, sub] => (namespace, plural, name, sub),
        [plural] => ("", plural, "", ""),
        [plural, name] => ("", plural, name, ""),
        [plural, name, sub] => ("", plural, name, sub),
        _ => return Route::Unknown,
    };
    Route::Objects(Target {
        group: group.into(),
        version: version.into(),
        plural: plural.into(),
        namespace: namespace.into(),
        name: name.into(),
        sub: sub.into(),
    })
}

/// Query parameters; of a repeated one all values are kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        for part in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let plain = |text: &str| decode(&text.replace('+', " "));
            all.entry(plain(key)).or_default().push(plain(value));
        }
        Query(all)
    }

    /// The first value, or the empty string.
    pub(super) fn text(&self, key: &str) -> &str {
        self.all(key).first().map_or("", String::as_str)
    }

    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// `true` and `1` are true.
    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1" | "True")
    }

    pub(super) fn given(&self, key: &str) -> bool {
        !self.text(key).is_empty()
    }

    /// A number; `None` where it is absent.
    pub(super) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        let text = self.text(key);
        match text.parse() {
            _ if text.is_empty() => Ok(None),
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                Err(ApiError::bad_request(format!("invalid {key} {text:?}: a number is needed")))
            }
        }
    }
}

/// Percent decoding (RFC 3986, section 2.1); what is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(path: &str) -> [String; 6] {
        match route(path) {
            Route::Objects(t) => [t.group, t.version, t.plural, t.namespace, t.name, t.sub],
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_objects() {
        assert_eq!(parts("/api/v1/pods"), ["", "v1", "pods", "", "", ""]);
        assert_eq!(parts("/api/v1/namespaces/a"), ["", "v1", "namespaces", "", "a", ""]);
        assert_eq!(
            parts("/api/v1/namespaces/a/finalize"),
            ["", "v1", "namespaces", "", "a", "finalize"]
        );
        assert_eq!(
            parts("/api/v1/namespaces/a/pods/b/status"),
            ["", "v1", "pods", "a", "b", "status"]
        );
        assert_eq!(parts("/api/v1/nodes/n/status"), ["", "v1", "nodes", "", "n", "status"]);
        assert_eq!(
            parts("/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/b"),
            ["networking.k8s.io", "v1", "networkpolicies", "a", "b", ""]
        );
        assert_eq!(route("/apis/g/v1"), Route::GroupVersion("g".into(), "v1".into()));
        assert_eq!(route("/a/b"), Route::Unknown);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(
            "labelSelector=a%3Db%2Cc+in+%28d%29&command=sh&command=-c&watch=1&limit=x",
        );
        assert_eq!(query.text("labelSelector"), "a=b,c in (d)");
        assert_eq!(query.all("command"), ["sh", "-c"]);
        assert!(
            query.flag("watch")
                && !query.given("continue")
                && query.number::<u64>("limit").is_err()
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = (route(&text), Query::parse(&text));
        }
    }
}
