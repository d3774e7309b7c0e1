//! Connection tracking: forgetting the connections of an address.
//!
//! An address that is given to a new pod must not inherit its predecessor's connections: their
//! entries hold verdicts and translations that were made for somebody else.

use std::net::{IpAddr, SocketAddr};

use causeway_types::Family;

use crate::error::Error;
use crate::netns::NetNs;
use crate::rtnl::read;
use crate::sock::{Bus, Reply, Request, Socket, attributes};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
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

    /// Deletes the entries of which the address is an end: source or destination, before or after
    /// translation. Answers how many there were.
    ///
    /// # Errors
    /// When the kernel has no connection tracking, or refuses.
    pub fn delete_for(&mut self, addr: IpAddr) -> Result<usize, Error> {
        let mut entries: Vec<Entry> = Vec::new();
        for request in requests(addr) {
            let read = |reply: Reply<'_>| {
                let holds = ENDS.iter().any(|end| address_at(reply.body, *end, addr) == Some(addr));
                holds.then(|| entry(reply.body)).flatten()
            };
            for found in self.socket.dump("read tracked connections", request, read)? {
                // A connection without translation is found by both of its tuples.
                if entries.iter().all(|e| e.id != found.id) {
                    entries.push(found);
                }
            }
        }
        self.delete(entries, || format!("of {addr}"))
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
    fn within(bytes: &[u8], kind: u16) -> Option<&[u8]> {
        attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
    }
    let end = |tuple: u16, source: bool| {
        let tuple = within(body.get(HEADER..)?, tuple)?;
        let proto = within(tuple, TUPLE_PROTO)?;
        (*within(proto, PROTO_NUM)?.first()? == protocol).then_some(())?;
        let addresses = within(tuple, TUPLE_IP)?;
        let kinds = if source { [1, 3] } else { [2, 4] };
        let ip = kinds.into_iter().find_map(|kind| read::ip(within(addresses, kind)?))?;
        let port = within(proto, if source { PROTO_SRC_PORT } else { PROTO_DST_PORT })?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
    };
    Some(Flow { to: end(TUPLE_ORIG, false)?, answers: end(TUPLE_REPLY, true)? })
}

/// The dumps in which every entry of the address shows up.
///
/// For IPv4 the kernel filters (`CTA_FILTER`, since 5.8), which spares reading a large table. Its
/// filter by IPv6 addresses lets through the others instead, so IPv6 is read as a whole.
fn requests(addr: IpAddr) -> Vec<Request> {
    let IpAddr::V4(v4) = addr else {
        return vec![Request::new(GET, 0, header(libc::AF_INET6 as u8))];
    };
    let filtered = |end: &End| {
        let mut body = header(libc::AF_INET as u8);
        let [orig, reply] = end.flags();
        nest(&mut body, end.tuple, |b| {
            nest(b, TUPLE_IP, |b| put(b, end.attribute(addr), &v4.octets()));
        });
        nest(&mut body, FILTER, |b| {
            put(b, FILTER_ORIG_FLAGS, &orig.to_ne_bytes());
            put(b, FILTER_REPLY_FLAGS, &reply.to_ne_bytes());
        });
        Request::new(GET, 0, body)
    };
    ENDS.iter().map(filtered).collect()
}

/// The address that an entry has at an end, if it is of the same family as `like`.
fn address_at(body: &[u8], end: End, like: IpAddr) -> Option<IpAddr> {
    fn within(bytes: &[u8], kind: u16) -> Option<&[u8]> {
        attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
    }
    let tuple = within(body.get(HEADER..)?, end.tuple)?;
    read::ip(within(within(tuple, TUPLE_IP)?, end.attribute(like))?)
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
