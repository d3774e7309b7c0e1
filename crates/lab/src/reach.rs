//! Does a connection get to its other end? Asked with real packets, where no program need run that would
//! answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use crate::probe::{echoes, inside};
use crate::sctp;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// A TCP connection to a port.
    Tcp(u16),
    /// A datagram to a UDP port, and its answer.
    Udp(u16),
    /// The beginning of an association with an SCTP port.
    Sctp(u16),
    /// An ICMP echo request, and its reply.
    Echo,
}

/// Whether it gets there from a namespace, with a certain address if one is given. A connection that is
/// refused there has got there: nothing on the way of a lab refuses for others.
///
/// # Errors
/// When the namespace cannot be entered, or has not this address.
pub fn reaches(
    ns: &Path,
    from: Option<IpAddr>,
    to: IpAddr,
    ask: Ask,
    wait: Duration,
) -> Result<bool> {
    inside(ns, || match ask {
        Ask::Tcp(port) => tcp(from, SocketAddr::new(to, port), wait),
        Ask::Udp(port) => udp(from, SocketAddr::new(to, port), wait),
        Ask::Sctp(port) => sctp::reaches(from, SocketAddr::new(to, port), Instant::now() + wait),
        // A host or network that is said to be unreachable is not reached.
        Ask::Echo => Ok(echoes(from, to, 1, 56, wait).is_ok_and(|times| !times.is_empty())),
    })
}

/// The address that the kernel of a namespace takes for what goes to another; `None`: there is no way.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn source(ns: &Path, to: IpAddr) -> Result<Option<IpAddr>> {
    inside(ns, || {
        let socket = UdpSocket::bind(SocketAddr::new(any(to), 0)).context("a socket")?;
        let connected = socket.connect(SocketAddr::new(to, 9));
        Ok(connected.and_then(|()| socket.local_addr()).ok().map(|at| at.ip()))
    })
}

/// The address that stands for all of the family.
fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn socket(from: Option<IpAddr>, to: IpAddr, kind: Type) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), kind, None);
    let socket = socket.context("a socket")?;
    let from = from.unwrap_or_else(|| any(to));
    socket.bind(&SocketAddr::new(from, 0).into()).with_context(|| format!("send from {from}"))?;
    Ok(socket)
}

fn tcp(from: Option<IpAddr>, to: SocketAddr, wait: Duration) -> Result<bool> {
    let socket = socket(from, to.ip(), Type::STREAM)?;
    Ok(match socket.connect_timeout(&to.into(), wait) {
        Ok(()) => true,
        Err(e) => e.kind() == ErrorKind::ConnectionRefused,
    })
}

fn udp(from: Option<IpAddr>, to: SocketAddr, wait: Duration) -> Result<bool> {
    let socket: UdpSocket = socket(from, to.ip(), Type::DGRAM)?.into();
    socket.set_read_timeout(Some(wait)).context("a timeout")?;
    let there = socket.connect(to).and_then(|()| socket.send(b"hello"));
    Ok(match there.and_then(|_| socket.recv(&mut [0; 64])) {
        Ok(_) => true,
        Err(e) => e.kind() == ErrorKind::ConnectionRefused,
    })
}

/// Something that listens at a port.
enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Sctp(sctp::Listener),
}

/// Where something is asked: in which namespace, at which of its addresses, and what. Who listens at all
/// addresses of a namespace that has several answers datagrams from another than they were sent to.
pub type Place = (PathBuf, IpAddr, Ask);

/// Answers in the place of programs that do not run in a lab, until it is dropped.
pub struct Answers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    taken: BTreeSet<Place>,
}

impl Answers {
    /// Listens in each namespace to what may be asked there. Where somebody listens already, he answers.
    ///
    /// # Errors
    /// When a namespace cannot be entered, or sockets are used up.
    pub fn open(wanted: &BTreeSet<Place>) -> Result<Self> {
        let mut spaces: BTreeMap<&Path, Vec<(IpAddr, Ask)>> = BTreeMap::new();
        for (ns, ip, ask) in wanted.iter().filter(|(.., ask)| *ask != Ask::Echo) {
            spaces.entry(ns).or_default().push((*ip, *ask));
        }
        let (mut listeners, mut taken) = (Vec::new(), BTreeSet::new());
        for (ns, places) in spaces {
            let open = || places.iter().map(|(ip, ask)| listen(*ip, *ask)).collect();
            let opened: Vec<Option<Listener>> = inside(ns, open)?;
            for ((ip, ask), listener) in places.iter().zip(opened) {
                match listener {
                    Some(listener) => listeners.push(listener),
                    None => drop(taken.insert((ns.to_owned(), *ip, *ask))),
                }
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::Builder::new().name("answers".into());
        let thread = thread.spawn(move || answer(&listeners, &told)).context("a thread")?;
        Ok(Self { stop, thread: Some(thread), taken })
    }

    /// Whether somebody else listens there.
    pub fn is_taken(&self, place: &Place) -> bool {
        self.taken.contains(place)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `None`: somebody listens there already, or the kernel answers by itself.
fn listen(ip: IpAddr, ask: Ask) -> Result<Option<Listener>> {
    if let Ask::Sctp(port) = ask {
        // Raw sockets are nobody's alone.
        return sctp::Listener::open(SocketAddr::new(ip, port))
            .map(|one| Some(Listener::Sctp(one)));
    }
    let open = || -> std::io::Result<Option<Listener>> {
        Ok(match ask {
            Ask::Tcp(port) => {
                let listener = TcpListener::bind((ip, port))?;
                listener.set_nonblocking(true)?;
                Some(Listener::Tcp(listener))
            }
            Ask::Udp(port) => {
                let socket = UdpSocket::bind((ip, port))?;
                socket.set_nonblocking(true)?;
                Some(Listener::Udp(socket))
            }
            Ask::Sctp(_) | Ask::Echo => None,
        })
    };
    match open() {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        opened => opened.with_context(|| format!("listen at {ip} for {ask:?}")),
    }
}

fn answer(listeners: &[Listener], stop: &AtomicBool) {
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(Ordering::SeqCst) {
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| match listener {
                Listener::Tcp(socket) => PollFd::new(socket, PollFlags::IN),
                Listener::Udp(socket) => PollFd::new(socket, PollFlags::IN),
                Listener::Sctp(one) => PollFd::new(one.socket(), PollFlags::IN),
            })
            .collect();
        let _ = poll(&mut fds, Some(&LOOK));
        for (fd, listener) in fds.iter().zip(listeners) {
            if fd.revents().is_empty() {
                continue;
            }
            match listener {
                // That it was taken is all that is asked.
                Listener::Tcp(socket) => while socket.accept().is_ok() {},
                Listener::Udp(socket) => {
                    let mut buffer = [0; 64];
                    while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..n], peer);
                    }
                }
                Listener::Sctp(one) => one.answer(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_kernel::netns::{NetNs, loopback_up};

    const SOON: Duration = Duration::from_millis(300);

    /// A namespace that goes with its handle, and a path to it.
    fn own() -> (NetNs, PathBuf) {
        use std::os::fd::{AsFd, AsRawFd};
        let ns = NetNs::unnamed().expect("this test needs root");
        ns.run(loopback_up).unwrap().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        (ns, path.into())
    }

    #[test]
    fn what_gets_there_and_what_does_not() {
        let (_ns, path) = own();
        let asks = [Ask::Tcp(80), Ask::Udp(53), Ask::Sctp(132), Ask::Sctp(133), Ask::Echo];
        let ips = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let place = |ip: &IpAddr, ask: &Ask| (path.clone(), *ip, *ask);
        let wanted = ips.iter().flat_map(|ip| asks.map(|ask| place(ip, &ask))).collect();
        let answers = Answers::open(&wanted).unwrap();
        for ip in ips {
            assert!(source(&path, ip).unwrap().is_some_and(|own| own.is_loopback()));
            for ask in asks {
                for from in [None, Some(ip)] {
                    assert!(reaches(&path, from, ip, ask, SOON).unwrap(), "{ip} {ask:?} {from:?}");
                }
            }
            // Refused there is there.
            assert!(reaches(&path, None, ip, Ask::Tcp(81), SOON).unwrap());
            assert!(reaches(&path, None, ip, Ask::Udp(54), SOON).unwrap());
        }
        // Who listens is told from who does not.
        let again = Answers::open(&wanted).unwrap();
        for ip in &ips {
            assert!(again.is_taken(&place(ip, &Ask::Tcp(80))), "{ip}");
            assert!(again.is_taken(&place(ip, &Ask::Udp(53))), "{ip}");
            assert!(!again.is_taken(&place(ip, &Ask::Echo)), "{ip}");
            assert!(!answers.is_taken(&place(ip, &Ask::Tcp(80))), "{ip}");
        }
        // There is no way to this one, and nobody has that one.
        let nowhere: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(source(&path, nowhere).unwrap(), None);
        for ask in asks {
            assert!(!reaches(&path, None, nowhere, ask, SOON).unwrap(), "{ask:?}");
        }
        for ask in [Ask::Tcp(80), Ask::Sctp(132)] {
            assert!(reaches(&path, Some(nowhere), nowhere, ask, SOON).is_err());
        }
        // What comes back to who sent it has got there, whoever else listens.
        drop((answers, again));
        for ip in [ips[0], ips[2]] {
            assert!(reaches(&path, None, ip, Ask::Sctp(132), SOON).unwrap(), "{ip}");
        }
    }
}
