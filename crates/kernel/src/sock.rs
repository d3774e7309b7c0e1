//! A blocking netlink socket.
//!
//! Works on raw messages, so that rtnetlink and nfnetlink share it: a [`Request`] has a type,
//! flags and a body, a [`Reply`] the same as it came in. Sequence numbers are given out here, and
//! answers are matched by them, so that an answer left over from a failed exchange is never
//! taken for one of the next.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendFlags};

use crate::error::{Error, Refusal};
use crate::netns::NetNs;

/// Bytes of a netlink message header (`struct nlmsghdr`).
pub const HEADER: usize = 16;
/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the table changed while it was dumped.
pub const DUMP_INTR: u16 = 0x10;
/// `NLM_F_DUMP` (`NLM_F_ROOT | NLM_F_MATCH`).
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_CAPPED`: the error message does not repeat the request's body.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ATTR_MSG: u16 = 1;

/// The longest datagram that the kernel sends in a dump is 32 KiB; a single answer may be longer.
const RECEIVE: usize = 128 * 1024;
/// An acknowledgement takes about 800 bytes of the receive buffer: this holds several thousand.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// The most that goes out in one `sendmsg`, unless a single call must stay in one piece.
const SEND_CHUNK: usize = 64 * 1024;
/// The most acknowledgements that are outstanding at a time; see [`RECEIVE_QUEUE`].
const ACKS_CHUNK: usize = 1024;
/// The most answers that are outstanding at a time.
const GETS_CHUNK: usize = 128;
/// How often a dump is repeated when the table changes under it.
const DUMP_TRIES: u32 = 32;

/// Which netlink protocol a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables and conntrack.
    Netfilter,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; `NLM_F_REQUEST` is added.
    pub flags: u16,
    /// All that follows the header.
    pub body: Vec<u8>,
}

/// A message as it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: the sequence number of the request that it answers; 0 for a notification.
    pub seq: u32,
    /// `nlmsg_pid`: the port of the socket whose request it answers or tells of.
    pub port: u32,
    /// All that follows the header.
    pub body: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Splits a datagram into messages. Stops at the first that is not whole.
    pub fn split(mut datagram: &'a [u8]) -> impl Iterator<Item = Reply<'a>> {
        std::iter::from_fn(move || {
            let word = |at: usize| Some(u32::from_ne_bytes(*datagram.get(at..)?.first_chunk()?));
            let half = |at: usize| Some(u16::from_ne_bytes(*datagram.get(at..)?.first_chunk()?));
            let len = word(0)? as usize;
            let reply = Reply {
                kind: half(4)?,
                flags: half(6)?,
                seq: word(8)?,
                port: word(12)?,
                body: datagram.get(HEADER..len)?,
            };
            datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
            Some(reply)
        })
    }

    /// The outcome that this message announces: `Some(Ok)` for an acknowledgement or a dump's end,
    /// `Some(Err)` for a refusal, `None` for a message that carries data.
    pub fn outcome(&self) -> Option<Result<(), Refusal>> {
        let attributes_at = match self.kind {
            NLMSG_DONE => 4,
            NLMSG_ERROR if self.flags & CAPPED != 0 => 4 + HEADER,
            NLMSG_ERROR => {
                let request = self.body.get(4..8).and_then(|b| b.first_chunk().copied());
                4 + (u32::from_ne_bytes(request.unwrap_or_default()) as usize).next_multiple_of(4)
            }
            _ => return None,
        };
        let code = self.body.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
        if code >= 0 {
            return Some(Ok(()));
        }
        let message = (self.flags & ACK_TLVS != 0)
            .then(|| self.body.get(attributes_at..))
            .flatten()
            .and_then(|attrs| attributes(attrs).find(|(kind, _)| *kind == ATTR_MSG))
            .map(|(_, text)| {
                String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
            });
        Some(Err(Refusal { errno: code.saturating_neg(), message }))
    }
}

/// Walks netlink attributes (`struct nlattr`): type without its flag bits, and value. Stops at the
/// first that is not whole.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// What a dump has come to after a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to come.
    More,
    /// It is complete.
    Done,
    /// It is over, but the table changed meanwhile: it must be taken again.
    Interrupted,
}

/// Follows one dump through its datagrams.
#[derive(Debug, Default)]
pub struct DumpReader {
    interrupted: bool,
}

impl DumpReader {
    /// Takes in a datagram: hands the messages that belong to the dump to `each`, and says how far
    /// it is.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read(
        &mut self,
        datagram: &[u8],
        seq: u32,
        mut each: impl FnMut(Reply<'_>),
    ) -> Result<Progress, Refusal> {
        for reply in Reply::split(datagram).filter(|r| r.seq == seq) {
            self.interrupted |= reply.flags & DUMP_INTR != 0;
            match reply.outcome() {
                None => each(reply),
                Some(Ok(())) if self.interrupted => return Ok(Progress::Interrupted),
                Some(Ok(())) => return Ok(Progress::Done),
                Some(Err(refusal)) => return Err(refusal),
            }
        }
        Ok(Progress::More)
    }
}

/// A netlink socket of one network namespace: the one in which it was opened.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    seq: u32,
    buffer: Vec<u8>,
    send_queue: usize,
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread, with extended acknowledgements,
    /// acknowledgements that do not repeat the request, strict checking of dump requests and a
    /// large receive buffer.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open(bus: Bus) -> Result<Self, Error> {
        let protocol = match bus {
            Bus::Route => NETLINK_ROUTE,
            Bus::Netfilter => NETLINK_NETFILTER,
        };
        let mut inner = netlink_sys::Socket::new(protocol)
            .map_err(|e| Error::socket("open a netlink socket", e))?;
        let setup = |e| Error::socket("set up a netlink socket", e);
        inner.bind(&netlink_sys::SocketAddr::new(0, 0)).map_err(setup)?;
        inner.set_ext_ack(true).map_err(setup)?;
        inner.set_cap_ack(true).map_err(setup)?;
        if bus == Bus::Route {
            inner.set_netlink_get_strict_chk(true).map_err(setup)?;
        }
        receive_queue(inner.as_fd(), RECEIVE_QUEUE).map_err(|e| setup(e.into()))?;
        Ok(Self { inner, seq: 0, buffer: vec![0; RECEIVE], send_queue: 2 * SEND_CHUNK })
    }

    /// Opens a socket in another namespace.
    ///
    /// # Errors
    /// As [`Socket::open`], and when the namespace cannot be entered.
    pub fn open_in(bus: Bus, ns: &NetNs) -> Result<Self, Error> {
        let _inside = ns.enter()?;
        Self::open(bus)
    }

    /// The number by which the kernel tells others who changed something (`nl_pid`).
    ///
    /// # Errors
    /// When the socket has none.
    pub fn port(&self) -> Result<u32, Error> {
        let mut address = netlink_sys::SocketAddr::new(0, 0);
        let asked = self.inner.get_address(&mut address);
        asked.map_err(|e| Error::socket("ask a netlink socket for its port", e))?;
        Ok(address.port_number())
    }

    /// Takes part in a multicast group (`RTNLGRP_*`, `NFNLGRP_*`).
    ///
    /// # Errors
    /// When the kernel does not know the group.
    pub fn join(&mut self, group: u32) -> Result<(), Error> {
        self.inner.add_membership(group).map_err(|e| Error::socket("join a netlink group", e))
    }

    /// Sends messages in one `sendmsg` with the flags that they have, and says which sequence
    /// numbers they got, in order.
    ///
    /// # Errors
    /// When the system refuses the datagram. Nothing of it was carried out then.
    pub fn send(&mut self, requests: &[Request]) -> Result<RangeInclusive<u32>, Error> {
        // 0 is for notifications, and a range must not wrap.
        let room = (u32::MAX - self.seq) as usize;
        let first = if requests.len() < room { self.seq + 1 } else { 1 };
        let mut datagram = Vec::with_capacity(requests.iter().map(Request::len).sum());
        self.seq = first - 1;
        for request in requests {
            self.seq += 1;
            request.write(&mut datagram, self.seq);
        }
        self.make_room(datagram.len());
        let sent = retry(|| rustix::net::send(&self.inner, &datagram, SendFlags::empty()));
        match sent {
            Ok(_) => Ok(first..=self.seq),
            Err(e) => Err(Error::socket("send a netlink request", e)),
        }
    }

    /// Waits for one datagram and hands it over.
    ///
    /// # Errors
    /// [`Error::Overrun`] when the kernel lost messages; else what the system says.
    pub fn receive(&mut self) -> Result<&[u8], Error> {
        self.receive_with(RecvFlags::empty())
    }

    /// As [`Socket::receive`], without waiting: `None` when nothing is there.
    ///
    /// # Errors
    /// As [`Socket::receive`].
    pub fn receive_now(&mut self) -> Result<Option<&[u8]>, Error> {
        match self.receive_with(RecvFlags::DONTWAIT) {
            Err(e) if e.errno() == Some(libc::EAGAIN) => Ok(None),
            other => other.map(Some),
        }
    }

    fn receive_with(&mut self, flags: RecvFlags) -> Result<&[u8], Error> {
        let what = "read a netlink answer";
        let fd = self.inner.as_fd();
        let buffer = self.buffer.as_mut_slice();
        let (len, whole) = retry(|| rustix::net::recv(fd, &mut *buffer, flags | RecvFlags::TRUNC))
            .map_err(|e| match e {
                Errno::NOBUFS => Error::Overrun { what },
                e => Error::socket(what, e),
            })?;
        if whole > len {
            let why = format!("{whole} bytes in one message, more than the buffer holds");
            return Err(Error::Decode { what, why });
        }
        Ok(&self.buffer[..len])
    }

    /// Sends requests, each of which the kernel carries out or refuses by itself, in the order
    /// given, and answers with the outcome of each. They go out in as few `sendmsg` as the sizes
    /// allow.
    ///
    /// # Errors
    /// When the socket fails: then nobody knows which of the requests were carried out.
    pub fn transact(
        &mut self,
        mut requests: Vec<Request>,
    ) -> Result<Vec<Result<(), Refusal>>, Error> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut rest = requests.as_mut_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(chunk(rest));
            // A refusal comes without being asked for, and in order: an acknowledgement of the
            // last request says that there are no more, and saves reading one for each.
            let last = now.len() - 1;
            now[last].flags |= ACK;
            let range = self.send(now)?;
            self.acknowledged(range, &mut outcomes)?;
            rest = later;
        }
        Ok(outcomes)
    }

    /// Collects the refusals of a range of sequence numbers, of which the last one is acknowledged;
    /// what was not refused was carried out.
    fn acknowledged(
        &mut self,
        range: RangeInclusive<u32>,
        outcomes: &mut Vec<Result<(), Refusal>>,
    ) -> Result<(), Error> {
        let first = outcomes.len();
        outcomes.extend(range.clone().map(|_| Ok(())));
        let mut open = true;
        while open {
            for reply in Reply::split(self.receive()?).filter(|r| range.contains(&r.seq)) {
                if let Some(outcome) = reply.outcome() {
                    outcomes[first + (reply.seq - range.start()) as usize] = outcome;
                    open &= reply.seq != *range.end();
                }
            }
        }
        Ok(())
    }

    /// Asks for one object. `None` when the kernel has nothing of the kind (ENODEV, ENOENT, …).
    ///
    /// # Errors
    /// Any other refusal, with `what` as its context.
    pub fn get<T>(
        &mut self,
        what: &'static str,
        request: Request,
        read: impl FnMut(Reply<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        Ok(self.get_all(what, vec![request], read)?.pop().flatten())
    }

    /// Asks for several objects, each by a request of its own, and answers in their order; `None`
    /// where the kernel has nothing of the kind (ENODEV, ENOENT, …).
    ///
    /// # Errors
    /// Any other refusal, with `what` as its context.
    pub fn get_all<T>(
        &mut self,
        what: &'static str,
        requests: Vec<Request>,
        mut read: impl FnMut(Reply<'_>) -> Option<T>,
    ) -> Result<Vec<Option<T>>, Error> {
        let mut found = Vec::with_capacity(requests.len());
        // Answers are larger than acknowledgements, so fewer of them may be outstanding.
        for requests in requests.chunks(GETS_CHUNK) {
            let first = *self.send(requests)?.start();
            // Without NLM_F_ACK each request gets exactly one message: the object or a refusal.
            // They come in order, because the kernel works on them in order.
            let mut open = first..first + requests.len() as u32;
            while !open.is_empty() {
                let datagram = self.receive()?;
                for reply in Reply::split(datagram) {
                    if reply.seq != open.start || open.is_empty() {
                        continue;
                    }
                    open.start += 1;
                    match reply.outcome() {
                        None => found.push(read(reply)),
                        Some(Ok(())) => found.push(None),
                        Some(Err(refusal)) if refusal.is_gone() => found.push(None),
                        Some(Err(refusal)) => return Err(Error::refused(what, refusal)),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Takes a dump and decodes it. A dump during which the table changed is thrown away and taken
    /// again, so that the answer is a picture of one moment.
    ///
    /// # Errors
    /// The kernel's refusal, or [`Error::Interrupted`] when the table never stands still.
    pub fn dump<T>(
        &mut self,
        what: &'static str,
        request: Request,
        mut read: impl FnMut(Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let request = Request { flags: request.flags | DUMP, ..request };
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let seq = *self.send(std::slice::from_ref(&request))?.start();
            let mut reader = DumpReader::default();
            let progress = loop {
                let datagram = self.receive()?;
                let progress = reader
                    .read(datagram, seq, |reply| found.extend(read(reply)))
                    .map_err(|refusal| Error::refused(what, refusal))?;
                if progress != Progress::More {
                    break progress;
                }
            };
            if progress == Progress::Done {
                return Ok(found);
            }
        }
        Err(Error::Interrupted { what, tries: DUMP_TRIES })
    }

    /// A datagram must fit into the send buffer as a whole; the default holds about 200 KiB.
    fn make_room(&mut self, len: usize) {
        if len + 1024 > self.send_queue {
            self.send_queue = len + 1024;
            let size = self.send_queue;
            if sockopt::set_socket_send_buffer_size_force(&self.inner, size).is_err() {
                // Without CAP_NET_ADMIN the limit of net.core.wmem_max stays; `send` then says so.
                let _ = sockopt::set_socket_send_buffer_size(&self.inner, size);
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Request {
    /// A request.
    pub fn new(kind: u16, flags: u16, body: Vec<u8>) -> Self {
        Self { kind, flags, body }
    }

    fn len(&self) -> usize {
        (HEADER + self.body.len()).next_multiple_of(4)
    }

    fn write(&self, out: &mut Vec<u8>, seq: u32) {
        let len = (HEADER + self.body.len()) as u32;
        out.extend_from_slice(&len.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | REQUEST).to_ne_bytes());
        out.extend_from_slice(&seq.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// How many of the requests go out together: at least one, as many as fit.
fn chunk(requests: &[Request]) -> usize {
    let mut bytes = 0;
    let fit = requests
        .iter()
        .take(ACKS_CHUNK)
        .take_while(|r| {
            bytes += r.len();
            bytes <= SEND_CHUNK
        })
        .count();
    fit.max(1)
}

fn receive_queue(fd: BorrowedFd<'_>, size: usize) -> Result<(), Errno> {
    match sockopt::set_socket_recv_buffer_size_force(fd, size) {
        // Without CAP_NET_ADMIN: as much as net.core.rmem_max allows.
        Err(Errno::PERM) => sockopt::set_socket_recv_buffer_size(fd, size),
        other => other,
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        io::Error::from_raw_os_error(refusal.errno)
    }
}

#[cfg(test)]
mod tests;
