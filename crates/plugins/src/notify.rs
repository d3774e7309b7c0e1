//! Questions to the agent: is the pod's policy in the kernel, and why is the node not ready?

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use causeway_types::PodRef;

/// How long the agent may take, all in all.
const LIMIT: Duration = Duration::from_secs(2);
/// How long at least an answer is waited for that was asked for long ago: it has come, as a rule.
const GRACE: Duration = Duration::from_millis(100);
/// A longer reply is none of the agent's.
const MAX_REPLY: usize = 64 * 1024;

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The agent knows the attachment and has done what its policies ask for.
    Done,
    /// Nobody listens: no agent runs here.
    Nobody,
    /// The agent could not do it, or said nothing in time.
    Failed(String),
}

/// Asks the agent whether the node is ready for pods, and if not, why.
pub fn readiness(socket: &Path) -> Answer {
    ask(socket, "GET", "/readyz")
}

/// Tells the agent of an attachment whose record is written (`POST /v1/attachments/CONTAINER-IFNAME`). It
/// answers when the policies of its pod are in the kernel, whether there is an interface yet or not.
pub(crate) fn attachment(socket: &Path, container_id: &str, ifname: &str) -> Question {
    // Interface names may hold what a request line may not.
    let name = escape(&format!("{container_id}-{ifname}"));
    let question = Question::ask(socket, "POST", &format!("/v1/attachments/{name}"));
    // From now on this process waits for the agent, if not at once.
    let _ = causeway_kernel::sched::as_before();
    question
}

/// Asks the agent to remove an attachment (`POST /v1/attachments/CONTAINER-IFNAME/leave`). It answers
/// before it is done.
pub fn leave(socket: &Path, container_id: &str, ifname: &str) -> Answer {
    let name = escape(&format!("{container_id}-{ifname}"));
    ask(socket, "POST", &format!("/v1/attachments/{name}/leave"))
}

/// The most likely error of this node, in the agent's words (`GET /v1/finding`); `None` where it knows
/// of none, does not run, or takes too long.
pub(crate) fn finding(socket: &Path) -> Option<String> {
    match request(socket, "GET", "/v1/finding") {
        Reply::Said(200, line) if !line.is_empty() => Some(line),
        _ => None,
    }
}

/// Something is at the agent's socket, be it left by one that is gone.
pub(crate) fn is_there(socket: &Path) -> bool {
    socket.symlink_metadata().is_ok()
}

/// What the agent knows of the addresses that a pod is to have: its annotation, where it has one
/// (`GET /v1/pods/NAMESPACE/NAME?uid=UID`).
pub(crate) fn wanted_addresses(socket: &Path, pod: &PodRef) -> Reply {
    let uid = pod.uid.as_ref().map(|uid| format!("?uid={}", escape(uid))).unwrap_or_default();
    let path = format!("/v1/pods/{}/{}{uid}", escape(&pod.namespace), escape(&pod.name));
    request(socket, "GET", &path)
}

/// Which nodes could give out an address, in words (`GET /v1/holders/ADDRESS`).
pub(crate) fn holders(socket: &Path, ip: IpAddr) -> Option<String> {
    match request(socket, "GET", &format!("/v1/holders/{}", escape(&ip.to_string()))) {
        Reply::Said(200..=299, text) => Some(text),
        _ => None,
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A status of HTTP, and a text.
    Said(u16, String),
    /// Nobody listens: no agent runs here.
    Nobody,
    /// Nothing came, or nothing in time.
    Failed(String),
    /// It went away before it had answered.
    Broken(String),
}

fn ask(socket: &Path, method: &str, path: &str) -> Answer {
    Answer::from(request(socket, method, path))
}

fn request(socket: &Path, method: &str, path: &str) -> Reply {
    Question::ask(socket, method, path).reply()
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Said(200..=299, _) => Answer::Done,
            Reply::Said(status, body) => Answer::Failed(format!("it answered {status}: {body}")),
            Reply::Nobody => Answer::Nobody,
            Reply::Failed(why) | Reply::Broken(why) => Answer::Failed(why),
        }
    }
}

/// A question that is under way: whoever asks can do something else meanwhile.
#[derive(Debug)]
pub(crate) struct Question {
    at: Instant,
    sent: Result<UnixStream, Reply>,
}

impl Question {
    fn ask(socket: &Path, method: &str, path: &str) -> Self {
        Self { at: Instant::now(), sent: send(socket, method, path) }
    }

    /// Waits for the answer: 2 s from the question at most.
    pub(crate) fn reply(self) -> Reply {
        match self.sent {
            Ok(stream) => receive(stream, (self.at + LIMIT).max(Instant::now() + GRACE)),
            Err(reply) => reply,
        }
    }
}

fn send(socket: &Path, method: &str, path: &str) -> Result<UnixStream, Reply> {
    let mut stream = UnixStream::connect(socket).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Reply::Nobody,
        _ => Reply::Failed(e.to_string()),
    })?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: causeway\r\nconnection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    let sent =
        stream.set_write_timeout(Some(LIMIT)).and_then(|()| stream.write_all(request.as_bytes()));
    match sent {
        Ok(()) => Ok(stream),
        Err(e) => Err(failed(&e)),
    }
}

fn failed(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Reply::Failed(format!("no answer within {} s", LIMIT.as_secs()))
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => Reply::Broken(error.to_string()),
        _ => Reply::Failed(error.to_string()),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Reads until the reply is complete.
fn receive(mut stream: UnixStream, end: Instant) -> Reply {
    match read(&mut stream, end) {
        Ok((status, body)) => Reply::Said(status, body),
        Err(e) => failed(&e),
    }
}

fn read(stream: &mut UnixStream, end: Instant) -> io::Result<(u16, String)> {
    let mut reply = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let n = match stream.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        reply.extend_from_slice(&chunk[..n]);
        if let Some(done) = parse(&reply, n == 0)? {
            return Ok(done);
        }
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the reply is cut short"));
        }
        if reply.len() > MAX_REPLY {
            return Err(io::Error::other("the reply is too long"));
        }
    }
}

/// The reply, once its headers and the announced body are there.
fn parse(reply: &[u8], ended: bool) -> io::Result<Option<(u16, String)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(reply).map_err(|e| io::Error::other(format!("bad reply: {e}")))?;
    let httparse::Status::Complete(at) = parsed else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let length = response
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("content-length"))
        .and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse::<usize>().ok());
    let body = &reply[at..];
    let complete = match length {
        Some(length) => body.len() >= length,
        None => ended || status == 204,
    };
    let text = String::from_utf8_lossy(body).trim().replace('\n', "; ");
    Ok(complete.then_some((status, text)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn ask(reply: &'static [u8]) -> (Answer, String) {
        ask_by(reply, |path| attachment(path, "c1", "eth0").reply().into())
    }

    fn ask_by<T>(reply: &'static [u8], ask: impl FnOnce(&Path) -> T) -> (T, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut conn, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = conn.read(&mut request).unwrap();
            for part in reply.chunks(7) {
                let _ = conn.write_all(part);
            }
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let answer = ask(&path);
        (answer, server.join().unwrap())
    }

    #[test]
    fn findings() {
        let (line, request) =
            ask_by(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nx: y\nz\n", finding);
        assert_eq!(line.as_deref(), Some("x: y; z"));
        assert!(request.starts_with("GET /v1/finding HTTP/1.1\r\n"), "{request}");
        for none in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            // An agent of before.
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
            b"nonsense\r\n\r\n",
        ] {
            assert_eq!(ask_by(none, finding).0, None);
        }
        assert_eq!(finding(Path::new("/nonexistent/s")), None);
    }

    #[test]
    fn answers() {
        let (answer, request) = ask(b"HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(answer, Answer::Done);
        assert!(request.starts_with("POST /v1/attachments/c1-eth0 HTTP/1.1\r\n"), "{request}");
        let (answer, _) = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(answer, Answer::Done);
        let (answer, _) = ask(b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater");
        assert_eq!(answer, Answer::Failed("it answered 503: later".into()));
        let (answer, _) = ask(b"nonsense\r\n\r\n");
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
    }

    #[test]
    fn nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(attachment(&path, "c1", "eth0").reply(), Reply::Nobody);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(attachment(&path, "c1", "eth0").reply(), Reply::Nobody);
    }

    /// An answer that came while nobody read it counts, however late it is read.
    #[test]
    fn an_answer_waits_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut question = attachment(&path, "c1", "eth0");
        let (mut conn, _) = listener.accept().unwrap();
        conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").unwrap();
        question.at -= 10 * LIMIT;
        assert_eq!(question.reply(), Reply::Said(200, "ok".into()));
        // One that has not come in that time does not.
        let mut question = attachment(&path, "c1", "eth0");
        question.at -= 10 * LIMIT;
        assert_eq!(question.reply(), Reply::Failed("no answer within 2 s".into()));
    }

    #[test]
    fn an_agent_that_goes_away_is_told_from_one_that_says_no() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let question = attachment(&path, "c1", "eth0");
        let (mut conn, _) = listener.accept().unwrap();
        conn.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        drop(conn);
        assert!(matches!(question.reply(), Reply::Broken(_)));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("c1-eth0.1"), "c1-eth0.1");
        assert_eq!(escape("a?b"), "a%3Fb");
    }
}
