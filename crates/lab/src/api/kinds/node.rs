//! Nodes: pod CIDRs are at most one per family and never change once they are set.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::api::error::Cause;
use crate::api::meta::{items, section_mut, text};

/// Keeps `podCIDR` and `podCIDRs` in step and checks them.
pub(super) fn check(node: &mut Value) -> Vec<Cause> {
    let single = text(node, "/spec/podCIDR").to_string();
    let list: Vec<String> =
        items(node, "/spec/podCIDRs").iter().filter_map(|v| v.as_str().map(Into::into)).collect();
    match (single.as_str(), list.first()) {
        ("", None) => return Vec::new(),
        ("", Some(first)) => set(node, "podCIDR", json!(first)),
        (single, None) => set(node, "podCIDRs", json!([single])),
        (single, Some(first)) if single != first => {
            return vec![Cause::invalid(
                "spec.podCIDRs",
                "the first of podCIDRs has to be podCIDR",
            )];
        }
        _ => {}
    }
    let parsed: Vec<Option<IpNet>> = items(node, "/spec/podCIDRs").iter().map(network).collect();
    if parsed.iter().any(Option::is_none) {
        return vec![Cause::invalid(
            "spec.podCIDRs",
            "each has to be an address and a prefix length",
        )];
    }
    let family = |net: &Option<IpNet>| net.is_some_and(|net| matches!(net.addr(), IpAddr::V4(_)));
    if parsed.len() > 2 || parsed.len() == 2 && family(&parsed[0]) == family(&parsed[1]) {
        return vec![Cause::invalid(
            "spec.podCIDRs",
            "may have no more than one CIDR of each IP family",
        )];
    }
    Vec::new()
}

fn network(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

fn set(node: &mut Value, field: &str, value: Value) {
    if let Some(spec) = section_mut(node, "spec") {
        spec.insert(field.into(), value);
    }
}

pub(super) fn on_update(old: &Value, new: &mut Value) -> Vec<Cause> {
    // A client that changes one of the two fields means both.
    let before = items(old, "/spec/podCIDRs");
    if before.is_empty() {
        return check(new);
    }
    let same = items(new, "/spec/podCIDRs") == before
        && text(new, "/spec/podCIDR") == text(old, "/spec/podCIDR");
    if same {
        return Vec::new();
    }
    let rule = "node updates may not change podCIDR except from \"\" to valid";
    let field =
        if items(new, "/spec/podCIDRs") == before { "spec.podCIDR" } else { "spec.podCIDRs" };
    vec![Cause::forbidden(field, rule)]
}
