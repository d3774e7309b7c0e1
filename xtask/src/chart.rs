//! `xtask manifest`: the plain manifest, from the chart by Helm's own engine.
//!
//! What is kept (`deploy/causeway.yaml`, and in `values.schema.json` the part that comes from the
//! agent's configuration) is written here and checked here.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const HELM: &str = include_str!("../py/helm.py");
const VALIDATE: &str = include_str!("../py/validate.py");

/// The chart in the workspace.
pub const CHART: &str = "deploy/chart/causeway";

/// Where each kind of object comes before those that name it.
const ORDER: [&str; 4] = ["rbac.yaml", "configmap.yaml", "admission.yaml", "daemonset.yaml"];

/// Keys of the agent's configuration that the chart sets otherwise, or that make no sense for all
/// nodes at once.
const NOT_IN_VALUES: [&str; 5] =
    ["healthAddress", "k8sServiceHost", "k8sServicePort", "kubeconfig", "nodeName"];

/// The directory of the workspace.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The chart rendered with values, as one manifest.
///
/// # Errors
/// Helm's own words, and when Helm is not there.
pub fn render(values: &Value) -> Result<String> {
    render_from(&root().join(CHART), values)
}

/// The same of a chart elsewhere.
///
/// # Errors
/// As [`render`].
pub fn render_from(chart: &Path, values: &Value) -> Result<String> {
    let ask = json!({"chart": chart, "values": values, "namespace": "kube-system"});
    let answer = python(HELM, &ask)?;
    let mut files: BTreeMap<String, String> =
        serde_json::from_str(&answer).context("what Helm rendered")?;
    let mut out = String::new();
    for name in ORDER {
        let text = files.remove(&format!("causeway/templates/{name}"));
        let text = text.with_context(|| format!("the chart has no template {name}"))?;
        if !text.trim().is_empty() {
            out.push_str("---\n");
            out.push_str(text.trim());
            out.push('\n');
        }
    }
    files.retain(|_, text| !text.trim().is_empty());
    ensure!(files.is_empty(), "templates without a place in ORDER: {:?}", files.keys());
    Ok(out)
}

/// What `helm lint --strict` says; nothing when it has nothing to say.
///
/// # Errors
/// When Helm is not there.
pub fn lint(values: &Value) -> Result<Vec<String>> {
    let ask = json!({"chart": root().join(CHART), "values": values, "lint": true});
    let report: Value = serde_json::from_str(&python(HELM, &ask)?)?;
    let messages = report["messages"].as_array().into_iter().flatten();
    // 1 is information: that there is no icon.
    let bad = messages.filter(|m| m["severity"].as_u64() != Some(1)).map(Value::to_string);
    Ok(bad.chain(report["errors"].as_array().into_iter().flatten().map(Value::to_string)).collect())
}

/// What is wrong with a manifest in the eyes of some versions of Kubernetes, and with its
/// configuration by the agent's schema.
///
/// # Errors
/// When the validator is not there.
pub fn validate(manifest: &str, versions: &[String]) -> Result<Vec<String>> {
    let schema = config_schema()?;
    let ask = json!({"manifest": manifest, "versions": versions, "config_schema": schema});
    Ok(python(VALIDATE, &ask)?.lines().map(str::to_owned).collect())
}

/// Runs a program of Python in the environment that `./dev` makes.
fn python(program: &str, input: &Value) -> Result<String> {
    let python = root().join("target/venv/bin/python");
    let mut child = Command::new(&python)
        .args(["-I", "-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{}: run ./dev tools, which makes it", python.display()))?;
    let mut stdin = child.stdin.take().context("no way to the program")?;
    stdin.write_all(input.to_string().as_bytes())?;
    drop(stdin);
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// The schema of the agent's configuration.
///
/// # Errors
/// When it cannot be read.
pub fn config_schema() -> Result<Value> {
    let path = root().join("deploy/config.schema.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The manifest that is kept.
///
/// # Errors
/// As [`render`].
pub fn manifest() -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let body = render(&json!({"admissionPolicy": {"enabled": true}}))?;
    Ok(format!(
        "# Causeway {version}: kubectl apply -f causeway.yaml (docs/install.md).\n\
         # Made from deploy/chart/causeway by `cargo run -p xtask -- manifest`; to be changed there.\n\
         # Before Kubernetes 1.31 the objects of admissionregistration.k8s.io are refused, and the rest works.\n\
         {body}"
    ))
}

/// The values' schema with the agent's configuration in its place.
///
/// # Errors
/// When it cannot be read.
pub fn values_schema() -> Result<String> {
    let path = root().join("deploy/chart/causeway/values.schema.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut schema: Value =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut config = config_schema()?;
    if let Some(properties) = config["properties"].as_object_mut() {
        properties.retain(|key, _| !NOT_IN_VALUES.contains(&key.as_str()));
    }
    schema["properties"]["config"] = json!({
        "description": "The agent's configuration.",
        "type": "object",
        "additionalProperties": false,
        "properties": config["properties"],
    });
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

/// Writes what is kept, or with `check` says whether it is what would be written.
///
/// # Errors
/// When it differs, with the file's name.
pub fn run(check: bool) -> Result<()> {
    let chart = fs::read_to_string(root().join("deploy/chart/causeway/Chart.yaml"))?;
    let version = env!("CARGO_PKG_VERSION");
    for line in [format!("version: {version}"), format!("appVersion: \"{version}\"")] {
        ensure!(chart.lines().any(|l| l == line), "Chart.yaml does not say {line}");
    }
    keep("deploy/chart/causeway/values.schema.json", &values_schema()?, check)?;
    keep("deploy/causeway.yaml", &manifest()?, check)
}

fn keep(file: &str, text: &str, check: bool) -> Result<()> {
    let path = root().join(file);
    if !check {
        return fs::write(&path, text).with_context(|| path.display().to_string());
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    ensure!(kept == text, "{file} is out of date: cargo run -p xtask -- manifest");
    println!("{file} is what the chart makes");
    Ok(())
}
