//! By which way a packet would leave.

use std::net::IpAddr;

use causeway_model::{Route, RouteKind};
use causeway_types::{Cidr, Family, IfName, Mtu};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use crate::error::Error;
use crate::handle::{Handle, Routes};
use crate::rtnl::read::{self, Names};
use crate::rtnl::{address_family, link, request, route};
use crate::sock::{Reply, Request, attributes};

/// `struct rtmsg`.
const HEADER: usize = 12;

/// Routes that do not count: those that we made ourselves must not decide how we reach a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// Routing protocols (`RTPROT_*`).
    pub protocols: Vec<u8>,
    /// Outgoing interfaces.
    pub devices: Vec<IfName>,
}

/// The way to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Outgoing interface; the loopback device for an address of this namespace.
    pub dev: IfName,
    /// The gateway; `None`: the destination is on link.
    pub via: Option<IpAddr>,
    /// The source address that the kernel would choose, where it says so.
    pub src: Option<IpAddr>,
    /// The MTU that the route or what was learned of the path asks for; `None`: the device's.
    pub mtu: Option<Mtu>,
    /// The routing protocol of the route (`RTPROT_*`).
    pub protocol: u8,
    /// The destination is an address of this namespace.
    pub local: bool,
}

/// What a lookup answered.
pub(crate) struct Answer {
    index: u32,
    via: Option<IpAddr>,
    src: Option<IpAddr>,
    mtu: Option<Mtu>,
    protocol: u8,
    local: bool,
}

impl Handle {
    /// Whether packets to `ip` are taken in here. An IPv6 address that was just added may not be
    /// there yet for packets: the kernel makes its route (table `local`) a moment later, on its own
    /// time, also for an address without duplicate address detection.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_local(&mut self, ip: IpAddr) -> Result<bool, Error> {
        let asked = vec![lookup(ip, RouteFlags::empty())];
        match self.route.get_all("look up a route", asked, decode) {
            Ok(answers) => Ok(answers.into_iter().flatten().any(|way| way.local)),
            Err(Error::Refused { refusal, .. }) if is_no_way(refusal.errno) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The way by which a packet to `dst` would leave; `None` when there is none.
    ///
    /// The kernel is asked, and its answer stands unless it comes from a route that does not
    /// count. Then the best of the remaining routes of table `main` is taken (longest prefix, then
    /// lowest metric), which leaves rules of policy routing out of account.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn route_get(&mut self, dst: IpAddr, without: &Without) -> Result<Option<Path>, Error> {
        let what = "look up a route";
        // What the kernel would do, and which route makes it do so: only the second answer has
        // the route's protocol, only the first one the choice of source and next hop.
        let asked = vec![lookup(dst, RouteFlags::empty()), lookup(dst, RouteFlags::FibMatch)];
        let answers = match self.route.get_all(what, asked, decode) {
            Ok(answers) => answers,
            Err(Error::Refused { refusal, .. }) if is_no_way(refusal.errno) => return Ok(None),
            Err(e) => return Err(e),
        };
        let [Some(way), by] = <[_; 2]>::try_from(answers).unwrap_or([None, None]) else {
            return Ok(None);
        };
        let protocol = by.map_or(way.protocol, |b| b.protocol);
        let device = self.route.get(what, link::get_by_index(way.index), link::decode)?;
        let Some(dev) = device.map(|d| d.link.name) else { return Ok(None) };
        if without.protocols.contains(&protocol) || without.devices.contains(&dev) {
            return self.next_best(dst, without);
        }
        let Answer { via, src, mtu, local, .. } = way;
        Ok(Some(Path { dev, via, src, mtu, protocol, local }))
    }

    fn next_best(&mut self, dst: IpAddr, without: &Without) -> Result<Option<Path>, Error> {
        let links = self.route.dump("read links", link::dump(), link::decode)?;
        let names: Names = links.into_iter().map(|s| (s.index, s.link.name)).collect();
        let routes = self.routes(Routes::Table(Route::MAIN), &names)?;
        Ok(best(&routes, dst, without))
    }
}

fn best(routes: &[Route], dst: IpAddr, without: &Without) -> Option<Path> {
    let counts = |r: &&Route| {
        let dev = r.dev.as_ref();
        r.dst.contains(dst)
            && !without.protocols.contains(&r.protocol)
            && dev.is_none_or(|dev| !without.devices.contains(dev))
    };
    let order = |r: &&Route| (r.dst.prefix_len(), std::cmp::Reverse(r.metric));
    // Of several equal ones the first counts, as in the kernel.
    let found = routes.iter().rev().filter(counts).max_by_key(order)?;
    if found.kind != RouteKind::Unicast {
        return None;
    }
    Some(Path {
        dev: found.dev.clone()?,
        via: found.via,
        src: found.src,
        mtu: found.mtu,
        protocol: found.protocol,
        local: false,
    })
}

fn lookup(dst: IpAddr, flags: RouteFlags) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(dst));
    message.header.destination_prefix_length = Cidr::host(dst).prefix_len();
    message.header.flags = flags;
    message.attributes.push(RouteAttribute::Destination(route::address(dst)));
    request(libc::RTM_GETROUTE, &message, 0)
}

/// The errors by which the kernel says that it would not send the packet: no route, or one of type
/// unreachable, prohibit, blackhole or throw.
fn is_no_way(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::EAGAIN
    )
}

pub(crate) fn decode(reply: Reply<'_>) -> Option<Answer> {
    let [.., protocol, _, kind, _, _, _, _] = *reply.body.first_chunk::<HEADER>()?;
    if kind != libc::RTN_UNICAST && kind != libc::RTN_LOCAL {
        return None;
    }
    let mut answer = Answer {
        index: 0,
        via: None,
        src: None,
        mtu: None,
        protocol,
        local: kind == libc::RTN_LOCAL,
    };
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::RTA_OIF => answer.index = read::number(value)?,
            libc::RTA_GATEWAY => answer.via = read::ip(value),
            libc::RTA_VIA => answer.via = value.get(2..).and_then(read::ip),
            libc::RTA_PREFSRC => answer.src = read::ip(value),
            libc::RTA_METRICS => answer.mtu = route::decode_mtu(value),
            _ => {}
        }
    }
    Some(answer)
}
