//! The unix socket, and the TCP address for health and metrics.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::engine::Shared;
use crate::inbox::{Command, Inbox, Reply};
use crate::leavers::Leavers;
use crate::policy;
use crate::run::Diagnose;
use crate::wanted::{Pods, Wanted};

/// The loop answers plugins a little earlier by itself.
const PLUGIN_PATIENCE: Duration = Duration::from_millis(1900);
/// The same for people.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the handlers need.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) inbox: Inbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) leavers: Leavers,
    pub(crate) pods: Pods,
    pub(crate) policies: Option<policy::Handle>,
    pub(crate) diagnose: Diagnose,
}

/// Everything, for the unix socket.
pub(crate) fn full(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/plan", get(plan))
        .route("/v1/script", get(script))
        .route("/v1/metrics", get(metrics))
        .route("/v1/attachments/{name}", post(attachment))
        .route("/v1/attachments/{name}/leave", post(leave))
        .route("/v1/pods/{namespace}/{name}", get(wanted))
        .route("/v1/holders/{ip}", get(holders))
        .route("/v1/policies", get(policies))
        .route("/v1/policies/summary", get(summary))
        .route("/v1/drops", get(drops))
        .route("/v1/reconcile", post(reconcile))
        .route("/v1/collect", post(collect))
        .route("/v1/finding", get(finding))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(app)
}

/// What may be seen without being root.
pub(crate) fn health(app: App) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(app)
}

/// The metrics alone, for an address off the node.
pub(crate) fn metrics_only(app: App) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(app)
}

async fn status(State(app): State<App>) -> Response {
    Json(app.shared.status()).into_response()
}

async fn plan(State(app): State<App>) -> Response {
    match ask(&app, Command::Plan, PATIENCE).await {
        Ok(plan) => Json(plan).into_response(),
        Err(why) => unavailable(why),
    }
}

#[derive(serde::Deserialize)]
struct ScriptQuery {
    #[serde(default = "yes")]
    pods: bool,
}

fn yes() -> bool {
    true
}

async fn script(State(app): State<App>, Query(query): Query<ScriptQuery>) -> Response {
    match ask(&app, |reply| Command::Script(query.pods, reply), PATIENCE).await {
        Ok(text) => text.into_response(),
        Err(why) => unavailable(why),
    }
}

async fn attachment(State(app): State<App>, Path(name): Path<String>) -> Response {
    let file = format!("{name}.json");
    match ask(&app, |reply| Command::Attachment(file, reply), PLUGIN_PATIENCE).await {
        Ok(()) => "ok\n".into_response(),
        Err(why) => unavailable(why),
    }
}

/// Answers at once: the plugin hears of the end from the kernel.
async fn leave(State(app): State<App>, Path(name): Path<String>) -> Response {
    app.leavers.put(format!("{name}.json"));
    (StatusCode::ACCEPTED, "ok\n").into_response()
}

#[derive(serde::Deserialize)]
struct PodQuery {
    uid: Option<String>,
}

async fn wanted(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<PodQuery>,
) -> Response {
    match app.pods.wanted(&namespace, &name, query.uid.as_deref()).await {
        Wanted::Address(text) => text.into_response(),
        Wanted::NotSeen(why) => (StatusCode::NOT_FOUND, format!("{why}\n")).into_response(),
        Wanted::Unknown(why) => unavailable(why),
    }
}

async fn holders(State(app): State<App>, Path(ip): Path<std::net::IpAddr>) -> Response {
    app.pods.holders(ip).into_response()
}

async fn policies(State(app): State<App>) -> Response {
    answer_of(&app, policy::Handle::status)
        .await
        .map_or_else(unavailable, |s| Json(s).into_response())
}

async fn summary(State(app): State<App>) -> Response {
    answer_of(&app, policy::Handle::summary)
        .await
        .map_or_else(unavailable, |s| Json(s).into_response())
}

async fn drops(State(app): State<App>) -> Response {
    answer_of(&app, policy::Handle::drops)
        .await
        .map_or_else(unavailable, |d| Json(d).into_response())
}

/// Puts a question to the thread of policies.
async fn answer_of<T>(
    app: &App,
    question: impl FnOnce(&policy::Handle, Reply<T>),
) -> Result<T, String> {
    let handle = app.policies.as_ref().ok_or("this agent enforces no policies")?;
    let (reply, answer) = oneshot::channel();
    question(handle, reply);
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => answer,
        _ => Err("the thread of policies does not answer".to_owned()),
    }
}

async fn reconcile(State(app): State<App>) -> Response {
    match ask(&app, Command::Reconcile, PATIENCE).await {
        Ok(()) => "ok\n".into_response(),
        Err(why) => unavailable(why),
    }
}

async fn collect(State(app): State<App>) -> Response {
    match ask(&app, Command::Collect, PATIENCE).await {
        Ok(report) => Json(report).into_response(),
        Err(why) => unavailable(why),
    }
}

/// Empty where there is none. It is looked for beside the loop and the other answers.
async fn finding(State(app): State<App>) -> Response {
    let found = tokio::task::spawn_blocking(app.diagnose).await;
    found.ok().flatten().unwrap_or_default().into_response()
}

async fn metrics(State(app): State<App>) -> Response {
    // Brings the numbers that a status counts up to date.
    app.shared.status();
    if app.policies.is_some()
        && let Ok(report) = answer_of(&app, policy::Handle::drops).await
    {
        app.shared.metrics.set_dropped(&report.packets);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.shared.metrics.text()).into_response()
}

async fn healthz(State(app): State<App>) -> Response {
    match app.shared.sick() {
        None => "ok\n".into_response(),
        Some(why) => unavailable(why),
    }
}

async fn readyz(State(app): State<App>) -> Response {
    if let Some(why) = app.shared.sick() {
        return unavailable(why);
    }
    if app.shared.ready() {
        return "ok\n".into_response();
    }
    let status = app.shared.status();
    let mut lines: Vec<String> =
        status.problems.iter().map(|p| format!("{}: {}", p.owner, p.message)).collect();
    let open = status.objects.iter().filter(|o| o.owner == "node");
    lines.extend(open.filter_map(|o| Some(format!("{}: {}", o.key, o.error.as_ref()?))));
    if lines.is_empty() {
        lines.push("the first round is not done yet".to_owned());
    }
    unavailable(lines.join("\n"))
}

fn unavailable(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

/// Puts a question to the loop.
async fn ask<T>(
    app: &App,
    command: impl FnOnce(Reply<T>) -> Command,
    patience: Duration,
) -> Result<T, String> {
    let (reply, answer) = oneshot::channel();
    app.inbox.put(command(reply));
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err("the reconcile loop has ended".to_owned()),
        Err(_) => Err(format!("no answer from the reconcile loop within {patience:?}")),
    }
}

/// A unix socket that only root and the agent's own user may talk to.
pub(crate) struct Guarded(UnixListener);

/// Makes the socket. One that a former agent left is replaced: the caller holds the node's lock.
///
/// # Errors
/// When something that is no socket is in the way, or the directory cannot be written.
pub(crate) fn bind_unix(path: &FilePath) -> anyhow::Result<Guarded> {
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.with_context(|| dir.display().to_string())?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(_) => bail!("{} exists and is no socket; remove it", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => bail!("{}: {e}", path.display()),
    }
    // Nobody can connect before the listener is served, so that the mode is right in time.
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| path.display().to_string())?;
    Ok(Guarded(listener))
}

impl axum::serve::Listener for Guarded {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if allowed(peer.uid()) => return (stream, address),
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "refused on the agent's socket"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot tell who is on the agent's socket")
                    }
                },
                Err(error) => {
                    // Out of file descriptors, most likely: others may free some.
                    tracing::warn!(%error, "agent socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn allowed(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Listens on a TCP address.
///
/// # Errors
/// Names the address, what it is for and the key that changes it.
pub(crate) async fn bind_tcp(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let hint = if e.kind() == io::ErrorKind::AddrInUse {
            "; another process has it: stop that one, or choose another address"
        } else {
            "; choose another address"
        };
        anyhow::anyhow!("cannot listen on {address}: {e}{hint} with `{key}` in the configuration")
    })
}
