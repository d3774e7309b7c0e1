//! How the lists of the served types are merged, as their published definitions say
//! (`patchMergeKey` for strategic merge, `x-kubernetes-list-map-keys` for apply).

use crate::api::registry::Resource;

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// The new list replaces the old one.
    Atomic,
    /// The union of plain values.
    Set,
    /// Elements with equal values under these keys are the same element.
    By(&'static [&'static str]),
}

/// Which of the two rule sets applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    Strategic,
    Apply,
}

/// How the list at a path (without indexes) of a type is merged.
pub(super) fn list(resource: &Resource, path: &[&str], rules: Rules) -> Merge {
    match path {
        ["metadata", "ownerReferences"] => return Merge::By(&["uid"]),
        ["metadata", "finalizers"] => return Merge::Set,
        // Conditions are a map by type in every published type, and by convention in custom ones.
        ["status", "conditions"] => return Merge::By(&["type"]),
        _ => {}
    }
    match resource.key.as_str() {
        "pods" => pod(path, rules),
        "nodes" => match path {
            ["spec", "podCIDRs"] => Merge::Set,
            ["status", "addresses"] => Merge::By(&["type"]),
            _ => Merge::Atomic,
        },
        "services" if path == ["spec", "ports"] => match rules {
            Rules::Strategic => Merge::By(&["port"]),
            Rules::Apply => Merge::By(&["port", "protocol"]),
        },
        "serviceaccounts" if path == ["secrets"] => Merge::By(&["name"]),
        _ => Merge::Atomic,
    }
}

fn pod(path: &[&str], rules: Rules) -> Merge {
    match path {
        ["spec", "containers" | "initContainers" | "ephemeralContainers"] => Merge::By(&["name"]),
        ["spec", "containers" | "initContainers" | "ephemeralContainers", list] => {
            container(list, rules)
        }
        ["spec", "volumes" | "imagePullSecrets" | "resourceClaims" | "schedulingGates"] => {
            Merge::By(&["name"])
        }
        ["spec", "hostAliases"] => Merge::By(&["ip"]),
        ["spec", "topologySpreadConstraints"] => match rules {
            Rules::Strategic => Merge::By(&["topologyKey"]),
            Rules::Apply => Merge::By(&["topologyKey", "whenUnsatisfiable"]),
        },
        ["status", "podIPs" | "hostIPs"] => Merge::By(&["ip"]),
        _ => Merge::Atomic,
    }
}

fn container(list: &str, rules: Rules) -> Merge {
    match (list, rules) {
        ("ports", Rules::Strategic) => Merge::By(&["containerPort"]),
        ("ports", Rules::Apply) => Merge::By(&["containerPort", "protocol"]),
        ("env", _) => Merge::By(&["name"]),
        ("volumeMounts", _) => Merge::By(&["mountPath"]),
        ("volumeDevices", _) => Merge::By(&["devicePath"]),
        _ => Merge::Atomic,
    }
}

/// Maps that an apply replaces as a whole: selectors.
pub(super) fn atomic_map(resource: &Resource, path: &[&str]) -> bool {
    let last = path.last().copied().unwrap_or("");
    !resource.custom
        && path.first() == Some(&"spec")
        && ["selector", "nodeSelector", "podSelector", "namespaceSelector", "labelSelector"]
            .contains(&last)
}

/// Whether two elements are the same one. A protocol that is left out is TCP.
pub(super) fn same(keys: &[&str], one: &serde_json::Value, other: &serde_json::Value) -> bool {
    keys.iter().all(|key| {
        let of = |v: &serde_json::Value| match v.get(key) {
            None if *key == "protocol" => serde_json::Value::from("TCP"),
            found => found.cloned().unwrap_or_default(),
        };
        of(one) == of(other)
    })
}
