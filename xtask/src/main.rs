//! Checks of the workspace that cargo and clippy do not know, and what is deployed.
//!
//! `image [--arch ARCH] [--dist DIR]`: the image of the DaemonSet, as an OCI archive in `target`.
//! `manifest [--check]`: `deploy/causeway.yaml` from the chart.
//! `test [OPTION...]`: all tests, `CAUSEWAY_TEST_JOBS` programs of them at a time (2 unless told), each with these
//! options.
//! `borders`: the border between deciding and doing is a crate border. Pure
//! crates reach no runtime, no sockets and no Kubernetes client; the plugins, which start for
//! every pod, reach no runtime and no Kubernetes client. No program reaches what is for tests. Every
//! crate inherits the workspace lints.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::{chart, image, testing};

/// Crates that decide and do nothing.
const PURE: &[&str] = &[
    "causeway-types",
    "causeway-ipam",
    "causeway-model",
    "causeway-desired",
    "causeway-plan",
    "causeway-policy",
    "causeway-enforce",
    "causeway-doctor",
];
/// What a pure crate may not reach, by the beginning of the name.
const DOES_THINGS: &[&str] =
    &["tokio", "libc", "rustix", "nix", "netlink", "kube", "k8s-openapi", "socket2", "mio"];
/// What the plugins may not reach.
const SLOW_TO_START: &[&str] = &["tokio", "kube", "k8s-openapi", "clap", "regex", "hyper"];
/// What is there for tests and no program reaches.
const FOR_TESTS: &[&str] = &["causeway-cri", "prost", "xtask"];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["borders"] => borders(),
        ["manifest"] => chart::run(false),
        ["manifest", "--check"] => chart::run(true),
        ["image"] => make_image("amd64", "target/dist"),
        ["image", "--arch", arch, "--dist", dist] => make_image(arch, dist),
        ["test", options @ ..] => jobs().and_then(|jobs| testing::run(jobs, options)),
        other => Err(anyhow::anyhow!(
            "unknown task {other:?}; there are: borders, manifest [--check], \
             image [--arch ARCH --dist DIR], test [OPTION...]"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn jobs() -> Result<usize> {
    match std::env::var("CAUSEWAY_TEST_JOBS") {
        Ok(text) => {
            text.parse().with_context(|| format!("CAUSEWAY_TEST_JOBS is {text:?}, no number"))
        }
        Err(_) => Ok(2),
    }
}

fn make_image(arch: &str, dist: &str) -> Result<()> {
    let root = chart::root();
    let (path, archive) = image::run(&root, arch, &root.join(dist), &root.join("target"))?;
    println!("{}: {} bytes, {}", path.display(), archive.bytes.len(), archive.digest);
    Ok(())
}

fn borders() -> Result<()> {
    let graph = Graph::read()?;
    let mut wrong = Vec::new();
    for (crates, banned) in
        [(PURE, DOES_THINGS), (&["causeway-plugins"], SLOW_TO_START), (&["causeway"], FOR_TESTS)]
    {
        for name in crates {
            let reached = graph.reached(name)?;
            for (dep, path) in reached {
                if banned.iter().any(|b| dep == *b || dep.starts_with(&format!("{b}-"))) {
                    wrong.push(format!("{name} reaches {dep} by {path}"));
                }
            }
        }
    }
    let k8s: Vec<&str> = graph
        .normal
        .iter()
        .filter(|(_, deps)| deps.iter().any(|d| d == "k8s-openapi"))
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("causeway") && *name != "causeway-cluster")
        .collect();
    if !k8s.is_empty() {
        wrong.push(format!("only causeway-cluster may use k8s-openapi, also used by {k8s:?}"));
    }
    wrong.extend(graph.without_lints);
    if wrong.is_empty() {
        println!("borders: {} pure crates and the plugins keep theirs", PURE.len());
        Ok(())
    } else {
        bail!("{}", wrong.join("\n       "))
    }
}

/// Normal dependencies by package name. Build and development dependencies do not count: they are
/// not in the product.
struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    without_lints: Vec<String>,
}

impl Graph {
    fn read() -> Result<Self> {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let out = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform=x86_64-unknown-linux-gnu"])
            .output()
            .context("run cargo metadata")?;
        if !out.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
        }
        let meta: Value = serde_json::from_slice(&out.stdout).context("read cargo metadata")?;
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> =
            list(&meta["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&meta["resolve"]["nodes"]) {
            let deps = list(&node["deps"]);
            let is_normal = |d: &&Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null());
            let deps = deps.iter().filter(is_normal);
            let deps = deps.filter_map(|d| names.get(&text(&d["pkg"])).cloned());
            // Two versions of one package count as one: the ban is on the name.
            normal.entry(names[&text(&node["id"])].clone()).or_default().extend(deps);
        }
        let mut without_lints = Vec::new();
        for package in list(&meta["packages"]) {
            let manifest = text(&package["manifest_path"]);
            if !package["source"].is_null() {
                continue;
            }
            let toml = std::fs::read_to_string(&manifest).with_context(|| manifest.clone())?;
            if !toml.contains("[lints]\nworkspace = true") {
                without_lints.push(format!(
                    "{} does not inherit the workspace lints",
                    text(&package["name"])
                ));
            }
        }
        Ok(Self { normal, without_lints })
    }

    /// Everything that a package reaches, with one path to it.
    fn reached(&self, root: &str) -> Result<BTreeMap<String, String>> {
        let start = self.normal.get(root).with_context(|| format!("no package {root}"))?;
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let mut todo: Vec<(String, String)> =
            start.iter().map(|d| (d.clone(), d.clone())).collect();
        while let Some((name, path)) = todo.pop() {
            if found.contains_key(&name) {
                continue;
            }
            for dep in self.normal.get(&name).into_iter().flatten() {
                todo.push((dep.clone(), format!("{path} → {dep}")));
            }
            found.insert(name, path);
        }
        Ok(found)
    }
}
