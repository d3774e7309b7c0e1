//! Messages of traffic control (`linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h`).

use std::net::IpAddr;

use causeway_types::IfName;
use ipnet::IpNet;

use super::{End, Limit, Selection, number64, text};
use crate::rtnl::read::{self, put};
use crate::sock::{CREATE, EXCL, Reply, Request, attributes};

/// `struct tcmsg`.
const HEADER: usize = 20;
/// `struct ifinfomsg`.
/// `IFLA_IFALIAS`.
const IFALIAS: u16 = 20;

/// `TC_H_ROOT`.
const AT_ROOT: u32 = u32::MAX;
/// `TC_H_INGRESS`: the place of the queue through which a device's incoming packets go.
const AT_INGRESS: u32 = 0xffff_fff1;
/// That queue's handle.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The place of its filters, whatever kind of queue is there (`TC_H_MIN_INGRESS`).
pub(super) const INGRESS: u32 = 0xffff_fff2;
/// The handle of the root queues made here, the same as the reference plugins'.
pub(super) const ROOT: u32 = 0x0001_0000;
/// The class that is limited, the same as the reference plugins'.
const LIMITED: u32 = 0x30;
/// Place of the redirecting filter: before all others, which could let packets pass it by. The same
/// as the reference plugins'.
const REDIRECT_PLACE: u32 = 1;

pub(super) const HTB: &str = "htb";
const TBF: &str = "tbf";
const U32: &str = "u32";

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// Packets that wait unlimited when the device is busy.
const DIRECT_QUEUE: u32 = 1000;
/// Bytes that a class sends in its turn; there is one class.
const QUANTUM: u32 = 60_000;
/// `TC_LINKLAYER_ETHERNET`: rates are calculated, not looked up in a table.
const ETHERNET: u8 = 1;

/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `ETH_P_ALL`, `ETH_P_IP`, `ETH_P_IPV6` (`linux/if_ether.h`).
const ALL: u16 = 0x0003;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `struct tc_u32_sel` without keys, and one key.
const SEL: usize = 16;
const KEY: usize = 16;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`, `TCA_EGRESS_REDIR`.
const STOLEN: u32 = 4;
const EGRESS_REDIR: u32 = 1;

/// A root queue as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The kernel's name for its kind.
    pub kind: String,
    /// Its number.
    pub handle: u32,
    /// Bytes per second; 0 where it has none, or no class that is limited.
    pub rate: u64,
    /// The time that a burst takes, in ticks of 64 ns, the low 32 bits.
    pub buffer: u32,
}

impl Root {
    /// True for one as it is made here or by the reference plugins.
    pub fn is_limit(&self) -> bool {
        self.handle == ROOT && (self.kind == TBF || self.kind == HTB)
    }

    /// True when it is of the kind that limits a selection, or everything.
    pub fn is_for(&self, selection: bool) -> bool {
        self.is_limit() && self.kind == if selection { HTB } else { TBF }
    }
}

/// A filter that selects packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// EtherType.
    protocol: u16,
    /// The class that packets go to.
    class: u32,
    /// What of a packet is compared: mask, value and offset.
    keys: Vec<[u32; 3]>,
    /// The index of the device that they are sent through; 0 when it is gone.
    pub(super) through: Option<u32>,
}

/// A filter as it is found at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    handle: u32,
    info: u32,
    pub(super) filter: Filter,
}

fn message(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, handle, parent, info] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

fn kind(body: &mut Vec<u8>, kind: &str) {
    let mut value = kind.as_bytes().to_vec();
    value.push(0);
    put(body, TCA_KIND, &value);
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// `struct tc_ratespec`. Rates beyond 32 bits go by an attribute of their own.
fn rate(bytes: u64) -> Vec<u8> {
    let mut spec = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    spec.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    spec
}

/// The time that a burst takes, as far as 32 bits can say.
pub(super) fn ticks(limit: Limit) -> u32 {
    u32::try_from(limit.ticks()).unwrap_or(u32::MAX)
}

/// The request for all queues of a device.
pub(super) fn get_qdiscs(index: u32) -> Request {
    Request::new(libc::RTM_GETQDISC, 0, message(index, 0, 0, 0))
}

/// The request for all classes of a device.
pub(super) fn get_classes(index: u32) -> Request {
    Request::new(libc::RTM_GETTCLASS, 0, message(index, 0, 0, 0))
}

/// The request for all filters of a place of a device.
pub(super) fn get_filters(index: u32, parent: u32) -> Request {
    Request::new(libc::RTM_GETTFILTER, 0, message(index, 0, parent, 0))
}

/// A token bucket as the root queue.
pub(super) fn tbf(index: u32, limit: Limit) -> Request {
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    // `struct tc_tbf_qopt`: rate, no peak rate, limit, buffer, no MTU.
    let mut parms = rate(limit.rate);
    parms.extend_from_slice(&[0; 12]);
    parms.extend(words(&[limit.queue(), ticks(limit), 0]));
    let mut options = Vec::new();
    put(&mut options, TCA_TBF_PARMS, &parms);
    if limit.rate > u64::from(u32::MAX) {
        put(&mut options, TCA_TBF_RATE64, &limit.rate.to_ne_bytes());
    }
    put(&mut options, TCA_TBF_BURST, &limit.burst.to_ne_bytes());
    new_qdisc(index, ROOT, AT_ROOT, TBF, &options)
}

fn new_qdisc(index: u32, handle: u32, parent: u32, name: &str, options: &[u8]) -> Request {
    let mut body = message(index, handle, parent, 0);
    kind(&mut body, name);
    if !options.is_empty() {
        put(&mut body, TCA_OPTIONS, options);
    }
    Request::new(libc::RTM_NEWQDISC, CREATE | EXCL, body)
}

/// A root queue with one limited class; what is in no class goes out as it comes. The class has
/// the same bucket as [`tbf`], and a queue of the same length.
pub(super) fn htb(index: u32, limit: Limit, selection: &Selection<'_>) -> Vec<Request> {
    const TCA_HTB_PARMS: u16 = 1;
    const TCA_HTB_INIT: u16 = 2;
    const TCA_HTB_DIRECT_QLEN: u16 = 5;
    const TCA_HTB_RATE64: u16 = 6;
    const TCA_HTB_CEIL64: u16 = 7;
    let default = if selection.limited { 0 } else { LIMITED };
    let mut options = Vec::new();
    // `struct tc_htb_glob`: version, rate to quantum, default class, debug, packets.
    put(&mut options, TCA_HTB_INIT, &words(&[3, 10, default, 0, 0]));
    put(&mut options, TCA_HTB_DIRECT_QLEN, &DIRECT_QUEUE.to_ne_bytes());
    let mut requests = vec![new_qdisc(index, ROOT, AT_ROOT, HTB, &options)];

    // `struct tc_htb_opt`: rate, ceiling, buffers of both, quantum, level, priority.
    let mut parms = rate(limit.rate);
    parms.extend(rate(limit.rate));
    parms.extend(words(&[ticks(limit), ticks(limit), QUANTUM, 0, 0]));
    let mut options = Vec::new();
    put(&mut options, TCA_HTB_PARMS, &parms);
    if limit.rate > u64::from(u32::MAX) {
        put(&mut options, TCA_HTB_RATE64, &limit.rate.to_ne_bytes());
        put(&mut options, TCA_HTB_CEIL64, &limit.rate.to_ne_bytes());
    }
    let mut body = message(index, ROOT | LIMITED, ROOT, 0);
    kind(&mut body, HTB);
    put(&mut body, TCA_OPTIONS, &options);
    requests.push(Request::new(libc::RTM_NEWTCLASS, CREATE | EXCL, body));

    let queue = limit.queue().to_ne_bytes();
    requests.push(new_qdisc(index, LIMITED << 16, ROOT | LIMITED, "bfifo", &queue));
    requests.extend(filters(selection).iter().map(|f| new_filter(index, f)));
    requests
}

/// The filters of a selection.
pub(super) fn filters(selection: &Selection<'_>) -> Vec<Filter> {
    let class = if selection.limited { ROOT | LIMITED } else { ROOT };
    let one = |net: &IpNet| {
        let (protocol, keys) = keys(net, selection.end);
        Filter { protocol, class, keys, through: None }
    };
    selection.subnets.iter().map(one).collect()
}

fn keys(net: &IpNet, end: End) -> (u16, Vec<[u32; 3]>) {
    // Where a header has the addresses (RFC 791, RFC 8200).
    let (protocol, at, bytes, mask) = match (net.trunc(), net.netmask()) {
        (IpNet::V4(net), IpAddr::V4(mask)) => {
            let at = if end == End::Source { 12 } else { 16 };
            (IPV4, at, net.addr().octets().to_vec(), mask.octets().to_vec())
        }
        (IpNet::V6(net), IpAddr::V6(mask)) => {
            let at = if end == End::Source { 8 } else { 24 };
            (IPV6, at, net.addr().octets().to_vec(), mask.octets().to_vec())
        }
        _ => (ALL, 0, Vec::new(), Vec::new()),
    };
    let mut keys = Vec::new();
    for (n, (value, mask)) in bytes.chunks_exact(4).zip(mask.chunks_exact(4)).enumerate() {
        let word = |b: &[u8]| b.try_into().map(u32::from_ne_bytes).unwrap_or_default();
        if word(mask) != 0 {
            keys.push([word(mask), word(value), at + 4 * n as u32]);
        }
    }
    if keys.is_empty() {
        keys.push([0; 3]);
    }
    (protocol, keys)
}

/// One place holds filters of one protocol.
fn place(protocol: u16) -> u32 {
    match protocol {
        IPV6 => 15,
        _ => 16,
    }
}

fn info(place: u32, protocol: u16) -> u32 {
    place << 16 | u32::from(protocol.to_be())
}

fn sel(keys: &[[u32; 3]]) -> Vec<u8> {
    let mut sel = vec![0; SEL];
    sel[0] = TERMINAL;
    sel[2] = keys.len() as u8;
    for [mask, value, at] in keys {
        sel.extend(words(&[*mask, *value, *at, 0]));
    }
    sel
}

fn new_filter(index: u32, filter: &Filter) -> Request {
    let mut options = Vec::new();
    put(&mut options, TCA_U32_CLASSID, &filter.class.to_ne_bytes());
    put(&mut options, TCA_U32_SEL, &sel(&filter.keys));
    let mut body = message(index, 0, ROOT, info(place(filter.protocol), filter.protocol));
    kind(&mut body, U32);
    put(&mut body, TCA_OPTIONS, &options);
    Request::new(libc::RTM_NEWTFILTER, CREATE | EXCL, body)
}

/// The queue through which a device's incoming packets go.
pub(super) fn ingress(index: u32) -> Request {
    new_qdisc(index, INGRESS_HANDLE, AT_INGRESS, "ingress", &[])
}

/// A filter that sends every packet through another device.
pub(super) fn redirect(index: u32, through: u32) -> Request {
    // `struct tc_mirred`: index, capabilities, action, two counters, direction, device.
    let parms = words(&[0, 0, STOLEN, 0, 0, EGRESS_REDIR, through]);
    let mut mirred = Vec::new();
    put(&mut mirred, TCA_MIRRED_PARMS, &parms);
    let mut action = Vec::new();
    put(&mut action, TCA_ACT_KIND, b"mirred\0");
    put(&mut action, TCA_ACT_OPTIONS, &mirred);
    let mut actions = Vec::new();
    put(&mut actions, 1, &action);
    let mut options = Vec::new();
    put(&mut options, TCA_U32_SEL, &sel(&[[0; 3]]));
    put(&mut options, TCA_U32_ACT, &actions);
    let mut body = message(index, 0, INGRESS, info(REDIRECT_PLACE, ALL));
    kind(&mut body, U32);
    put(&mut body, TCA_OPTIONS, &options);
    Request::new(libc::RTM_NEWTFILTER, CREATE | EXCL, body)
}

/// The request that removes a filter of incoming packets, and none beside it.
pub(super) fn remove_filter(index: u32, found: &Placed) -> Request {
    let mut body = message(index, found.handle, INGRESS, found.info);
    kind(&mut body, U32);
    Request::new(libc::RTM_DELTFILTER, 0, body)
}

/// The request that removes [`ingress`].
pub(super) fn remove_ingress(index: u32) -> Request {
    Request::new(libc::RTM_DELQDISC, 0, message(index, INGRESS_HANDLE, AT_INGRESS, 0))
}

/// The request that removes a root queue made here.
pub(super) fn remove_root(index: u32) -> Request {
    Request::new(libc::RTM_DELQDISC, 0, message(index, ROOT, AT_ROOT, 0))
}

fn link_message(index: u32, up: bool) -> Vec<u8> {
    let mut body = vec![0; 4];
    let flags = if up { libc::IFF_UP as u32 } else { 0 };
    body.extend(words(&[index, flags, flags]));
    body
}

/// The requests that make a device to send traffic through, and note what it is for. One datagram
/// holds both, so that none is there without its note.
pub(super) fn create_ifb(name: &IfName, mtu: u32, alias: &str) -> [Request; 2] {
    let mut named = name.as_str().as_bytes().to_vec();
    named.push(0);
    let mut body = link_message(0, false);
    put(&mut body, libc::IFLA_IFNAME, &named);
    let mut noted = body.clone();
    put(&mut noted, IFALIAS, alias.as_bytes());
    put(&mut body, libc::IFLA_MTU, &mtu.to_ne_bytes());
    put(&mut body, libc::IFLA_TXQLEN, &DIRECT_QUEUE.to_ne_bytes());
    for queues in [libc::IFLA_NUM_TX_QUEUES, libc::IFLA_NUM_RX_QUEUES] {
        put(&mut body, queues, &1u32.to_ne_bytes());
    }
    let mut info = Vec::new();
    put(&mut info, libc::IFLA_INFO_KIND, b"ifb");
    put(&mut body, libc::IFLA_LINKINFO, &info);
    [
        Request::new(libc::RTM_NEWLINK, CREATE | EXCL, body),
        Request::new(libc::RTM_NEWLINK, 0, noted),
    ]
}

/// The request that sets an interface up.
pub(super) fn set_up(index: u32) -> Request {
    Request::new(libc::RTM_NEWLINK, 0, link_message(index, true))
}

/// Kind, handle, parent and options of a message of one device.
struct Object<'a> {
    kind: String,
    handle: u32,
    parent: u32,
    info: u32,
    options: &'a [u8],
}

fn object<'a>(reply: Reply<'a>, wanted: u16) -> Option<(u32, Object<'a>)> {
    let header = reply.body.get(..HEADER).filter(|_| reply.kind == wanted)?;
    let at = |at| read::number_at(header, at);
    let mut object = Object {
        kind: String::new(),
        handle: at(8)?,
        parent: at(12)?,
        info: at(16)?,
        options: &[],
    };
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            TCA_KIND => object.kind = text(value),
            TCA_OPTIONS => object.options = value,
            _ => {}
        }
    }
    Some((at(4)?, object))
}

/// Rate and buffer of a limit: the parameters begin with the rate, and hold the buffer at a place.
fn bucket(options: &[u8], parms: u16, buffer_at: usize, rate64: u16) -> Option<(u64, u32)> {
    let (mut rate, mut buffer, mut wide) = (0, 0, None);
    for (kind, value) in attributes(options) {
        if kind == parms {
            rate = u64::from(read::number_at(value, 8)?);
            buffer = read::number_at(value, buffer_at)?;
        } else if kind == rate64 {
            wide = number64(value);
        }
    }
    Some((wide.unwrap_or(rate), buffer))
}

/// Reads the root queue of a device; the kernel's own has no handle. A kernel may tell of all
/// devices.
pub(super) fn root(reply: Reply<'_>, index: u32) -> Option<Root> {
    let (of, found) = object(reply, libc::RTM_NEWQDISC)?;
    if of != index || found.parent != AT_ROOT || found.handle == 0 {
        return None;
    }
    let (rate, buffer) = match found.kind.as_str() {
        TBF => bucket(found.options, 1, 28, 4)?,
        _ => (0, 0),
    };
    Some(Root { kind: found.kind, handle: found.handle, rate, buffer })
}

/// Reads rate and buffer of the limited class of [`htb`].
pub(super) fn limited_class(reply: Reply<'_>, index: u32) -> Option<(u64, u32)> {
    let (of, found) = object(reply, libc::RTM_NEWTCLASS)?;
    if of != index || found.handle != ROOT | LIMITED || found.kind != HTB {
        return None;
    }
    bucket(found.options, 1, 24, 6)
}

/// A queue for incoming packets that holds filters and nothing else.
pub(super) fn is_ingress(reply: Reply<'_>, index: u32) -> Option<()> {
    let (of, found) = object(reply, libc::RTM_NEWQDISC)?;
    (of == index && found.parent == AT_INGRESS && found.kind == "ingress").then_some(())
}

/// Reads a filter. The tables in which the kernel keeps filters of this kind are none; those of
/// other kinds select nothing that is known here.
pub(super) fn filter(reply: Reply<'_>) -> Option<Placed> {
    let (_, found) = object(reply, libc::RTM_NEWTFILTER)?;
    let protocol = u16::from_be((found.info & 0xffff) as u16);
    let mut filter = Filter { protocol, class: 0, keys: Vec::new(), through: None };
    let placed = |filter| Placed { handle: found.handle, info: found.info, filter };
    if found.kind != U32 {
        return Some(placed(filter));
    }
    for (kind, value) in attributes(found.options) {
        match kind {
            TCA_U32_CLASSID => filter.class = read::number(value)?,
            TCA_U32_SEL => filter.keys = read_keys(value)?,
            TCA_U32_ACT => filter.through = read_redirect(value),
            _ => {}
        }
    }
    (!filter.keys.is_empty()).then(|| placed(filter))
}

fn read_keys(sel: &[u8]) -> Option<Vec<[u32; 3]>> {
    let count = usize::from(*sel.get(2)?);
    let keys = sel.get(SEL..)?.chunks_exact(KEY).take(count);
    keys.map(|key| {
        Some([read::number_at(key, 0)?, read::number_at(key, 4)?, read::number_at(key, 8)?])
    })
    .collect()
}

/// The device of the first action that redirects.
fn read_redirect(actions: &[u8]) -> Option<u32> {
    attributes(actions).find_map(|(_, action)| {
        let part = |wanted| attributes(action).find(|(kind, _)| *kind == wanted);
        if text(part(TCA_ACT_KIND)?.1) != "mirred" {
            return None;
        }
        let (_, parms) =
            attributes(part(TCA_ACT_OPTIONS)?.1).find(|(kind, _)| *kind == TCA_MIRRED_PARMS)?;
        read::number_at(parms, 24)
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
