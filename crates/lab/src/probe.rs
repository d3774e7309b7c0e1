//! Questions asked from inside a namespace: echo requests and HTTP.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// Runs a function in a thread inside a namespace.
///
/// # Errors
/// When the namespace cannot be entered, and those of the function.
pub fn inside<T: Send>(ns: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ns = NetNs::open(ns).map_err(|e| anyhow!("{e}"))?;
    ns.run(f).map_err(|e| anyhow!("{e}"))?
}

/// A socket for echo requests to one address.
struct Echo {
    socket: Socket,
    to: IpAddr,
    id: u16,
    size: usize,
}

impl Echo {
    fn open(from: Option<IpAddr>, to: IpAddr, size: usize) -> Result<Self> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("open a raw socket")?;
        if let Some(ip) = from {
            socket
                .bind(&SocketAddr::new(ip, 0).into())
                .with_context(|| format!("send from {ip}"))?;
        }
        let base = (std::process::id() as u16).rotate_left(5);
        let id = base ^ NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Self { socket, to, id, size: size.max(8) })
    }

    fn send(&self, seq: u16) -> std::io::Result<()> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![0u8; 8 + self.size];
        packet[0] = kind;
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&seq.to_be_bytes());
        if self.to.is_ipv4() {
            // For IPv6 the kernel fills it in (RFC 3542, section 3.1).
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&packet, &SocketAddr::new(self.to, 0).into()).map(drop)
    }

    /// The sequence number of the next answer; `None` when the time is over.
    fn receive(&self, until: Instant) -> std::io::Result<Option<u16>> {
        let mut buffer = [0u8; 2048];
        loop {
            if !readable(&self.socket, until)? {
                return Ok(None);
            }
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let (n, from) = match rustix::net::recvfrom(&self.socket, &mut buffer[..], flags) {
                Ok((n, _, from)) => (n, from),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let from = from.and_then(|f| SocketAddr::try_from(f).ok());
            let bytes = &buffer[..n];
            let reply = match self.to {
                IpAddr::V4(_) => {
                    let header = usize::from(bytes.first().copied().unwrap_or(0) & 15) * 4;
                    bytes.get(header..)
                }
                IpAddr::V6(_) => Some(bytes),
            };
            let kind = if self.to.is_ipv4() { 0 } else { 129 };
            let Some([k, _, _, _, a, b, c, d, ..]) = reply else { continue };
            let from_there = from.is_some_and(|s| s.ip() == self.to);
            if *k == kind && u16::from_be_bytes([*a, *b]) == self.id && from_there {
                return Ok(Some(u16::from_be_bytes([*c, *d])));
            }
        }
    }
}

/// Waits until there is something to read; false when the time is over. A receive timeout of the
/// socket would not do: one below a microsecond means "for ever".
pub(crate) fn readable(socket: &Socket, until: Instant) -> std::io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Round trip times of echo requests from inside a namespace, one after another; a lost one is
/// missing.
///
/// # Errors
/// When the namespace or the socket fails, or the kernel refuses to send.
pub fn ping(
    ns: &Path,
    to: IpAddr,
    count: u16,
    size: usize,
    wait: Duration,
) -> Result<Vec<Duration>> {
    inside(ns, || echoes(None, to, count, size, wait))
}

/// As [`ping`], from where the calling thread is, with a certain address if one is given.
pub(crate) fn echoes(
    from: Option<IpAddr>,
    to: IpAddr,
    count: u16,
    size: usize,
    wait: Duration,
) -> Result<Vec<Duration>> {
    let echo = Echo::open(from, to, size)?;
    let mut times = Vec::new();
    for seq in 0..count {
        let start = Instant::now();
        if let Err(e) = echo.send(seq) {
            bail!("send to {to}: {e}");
        }
        while let Some(answer) = echo.receive(start + wait)? {
            if answer == seq {
                times.push(start.elapsed());
                break;
            }
        }
    }
    Ok(times)
}

/// What a stream of echo requests lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Loss {
    /// Sent.
    pub sent: u32,
    /// Never answered.
    pub lost: u32,
    /// The longest time between two answers.
    #[serde(serialize_with = "millis")]
    pub longest_gap: Duration,
}

fn millis<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(d.as_secs_f64() * 1e3)
}

/// Sends an echo request each interval for a time, whatever comes back, and counts.
///
/// # Errors
/// When the namespace or the socket fails.
pub fn watch_loss(ns: &Path, to: IpAddr, interval: Duration, time: Duration) -> Result<Loss> {
    let start = Instant::now();
    watch_loss_while(ns, to, interval, || start.elapsed() < time)
}

/// Sends an echo request each interval as long as it is told to, whatever comes back, and counts.
///
/// # Errors
/// When the namespace or the socket fails.
pub fn watch_loss_while(
    ns: &Path,
    to: IpAddr,
    interval: Duration,
    go_on: impl Fn() -> bool + Send + Sync,
) -> Result<Loss> {
    inside(ns, || {
        let echo = Echo::open(None, to, 32)?;
        let start = Instant::now();
        let mut next = start;
        let (mut sent, mut refused) = (0u32, 0u32);
        let mut seen = std::collections::HashSet::new();
        let (mut last, mut gap) = (start, Duration::ZERO);
        let mut note = |seq: u16, seen: &mut std::collections::HashSet<u32>, sent: u32| {
            // Sequence numbers wrap; the newest request with this number is meant.
            let number = (sent & !0xffff) | u32::from(seq);
            let number = if number >= sent { number.wrapping_sub(0x1_0000) } else { number };
            if seen.insert(number) {
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
        };
        while go_on() {
            if echo.send(sent as u16).is_err() {
                refused += 1;
            }
            sent += 1;
            next += interval;
            while let Some(seq) = echo.receive(next)? {
                note(seq, &mut seen, sent);
            }
        }
        let end = Instant::now() + Duration::from_secs(1);
        while (seen.len() as u32) < sent - refused {
            let Some(seq) = echo.receive(end)? else { break };
            note(seq, &mut seen, sent);
        }
        let lost = sent - seen.len() as u32;
        Ok(Loss { sent, lost, longest_gap: gap })
    })
}

/// The body of a page, by plain HTTP.
///
/// # Errors
/// When the server cannot be reached or does not answer 200.
pub fn fetch(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").context("only http:// is spoken here")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let addr: SocketAddr = host
        .parse()
        .or_else(|_| format!("{host}:80").parse())
        .with_context(|| format!("{host}: expected ADDRESS:PORT (IPv6 in brackets)"))?;
    let wait = Duration::from_secs(3);
    let mut stream =
        TcpStream::connect_timeout(&addr, wait).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(wait))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {addr}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{addr} answered {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
