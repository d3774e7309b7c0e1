//! The JSON schema of the configuration, and what is deployed with it.
//!
//! The checked types say no schema of themselves: what they take is written here, and the tests
//! below hold it against them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{File, Settings};

pub(super) fn road(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": ["auto", "direct", "vxlan"]})
}

pub(super) fn attach(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": ["routed", "bridge"]})
}

pub(super) fn plugin(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"enum": ["causeway", "bridge"]})
}

pub(super) fn network(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^[^/\\n]+$"})
}

/// A name that the kernel takes and that does not begin as our devices do. Without a look ahead,
/// which the expressions of Helm's validator do not know.
pub(super) fn bridge(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": 15, "pattern": "^[^/:\\s]+$",
        "not": {"pattern": "^(cw.*|\\.{1,2})$"}
    })
}

pub(super) fn mtu(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 68, "maximum": 65535})
}

pub(super) fn vni(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": 16_777_215})
}

pub(super) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": 65535})
}

/// By the form of an address; whether host bits are set is for the agent to say.
pub(super) fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"type": "string", "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])|\
            [0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))$"}
    })
}

pub(super) fn cool_down(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 0, "maximum": super::MAX_COOL_DOWN})
}

pub(super) fn route_protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "minimum": 5, "maximum": 255, "not": {"enum": [9, 16]}})
}

pub(super) fn socket_address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|\\[[0-9A-Fa-f:.]+(%[0-9]+)?\\]):[0-9]{1,5}$"
    })
}

pub(super) fn node_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    })
}

/// The defaults by their keys; none where the node decides, or another key.
fn defaults() -> Value {
    let settings = Settings::default();
    let mut defaults = serde_json::to_value(&settings.config).unwrap();
    defaults["clusterCIDRs"] = defaults["clusterCidrs"].take();
    defaults["healthAddress"] = json!(settings.health_address);
    defaults["attach"].take();
    defaults
}

fn schema() -> Value {
    let mut schema = schemars::schema_for!(File).to_value();
    let defaults = defaults();
    let properties = schema["properties"].as_object_mut().expect("an object has properties");
    for (key, property) in properties {
        let property = property.as_object_mut().expect("a property has a schema");
        // A key with nothing behind it is the same as none: nobody means that.
        let kind = property.get("type").and_then(|kinds| kinds.get(0)).cloned();
        property.extend(kind.map(|kind| ("type".to_owned(), kind)));
        property.remove("default");
        if let Some(default) = defaults.get(key).filter(|default| !default.is_null()) {
            property.insert("default".to_owned(), default.clone());
        }
    }
    schema
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)
}

/// CAUSEWAY_WRITE=1 writes it anew.
#[test]
fn the_schema_that_is_kept_is_that_of_the_agent() {
    let path = deploy("config.schema.json");
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("CAUSEWAY_WRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{} is out of date: run this test with CAUSEWAY_WRITE=1", path.display());
}

/// What the schema gives as a default, a limit or a word is one for the agent too, and what lies just
/// beyond is refused by both.
#[test]
fn the_schema_says_what_the_agent_takes() {
    let schema = schema();
    for (key, property) in schema["properties"].as_object().unwrap() {
        let takes = |value: &Value| Settings::parse("c", &format!("{key}: {value}\n")).is_ok();
        if let Some(default) = property.get("default") {
            let said = Settings::parse("c", &format!("{key}: {default}\n")).unwrap();
            assert_eq!(said, Settings::default(), "default of {key}");
        }
        for word in property["enum"].as_array().into_iter().flatten() {
            assert!(takes(word), "{key}: {word}");
        }
        for (limit, beyond) in [("minimum", -1), ("maximum", 1)] {
            if let Some(limit) = property[limit].as_i64() {
                assert!(takes(&json!(limit)), "{key}: {limit}");
                assert!(!takes(&json!(limit + beyond)), "{key}: {}", limit + beyond);
            }
        }
        for bad in property["not"]["enum"].as_array().into_iter().flatten() {
            assert!(!takes(bad), "{key}: {bad}");
        }
    }
}

/// Every word that the agent takes is in the schema: its own error lists them.
#[test]
fn the_schema_knows_every_word() {
    for (key, property) in schema()["properties"].as_object().unwrap() {
        let Some(words) = property["enum"].as_array() else { continue };
        let error = Settings::parse("c", &format!("{key}: nothing-of-these\n")).unwrap_err();
        let known = error.message.split_once("expected one of ").expect("the words").1;
        let known: BTreeSet<&str> = known.split(", ").collect();
        let listed: BTreeSet<&str> = words.iter().filter_map(Value::as_str).collect();
        assert_eq!(listed, known, "{key}: {}", error.message);
    }
}

/// The configuration of the ConfigMap in the plain manifest.
fn deployed() -> String {
    let manifest = std::fs::read_to_string(deploy("causeway.yaml")).unwrap();
    let after = manifest.split("  config.yaml: |\n").nth(1).expect("the ConfigMap");
    let lines = after.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or_default())).collect()
}

#[test]
fn what_is_deployed_is_the_default() {
    let text = deployed();
    assert_eq!(Settings::parse("config.yaml", &text).unwrap(), Settings::default());
    // Each key stands there commented out, at its default.
    let uncommented = |line: &str| {
        let key = line.strip_prefix('#').filter(|rest| rest.starts_with(char::is_alphabetic));
        format!("{}\n", key.unwrap_or(line))
    };
    let full: String = text.lines().map(uncommented).collect();
    assert_eq!(Settings::parse("config.yaml", &full).unwrap(), Settings::default());
    let keys: BTreeSet<&str> = full
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    let schema = schema();
    let known: BTreeSet<&str> =
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, known);
}
