//! Asking a running agent, for the command line: HTTP/1 on its unix socket, blocking.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::policy::{DropReport, PolicyStatus, PolicySummary};
use crate::status::{CollectReport, PlanReport, Status};

/// Longer than any answer of a healthy agent takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's status.
///
/// # Errors
/// When no agent answers at the socket.
pub fn status(socket: &Path) -> anyhow::Result<Status> {
    json(socket, "GET", "/v1/status")
}

/// The policies that are enforced on the node.
///
/// # Errors
/// When no agent answers.
pub fn policies(socket: &Path) -> anyhow::Result<PolicyStatus> {
    json(socket, "GET", "/v1/policies")
}

/// How much is enforced on the node: for whoever asks again and again.
///
/// # Errors
/// When no agent answers.
pub fn policy_summary(socket: &Path) -> anyhow::Result<PolicySummary> {
    json(socket, "GET", "/v1/policies/summary")
}

/// What policies dropped on the node.
///
/// # Errors
/// When no agent answers.
pub fn drops(socket: &Path) -> anyhow::Result<DropReport> {
    json(socket, "GET", "/v1/drops")
}

/// What the agent would change now.
///
/// # Errors
/// When no agent answers, or it knows too little to plan (its answer says what).
pub fn plan(socket: &Path) -> anyhow::Result<PlanReport> {
    json(socket, "GET", "/v1/plan")
}

/// The node's desired network as a shell script, with or without the pods' part.
///
/// # Errors
/// As [`plan`].
pub fn script(socket: &Path, pods: bool) -> anyhow::Result<String> {
    String::from_utf8(request(socket, "GET", &format!("/v1/script?pods={pods}"))?)
        .context("the agent's answer is no text")
}

/// Makes the agent look at everything again, and waits for it.
///
/// # Errors
/// When no agent answers.
pub fn reconcile(socket: &Path) -> anyhow::Result<()> {
    request(socket, "POST", "/v1/reconcile").map(drop)
}

/// Makes the agent look once for leases that nobody needs any more. One that it finds at two looks
/// in a row is released.
///
/// # Errors
/// When no agent answers.
pub fn collect(socket: &Path) -> anyhow::Result<CollectReport> {
    json(socket, "POST", "/v1/collect")
}

fn json<T: DeserializeOwned>(socket: &Path, method: &str, path: &str) -> anyhow::Result<T> {
    serde_json::from_slice(&request(socket, method, path)?).context(
        "the agent's answer has another form than expected; are its version and this one the same?",
    )
}

/// One request; the body of a successful answer.
///
/// # Errors
/// When no agent answers, or with the agent's words when it refuses.
pub fn request(socket: &Path, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let answer = exchange(socket, method, path).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "; is `causeway agent` running on this node?"
            }
            io::ErrorKind::PermissionDenied => "; only root may ask",
            _ => "",
        };
        anyhow::anyhow!("agent socket {}: {e}{hint}", socket.display())
    })?;
    let (code, body) = split(&answer).context("the agent's answer is no HTTP")?;
    if code != 200 {
        bail!("the agent answers {code}: {}", String::from_utf8_lossy(body).trim());
    }
    Ok(body.to_vec())
}

fn exchange(socket: &Path, method: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: causeway\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the agent closed the connection without an answer",
        ));
    }
    Ok(answer)
}

/// Status code and body. The agent gives every body a length, so none is chunked.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let code = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let body = &answer[end + 4..];
    let length = lines.find_map(|l| {
        let (name, value) = l.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // Half an answer is none.
    (length.is_none_or(|n| n == body.len())).then_some((code, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split() {
        let all = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(split(all), Some((200, &b"hi"[..])));
        assert_eq!(split(&all[..all.len() - 1]), None);
        assert_eq!(split(b"HTTP/1.1 503 No\r\n\r\n"), Some((503, &b""[..])));
        assert_eq!(split(b"rubbish"), None);
    }

    #[test]
    fn no_agent_is_said_to_be_none() {
        let error = status(Path::new("/nonexistent/agent.sock")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.sock"), "{error}");
        assert!(error.contains("causeway agent"), "{error}");
    }
}
