//! Patches: the four ways to change an object by saying only the difference.

use serde_json::Value;

use super::error::ApiError;
use super::registry::Resource;

mod apply;
mod json;
mod keys;
mod merge;
mod strategic;

/// A patch, by the content type that it came with.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/json-patch+json` (RFC 6902).
    Json(Value),
    /// `application/merge-patch+json` (RFC 7386).
    Merge(Value),
    /// `application/strategic-merge-patch+json`: as a merge, but lists of the built-in types are
    /// merged by their keys.
    Strategic(Value),
    /// `application/apply-patch+yaml`: server-side apply. Nobody owns fields here, so there are no
    /// conflicts; a field that the same manager applied before and leaves out now is removed.
    Apply {
        /// What is applied.
        object: Value,
        /// Who applies (`fieldManager`).
        manager: String,
        /// What the same manager applied last; the store fills it in.
        last: Option<Value>,
    },
}

impl Patch {
    /// An apply of an object by a manager.
    pub fn apply_as(manager: &str, object: Value) -> Self {
        Patch::Apply { object, manager: manager.into(), last: None }
    }

    /// The patched object. Errors: 400 (not a patch), 415 (strategic merge of a custom type), 422 (a
    /// JSON patch that does not fit).
    pub(crate) fn apply(&self, resource: &Resource, old: &Value) -> Result<Value, ApiError> {
        match self {
            Patch::Json(operations) => json::apply(old, operations),
            Patch::Merge(patch) => {
                let mut new = old.clone();
                merge::apply(&mut new, patch);
                Ok(new)
            }
            Patch::Strategic(_) if resource.custom => Err(ApiError::new(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )),
            Patch::Strategic(patch) => strategic::apply(resource, old, patch),
            Patch::Apply { object, last, .. } => {
                Ok(apply::apply(resource, old, object, last.as_ref()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
