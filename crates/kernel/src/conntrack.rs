//! Connection tracking: forgetting the connections of an address.
//!
//! An address that is given to a new pod must not inherit its predecessor's connections: their
//! entries hold verdicts and translations that were made for somebody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use causeway_types::Family;

use crate::error::{Error, Refusal};
use crate::netns::NetNs;
use crate::rtnl::read;
use crate::sock::{Bus, Reply, Request, Socket, attributes, find};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `IPCTNL_MSG_CT_GET_STATS`, whose answer has `CTA_STATS_GLOBAL_ENTRIES`.
const STATS: u16 = 1 << 8 | 5;
const STATS_ENTRIES: u16 = 1;
/// With more entries than this four walks over the kernel's buckets cost less than to hand over all
/// (about a microsecond each).
const FEW: u64 = 20_000;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

// Attributes (`linux/netfilter/nfnetlink_conntrack.h`).
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// `CTA_FILTER_F_CTA_PROTO_NUM`, `CTA_FILTER_F_CTA_PROTO_DST_PORT` of the kernel's ctnetlink.
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;

/// The four addresses of an entry: the source and the destination of either tuple.
const ENDS: [End; 4] = [
    End { tuple: TUPLE_ORIG, source: true },
    End { tuple: TUPLE_ORIG, source: false },
    End { tuple: TUPLE_REPLY, source: true },
    End { tuple: TUPLE_REPLY, source: false },
];

#[derive(Clone, Copy)]
struct End {
    tuple: u16,
    source: bool,
}

impl End {
    /// `CTA_IP_V4_SRC` and its like.
    fn attribute(self, addr: IpAddr) -> u16 {
        match (addr, self.source) {
            (IpAddr::V4(_), true) => 1,
            (IpAddr::V4(_), false) => 2,
            (IpAddr::V6(_), true) => 3,
            (IpAddr::V6(_), false) => 4,
        }
    }

    /// The bits of `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS` that ask for this end.
    fn flags(self) -> [u32; 2] {
        let flag = if self.source { 1 } else { 2 };
        if self.tuple == TUPLE_ORIG { [flag, 0] } else { [0, flag] }
    }
}

/// The connection tracking of one namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

/// What it takes to delete an entry: its own attributes, as they came.
struct Entry {
    id: Vec<u8>,
    body: Vec<u8>,
}

impl Conntrack {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Bus::Netfilter)? })
    }

    /// Opens another namespace.
    ///
    /// # Errors
    /// As [`Conntrack::open`], and when the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open_in(Bus::Netfilter, ns)? })
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// When the kernel has no connection tracking.
    pub fn count(&mut self) -> Result<u64, Error> {
        let read = |reply: Reply<'_>| {
            let entries = attributes(reply.body.get(HEADER..)?).find(|(k, _)| *k == STATS_ENTRIES);
            Some(u64::from(u32::from_be_bytes(*entries?.1.first_chunk()?)))
        };
        let request = Request::new(STATS, 0, header(libc::AF_UNSPEC as u8));
        Ok(self.socket.get("count tracked connections", request, read)?.unwrap_or(u64::MAX))
    }

    /// Deletes the entries of which one of the addresses is an end: source or destination, before or
    /// after translation. `count` is how many entries there are, at about, of all addresses.
    ///
    /// # Errors
    /// When the kernel has no connection tracking, or refuses.
    pub fn delete_for(&mut self, addrs: &[IpAddr], count: u64) -> Result<(), Error> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addrs.iter().partition(|a| a.is_ipv4());
        let requests = v4.iter().filter_map(|a| as_v4(*a)).flat_map(|v4| filtered(v4, DELETE));
        match self.carry_out(requests.collect())? {
            Ok(()) => {}
            // Before 6.9 it looks for one entry, and misses its ports. Nothing was deleted then.
            Err(refusal) if refusal.errno == libc::EINVAL => self.delete_found(&v4, count)?,
            Err(refusal) => return Err(refused(addrs, refusal)),
        }
        self.delete_found(&v6, count)
    }

    /// The same by reading the entries, for kernels that cannot delete by addresses.
    ///
    /// Few are read as a whole, by one dump a family; of many the kernel hands over those of each IPv4
    /// address alone (`CTA_FILTER`, since 5.8), by four dumps that all walk its buckets.
    ///
    /// # Errors
    /// As [`Conntrack::delete_for`].
    pub fn delete_found(&mut self, addrs: &[IpAddr], count: u64) -> Result<(), Error> {
        let mut requests = Vec::new();
        if addrs.iter().any(IpAddr::is_ipv6) {
            requests.push(whole(libc::AF_INET6));
        }
        let v4 = addrs.iter().filter_map(|a| as_v4(*a));
        match count <= FEW {
            true => requests.extend(v4.take(1).map(|_| whole(libc::AF_INET))),
            false => requests.extend(v4.flat_map(|v4| filtered(v4, GET))),
        }
        let mut found: Vec<Entry> = Vec::new();
        for request in requests {
            let read = |reply: Reply<'_>| {
                let is_end = |addr: &IpAddr| {
                    ENDS.iter().any(|end| address_at(reply.body, *end, *addr) == Some(*addr))
                };
                addrs.iter().any(is_end).then(|| entry(reply.body)).flatten()
            };
            for entry in self.socket.dump("read tracked connections", request, read)? {
                // A connection without translation is found by both of its tuples.
                if found.iter().all(|e| e.id != entry.id) {
                    found.push(entry);
                }
            }
        }
        let each = found.into_iter().map(|e| Request::new(DELETE, 0, e.body)).collect();
        self.carry_out(each)?.map_err(|refusal| refused(addrs, refusal))
    }

    /// Deletes; what ended by itself is fine. The inner error is the first refusal.
    fn carry_out(&mut self, requests: Vec<Request>) -> Result<Result<(), Refusal>, Error> {
        let outcomes = self.socket.transact(requests)?;
        Ok(outcomes.into_iter().find(|o| o.as_ref().is_err_and(|r| !r.is_gone())).unwrap_or(Ok(())))
    }
}

/// A connection as it was before and after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the first packet was sent to.
    pub to: SocketAddr,
    /// Who answers.
    pub answers: SocketAddr,
}

impl Conntrack {
    /// Deletes the connections of a protocol (`IPPROTO_*`) and family to one of the ports for
    /// which `wanted` says so. Answers how many there were. The table is read once, which takes
    /// the kernel milliseconds even where it is empty.
    ///
    /// # Errors
    /// As [`Conntrack::delete_for`], and those of `wanted`.
    pub fn delete_to_ports(
        &mut self,
        family: Family,
        protocol: u8,
        ports: &[u16],
        mut wanted: impl FnMut(&Flow) -> Result<bool, Error>,
    ) -> Result<usize, Error> {
        let read = |reply: Reply<'_>| {
            let flow = flow(reply.body, protocol)?;
            ports.contains(&flow.to.port()).then(|| Some((flow, entry(reply.body)?))).flatten()
        };
        if ports.is_empty() {
            return Ok(0);
        }
        let request = to_ports(family, protocol, ports);
        let mut entries = Vec::new();
        for (flow, entry) in self.socket.dump("read tracked connections", request, read)? {
            if wanted(&flow)? {
                entries.push(entry);
            }
        }
        self.delete(entries, || "to a port of the node".to_owned())
    }

    fn delete(&mut self, entries: Vec<Entry>, whose: impl Fn() -> String) -> Result<usize, Error> {
        let requests =
            entries.into_iter().map(|e| Request::new(DELETE, 0, e.body)).collect::<Vec<_>>();
        let mut deleted = 0;
        for outcome in self.socket.transact(requests)? {
            match outcome {
                Ok(()) => deleted += 1,
                // It ended by itself.
                Err(refusal) if refusal.is_gone() => {}
                Err(refusal) => {
                    let what = format!("delete a tracked connection {}", whose());
                    return Err(Error::refused(what, refusal));
                }
            }
        }
        Ok(deleted)
    }
}

/// The dump of the connections to ports. The kernel filters (`CTA_FILTER`, since 5.8), by the port
/// where there is only one.
fn to_ports(family: Family, protocol: u8, ports: &[u16]) -> Request {
    let mut body = header(match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    });
    let one = ports.first().filter(|first| ports.iter().all(|port| port == *first));
    let flags = FILTER_PROTO_NUM | one.map_or(0, |_| FILTER_PROTO_DST_PORT);
    nest(&mut body, TUPLE_ORIG, |tuple| {
        nest(tuple, TUPLE_PROTO, |p| {
            put(p, PROTO_NUM, &[protocol]);
            if let Some(port) = one {
                put(p, PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    nest(&mut body, FILTER, |b| {
        put(b, FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        put(b, FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
    Request::new(GET, 0, body)
}

/// Reads the connection of an entry, if it is of the protocol.
fn flow(body: &[u8], protocol: u8) -> Option<Flow> {
    let end = |tuple: u16, source: bool| {
        let tuple = find(body.get(HEADER..)?, tuple)?;
        let proto = find(tuple, TUPLE_PROTO)?;
        (*find(proto, PROTO_NUM)?.first()? == protocol).then_some(())?;
        let addresses = find(tuple, TUPLE_IP)?;
        let kinds = if source { [1, 3] } else { [2, 4] };
        let ip = kinds.into_iter().find_map(|kind| read::ip(find(addresses, kind)?))?;
        let port = find(proto, if source { PROTO_SRC_PORT } else { PROTO_DST_PORT })?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
    };
    Some(Flow { to: end(TUPLE_ORIG, false)?, answers: end(TUPLE_REPLY, true)? })
}

fn refused(addrs: &[IpAddr], refusal: Refusal) -> Error {
    Error::refused(format!("delete tracked connections of {addrs:?}"), refusal)
}

fn as_v4(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

/// A dump of all entries of a family.
fn whole(family: i32) -> Request {
    Request::new(GET, 0, header(family as u8))
}

/// The requests that together find every entry of an address. To delete by a filter is much
/// cheaper than to dump by one: the kernel passes over empty buckets without a lock.
///
/// For IPv4 alone: the filter by IPv6 addresses lets through all the others instead (seen on 6.18).
fn filtered(v4: Ipv4Addr, kind: u16) -> impl Iterator<Item = Request> {
    ENDS.iter().map(move |end| {
        let mut body = header(libc::AF_INET as u8);
        let [orig, reply] = end.flags();
        nest(&mut body, end.tuple, |b| {
            nest(b, TUPLE_IP, |b| put(b, end.attribute(IpAddr::V4(v4)), &v4.octets()));
        });
        nest(&mut body, FILTER, |b| {
            put(b, FILTER_ORIG_FLAGS, &orig.to_ne_bytes());
            put(b, FILTER_REPLY_FLAGS, &reply.to_ne_bytes());
        });
        Request::new(kind, 0, body)
    })
}

/// The address that an entry has at an end, if it is of the same family as `like`.
fn address_at(body: &[u8], end: End, like: IpAddr) -> Option<IpAddr> {
    let tuple = find(body.get(HEADER..)?, end.tuple)?;
    read::ip(find(find(tuple, TUPLE_IP)?, end.attribute(like))?)
}

fn entry(body: &[u8]) -> Option<Entry> {
    let mut out = header(*body.first()?);
    let mut id = Vec::new();
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            TUPLE_ORIG => put(&mut out, TUPLE_ORIG | NESTED, value),
            ZONE => put(&mut out, ZONE, value),
            ID => {
                // A new connection of the same tuple has another number, and stays.
                put(&mut out, ID, value);
                id = value.to_vec();
            }
            _ => {}
        }
    }
    Some(Entry { id, body: out })
}

fn header(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}
