//! What a kubelet does on a machine: the agent's pod, as the plain manifest has it, and others.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_lab::Spec;
use causeway_types::Family;
use serde_json::Value;

use crate::containerd;
use crate::machine::Machine;
use crate::message::{
    ContainerConfig, ContainerState, PodSandbox, PodSandboxMetadata, PodSandboxState,
};
use crate::{Client, Node, Plan, PlannedContainer, Pod, Probe, Projected, translate, within};

const PATIENCE: Duration = Duration::from_secs(30);

/// The plain manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The object of that kind.
    pub daemon_set: Value,
    config: BTreeMap<String, String>,
}

impl Manifest {
    /// As it is in the sources; the ConfigMap with lines of the caller's.
    ///
    /// # Errors
    /// When it is not the manifest that this knows.
    pub fn load(lines: &[&str]) -> Result<Self> {
        let path = xtask::chart::root().join("deploy/causeway.yaml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let objects = causeway_lab::documents(&text)?;
        let of = |kind: &str| {
            let found = objects.iter().find(|o| o["kind"] == kind).cloned();
            found.with_context(|| format!("no {kind} in {}", path.display()))
        };
        let mut config: BTreeMap<String, String> =
            serde_json::from_value(of("ConfigMap")?["data"].clone())?;
        let file = config.get_mut("config.yaml").context("no config.yaml in the ConfigMap")?;
        for line in lines {
            file.push_str(&format!("{line}\n"));
        }
        Ok(Self { daemon_set: of("DaemonSet")?, config })
    }

    /// The image that its containers have.
    ///
    /// # Errors
    /// When they have none.
    pub fn image(&self) -> Result<&str> {
        let containers = &self.daemon_set["spec"]["template"]["spec"]["containers"];
        containers[0]["image"].as_str().context("no image in the DaemonSet")
    }
}

/// The agent's pod on a machine.
#[derive(Debug)]
pub struct Agent {
    plan: Plan,
    sandbox: String,
    /// ID and attempt.
    container: (String, u32),
}

/// When a pod came how far.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// It had its sandbox.
    pub sandbox: Instant,
    /// The last init container had ended, and that was known.
    pub init: Instant,
    /// The agent's container was started.
    pub main: Instant,
}

impl Agent {
    /// Makes the pod, and waits for its init containers. `cgroup`: what its control groups are made below.
    ///
    /// # Errors
    /// What in the manifest is not known here, and the runtime's.
    pub fn start(
        machine: &Machine,
        client: &Client,
        spec: &Spec,
        manifest: &Manifest,
        cgroup: &str,
    ) -> Result<(Self, Progress)> {
        let name = machine.name();
        let uid = format!("agent-{name}");
        let node = Node {
            name: name.to_owned(),
            address: spec.node_addr(name, Family::V4).addr().to_string(),
            api: (spec.node_addr("cp", Family::V4).addr().to_string(), 6443),
            pod_dir: format!("/var/lib/kubelet/pods/{uid}"),
            uid,
            cgroup: cgroup.to_owned(),
        };
        let plan = translate(&manifest.daemon_set, &node)?;
        for item in &plan.projected {
            project(machine, spec, manifest, item)?;
        }
        let mut agent = Self { plan, sandbox: String::new(), container: Default::default() };
        let progress = agent.again(client).with_context(|| containerd::said(machine))?;
        Ok((agent, progress))
    }

    /// A sandbox and containers: the first, or after a boot the next.
    ///
    /// # Errors
    /// The runtime's, and an init container that fails.
    pub fn again(&mut self, client: &Client) -> Result<Progress> {
        if !self.sandbox.is_empty() {
            client.stop_sandbox(&self.sandbox)?;
            client.remove_sandbox(&self.sandbox)?;
            if let Some(metadata) = &mut self.plan.sandbox.metadata {
                metadata.attempt += 1;
            }
        }
        self.sandbox = client.run_sandbox(&self.plan.sandbox)?;
        let sandbox = Instant::now();
        for init in &self.plan.init {
            let id = self.create(client, init, 0)?;
            let status = loop {
                let status = client.container(&id)?.status.context("a status")?;
                if status.state == i32::from(ContainerState::Exited) {
                    break status;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            if status.exit_code != 0 {
                bail!("an init container ended with {}: {}", status.exit_code, status.message);
            }
        }
        let init = Instant::now();
        self.container = (self.create(client, self.main()?, 0)?, 0);
        Ok(Progress { sandbox, init, main: Instant::now() })
    }

    /// The container of the agent: there is one.
    fn main(&self) -> Result<&PlannedContainer> {
        match self.plan.containers.as_slice() {
            [main] => Ok(main),
            other => bail!("{} containers", other.len()),
        }
    }

    fn create(&self, client: &Client, of: &PlannedContainer, attempt: u32) -> Result<String> {
        let mut config = of.config.clone();
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = attempt;
        }
        start(client, &self.sandbox, &config, &self.plan)
    }

    /// Starts the container anew when it has ended, as a kubelet does. Answers whether it had.
    ///
    /// # Errors
    /// The runtime's.
    pub fn keep(&mut self, client: &Client) -> Result<bool> {
        let (id, attempt) = &self.container;
        let status = client.container(id)?.status.context("a status")?;
        if status.state == i32::from(ContainerState::Running) {
            return Ok(false);
        }
        let next = attempt + 1;
        let id = self.create(client, self.main()?, next)?;
        self.container = (id, next);
        Ok(true)
    }

    /// Its process, as the machine counts.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, client: &Client) -> Result<u64> {
        let answer = client.container(&self.container.0)?;
        let info = answer.info.get("info").context("no info")?;
        let info: Value = serde_json::from_str(info)?;
        info["pid"].as_u64().context("no process")
    }

    /// Waits until its readiness probe succeeds; the liveness probe must then do so, too.
    ///
    /// # Errors
    /// When it does not: with the end of its log.
    pub fn ready(&self, machine: &Machine) -> Result<()> {
        within("the agent is ready", PATIENCE, || {
            self.probe(machine).with_context(|| self.said(machine))
        })?;
        ask(machine, self.main()?.liveness.as_ref().context("no liveness probe")?)
    }

    /// Asks what its readiness probe asks.
    ///
    /// # Errors
    /// When it is not ready.
    pub fn probe(&self, machine: &Machine) -> Result<()> {
        ask(machine, self.main()?.readiness.as_ref().context("no readiness probe")?)
    }

    /// The end of its log.
    pub fn said(&self, machine: &Machine) -> String {
        let file = format!("{}/agent.log", self.plan.sandbox.log_directory);
        let text = fs::read_to_string(machine.path(&file)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

fn start(client: &Client, sandbox: &str, config: &ContainerConfig, of: &Plan) -> Result<String> {
    let id = client.create(sandbox, config, &of.sandbox)?;
    client.start(&id)?;
    Ok(id)
}

/// A probe by HTTP: any answer from 200 to 399 is a success.
fn ask(machine: &Machine, probe: &Probe) -> Result<()> {
    use std::io::{Read, Write};
    let to = format!("{}:{}", probe.at.0, probe.at.1).parse()?;
    let timeout = Duration::from_secs(probe.timeout.unsigned_abs());
    let answer = causeway_lab::inside(&machine.ns(), || {
        let mut stream = std::net::TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n", probe.path)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    match answer.split(' ').nth(1) {
        Some(code) if code.starts_with('2') || code.starts_with('3') => Ok(()),
        _ => bail!("{} answers {answer}", probe.path),
    }
}

/// Makes what a container finds mounted.
fn project(machine: &Machine, spec: &Spec, manifest: &Manifest, item: &Projected) -> Result<()> {
    match item {
        Projected::ConfigMap { name, dir } => {
            ensure!(name == "causeway", "no ConfigMap {name:?}");
            files(&machine.path(dir), &manifest.config)?;
        }
        Projected::ServiceAccount { name, dir } => {
            ensure!(name == "causeway", "no service account {name:?}");
            let line = format!(
                "sed -n 's/.*certificate-authority-data: //p' {} | base64 -d",
                spec.dirs().kubeconfig().display()
            );
            let ca = Command::new("sh").args(["-c", &line]).output()?.stdout;
            let account = BTreeMap::from([
                ("token".to_owned(), fs::read_to_string(spec.dirs().token())?),
                ("ca.crt".to_owned(), String::from_utf8(ca)?),
                ("namespace".to_owned(), "kube-system".to_owned()),
            ]);
            files(&machine.path(dir), &account)?;
        }
        Projected::Message { file } => {
            let file = machine.path(file);
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(file, "")?;
        }
        Projected::Dir { dir, create: true } => drop(machine.sh(&format!("mkdir -p {dir}"))?),
        Projected::Dir { dir, create: false } => drop(machine.sh(&format!("test -d {dir}"))?),
    }
    Ok(())
}

/// A volume of files as a kubelet writes it: by links that are exchanged when one changes.
fn files(dir: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    use std::os::unix::fs::symlink;
    fs::create_dir_all(dir.join("..1"))?;
    symlink("..1", dir.join("..data"))?;
    for (name, text) in files {
        fs::write(dir.join("..1").join(name), text)?;
        symlink(format!("..data/{name}"), dir.join(name))?;
    }
    Ok(())
}

/// All sandboxes of a pod.
fn sandboxes_of(client: &Client, pod: &Pod) -> Result<Vec<PodSandbox>> {
    let uid = |m: &Option<PodSandboxMetadata>| m.as_ref().map(|m| m.uid.clone());
    let mine = uid(&pod.sandbox().metadata);
    let mut all = client.sandboxes()?;
    all.retain(|s| uid(&s.metadata) == mine);
    Ok(all)
}

/// Takes away all that there is of a pod.
///
/// # Errors
/// The runtime's; the next time may succeed.
pub fn end(client: &Client, pod: &Pod) -> Result<()> {
    for sandbox in sandboxes_of(client, pod)? {
        client.stop_sandbox(&sandbox.id)?;
        client.remove_sandbox(&sandbox.id)?;
    }
    Ok(())
}

/// A pod that has a sandbox.
#[derive(Clone, Debug)]
pub struct Running {
    /// The pod.
    pub pod: Pod,
    /// Its sandbox.
    pub id: String,
    /// Its addresses, in the order in which the runtime tells them.
    pub ips: Vec<IpAddr>,
    /// Its network namespace, as the test reaches it.
    pub ns: PathBuf,
}

impl Running {
    /// Makes a pod's sandbox.
    ///
    /// # Errors
    /// The runtime's.
    pub fn run(machine: &Machine, client: &Client, pod: &Pod) -> Result<Self> {
        let id = client.run_sandbox(pod.sandbox())?;
        Self::find(machine, client, pod, id)
    }

    /// Sees to it that a pod has a sandbox, as a kubelet does over and over: one that is ready stays, what
    /// else there is of the pod is stopped and removed, and the next has the next number.
    ///
    /// # Errors
    /// The runtime's; the next time may succeed.
    pub fn sync(machine: &Machine, client: &Client, pod: &Pod) -> Result<Self> {
        let mut of_pod = sandboxes_of(client, pod)?;
        let ready = of_pod.iter().position(|s| s.state == i32::from(PodSandboxState::Ready));
        let ready = ready.map(|at| of_pod.remove(at));
        let attempt = |s: &PodSandbox| s.metadata.as_ref().map_or(0, |m| m.attempt + 1);
        let next = of_pod.iter().map(attempt).max().unwrap_or(0);
        for old in &of_pod {
            client.stop_sandbox(&old.id)?;
            client.remove_sandbox(&old.id)?;
        }
        match ready {
            Some(ready) => Self::find(machine, client, pod, ready.id),
            None => Self::run(machine, client, &pod.clone().attempt(next)),
        }
    }

    fn find(machine: &Machine, client: &Client, pod: &Pod, id: String) -> Result<Self> {
        let answer = client.sandbox(&id)?;
        let status = answer.status.context("a status")?;
        if status.state != i32::from(PodSandboxState::Ready) {
            bail!("{} is not ready", pod.name());
        }
        let network = status.network.context("a network")?;
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let ips = std::iter::once(network.ip).chain(more).map(|ip| Ok(ip.parse()?));
        let info: Value = serde_json::from_str(&answer.info["info"])?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().cloned();
        let namespaces = namespaces.unwrap_or_default();
        let ns = namespaces.iter().find(|n| n["type"] == "network");
        let ns = ns.and_then(|n| n["path"].as_str()).context("a namespace's path")?;
        // Debian's /var/run is a link to /run.
        let ns = machine.path(ns.trim_start_matches("/var"));
        Ok(Self { pod: pod.clone(), id, ips: ips.collect::<Result<_>>()?, ns })
    }

    /// Starts a server of port 8080 in it, which says its name and who asks.
    ///
    /// # Errors
    /// The runtime's.
    pub fn serve(&self, client: &Client, image: &str) -> Result<()> {
        let command = ["/causeway", "lab", "__podserver", self.pod.name(), "8080"];
        let config = self.pod.container("server", image, &command);
        let id = client.create(&self.id, &config, self.pod.sandbox())?;
        client.start(&id)
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip(&self, family: Family) -> Result<IpAddr> {
        let found = self.ips.iter().copied().find(|ip| Family::of(*ip) == family);
        found.with_context(|| format!("{self:?} has no {family}"))
    }
}
