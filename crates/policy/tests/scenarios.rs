//! Truth tables: a clause of the API's documentation each, as files that `causeway policy test` takes.

use std::path::Path;

use causeway_policy::read::Object;
use causeway_policy::{World, expect};
use serde_json::Value;

/// The world and the expectations of a file.
fn load(path: &Path) -> (World, Vec<expect::Expectation>) {
    let text = std::fs::read_to_string(path).unwrap();
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let (mut world, mut expected) = (World::default(), Vec::new());
    for value in &all {
        if expect::is_test(value) {
            expected.extend(expect::read(value).unwrap());
        } else {
            let object = Object::read(value).unwrap();
            object.unwrap_or_else(|| panic!("{value}")).put(&mut world);
        }
    }
    (world, expected)
}

#[test]
fn every_scenario() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let (mut files, mut connections, mut wrong) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let (world, expected) = load(&path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!expected.is_empty(), "{name} expects nothing");
        files += 1;
        for one in &expected {
            let outcome = one.check(&world).unwrap_or_else(|why| panic!("{name}: {why}"));
            connections += outcome.connections;
            wrong.extend(outcome.surprises.iter().map(|s| format!("{name}: {s}")));
        }
    }
    assert!(wrong.is_empty(), "{} of {connections}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{connections} connections of {files} files");
    assert!(files >= 25 && connections > 300, "{connections} connections of {files} files");
}
