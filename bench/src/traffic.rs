//! Traffic between two namespaces: bulk, request and response on one connection (RR), and a
//! connection for each request (CRR). Both ends of RR and CRR are pinned to one processor:
//! otherwise an idle virtual machine measures how long the other processor takes to wake up.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use causeway_kernel::netns::NetNs;

/// How long one of two is measured until it is the other's turn.
const TURN: Duration = Duration::from_millis(4);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One TCP stream, as fast as it goes; Gbit/s.
    Bulk,
    /// One byte there and back on an open connection; transactions/s.
    Rr,
    /// Connect, one byte there and back, close; transactions/s.
    Crr,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Kind; 3] = [Kind::Bulk, Kind::Rr, Kind::Crr];

    /// Name and unit for the table.
    pub(crate) fn label(self) -> (&'static str, &'static str) {
        match self {
            Kind::Bulk => ("bulk", "Gbit/s"),
            Kind::Rr => ("RR", "1/s"),
            Kind::Crr => ("CRR", "1/s"),
        }
    }
}

/// A server and a client, each in a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) client: std::path::PathBuf,
    pub(crate) server: std::path::PathBuf,
    /// Where the client finds the server.
    pub(crate) addr: IpAddr,
    /// At which port; 0: any that is free.
    pub(crate) port: u16,
    /// Before whatever else runs on the machine: for differences that are smaller than what that disturbs.
    pub(crate) first: bool,
}

/// Measures for a time and answers in the unit of [`Kind::label`].
///
/// # Errors
/// When a namespace cannot be entered or the two ends cannot talk.
pub(crate) fn measure(ends: &Ends, kind: Kind, time: Duration) -> Result<f64> {
    let client = NetNs::open(&ends.client).map_err(|e| anyhow!("{e}"))?;
    with_server(ends, kind, |target| {
        client.run(|| drive(target, kind, ends.first, time)).map_err(|e| anyhow!("{e}"))?
    })
}

/// Measures two of them for a time, in turns of some milliseconds each, so that both find the machine
/// in the same state. Answers in transactions/s. Not for [`Kind::Bulk`].
///
/// # Errors
/// As [`measure`].
pub(crate) fn compare(ends: [&Ends; 2], kind: Kind, time: Duration) -> Result<[f64; 2]> {
    with_server(ends[0], kind, |one| {
        with_server(ends[1], kind, |other| {
            let turns = || drive_in_turns(ends, [one, other], kind, time);
            thread::scope(|scope| scope.spawn(turns).join())
                .map_err(|_| anyhow!("the client panicked"))?
        })
    })
}

/// Does something while a server runs.
fn with_server<T>(ends: &Ends, kind: Kind, run: impl FnOnce(SocketAddr) -> Result<T>) -> Result<T> {
    let server = NetNs::open(&ends.server).map_err(|e| anyhow!("{e}"))?;
    let client = NetNs::open(&ends.client).map_err(|e| anyhow!("{e}"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (port_tx, port_rx) = mpsc::channel();
    thread::scope(|scope| {
        let at = SocketAddr::new(ends.addr, ends.port);
        let (first, stop_server) = (ends.first, stop.clone());
        let server = scope.spawn(move || {
            server
                .run(move || serve(at, kind, first, &port_tx, &stop_server))
                .map_err(|e| anyhow!("{e}"))?
        });
        let port = port_rx.recv_timeout(Duration::from_secs(5)).context("the server did not start");
        let result = port.and_then(|port| {
            let target = SocketAddr::new(ends.addr, port);
            let result = run(target);
            stop.store(true, Ordering::Relaxed);
            // Wakes the server from accept.
            let _ = client.run(move || TcpStream::connect_timeout(&target, Duration::from_secs(1)));
            result
        });
        stop.store(true, Ordering::Relaxed);
        match server.join() {
            Ok(Ok(())) => result,
            Ok(Err(err)) => result.and(Err(err)),
            Err(_) => Err(anyhow!("the server panicked")),
        }
    })
}

fn pin(first: bool) {
    if first {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        // As below.
        let _ = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status();
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    // Where it is not allowed the figures are only noisier.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn serve(
    at: SocketAddr,
    kind: Kind,
    first: bool,
    port: &mpsc::Sender<u16>,
    stop: &AtomicBool,
) -> Result<()> {
    if kind != Kind::Bulk {
        pin(first);
    }
    let listener = TcpListener::bind(at).context("listen")?;
    port.send(listener.local_addr()?.port())?;
    let mut buffer = vec![0; 128 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) if kind != Kind::Bulk => {
                    if stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))
        .with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// A byte there and back.
fn transact(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

fn drive(target: SocketAddr, kind: Kind, first: bool, time: Duration) -> Result<f64> {
    if kind != Kind::Bulk {
        pin(first);
    }
    let start = Instant::now();
    let mut count = 0u64;
    match kind {
        Kind::Bulk => {
            let mut stream = connect(target)?;
            let block = vec![7; 128 * 1024];
            while start.elapsed() < time {
                stream.write_all(&block)?;
                count += block.len() as u64;
            }
            return Ok(count as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9);
        }
        Kind::Rr => {
            let mut stream = connect(target)?;
            while start.elapsed() < time {
                transact(&mut stream)?;
                count += 1;
            }
        }
        Kind::Crr => {
            while start.elapsed() < time {
                transact(&mut connect(target)?)?;
                count += 1;
            }
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn drive_in_turns(
    ends: [&Ends; 2],
    targets: [SocketAddr; 2],
    kind: Kind,
    time: Duration,
) -> Result<[f64; 2]> {
    let mut spaces = Vec::new();
    for end in ends {
        spaces.push(NetNs::open(&end.client).map_err(|e| anyhow!("{e}"))?);
    }
    pin(ends.iter().any(|end| end.first));
    let mut streams = [None, None];
    let (mut counts, mut times) = ([0u64; 2], [Duration::ZERO; 2]);
    let begin = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < time {
        // One, other, other, one: what changes steadily is the same for both.
        let which = [0, 1, 1, 0][turn % 4];
        turn += 1;
        // Sockets belong to the namespace in which they were made.
        let _guard = spaces[which].enter().map_err(|e| anyhow!("{e}"))?;
        if kind == Kind::Rr && streams[which].is_none() {
            streams[which] = Some(connect(targets[which])?);
        }
        let start = Instant::now();
        while start.elapsed() < TURN {
            match &mut streams[which] {
                Some(stream) => transact(stream)?,
                None => transact(&mut connect(targets[which])?)?,
            }
            counts[which] += 1;
        }
        times[which] += start.elapsed();
    }
    Ok([0, 1].map(|n| counts[n] as f64 / times[n].as_secs_f64()))
}
