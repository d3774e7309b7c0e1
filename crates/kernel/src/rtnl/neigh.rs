//! Neighbours: permanent entries, and proxy entries that the node answers for.

use std::net::IpAddr;

use causeway_model::Neigh;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::read::{self, Names};
use super::{family_of, request};
use crate::sock::{CREATE, REPLACE, Reply, Request, attributes};

/// `struct ndmsg`.
pub(crate) const HEADER: usize = 12;

/// The request for a dump of both families: of the neighbours, or of the proxy entries, which the
/// kernel gives out only on their own.
pub(crate) fn dump(proxy: bool) -> Request {
    let mut message = NeighbourMessage::default();
    if proxy {
        message.header.flags = NeighbourFlags::Proxy;
    }
    request(libc::RTM_GETNEIGH, &message, 0)
}

/// The request that adds an entry, or puts it in place of one of the same address: the kernel may
/// have learned one on its own.
pub(crate) fn create(neigh: &Neigh, index: u32) -> Request {
    request(libc::RTM_NEWNEIGH, &message(neigh, index), CREATE | REPLACE)
}

/// The request that removes an entry.
pub(crate) fn remove(neigh: &Neigh, index: u32) -> Request {
    let mut message = message(neigh, index);
    message.attributes.truncate(1);
    request(libc::RTM_DELNEIGH, &message, 0)
}

pub(crate) fn address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }
}

fn message(neigh: &Neigh, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(neigh.ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    if neigh.proxy {
        message.header.flags = NeighbourFlags::Proxy;
    }
    message.attributes.push(NeighbourAttribute::Destination(address(neigh.ip)));
    let mac = neigh.mac.filter(|_| !neigh.proxy);
    message.attributes.extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.0.to_vec())));
    message
}

/// Reads a neighbour message; `None` for entries that the kernel learned by itself.
pub(crate) fn decode(reply: Reply<'_>, names: &Names) -> Option<Neigh> {
    let header = reply.body.get(..HEADER)?;
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let proxy = header[10] & libc::NTF_PROXY != 0;
    if !proxy && state & libc::NUD_PERMANENT == 0 {
        return None;
    }
    entry(reply, names, proxy)
}

/// The request that puts an entry in place of what is known of its address: one that stays, or one that
/// counts and that the kernel asks about when it was used (`NUD_STALE`).
pub(crate) fn set(neigh: &Neigh, index: u32) -> Request {
    let mut message = message(neigh, index);
    if !neigh.permanent {
        message.header.state = NeighbourState::Stale;
    }
    request(libc::RTM_NEWNEIGH, &message, CREATE | REPLACE)
}

/// An entry that the kernel can use at present, learned or permanent.
pub(crate) fn decode_usable(reply: Reply<'_>, names: &Names) -> Option<Neigh> {
    let header = reply.body.get(..HEADER)?;
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let usable = libc::NUD_PERMANENT
        | libc::NUD_REACHABLE
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE;
    let found = (state & usable != 0).then(|| entry(reply, names, false)).flatten()?;
    Some(Neigh { permanent: state & libc::NUD_PERMANENT != 0, ..found })
}

fn entry(reply: Reply<'_>, names: &Names, proxy: bool) -> Option<Neigh> {
    let header = reply.body.get(..HEADER)?;
    read::family(header)?;
    let (mut ip, mut mac) = (None, None);
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::NDA_DST => ip = read::ip(value),
            libc::NDA_LLADDR => mac = read::mac(value),
            _ => {}
        }
    }
    let dev = names.get(&read::number_at(header, 4)?)?.clone();
    Some(Neigh { dev, ip: ip?, mac, proxy, permanent: true })
}
