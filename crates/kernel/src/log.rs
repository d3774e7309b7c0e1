//! Packets that rules hand to a group (`log group N`, nfnetlink_log), each with its connection.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Error;
use crate::rtnl::read;
use crate::sock::{Bus, Reply, Request, Socket, find};

/// `NFNL_SUBSYS_ULOG` with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = 4 << 8 | 1;

// Attributes (`linux/netfilter/nfnetlink_log.h`).
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CFG_QTHRESH: u16 = 5;
const CFG_FLAGS: u16 = 6;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;
/// `NFULNL_CFG_F_CONNTRACK`.
const WITH_CONNECTION: u16 = 4;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const CT: u16 = 18;

// Attributes of a connection (`linux/netfilter/nfnetlink_conntrack.h`).
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// Messages that the kernel gathers before it sends them, and for how long (in hundredths of a second).
const GATHERED: u32 = 16;
const GATHERED_FOR: u32 = 5;
/// How much is read at a time, so that a flood cannot hold up the reader.
const DATAGRAMS: usize = 64;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// One end of a packet or connection: an address, and its port where the protocol has some.
pub type End = (IpAddr, Option<u16>);

/// A connection as both of its ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Its protocol (`IPPROTO_*`).
    pub protocol: u8,
    /// Who opened it.
    pub client: End,
    /// What was asked for: a Service's address, for example.
    pub asked: End,
    /// Who answers.
    pub server: End,
}

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its protocol (`IPPROTO_*`).
    pub protocol: u8,
    /// From where.
    pub from: End,
    /// To where.
    pub to: End,
}

/// A packet that a rule handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The text of the rule.
    pub prefix: String,
    /// Of the packet; `None` where it cannot be read.
    pub header: Option<Header>,
    /// Of the packet that it is about, where it is an ICMP error.
    pub about: Option<Header>,
    /// Its connection; `None` where it belongs to none, or the kernel does not tell of it
    /// (see [`Log::tells_of_connections`]).
    pub connection: Option<Tracked>,
}

/// Listens at a group in one namespace. To be polled for reading, then read. One process at a time can.
#[derive(Debug)]
pub struct Log {
    socket: Socket,
    connections: bool,
}

impl Log {
    /// Listens at a group in the namespace of the calling thread. `bytes` of each packet are handed over.
    ///
    /// # Errors
    /// When the kernel cannot log to a group (module nfnetlink_log), or another process listens at this one
    /// (EPERM, EBUSY).
    pub fn open(group: u16, bytes: u32) -> Result<Self, Error> {
        let mut socket = Socket::open(Bus::Netfilter)?;
        let set = |attributes: &[(u16, &[u8])]| {
            // `struct nfgenmsg`: any family, version 0, the group as resource.
            let mut body = vec![libc::AF_UNSPEC as u8, 0];
            body.extend(group.to_be_bytes());
            attributes.iter().for_each(|(kind, value)| read::put(&mut body, *kind, value));
            Request::new(CONFIG, 0, body)
        };
        let mut mode = bytes.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        let requests = vec![
            set(&[(CFG_CMD, &[BIND])]),
            set(&[
                (CFG_MODE, &mode),
                (CFG_QTHRESH, &GATHERED.to_be_bytes()),
                (CFG_TIMEOUT, &GATHERED_FOR.to_be_bytes()),
            ]),
        ];
        for outcome in socket.transact(requests)? {
            let what = || format!("listen at log group {group}");
            outcome.map_err(|refusal| Error::refused(what(), refusal))?;
        }
        let flags = set(&[(CFG_FLAGS, &WITH_CONNECTION.to_be_bytes())]);
        let connections = socket.transact(vec![flags])?.iter().all(Result::is_ok);
        Ok(Self { socket, connections })
    }

    /// Whether this kernel hands over connections with packets: not if it was built without
    /// `CONFIG_NETFILTER_NETLINK_GLUE_CT`.
    #[must_use]
    pub fn tells_of_connections(&self) -> bool {
        self.connections
    }

    /// Reads what there is, without waiting: packets, and whether the kernel could not hand over some.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn read(&mut self) -> Result<(Vec<Logged>, bool), Error> {
        let (mut all, mut lost) = (Vec::new(), false);
        for _ in 0..DATAGRAMS {
            match self.socket.receive_now() {
                Ok(Some(datagram)) => all.extend(Reply::split(datagram).filter_map(decode)),
                Ok(None) => break,
                Err(Error::Overrun { .. }) => lost = true,
                Err(error) => return Err(error),
            }
        }
        Ok((all, lost))
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn decode(reply: Reply<'_>) -> Option<Logged> {
    if reply.kind != PACKET {
        return None;
    }
    let body = reply.body.get(4..)?;
    let packet = find(body, PAYLOAD).and_then(headers);
    Some(Logged {
        prefix: find(body, PREFIX).and_then(read::text).unwrap_or_default().to_owned(),
        header: packet.map(|(header, _)| header),
        about: packet.and_then(|(_, about)| about),
        connection: find(body, CT).and_then(connection),
    })
}

/// Reads a connection's ends.
fn connection(ct: &[u8]) -> Option<Tracked> {
    let [orig, answer] = [find(ct, TUPLE_ORIG)?, find(ct, TUPLE_REPLY)?];
    let protocol = *find(find(orig, TUPLE_PROTO)?, PROTO_NUM)?.first()?;
    // `CTA_IP_V4_SRC` and its like.
    let source = |tuple| end(tuple, [1, 3], PROTO_SRC_PORT);
    Some(Tracked {
        protocol,
        client: source(orig)?,
        asked: end(orig, [2, 4], PROTO_DST_PORT)?,
        server: source(answer)?,
    })
}

fn end(tuple: &[u8], addresses: [u16; 2], port: u16) -> Option<End> {
    let ip = find(tuple, TUPLE_IP)?;
    let ip = addresses.into_iter().find_map(|kind| read::ip(find(ip, kind)?))?;
    let port = find(find(tuple, TUPLE_PROTO)?, port);
    Some((ip, port.and_then(|v| Some(u16::from_be_bytes(*v.first_chunk()?)))))
}

/// Reads a packet's header, and that of the one it is about where it is an ICMP error (RFC 792, RFC 4443).
fn headers(packet: &[u8]) -> Option<(Header, Option<Header>)> {
    let (outer, behind) = header(packet)?;
    let error = |kind: u8| match outer.protocol {
        ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        ICMPV6 => kind < 128,
        _ => false,
    };
    let icmp = behind.filter(|icmp| icmp.first().is_some_and(|kind| error(*kind)));
    let about = icmp.and_then(|icmp| header(icmp.get(8..)?));
    Some((outer, about.map(|(header, _)| header)))
}

/// Reads a header (RFC 791, RFC 8200), of later fragments without ports, and what is behind it.
fn header(packet: &[u8]) -> Option<(Header, Option<&[u8]>)> {
    let (protocol, from, to, behind) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 0xf) * 4;
            let offset = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff;
            let behind = if offset == 0 { packet.get(length..) } else { None };
            let [from, to] = [12, 16].map(|at| packet.get(at..at + 4).and_then(read::ip));
            (*packet.get(9)?, from?, to?, behind)
        }
        6 => {
            let (protocol, behind) = upper(*packet.get(6)?, packet.get(40..)?);
            let [from, to] = [8, 24].map(|at| packet.get(at..at + 16).and_then(read::ip));
            (protocol, from?, to?, behind)
        }
        _ => return None,
    };
    let ported = matches!(protocol, TCP | UDP | SCTP);
    let port = |at: usize| {
        let bytes = behind.filter(|_| ported)?.get(at..)?;
        Some(u16::from_be_bytes(*bytes.first_chunk()?))
    };
    Some((Header { protocol, from: (from, port(0)), to: (to, port(2)) }, behind))
}

/// Passes over extension headers: the protocol, and what is behind them unless it is a later fragment.
fn upper(mut next: u8, mut rest: &[u8]) -> (u8, Option<&[u8]>) {
    const FRAGMENT: u8 = 44;
    loop {
        let length = match next {
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => rest.get(1).map(|n| (usize::from(*n) + 1) * 8),
            FRAGMENT => {
                let offset = rest.get(2..).and_then(|b| b.first_chunk());
                if offset.is_none_or(|b| u16::from_be_bytes(*b) & 0xfff8 != 0) {
                    return (rest.first().copied().unwrap_or(next), None);
                }
                Some(8)
            }
            _ => return (next, Some(rest)),
        };
        let (Some(&after), Some(behind)) = (rest.first(), length.and_then(|n| rest.get(n..)))
        else {
            return (next, None);
        };
        (next, rest) = (after, behind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(packet: &[u8]) -> Option<Header> {
        headers(packet).map(|(header, _)| header)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn headers_are_read() {
        let mut v4 = vec![0x46, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0];
        v4.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        // One word of options.
        v4.extend([1, 1, 1, 1]);
        v4.extend([0x9c, 0x40, 0, 80, 0, 0]);
        let is = Header {
            protocol: TCP,
            from: (ip("10.0.0.1"), Some(40000)),
            to: (ip("10.0.0.2"), Some(80)),
        };
        assert_eq!(read(&v4), Some(is));
        // A later fragment has no ports.
        v4[7] = 10;
        assert_eq!(read(&v4).unwrap().to, (ip("10.0.0.2"), None));
        for cut in 0..20 {
            assert_eq!(read(&v4[..cut]), None, "{cut}");
        }

        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 60, 64];
        v6.extend([0xfd; 16]);
        v6.extend([0xfe; 16]);
        v6.extend([44, 0, 0, 0, 0, 0, 0, 0]);
        v6.extend([UDP, 0, 0, 1, 0, 0, 0, 0]);
        v6.extend([0, 53, 0x10, 0, 0, 0, 0, 0]);
        let is = read(&v6).unwrap();
        assert_eq!((is.protocol, is.from.1, is.to.1), (UDP, Some(53), Some(4096)));
        assert_eq!(is.from.0, IpAddr::V6([0xfd; 16].into()));
        // A later fragment.
        v6[51] = 8;
        assert_eq!((read(&v6).unwrap().protocol, read(&v6).unwrap().to.1), (UDP, None));
        for cut in 0..v6.len() {
            let _ = read(&v6[..cut]);
        }
    }

    /// An error from a router says nothing of the connection in its own header.
    #[test]
    fn what_an_error_is_about_is_read() {
        let inner = |protocol: u8| {
            let mut v4 = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            v4.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80, 0, 0, 0, 0]);
            v4
        };
        let mut error = inner(ICMP);
        error.truncate(20);
        error.extend([3, 1, 0, 0, 0, 0, 0, 0]);
        error.extend(inner(TCP));
        let (outer, about) = headers(&error).unwrap();
        assert_eq!((outer.protocol, outer.to.1), (ICMP, None));
        assert_eq!(
            about.map(|h| (h.protocol, h.from.1, h.to.1)),
            Some((TCP, Some(40000), Some(80)))
        );
        for cut in 0..error.len() {
            let _ = headers(&error[..cut]);
        }
        // An echo request may carry anything.
        error[20] = 8;
        assert_eq!(headers(&error).unwrap().1, None);

        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, ICMPV6, 64];
        v6.extend([0xfd; 32]);
        v6.extend([1, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, UDP, 64]);
        v6.extend([0xfd; 16]);
        v6.extend([0xfe; 16]);
        v6.extend([0, 53, 0x10, 0, 0, 0, 0, 0]);
        let about = headers(&v6).unwrap().1.unwrap();
        assert_eq!((about.protocol, about.from.1, about.to.1), (UDP, Some(53), Some(4096)));
        v6[40] = 128;
        assert_eq!(headers(&v6).unwrap().1, None);
    }
}
