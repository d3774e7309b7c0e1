//! `causeway policy` over manifests, without a cluster.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: front}
spec: {template: {metadata: {labels: {app: front}}, spec: {containers: [{name: c}]}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {namespace: shop, name: db}
spec:
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: done, labels: {app: db}}, status: {phase: Succeeded}}
";
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: front}}}], ports: [{port: sql}]}]
";
const TEST: &str = "
apiVersion: causeway.dev/v1alpha1
kind: PolicyTest
allowed:
- {from: shop/app=front, to: shop/app=db, port: 5432, by: db}
dropped:
- {from: [shop/front, 192.0.2.1], to: shop/db, port: [22, icmp]}
";

/// The exit code and what was said.
fn policy(dir: &Path, words: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .arg("policy")
        .args(words)
        .current_dir(dir)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

fn files(all: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in all {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn json(dir: &Path, words: &[&str]) -> Value {
    let (_, text) = policy(dir, &[words, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn manifests_are_asked() {
    let dir = files(&[("m/pods.yaml", PODS), ("m/net/db.yml", POLICY), ("m/README.md", "no: [")]);
    let dir = dir.path();
    let (code, text) = policy(dir, &["explain", "shop/app=front", "shop/db", "22", "-f", "m"]);
    assert_eq!(code, 1, "{text}");
    for part in [
        "pod shop/front (198.18.0.",
        "dropped: NetworkPolicy shop/db applies, and no rule allows it",
        "missing  NetworkPolicy shop/db, ingress rule 1 allows pod shop/front",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (code, text) = policy(dir, &["explain", "shop/front", "shop/db", "5432", "-f", "m"]);
    assert_eq!(code, 0, "{text}");
    let said = json(dir, &["explain", "192.0.2.1", "shop/db", "5432", "-f", "m"]);
    assert_eq!(
        (said[0]["allowed"].as_bool(), &said[0]["from"]),
        (Some(false), &"192.0.2.1".into())
    );
    // What has ended is nowhere, and nobody has its address.
    let (code, text) = policy(dir, &["explain", "shop/front", "shop/done", "1", "-f", "m"]);
    assert!(code == 1 && text.contains("no address"), "{text}");

    let (_, text) = policy(dir, &["list", "-f", "m"]);
    assert!(text.contains("pods with app=db of namespace shop"), "{text}");
    let (_, text) = policy(dir, &["reach", "--to", "shop/app=db", "--port", "5432", "-f", "m"]);
    assert!(text.contains("shop/front") && !text.contains("any other"), "{text}");
    let matrix = json(dir, &["matrix", "-f", "m"]);
    let cell = |from: &str, to: &str| {
        let all = matrix.as_array().unwrap();
        let found = all.iter().find(|c| c["from"] == from && c["to"] == to);
        found.map_or("none".to_owned(), |c| c["allowed"].as_str().unwrap().to_owned())
    };
    assert_eq!(cell("shop/front", "shop/db"), "tcp/5432");
    assert_eq!(cell("any other IPv4 address", "shop/db"), "none");
    let (code, text) = policy(dir, &["lint", "-f", "m"]);
    assert!(code == 0 && text.contains("1 policy, 0 findings"), "{text}");
}

#[test]
fn expectations_are_checked() {
    let good = files(&[("pods.yaml", PODS), ("db.yaml", POLICY), ("test.yaml", TEST)]);
    let (code, text) = policy(good.path(), &["test", "-f", "."]);
    assert!(code == 0 && text.contains("2 expectations, 8 connections: all as expected"), "{text}");
    // The policy lost its port.
    let bad = files(&[
        ("pods.yaml", PODS),
        ("db.yaml", &POLICY.replace(", ports: [{port: sql}]", "")),
        ("test.yaml", TEST),
    ]);
    let (code, text) = policy(bad.path(), &["test", "-f", "."]);
    assert_eq!(code, 1, "{text}");
    let want = "test.yaml: dropped[0]: pod shop/front (198.18.0.";
    assert!(text.contains(want) && text.contains("expected dropped, is allowed"), "{text}");
    assert!(text.contains("not as expected"), "{text}");
    // What would show nothing is no success.
    for (test, why) in [
        (TEST.replace("shop/app=front", "shop/app=frnt"), "no pod is shop/app=frnt"),
        (TEST.replace("port: 5432", "prot: 5432"), "prot"),
        (TEST.replace("port: 5432", "port: 99999"), "allowed[0].port: port \"99999\""),
        // Another policy than the one that is named decides.
        (TEST.replace("by: db", "by: other"), "expected allowed by other, is allowed: ingress"),
        (TEST.replace("v1alpha1", "v9"), "this program knows causeway.dev/v1alpha1"),
    ] {
        let dir = files(&[("pods.yaml", PODS), ("db.yaml", POLICY), ("test.yaml", &test)]);
        let (code, text) = policy(dir.path(), &["test", "-f", "."]);
        assert!(code == 1 && text.contains(why) && text.contains("test.yaml"), "{why}: {text}");
    }
    let none = files(&[("pods.yaml", PODS)]);
    let (code, text) = policy(none.path(), &["test", "-f", "."]);
    assert!(code == 1 && text.contains("no expectations"), "{text}");
}

#[test]
fn a_change_is_told_and_its_exit_code_too() {
    let wider = POLICY.replace("{port: sql}", "{port: sql}, {port: 22}");
    let dir = files(&[
        ("old/pods.yaml", PODS),
        ("old/db.yaml", POLICY),
        ("new/db.yaml", &wider),
        ("whole/pods.yaml", PODS),
        ("whole/db.yaml", POLICY),
        ("grown/pods.yaml", PODS),
        ("grown/db.yaml", POLICY),
        ("grown/more.yaml", "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: more}}"),
        (
            "elsewhere/pods.yaml",
            &PODS.replace("name: front", "name: f").replace("name: db", "name: d"),
        ),
    ]);
    let dir = dir.path();
    // Policies alone are put in the place of the others.
    let (code, text) = policy(dir, &["diff", "old", "new"]);
    assert_eq!((code, text.as_str()), (1, "now allowed: tcp/22 to shop/db from shop/front\n"));
    let (code, text) = policy(dir, &["diff", "new/db.yaml", "old"]);
    assert!(code == 2 && text.contains("no pod is in both"), "{text}");
    let (code, text) = policy(dir, &["diff", "old", "whole"]);
    assert!(code == 0 && text.contains("no connection changes"), "{text}");
    let (code, text) = policy(dir, &["diff", "old", "elsewhere"]);
    assert!(code == 2 && text.contains("no pod is in both"), "{text}");
    // Some pods are in both.
    let (code, text) = policy(dir, &["diff", "old", "grown"]);
    assert!(code == 0 && text.contains("1 pods are in one of both alone"), "{text}");
    let (code, text) = policy(dir, &["diff", "old", "nowhere"]);
    assert!(code == 2 && text.contains("nowhere"), "{text}");
}

#[test]
fn what_cannot_be_read_is_named() {
    for (file, text, why) in [
        ("a.yaml", "a: [", "a.yaml"),
        ("a.yaml", "kind: NetworkPolicy", "without apiVersion and kind"),
        (
            "a.json",
            r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"ingress": [{"ports": 7}]}}"#,
            "a.json: NetworkPolicy default/p: spec.ingress[0].ports",
        ),
    ] {
        let dir = files(&[(file, text)]);
        let (code, said) = policy(dir.path(), &["list", "-f", "."]);
        assert!(code == 1 && said.contains(why), "{why}: {said}");
    }
    let empty = files(&[]);
    let (code, said) = policy(empty.path(), &["list", "-f", "."]);
    assert!(code == 1 && said.contains("has no files that end in .yaml"), "{said}");
    let (code, said) = policy(empty.path(), &["list", "--kubeconfig", "none"]);
    assert!(code == 1 && said.contains("--file"), "{said}");
}

/// The label that the API gives each namespace is there, be the namespace in the manifests or not.
#[test]
fn namespaces_are_known_by_their_names() {
    let by_name = POLICY.replace(
        "{podSelector: {matchLabels: {app: front}}}",
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}, \
         {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: desk}}}",
    );
    let desk = "{apiVersion: v1, kind: Pod, metadata: {namespace: desk, name: a}}";
    let dir = files(&[("pods.yaml", PODS), ("desk.yaml", desk), ("db.yaml", &by_name)]);
    for from in ["shop/front", "desk/a"] {
        let (code, text) = policy(dir.path(), &["explain", from, "shop/db", "5432", "-f", "."]);
        assert_eq!(code, 0, "{text}");
    }
}

/// The example of the documentation works.
#[test]
fn the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (code, text) = policy(&root, &["test", "-f", "examples/policy"]);
    assert!(code == 0 && text.contains("all as expected"), "{text}");
    let (code, text) = policy(&root, &["lint", "--strict", "-f", "examples/policy"]);
    assert_eq!(code, 0, "{text}");
}
