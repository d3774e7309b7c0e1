//! A blocking client: one connection a call, as there are few.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use crate::message::{
    Container, ContainerConfig, ContainerId, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, Empty, ListContainersResponse, ListPodSandboxResponse, PodSandbox,
    PodSandboxConfig, PodSandboxId, PodSandboxStatusRequest, PodSandboxStatusResponse,
    RunPodSandboxRequest, RuntimeCondition, StatusResponse, StopContainerRequest, VersionRequest,
    VersionResponse,
};

/// As the kubelet's `--runtime-request-timeout`.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a runtime answers in place of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status of gRPC; 5 is NOT_FOUND, 14 UNAVAILABLE.
    pub code: u32,
    /// The runtime's words.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gRPC status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

/// A client of the runtime behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of a socket; nothing is asked yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The runtime's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Name and versions of the runtime.
    ///
    /// # Errors
    /// When it does not answer, or with a [`Failure`]. This holds for all calls.
    pub fn version(&self) -> Result<VersionResponse> {
        self.call("Version", &VersionRequest { version: "v1".into() })
    }

    /// What the runtime says of itself: RuntimeReady and NetworkReady.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn status(&self) -> Result<Vec<RuntimeCondition>> {
        let answer: StatusResponse = self.call("Status", &Empty {})?;
        Ok(answer.status.context("a status without content")?.conditions)
    }

    /// Makes a sandbox with its network, and answers its ID.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn run_sandbox(&self, config: &PodSandboxConfig) -> Result<String> {
        let ask = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: PodSandboxId = self.call("RunPodSandbox", &ask)?;
        Ok(answer.pod_sandbox_id)
    }

    /// Ends everything in a sandbox and takes its network away. Again is no error.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("StopPodSandbox", &PodSandboxId { pod_sandbox_id: id.into() })?;
        Ok(())
    }

    /// Removes a sandbox and its containers.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Empty {} =
            self.call("RemovePodSandbox", &PodSandboxId { pod_sandbox_id: id.into() })?;
        Ok(())
    }

    /// State, addresses, and the JSON that the runtime has about it.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn sandbox(&self, id: &str) -> Result<PodSandboxStatusResponse> {
        let ask = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        self.call("PodSandboxStatus", &ask)
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn sandboxes(&self) -> Result<Vec<PodSandbox>> {
        let answer: ListPodSandboxResponse = self.call("ListPodSandbox", &Empty {})?;
        Ok(answer.items)
    }

    /// Makes a container in a sandbox and answers its ID.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn create(
        &self,
        sandbox: &str,
        config: &ContainerConfig,
        of: &PodSandboxConfig,
    ) -> Result<String> {
        let ask = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config.clone()),
            sandbox_config: Some(of.clone()),
        };
        let answer: ContainerId = self.call("CreateContainer", &ask)?;
        Ok(answer.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn start(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("StartContainer", &ContainerId { container_id: id.into() })?;
        Ok(())
    }

    /// Ends a container: SIGTERM, and SIGKILL after so many seconds.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn stop(&self, id: &str, seconds: i64) -> Result<()> {
        let ask = StopContainerRequest { container_id: id.into(), timeout: seconds };
        let Empty {} = self.call("StopContainer", &ask)?;
        Ok(())
    }

    /// Removes a container.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn remove(&self, id: &str) -> Result<()> {
        let Empty {} = self.call("RemoveContainer", &ContainerId { container_id: id.into() })?;
        Ok(())
    }

    /// How a container does, and the JSON that the runtime has about it.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn container(&self, id: &str) -> Result<ContainerStatusResponse> {
        let ask = ContainerStatusRequest { container_id: id.into(), verbose: true };
        self.call("ContainerStatus", &ask)
    }

    /// All containers.
    ///
    /// # Errors
    /// As [`Client::version`].
    pub fn containers(&self) -> Result<Vec<Container>> {
        let answer: ListContainersResponse = self.call("ListContainers", &Empty {})?;
        Ok(answer.containers)
    }

    fn call<A: Message, B: Message + Default>(&self, method: &str, ask: &A) -> Result<B> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the async runtime")?;
        let bytes = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, exchange(&self.socket, method, ask.encode_to_vec()))
                .await
                .map_err(|_| anyhow!("no answer within {PATIENCE:?}"))?
        });
        let bytes = bytes.with_context(|| format!("{method} at {}", self.socket.display()))?;
        B::decode(bytes).with_context(|| format!("the answer to {method}"))
    }
}

/// One call of gRPC (`grpc.github.io/grpc/core/md_doc_g_r_p_c_h_t_t_p2.html`): the message behind five
/// bytes (not compressed, length), the status in the trailers.
async fn exchange(socket: &Path, method: &str, message: Vec<u8>) -> Result<Bytes> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len())?);
    body.put_slice(&message);
    let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.freeze()))?;
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        bail!("HTTP status {}", head.status);
    }
    let collected = body.collect().await?;
    // A failure without a message has its status in the headers.
    check(collected.trailers().unwrap_or(&head.headers))?;
    let mut bytes = collected.to_bytes();
    driver.abort();
    if bytes.len() < 5 || bytes[0] != 0 {
        bail!("an answer without a message that is not compressed: {bytes:?}");
    }
    let length = usize::try_from(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]))?;
    let message = bytes.split_off(5);
    if message.len() != length {
        bail!("a message of {} bytes that should have {length}", message.len());
    }
    Ok(message)
}

fn check(trailers: &HeaderMap) -> Result<()> {
    let text = |name| trailers.get(name).and_then(|v| v.to_str().ok());
    let code = text("grpc-status").context("an answer without grpc-status")?.parse()?;
    match code {
        0 => Ok(()),
        _ => {
            Err(Failure { code, message: text("grpc-message").unwrap_or_default().to_owned() }
                .into())
        }
    }
}
