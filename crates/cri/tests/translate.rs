//! The DaemonSet of the plain manifest in the words of the container runtime interface.

use causeway_cri::message::{
    Capability, ContainerConfig, KeyValue, MountPropagation, NamespaceMode, ProfileType,
};
use causeway_cri::{Node, Plan, Projected, translate};
use serde_json::{Value, json};

fn manifest() -> Value {
    let text = include_str!("../../../deploy/causeway.yaml");
    let text = text.split("---\n").find(|d| d.contains("kind: DaemonSet\n")).unwrap();
    serde_saphyr::from_str(text).unwrap()
}

fn node() -> Node {
    Node {
        name: "node-1".into(),
        address: "192.168.1.11".into(),
        api: ("192.168.1.10".into(), 6443),
        pod_dir: "/var/lib/kubelet/pods/u".into(),
        uid: "u".into(),
        cgroup: "/test".into(),
    }
}

fn plan(change: impl FnOnce(&mut Value)) -> Result<Plan, String> {
    let mut object = manifest();
    change(&mut object);
    translate(&object, &node()).map_err(|e| format!("{e:#}"))
}

#[test]
fn the_manifest_as_a_kubelet_asks_for_it() {
    let plan = plan(|_| {}).unwrap();
    let sandbox = plan.sandbox.linux.as_ref().unwrap().security_context.as_ref().unwrap();
    let namespaces = sandbox.namespace_options.unwrap();
    assert_eq!(namespaces.network, i32::from(NamespaceMode::Node));
    assert_eq!(namespaces.pid, i32::from(NamespaceMode::Container));
    assert_eq!(plan.grace, 10);
    let dir = |dir: &str, create| Projected::Dir { dir: dir.into(), create };
    for wanted in [
        Projected::ServiceAccount {
            name: "causeway".into(),
            dir: "/var/lib/kubelet/pods/u/account".into(),
        },
        Projected::ConfigMap {
            name: "causeway".into(),
            dir: "/var/lib/kubelet/pods/u/config".into(),
        },
        dir("/run/netns", true),
        dir("/proc/sys/net", false),
    ] {
        assert!(plan.projected.contains(&wanted), "{wanted:?} in {:?}", plan.projected);
    }
    let [init] = plan.init.as_slice() else { panic!("{:?}", plan.init) };
    let security = security(&init.config);
    assert!(security.no_new_privs && security.readonly_rootfs && !security.privileged);
    let dropped = Capability { add_capabilities: vec![], drop_capabilities: vec!["ALL".into()] };
    assert_eq!(security.capabilities, Some(dropped));
    let [agent] = plan.containers.as_slice() else { panic!("{:?}", plan.containers) };
    agent_is_as_deployed(&agent.config);
    assert_eq!(agent.readiness.as_ref().unwrap().at, ("127.0.0.1".to_owned(), 9470));
    assert_eq!(agent.liveness.as_ref().unwrap().failures, 6);
}

fn security(config: &ContainerConfig) -> &causeway_cri::message::LinuxContainerSecurityContext {
    config.linux.as_ref().unwrap().security_context.as_ref().unwrap()
}

fn agent_is_as_deployed(config: &ContainerConfig) {
    assert_eq!(config.command, ["/causeway", "agent"]);
    let security = security(config);
    // Kubernetes takes no `false` of allowPrivilegeEscalation beside SYS_ADMIN.
    assert!(!security.no_new_privs && security.readonly_rootfs && !security.privileged);
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN", "SYS_ADMIN"]);
    assert_eq!(capabilities.drop_capabilities, ["ALL"]);
    assert_eq!(
        security.seccomp.as_ref().unwrap().profile_type,
        i32::from(ProfileType::RuntimeDefault)
    );
    assert!(security.readonly_paths.contains(&"/proc/sys".to_owned()));
    let env = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    assert!(config.envs.contains(&env("NODE_NAME", "node-1")), "{:?}", config.envs);
    assert!(config.envs.contains(&env("KUBERNETES_SERVICE_HOST", "192.168.1.10")));
    let mount = |to: &str| {
        let found = config.mounts.iter().find(|m| m.container_path == to);
        let m = found.unwrap_or_else(|| panic!("{to} in {:?}", config.mounts));
        (m.host_path.as_str(), m.readonly, m.propagation)
    };
    let private = i32::from(MountPropagation::Private);
    let slave = i32::from(MountPropagation::HostToContainer);
    assert_eq!(mount("/run/netns"), ("/run/netns", false, slave));
    assert_eq!(mount("/host/proc/sys/net"), ("/proc/sys/net", false, private));
    assert_eq!(mount("/etc/causeway"), ("/var/lib/kubelet/pods/u/config", true, private));
    assert!(mount("/var/run/secrets/kubernetes.io/serviceaccount").1);
}

/// Nothing is passed over in silence.
#[test]
fn what_is_not_known_is_an_error() {
    type Change = fn(&mut Value);
    fn pod(object: &mut Value) -> &mut Value {
        &mut object["spec"]["template"]["spec"]
    }
    let changes: [(Change, &str); 15] = [
        (|o| pod(o)["hostPID"] = json!(true), "spec.hostPID: true is not known"),
        (|o| pod(o)["hostNetwork"] = json!(false), "only pods with hostNetwork"),
        (|o| pod(o)["dnsPolicy"] = json!("ClusterFirst"), "dnsPolicy"),
        (|o| pod(o)["nodeSelector"]["a"] = json!("b"), "nodeSelector"),
        (|o| pod(o)["volumes"][1]["hostPath"]["type"] = json!("Socket"), "type: \"Socket\""),
        (|o| pod(o)["volumes"][1]["emptyDir"] = json!({}), "emptyDir"),
        (|o| pod(o)["securityContext"]["fsGroup"] = json!(1), "securityContext.fsGroup"),
        (
            |o| pod(o)["containers"][0]["securityContext"]["privileged"] = json!(true),
            "privileged: true cannot",
        ),
        (
            |o| pod(o)["containers"][0]["securityContext"]["procMount"] = json!("Unmasked"),
            "procMount",
        ),
        (|o| pod(o)["containers"][0]["lifecycle"] = json!({}), "containers[0].lifecycle"),
        (
            |o| pod(o)["containers"][0]["volumeMounts"][0]["subPath"] = json!("x"),
            "volumeMounts[0].subPath",
        ),
        (|o| pod(o)["containers"][0]["volumeMounts"][0]["name"] = json!("x"), "no volume \"x\""),
        (
            |o| {
                pod(o)["containers"][0]["volumeMounts"][0]["mountPropagation"] =
                    json!("Bidirectional");
            },
            "mountPropagation",
        ),
        (
            |o| {
                pod(o)["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] =
                    json!("metadata.labels");
            },
            "\"metadata.labels\" is not known",
        ),
        (
            |o| pod(o)["containers"][0]["readinessProbe"]["httpGet"]["httpHeaders"] = json!([]),
            "httpHeaders",
        ),
    ];
    for (change, expected) in changes {
        let error = plan(change).expect_err(expected);
        assert!(error.contains(expected), "{error} lacks {expected:?}");
    }
}
