//! The lab's control socket: what is asked of the lab itself rather than of its Kubernetes API.

use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::UnixListener;

use crate::agents::{Action, Agents};

/// Answers until the lab ends.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn serve(listener: UnixListener, agents: Arc<Agents>) -> Result<()> {
    let router = Router::new()
        .route("/agents", get(states))
        .route("/agents/{node}/{action}", post(act))
        .with_state(agents);
    axum::serve(listener, router).await.context("the lab's control socket")
}

async fn states(State(agents): State<Arc<Agents>>) -> Response {
    Json(agents.states()).into_response()
}

async fn act(
    State(agents): State<Arc<Agents>>,
    Path((node, action)): Path<(String, Action)>,
) -> Response {
    match agents.act(&node, action).await {
        Ok(state) => Json(state).into_response(),
        Err(error) => {
            let body = Json(json!({ "message": format!("{error:#}") }));
            (StatusCode::NOT_FOUND, body).into_response()
        }
    }
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
