//! What a kubelet does, as far as a network can tell: it registers the node, says when its network
//! is ready, and makes and ends pods by running the real plugins through the CNI protocol.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_cni_spec::exec::{Exec, Output, run_watched};
use causeway_cni_spec::runtime::{Attachment, Runtime, load_dir};
use causeway_kernel::netns::{self, NetNs};
use causeway_types::names;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::api::{
    DeleteOptions, Event, FieldSelector, Key, ListOptions, Part, Store, WatchOptions, timestamp,
};
use crate::enter::wrapper;
use crate::procs;
use crate::spec::{Dirs, KubernetesVersion, Spec};

/// Runs plugins inside the node.
#[derive(Clone, Debug)]
struct InNode {
    causeway: PathBuf,
    lab: String,
    node: String,
    /// How many of the next plugins are to be killed.
    to_kill: Arc<AtomicU32>,
}

/// A plugin's work takes a few milliseconds, getting into the node one or two: a plugin that is to
/// be killed dies at a random moment of these.
const LIFE: Duration = Duration::from_millis(12);

impl InNode {
    /// Whether the plugin that is about to run is to be killed; it counts as one.
    fn doomed(&self) -> bool {
        let less = |n: u32| n.checked_sub(1);
        self.to_kill.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

/// Kills a process at a random moment of its life, unless it has ended by then.
fn cut_short(child: &std::process::Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // It is not waited for yet, so that the number is still its own; the descriptor stays its own.
    let Some(fd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    let after = LIFE / 256 * u32::from(crate::api::random_bytes::<1>()[0]);
    std::thread::spawn(move || {
        std::thread::sleep(after);
        let _ = pidfd_send_signal(&fd, Signal::KILL);
    });
}

impl Exec for InNode {
    fn run(&self, binary: &Path, env: &[(String, String)], stdin: &[u8]) -> io::Result<Output> {
        let mut command = wrapper(&self.causeway, &self.lab, &self.node);
        command.arg(binary).env_clear().envs(env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let doomed = self.doomed();
        run_watched(&mut command, stdin, |child| {
            if doomed {
                cut_short(child);
            }
        })
    }
}

/// One node's kubelet.
#[derive(Debug)]
pub(crate) struct Kubelet {
    store: Store,
    node: String,
    dirs: Dirs,
    addresses: Vec<IpAddr>,
    causeway: PathBuf,
    runtime: Runtime<InNode>,
    status_delay: Duration,
    kubernetes: KubernetesVersion,
    to_kill: Arc<AtomicU32>,
    /// The sandboxes that each pod (by UID) has had so far. Each is a container of its own.
    sandboxes: Mutex<HashMap<String, u32>>,
    /// Held while a pod is made or ended, and alone while the node reboots.
    power: RwLock<()>,
}

/// How often a node that is not ready looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the plugins of a ready node are asked whether they could attach a pod.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Pods that failed to start are tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

impl Kubelet {
    pub(crate) fn new(store: Store, spec: &Spec, node: &str, causeway: &Path) -> Arc<Self> {
        let dirs = spec.dirs();
        let to_kill = Arc::new(AtomicU32::new(0));
        let exec = InNode {
            causeway: causeway.to_owned(),
            lab: spec.name.clone(),
            node: node.to_owned(),
            to_kill: to_kill.clone(),
        };
        let cache = dirs.node(node).join("cni-cache");
        Arc::new(Self {
            store,
            node: node.to_owned(),
            addresses: spec
                .families
                .list()
                .iter()
                .map(|f| spec.node_addr(node, *f).addr())
                .collect(),
            runtime: Runtime::new(exec, vec![dirs.bin()], cache),
            dirs,
            causeway: causeway.to_owned(),
            status_delay: Duration::from_millis(spec.status_delay_ms),
            kubernetes: spec.kubernetes,
            to_kill,
            sandboxes: Mutex::default(),
            power: RwLock::default(),
        })
    }

    /// Creates the Node object, not ready yet.
    pub(crate) fn register(&self) -> Result<()> {
        let role = if self.node == "cp" { "control-plane" } else { "worker" };
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node, "labels": {
                "kubernetes.io/hostname": self.node,
                "kubernetes.io/os": "linux",
                format!("node-role.kubernetes.io/{role}"): "",
            }},
            "spec": {},
            "status": {
                "addresses": self.addresses(),
                "capacity": {"cpu": "1", "memory": "1Gi", "pods": "110"},
                "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "110"},
                "nodeInfo": {
                    "kubeletVersion": self.kubernetes.release(), "osImage": "Causeway lab",
                    "containerRuntimeVersion": "lab://1", "operatingSystem": "linux",
                },
                "conditions": [condition("Ready", false, "KubeletNotReady", NOT_READY)],
            },
        });
        if self.node == "cp" {
            node["spec"]["taints"] =
                json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
        }
        self.store.create("nodes", "", node, false).map_err(|e| anyhow!("{e:?}"))?;
        Ok(())
    }

    fn addresses(&self) -> Value {
        let all = self.addresses.iter().map(|a| json!({"type": "InternalIP", "address": a}));
        all.chain([json!({"type": "Hostname", "address": self.node})]).collect()
    }

    fn conf_dir(&self) -> PathBuf {
        self.dirs.node(&self.node).join("etc-cni/net.d")
    }

    /// Why the node's network is not ready: no configuration list yet, or a plugin that says so
    /// (STATUS). As container runtimes ask.
    fn not_ready(&self) -> Option<String> {
        match load_dir(&self.conf_dir()) {
            Ok(None) => Some(NOT_READY.to_owned()),
            Ok(Some((_, list))) => {
                self.runtime.status(&list).err().map(|e| format!("{NETWORK_NOT_READY}{e}"))
            }
            Err(error) => Some(format!("{NETWORK_NOT_READY}{error}")),
        }
    }

    /// Keeps the Node's condition Ready true to its network. A Node that somebody deleted is not
    /// registered again: a kubelet does that when it starts.
    pub(crate) async fn report_ready(self: Arc<Self>) {
        loop {
            let kubelet = self.clone();
            let Ok(why_not) = tokio::task::spawn_blocking(move || kubelet.not_ready()).await else {
                return;
            };
            let pause = if why_not.is_none() { STATUS_EVERY } else { LOOK_EVERY };
            let new = match why_not {
                None => condition("Ready", true, "KubeletReady", "network is ready"),
                Some(why) => condition("Ready", false, "KubeletNotReady", &why),
            };
            if let Ok(node) = self.store.get("nodes", "", &self.node)
                && !list(&node["status"]["conditions"]).iter().any(|c| says_the_same(c, &new))
            {
                let key = Key::new("", &self.node);
                let set = self.store.modify("nodes", &key, Part::Status, |node| {
                    set_condition(&mut node["status"]["conditions"], new);
                });
                if let Err(e) = set {
                    tracing::warn!("{}: cannot say whether it is ready: {e:?}", self.node);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The pods of this node.
    fn mine(&self) -> FieldSelector {
        FieldSelector::equals("spec.nodeName", &self.node)
    }

    /// Makes and ends the node's pods for ever.
    pub(crate) async fn run_pods(self: Arc<Self>) {
        let mut running: HashMap<String, tokio::sync::mpsc::UnboundedSender<Value>> =
            HashMap::new();
        loop {
            let options = WatchOptions { fields: self.mine(), ..WatchOptions::default() };
            let Ok(mut watch) = self.store.watch("pods", "", options) else { return };
            while let Some(event) = watch.next().await {
                let (Event::Added(pod) | Event::Modified(pod) | Event::Deleted(pod)) = event else {
                    continue;
                };
                let uid = text(&pod, "/metadata/uid").to_owned();
                let worker = running.entry(uid).or_insert_with(|| {
                    let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
                    tokio::spawn(self.clone().pod_worker(rx));
                    tx
                });
                // A worker ends after its pod; nothing comes for that pod any more.
                let _ = worker.send((*pod).clone());
                running.retain(|_, tx| !tx.is_closed());
            }
        }
    }

    /// One pod's life, one step at a time.
    async fn pod_worker(self: Arc<Self>, mut news: tokio::sync::mpsc::UnboundedReceiver<Value>) {
        let Some(mut pod) = news.recv().await else { return };
        loop {
            while let Ok(newer) = news.try_recv() {
                pod = newer;
            }
            let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
            let kubelet = self.clone();
            let now = pod.clone();
            let step = tokio::task::spawn_blocking(move || match deleted {
                true => kubelet.end(&now).map(|()| true),
                false => kubelet.start(&now).map(|()| false),
            });
            let over = match step.await {
                Ok(Ok(over)) => over,
                Ok(Err(error)) => {
                    self.complain(&pod, &error);
                    if let Ok(newer) = tokio::time::timeout(RETRY, news.recv()).await {
                        match newer {
                            Some(newer) => pod = newer,
                            None => return,
                        }
                    }
                    continue;
                }
                Err(_) => return,
            };
            if over {
                return;
            }
            match news.recv().await {
                Some(newer) => pod = newer,
                None => return,
            }
        }
    }

    fn start(&self, pod: &Value) -> Result<()> {
        let _power = self.power.read().unwrap_or_else(PoisonError::into_inner);
        if text(pod, "/status/phase") == "Running" {
            return Ok(());
        }
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let host_network = pod["spec"]["hostNetwork"].as_bool().unwrap_or(false);
        let ips = match host_network {
            true => self.addresses.clone(),
            false => self.attach(pod, namespace, name)?,
        };
        std::thread::sleep(self.status_delay);
        self.running(pod, &ips)
    }

    fn attachment(&self, pod: &Value) -> Attachment {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let uid = text(pod, "/metadata/uid");
        // A container's ID is 64 hex digits; a pod's UID has 32.
        let sandbox = self.sandboxes(|all| all.get(uid).copied().unwrap_or_default());
        let id = format!("{}{sandbox:032x}", uid.replace('-', ""));
        let netns = self.dirs.pod_netns(&self.node, namespace, name);
        // As containerd and CRI-O do.
        let annotations = match &pod["metadata"]["annotations"] {
            Value::Null => json!({}),
            some => some.clone(),
        };
        Attachment::new(id, netns, "eth0")
            .for_pod(namespace, name, uid)
            .with_capability(names::ANNOTATIONS_CAPABILITY, annotations)
    }

    fn sandboxes<T>(&self, look: impl FnOnce(&mut HashMap<String, u32>) -> T) -> T {
        look(&mut self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next plugins that run, so many, are killed at a random moment.
    pub(crate) fn kill_plugins(&self, times: u32) {
        self.to_kill.store(times, Ordering::SeqCst);
    }

    /// Lets the node go down and come back while no pod is made or ended, then starts its pods again:
    /// their sandboxes are gone, and nobody ended them.
    ///
    /// # Errors
    /// Those of `reboot`.
    pub(crate) fn rebooted(&self, reboot: impl FnOnce() -> Result<()>) -> Result<()> {
        let _alone = self.power.write().unwrap_or_else(PoisonError::into_inner);
        reboot()?;
        let node = Key::new("", &self.node);
        let said = self.store.modify("nodes", &node, Part::Status, |node| {
            node["status"]["addresses"] = self.addresses();
        });
        said.map_err(|e| anyhow!("{e:?}"))?;
        let options = ListOptions { fields: self.mine(), ..ListOptions::default() };
        let pods = self.store.list("pods", "", &options).map_err(|e| anyhow!("{e:?}"))?;
        for pod in pods.items {
            let key = Key::new(text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"));
            let forgotten = self.store.modify("pods", &key, Part::Status, |pod| {
                let status = &mut pod["status"];
                status["phase"] = json!("Pending");
                if let Some(status) = status.as_object_mut() {
                    for gone in ["podIP", "podIPs", "containerStatuses"] {
                        status.remove(gone);
                    }
                }
                for kind in ["ContainersReady", "Ready"] {
                    let new = condition(kind, false, "SandboxChanged", "the node has booted");
                    set_condition(&mut status["conditions"], new);
                }
            });
            match forgotten {
                Err(e) if e.code != 404 => bail!("{e:?}"),
                _ => {}
            }
        }
        Ok(())
    }

    fn attach(&self, pod: &Value, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
        let path = self.dirs.pod_netns(&self.node, namespace, name);
        let (_, list) = load_dir(&self.conf_dir())
            .map_err(|e| anyhow!("{e}"))?
            .context("network is not ready: no configuration list in /etc/cni/net.d")?;
        if path.exists() {
            // Left by an attempt that failed: begin anew.
            self.detach(pod, &path)?;
        }
        let uid = text(pod, "/metadata/uid").to_owned();
        self.sandboxes(|all| *all.entry(uid).or_default() += 1);
        let attachment = self.attachment(pod);
        let ns = netns::create_named(&path).map_err(|e| anyhow!("{e}"))?;
        ns.run(netns::loopback_up).map_err(|e| anyhow!("{e}"))?.map_err(|e| anyhow!("{e}"))?;
        let result = match self.runtime.add(&list, &attachment) {
            Ok(result) => result,
            Err(error) => {
                // As container runtimes do; what this leaves, the next sandbox does not know.
                let _ = self.runtime.del(&list, &attachment);
                let _ = netns::delete_named(&path);
                bail!("plugin: {error}");
            }
        };
        self.serve(pod, name, &ns)?;
        Ok(result.container_ips().map(|ip| ip.address.addr()).collect())
    }

    /// Starts the pod's server in its namespace.
    fn serve(&self, pod: &Value, name: &str, ns: &NetNs) -> Result<()> {
        let mut ports: Vec<String> = list(&pod["spec"]["containers"])
            .iter()
            .flat_map(|c| list(&c["ports"]))
            .filter_map(|p| p["containerPort"].as_u64())
            .map(|p| p.to_string())
            .collect();
        if ports.is_empty() {
            ports.push("8080".into());
        }
        ports.sort();
        ports.dedup();
        let mut command = Command::new(&self.causeway);
        command.args(["lab", "__podserver", &format!("{name} on {}", self.node)]).args(&ports);
        crate::daemon::spawn_in(ns, command).context("start the pod")
    }

    fn detach(&self, pod: &Value, path: &Path) -> Result<()> {
        procs::end_all(&[path.to_owned()]);
        if let Some((_, list)) = load_dir(&self.conf_dir()).map_err(|e| anyhow!("{e}"))? {
            let attachment = self.attachment(pod);
            self.runtime.del(&list, &attachment).map_err(|e| anyhow!("plugin: {e}"))?;
        }
        netns::delete_named(path).map_err(|e| anyhow!("{e}"))
    }

    fn end(&self, pod: &Value) -> Result<()> {
        let _power = self.power.read().unwrap_or_else(PoisonError::into_inner);
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        if !pod["spec"]["hostNetwork"].as_bool().unwrap_or(false) {
            self.detach(pod, &self.dirs.pod_netns(&self.node, namespace, name))?;
            self.sandboxes(|all| all.remove(text(pod, "/metadata/uid")));
        }
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        match self.store.delete("pods", &Key::new(namespace, name), &options) {
            Ok(_) => Ok(()),
            Err(e) if e.code == 404 => Ok(()),
            Err(e) => Err(anyhow!("{e:?}")),
        }
    }

    /// Writes the status as a kubelet does once the containers run.
    fn running(&self, pod: &Value, ips: &[IpAddr]) -> Result<()> {
        let key = Key::new(text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let now = timestamp();
        let containers: Vec<Value> = list(&pod["spec"]["containers"])
            .iter()
            .map(|c| {
                json!({"name": c["name"], "image": c["image"], "imageID": "", "ready": true,
                    "started": true, "restartCount": 0, "state": {"running": {"startedAt": now}}})
            })
            .collect();
        let changed = self.store.modify("pods", &key, Part::Status, |pod| {
            let status = &mut pod["status"];
            status["phase"] = json!("Running");
            status["hostIP"] = json!(self.addresses.first());
            status["hostIPs"] =
                self.addresses.iter().map(|a| json!({"ip": a})).collect::<Vec<_>>().into();
            status["podIP"] = json!(ips.first());
            status["podIPs"] = ips.iter().map(|a| json!({"ip": a})).collect::<Vec<_>>().into();
            status["startTime"] = json!(now);
            status["containerStatuses"] = containers.into();
            if let Some(status) = status.as_object_mut() {
                status.remove("message");
                status.remove("reason");
            }
            for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
                set_condition(&mut status["conditions"], condition(kind, true, "", ""));
            }
        });
        match changed {
            Ok(_) => Ok(()),
            // Deleted meanwhile: the next event says so.
            Err(e) if e.code == 404 => Ok(()),
            Err(e) => Err(anyhow!("{e:?}")),
        }
    }

    /// A pod that cannot start says why, in its status and as an Event.
    fn complain(&self, pod: &Value, error: &anyhow::Error) {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let message = format!("{error:#}");
        tracing::warn!("{}: pod {namespace}/{name}: {message}", self.node);
        let _ = self.store.modify("pods", &Key::new(namespace, name), Part::Status, |pod| {
            pod["status"]["message"] = json!(message);
            pod["status"]["reason"] = json!("FailedCreatePodSandBox");
        });
        let now = timestamp();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{name}."), "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace,
                "name": name, "uid": pod["metadata"]["uid"]},
            "reason": "FailedCreatePodSandBox", "message": message, "type": "Warning",
            "source": {"component": "kubelet", "host": self.node},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        let _ = self.store.create("events", namespace, event, false);
    }
}

const NETWORK_NOT_READY: &str = "container runtime network not ready: ";
const NOT_READY: &str =
    "container runtime network not ready: no configuration list in /etc/cni/net.d yet";

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Value {
    let now = timestamp();
    json!({"type": kind, "status": if status { "True" } else { "False" }, "reason": reason,
        "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now})
}

fn says_the_same(one: &Value, other: &Value) -> bool {
    ["type", "status", "message"].iter().all(|field| one[field] == other[field])
}

fn set_condition(conditions: &mut Value, new: Value) {
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|c| c["type"] != new["type"]);
        list.push(new);
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
