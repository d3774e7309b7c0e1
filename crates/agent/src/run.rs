//! The process: configuration, lock, watches, loop, servers, and an end in good order.

use std::future::IntoFuture;

use anyhow::{Context, bail};
use causeway_cluster::{Cluster, Connection};
use causeway_types::NodeName;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::Settings;
use crate::engine::Engine;
use crate::lock;
use crate::options::Options;
use crate::server::{self, App};

/// Runs the agent until it is told to end by SIGTERM or SIGINT, and leaves the network as it is.
///
/// # Errors
/// When it cannot start (configuration, another agent on this node, an address that is taken), or
/// when its reconcile loop ends by a fault.
pub fn run(options: Options) -> anyhow::Result<()> {
    let settings = options.settings()?;
    start_log(settings.log_level.as_deref())?;
    let me = options.node(&settings)?;
    let _lock = lock::take(&options.paths.lock)?;
    // What happens here is little and short; a single thread keeps the agent small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(serve(&options, &settings, me));
    // Requests in progress do not hold up the end.
    runtime.shutdown_background();
    result
}

/// Logs go to standard error, with as much as RUST_LOG, the option or the configuration says.
fn start_log(level: Option<&str>) -> anyhow::Result<()> {
    let filter = match (std::env::var("RUST_LOG"), level) {
        (Ok(text), _) if !text.is_empty() => EnvFilter::try_new(text),
        (_, Some(text)) => EnvFilter::try_new(text),
        _ => EnvFilter::try_new("info"),
    };
    let filter = filter.context("log level: expected a word such as info, or TARGET=LEVEL,…")?;
    // A caller that set up a log of its own keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
    Ok(())
}

async fn serve(options: &Options, settings: &Settings, me: NodeName) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
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
    )?;
    cluster.announce(engine.shared.said());
    let mut moved = engine.shared.moved();
    let app = App {
        inbox: engine.inbox.clone(),
        shared: engine.shared.clone(),
        leavers: engine.leavers.clone(),
    };
    let socket = server::bind_unix(&paths.socket)?;
    tracing::info!(node = %me, version = env!("CARGO_PKG_VERSION"), "causeway agent");

    let local = axum::serve(socket, server::full(app.clone()));
    let local = tokio::spawn(local.into_future());
    let health = tokio::spawn(axum::serve(health, server::health(app.clone())).into_future());
    let metrics =
        metrics.map(|m| tokio::spawn(axum::serve(m, server::metrics_only(app)).into_future()));

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
    // Before the loop: it must not take the end of the watches for a change.
    drop(cluster);
    let _ = std::fs::remove_file(&paths.socket);
    drop(engine);
    tracing::info!("ended; the network stays as it is");
    result
}

fn bail_loop() -> anyhow::Result<()> {
    bail!("the reconcile loop ended by a fault; see the log")
}
