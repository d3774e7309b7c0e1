//! `causeway policy` of a whole cluster.

use std::process::Command;

use causeway_lab::Road;
use causeway_types::state::Attach;
use serde_json::json;

use crate::world::{World, binaries, dual, with};

/// The exit code and what was said, on the machine of somebody who has the kubeconfig.
fn policy(world: &World, words: &[&str]) -> (i32, String) {
    let output = Command::new(binaries().causeway)
        .arg("policy")
        .args(words)
        .env("KUBECONFIG", world.spec.dirs().kubeconfig())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// The pods, namespaces, nodes and policies are those of the API; kinds that it does not have are not missed.
#[test]
fn the_cluster_is_asked() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        let (code, text) = policy(world, &["explain", "a", "b", "8080"]);
        assert!(
            code == 0 && text.matches("allowed: no policy says anything").count() == 4,
            "{text}"
        );
        for ip in a.ips.iter().chain(&b.ips) {
            assert!(text.contains(&ip.to_string()), "{ip}: {text}");
        }
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "closed", "namespace": "default"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        });
        let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
        world.client.post(path, &object).unwrap();
        let (code, text) = policy(world, &["explain", "a", "b", "8080"]);
        assert!(code == 1 && text.contains("NetworkPolicy default/closed applies"), "{text}");
        // Its own node reaches it, others do not.
        assert_eq!(policy(world, &["explain", "node:node-2", "b", "8080"]).0, 0);
        assert_eq!(policy(world, &["explain", "node:node-1", "b", "8080"]).0, 1);
        let (_, text) = policy(world, &["list"]);
        assert!(
            text.contains("all pods of namespace default") && text.contains("0 rules"),
            "{text}"
        );
        let dir = tempfile::tempdir().unwrap();
        let wider = json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 8080}]}]}});
        let mut changed = object.clone();
        changed["spec"] = wider["spec"].clone();
        std::fs::write(dir.path().join("closed.json"), changed.to_string()).unwrap();
        let (code, text) = policy(world, &["diff", "cluster", dir.path().to_str().unwrap()]);
        assert!(code == 1 && text.contains("now allowed: tcp/8080 to default/"), "{text}");
        let (code, text) = policy(world, &["lint"]);
        assert!(code == 0 && text.contains("1 policy, 0 findings"), "{text}");
    });
}
