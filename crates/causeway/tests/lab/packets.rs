//! Packets by hand: what raw sockets and foreign hosts may try.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use causeway_lab::inside;
use causeway_types::{Mac, Vni};
use socket2::{Domain, Protocol, Socket, Type};

/// Internet checksum (RFC 1071).
fn checksum(chunks: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for chunk in chunks {
        for pair in chunk.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An IP packet that holds a UDP datagram.
pub(crate) fn ip_udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp = Vec::new();
    udp.extend(4000u16.to_be_bytes());
    udp.extend(port.to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let (src, dst) = (octets(from), octets(to));
    let sum = checksum(&[&src, &dst, &[0, 17], &length.to_be_bytes(), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = match from {
        IpAddr::V4(_) => {
            let total = 20 + length;
            let mut head = vec![0x45, 0];
            head.extend(total.to_be_bytes());
            head.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            head.extend(&src);
            head.extend(&dst);
            let sum = checksum(&[&head]);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            head
        }
        IpAddr::V6(_) => {
            let mut head = vec![0x60, 0, 0, 0];
            head.extend(length.to_be_bytes());
            head.extend([17, 64]);
            head.extend(&src);
            head.extend(&dst);
            head
        }
    };
    packet.extend(udp);
    packet
}

/// A VXLAN packet's payload (RFC 7348, section 5): header, inner Ethernet header, inner IP packet.
pub(crate) fn vxlan(vni: Vni, to: Mac, ip: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend(&vni.get().to_be_bytes()[1..]);
    packet.push(0);
    packet.extend(to.0);
    packet.extend([2, 0, 0, 0, 0, 9]);
    packet.extend(if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    packet.extend(ip);
    packet
}

/// Sends a UDP datagram from a namespace.
pub(crate) fn send_udp(ns: &Path, to: SocketAddr, payload: &[u8]) -> anyhow::Result<()> {
    inside(ns, || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        UdpSocket::bind(any)?.send_to(payload, to)?;
        Ok(())
    })
}

/// Sends a packet of any protocol from a namespace, through a raw socket.
pub(crate) fn send_raw(ns: &Path, to: IpAddr, protocol: i32, payload: &[u8]) -> anyhow::Result<()> {
    inside(ns, || {
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
        socket.send_to(payload, &SocketAddr::new(to, 0).into())?;
        Ok(())
    })
}

/// A waiting receiver in a namespace.
pub(crate) struct Ear(Socket);

impl Ear {
    /// Hears UDP datagrams to a port.
    pub(crate) fn udp(ns: &Path, ip: IpAddr, port: u16) -> Self {
        let open = || Ok(UdpSocket::bind(SocketAddr::new(ip, port))?);
        Self(Socket::from(inside(ns, open).unwrap()))
    }

    /// Hears packets of a protocol.
    pub(crate) fn raw(ns: &Path, ip: IpAddr, protocol: i32) -> Self {
        let open = || {
            let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            Ok(Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?)
        };
        Self(inside(ns, open).unwrap())
    }

    /// Did anything come in this time?
    pub(crate) fn hears(&self, wait: Duration) -> bool {
        self.sender(wait).is_some()
    }

    /// Who sent what came in this time.
    pub(crate) fn sender(&self, wait: Duration) -> Option<IpAddr> {
        self.0.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 2048];
        let (_, from) = self.0.recv_from(&mut buffer).ok()?;
        from.as_socket().map(|address| address.ip())
    }
}
