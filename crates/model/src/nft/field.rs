//! Fields of packets and the values they are compared with.

use std::fmt;
use std::net::IpAddr;

use causeway_types::{Cidr, Family, IfName, Mac};
use serde::Serialize;

/// A field of a packet or of its circumstances.
///
/// Fields of one protocol imply the test for that protocol (`meta nfproto` in inet tables,
/// `meta protocol` in netdev tables, `meta l4proto` for transport fields of one protocol), as in
/// `nft`; lowering adds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// Incoming interface's name (`iifname`).
    IifName,
    /// Outgoing interface's name (`oifname`).
    OifName,
    /// `meta nfproto`, in tables of family inet: see [`KeyPart::Family`].
    Nfproto,
    /// Protocol of the frame's payload (`meta protocol`), an EtherType: see [`KeyPart::EtherType`].
    Protocol,
    /// `ether saddr`.
    EtherSaddr,
    /// `ip saddr`, `ip6 saddr`.
    Saddr(#[serde(serialize_with = "family")] Family),
    /// `ip daddr`, `ip6 daddr`.
    Daddr(#[serde(serialize_with = "family")] Family),
    /// Transport protocol (`meta l4proto`), looked for behind IPv6 extension headers.
    L4Proto,
    /// `th sport`: the rule must have matched [`Field::L4Proto`] before.
    Sport,
    /// `th dport`: the rule must have matched [`Field::L4Proto`] before.
    Dport,
    /// `icmpv6 type`.
    Icmpv6Type,
    /// Target address of a neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4):
    /// 16 bytes at offset 8 of the ICMPv6 header. The rule must have matched the type before.
    NdTarget,
    /// `arp saddr ether`.
    ArpSaddrEther,
    /// `arp saddr ip`.
    ArpSaddrIp,
    /// `fib daddr type`: see [`KeyPart::AddrType`].
    FibDaddrType,
    /// `ct state`: compared bit by bit with [`KeyPart::CtState`].
    CtState,
    /// `meta mark`: compared under the mask of [`KeyPart::Mark`].
    Mark,
    /// `ct mark`: the connection's mark, see [`KeyPart::CtMark`] and [`Rhs::Bits`].
    CtMark,
    /// `ct direction`: see [`KeyPart::CtDirection`].
    CtDirection,
    /// `ct original ip saddr`, `ct original ip6 saddr`: who opened the connection, before any translation.
    CtClient(#[serde(serialize_with = "family")] Family),
    /// `ct reply ip saddr`, `ct reply ip6 saddr`: who answers it, behind any translation.
    CtServer(#[serde(serialize_with = "family")] Family),
    /// `ct protocol`: the connection's transport protocol, also of an ICMP error about it.
    CtProtocol,
    /// `ct reply proto-src`: the port that answers, behind any translation.
    CtServerPort,
    /// `tcp flags`, one byte: the rule must have matched [`Field::L4Proto`] before.
    TcpFlags,
}

pub(super) fn family<S: serde::Serializer>(family: &Family, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(family)
}

/// Comparison of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MatchOp {
    /// Equal, inside the prefix, or in the set. For [`Field::CtState`]: any of the bits.
    Eq,
    /// The opposite.
    Ne,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rhs {
    /// One value.
    Value(KeyPart),
    /// Any interface name that begins so (`iifname "cw*"`).
    Prefix(String),
    /// Some bits of a port, of TCP's flags or of a connection's mark.
    Bits {
        /// The bits that count.
        mask: u32,
        /// What they have to be.
        value: u32,
    },
    /// A named set of the same table.
    Set(String),
}

impl From<KeyPart> for Rhs {
    fn from(value: KeyPart) -> Self {
        Rhs::Value(value)
    }
}

/// The type of one part of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// `ipv4_addr` or `ipv6_addr`.
    Addr(#[serde(serialize_with = "family")] Family),
    /// `ether_addr`.
    EtherAddr,
    /// `ifname`.
    IfName,
    /// `inet_proto`.
    InetProto,
    /// `inet_service`.
    InetService,
    /// `mark`.
    Mark,
}

/// One value: a part of a set's key, or what a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPart {
    /// A prefix; as a set element longer than one address only in interval sets.
    Net(Cidr),
    /// An Ethernet address.
    Mac(Mac),
    /// An interface name.
    IfName(IfName),
    /// A family of addresses.
    Family(#[serde(serialize_with = "family")] Family),
    /// A transport protocol number.
    Proto(u8),
    /// A transport port.
    Port(u16),
    /// An EtherType (0x0800 IPv4, 0x0806 ARP, 0x86dd IPv6).
    EtherType(u16),
    /// An ICMPv6 type.
    Icmpv6(u8),
    /// A route type of `fib` (`RTN_LOCAL` is 2).
    AddrType(u8),
    /// Bits of `ct state` (`NF_CT_STATE_BIT`: invalid 1, established 2, related 4, new 8,
    /// untracked 64).
    CtState(u32),
    /// Bits of the packet's mark that are all set.
    Mark(u32),
    /// The whole mark of a connection.
    CtMark(u32),
    /// A direction of a connection (`IP_CT_DIR_ORIGINAL` is 0, `IP_CT_DIR_REPLY` 1).
    CtDirection(u8),
    /// Ports from the first to the last, both among them; only in interval sets.
    Ports(u16, u16),
}

impl KeyPart {
    /// A single address.
    pub fn addr(addr: IpAddr) -> Self {
        KeyPart::Net(Cidr::host(addr))
    }
}

impl fmt::Display for KeyPart {
    /// As `nft` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPart::Net(net) if net.prefix_len() == net.family().bits() => net.addr().fmt(f),
            KeyPart::Net(net) => net.fmt(f),
            KeyPart::Mac(mac) => mac.fmt(f),
            KeyPart::IfName(name) => write!(f, "\"{name}\""),
            KeyPart::Family(Family::V4) => f.write_str("ipv4"),
            KeyPart::Family(Family::V6) => f.write_str("ipv6"),
            KeyPart::Proto(p) => p.fmt(f),
            KeyPart::Port(p) => p.fmt(f),
            KeyPart::EtherType(0x0800) => f.write_str("ip"),
            KeyPart::EtherType(0x0806) => f.write_str("arp"),
            KeyPart::EtherType(0x86dd) => f.write_str("ip6"),
            KeyPart::EtherType(t) => write!(f, "{t:#06x}"),
            KeyPart::Icmpv6(t) => t.fmt(f),
            KeyPart::AddrType(2) => f.write_str("local"),
            KeyPart::AddrType(t) => t.fmt(f),
            KeyPart::Mark(bits) => write!(f, "& {bits:#010x} == {bits:#010x}"),
            KeyPart::CtMark(mark) => write!(f, "{mark:#010x}"),
            KeyPart::CtDirection(0) => f.write_str("original"),
            KeyPart::CtDirection(1) => f.write_str("reply"),
            KeyPart::CtDirection(n) => n.fmt(f),
            KeyPart::Ports(first, last) if first == last => first.fmt(f),
            KeyPart::Ports(first, last) => write!(f, "{first}-{last}"),
            KeyPart::CtState(bits) => {
                let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new")];
                let mut all: Vec<&str> =
                    names.iter().filter(|(b, _)| bits & b != 0).map(|(_, n)| *n).collect();
                if bits & 64 != 0 {
                    all.push("untracked");
                }
                f.write_str(&all.join(","))
            }
        }
    }
}
