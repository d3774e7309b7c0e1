//! What a person is told: `golden/errors/*.json` hold calls (changes to a good call) and the error
//! object that each must end in. `stdin` may be text, to be sent as it is.
//!
//! To write the errors anew after a deliberate change, run with `UPDATE_GOLDEN=1` and read the
//! difference.

use std::fs;
use std::path::Path;

use causeway_cni_spec::{CniArgs, CniError, Env, HostLocal, NetConf, Version};
use serde_json::{Value, json};

fn good_env() -> Value {
    json!({
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
    })
}

/// All that a host-local plugin reads before it touches anything.
fn call(env: &Value, stdin: &[u8]) -> Result<(), CniError> {
    let env = Env::parse(|name| env.get(name)?.as_str().map(str::to_owned))?;
    let conf = NetConf::parse(stdin, env.command, &Version::ALL)?;
    let args = CniArgs::parse(&env.args)?;
    if conf.ipam.as_ref().is_some_and(|i| i.plugin_type == "host-local") {
        HostLocal::parse(&conf, &args)?;
    }
    match env.command {
        causeway_cni_spec::Command::Gc => conf.gc_attachments().map(drop),
        causeway_cni_spec::Command::Check => conf.require_prev_result().map(drop),
        _ => Ok(()),
    }
}

fn run(case: &Value) -> Value {
    let mut env = good_env();
    for (key, value) in case["env"].as_object().into_iter().flatten() {
        env[key] = value.clone();
    }
    let stdin = match &case["stdin"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match call(&env, stdin.as_bytes()) {
        Ok(()) => Value::Null,
        Err(error) => serde_json::from_str(&error.to_json()).unwrap(),
    }
}

#[test]
fn errors_say_what_where_why() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/errors");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut cases: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let update = std::env::var_os("UPDATE_GOLDEN").is_some();
        for case in &mut cases {
            let got = run(case);
            if update {
                case["error"] = got;
            } else {
                assert_eq!(got, case["error"], "{}: {case:#}", path.display());
            }
            seen += 1;
        }
        if update {
            fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&cases).unwrap()))
                .unwrap();
        }
    }
    assert!(seen > 40, "only {seen} cases");
}

#[test]
fn a_message_stays_one_line() {
    let text = CniError::io("cannot read a\n\r\0b\u{85} é\"").to_json();
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(read["msg"], "cannot read a\\n\\r\\u{0}b\\u{85} é\"");
}
