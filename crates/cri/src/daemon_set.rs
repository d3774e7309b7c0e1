//! The pod of a DaemonSet in the words of the container runtime interface, as a kubelet says them.
//! Pure. What is not known here is an error.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::message::{
    Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, ProfileType, SecurityProfile,
};

/// What a kubelet knows beside the pod.
#[derive(Clone, Debug)]
pub struct Node {
    /// `spec.nodeName`.
    pub name: String,
    /// `status.hostIP`.
    pub address: String,
    /// Host and port of the service `kubernetes`.
    pub api: (String, u16),
    /// Where the kubelet keeps what it mounts into the pod.
    pub pod_dir: String,
    /// The pod's UID.
    pub uid: String,
    /// The control group that the pod's are made below.
    pub cgroup: String,
}

/// What a kubelet writes below its own directory before a container that mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projected {
    /// The keys of a ConfigMap of the pod's namespace, a file each.
    ConfigMap {
        /// Its name.
        name: String,
        /// The directory.
        dir: String,
    },
    /// `token`, `ca.crt` and `namespace` of a service account.
    ServiceAccount {
        /// Its name.
        name: String,
        /// The directory.
        dir: String,
    },
    /// An empty file that a container may write its last words into.
    Message {
        /// The file.
        file: String,
    },
    /// A directory of the node's, made when it is missing.
    Dir {
        /// The directory.
        dir: String,
        /// Whether it is made.
        create: bool,
    },
}

/// A question by HTTP that is asked on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Host and port.
    pub at: (String, u16),
    /// Path.
    pub path: String,
    /// Seconds: before the first, between two, for an answer.
    pub delay: i64,
    /// Between two.
    pub period: i64,
    /// For an answer.
    pub timeout: i64,
    /// So many in a row count.
    pub failures: i64,
}

/// A container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedContainer {
    /// What is asked of the runtime.
    pub config: ContainerConfig,
    /// It is started again when this fails.
    pub liveness: Option<Probe>,
    /// The pod is ready while this succeeds.
    pub readiness: Option<Probe>,
}

/// What is asked of the runtime for the whole pod, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What is there before any container.
    pub projected: Vec<Projected>,
    /// The sandbox.
    pub sandbox: PodSandboxConfig,
    /// Each runs to its end before the next.
    pub init: Vec<PlannedContainer>,
    /// They run on.
    pub containers: Vec<PlannedContainer>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace: i64,
}

/// Where a service account is mounted.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What a kubelet has runtimes hide (`pkg/securitycontext/util.go`).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// What it has them make read-only.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The pod that a DaemonSet wants on a node.
///
/// # Errors
/// With the place of whatever is not known here.
pub fn translate(daemon_set: &Value, node: &Node) -> Result<Plan> {
    let mut top = Fields::of(daemon_set.clone(), "DaemonSet")?;
    top.only("apiVersion", &json!("apps/v1"))?;
    top.only("kind", &json!("DaemonSet"))?;
    let mut metadata = top.object("metadata")?;
    let (name, namespace) = (metadata.text("name")?, metadata.text("namespace")?);
    let mut spec = top.object("spec")?;
    top.end()?;
    // They say when pods are made anew and which there are, not what one is.
    let (_, _) = (spec.value("selector")?, spec.maybe("updateStrategy"));
    let template = spec.object("template")?;
    spec.end()?;
    Pod::new(node, name, namespace, template)?.plan()
}

/// What all parts of the translation need.
struct Pod<'a> {
    node: &'a Node,
    spec: Fields,
    sandbox: PodSandboxConfig,
    /// Of the pod, for containers that say nothing else.
    user: Option<i64>,
    group: Option<i64>,
    seccomp: SecurityProfile,
    /// Paths on the node by names of volumes.
    volumes: HashMap<String, String>,
    projected: Vec<Projected>,
}

impl<'a> Pod<'a> {
    fn new(node: &'a Node, name: String, namespace: String, mut template: Fields) -> Result<Self> {
        let mut metadata = template.object("metadata")?;
        let mut labels = metadata.map("labels")?;
        let annotations = metadata.map("annotations")?;
        metadata.end()?;
        let spec = template.object("spec")?;
        template.end()?;
        for (key, value) in [("name", &name), ("namespace", &namespace), ("uid", &node.uid)] {
            labels.insert(format!("io.kubernetes.pod.{key}"), value.clone());
        }
        let metadata = PodSandboxMetadata { name, uid: node.uid.clone(), namespace, attempt: 0 };
        let sandbox = PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: format!("{}/logs", node.pod_dir),
            labels,
            annotations,
            ..PodSandboxConfig::default()
        };
        Ok(Self {
            node,
            spec,
            sandbox,
            user: None,
            group: None,
            seccomp: profile(ProfileType::Unconfined),
            volumes: HashMap::new(),
            projected: Vec::new(),
        })
    }

    fn plan(mut self) -> Result<Plan> {
        self.whole_pod()?;
        for volume in self.spec.objects("volumes")? {
            self.volume(volume)?;
        }
        let init = self.spec.objects("initContainers")?;
        let containers = self.spec.objects("containers")?;
        let grace = self.spec.number("terminationGracePeriodSeconds", 30)?;
        let of = |pod: &mut Self, all: Vec<Fields>| -> Result<Vec<PlannedContainer>> {
            all.into_iter().map(|c| pod.container(c)).collect()
        };
        let (init, containers) = (of(&mut self, init)?, of(&mut self, containers)?);
        self.spec.end()?;
        Ok(Plan { projected: self.projected, sandbox: self.sandbox, init, containers, grace })
    }

    fn whole_pod(&mut self) -> Result<()> {
        // Where and before whom it runs.
        let (_, _) = (self.spec.maybe("tolerations"), self.spec.maybe("priorityClassName"));
        self.spec.only("nodeSelector", &json!({"kubernetes.io/os": "linux"}))?;
        // `Default`: the runtime copies the node's resolv.conf where nothing else is said.
        self.spec.only("dnsPolicy", &json!("Default"))?;
        // There are no services but `kubernetes`, which every pod is told of.
        self.spec.only("enableServiceLinks", &json!(false))?;
        let network = match self.spec.flag("hostNetwork")? {
            true => NamespaceMode::Node,
            false => NamespaceMode::Pod,
        };
        if let Some(mut security) = self.spec.maybe_object("securityContext")? {
            self.user = security.maybe("runAsUser").map(|v| whole(&v)).transpose()?;
            self.group = security.maybe("runAsGroup").map(|v| whole(&v)).transpose()?;
            if let Some(wanted) = security.maybe_object("seccompProfile")? {
                self.seccomp = seccomp(wanted)?;
            }
            security.end()?;
        }
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(network)),
            run_as_user: self.user.map(|value| Int64Value { value }),
            run_as_group: self.group.map(|value| Int64Value { value }),
            seccomp: Some(self.seccomp.clone()),
            ..LinuxSandboxSecurityContext::default()
        };
        self.sandbox.linux = Some(LinuxPodSandboxConfig {
            cgroup_parent: self.node.cgroup.clone(),
            security_context: Some(security),
            ..LinuxPodSandboxConfig::default()
        });
        // In the node's own network it has the node's name, which nobody has to set.
        if network != NamespaceMode::Node {
            bail!("{}: only pods with hostNetwork can be translated", self.spec.at());
        }
        let dir = format!("{}/account", self.node.pod_dir);
        let name = self.spec.text("serviceAccountName")?;
        self.projected.push(Projected::ServiceAccount { name, dir });
        Ok(())
    }

    fn volume(&mut self, mut volume: Fields) -> Result<()> {
        let name = volume.text("name")?;
        let path = if let Some(mut map) = volume.maybe_object("configMap")? {
            let dir = format!("{}/{name}", self.node.pod_dir);
            let name = map.text("name")?;
            map.end()?;
            self.projected.push(Projected::ConfigMap { name, dir: dir.clone() });
            dir
        } else {
            let mut host = volume.object("hostPath")?;
            let dir = host.text("path")?;
            let create = match host.text("type")?.as_str() {
                "DirectoryOrCreate" => true,
                "Directory" => false,
                other => bail!("{}.type: {other:?} cannot be translated", host.at()),
            };
            host.end()?;
            self.projected.push(Projected::Dir { dir: dir.clone(), create });
            dir
        };
        self.volumes.insert(name, path);
        volume.end()
    }

    fn container(&mut self, mut container: Fields) -> Result<PlannedContainer> {
        let name = container.text("name")?;
        // The image is there already, whatever the policy.
        let _ = container.maybe("imagePullPolicy");
        let envs = self.environment(container.objects("env")?)?;
        let mounts = self.mounts(&name, container.objects("volumeMounts")?)?;
        container.only("terminationMessagePolicy", &json!("FallbackToLogsOnError"))?;
        let labels = HashMap::from([("io.kubernetes.container.name".to_owned(), name.clone())]);
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(ImageSpec { image: container.text("image")? }),
            command: container.texts("command")?,
            args: container.texts("args")?,
            envs,
            mounts,
            labels,
            annotations: HashMap::new(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources(container.maybe_object("resources")?)?),
                security_context: Some(self.security(container.maybe_object("securityContext")?)?),
            }),
        };
        let liveness = container.maybe_object("livenessProbe")?.map(probe).transpose()?;
        let readiness = container.maybe_object("readinessProbe")?.map(probe).transpose()?;
        container.end()?;
        Ok(PlannedContainer { config, liveness, readiness })
    }

    fn environment(&self, all: Vec<Fields>) -> Result<Vec<KeyValue>> {
        let (host, port) = &self.node.api;
        let mut envs = vec![
            pair("KUBERNETES_SERVICE_HOST", host),
            pair("KUBERNETES_SERVICE_PORT", &port.to_string()),
            pair("KUBERNETES_SERVICE_PORT_HTTPS", &port.to_string()),
        ];
        for mut env in all {
            let name = env.text("name")?;
            let value = match env.maybe_object("valueFrom")? {
                None => env.text("value")?,
                Some(mut from) => {
                    let mut field = from.object("fieldRef")?;
                    from.end()?;
                    field.only("apiVersion", &json!("v1"))?;
                    let path = field.text("fieldPath")?;
                    let value = self.field(&path).with_context(|| field.at().to_owned())?;
                    field.end()?;
                    value
                }
            };
            env.end()?;
            envs.push(pair(&name, &value));
        }
        Ok(envs)
    }

    /// A field of the pod (the downward API).
    fn field(&self, path: &str) -> Result<String> {
        let metadata = self.sandbox.metadata.clone().unwrap_or_default();
        Ok(match path {
            "spec.nodeName" => self.node.name.clone(),
            "status.hostIP" | "status.podIP" => self.node.address.clone(),
            "metadata.name" => metadata.name,
            "metadata.namespace" => metadata.namespace,
            "metadata.uid" => metadata.uid,
            other => bail!("field {other:?} is not known here"),
        })
    }

    fn mounts(&mut self, container: &str, all: Vec<Fields>) -> Result<Vec<Mount>> {
        let account = format!("{}/account", self.node.pod_dir);
        let file = format!("{}/{container}.message", self.node.pod_dir);
        let mut mounts = vec![
            mount(ACCOUNT, &account, true, MountPropagation::Private),
            mount("/dev/termination-log", &file, false, MountPropagation::Private),
        ];
        self.projected.push(Projected::Message { file });
        for mut wanted in all {
            let name = wanted.text("name")?;
            let path = self.volumes.get(&name);
            let path = path.with_context(|| format!("{}: no volume {name:?}", wanted.at()))?;
            let propagation = match wanted.maybe("mountPropagation") {
                None => MountPropagation::Private,
                Some(v) if v == "None" => MountPropagation::Private,
                Some(v) if v == "HostToContainer" => MountPropagation::HostToContainer,
                // The API server takes Bidirectional of privileged containers alone.
                Some(other) => bail!("{}.mountPropagation: {other}", wanted.at()),
            };
            let readonly = wanted.flag("readOnly")?;
            mounts.push(mount(&wanted.text("mountPath")?, path, readonly, propagation));
            wanted.end()?;
        }
        Ok(mounts)
    }

    fn security(&self, wanted: Option<Fields>) -> Result<LinuxContainerSecurityContext> {
        let mut context = LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(NamespaceMode::Node)),
            run_as_user: self.user.map(|value| Int64Value { value }),
            run_as_group: self.group.map(|value| Int64Value { value }),
            seccomp: Some(self.seccomp.clone()),
            masked_paths: MASKED.map(str::to_owned).to_vec(),
            readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
            ..LinuxContainerSecurityContext::default()
        };
        let Some(mut wanted) = wanted else { return Ok(context) };
        context.readonly_rootfs = wanted.flag("readOnlyRootFilesystem")?;
        context.no_new_privs = match wanted.maybe("allowPrivilegeEscalation") {
            None => false,
            Some(Value::Bool(allowed)) => !allowed,
            Some(other) => bail!("{}.allowPrivilegeEscalation: {other}", wanted.at()),
        };
        wanted.only("privileged", &json!(false))?;
        if let Some(mut capabilities) = wanted.maybe_object("capabilities")? {
            let add_capabilities = capabilities.texts("add")?;
            let drop_capabilities = capabilities.texts("drop")?;
            context.capabilities = Some(Capability { add_capabilities, drop_capabilities });
            capabilities.end()?;
        }
        if let Some(profile) = wanted.maybe_object("seccompProfile")? {
            context.seccomp = Some(seccomp(profile)?);
        }
        wanted.end()?;
        Ok(context)
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn mount(to: &str, from: &str, readonly: bool, propagation: MountPropagation) -> Mount {
    Mount {
        container_path: to.to_owned(),
        host_path: from.to_owned(),
        readonly,
        propagation: propagation.into(),
    }
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
    }
}

fn profile(kind: ProfileType) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into() }
}

fn seccomp(mut wanted: Fields) -> Result<SecurityProfile> {
    let kind = match wanted.text("type")?.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Unconfined" => ProfileType::Unconfined,
        other => bail!("{}.type: {other:?} cannot be translated", wanted.at()),
    };
    wanted.end()?;
    Ok(profile(kind))
}

fn whole(value: &Value) -> Result<i64> {
    value.as_i64().with_context(|| format!("{value} is no number"))
}

/// Shares of the processor follow from the request (1024 for each), a limit of memory from the limit;
/// a pod of the priority of nodes is among the last to be killed for memory.
fn resources(wanted: Option<Fields>) -> Result<LinuxContainerResources> {
    let mut resources =
        LinuxContainerResources { cpu_shares: 2, memory_limit_in_bytes: 0, oom_score_adj: -997 };
    let Some(mut wanted) = wanted else { return Ok(resources) };
    let at = wanted.at().to_owned();
    let mut requests = wanted.map("requests")?;
    if let Some(cpu) = requests.remove("cpu") {
        let milli = cpu.strip_suffix('m').and_then(|n| n.parse::<i64>().ok());
        let milli = milli.with_context(|| format!("{at}.requests.cpu: {cpu:?} is not like 10m"))?;
        resources.cpu_shares = (milli * 1024 / 1000).max(2);
    }
    // What is asked for of memory concerns the scheduler alone.
    requests.remove("memory");
    let mut limits = wanted.map("limits")?;
    if let Some(memory) = limits.remove("memory") {
        let mebi = memory.strip_suffix("Mi").and_then(|n| n.parse::<i64>().ok());
        let mebi =
            mebi.with_context(|| format!("{at}.limits.memory: {memory:?} is not like 1Mi"))?;
        resources.memory_limit_in_bytes = mebi << 20;
    }
    if let Some(other) = requests.keys().chain(limits.keys()).next() {
        bail!("{at}: {other:?} is not known here");
    }
    wanted.end()?;
    Ok(resources)
}

fn probe(mut wanted: Fields) -> Result<Probe> {
    let mut http = wanted.object("httpGet")?;
    http.only("scheme", &json!("HTTP"))?;
    let port = http.number("port", 0)?;
    let probe = Probe {
        at: (http.text("host")?, u16::try_from(port).context("a port")?),
        path: http.text("path")?,
        delay: wanted.number("initialDelaySeconds", 0)?,
        period: wanted.number("periodSeconds", 10)?,
        timeout: wanted.number("timeoutSeconds", 1)?,
        failures: wanted.number("failureThreshold", 3)?,
    };
    http.end()?;
    wanted.only("successThreshold", &json!(1))?;
    wanted.end()?;
    Ok(probe)
}
