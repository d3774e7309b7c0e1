//! Traffic between two namespaces: bulk, request and response on one connection (RR), and a
//! connection for each request (CRR). Both ends of RR and CRR are pinned to one processor:
//! otherwise an idle virtual machine measures how long the other processor takes to wake up.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use causeway_kernel::netns::NetNs;

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
    let server = NetNs::open(&ends.server).map_err(|e| anyhow!("{e}"))?;
    let client = NetNs::open(&ends.client).map_err(|e| anyhow!("{e}"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (port_tx, port_rx) = mpsc::channel();
    std::thread::scope(|scope| {
        let (addr, at) = (ends.addr, SocketAddr::new(ends.addr, ends.port));
        let first = ends.first;
        let stop_server = stop.clone();
        let server = scope.spawn(move || {
            server
                .run(move || serve(at, kind, first, &port_tx, &stop_server))
                .map_err(|e| anyhow!("{e}"))?
        });
        let result = port_rx
            .recv_timeout(Duration::from_secs(5))
            .context("the server did not start")
            .and_then(|port| {
                let target = SocketAddr::new(addr, port);
                let run = client.run(move || drive(target, kind, first, time));
                stop.store(true, Ordering::Relaxed);
                // Wakes the server from accept.
                let _ =
                    client.run(move || TcpStream::connect_timeout(&target, Duration::from_secs(1)));
                run.map_err(|e| anyhow!("{e}"))?
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

fn drive(target: SocketAddr, kind: Kind, first: bool, time: Duration) -> Result<f64> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))
            .with_context(|| format!("connect to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    };
    if kind != Kind::Bulk {
        pin(first);
    }
    let mut byte = [7];
    let start = Instant::now();
    let mut count = 0u64;
    match kind {
        Kind::Bulk => {
            let mut stream = connect()?;
            let block = vec![7; 128 * 1024];
            while start.elapsed() < time {
                stream.write_all(&block)?;
                count += block.len() as u64;
            }
            return Ok(count as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9);
        }
        Kind::Rr => {
            let mut stream = connect()?;
            while start.elapsed() < time {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
        }
        Kind::Crr => {
            while start.elapsed() < time {
                let mut stream = connect()?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
