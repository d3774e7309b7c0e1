//! Writing: create, update, patch and delete, with the rules that hold for every type.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Key, State};
use crate::api::error::{ApiError, Cause};
use crate::api::kinds;
use crate::api::meta::{self, items, metadata_mut, section_mut, text, timestamp};
use crate::api::patch::Patch;
use crate::api::registry::Resource;
use crate::api::validate;

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The object; where the type has a status subresource, not its status.
    Main,
    /// Only the status.
    Status,
    /// Everything: for the lab itself, for example when it registers a node with its status.
    Whole,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds that a pod gets; `None` for what the pod says.
    pub grace_period_seconds: Option<i64>,
    /// The object has to have this uid.
    pub uid: Option<String>,
    /// The object has to have this version.
    pub resource_version: Option<String>,
    /// Check only.
    pub dry_run: bool,
}

/// What a delete did.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object, in its last state or as it waits.
    pub object: Arc<Value>,
    /// Whether it is gone, or still held by finalizers or a grace period.
    pub gone: bool,
}

impl State {
    pub(super) fn create(
        &mut self,
        resource: &Resource,
        namespace: &str,
        object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        self.create_with(resource, namespace, object, None, dry_run)
    }

    /// Creates an object of the type that it says, with its status.
    pub(super) fn load(&mut self, object: Value) -> Result<(), ApiError> {
        let kind = self.registry.by_kind(text(&object, "/apiVersion"), text(&object, "/kind"));
        let resource = kind.filter(|r| !r.review).cloned().ok_or_else(|| {
            ApiError::bad_request("each item names its apiVersion and a kind that is served")
        })?;
        let status = object.get("status").cloned();
        self.create_with(&resource, "", object, status, false).map(drop)
    }

    /// With a status, where it is not to be that of a new object.
    fn create_with(
        &mut self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        status: Option<Value>,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        check_type(resource, &mut object)?;
        drop_nulls(&mut object);
        let key = self.name_new(resource, namespace, &mut object)?;
        self.check_namespace(resource, &key.namespace)?;
        if self.objects(&resource.key).contains_key(&key) {
            return Err(ApiError::already_exists(&resource.key, &key.name));
        }
        let mut causes = validate::causes(resource, &object);
        causes.extend(kinds::on_create(self, resource, &mut object));
        refuse(resource, &key, causes)?;
        if let Some(status) = status {
            object["status"] = status;
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        let object = self.commit(resource, &key, object, false);
        kinds::committed(self, resource, &object, false);
        Ok(object)
    }

    /// Fills the metadata of a new object and says where it goes.
    fn name_new(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<Key, ApiError> {
        if !text(object, "/metadata/resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let namespace = place(resource, namespace, object)?;
        let has_spec = object.get("spec").is_some();
        let generate = text(object, "/metadata/generateName").to_string();
        let mut name = meta::name(object).to_string();
        while name.is_empty() && !generate.is_empty() {
            let candidate =
                format!("{}{}", &generate[..generate.len().min(58)], meta::random_suffix());
            let free = !self.objects(&resource.key).contains_key(&Key::new(&namespace, &candidate));
            name = if free { candidate } else { name };
        }
        let Some(metadata) = metadata_mut(object) else {
            return Err(ApiError::bad_request("metadata has to be an object"));
        };
        for key in [
            "selfLink",
            "managedFields",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            metadata.remove(key);
        }
        metadata.insert("name".into(), json!(name));
        metadata.insert("uid".into(), json!(meta::random_uid()));
        metadata.insert("creationTimestamp".into(), json!(timestamp()));
        if has_spec {
            metadata.insert("generation".into(), json!(1));
        }
        match resource.namespaced {
            true => metadata.insert("namespace".into(), json!(namespace)),
            false => metadata.remove("namespace"),
        };
        Ok(Key { namespace, name })
    }

    fn check_namespace(&self, resource: &Resource, namespace: &str) -> Result<(), ApiError> {
        if !resource.namespaced {
            return Ok(());
        }
        let Some(found) = self.objects("namespaces").get(&Key::new("", namespace)) else {
            return Err(ApiError::not_found("namespaces", namespace));
        };
        if text(found, "/metadata/deletionTimestamp").is_empty() {
            return Ok(());
        }
        let why =
            format!("namespace {namespace} is being terminated: nothing new can be created in it");
        let mut error = ApiError::forbidden(why.clone());
        error.causes = vec![Cause {
            field: "metadata.namespace".into(),
            reason: "NamespaceTerminating",
            message: why,
        }];
        Err(error)
    }

    pub(super) fn update(
        &mut self,
        resource: &Resource,
        key: &Key,
        part: Part,
        dry_run: bool,
        change: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Arc<Value>, ApiError> {
        let missing = || ApiError::not_found(&resource.key, &key.name);
        let old = self.objects(&resource.key).get(key).cloned().ok_or_else(missing)?;
        let mut new = change(&old)?;
        check_type(resource, &mut new)?;
        drop_nulls(&mut new);
        check_identity(resource, key, &old, &new)?;
        keep_parts(resource, part, &old, &mut new);
        keep_metadata(&old, &mut new)?;
        let mut causes = validate::causes(resource, &new);
        causes.extend(validate::finalizer_causes(&old, &new));
        causes.extend(kinds::on_update(self, resource, &old, &mut new, part));
        refuse(resource, key, causes)?;
        if new == *old {
            return Ok(old);
        }
        if content(&new) != content(&old) && old["metadata"].get("generation").is_some() {
            new["metadata"]["generation"] =
                json!(old["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        if dry_run {
            return Ok(Arc::new(new));
        }
        let released = !text(&new, "/metadata/deletionTimestamp").is_empty()
            && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
            && !held(&new);
        let object = self.commit(resource, key, new, released);
        kinds::committed(self, resource, &object, released);
        Ok(object)
    }

    pub(super) fn patch(
        &mut self,
        resource: &Resource,
        key: &Key,
        part: Part,
        patch: &Patch,
        dry_run: bool,
    ) -> Result<(Arc<Value>, bool), ApiError> {
        let Patch::Apply { object, manager, .. } = patch else {
            return Ok((
                self.update(resource, key, part, dry_run, |old| patch.apply(resource, old))?,
                false,
            ));
        };
        let present =
            self.objects(&resource.key).get(key).map(|old| text(old, "/metadata/uid").to_string());
        let owner = (manager.clone(), part);
        let (result, uid) = match present {
            None if part != Part::Status => {
                let new = self.create_applied(resource, key, object.clone(), dry_run)?;
                let uid = text(&new, "/metadata/uid").to_string();
                ((new, true), uid)
            }
            uid => {
                let uid = uid.unwrap_or_default();
                let last = self.applied.get(&uid).and_then(|by| by.get(&owner)).cloned();
                let patch = Patch::Apply { object: object.clone(), manager: manager.clone(), last };
                (
                    (
                        self.update(resource, key, part, dry_run, |old| {
                            patch.apply(resource, old)
                        })?,
                        false,
                    ),
                    uid,
                )
            }
        };
        if !dry_run {
            self.applied.entry(uid).or_default().insert(owner, object.clone());
        }
        Ok(result)
    }

    fn create_applied(
        &mut self,
        resource: &Resource,
        key: &Key,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, ApiError> {
        check_identity(resource, key, &Value::Null, &object)?;
        let metadata = metadata_mut(&mut object);
        let metadata =
            metadata.ok_or_else(|| ApiError::bad_request("metadata has to be an object"))?;
        metadata.insert("name".into(), json!(key.name));
        self.create(resource, &key.namespace, object, dry_run)
    }

    pub(super) fn delete(
        &mut self,
        resource: &Resource,
        key: &Key,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let missing = || ApiError::not_found(&resource.key, &key.name);
        let old = self.objects(&resource.key).get(key).cloned().ok_or_else(missing)?;
        check_preconditions(resource, key, &old, options)?;
        kinds::may_delete(resource, key)?;
        let grace = kinds::grace(resource, &old, options.grace_period_seconds);
        let gone = grace == 0 && !held(&old);
        if options.dry_run {
            return Ok(Deleted { object: old, gone });
        }
        if gone {
            let object = self.commit(resource, key, Value::clone(&old), true);
            kinds::committed(self, resource, &object, true);
            return Ok(Deleted { object, gone });
        }
        let known = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if known.is_some_and(|known| known <= grace) {
            return Ok(Deleted { object: old, gone });
        }
        let mut object = Value::clone(&old);
        let at = meta::now().saturating_add(u64::try_from(grace).unwrap_or(0));
        object["metadata"]["deletionTimestamp"] = json!(meta::rfc3339(at));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if let Some(generation) = old["metadata"]["generation"].as_u64().filter(|_| known.is_none())
        {
            object["metadata"]["generation"] = json!(generation + 1);
        }
        kinds::deleting(resource, &mut object);
        let object = self.commit(resource, key, object, false);
        Ok(Deleted { object, gone })
    }
}

/// Whether something has to be done before the object may go.
fn held(object: &Value) -> bool {
    !items(object, "/metadata/finalizers").is_empty()
        || object["kind"] == "Namespace" && !items(object, "/spec/finalizers").is_empty()
}

/// What counts for `metadata.generation`: everything but metadata and status.
fn content(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(key, _)| *key != "metadata" && *key != "status").collect()
}

/// `apiVersion` and `kind` have to be those of the type, or absent; they are stored in the preferred
/// version.
fn check_type(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let (api_version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let served = resource.versions.iter().any(|v| resource.api_version(&v.name) == api_version);
    if !api_version.is_empty() && !served || !kind.is_empty() && kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "the API version and kind in the data ({api_version} {kind}) do not match the expected ones ({} {})",
            resource.api_version(&resource.preferred().name),
            resource.kind
        )));
    }
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::bad_request("the body has to be a JSON or YAML object"));
    };
    map.insert("apiVersion".into(), json!(resource.api_version(&resource.preferred().name)));
    map.insert("kind".into(), json!(resource.kind));
    Ok(())
}

/// The namespace of a new object, which has to agree with the one in the path.
fn place(resource: &Resource, namespace: &str, object: &Value) -> Result<String, ApiError> {
    let own = meta::namespace(object);
    if !resource.namespaced {
        return Ok(String::new());
    }
    match (namespace, own) {
        ("", "") => Err(ApiError::bad_request("a namespace is needed: write metadata.namespace")),
        ("", given) | (given, "") => Ok(given.into()),
        (path, own) if path != own => Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({own}, {path})"
        ))),
        (path, _) => Ok(path.into()),
    }
}

fn check_identity(
    resource: &Resource,
    key: &Key,
    old: &Value,
    new: &Value,
) -> Result<(), ApiError> {
    for (what, want) in [("name", &key.name), ("namespace", &key.namespace)] {
        let given = new["metadata"][what].as_str().unwrap_or("");
        if !given.is_empty() && given != want && (what == "name" || resource.namespaced) {
            return Err(ApiError::bad_request(format!(
                "the {what} of the object ({given}) does not match the {what} on the URL ({want})"
            )));
        }
    }
    let uid = text(new, "/metadata/uid");
    if !uid.is_empty() && !old.is_null() && uid != text(old, "/metadata/uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, "/metadata/uid")
        );
        return Err(ApiError::conflict(&resource.key, &key.name, &why));
    }
    let version = text(new, "/metadata/resourceVersion");
    if !version.is_empty() && !old.is_null() && version != text(old, "/metadata/resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(ApiError::conflict(&resource.key, &key.name, why));
    }
    Ok(())
}

fn check_preconditions(
    resource: &Resource,
    key: &Key,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let wanted = [("uid", &options.uid), ("resourceVersion", &options.resource_version)];
    for (field, want) in
        wanted.into_iter().filter_map(|(field, want)| Some((field, want.as_deref()?)))
    {
        let have = old["metadata"][field].as_str().unwrap_or("");
        if want != have {
            let why = format!(
                "the {field} in the precondition ({want}) does not match the {field} in record ({have})"
            );
            return Err(ApiError::conflict(&resource.key, &key.name, &why));
        }
    }
    Ok(())
}

/// Puts back what the write may not change.
fn keep_parts(resource: &Resource, part: Part, old: &Value, new: &mut Value) {
    match part {
        Part::Whole => {}
        Part::Main if !resource.has_status() => {}
        Part::Main => match (old.get("status"), new.as_object_mut()) {
            (Some(status), Some(map)) => drop(map.insert("status".into(), status.clone())),
            (None, Some(map)) => drop(map.remove("status")),
            _ => {}
        },
        Part::Status => {
            let status = new.get("status").cloned();
            *new = old.clone();
            match (status, new.as_object_mut()) {
                (Some(status), Some(map)) => drop(map.insert("status".into(), status)),
                (None, Some(map)) => drop(map.remove("status")),
                _ => {}
            }
        }
    }
}

/// Metadata that belongs to the server stays as it is.
fn keep_metadata(old: &Value, new: &mut Value) -> Result<(), ApiError> {
    const KEPT: [&str; 9] = [
        "name",
        "namespace",
        "generateName",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    let metadata = section_mut(new, "metadata")
        .ok_or_else(|| ApiError::bad_request("metadata has to be an object"))?;
    for field in KEPT {
        match old["metadata"].get(field) {
            Some(value) => drop(metadata.insert(field.into(), value.clone())),
            None => drop(metadata.remove(field)),
        }
    }
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    Ok(())
}

fn refuse(resource: &Resource, key: &Key, causes: Vec<Cause>) -> Result<(), ApiError> {
    match causes.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid(&resource.group, &resource.kind, &key.name, causes)),
    }
}

/// A null member means an absent one.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
