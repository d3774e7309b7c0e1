//! Files as they were written at a time: they are read for ever, and mean the same. `first` is of the first
//! version that wrote such a file, `now` of today's. A key that is renamed, taken away or given another
//! meaning fails here; a new one is added to `now`.

use std::fs;
use std::path::Path;

use causeway_types::state::{AttachmentRecord, LeaseRecord, NodeFile};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn fixture(version: &str, name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(version).join(name);
    let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads both. What today's version writes of today's file is that file.
fn both<T: DeserializeOwned + Serialize>(name: &str) -> [T; 2] {
    let read = |version| {
        let value = fixture(version, name);
        serde_json::from_value::<T>(value).unwrap_or_else(|e| panic!("{version}/{name}: {e}"))
    };
    let [first, now] = ["first", "now"].map(read);
    assert_eq!(serde_json::to_value(&now).unwrap(), fixture("now", name), "{name}");
    // An older version finds all that it wrote itself.
    let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let there = keys(fixture("now", name));
    assert!(
        keys(fixture("first", name)).iter().all(|key| there.contains(key)),
        "{name}: {there:?}"
    );
    [first, now]
}

#[test]
fn records_of_attachments() {
    let [first, now] = both::<AttachmentRecord>("attachment.json");
    assert_eq!(first.leaving, None);
    assert!(now.leaving.is_some() && now.pod.is_some());
    assert_eq!((&first.container_id, &first.addresses), (&now.container_id, &now.addresses));
}

#[test]
fn records_of_leases() {
    let [first, now] = both::<LeaseRecord>("lease.json");
    assert!(!first.seen && now.seen);
    assert_eq!((first.container_id, first.boot_id), (now.container_id, now.boot_id));
}

#[test]
fn the_node_file() {
    let [first, now] = both::<NodeFile>("node.json");
    assert!(first.extra_cidrs.is_empty() && first.reserved.is_empty() && first.cool_down == 0);
    assert!(!now.extra_cidrs.is_empty() && !now.reserved.is_empty() && now.cool_down > 0);
    assert_eq!((first.node, first.mtu, first.attach), (now.node, now.mtu, now.attach));
}
