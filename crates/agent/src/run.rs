//! The process: configuration, lock, watches, loop, servers, and an end in good order.

use std::future::IntoFuture;
use std::time::Duration;

use anyhow::{Context, bail};
use causeway_cluster::{Cluster, Connection};
use causeway_kernel::signals;
use causeway_types::NodeName;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Settings;
use crate::engine::Engine;
use crate::lock;
use crate::log;
use crate::options::Options;
use crate::policy;
use crate::server::{self, App};
use crate::wanted::Pods;

/// Finds the most likely error of this node, in one line. It may take a second.
pub type Diagnose = fn() -> Option<String>;

/// Runs the agent until it is told to end by SIGTERM or SIGINT, and leaves the network as it is.
/// Plugins whose ADD fails ask for what `diagnose` finds.
///
/// # Errors
/// When it cannot start (configuration, another agent on this node, an address that is taken), or
/// when its reconcile loop ends by a fault.
pub fn run(options: Options, diagnose: Diagnose) -> anyhow::Result<()> {
    let settings = options.settings()?;
    log::start(options.log_level.as_deref(), settings.log_level.as_deref())?;
    let me = options.node(&settings)?;
    let _lock = lock::take(&options.paths.lock)?;
    // What happens here is little and short; a single thread keeps the agent small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(serve(&options, &settings, me, diagnose));
    // Requests in progress do not hold up the end.
    runtime.shutdown_background();
    result
}

async fn serve(
    options: &Options,
    settings: &Settings,
    me: NodeName,
    diagnose: Diagnose,
) -> anyhow::Result<()> {
    // One that came between the handler and the ear for it would be lost, and the agent never end.
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let [terminate, interrupt] =
        signals::held(&kinds.map(|kind| kind.as_raw_value()), || kinds.map(signal));
    let (mut terminate, mut interrupt) =
        (terminate.context("SIGTERM")?, interrupt.context("SIGINT")?);
    let paths = &options.paths;
    let health = server::bind_tcp(settings.health_address, "healthAddress").await?;
    let metrics = match settings.metrics_address {
        Some(address) => Some(server::bind_tcp(address, "metricsAddress").await?),
        None => None,
    };
    let connection = Connection {
        kubeconfig: settings.kubeconfig.clone(),
        host: settings.k8s_service_host.clone(),
        port: settings.k8s_service_port,
    };
    let mut cluster = Cluster::watch(connection, me.clone());
    let snapshots = cluster.snapshots.clone();
    let mut engine = Engine::start(
        me.clone(),
        settings.config.clone(),
        paths,
        snapshots,
        cluster.health.clone(),
        true,
    )?;
    cluster.announce(engine.shared.said());
    if let Some(policies) = engine.policies() {
        cluster.policies(policies.sink(), policies.ends(), policies.questions());
    }
    let drops = engine.policies().map(|policies| tokio::spawn(policy::listen(policies.clone())));
    let mut moved = engine.shared.moved();
    let app = App {
        inbox: engine.inbox.clone(),
        shared: engine.shared.clone(),
        leavers: engine.leavers.clone(),
        pods: Pods { snapshots: cluster.snapshots.clone(), health: cluster.health.clone() },
        policies: engine.policies().cloned(),
        diagnose,
    };
    let socket = server::bind_unix(&paths.socket)?;
    tracing::info!(node = %me, version = env!("CARGO_PKG_VERSION"), "causeway agent");

    let local = axum::serve(socket, server::full(app.clone()));
    let local = tokio::spawn(local.into_future());
    let health = tokio::spawn(axum::serve(health, server::health(app.clone())).into_future());
    let metrics =
        metrics.map(|m| tokio::spawn(axum::serve(m, server::metrics_only(app)).into_future()));

    let started = tokio::spawn(release_code());
    let reconnect = async {
        while moved.changed().await.is_ok() {
            cluster.reconnect();
        }
        std::future::pending().await
    };
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = &mut engine.ended => bail_loop(),
        () = reconnect => Ok(()),
    };
    for task in [Some(local), Some(health), metrics].into_iter().flatten() {
        task.abort();
    }
    drops.iter().for_each(tokio::task::JoinHandle::abort);
    started.abort();
    // Before the loop: it must not take the end of the watches for a change.
    drop(cluster);
    let _ = std::fs::remove_file(&paths.socket);
    drop(engine);
    tracing::info!("ended; the network stays as it is");
    result
}

/// Most of the program's code is for a start, or for other commands than this; of the rest little runs again.
async fn release_code() {
    // A start takes less than a second, and where the cluster is very large some.
    for after in [2, 30] {
        tokio::time::sleep(Duration::from_secs(after)).await;
        if let Err(error) = causeway_kernel::memory::release_code() {
            tracing::debug!("code that has run stays in memory: {error}");
        }
    }
}

fn bail_loop() -> anyhow::Result<()> {
    bail!("the reconcile loop ended by a fault; see the log")
}
