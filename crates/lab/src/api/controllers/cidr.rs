//! Pod CIDRs: each node gets the next free part of each range.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{PodRange, changed, key_of, watch_all};
use crate::api::meta::{items, name};
use crate::api::store::{ListOptions, Part, Store};

/// The parts that a node gets, given those that are taken; `None` where a range is full.
fn next_free(ranges: &[PodRange], taken: &[IpNet]) -> Option<Vec<IpNet>> {
    ranges.iter().map(|range| free_part(range, taken)).collect()
}

fn free_part(range: &PodRange, taken: &[IpNet]) -> Option<IpNet> {
    let mut parts = range.cidr.subnets(range.node_prefix).ok()?;
    parts.find(|part| !taken.iter().any(|t| t.contains(part) || part.contains(t)))
}

fn pod_cidrs(node: &Value) -> impl Iterator<Item = IpNet> {
    items(node, "/spec/podCIDRs").iter().filter_map(|cidr| cidr.as_str()?.parse().ok())
}

pub(super) async fn run(store: &Store, ranges: &[PodRange]) {
    loop {
        let Some(mut watch) = watch_all(store, "nodes") else { return };
        while let Ok(event) = changed(watch.next().await) {
            match event {
                Some((node, false)) if items(&node, "/spec/podCIDRs").is_empty() => {
                    allocate(store, ranges, &node)
                }
                // The part of a node that is gone may help those that got none.
                Some((_, true)) => retry(store, ranges),
                _ => {}
            }
        }
    }
}

fn nodes(store: &Store) -> Vec<std::sync::Arc<Value>> {
    store.list("nodes", "", &ListOptions::default()).map(|list| list.items).unwrap_or_default()
}

fn retry(store: &Store, ranges: &[PodRange]) {
    for node in nodes(store).iter().filter(|node| items(node, "/spec/podCIDRs").is_empty()) {
        allocate(store, ranges, node);
    }
}

fn allocate(store: &Store, ranges: &[PodRange], node: &Value) {
    let taken: Vec<IpNet> =
        nodes(store).iter().flat_map(|node| pod_cidrs(node).collect::<Vec<_>>()).collect();
    let Some(parts) = next_free(ranges, &taken) else {
        tracing::warn!(
            "no pod CIDR is left for node {}: use a larger range or longer node prefixes",
            name(node)
        );
        return;
    };
    let result = store.modify("nodes", &key_of(node), Part::Main, |node| {
        // The event may be older than what the node is now.
        if items(node, "/spec/podCIDRs").is_empty() {
            node["spec"]["podCIDR"] = json!(parts.first());
            node["spec"]["podCIDRs"] = json!(parts);
        }
    });
    match result {
        Err(error) if error.code != 404 => {
            tracing::warn!("cannot give node {} its pod CIDRs: {error}", name(node))
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(cidr: &str, node_prefix: u8) -> PodRange {
        PodRange { cidr: cidr.parse().unwrap(), node_prefix }
    }

    #[test]
    fn parts_follow_each_other_and_holes_are_filled() {
        let ranges = [range("10.244.0.0/16", 24), range("fd00:10:244::/48", 64)];
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(next_free(&ranges, &[]).unwrap(), nets(&["10.244.0.0/24", "fd00:10:244::/64"]));
        let taken = nets(&["10.244.0.0/24", "10.244.2.0/23", "fd00:10:244::/64"]);
        assert_eq!(
            next_free(&ranges, &taken).unwrap(),
            nets(&["10.244.1.0/24", "fd00:10:244:1::/64"])
        );
        assert_eq!(next_free(&[range("10.0.0.0/24", 25)], &nets(&["10.0.0.0/8"])), None);
        assert_eq!(next_free(&[range("10.0.0.0/24", 16)], &[]), None);
    }

    proptest! {
        #[test]
        fn parts_never_overlap(prefix in 24u8..30, removed in prop::collection::vec(0usize..8, 0..8)) {
            let ranges = [range("10.0.0.0/24", prefix)];
            let mut taken: Vec<IpNet> = Vec::new();
            for at in removed {
                if let Some(parts) = next_free(&ranges, &taken) {
                    for part in parts {
                        prop_assert!(taken.iter().all(|t| !t.contains(&part) && !part.contains(t)));
                        taken.push(part);
                    }
                }
                if at < taken.len() / 2 {
                    taken.remove(at);
                }
            }
        }
    }
}
