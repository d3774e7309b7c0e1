//! kubectl against the lab's API. Any kubectl from Debian's 1.20 on; `KUBECTL` names another one than
//! that in the path.

mod api_support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use api_support::{Lab, VERSIONS};
use causeway_lab::api::{DeleteOptions, Key, Part};
use serde_json::json;
use tempfile::TempDir;

struct Kubectl {
    home: TempDir,
}

impl Kubectl {
    fn new(lab: &Lab) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(home.path().join("config"), &lab.kubeconfig).expect("a kubeconfig");
        Kubectl { home }
    }

    fn command(&self, arguments: &str) -> Command {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".into());
        let mut command = Command::new(program);
        command
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .current_dir(self.home.path())
            .arg("--cache-dir")
            .arg(self.home.path().join("cache"))
            .args(arguments.split_whitespace())
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap_or_else(|error| {
            panic!("cannot run kubectl: {error}: install Debian's package kubernetes-client, or name a kubectl in KUBECTL")
        })
    }

    /// What a command that has to succeed prints, on both streams.
    fn run(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        let text = [output.stdout, output.stderr]
            .map(|t| String::from_utf8_lossy(&t).into_owned())
            .concat();
        assert!(output.status.success(), "kubectl {arguments}\n{text}");
        text
    }

    /// What a command that has to fail complains.
    fn fails(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        assert!(!output.status.success(), "kubectl {arguments} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).expect("a file");
    }
}

/// Rows as lists of words.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter(|l| !l.starts_with("Warning"))
        .map(|l| l.split_whitespace().collect())
        .collect()
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {node-role.kubernetes.io/worker: ''}
status:
  capacity: {cpu: '2', memory: 4Gi, pods: '110'}
  allocatable: {cpu: '2', memory: 4Gi, pods: '110'}
  conditions: [{type: Ready, status: 'True'}]
  addresses: [{type: InternalIP, address: 192.168.1.11}]
  nodeInfo: {kubeletVersion: v1.32.0, osImage: Debian, kernelVersion: '6.1', containerRuntimeVersion: lab}
";

const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: web, image: 'web:1', ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}
";

/// Runs a test that blocks while a server of each version runs beside it.
async fn with_kubectl(test: impl Fn(&Lab, &Kubectl) + Copy + Send + 'static) {
    for version in VERSIONS {
        let lab = Lab::start_as(version, 1000);
        let result = tokio::task::spawn_blocking(move || {
            let kubectl = Kubectl::new(&lab);
            test(&lab, &kubectl);
        });
        result.await.unwrap_or_else(|error| panic!("Kubernetes {version}: {error}"));
    }
}

/// Waits for what the controllers do.
fn eventually(what: &str, test: impl Fn() -> bool) {
    for _ in 0..200 {
        if test() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_pods_are_shown_as_usual() {
    with_kubectl(|lab, kubectl| {
        assert!(kubectl.run("version").contains("causeway-lab"));
        kubectl.file("node.yaml", NODE);
        kubectl.file("web.yaml", WEB);
        kubectl.run("create -f node.yaml");
        assert!(kubectl.run("apply -f web.yaml").contains("nothing translates their addresses"));
        eventually("web is bound", || lab.store.get("pods", "default", "web").unwrap()["spec"]["nodeName"] == "node-1");
        let nodes = kubectl.run("get nodes -o wide");
        let nodes = rows(&nodes);
        assert_eq!(nodes[0][..6], ["NAME", "STATUS", "ROLES", "AGE", "VERSION", "INTERNAL-IP"]);
        assert_eq!([&nodes[1][..3], &nodes[1][4..6]].concat(), ["node-1", "Ready", "worker", "v1.32.0", "192.168.1.11"]);
        let status = json!({ "phase": "Running", "podIP": "10.244.0.2", "podIPs": [{ "ip": "10.244.0.2" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "web", "ready": true, "restartCount": 0, "state": { "running": {} } }] });
        lab.store.modify("pods", &Key::new("default", "web"), Part::Status, |p| p["status"] = status).unwrap();
        let pods = kubectl.run("get pods -A -o wide");
        let pods = rows(&pods);
        assert_eq!(pods[0][..8], ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);
        assert_eq!(pods[1][..5], ["default", "web", "1/1", "Running", "0"]);
        assert_eq!(pods[1][6..8], ["10.244.0.2", "node-1"]);
        let all = kubectl.run("get svc,netpol,ns --no-headers");
        assert!(all.contains("service/web") && all.contains("10.96.0.1") && all.contains("80/TCP"), "{all}");
        assert!(all.contains("app=web") && all.contains("namespace/kube-system"), "{all}");
        let pod = kubectl.run("describe pod web");
        assert!(pod.contains("node-1") && pod.contains("10.244.0.2") && pod.contains("Ready "), "{pod}");
        assert!(kubectl.run("describe node node-1").contains("10.244.0.0/24"));
        assert!(kubectl.run("describe networkpolicy web").contains("PodSelector"));
        assert!(kubectl.run("describe svc web").contains("10.96.0.1"));
        kubectl.run("wait --for=condition=Ready pod/web --timeout=10s");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_changed_and_deleted() {
    with_kubectl(|lab, kubectl| {
        kubectl.file("web.yaml", WEB);
        assert!(kubectl.run("apply -f web.yaml").contains("pod/web created"));
        assert!(kubectl.run("apply -f web.yaml").contains("service/web unchanged"));
        kubectl.file("web.yaml", &WEB.replace("port: 80}]}", "port: 81}]}").replace("web:1", "web:2"));
        assert!(kubectl.run("apply -f web.yaml").contains("service/web configured"));
        let service = lab.store.get("services", "default", "web").unwrap();
        assert_eq!(service["spec"]["ports"], json!([{ "port": 81, "protocol": "TCP", "targetPort": 81 }]));
        assert_eq!(lab.store.get("pods", "default", "web").unwrap()["spec"]["containers"][0]["image"], "web:2");
        kubectl.file("web.yaml", &WEB.replace("containerPort: 80", "containerPort: 90"));
        assert!(kubectl.fails("apply -f web.yaml").contains("pod updates may not change fields"));
        kubectl.file("web.yaml", WEB);
        assert!(kubectl.run("apply --server-side --force-conflicts -f web.yaml").contains("pod/web serverside-applied"));

        kubectl.run("label pod web tier=front");
        kubectl.run("annotate pod web note=yes");
        kubectl.run(r#"patch pod web -p {"metadata":{"labels":{"strategic":"1"}}}"#);
        kubectl.run(r#"patch pod web --type=merge -p {"metadata":{"labels":{"merge":"1"}}}"#);
        kubectl.run(r#"patch pod web --type=json -p [{"op":"add","path":"/metadata/labels/json","value":"1"}]"#);
        let pod = lab.store.get("pods", "default", "web").unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({ "app": "web", "tier": "front", "strategic": "1", "merge": "1", "json": "1" }));
        kubectl.run("label pod web tier-");
        assert!(kubectl.run("get pods -l tier").contains("No resources"));
        assert!(kubectl.run("get pods -l app=web,merge --field-selector metadata.name=web -o name").contains("pod/web"));
        assert!(kubectl.fails("get pod nobody").contains("pods \"nobody\" not found"));
        assert!(kubectl.fails("logs web").contains("causeway lab exec web -- sh"));
        assert!(kubectl.fails("exec web -- ls -l").contains("causeway lab exec web -- ls -l"));

        let deleted = kubectl.run("delete -f web.yaml --timeout=20s");
        assert!(deleted.contains("pod \"web\" deleted"), "{deleted}");
        assert!(lab.store.get("services", "default", "web").is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_with_typed_clients_work() {
    with_kubectl(|lab, kubectl| {
        kubectl.run("create namespace team");
        kubectl.run("create configmap c --from-literal=a=b -n team");
        kubectl.run("create secret generic s --from-literal=a=b");
        kubectl.run("create service nodeport np --tcp=80:8080");
        assert_eq!(lab.store.get("secrets", "default", "s").unwrap()["data"]["a"], "Yg==");
        assert_eq!(
            lab.store.get("services", "default", "np").unwrap()["spec"]["ports"][0]["targetPort"],
            8080
        );
        assert!(kubectl.run("auth can-i delete nodes").contains("yes"));
        kubectl.run("run two --image=two --port=80");
        kubectl.run("expose pod two --port=80");
        kubectl.file("node.yaml", NODE);
        kubectl.run("create -f node.yaml");
        let taints = || {
            lab.store.get("nodes", "", "node-1").unwrap()["spec"]["taints"]
                .as_array()
                .map_or(0, Vec::len)
        };
        kubectl.run("taint node node-1 a=b:NoSchedule c=d:NoExecute");
        assert_eq!(taints(), 2);
        kubectl.run("taint node node-1 a-");
        assert_eq!(taints(), 1);
        kubectl.run("cordon node-1");
        assert!(kubectl.run("get nodes").contains("SchedulingDisabled"));
        kubectl.run("delete namespace team --timeout=20s");
        assert!(lab.store.get("configmaps", "team", "c").is_err());
        assert!(kubectl.run("api-resources").contains("netpol"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_types_are_served_and_shown() {
    with_kubectl(|_, kubectl| {
        kubectl.file(
            "road.yaml",
            "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: roads.example.dev}
spec:
  group: example.dev
  scope: Namespaced
  names: {plural: roads, kind: Road, shortNames: [rd]}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}},
     additionalPrinterColumns: [{name: Peer, type: string, jsonPath: .spec.peer}]}
",
        );
        let road = |peer: &str| {
            let text = format!("apiVersion: example.dev/v1\nkind: Road\nmetadata: {{name: north}}\nspec: {{peer: {peer}}}\n");
            kubectl.file("north.yaml", &text);
            kubectl.run("apply -f north.yaml");
        };
        kubectl.run("apply -f road.yaml");
        kubectl.run("wait --for=condition=Established crd/roads.example.dev --timeout=10s");
        road("a");
        road("b");
        assert_eq!(rows(&kubectl.run("get rd")), [["NAME", "PEER"], ["north", "b"]]);
        kubectl.run("delete crd roads.example.dev --timeout=10s");
        kubectl.fails("get rd");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_happens() {
    with_kubectl(|lab, kubectl| {
        let create = |name: &str| {
            let map = json!({ "metadata": { "name": name }, "data": { "k": "v" } });
            lab.store.create("configmaps", "default", map, false).unwrap();
        };
        create("first");
        let mut watching =
            kubectl.command("get configmaps -w").stdout(Stdio::piped()).spawn().expect("kubectl");
        let (lines, told) = std::sync::mpsc::channel();
        let output = watching.stdout.take().expect("output");
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(output)) {
                let Ok(line) = line else { return };
                let _ = lines.send(line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
            }
        });
        let next = || told.recv_timeout(Duration::from_secs(10)).expect("a line");
        assert_eq!((next(), next()), ("NAME DATA".into(), "first 1".into()));
        // The watch begins some time after the list was shown.
        std::thread::sleep(Duration::from_millis(300));
        create("second");
        assert_eq!(next(), "second 1");
        let key = Key::new("default", "second");
        lab.store.modify("configmaps", &key, Part::Main, |o| o["data"]["l"] = json!("w")).unwrap();
        assert_eq!(next(), "second 2");
        lab.store.delete("configmaps", &key, &DeleteOptions::default()).unwrap();
        assert_eq!(next(), "second 2");
        watching.kill().and_then(|()| watching.wait().map(drop)).expect("kubectl ends");
    })
    .await;
}
