//! Which types are served: a table of built-in rows, and one row per CustomResourceDefinition.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::meta::{items, text};
use super::rows::{BUILT_IN, Row};
use super::table::{Columns, CustomColumn};

/// One served type.
#[derive(Clone, Debug)]
pub struct Resource {
    /// How the store names it: the plural, with `.group` where the group is not empty,
    /// for example `pods` or `networkpolicies.networking.k8s.io`.
    pub key: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Versions, the preferred one first.
    pub versions: Vec<Version>,
    /// Plural in lower case, as in paths.
    pub plural: String,
    /// Singular in lower case.
    pub singular: String,
    /// Kind, for example `Pod`.
    pub kind: String,
    /// Kind of lists, for example `PodList`.
    pub list_kind: String,
    /// Short names that kubectl understands.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Subresources besides `status`.
    pub subresources: &'static [&'static str],
    /// Fields, besides name and namespace, that a field selector may name.
    pub fields: &'static [&'static str],
    /// Whether a CustomResourceDefinition made it.
    pub custom: bool,
    /// Whether a POST is answered at once and nothing is stored (access reviews).
    pub review: bool,
}

/// One version of a type.
#[derive(Clone, Debug)]
pub struct Version {
    /// For example `v1`.
    pub name: String,
    /// Whether `/status` exists, and the main resource therefore leaves status alone.
    pub status: bool,
    /// Columns of tables.
    pub columns: Columns,
}

impl Resource {
    /// `group/version`, or `version` in the core group.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.into() } else { format!("{}/{version}", self.group) }
    }

    /// The version of this name, if it is served.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// The version that is preferred, and that in-process callers read and write.
    pub fn preferred(&self) -> &Version {
        &self.versions[0]
    }

    /// Whether any version has a status subresource.
    pub fn has_status(&self) -> bool {
        self.versions.iter().any(|v| v.status)
    }

    /// Whether a field selector may name this field.
    pub fn selectable(&self, field: &str) -> bool {
        field == "metadata.name"
            || field == "metadata.namespace" && self.namespaced
            || self.fields.contains(&field)
    }

    /// What discovery says can be done with the type.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.review {
            true => &["create"],
            false => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
        }
    }
}

impl From<&Row> for Resource {
    fn from(row: &Row) -> Self {
        let key = if row.group.is_empty() {
            row.plural.into()
        } else {
            format!("{}.{}", row.plural, row.group)
        };
        Resource {
            key,
            group: row.group.into(),
            versions: vec![Version {
                name: row.version.into(),
                status: row.subresources.contains(&"status"),
                columns: Columns::BuiltIn(row.columns),
            }],
            plural: row.plural.into(),
            singular: row.kind.to_lowercase(),
            kind: row.kind.into(),
            list_kind: format!("{}List", row.kind),
            short_names: row.short.iter().map(ToString::to_string).collect(),
            categories: row.categories.iter().map(ToString::to_string).collect(),
            namespaced: row.namespaced,
            subresources: row.subresources,
            fields: row.fields,
            custom: false,
            review: row.review,
        }
    }
}

/// All served types.
#[derive(Clone, Debug)]
pub struct Registry {
    by_key: BTreeMap<String, Arc<Resource>>,
}

impl Default for Registry {
    fn default() -> Self {
        let rows = BUILT_IN.iter().map(Resource::from);
        Registry { by_key: rows.map(|r| (r.key.clone(), Arc::new(r))).collect() }
    }
}

impl Registry {
    /// The type with this key (`plural` or `plural.group`).
    pub fn get(&self, key: &str) -> Option<&Arc<Resource>> {
        self.by_key.get(key)
    }

    /// The type behind `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let found = if group.is_empty() {
            self.get(plural)
        } else {
            self.get(&format!("{plural}.{group}"))
        };
        found.filter(|r| r.version(version).is_some())
    }

    /// The type of an object by its `apiVersion` and `kind`.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.all().find(|r| r.group == group && r.kind == kind && r.version(version).is_some())
    }

    /// Every type, ordered by key.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_key.values()
    }

    /// Groups and their versions, preferred first; the core group (empty name) comes first.
    pub fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for resource in self.all() {
            let versions = groups.entry(resource.group.clone()).or_default();
            for version in &resource.versions {
                if !versions.contains(&version.name) {
                    versions.push(version.name.clone());
                }
            }
        }
        groups
    }

    /// Serves the type that a CustomResourceDefinition describes; a built-in type is never replaced.
    pub fn define(&mut self, definition: &Value) {
        let resource = from_definition(definition);
        let taken = self.get(&resource.key).is_some_and(|r| !r.custom);
        if !taken && !resource.versions.is_empty() {
            self.by_key.insert(resource.key.clone(), Arc::new(resource));
        }
    }

    /// Stops serving the type of a CustomResourceDefinition.
    pub fn undefine(&mut self, key: &str) {
        if self.get(key).is_some_and(|r| r.custom) {
            self.by_key.remove(key);
        }
    }
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(|v| v.as_str().map(Into::into)).collect()
}

fn from_definition(definition: &Value) -> Resource {
    let group = text(definition, "/spec/group").to_string();
    let plural = text(definition, "/spec/names/plural").to_string();
    let kind = text(definition, "/spec/names/kind").to_string();
    let or = |pointer: &str, otherwise: String| match text(definition, pointer) {
        "" => otherwise,
        given => given.to_string(),
    };
    let mut versions: Vec<(&Value, Version)> = items(definition, "/spec/versions")
        .iter()
        .filter(|v| v["served"] == true)
        .map(|v| (v, from_version(v)))
        .collect();
    versions.sort_by_key(|(v, _)| v["storage"] != true);
    Resource {
        key: format!("{plural}.{group}"),
        versions: versions.into_iter().map(|(_, version)| version).collect(),
        singular: or("/spec/names/singular", kind.to_lowercase()),
        list_kind: or("/spec/names/listKind", format!("{kind}List")),
        short_names: strings(definition, "/spec/names/shortNames"),
        categories: strings(definition, "/spec/names/categories"),
        namespaced: text(definition, "/spec/scope") == "Namespaced",
        group,
        plural,
        kind,
        subresources: &[],
        fields: &[],
        custom: true,
        review: false,
    }
}

fn from_version(version: &Value) -> Version {
    let columns =
        items(version, "/additionalPrinterColumns").iter().map(CustomColumn::new).collect();
    Version {
        name: text(version, "/name").into(),
        status: version.pointer("/subresources/status").is_some(),
        columns: Columns::Custom(columns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn built_in_types_are_found_by_path_and_by_kind() {
        let registry = Registry::default();
        assert_eq!(registry.find("", "v1", "pods").unwrap().kind, "Pod");
        assert_eq!(
            registry.by_kind("networking.k8s.io/v1", "NetworkPolicy").unwrap().plural,
            "networkpolicies"
        );
        assert!(registry.find("apps", "v1", "deployments").is_none());
        assert!(registry.find("", "v2", "pods").is_none());
        let pods = registry.get("pods").unwrap();
        assert!(pods.selectable("spec.nodeName") && !pods.selectable("spec.color"));
    }

    #[test]
    fn a_definition_is_served_until_it_goes() {
        let mut registry = Registry::default();
        registry.define(&json!({ "spec": { "group": "example.dev", "scope": "Cluster",
            "names": { "plural": "roads", "kind": "Road", "shortNames": ["rd"] },
            "versions": [{ "name": "v1alpha1", "served": true, "storage": false },
                         { "name": "v1", "served": true, "storage": true, "subresources": { "status": {} } },
                         { "name": "v0", "served": false, "storage": false }] } }));
        let roads = registry.get("roads.example.dev").unwrap();
        assert_eq!(
            (roads.preferred().name.as_str(), roads.versions.len(), roads.namespaced),
            ("v1", 2, false)
        );
        assert_eq!(registry.groups()["example.dev"], ["v1", "v1alpha1"]);
        registry.undefine("pods");
        registry.undefine("roads.example.dev");
        assert!(registry.get("pods").is_some() && registry.get("roads.example.dev").is_none());
    }
}
