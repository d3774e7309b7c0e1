//! Traffic that runs while something happens, and what it lost.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use causeway_lab::{Loss, Pod, inside, watch_loss_while};

use crate::world::World;

/// How often a stream sends.
const PACE: Duration = Duration::from_millis(1);

/// What a TCP stream to a pod's echo server carried there and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Bytes that came back, in order.
    pub(crate) bytes: u64,
}

/// What all the traffic lost.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) losses: Vec<(String, Loss)>,
    pub(crate) streams: Vec<(String, Stream)>,
    /// Segments that the pods' systems sent again.
    pub(crate) again: u64,
    /// Segments that arrived a second time. On a busy machine a sender that hears nothing for a few
    /// milliseconds sends again what was not lost (RFC 8985, tail loss probe).
    pub(crate) twice: u64,
}

impl Report {
    /// Nothing was lost, and there was something to lose.
    #[track_caller]
    pub(crate) fn nothing_lost(&self, least: u32) {
        println!("{self:?}");
        for (what, loss) in &self.losses {
            assert!(loss.sent > least, "{what}: {loss:?}");
            assert_eq!(loss.lost, 0, "{what}: {loss:?}");
        }
        for (what, stream) in &self.streams {
            assert!(stream.bytes > u64::from(least), "{what}: {stream:?}");
        }
        assert!(self.again <= self.twice, "segments were lost and sent again: {self:?}");
    }
}

/// A packet each millisecond from the first pod to the second, and open TCP streams between both,
/// opened from either end, in every family that they have, while something happens.
pub(crate) fn under_traffic(world: &World, a: &Pod, b: &Pod, what: impl FnOnce()) -> Report {
    let on = AtomicBool::new(true);
    let count = |file, of: &[&str]| -> u64 {
        [a, b].into_iter().map(|pod| counted(world, &world.netns(pod), file, of)).sum()
    };
    let again = || count("snmp", &["RetransSegs"]);
    let twice = || count("netstat", &["TCPDSACKOldSent", "TCPDSACKOfoSent"]);
    let before = (again(), twice());
    let mut report = std::thread::scope(|scope| {
        let on = &on;
        let pings: Vec<_> = b
            .ips
            .iter()
            .map(|ip| {
                let (ns, ip) = (world.netns(a), *ip);
                let watch = move || {
                    let go_on = || on.load(Ordering::Relaxed);
                    watch_loss_while(&ns, ip, Duration::from_millis(1), go_on).unwrap()
                };
                (format!("ping {ip}"), scope.spawn(watch))
            })
            .collect();
        let ends = [(a, b), (b, a)].into_iter();
        let streams: Vec<_> = ends
            .flat_map(|(from, to)| to.ips.iter().map(move |ip| (from, *ip)))
            .map(|(from, ip)| {
                let ns = world.netns(from);
                (format!("{} to {ip}", from.name), scope.spawn(move || stream(&ns, ip, on, PACE)))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        // Also when it fails: else the traffic would go on for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        on.store(false, Ordering::Relaxed);
        let losses = pings.into_iter().map(|(n, p)| (n, p.join().unwrap())).collect();
        let streams = streams.into_iter().map(|(n, s)| (n, s.join().unwrap())).collect();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        Report { losses, streams, ..Report::default() }
    });
    (report.again, report.twice) = (again() - before.0, twice() - before.1);
    report
}

/// The sum of some of TCP's counters in a namespace (RFC 4022 and Linux's own).
fn counted(world: &World, ns: &Path, file: &str, of: &[&str]) -> u64 {
    let text = world.sh(ns, &format!("grep -E '^(Tcp|TcpExt):' /proc/net/{file}"));
    let mut lines = text.lines().map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let wanted: Vec<&str> =
        names.zip(values).filter(|(name, _)| of.contains(name)).map(|(_, value)| value).collect();
    assert_eq!(wanted.len(), of.len(), "{of:?} in {text}");
    wanted.iter().map(|value| value.parse::<u64>().unwrap()).sum()
}

/// The bytes of a stream from an offset on: no two places look alike.
fn pattern(offset: u64, chunk: &mut [u8]) {
    for (i, byte) in chunk.iter_mut().enumerate() {
        let at = offset + i as u64;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

/// Sends a little at each pace, and checks that the same comes back.
pub(crate) fn stream(ns: &Path, to: IpAddr, on: &AtomicBool, pace: Duration) -> Stream {
    inside(ns, || {
        let to = SocketAddr::new(to, 8080);
        let mut reader = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        reader.set_nodelay(true)?;
        reader.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut writer = reader.try_clone()?;
        let go_on = Arc::new(AtomicBool::new(true));
        let sender = std::thread::spawn({
            let go_on = go_on.clone();
            move || -> std::io::Result<u64> {
                let (mut at, mut chunk) = (0, [0; 512]);
                while go_on.load(Ordering::Relaxed) {
                    pattern(at, &mut chunk);
                    writer.write_all(&chunk)?;
                    at += chunk.len() as u64;
                    std::thread::sleep(pace);
                }
                writer.shutdown(std::net::Shutdown::Write)?;
                Ok(at)
            }
        });
        // The server greets first.
        let mut byte = [0];
        while byte != *b"\n" {
            reader.read_exact(&mut byte)?;
        }
        let (mut got, mut buffer, mut want) = (0u64, vec![0; 64 * 1024], vec![0; 64 * 1024]);
        loop {
            go_on.store(on.load(Ordering::Relaxed), Ordering::Relaxed);
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            pattern(got, &mut want[..n]);
            assert!(buffer[..n] == want[..n], "{to}: another byte than was sent after {got}");
            got += n as u64;
        }
        let sent = sender.join().expect("no panic")?;
        assert_eq!(got, sent, "{to}: as much as was sent comes back");
        Ok(Stream { bytes: got })
    })
    .unwrap_or_else(|e| panic!("{to}: {e:#}"))
}
