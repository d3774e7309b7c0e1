//! The reference plugins beside ours.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{BIN_DIR, Node};

/// Where Debian's package containernetworking-plugins puts them.
pub const REFERENCE: &str = "/usr/lib/cni";

/// Is this one there? Says so when it is not.
pub fn installed(name: &str) -> bool {
    let there = Path::new(REFERENCE).join(name).is_file();
    if !there {
        println!("skipped: the reference plugins are not in {REFERENCE}");
    }
    there
}

/// Runs the same with both, each in a node of its own, and answers what each says: ours first.
pub fn side_by_side<T: Send + 'static>(run: fn(&Node, &'static str) -> T) -> (T, T) {
    let one = |bin: &'static str| {
        std::thread::spawn(move || {
            let mut node = Node::new();
            node.bin_dir = bin.to_owned();
            run(&node, bin)
        })
        .join()
        .unwrap()
    };
    (one(BIN_DIR), one(REFERENCE))
}

/// Puts a shell script in the place of a plugin.
pub fn script(node: &Node, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = format!("{}/{name}", node.bin_dir);
    let _ = fs::remove_file(&path);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A result without what differs from run to run (MACs, names on the node), and without the MTUs of
/// 1.1.0 and an empty `dns`, which older reference plugins print from 1.0.0 on.
pub fn shape(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let interface = interface.as_object_mut().unwrap();
        interface.insert("mac".into(), "…".into());
        if !interface.contains_key("sandbox") {
            interface.insert("name".into(), "host end".into());
        }
    }
    if result["dns"] == serde_json::json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}
