//! Objects of a lab's API for people who have no kubectl at hand.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::client::Client;

/// A type as discovery tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `v1`, `networking.k8s.io/v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// `pods`.
    pub plural: String,
    /// `pod`, `po`.
    pub others: Vec<String>,
    /// Objects live in namespaces.
    pub namespaced: bool,
}

impl Kind {
    fn base(&self) -> String {
        match self.api_version.contains('/') {
            true => format!("/apis/{}", self.api_version),
            false => format!("/api/{}", self.api_version),
        }
    }

    /// The path of an object, or of all of a namespace or the cluster (empty).
    fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = self.base();
        if self.namespaced && !namespace.is_empty() {
            path = format!("{path}/namespaces/{namespace}");
        }
        path = format!("{path}/{}", self.plural);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }

    fn is(&self, word: &str) -> bool {
        let (word, group) = word.split_once('.').unwrap_or((word, ""));
        let named = self.plural == word || self.others.iter().any(|o| o == word);
        named && (group.is_empty() || self.api_version.starts_with(&format!("{group}/")))
    }
}

/// All types that the API serves.
///
/// # Errors
/// When the lab does not answer.
pub fn kinds(client: &Client) -> Result<Vec<Kind>> {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut all = Vec::new();
    for path in ["/api", "/apis"] {
        let document = client.get_as(path, accept)?;
        for group in list(&document["items"]) {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in list(&group["versions"]) {
                let number = version["version"].as_str().unwrap_or_default();
                let api_version =
                    if name.is_empty() { number.to_owned() } else { format!("{name}/{number}") };
                all.extend(list(&version["resources"]).iter().map(|r| kind(&api_version, r)));
            }
        }
    }
    Ok(all)
}

fn kind(api_version: &str, resource: &Value) -> Kind {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut others: Vec<String> = list(&resource["shortNames"]).iter().map(text).collect();
    others.push(text(&resource["singularResource"]));
    Kind {
        api_version: api_version.to_owned(),
        kind: text(&resource["responseKind"]["kind"]),
        plural: text(&resource["resource"]),
        others,
        namespaced: resource["scope"] == "Namespaced",
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn named<'a>(kinds: &'a [Kind], word: &str) -> Result<&'a Kind> {
    let word = word.to_lowercase();
    kinds.iter().find(|k| k.is(&word)).with_context(|| {
        let all: Vec<&str> = kinds.iter().map(|k| k.plural.as_str()).collect();
        format!("the API has no type {word:?}; it has: {}", all.join(", "))
    })
}

/// The objects of a YAML or JSON text with any number of documents and lists.
///
/// # Errors
/// When it is no YAML, or a document is no object with apiVersion and kind.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let parsed: Vec<Value> = serde_saphyr::from_multiple(text).context("the manifest")?;
    let mut all = Vec::new();
    for value in parsed.into_iter().filter(|v| !v.is_null()) {
        match value["kind"].as_str() {
            Some(kind) if kind.ends_with("List") && value["items"].is_array() => {
                all.extend(list(&value["items"]).iter().cloned());
            }
            Some(_) if value["apiVersion"].is_string() => all.push(value),
            _ => bail!("the manifest has a document without apiVersion and kind"),
        }
    }
    Ok(all)
}

/// Where an object of a manifest goes, and its name for people.
pub(crate) fn place(kinds: &[Kind], object: &Value, namespace: &str) -> Result<(String, String)> {
    let text = |p: &str| object.pointer(p).and_then(Value::as_str).unwrap_or_default();
    let (api_version, word) = (text("/apiVersion"), text("/kind"));
    let kind = kinds
        .iter()
        .find(|k| k.api_version == api_version && k.kind == word)
        .with_context(|| format!("the API has no {word} in {api_version}"))?;
    let name = text("/metadata/name");
    if name.is_empty() {
        bail!("a {word} of the manifest has no metadata.name");
    }
    let own = text("/metadata/namespace");
    let namespace = if own.is_empty() { namespace } else { own };
    Ok((kind.path(namespace, name), format!("{}/{name}", word.to_lowercase())))
}

/// Applies the objects of a manifest; answers a line for each.
///
/// # Errors
/// At the first object that is refused, naming it; those before it stay applied.
pub fn apply(client: &Client, objects: &[Value], namespace: &str) -> Result<Vec<String>> {
    let kinds = kinds(client)?;
    let mut lines = Vec::new();
    for object in objects {
        let (path, name) = place(&kinds, object, namespace)?;
        client.apply(&path, object).with_context(|| name.clone())?;
        lines.push(format!("{name} applied"));
    }
    Ok(lines)
}

/// Deletes the objects of a manifest; answers a line for each.
///
/// # Errors
/// As [`apply`].
pub fn delete(client: &Client, objects: &[Value], namespace: &str) -> Result<Vec<String>> {
    let kinds = kinds(client)?;
    let mut lines = Vec::new();
    for object in objects {
        let (path, name) = place(&kinds, object, namespace)?;
        client.delete(&path).with_context(|| name.clone())?;
        lines.push(format!("{name} deleted"));
    }
    Ok(lines)
}

impl Kind {
    /// The type that a word such as `po`, `pods` or `networkpolicies.networking.k8s.io` means.
    ///
    /// # Errors
    /// When the API has none; the answer lists those that it has.
    pub fn find(client: &Client, word: &str) -> Result<Self> {
        named(&kinds(client)?, word).cloned()
    }

    /// Reads one object or a list.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn read(&self, client: &Client, namespace: &str, name: &str) -> Result<Value> {
        client.get(&self.path(namespace, name))
    }

    /// Deletes one object.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn remove(&self, client: &Client, namespace: &str, name: &str) -> Result<Value> {
        client.delete(&self.path(namespace, name))
    }
}

/// Rows for people, as `kubectl get` shows them; `wide` takes the columns of lower priority too.
///
/// # Errors
/// When the API refuses.
pub fn get_table(
    client: &Client,
    kind: &Kind,
    namespace: &str,
    name: &str,
    wide: bool,
) -> Result<Vec<Vec<String>>> {
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = client.get_as(&kind.path(namespace, name), accept)?;
    let shown: Vec<usize> = list(&table["columnDefinitions"])
        .iter()
        .enumerate()
        .filter(|(_, c)| wide || c["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(i, _)| i)
        .collect();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let definitions = list(&table["columnDefinitions"]);
    let all_namespaces = kind.namespaced && namespace.is_empty() && name.is_empty();
    let mut head: Vec<String> =
        shown.iter().map(|i| text(&definitions[*i]["name"]).to_uppercase()).collect();
    if all_namespaces {
        head.insert(0, "NAMESPACE".to_owned());
    }
    let mut rows = vec![head];
    for row in list(&table["rows"]) {
        let cells = list(&row["cells"]);
        let mut line: Vec<String> =
            shown.iter().map(|i| cells.get(*i).map(&text).unwrap_or_default()).collect();
        if all_namespaces {
            line.insert(0, text(&row["object"]["metadata"]["namespace"]));
        }
        rows.push(line);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_taken_apart() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\
            apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
        let all = documents(text).unwrap();
        let names: Vec<&str> = all.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(documents("a: 1\n").unwrap_err().to_string().contains("apiVersion"));
        assert!(documents("a: [\n").is_err());
    }
}
