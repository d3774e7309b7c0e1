//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::Addr;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::read::{self, Names};
use super::{family_of, request};
use crate::sock::{CREATE, EXCL, REPLACE, Reply, Request, attributes};

/// `struct ifaddrmsg`.
const HEADER: usize = 8;

/// The request for a dump of the addresses of both families.
pub(crate) fn dump() -> Request {
    request(libc::RTM_GETADDR, &AddressMessage::default(), 0)
}

/// The request for a dump of the addresses of one interface (strict checking of dump requests, since
/// 4.20, makes the kernel look at the index).
pub(crate) fn dump_of(index: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    request(libc::RTM_GETADDR, &message, 0)
}

/// The request for an IPv6 address of any interface (`inet6_rtm_getaddr`).
pub(crate) fn get(ip: Ipv6Addr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family_of(ip.into());
    message.attributes = vec![AddressAttribute::Address(ip.into())];
    request(libc::RTM_GETADDR, &message, 0)
}

/// The request that adds an address.
pub(crate) fn create(addr: &Addr, index: u32) -> Request {
    request(libc::RTM_NEWADDR, &whole(addr, index), CREATE | EXCL)
}

/// The request that gives an address other flags.
pub(crate) fn change(addr: &Addr, index: u32) -> Request {
    request(libc::RTM_NEWADDR, &whole(addr, index), CREATE | REPLACE)
}

/// The request that removes an address.
pub(crate) fn remove(addr: &Addr, index: u32) -> Request {
    request(libc::RTM_DELADDR, &bare(addr, index), 0)
}

fn bare(addr: &Addr, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(addr.addr.addr());
    message.header.prefix_len = addr.addr.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(addr.addr.addr()),
        AddressAttribute::Local(addr.addr.addr()),
    ];
    message
}

fn whole(addr: &Addr, index: u32) -> AddressMessage {
    let mut message = bare(addr, index);
    let mut flags = AddressFlags::empty();
    if addr.noprefixroute {
        flags |= AddressFlags::Noprefixroute;
    }
    if addr.addr.addr().is_ipv6() && !addr.dad {
        flags |= AddressFlags::Nodad;
    }
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message.attributes.extend(broadcast(addr.addr).map(AddressAttribute::Broadcast));
    message
}

/// The broadcast address of an IPv4 network that has room for one (RFC 3021: a /31 has not).
fn broadcast(net: IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    }
}

/// True for the message of an address of an interface that another host of the link has.
pub(crate) fn is_duplicate(reply: Reply<'_>, index: u32, ip: IpAddr) -> bool {
    let Some(header) = reply.body.get(..HEADER) else { return false };
    let all = || attributes(&reply.body[HEADER..]);
    let own = all().any(|(kind, value)| kind == libc::IFA_ADDRESS && read::ip(value) == Some(ip));
    let wide =
        all().find_map(|(kind, value)| read::number(value).filter(|_| kind == libc::IFA_FLAGS));
    let flags = wide.unwrap_or(u32::from(header[2]));
    own && read::number_at(header, 4) == Some(index) && flags & libc::IFA_F_DADFAILED != 0
}

/// Reads an address message.
pub(crate) fn decode(reply: Reply<'_>, names: &Names) -> Option<Addr> {
    let header = reply.body.get(..HEADER)?;
    let family = read::family(header)?;
    let mut flags = u32::from(header[2]);
    let (mut address, mut local): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::IFA_ADDRESS => address = read::ip(value),
            // On a point-to-point link IFA_ADDRESS is the other side's.
            libc::IFA_LOCAL => local = read::ip(value),
            libc::IFA_FLAGS => flags = read::number(value)?,
            _ => {}
        }
    }
    let ip = local.or(address)?;
    (ip.is_ipv4() == (family == causeway_types::Family::V4)).then_some(())?;
    Some(Addr {
        dev: names.get(&read::number_at(header, 4)?)?.clone(),
        addr: IpNet::new(ip, header[1]).ok()?,
        noprefixroute: flags & libc::IFA_F_NOPREFIXROUTE != 0,
        dad: false,
    })
}
