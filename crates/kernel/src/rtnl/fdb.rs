//! Forwarding entries of bridge ports and VXLAN devices.

use causeway_model::Fdb;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::neigh::{HEADER, address};
use super::read::{self, Names};
use super::request;
use crate::sock::{CREATE, REPLACE, Reply, Request, attributes};

/// The request for a dump of all forwarding entries.
pub(crate) fn dump() -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    request(libc::RTM_GETNEIGH, &message, 0)
}

/// The request that adds an entry, or puts it in place of one of the same address: a bridge may
/// have learned one on its own.
pub(crate) fn create(fdb: &Fdb, index: u32) -> Request {
    request(libc::RTM_NEWNEIGH, &message(fdb, index), CREATE | REPLACE)
}

/// The request that removes an entry.
pub(crate) fn remove(fdb: &Fdb, index: u32) -> Request {
    request(libc::RTM_DELNEIGH, &message(fdb, index), 0)
}

/// In a bridge (NTF_MASTER) a static entry is NUD_NOARP; NUD_PERMANENT would say that the address
/// is the bridge's own. In a tunnel device (NTF_SELF) it is NUD_PERMANENT.
fn message(fdb: &Fdb, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(fdb.mac.0.to_vec()));
    match fdb.dst {
        None => {
            message.header.state = NeighbourState::Noarp;
            message.header.flags = NeighbourFlags::Controller;
        }
        Some(dst) => {
            message.header.state = NeighbourState::Permanent;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::Destination(address(dst)));
        }
    }
    message
}

/// Reads a forwarding entry; `None` for what was learned, for the ports' own addresses, for the
/// filters of devices (multicast groups that they take) and for entries of a VLAN.
pub(crate) fn decode(reply: Reply<'_>, names: &Names) -> Option<Fdb> {
    let header = reply.body.get(..HEADER)?;
    if i32::from(header[0]) != libc::AF_BRIDGE {
        return None;
    }
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let own = header[10] & libc::NTF_SELF != 0;
    let (mut mac, mut dst, mut vlan) = (None, None, false);
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::NDA_LLADDR => mac = read::mac(value),
            libc::NDA_DST => dst = read::ip(value),
            libc::NDA_VLAN => vlan = true,
            _ => {}
        }
    }
    let fixed = match (own, dst) {
        (true, Some(_)) => state & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0,
        (false, None) => state & libc::NUD_NOARP != 0,
        _ => false,
    };
    if !fixed || vlan {
        return None;
    }
    let mac = mac.filter(|m| m.0 != [0; 6])?;
    let dev = names.get(&read::number_at(header, 4)?)?.clone();
    Some(Fdb { dev, mac, dst, permanent: true })
}
