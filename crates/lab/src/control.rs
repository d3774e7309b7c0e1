//! The lab's control socket: what is asked of the lab itself rather than of its Kubernetes API.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixListener;

use crate::agents::{Action, Agents};
use crate::api::Store;
use crate::kubelet::Kubelet;
use crate::reboot::reboot;
use crate::spec::Spec;

/// What can be asked about.
pub(crate) struct Lab {
    pub(crate) spec: Spec,
    pub(crate) agents: Agents,
    pub(crate) kubelets: BTreeMap<String, Arc<Kubelet>>,
    pub(crate) store: Store,
}

impl Lab {
    fn kubelet(&self, node: &str) -> Result<Arc<Kubelet>> {
        self.spec.check_node(node)?;
        self.kubelets.get(node).cloned().with_context(|| format!("{node} has no kubelet"))
    }
}

/// Answers until the lab ends.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn serve(listener: UnixListener, lab: Arc<Lab>) -> Result<()> {
    let router = Router::new()
        .route("/agents", get(states))
        .route("/agents/{node}/upgrade", post(upgrade))
        .route("/agents/{node}/{action}", post(act))
        .route("/clocks", get(clocks))
        .route("/changes/{resource}", get(last_change))
        .route("/nodes/{node}/reboot", post(power_cut))
        .route("/nodes/{node}/clock/{seconds}", post(set_clock))
        .route("/nodes/{node}/plugins/kill/{times}", post(kill_plugins))
        .with_state(lab);
    axum::serve(listener, router).await.context("the lab's control socket")
}

fn said<T: Serialize>(result: Result<T>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => {
            let body = Json(json!({ "message": format!("{error:#}") }));
            (StatusCode::UNPROCESSABLE_ENTITY, body).into_response()
        }
    }
}

async fn states(State(lab): State<Arc<Lab>>) -> Response {
    Json(lab.agents.states()).into_response()
}

async fn clocks(State(lab): State<Arc<Lab>>) -> Response {
    Json(lab.agents.clocks()).into_response()
}

/// When an object of a type (`pods`, `networkpolicies.networking.k8s.io`) was changed last, in nanoseconds of
/// `CLOCK_MONOTONIC`.
async fn last_change(State(lab): State<Arc<Lab>>, Path(resource): Path<String>) -> Response {
    let none = || anyhow!("nothing is known of a change of {resource}");
    said(lab.store.last_change(&resource).map(|at| json!({"at": at.as_nanos()})).ok_or_else(none))
}

async fn act(
    State(lab): State<Arc<Lab>>,
    Path((node, action)): Path<(String, Action)>,
) -> Response {
    said(lab.agents.act(&node, action).await)
}

/// The new program of an agent.
#[derive(Deserialize)]
struct To {
    to: PathBuf,
}

async fn upgrade(
    State(lab): State<Arc<Lab>>,
    Path(node): Path<String>,
    Query(To { to }): Query<To>,
) -> Response {
    said(lab.agents.upgrade(&node, &to).await)
}

async fn set_clock(
    State(lab): State<Arc<Lab>>,
    Path((node, seconds)): Path<(String, i64)>,
) -> Response {
    let dir = lab.spec.dirs().node(&node);
    said(lab.agents.set_clock(&node, &dir, seconds).await)
}

async fn kill_plugins(
    State(lab): State<Arc<Lab>>,
    Path((node, times)): Path<(String, u32)>,
) -> Response {
    said(lab.kubelet(&node).map(|kubelet| kubelet.kill_plugins(times)))
}

async fn power_cut(State(lab): State<Arc<Lab>>, Path(node): Path<String>) -> Response {
    let result = match lab.kubelet(&node) {
        Ok(kubelet) => reboot(&lab.spec, &node, &lab.agents, kubelet).await,
        Err(error) => Err(error),
    };
    said(result)
}

/// A unix socket for its owner alone. Nobody can connect before it is served, so that the mode is
/// right in time.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn bind(path: &FilePath) -> Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| path.display().to_string())?;
    Ok(listener)
}
