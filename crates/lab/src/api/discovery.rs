//! Discovery documents: which groups, versions and types there are, in the old form (one document
//! per group version) and the aggregated one (`APIGroupDiscoveryList`, `apidiscovery.k8s.io/v2` and `v2beta1`, which have the same fields).

use serde_json::{Value, json};

use super::registry::{Registry, Resource};

/// `/api`: the versions of the core group.
pub(crate) fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/apis`: all named groups.
pub(crate) fn groups(registry: &Registry) -> Value {
    let groups = registry.groups();
    let named = groups.iter().filter(|(name, _)| !name.is_empty());
    let all: Vec<Value> = named.map(|(name, versions)| group_body(name, versions)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": all })
}

/// `/apis/GROUP`.
pub(crate) fn group(registry: &Registry, name: &str) -> Option<Value> {
    let groups = registry.groups();
    let mut body = group_body(name, groups.get(name).filter(|_| !name.is_empty())?);
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    Some(body)
}

fn group_body(name: &str, versions: &[String]) -> Value {
    let entry = |v: &String| json!({ "groupVersion": format!("{name}/{v}"), "version": v });
    let all: Vec<Value> = versions.iter().map(entry).collect();
    json!({ "name": name, "versions": all, "preferredVersion": all.first() })
}

fn served<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Resource> {
    registry
        .all()
        .map(AsRef::as_ref)
        .filter(move |r| r.group == group && r.version(version).is_some())
}

/// Subresources of a type in a version: name, kind and verbs.
fn subresources(
    resource: &Resource,
    version: &str,
) -> Vec<(&'static str, String, &'static [&'static str])> {
    let status = resource.version(version).is_some_and(|v| v.status);
    let own = resource.subresources.iter().copied().filter(|s| *s != "status");
    let one = |name: &'static str| -> (&'static str, String, &'static [&'static str]) {
        match name {
            "binding" => (name, "Binding".into(), &["create"]),
            "exec" => (name, "PodExecOptions".into(), &["create", "get"]),
            "attach" => (name, "PodAttachOptions".into(), &["create", "get"]),
            "portforward" => (name, "PodPortForwardOptions".into(), &["create", "get"]),
            "log" => (name, resource.kind.clone(), &["get"]),
            "finalize" => (name, resource.kind.clone(), &["update"]),
            _ => (name, resource.kind.clone(), &["get", "patch", "update"]),
        }
    };
    status.then_some("status").into_iter().chain(own).map(one).collect()
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(crate) fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut all = Vec::new();
    for resource in served(registry, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs(),
        });
        extras(&mut entry, resource);
        all.push(entry);
        for (name, kind, verbs) in subresources(resource, version) {
            all.push(json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": verbs,
            }));
        }
    }
    let api_version =
        if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let list = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": all });
    (!all.is_empty()).then_some(list)
}

fn extras(entry: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
}

/// `/api` (core group) or `/apis` (named groups) in the aggregated form.
pub(crate) fn aggregated(registry: &Registry, core: bool, by: &str) -> Value {
    let groups = registry.groups();
    let chosen = groups.iter().filter(|(name, _)| name.is_empty() == core);
    let items: Vec<Value> = chosen
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(registry, group, v)).collect();
            json!({ "metadata": { "name": group, "creationTimestamp": null }, "versions": versions })
        })
        .collect();
    let version = format!("apidiscovery.k8s.io/{by}");
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": version, "metadata": {}, "items": items })
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    let resources: Vec<Value> =
        served(registry, group, version).map(|r| aggregated_resource(r, version)).collect();
    json!({ "version": version, "freshness": "Current", "resources": resources })
}

fn aggregated_resource(resource: &Resource, version: &str) -> Value {
    let kind = |kind: &str| json!({ "group": resource.group, "version": version, "kind": kind });
    let subs: Vec<Value> = subresources(resource, version)
        .into_iter()
        .map(|(name, k, verbs)| json!({ "subresource": name, "responseKind": kind(&k), "verbs": verbs }))
        .collect();
    let mut entry = json!({
        "resource": resource.plural, "responseKind": kind(&resource.kind), "singularResource": resource.singular,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" }, "verbs": resource.verbs(),
    });
    extras(&mut entry, resource);
    if !subs.is_empty() {
        entry["subresources"] = json!(subs);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_discovery_tell_the_same_types() {
        let registry = Registry::default();
        let old = resources(&registry, "", "v1").unwrap();
        let names: Vec<&str> = old["resources"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|r| r["name"].as_str())
            .collect();
        assert!(
            names.contains(&"pods")
                && names.contains(&"pods/binding")
                && names.contains(&"nodes/status")
        );
        let new = aggregated(&registry, true, "v2");
        let count = new["items"][0]["versions"][0]["resources"].as_array().unwrap().len();
        assert_eq!(count, names.iter().filter(|n| !n.contains('/')).count());
        assert!(resources(&registry, "apps", "v1").is_none() && group(&registry, "apps").is_none());
        assert_eq!(
            group(&registry, "networking.k8s.io").unwrap()["preferredVersion"]["version"],
            "v1"
        );
    }
}
