//! What form of answer a client wants (`Accept`).

use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::table::Include;
use crate::api::version::KubernetesVersion;

use super::route::Query;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Objects as they are.
    Whole,
    /// Metadata only (`as=PartialObjectMetadata` or `…List`).
    Partial,
    /// A table.
    Table(Include),
    /// Aggregated discovery.
    Discovery(Discovery),
}

/// The version of aggregated discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discovery {
    V2Beta1,
    V2,
}

impl Discovery {
    pub(super) fn name(self) -> &'static str {
        match self {
            Discovery::V2Beta1 => "v2beta1",
            Discovery::V2 => "v2",
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Discovery::V2Beta1 => {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            }
            Discovery::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        }
    }
}

/// One accepted media type with its parameters.
fn parameter<'a>(media: &'a str, name: &str) -> &'a str {
    let mut parts = media.split(';').skip(1).filter_map(|p| p.trim().split_once('='));
    parts.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
}

/// The first accepted form that the lab can write. Errors: 406.
pub(super) fn form(
    headers: &HeaderMap,
    query: &Query,
    kubernetes: KubernetesVersion,
) -> Result<Form, ApiError> {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    let include = match query.text("includeObject") {
        "None" => Include::None,
        "Object" => Include::Object,
        _ => Include::Metadata,
    };
    for media in accept.split(',').map(str::trim) {
        let kind = media.split(';').next().unwrap_or("").trim();
        if !["application/json", "application/*", "*/*", ""].contains(&kind) {
            continue;
        }
        let version = parameter(media, "v");
        match parameter(media, "as") {
            "" => return Ok(Form::Whole),
            "Table" if version == "v1" => return Ok(Form::Table(include)),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if version == "v1" => {
                return Ok(Form::Partial);
            }
            "APIGroupDiscoveryList" if kubernetes.discovers_by(version) => {
                let v2 = version == "v2";
                return Ok(Form::Discovery(if v2 { Discovery::V2 } else { Discovery::V2Beta1 }));
            }
            _ => {}
        }
    }
    let message =
        format!("only application/json can be sent, and the client accepts only {accept:?}");
    Err(ApiError::new(406, "NotAcceptable", message))
}

/// Whether a client wants protocol buffers (for the OpenAPI document).
pub(super) fn wants_protobuf(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|accept| accept.contains("protobuf"))
}

/// An object in another version of its type: only `apiVersion` differs.
pub(super) fn in_version(object: &Value, api_version: &str) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), api_version.into());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted_by(kubernetes: &str, accept: &str, query: &str) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let kubernetes = kubernetes.parse().unwrap();
        form(&headers, &Query::parse(query), kubernetes).map_err(|e| e.code)
    }

    fn accepted(accept: &str, query: &str) -> Result<Form, u16> {
        accepted_by("1.37", accept, query)
    }

    #[test]
    fn the_first_form_that_can_be_written_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(table, ""), Ok(Form::Table(Include::Metadata)));
        assert_eq!(accepted(table, "includeObject=Object"), Ok(Form::Table(Include::Object)));
        assert_eq!(
            accepted("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", ""),
            Ok(Form::Whole)
        );
        assert_eq!(
            accepted("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", ""),
            Ok(Form::Partial)
        );
        assert_eq!(
            accepted("application/vnd.kubernetes.protobuf,application/json", ""),
            Ok(Form::Whole)
        );
        assert_eq!(accepted("application/vnd.kubernetes.protobuf", ""), Err(406));
        assert_eq!(accepted("*/*", ""), Ok(Form::Whole));
        let discovery =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(accepted(discovery, ""), Ok(Form::Discovery(Discovery::V2)));
    }

    #[test]
    fn discovery_is_aggregated_in_the_forms_of_the_version() {
        // As client-go asks since 1.30.
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
                    application/json";
        let (new, old) = (Form::Discovery(Discovery::V2), Form::Discovery(Discovery::V2Beta1));
        let beta = both.split_once(',').unwrap().1;
        let new_alone = both.replace(beta.rsplit_once(',').unwrap().0, "application/json");
        for (kubernetes, for_both, for_beta, for_new) in [
            ("1.28", old, old, Form::Whole),
            ("1.30", new, old, new),
            ("1.32", new, old, new),
            ("1.33", new, Form::Whole, new),
            ("1.37", new, Form::Whole, new),
        ] {
            assert_eq!(accepted_by(kubernetes, both, ""), Ok(for_both), "{kubernetes}");
            assert_eq!(accepted_by(kubernetes, beta, ""), Ok(for_beta), "{kubernetes}");
            assert_eq!(accepted_by(kubernetes, &new_alone, ""), Ok(for_new), "{kubernetes}");
        }
    }
}
