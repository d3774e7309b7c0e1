//! Model objects to and from rtnetlink messages.
//!
//! Requests are built from the typed messages of `netlink-packet-route`. Answers are read
//! attribute by attribute, and only those that the model knows: an attribute that a newer kernel
//! adds, or gives another length, cannot make a whole dump unreadable.

pub(crate) mod addr;
pub(crate) mod fdb;
pub(crate) mod link;
pub(crate) mod neigh;
pub(crate) mod read;
pub(crate) mod route;

use std::net::IpAddr;

use causeway_types::Family;
use netlink_packet_core::Emitable;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::sock::Request;

/// A request of a typed message.
pub(crate) fn request(message: &RouteNetlinkMessage, flags: u16) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request::new(message.message_type(), flags, body)
}

/// `AF_INET` or `AF_INET6`.
pub(crate) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family of an address as netlink says it.
pub(crate) fn family_of(addr: IpAddr) -> AddressFamily {
    address_family(Family::of(addr))
}
