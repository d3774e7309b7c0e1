//! kubectl, as on any cluster, with pods that really run.

use std::process::Command;

use causeway_lab::{Spec, find_pod};
use causeway_types::Family;

use crate::world::{PATIENCE, World, eventually, with};

fn kubectl(world: &World, line: &str) -> (bool, String) {
    // Another kubectl than that in the path, for example Debian's 1.20.
    let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".into());
    let output = Command::new(program)
        .args(line.split_whitespace())
        .env("KUBECONFIG", world.spec.dirs().kubeconfig())
        .env("HOME", "/run")
        .output()
        .expect("kubectl is needed (package kubernetes-client)");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn ok(world: &World, line: &str) -> String {
    let (ok, text) = kubectl(world, line);
    assert!(ok, "kubectl {line}: {text}");
    text
}

#[test]
fn from_run_to_delete() {
    with(Spec { nodes: 2, ..Spec::default() }, |world| {
        let nodes = ok(world, "get nodes -o wide");
        for word in ["cp", "node-1", "node-2", "192.168.1.11", "Ready", "control-plane"] {
            assert!(nodes.contains(word), "{word}: {nodes}");
        }
        let said = ok(world, "run hello --image=any --port=8080");
        assert!(said.contains("image and command are ignored"), "{said}");
        ok(world, "wait --for=condition=Ready pod/hello --timeout=20s");
        let pods = ok(world, "get pods -o wide");
        let pod = find_pod(&world.client, "hello").unwrap();
        let ip = world.ip(&pod, Family::V4);
        assert!(pods.contains(&ip.to_string()) && pods.contains(&pod.node), "{pods}");
        let body = world.fetch(&world.node_ns("cp"), ip).unwrap();
        assert!(body.starts_with("hello on "), "{body}");

        let manifest = "/run/manifest.yaml";
        std::fs::write(manifest, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
            apiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: db}}\n\
            spec:\n  nodeName: node-2\n  containers: [{name: c, image: i, ports: [{containerPort: 5432}]}]\n").unwrap();
        ok(world, &format!("apply -f {manifest}"));
        ok(world, "wait -n shop --for=condition=Ready pod/db --timeout=20s");
        ok(world, "label -n shop pod db tier=back");
        ok(world, "annotate -n shop pod db note=x");
        ok(world, "patch -n shop pod db -p {\"metadata\":{\"labels\":{\"more\":\"1\"}}}");
        let described = ok(world, "describe -n shop pod db");
        for word in ["tier=back", "more=1", "note: x", "node-2/192.168.1.12", "Running"] {
            assert!(described.contains(word), "{word}: {described}");
        }
        let (done, said) = kubectl(world, "logs -n shop db");
        assert!(!done && said.contains("causeway lab exec"), "{said}");
        ok(world, "create service clusterip web --tcp=80:8080");
        let (_, said) = kubectl(world, "get svc web -o wide");
        assert!(said.contains("10.96."), "{said}");

        ok(world, &format!("delete -f {manifest} --wait=true"));
        ok(world, "delete pod hello");
        eventually("the pods are gone", PATIENCE, || {
            let left = causeway_lab::pods(&world.client).unwrap();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        for node in ["node-1", "node-2"] {
            let leases = world.spec.dirs().node(node).join("lib-cni/networks/pod-network");
            let names: Vec<_> = std::fs::read_dir(leases)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name().into_string().unwrap())
                .filter(|n| n.starts_with("10."))
                .collect();
            assert_eq!(names, Vec::<String>::new(), "{node}: leases");
        }
    });
}
