//! The process behind a lab: its Kubernetes API, its kubelets, and the agents that it keeps running.
//! It lives in the control-plane node's network, where the API belongs.

use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::NetNs;
use tokio::signal::unix::{SignalKind, signal};

use crate::agents::Agents;
use crate::api::controllers::{self, ControllersConfig, PodRange};
use crate::api::{Config, Store, StoreConfig, serve, serve_local};
use crate::control;
use crate::enter;
use crate::kubelet::Kubelet;
use crate::record::Record;
use crate::spec::{API_PORT, Dirs, OUTSIDE_PORT, Spec};

/// Runs a lab's process until it is told to end. Its standard input is the socket that listens on
/// the caller's loopback address. The calling process must have one thread.
///
/// # Errors
/// When the lab's parts cannot be started.
pub fn run(name: &str) -> Result<()> {
    let record = Record::load(name)?;
    let caller = rustix::stdio::stdin().try_clone_to_owned().context("the listening socket")?;
    let caller = TcpListener::from(caller);
    let dirs = record.spec.dirs();
    let home = NetNs::open(dirs.netns("cp")).map_err(|e| anyhow!("{e}"))?;
    // For good: everything of this process belongs into the control-plane node.
    std::mem::forget(home.enter().map_err(|e| anyhow!("{e}"))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(serve_lab(&record, caller));
    runtime.shutdown_background();
    result
}

async fn serve_lab(record: &Record, caller: TcpListener) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let spec = &record.spec;
    let dirs = spec.dirs();
    let api = start_api(spec, &dirs, caller)?;
    start_outside(&record.causeway, &dirs)?;
    let ranges = spec.cluster_cidrs().into_iter().map(|c| PodRange::new(c.net())).collect();
    let config = ControllersConfig { pod_ranges: ranges, schedule: true };
    tokio::spawn(controllers::run(api.clone(), config, std::future::pending()));
    let (nodes, served) = (spec.node_names(), spec.served());
    let mut kubelets = std::collections::BTreeMap::new();
    for node in &nodes {
        let kubelet = Kubelet::new(api.clone(), spec, node, &record.causeway);
        kubelets.insert(node.clone(), kubelet.clone());
        kubelet.register()?;
        // As nodes join one after another, so that node N has subnet N.
        wait_for_cidr(&api, node).await?;
        if !served.contains(node) {
            continue;
        }
        tokio::spawn(kubelet.clone().report_ready());
        tokio::spawn(kubelet.run_pods());
    }
    let agents = Agents::start(&record.causeway, spec);
    let lab = Arc::new(control::Lab { spec: spec.clone(), agents, kubelets, store: api });
    let control = tokio::spawn(control::serve(control::bind(&dirs.control())?, lab));
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        end = control => end.context("the lab's control socket")?,
    }
}

async fn wait_for_cidr(store: &Store, node: &str) -> Result<()> {
    for _ in 0..2000 {
        let object = store.get("nodes", "", node).map_err(|e| anyhow!("{e}"))?;
        if object["spec"]["podCIDR"].is_string() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bail!("node {node} got no pod CIDR within 2 s; see the lab's log")
}

/// Starts the API on the caller's loopback address, inside the control-plane node, and on the unix
/// socket; writes the kubeconfigs and the token.
fn start_api(spec: &Spec, dirs: &Dirs, caller: TcpListener) -> Result<Store> {
    let inside: Vec<IpAddr> =
        spec.families.list().iter().map(|f| spec.node_addr("cp", *f).addr()).collect();
    let mut hosts: Vec<String> = inside.iter().map(IpAddr::to_string).collect();
    hosts.extend(["127.0.0.1", "localhost"].map(str::to_owned));
    let config = Config { version: spec.kubernetes, ..Config::new(&spec.name, hosts)? };
    let cidr = |text: &str| text.parse().expect("a valid prefix");
    let service_cidrs = spec.families.list().iter().map(|f| match f {
        causeway_types::Family::V4 => cidr("10.96.0.0/16"),
        causeway_types::Family::V6 => cidr("fd00:10:96::/112"),
    });
    let store = Store::new(StoreConfig {
        service_cidrs: service_cidrs.collect(),
        ..StoreConfig::default()
    });
    let at_caller = caller.local_addr().context("the listening socket")?;
    let mut listeners = vec![caller];
    for ip in &inside {
        let address = SocketAddr::new(*ip, API_PORT);
        listeners.push(TcpListener::bind(address).with_context(|| format!("listen on {address}"))?);
    }
    let local = control::bind(&dirs.api())?;
    secret(&dirs.kubeconfig(), &config.kubeconfig(&format!("https://{at_caller}")))?;
    let in_lab = format!("https://{}", SocketAddr::new(inside[0], API_PORT));
    for node in spec.node_names() {
        let path = dirs.node(&node).join("etc-causeway/kubeconfig");
        secret(&path, &config.kubeconfig(&in_lab))?;
    }
    secret(&dirs.token(), config.tokens.own())?;
    tokio::spawn(serve_local(config.clone(), store.clone(), local));
    let serving = serve(config, store.clone(), listeners, std::future::pending());
    tokio::spawn(log_end("the API", serving));
    Ok(store)
}

async fn log_end<E: std::fmt::Display>(what: &str, task: impl Future<Output = Result<(), E>>) {
    if let Err(error) = task.await {
        tracing::error!("{what} ended: {error}");
    }
}

/// Writes a file that its owner alone may read; whoever sees it sees all of it.
fn secret(path: &Path, text: &str) -> Result<()> {
    let aside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&aside, path)
    };
    write().with_context(|| path.display().to_string())
}

/// The server of the world outside.
fn start_outside(causeway: &Path, dirs: &Dirs) -> Result<()> {
    let mut command = Command::new(causeway);
    command.args(["lab", "__podserver", "outside", &OUTSIDE_PORT.to_string()]);
    let ns = NetNs::open(dirs.netns("outside")).map_err(|e| anyhow!("{e}"))?;
    spawn_in(&ns, command).context("the server outside the cluster")
}

/// Starts a process of its own inside a namespace; it is reaped by the runtime.
pub(crate) fn spawn_in(ns: &NetNs, mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let runtime = tokio::runtime::Handle::current();
    let started = ns.run(move || {
        let _inside = runtime.enter();
        tokio::process::Command::from(command).spawn().map(drop)
    });
    Ok(started.map_err(|e| anyhow!("{e}"))??)
}

/// Starts the process of a lab, which goes on when the caller ends.
pub(crate) fn start(record: &Record, listener: &TcpListener) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let dirs = record.spec.dirs();
    let log =
        std::fs::File::create(dirs.log()).with_context(|| dirs.log().display().to_string())?;
    let stdin = listener.as_fd().try_clone_to_owned().context("the listening socket")?;
    let mut command = Command::new(&record.causeway);
    command
        .args(["lab", "__daemon", &record.spec.name])
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0);
    command.spawn().with_context(|| format!("run {}", record.causeway.display()))
}

/// Makes what a node finds below its fixed paths.
pub(crate) fn prepare_node(record: &Record, node: &str) -> Result<Vec<std::path::PathBuf>> {
    let dirs = record.spec.dirs();
    let made = enter::prepare(&dirs, node)?;
    let config = dirs.node(node).join("etc-causeway/config.yaml");
    std::fs::write(&config, record.spec.agent_config())
        .with_context(|| config.display().to_string())?;
    Ok(made)
}
