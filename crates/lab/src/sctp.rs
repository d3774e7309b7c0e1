//! The beginning of an association (SCTP, RFC 9260, section 5.1), by raw packets: few kernels have the protocol
//! itself, and connections are tracked and judged without it.
//!
//! An INIT that gets there is answered by INIT ACK, or by ABORT where a kernel speaks SCTP and nobody
//! listens. Further than that nothing goes: the association stays half open, as after a client that went away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::probe::readable;

/// Lengths of the common header (section 3.1) and of INIT and INIT ACK without parameters (3.3.2, 3.3.3).
const HEADER: usize = 12;
const CHUNK: usize = 20;
/// Chunk types (section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// The parameter of INIT ACK that none is without (section 3.3.3.1.1).
const STATE_COOKIE: u16 = 7;

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// What is read of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    from_port: u16,
    to_port: u16,
    tag: u32,
    /// Type of the first chunk.
    kind: u8,
    /// Initiate Tag, of INIT and INIT ACK.
    initiate: u32,
}

impl Packet {
    /// `None` where it is none, or its checksum is wrong.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let mut plain = bytes.to_vec();
        plain.get_mut(8..HEADER)?.fill(0);
        if crc32c::crc32c(&plain).to_le_bytes() != bytes[8..HEADER] {
            return None;
        }
        let kind = *bytes.get(HEADER)?;
        let initiate = if matches!(kind, INIT | INIT_ACK) { word(HEADER + 4)? } else { 0 };
        Some(Self { from_port: half(0)?, to_port: half(2)?, tag: word(4)?, kind, initiate })
    }

    /// INIT or INIT ACK as bytes. The checksum is little-endian (section 6.8, appendix A).
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + CHUNK + 8);
        bytes.extend(self.from_port.to_be_bytes());
        bytes.extend(self.to_port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        let cookie = if self.kind == INIT_ACK { 8 } else { 0 };
        bytes.extend([self.kind, 0]);
        bytes.extend((CHUNK as u16 + cookie).to_be_bytes());
        bytes.extend(self.initiate.to_be_bytes());
        // a_rwnd, outbound and inbound streams, and the initial TSN.
        bytes.extend(65_536u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(self.initiate.to_be_bytes());
        if cookie != 0 {
            bytes.extend(STATE_COOKIE.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend([0; 4]);
        }
        let sum = crc32c::crc32c(&bytes);
        bytes[8..HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// A raw socket for SCTP with one address of its own, if one is given.
fn socket(own: Option<IpAddr>, like: IpAddr) -> Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(like, 0));
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::SCTP)).context("a raw socket")?;
    if let Some(ip) = own {
        socket.bind(&SocketAddr::new(ip, 0).into()).with_context(|| format!("send from {ip}"))?;
    }
    Ok(socket)
}

/// The next packet, and who sent it; `None`: there is none now.
fn receive(socket: &Socket, v4: bool) -> io::Result<Option<(Packet, IpAddr)>> {
    let mut buffer = [0u8; 2048];
    loop {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let (n, from) = match rustix::net::recvfrom(socket, &mut buffer[..], flags) {
            Ok((n, _, from)) => (n, from),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let header = if v4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let packet = buffer[..n].get(header..).and_then(Packet::parse);
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        if let (Some(packet), Some(from)) = (packet, from) {
            return Ok(Some((packet, from.ip())));
        }
    }
}

/// Whether an INIT gets to a port; so it did where somebody there says that nobody speaks SCTP.
///
/// # Errors
/// When there is no socket, or not with this address.
pub(crate) fn reaches(from: Option<IpAddr>, to: SocketAddr, until: Instant) -> Result<bool> {
    let socket = socket(from, to.ip())?;
    let count = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    let from_port = 32_768 | (std::process::id() as u16).rotate_left(6).wrapping_add(count);
    let initiate = 0x4357_0000 | u32::from(from_port);
    let init = Packet { from_port, to_port: to.port(), tag: 0, kind: INIT, initiate };
    let sent = socket
        .connect(&SocketAddr::new(to.ip(), 0).into())
        .and_then(|()| socket.send(&init.bytes()));
    if sent.is_err() {
        return Ok(false);
    }
    while readable(&socket, until)? {
        match receive(&socket, to.is_ipv4()) {
            Ok(Some((packet, _))) => {
                let back = packet.from_port == to.port() && packet.to_port == from_port;
                let answer = matches!(packet.kind, INIT_ACK | ABORT) && packet.tag == initiate;
                // What a host sends itself comes to all its raw sockets, and nobody need answer.
                if packet == init || back && answer {
                    return Ok(true);
                }
            }
            Ok(None) => {}
            // ICMP's and ICMPv6's word for a protocol that the host does not speak
            // (`icmp_err_convert` in net/ipv4/icmp.c, `icmpv6_err_convert` in net/ipv6/icmp.c).
            Err(e) => {
                let none = [Errno::NOPROTOOPT, Errno::PROTO].map(|e| Some(e.raw_os_error()));
                return Ok(none.contains(&e.raw_os_error()));
            }
        }
    }
    Ok(false)
}

/// Answers at one port of one address.
pub(crate) struct Listener {
    socket: Socket,
    at: SocketAddr,
}

impl Listener {
    /// # Errors
    /// When there is no socket, or not with this address.
    pub(crate) fn open(at: SocketAddr) -> Result<Self> {
        Ok(Self { socket: socket(Some(at.ip()), at.ip())?, at })
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Answers all that has come.
    pub(crate) fn answer(&self) {
        while let Ok(Some((init, from))) = receive(&self.socket, self.at.is_ipv4()) {
            if init.kind != INIT || init.to_port != self.at.port() {
                continue;
            }
            let answer = Packet {
                from_port: self.at.port(),
                to_port: init.from_port,
                tag: init.initiate,
                kind: INIT_ACK,
                initiate: !init.initiate,
            };
            // Who asked may be gone.
            let _ = self.socket.send_to(&answer.bytes(), &SocketAddr::new(from, 0).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        for kind in [INIT, INIT_ACK] {
            let packet =
                Packet { from_port: 40_000, to_port: 3868, tag: 7, kind, initiate: 0x8765_4321 };
            let mut bytes = packet.bytes();
            // Chunks and packets end at a multiple of four.
            assert_eq!(bytes.len() % 4, 0);
            let length = u16::from_be_bytes([bytes[14], bytes[15]]);
            assert_eq!(usize::from(length), bytes.len() - HEADER);
            assert_eq!(Packet::parse(&bytes), Some(packet));
            for cut in 0..bytes.len() {
                assert_eq!(Packet::parse(&bytes[..cut]), None);
            }
            bytes[13] ^= 1;
            assert_eq!(Packet::parse(&bytes), None, "the checksum is wrong");
        }
    }
}
