//! Interfaces.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use causeway_model::{Link, LinkKind, PortFlags, Vxlan};
use causeway_types::{IfName, Mtu, Vni};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::read::{self, Names};
use super::request;
use crate::netns::NetNs;
use crate::sock::{CREATE, EXCL, Reply, Request, attributes};
use crate::vlan::{header, nest, put};

/// `struct ifinfomsg`.
const HEADER: usize = 16;
/// `RTEXT_FILTER_SKIP_STATS`: counters are most of a link's description and nobody asks for them.
const SKIP_STATS: u32 = 8;

/// How a bridge port's flags are numbered (`IFLA_BRPORT_*`, `linux/if_link.h`).
mod brport {
    pub(super) const HAIRPIN: u16 = 4;
    pub(super) const LEARNING: u16 = 8;
    pub(super) const UNICAST_FLOOD: u16 = 9;
    pub(super) const MCAST_FLOOD: u16 = 27;
    pub(super) const BCAST_FLOOD: u16 = 30;
    pub(super) const ISOLATED: u16 = 33;
}

/// What makes a VXLAN device (`IFLA_VXLAN_*`).
mod vxlan {
    pub(super) const ID: u16 = 1;
    pub(super) const LOCAL: u16 = 4;
    pub(super) const LEARNING: u16 = 7;
    pub(super) const PORT: u16 = 15;
    pub(super) const LOCAL6: u16 = 17;
    pub(super) const COLLECT_METADATA: u16 = 25;
}

/// The request for a dump of all links, without counters.
pub(crate) fn dump() -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(ext_mask());
    request(libc::RTM_GETLINK, &message, 0)
}

fn ext_mask() -> LinkAttribute {
    use netlink_packet_core::DefaultNla;
    let value = SKIP_STATS.to_ne_bytes().to_vec();
    LinkAttribute::Other(DefaultNla::new(libc::IFLA_EXT_MASK, value))
}

/// The request for one link by name.
pub(crate) fn get_by_name(name: &IfName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.extend([LinkAttribute::IfName(name.to_string()), ext_mask()]);
    request(libc::RTM_GETLINK, &message, 0)
}

/// The request for one link by index.
pub(crate) fn get_by_index(index: u32) -> Request {
    let mut message = with_index(index);
    message.attributes.push(ext_mask());
    request(libc::RTM_GETLINK, &message, 0)
}

/// What a new link needs to know of its surroundings.
pub(crate) struct Surroundings<'a> {
    /// The index to give it.
    pub(crate) index: u32,
    /// The index to give a veth's other end; 0: the kernel's choice.
    pub(crate) peer_index: u32,
    /// The index of its master.
    pub(crate) master: Option<u32>,
    /// The namespace of a veth's other end, where it is another one.
    pub(crate) peer_netns: Option<&'a NetNs>,
}

/// The requests that make a link: the device itself, the flags of its port, and up last, so that
/// it carries nothing before it is as it should be. IFF_UP in the first request would fail for a
/// veth whose other end is not up (ENOTCONN).
pub(crate) fn create(link: &Link, place: &Surroundings<'_>) -> Vec<Request> {
    let mut message = with_index(place.index);
    message.attributes.push(LinkAttribute::IfName(link.name.to_string()));
    message.attributes.extend(link.mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    // A bridge keeps an MTU over changes of its ports only when it was set after its making.
    let mtu_later = matches!(link.kind, LinkKind::Bridge);
    if !mtu_later {
        message.attributes.extend(mtu(link));
    }
    message.attributes.extend(one_queue(&link.kind).into_iter().flatten());
    message.attributes.extend(place.master.map(LinkAttribute::Controller));
    message.attributes.push(LinkAttribute::LinkInfo(info(link, place)));
    let made = request(libc::RTM_NEWLINK, &message, CREATE | EXCL);
    let mut requests = vec![made];
    if mtu_later && link.mtu.is_some() {
        requests.push(set(place.index, mtu(link).into_iter().collect(), None));
    }
    requests.extend(finish(place.index, link.port, link.up));
    requests
}

/// The request that sets the flags of a port and then sets it up: the kernel does it in this order
/// (`rtnl_changelink` in `net/core/rtnetlink.c`). One request instead of two waits for its lock once.
fn finish(index: u32, port: Option<PortFlags>, up: bool) -> Option<Request> {
    let attributes: Vec<LinkAttribute> = port.map(port_info).into_iter().collect();
    (up || !attributes.is_empty()).then(|| set(index, attributes, up.then_some(true)))
}

/// The requests that give a link what it lacks. `None` fields of `to` are left as they are.
/// `master` is the index of the bridge that it joins, where that changes.
pub(crate) fn change(
    from: Option<&Link>,
    to: &Link,
    index: u32,
    master: Option<u32>,
) -> Vec<Request> {
    fn differs<T: PartialEq + Copy>(want: &Option<T>, have: Option<&Option<T>>) -> bool {
        want.is_some() && have != Some(want)
    }
    let mut attributes = Vec::new();
    if differs(&to.mac, from.map(|l| &l.mac)) {
        attributes.extend(to.mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    }
    if differs(&to.mtu, from.map(|l| &l.mtu)) {
        attributes.extend(mtu(to));
    }
    attributes.extend(master.map(LinkAttribute::Controller));
    // A port that joins a bridge starts with the kernel's flags.
    let port = differs(&to.port, from.map(|l| &l.port)) || (master.is_some() && to.port.is_some());
    let was_up = from.map(|l| l.up);
    let mut requests = Vec::new();
    if !to.up && was_up != Some(false) {
        requests.push(set(index, Vec::new(), Some(false)));
    }
    if !attributes.is_empty() {
        requests.push(set(index, attributes, None));
    }
    requests.extend(finish(index, to.port.filter(|_| port), to.up && was_up != Some(true)));
    requests
}

/// The request that removes a link by its name.
pub(crate) fn remove(name: &IfName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    request(libc::RTM_DELLINK, &message, 0)
}

/// The request that removes a link by its index.
pub(crate) fn remove_index(index: u32) -> Request {
    request(libc::RTM_DELLINK, &with_index(index), 0)
}

fn with_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn set(index: u32, attributes: Vec<LinkAttribute>, up: Option<bool>) -> Request {
    let mut message = with_index(index);
    message.attributes = attributes;
    if let Some(up) = up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    request(libc::RTM_NEWLINK, &message, 0)
}

/// `IFLA_INET_CONF` (`linux/if_link.h`).
const IFLA_INET_CONF: u16 = 1;

/// The request that sets a parameter of IPv4 of a link (`IPV4_DEVCONF_*` of `linux/ip.h`), as its file
/// below `/proc/sys/net/ipv4/conf` would.
pub(crate) fn set_ipv4_conf(index: u32, parameter: u16, value: u32) -> Request {
    let mut body = header(libc::AF_UNSPEC, index);
    nest(&mut body, libc::IFLA_AF_SPEC, |spec| {
        nest(spec, libc::AF_INET as u16, |inet| {
            nest(inet, IFLA_INET_CONF, |conf| put(conf, parameter, &value.to_ne_bytes()));
        });
    });
    Request::new(libc::RTM_NEWLINK, 0, body)
}

/// The request that makes a link take in every frame.
pub(crate) fn promiscuous(index: u32) -> Request {
    let mut message = with_index(index);
    message.header.change_mask = LinkFlags::Promisc;
    message.header.flags = LinkFlags::Promisc;
    request(libc::RTM_NEWLINK, &message, 0)
}

fn port_info(flags: PortFlags) -> LinkAttribute {
    let data = vec![
        InfoBridgePort::Isolated(flags.isolated),
        InfoBridgePort::HairpinMode(flags.hairpin),
        InfoBridgePort::Learning(flags.learning),
        InfoBridgePort::UnicastFlood(flags.flood),
        InfoBridgePort::MulticastFlood(flags.flood),
        InfoBridgePort::BroadcastFlood(flags.flood),
    ];
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(data)),
    ])
}

fn mtu(link: &Link) -> Option<LinkAttribute> {
    link.mtu.map(|m| LinkAttribute::Mtu(m.get()))
}

/// A veth with one queue a side: the kernel's default is one per CPU, each of which costs memory
/// and time at creation, and a pod's interface gains nothing by them.
fn one_queue(kind: &LinkKind) -> Option<[LinkAttribute; 2]> {
    let one = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    matches!(kind, LinkKind::Veth { .. }).then_some(one)
}

fn info(link: &Link, place: &Surroundings<'_>) -> Vec<LinkInfo> {
    match &link.kind {
        LinkKind::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
        LinkKind::Other(kind) => vec![LinkInfo::Kind(InfoKind::Other(kind.clone()))],
        LinkKind::Vxlan(vxlan) => vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vxlan_info(vxlan))),
        ],
        LinkKind::Veth { .. } => {
            let mut peer = peer(link, place.peer_netns.map(AsRawFd::as_raw_fd));
            peer.header.index = place.peer_index;
            let peer = InfoVeth::Peer(peer);
            vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(peer))]
        }
    }
}

fn vxlan_info(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let local = match vxlan.local {
        IpAddr::V4(a) => InfoVxlan::Local(a),
        IpAddr::V6(a) => InfoVxlan::Local6(a),
    };
    vec![
        InfoVxlan::Id(vxlan.vni.get()),
        local,
        InfoVxlan::Learning(false),
        InfoVxlan::Port(vxlan.port),
    ]
}

/// The other end of a veth: it gets its name, address, MTU and namespace by the same request, so
/// that it is never seen half made.
fn peer(link: &Link, netns: Option<RawFd>) -> LinkMessage {
    let mut message = LinkMessage::default();
    if let LinkKind::Veth { peer, peer_mac, .. } = &link.kind {
        message.attributes.extend(peer.as_ref().map(|n| LinkAttribute::IfName(n.to_string())));
        message.attributes.extend(peer_mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    }
    message.attributes.extend(mtu(link));
    message.attributes.extend(one_queue(&link.kind).into_iter().flatten());
    message.attributes.extend(netns.map(LinkAttribute::NetNsFd));
    message
}

/// `IF_OPER_UNKNOWN` (`linux/if.h`): the kernel has not looked at the carrier yet.
const OPER_UNKNOWN: u8 = 0;

/// A link as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) index: u32,
    pub(crate) master: Option<u32>,
    /// The index of what it sits on, or of a veth's other end, in whatever namespace (`IFLA_LINK`).
    pub(crate) lower: Option<u32>,
    /// Packets pass: it is up, and so is what is at its other end. Of a veth pair the kernel has found
    /// that out (`IF_OPER_UP`), a bridge has at least its carrier (`IFF_LOWER_UP`); others may never
    /// say more than `IFF_RUNNING`.
    pub(crate) running: bool,
    /// Its `master` is filled in by [`Seen::named`].
    pub(crate) link: Link,
}

impl Seen {
    /// The link with its master's name.
    pub(crate) fn named(self, names: &Names) -> Link {
        let master = self.master.and_then(|m| names.get(&m).cloned());
        Link { master, ..self.link }
    }
}

/// Reads a link message; `None` for a link whose name is none, and for messages of bridge ports
/// (family AF_BRIDGE), which describe the port and not the link.
pub(crate) fn decode(reply: Reply<'_>) -> Option<Seen> {
    if reply.kind != libc::RTM_NEWLINK && reply.kind != libc::RTM_DELLINK {
        return None;
    }
    let header = reply.body.get(..HEADER)?;
    if i32::from(header[0]) == libc::AF_BRIDGE {
        return None;
    }
    let flags = read::number_at(header, 8)?;
    let mut link = Link {
        name: IfName::new("?").ok()?,
        kind: LinkKind::Other(String::new()),
        mtu: None,
        mac: None,
        up: flags & libc::IFF_UP as u32 != 0,
        master: None,
        port: None,
    };
    let (mut master, mut lower, mut state) = (None, None, OPER_UNKNOWN);
    let mut named = false;
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            libc::IFLA_IFNAME => {
                link.name = IfName::new(read::text(value)?).ok()?;
                named = true;
            }
            // A loopback device has 65536 bytes, more than a packet may have.
            libc::IFLA_MTU => link.mtu = read::number(value).and_then(|m| Mtu::new(m).ok()),
            libc::IFLA_ADDRESS => link.mac = read::mac(value),
            libc::IFLA_MASTER => master = read::number(value),
            libc::IFLA_LINK => lower = read::number(value),
            libc::IFLA_OPERSTATE => state = value.first().copied().unwrap_or(OPER_UNKNOWN),
            libc::IFLA_LINKINFO => (link.kind, link.port) = decode_info(value),
            _ => {}
        }
    }
    // Born without a carrier, a veth pair gets its queues when the kernel has looked. A bridge is born
    // with one, and nobody may ever look at it; without ports that pass packets it loses it.
    let found_out = match link.kind {
        LinkKind::Veth { .. } => state != OPER_UNKNOWN,
        LinkKind::Bridge => state != OPER_UNKNOWN || flags & libc::IFF_LOWER_UP as u32 != 0,
        _ => true,
    };
    let running = flags & libc::IFF_RUNNING as u32 != 0 && found_out;
    named.then_some(Seen { index: read::number_at(header, 4)?, master, lower, running, link })
}

fn decode_info(info: &[u8]) -> (LinkKind, Option<PortFlags>) {
    let (mut kind, mut data) = ("", &[][..]);
    let (mut port_kind, mut port_data) = ("", &[][..]);
    for (attribute, value) in attributes(info) {
        match attribute {
            libc::IFLA_INFO_KIND => kind = read::text(value).unwrap_or_default(),
            libc::IFLA_INFO_DATA => data = value,
            libc::IFLA_INFO_SLAVE_KIND => port_kind = read::text(value).unwrap_or_default(),
            libc::IFLA_INFO_SLAVE_DATA => port_data = value,
            _ => {}
        }
    }
    let kind = match kind {
        "bridge" => LinkKind::Bridge,
        "veth" => LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None },
        "vxlan" => {
            decode_vxlan(data).map_or_else(|| LinkKind::Other("vxlan".to_owned()), LinkKind::Vxlan)
        }
        other => LinkKind::Other(other.to_owned()),
    };
    (kind, (port_kind == "bridge").then(|| decode_port(port_data)))
}

/// `None` for a VXLAN device that is no match for any of ours: it learns, it takes the tunnel from
/// the packet's metadata, or it has no fixed source address.
fn decode_vxlan(data: &[u8]) -> Option<Vxlan> {
    let (mut vni, mut port, mut local) = (None, None, None);
    for (kind, value) in attributes(data) {
        match kind {
            vxlan::ID => vni = read::number(value).and_then(|v| Vni::new(v).ok()),
            vxlan::PORT => port = value.try_into().ok().map(u16::from_be_bytes),
            vxlan::LOCAL | vxlan::LOCAL6 => local = read::ip(value),
            vxlan::LEARNING | vxlan::COLLECT_METADATA if read::byte(value) != Some(0) => {
                return None;
            }
            _ => {}
        }
    }
    Some(Vxlan { vni: vni?, port: port?, local: local? })
}

fn decode_port(data: &[u8]) -> PortFlags {
    let mut flags = PortFlags { isolated: false, hairpin: false, learning: false, flood: false };
    for (kind, value) in attributes(data) {
        let set = read::byte(value) == Some(1);
        match kind {
            brport::ISOLATED => flags.isolated = set,
            brport::HAIRPIN => flags.hairpin = set,
            brport::LEARNING => flags.learning = set,
            // Off only when all three are.
            brport::UNICAST_FLOOD | brport::MCAST_FLOOD | brport::BCAST_FLOOD => {
                flags.flood |= set;
            }
            _ => {}
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A link of a kind that is up, with `IFF_RUNNING`, in an operational state (`IF_OPER_…`).
    fn running(kind: &[u8], state: u8, carrier: u32) -> bool {
        let mut body = vec![0; HEADER];
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u32 | carrier;
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        body.extend(attribute(libc::IFLA_IFNAME, b"x\0"));
        body.extend(attribute(libc::IFLA_OPERSTATE, &[state]));
        body.extend(attribute(libc::IFLA_LINKINFO, &attribute(1, kind)));
        decode(Reply { kind: libc::RTM_NEWLINK, flags: 0, seq: 0, port: 0, body: &body })
            .expect("a link")
            .running
    }

    /// A pair that was born a moment ago has the flag before the kernel has looked at its carrier: what
    /// is sent then is dropped.
    #[test]
    fn a_pair_runs_when_the_kernel_has_looked_at_it() {
        const UP: u8 = 6;
        for carrier in [0, LOWER_UP] {
            assert!(!running(b"veth\0", OPER_UNKNOWN, carrier));
            // Never says more.
            assert!(running(b"dummy\0", OPER_UNKNOWN, carrier));
        }
        // Up without ports until a pair came that was up already: nothing changes that the kernel
        // would look at.
        assert!(running(b"bridge\0", OPER_UNKNOWN, LOWER_UP));
        assert!(!running(b"bridge\0", OPER_UNKNOWN, 0));
        assert!(running(b"veth\0", UP, LOWER_UP) && running(b"bridge\0", UP, LOWER_UP));
    }
}
