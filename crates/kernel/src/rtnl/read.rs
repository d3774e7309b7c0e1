//! Values of attributes and fixed headers. A value of the wrong length is none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_types::{Family, IfName, Mac};

/// Names of interfaces by index.
pub(crate) type Names = HashMap<u32, IfName>;

/// A number in the machine's byte order.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A number at a place of a fixed header.
pub(crate) fn number_at(header: &[u8], at: usize) -> Option<u32> {
    number(header.get(at..at + 4)?)
}

/// A flag or small number of one byte.
pub(crate) fn byte(value: &[u8]) -> Option<u8> {
    value.first().copied()
}

/// Text up to the closing zero.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

/// An Ethernet address.
pub(crate) fn mac(value: &[u8]) -> Option<Mac> {
    value.try_into().ok().map(Mac)
}

/// An IP address, of the family that its length says.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(value).ok().map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    }
}

/// The address family of a header's first byte.
pub(crate) fn family(header: &[u8]) -> Option<Family> {
    match i32::from(*header.first()?) {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// Appends an attribute (`struct nlattr` with its value, padded to 4 bytes).
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
