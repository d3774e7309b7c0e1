//! What is deployed, looked at without a cluster: rendered by Helm's own engine, checked against
//! Kubernetes' schemas and the agent's, linted; and the admission policy's expressions, evaluated.

mod policy;

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xtask::chart;

/// Sets of values, each with what the manifest must hold then, and what it must not.
fn sets() -> Vec<(&'static str, Value, Vec<&'static str>, Vec<&'static str>)> {
    let k3s = json!({
        "cni": {
            "binDir": "/var/lib/rancher/k3s/data/cni",
            "confDir": "/var/lib/rancher/k3s/agent/etc/cni/net.d", "commandDir": "/usr/local/bin"
        },
        "k8sServiceHost": "127.0.0.1", "k8sServicePort": 6444
    });
    let hardened = json!({
        "security": {
            "seLinuxOptions": {"type": "spc_t"}, "seccompProfile": null,
            "extraCapabilities": ["NET_RAW"]
        },
        "image": {"repository": "registry.example/causeway", "digest": format!("sha256:{:064}", 0)},
        "imagePullSecrets": [{"name": "regcred"}],
        "tolerations": [], "nodeSelector": null, "resources": null,
        "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"}
    });
    let configured = json!({
        "healthPort": 9999,
        "updateStrategy": {"maxUnavailable": 1},
        "cni": {"binDir": "/opt/cni/bin", "confDir": "/etc/cni/net.d", "replace": true},
        "config": {
            "road": "vxlan", "attach": "bridge", "mtu": 1400, "masquerade": false,
            "clusterCIDRs": ["10.244.0.0/16", "fd00:10:244::/48"],
            "metricsAddress": "0.0.0.0:9471"
        }
    });
    vec![
        ("defaults", json!({}), vec!["- --links\n"], vec!["privileged:"]),
        (
            "with admission",
            json!({"admissionPolicy": {"enabled": true}}),
            vec!["kind: ValidatingAdmissionPolicy\n", "kind: ValidatingAdmissionPolicyBinding\n"],
            vec![],
        ),
        (
            "k3s",
            k3s,
            vec![
                "path: /var/lib/rancher/k3s/data/cni\n",
                "path: /var/lib/rancher/k3s/agent/etc/cni/net.d\n",
                "path: /usr/local/bin\n",
                "- --k8s-service-host=127.0.0.1\n",
                "- --k8s-service-port=6444\n",
                "- /host/command\n",
            ],
            vec!["path: /opt/cni/bin"],
        ),
        (
            "taken over from flannel",
            json!({
                "migrateFrom": "flannel", "nodeSelector": {"pod-network": "causeway"},
                "config": {"plugin": "bridge", "network": "cbr0", "road": "vxlan", "vni": 1, "vxlanPort": 8472}
            }),
            vec![
                "- --from=flannel\n",
                "- --flannel-is-off\n",
                "path: /run\n",
                "pod-network: causeway\n",
            ],
            vec!["path: /run/flannel"],
        ),
        (
            "taken over from a bridge",
            json!({"migrateFrom": "bridge", "config": {"plugin": "bridge", "road": "direct"}}),
            vec!["- --from=bridge\n"],
            vec!["path: /run\n", "flannel-is-off"],
        ),
        (
            "without admission",
            json!({"admissionPolicy": {"enabled": false}}),
            vec![],
            vec!["admissionregistration"],
        ),
        (
            "SELinux and a registry",
            hardened,
            vec![
                "type: spc_t\n",
                "- NET_RAW\n",
                "registry.example/causeway@sha256:0",
                "name: regcred\n",
            ],
            vec!["seccompProfile", "tolerations", "nodeSelector", "requests:"],
        ),
        (
            "privileged",
            json!({"security": {"privileged": true}}),
            vec!["privileged: true\n"],
            vec![],
        ),
        (
            "AppArmor",
            json!({"security": {"appArmorProfile": {"type": "Unconfined"}}}),
            vec!["appArmorProfile:\n          type: Unconfined\n"],
            vec![],
        ),
        (
            "configured",
            configured,
            vec![
                "    road: vxlan\n",
                "healthAddress: 127.0.0.1:9999\n",
                "port: 9999\n",
                "- --replace\n",
                "maxUnavailable: 1\n",
                "fd00:10:244::/48\n",
            ],
            vec!["port: 9470\n"],
        ),
    ]
}

/// Versions of Kubernetes whose schemas are at hand, from the oldest that is supported.
fn versions(from: u32) -> Vec<String> {
    (from..=37).map(|minor| format!("1.{minor}.0")).collect()
}

#[test]
fn what_is_kept_is_what_the_chart_makes() {
    chart::run(true).unwrap();
}

#[test]
fn every_set_of_values_makes_what_kubernetes_takes() {
    for (name, values, has, has_not) in sets() {
        let manifest = chart::render(&values).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        for text in has {
            assert!(manifest.contains(text), "{name}: no {text:?} in\n{manifest}");
        }
        for text in has_not {
            assert!(!manifest.contains(text), "{name}: {text:?} in\n{manifest}");
        }
        // AppArmor as a field came with 1.30, the functions of the policy with 1.31.
        let new = [("kind: ValidatingAdmissionPolicy", 31), ("appArmorProfile:", 30)];
        let needs = new.iter().filter(|(text, _)| manifest.contains(text)).map(|(_, from)| *from);
        let from = needs.max().unwrap_or(28);
        let wrong = chart::validate(&manifest, &versions(from)).unwrap();
        assert_eq!(wrong, Vec::<String>::new(), "{name}");
        let wrong = chart::lint(&values).unwrap();
        assert_eq!(wrong, Vec::<String>::new(), "{name}");
        assert_eq!(yamllint(&manifest), "", "{name}");
    }
}

/// The validators themselves: a manifest with an error in it does not get by.
#[test]
fn what_is_wrong_is_found() {
    let good = chart::render(&json!({"admissionPolicy": {"enabled": true}})).unwrap();
    let wrong = |from: &str, to: &str| {
        assert!(good.contains(from), "{from:?} is not there");
        chart::validate(&good.replacen(from, to, 1), &["1.33.0".to_owned()]).unwrap()
    };
    assert_eq!(wrong("hostNetwork: true", "hostNetwork: true").len(), 0);
    assert_eq!(wrong("hostNetwork: true", "hostNetwork: sometimes").len(), 1);
    assert_eq!(wrong("hostNetwork: true", "hostNetworks: true").len(), 1);
    assert_eq!(wrong("#vni: 4096", "vni: 0").len(), 1);
    assert_eq!(wrong("#road: auto", "raod: auto").len(), 1);
    assert_eq!(chart::validate(&good, &["1.29.0".to_owned()]).unwrap().len(), 2, "the policy");
    assert_ne!(yamllint(&good.replace("hostNetwork: true", "hostNetwork:  true")), "");
}

/// 1.30 has policies, but lets new ones use only the functions that 1.29 had; those for CIDRs came with
/// 1.30 itself (`DefaultCompatibilityVersion` in apiserver/pkg/cel/environment). It would refuse the whole
/// policy, and Helm with it the whole release.
///
/// Left to itself the chart asks for the cluster's version, which Helm's library takes from nobody: it is
/// written into a copy.
#[test]
fn the_policy_comes_with_kubernetes_1_31() {
    const HELPERS: &str = "templates/_helpers.tpl";
    let copy = tempfile::tempdir().unwrap();
    let chart = chart::root().join(chart::CHART);
    let copied = Command::new("cp").arg("-r").args([&chart.join("."), copy.path()]).status();
    assert!(copied.unwrap().success());
    let text = std::fs::read_to_string(chart.join(HELPERS)).unwrap();
    for (version, comes) in [("v1.30.14", false), ("v1.31.0-rc.1", true), ("v1.33.2+k3s1", true)] {
        let told = text.replace(".Capabilities.KubeVersion.Version", &format!("{version:?}"));
        assert_ne!(told, text);
        std::fs::write(copy.path().join(HELPERS), told).unwrap();
        let manifest = chart::render_from(copy.path(), &json!({})).unwrap();
        assert_eq!(manifest.contains("kind: ValidatingAdmissionPolicy\n"), comes, "{version}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let cases = [
        (json!({"cni": {"binDir": "opt", "confDir": "/c"}}), "binDir"),
        (json!({"cnii": {}}), "cnii"),
        (json!({"config": {"raod": "auto"}}), "raod"),
        (json!({"config": {"mtu": 12}}), "mtu"),
        (json!({"config": {"bridge": "cw0"}}), "bridge"),
        (json!({"config": {"nodeName": "one-for-all"}}), "nodeName"),
        (json!({"admissionPolicy": {"enabled": "perhaps"}}), "enabled"),
        (json!({"updateStrategy": {"maxUnavailable": "0%"}}), "maxUnavailable"),
    ];
    for (values, key) in cases {
        let error = chart::render(&values).expect_err(key).to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

/// The mounts of the DaemonSet are the paths that the programs use.
#[test]
fn mounts_are_the_paths_of_the_programs() {
    let names = std::fs::read_to_string(chart::root().join("crates/types/src/names.rs")).unwrap();
    let manifest = chart::render(&json!({})).unwrap();
    for path in [
        "/run/causeway",
        "/var/lib/causeway",
        "/var/lib/cni/networks",
        "/etc/cni/net.d",
        "/etc/causeway",
    ] {
        assert!(names.contains(&format!("\"{path}")), "{path} is no path of the programs any more");
        assert!(manifest.contains(&format!("mountPath: {path}\n")), "{path}");
    }
}

fn yamllint(manifest: &str) -> String {
    let root = chart::root();
    let mut child = Command::new(root.join("target/venv/bin/yamllint"))
        .args(["--strict", "-f", "parsable", "-c"])
        .arg(root.join("deploy/.yamllint"))
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("yamllint: run ./dev tools");
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}
