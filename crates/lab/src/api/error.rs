//! Errors as the Kubernetes API states them: `Status` objects with a code, a reason and details
//! (Kubernetes API conventions, "Response Status Kind").

use serde_json::{Value, json};

/// One field of a refused object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field, for example `spec.podCIDRs`.
    pub field: String,
    /// Machine-readable reason, for example `FieldValueInvalid`.
    pub reason: &'static str,
    /// What is wrong with the field.
    pub message: String,
}

impl Cause {
    /// A field whose value cannot be accepted.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Cause {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}", message.into()),
        }
    }

    /// A field that has to be there.
    pub fn required(field: &str, message: impl Into<String>) -> Self {
        Cause {
            field: field.into(),
            reason: "FieldValueRequired",
            message: format!("Required value: {}", message.into()),
        }
    }

    /// A change that is not allowed.
    pub fn forbidden(field: &str, message: impl Into<String>) -> Self {
        Cause {
            field: field.into(),
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {}", message.into()),
        }
    }
}

/// The object that an error is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its plural, or for refused objects its kind.
    pub kind: String,
}

/// A refused or failed request; becomes a `Status` object on the wire.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// `Status.reason`, for example `NotFound`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// The object that the request named, if it named one.
    pub subject: Option<Box<Subject>>,
    /// Fields that were refused.
    pub causes: Vec<Cause>,
    /// Seconds after which the client may try again.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// An error of any code and reason, without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            code,
            reason,
            message: message.into(),
            subject: None,
            causes: Vec::new(),
            retry_after: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let subject = Subject { name: name.into(), group: group.into(), kind: kind.into() };
        self.subject = Some(Box::new(subject));
        self
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403: understood and refused.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// 404 for a path or resource type that is not served.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 404 for an object; `resource` is the plural, with `.group` where there is one.
    pub fn not_found(resource: &str, name: &str) -> Self {
        let (plural, group) = split(resource);
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"))
            .about(group, plural, name)
    }

    /// 405: the resource does not do that.
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 409 on create: the name is taken.
    pub fn already_exists(resource: &str, name: &str) -> Self {
        let (plural, group) = split(resource);
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
            .about(group, plural, name)
    }

    /// 409 on update: somebody else was faster.
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let (plural, group) = split(resource);
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"),
        )
        .about(group, plural, name)
    }

    /// 410: the asked-for version has left the history window.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 422: the object is understood and refused field by field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let list: Vec<String> =
            causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let all = if list.len() == 1 { list[0].clone() } else { format!("[{}]", list.join(", ")) };
        let title = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let mut error = Self::new(422, "Invalid", format!("{title} \"{name}\" is invalid: {all}"))
            .about(group, kind, name);
        error.causes = causes;
        error
    }

    /// 422: an option of a list or watch that may not be given.
    pub fn forbidden_option(option: &str, why: &str) -> Self {
        Self::invalid("meta.k8s.io", "ListOptions", "", vec![Cause::forbidden(option, why)])
    }

    /// 504: a version was asked for that does not exist yet.
    pub fn too_new(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut error = Self::new(504, "Timeout", message.clone());
        error.causes = vec![Cause {
            field: String::new(),
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
        }];
        error.retry_after = Some(1);
        error
    }

    /// The `Status` object of this error.
    pub fn status(&self) -> Value {
        let mut details = json!({});
        if let Some(Subject { name, group, kind }) = self.subject.as_deref() {
            for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
                if !value.is_empty() {
                    details[key] = json!(value);
                }
            }
        }
        if !self.causes.is_empty() {
            details["causes"] = self.causes.iter().map(cause_json).collect();
        }
        if let Some(seconds) = self.retry_after {
            details["retryAfterSeconds"] = json!(seconds);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if details.as_object().is_some_and(|d| !d.is_empty()) {
            status["details"] = details;
        }
        status
    }
}

fn cause_json(cause: &Cause) -> Value {
    let mut value = json!({ "reason": cause.reason, "message": cause.message });
    if !cause.field.is_empty() {
        value["field"] = json!(cause.field);
    }
    value
}

fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_object_names_each_field() {
        let error = ApiError::invalid(
            "",
            "Node",
            "cp",
            vec![Cause::forbidden("spec.podCIDRs", "set once")],
        );
        let status = error.status();
        assert_eq!(status["code"], 422);
        assert_eq!(status["details"]["kind"], "Node");
        assert_eq!(status["details"]["causes"][0]["field"], "spec.podCIDRs");
        assert_eq!(error.to_string(), "Node \"cp\" is invalid: spec.podCIDRs: Forbidden: set once");
    }

    #[test]
    fn a_missing_object_is_described_by_plural_and_group() {
        let status = ApiError::not_found("networkpolicies.networking.k8s.io", "web").status();
        assert_eq!(status["details"]["group"], "networking.k8s.io");
        assert_eq!(status["details"]["kind"], "networkpolicies");
        assert_eq!(status["reason"], "NotFound");
    }
}
