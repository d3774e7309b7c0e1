//! News of changes that others made.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use causeway_model::nft::NftFamily;
use causeway_types::{Cidr, Family, IfName, Mac};
use ipnet::IpNet;
use rustix::event::epoll;

use crate::error::Error;
use crate::netns::NetNs;
use crate::rtnl::read;
use crate::sock::{Bus, Reply, Socket, find};

/// Groups of rtnetlink (`RTNLGRP_*`): links, neighbours, addresses, routes and kernel parameters of
/// both families.
const ROUTE_GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// `RTM_NEWNETCONF` (`linux/rtnetlink.h`).
const RTM_NEWNETCONF: u16 = 80;
/// Group of nfnetlink: `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction.
const NEWGEN: u16 = NFTABLES << 8 | 15;
/// `NFT_MSG_DELTABLE`.
const DELTABLE: u16 = NFTABLES << 8 | 2;
/// `NFPROTO_INET` and `NFPROTO_NETDEV`.
const INET: u8 = 1;
const NETDEV: u8 = 5;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IP: u8 = 2;
const IP6: u8 = 10;
/// How much is read at a time, so that a flood of news cannot hold up the reader.
const DATAGRAMS: usize = 1024;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link, or the port of a bridge that it is, came, changed or went.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: IfName,
        /// It went.
        gone: bool,
    },
    /// An address of an interface.
    Addr {
        /// The interface's index.
        index: u32,
        /// The address.
        addr: IpNet,
        /// It went.
        gone: bool,
    },
    /// A route of a table other than `local`.
    Route {
        /// Destination.
        dst: Cidr,
        /// Table.
        table: u32,
        /// Who made it (`RTPROT_*`).
        protocol: u8,
        /// It went.
        gone: bool,
    },
    /// A neighbour that was permanent, or is, or is no more. What the kernel learns and forgets by
    /// itself is not told.
    Neigh {
        /// The interface's index.
        index: u32,
        /// Its address.
        ip: IpAddr,
        /// It went.
        gone: bool,
    },
    /// A forwarding entry.
    Fdb {
        /// The port's or tunnel device's index.
        index: u32,
        /// Ethernet address.
        mac: Mac,
        /// It went.
        gone: bool,
    },
    /// A kernel parameter of an interface, or of all: forwarding, proxying or reverse path filter.
    /// Of other parameters the kernel says nothing.
    Parameter {
        /// Of which family.
        family: Family,
    },
    /// Something in a table of family `ip` or `ip6`, which those of iptables are. We have none there.
    Foreign,
    /// An nftables table, or something in it.
    Table {
        /// Family.
        family: NftFamily,
        /// Name.
        name: String,
        /// The table itself went.
        gone: bool,
        /// The port of the socket by which it was done, see [`crate::nft::Nft::port`].
        by: u32,
    },
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Events {
    /// These changes happened, in order. Repetitions in a row are left out.
    Changed(Vec<Event>),
    /// News were lost: anything may have changed.
    Overrun,
}

/// Listens to all that changes in one namespace. To be polled for reading, then read.
#[derive(Debug)]
pub struct Monitor {
    ready: OwnedFd,
    sockets: [Socket; 2],
}

impl Monitor {
    /// Listens in the namespace of the calling thread, from now on.
    ///
    /// # Errors
    /// When the system refuses the sockets.
    pub fn open() -> Result<Self, Error> {
        let mut route = Socket::open(Bus::Route)?;
        for group in ROUTE_GROUPS {
            route.join(group)?;
        }
        let mut netfilter = Socket::open(Bus::Netfilter)?;
        netfilter.join(NFTABLES_GROUP)?;
        let setup = |e| Error::socket("wait for news of the kernel", e);
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(setup)?;
        for socket in [&route, &netfilter] {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&ready, socket, data, epoll::EventFlags::IN).map_err(setup)?;
        }
        Ok(Self { ready, sockets: [route, netfilter] })
    }

    /// Listens in another namespace.
    ///
    /// # Errors
    /// As [`Monitor::open`], and when the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        let _inside = ns.enter()?;
        Self::open()
    }

    /// Reads what there is, without waiting; nothing is an empty list. Ends after about a thousand
    /// messages: whoever polls is told at once that there is more.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn read(&mut self) -> Result<Events, Error> {
        let mut events: Vec<Event> = Vec::new();
        let mut overrun = false;
        for socket in &mut self.sockets {
            for _ in 0..DATAGRAMS {
                let datagram = match socket.receive_now() {
                    Ok(Some(datagram)) => datagram,
                    Ok(None) => break,
                    Err(Error::Overrun { .. }) => {
                        overrun = true;
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                for event in Reply::split(datagram).filter_map(decode) {
                    if events.last() != Some(&event) {
                        events.push(event);
                    }
                }
            }
        }
        Ok(if overrun { Events::Overrun } else { Events::Changed(events) })
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

fn decode(reply: Reply<'_>) -> Option<Event> {
    match reply.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link(reply),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address(reply),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(reply),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => neighbour(reply),
        RTM_NEWNETCONF => read::family(reply.body).map(|family| Event::Parameter { family }),
        NEWGEN => None,
        kind if kind >> 8 == NFTABLES => table(reply),
        _ => None,
    }
}

/// The value of an attribute after a fixed header.
fn attribute(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    find(body.get(header..)?, kind)
}

/// The port of a bridge is told as a link of family AF_BRIDGE; that a link is no port any more
/// does not mean that it is gone.
fn link(reply: Reply<'_>) -> Option<Event> {
    let port = i32::from(*reply.body.first()?) == libc::AF_BRIDGE;
    let name = read::text(attribute(reply.body, 16, libc::IFLA_IFNAME)?)?;
    Some(Event::Link {
        index: read::number_at(reply.body, 4)?,
        name: IfName::new(name).ok()?,
        gone: reply.kind == libc::RTM_DELLINK && !port,
    })
}

fn address(reply: Reply<'_>) -> Option<Event> {
    let local = attribute(reply.body, 8, libc::IFA_LOCAL);
    let ip = read::ip(local.or_else(|| attribute(reply.body, 8, libc::IFA_ADDRESS))?)?;
    Some(Event::Addr {
        index: read::number_at(reply.body, 4)?,
        addr: IpNet::new(ip, *reply.body.get(1)?).ok()?,
        gone: reply.kind == libc::RTM_DELADDR,
    })
}

fn route(reply: Reply<'_>) -> Option<Event> {
    const HEADER: usize = 12;
    let family = read::family(reply.body)?;
    let [_, dst_len, _, _, table, protocol, ..] = *reply.body.first_chunk::<HEADER>()?;
    let table = attribute(reply.body, HEADER, libc::RTA_TABLE)
        .and_then(read::number)
        .unwrap_or_else(|| u32::from(table));
    if table == u32::from(libc::RT_TABLE_LOCAL) {
        return None;
    }
    let dst = match attribute(reply.body, HEADER, libc::RTA_DST) {
        Some(value) => read::ip(value)?,
        None => family.unspecified(),
    };
    Some(Event::Route {
        dst: Cidr::of(IpNet::new(dst, dst_len).ok()?),
        table,
        protocol,
        gone: reply.kind == libc::RTM_DELROUTE,
    })
}

/// A permanent neighbour that is deleted is told as failed first.
fn neighbour(reply: Reply<'_>) -> Option<Event> {
    const HEADER: usize = 12;
    let index = read::number_at(reply.body, 4)?;
    let gone = reply.kind == libc::RTM_DELNEIGH;
    if i32::from(*reply.body.first()?) == libc::AF_BRIDGE {
        let mac = read::mac(attribute(reply.body, HEADER, libc::NDA_LLADDR)?)?;
        return Some(Event::Fdb { index, mac, gone });
    }
    let state = u16::from_ne_bytes([*reply.body.get(8)?, *reply.body.get(9)?]);
    let proxy = reply.body.get(10)? & libc::NTF_PROXY != 0;
    if !gone && !proxy && state & (libc::NUD_PERMANENT | libc::NUD_FAILED) == 0 {
        return None;
    }
    let ip = read::ip(attribute(reply.body, HEADER, libc::NDA_DST)?)?;
    Some(Event::Neigh { index, ip, gone: gone || state & libc::NUD_FAILED != 0 })
}

/// The name of the table is the first attribute of tables, chains, rules, sets and elements alike.
fn table(reply: Reply<'_>) -> Option<Event> {
    let family = match *reply.body.first()? {
        INET => NftFamily::Inet,
        NETDEV => NftFamily::Netdev,
        IP | IP6 => return Some(Event::Foreign),
        _ => return None,
    };
    let name = read::text(attribute(reply.body, 4, 1)?)?.to_owned();
    Some(Event::Table { family, name, gone: reply.kind == DELTABLE, by: reply.port })
}
