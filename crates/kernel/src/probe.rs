//! What comes back from a port of another host.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Somebody listens.
    Open,
    /// Nobody listens, and the host says so itself (a reset).
    Closed,
    /// A firewall says no, by ICMP: a host itself answers TCP by resets alone.
    Rejected,
    /// There is no way there.
    Unreachable,
    /// Nothing within the time.
    Silent,
}

/// Tries to connect by TCP, and hangs up.
///
/// # Errors
/// When the system refuses the socket.
pub fn tcp(to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Where the kernel cannot keep what ICMP says, a rejection looks like nobody who listens.
    let _ = keep_icmp(&socket, to.ip());
    let error = match connect(&socket, &to) {
        Ok(()) => return Ok(Answer::Open),
        Err(Errno::INPROGRESS) => match outcome(&socket, patience)? {
            None => return Ok(Answer::Silent),
            Some(Ok(())) => return Ok(Answer::Open),
            Some(Err(error)) => error,
        },
        Err(error) => error,
    };
    Ok(match (icmp(&socket), error) {
        (Some(word), _) if word.is_rejection(to.ip()) => Answer::Rejected,
        (_, Errno::CONNREFUSED | Errno::CONNRESET) => Answer::Closed,
        // A rule of this node itself.
        (_, Errno::PERM) => Answer::Rejected,
        (_, Errno::ACCESS) => Answer::Rejected,
        (_, Errno::TIMEDOUT) => Answer::Silent,
        _ => Answer::Unreachable,
    })
}

/// How an attempt ended; `None` when the time is over.
fn outcome(socket: &OwnedFd, patience: Duration) -> io::Result<Option<Result<(), Errno>>> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(Some(sockopt::socket_error(socket)?)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has the kernel keep what ICMP says of a socket (`IP_RECVERR`, ip(7)).
fn keep_icmp(socket: &OwnedFd, to: IpAddr) -> io::Result<()> {
    let (level, name) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads `len` bytes of `on`, which outlives the
    // call.
    #[allow(unsafe_code)]
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What ICMP said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Icmp {
    kind: u8,
    code: u8,
}

impl Icmp {
    /// Said by firewalls alone: of TCP, that a port is unreachable (iptables' and nft's own word), and
    /// what is prohibited (RFC 1812, section 5.2.7.1; RFC 4443, section 3.1).
    fn is_rejection(self, to: IpAddr) -> bool {
        match to {
            IpAddr::V4(_) => self.kind == 3 && matches!(self.code, 3 | 9 | 10 | 13),
            IpAddr::V6(_) => self.kind == 1 && matches!(self.code, 1 | 4 | 5 | 6),
        }
    }
}

/// Room for one control message: `struct sock_extended_err` and the address of who said it.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// What ICMP said of a socket, where the kernel kept it.
fn icmp(socket: &OwnedFd) -> Option<Icmp> {
    let mut control = Control([0; 128]);
    let mut data = [0u8; 64];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: zeros are a value of this struct of integers and pointers; the pointers are to
    // buffers that outlive the call, with their lengths; the descriptor is open.
    #[allow(unsafe_code)]
    let (got, length) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        let got = libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags);
        (got, message.msg_controllen as usize)
    };
    if got < 0 { None } else { decode(control.0.get(..length)?) }
}

/// A control message of `IP_RECVERR`: `struct cmsghdr`, then `struct sock_extended_err`, of which the
/// fifth byte is the origin, the sixth and seventh type and code (`linux/errqueue.h`).
fn decode(control: &[u8]) -> Option<Icmp> {
    let header = size_of::<libc::cmsghdr>();
    let error = control.get(header..header + 16)?;
    let by_icmp = matches!(error[4], libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    by_icmp.then_some(Icmp { kind: error[5], code: error[6] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_firewalls_alone_say() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let says = |to, kind, code| Icmp { kind, code }.is_rejection(to);
        assert!(says(v4, 3, 3) && says(v4, 3, 13) && says(v6, 1, 4) && says(v6, 1, 1));
        // Host unreachable, no route: no firewall.
        assert!(!says(v4, 3, 1) && !says(v4, 3, 0) && !says(v6, 1, 0) && !says(v6, 1, 3));
    }

    #[test]
    fn short_control_messages_are_none() {
        assert_eq!(decode(&[0; 20]), None);
        let mut bytes = [0; 32];
        bytes[20..23].copy_from_slice(&[libc::SO_EE_ORIGIN_ICMP, 3, 13]);
        assert_eq!(decode(&bytes), Some(Icmp { kind: 3, code: 13 }));
        bytes[20] = libc::SO_EE_ORIGIN_LOCAL;
        assert_eq!(decode(&bytes), None);
    }
}
