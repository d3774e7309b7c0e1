//! Asking a running lab, blocking: its API and its control socket, both HTTP on unix sockets in the
//! lab's directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::spec::Dirs;

/// Longer than any answer takes that is not a watch: on a busy machine processes that are asked to end have been
/// seen to take half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status code.
    pub code: u16,
    /// The API's words.
    pub message: String,
}

/// A client of one lab.
#[derive(Clone, Debug)]
pub struct Client {
    dirs: Dirs,
    token: String,
}

/// What is sent.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    accept: &'a str,
    body: Option<(&'a str, Vec<u8>)>,
}

const JSON: &str = "application/json";

impl Client {
    /// A client of the lab of a name.
    ///
    /// # Errors
    /// When there is no such lab.
    pub fn open(name: &str) -> Result<Self> {
        let dirs = Dirs::of(name);
        let token = std::fs::read_to_string(dirs.token()).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => anyhow!(
                "there is no lab {name:?}; `causeway lab up --name {name}` makes it, `causeway lab \
                 list` shows those that run"
            ),
            _ => anyhow!("{}: {e}", dirs.token().display()),
        })?;
        Ok(Self { dirs, token: token.trim().to_owned() })
    }

    /// Reads one object, a list, or a document.
    ///
    /// # Errors
    /// When the lab does not answer, or refuses ([`Refusal`]).
    pub fn get(&self, path: &str) -> Result<Value> {
        self.get_as(path, JSON)
    }

    /// Reads in another form, such as a table.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        self.api(Ask { method: Method::GET, path, accept, body: None })
    }

    /// Creates an object.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, object: &Value) -> Result<Value> {
        let body = Some((JSON, object.to_string().into_bytes()));
        self.api(Ask { method: Method::POST, path, accept: JSON, body })
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn put(&self, path: &str, object: &Value) -> Result<Value> {
        let body = Some((JSON, object.to_string().into_bytes()));
        self.api(Ask { method: Method::PUT, path, accept: JSON, body })
    }

    /// Creates or changes an object as its owner (server-side apply).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=causeway-lab&force=true");
        let body = Some(("application/apply-patch+yaml", object.to_string().into_bytes()));
        self.api(Ask { method: Method::PATCH, path: &path, accept: JSON, body })
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.api(Ask { method: Method::DELETE, path, accept: JSON, body: None })
    }

    /// Puts a question to the lab itself rather than to its API.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn control(&self, method: Method, path: &str) -> Result<Value> {
        self.exchange(&self.dirs.control(), Ask { method, path, accept: JSON, body: None })
    }

    fn api(&self, ask: Ask<'_>) -> Result<Value> {
        self.exchange(&self.dirs.api(), ask)
    }

    fn exchange(&self, socket: &Path, ask: Ask<'_>) -> Result<Value> {
        let request = self.request(ask)?;
        let socket: PathBuf = socket.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the async runtime")?;
        let (code, bytes) = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, send(&socket, request))
                .await
                .map_err(|_| anyhow!("the lab does not answer within {PATIENCE:?}"))?
                .with_context(|| format!("ask the lab at {}", socket.display()))
        })?;
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).context("the lab's answer is no JSON")?
        };
        if code >= 300 {
            let message = value["message"].as_str().unwrap_or("refused").to_owned();
            bail!(Refusal { code, message });
        }
        Ok(value)
    }

    fn request(&self, ask: Ask<'_>) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, "localhost")
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(ACCEPT, ask.accept);
        let mut bytes = Bytes::new();
        if let Some((kind, body)) = ask.body {
            request = request.header(CONTENT_TYPE, kind);
            bytes = body.into();
        }
        request.body(Full::new(bytes)).context("the request cannot be written")
    }
}

async fn send(socket: &Path, request: Request<Full<Bytes>>) -> Result<(u16, Bytes)> {
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            anyhow!(
                "nobody listens: the lab's process is gone; `causeway lab down` clears the rest"
            )
        }
        _ => anyhow!("{e}"),
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok((code, bytes))
}
