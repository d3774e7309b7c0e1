//! Addresses, routes, neighbours and forwarding entries.

use std::net::IpAddr;

use causeway_types::{Cidr, Family, IfName, Mac, Mtu};
use ipnet::IpNet;
use serde::Serialize;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Addr {
    /// The interface.
    pub dev: IfName,
    /// Address with prefix length.
    pub addr: IpNet,
    /// Do not make the kernel add a route for the prefix (IFA_F_NOPREFIXROUTE).
    pub noprefixroute: bool,
    /// An IPv6 address is added with duplicate address detection (RFC 4862). Without, it has
    /// IFA_F_NODAD: the address plan already guarantees that it is unique. Observed addresses do not
    /// tell: it is false for them, and not compared.
    pub dad: bool,
}

impl Addr {
    /// An address with a route for its prefix, without duplicate address detection.
    pub fn new(dev: IfName, addr: IpNet) -> Self {
        Self { dev, addr, noprefixroute: false, dad: false }
    }
}

/// What a route does with a packet (`RTN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Answers ICMP unreachable.
    Unreachable,
    /// Any other type number; only observed.
    Other(u8),
}

/// How far the destination is (`RT_SCOPE_*`). IPv6 knows only [`RouteScope::Universe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteScope {
    /// Anywhere, usually by a gateway.
    Universe,
    /// On the link itself.
    Link,
    /// Any other number; only observed.
    Other(u8),
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Routing table number; 254 is `main`.
    pub table: u32,
    /// Priority: 0 for IPv4 and 1024 for IPv6 unless there is a reason ([`Route::default_metric`]).
    pub metric: u32,
    /// Type.
    pub kind: RouteKind,
    /// Outgoing interface; `None` for routes that send nothing on.
    pub dev: Option<IfName>,
    /// Gateway.
    pub via: Option<IpAddr>,
    /// The gateway counts as on link whatever the addresses say (RTNH_F_ONLINK).
    pub onlink: bool,
    /// Preferred source address of the node's own packets; `None`: the kernel's choice.
    pub src: Option<IpAddr>,
    /// Scope.
    pub scope: RouteScope,
    /// Who made it (`RTPROT_*`); 203 is ours.
    pub protocol: u8,
    /// MTU of the route in bytes; `None`: the device's.
    pub mtu: Option<Mtu>,
    /// Maximum segment size that TCP is to advertise, in bytes; `None`: as the MTU allows, and in
    /// desired state whatever is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
}

impl Route {
    /// Routing table `main`.
    pub const MAIN: u32 = 254;

    /// The metric that a route has where none is given.
    pub fn default_metric(family: Family) -> u32 {
        match family {
            Family::V4 => 0,
            Family::V6 => 1024,
        }
    }

    /// The family of the destination.
    pub fn family(&self) -> Family {
        self.dst.family()
    }

    /// True when `observed` has everything that this desired route asks for.
    pub fn satisfied_by(&self, observed: &Route) -> bool {
        self.protocol == observed.protocol && self.leads_as(observed)
    }

    /// True when both send packets the same way, whoever made them.
    pub fn leads_as(&self, observed: &Route) -> bool {
        let dev = self.kind != RouteKind::Unicast || self.dev == observed.dev;
        self.dst == observed.dst
            && self.table == observed.table
            && self.metric == observed.metric
            && self.kind == observed.kind
            && dev
            && self.via == observed.via
            && (self.src.is_none() || self.src == observed.src)
            && self.mtu == observed.mtu
            && (self.advmss.is_none() || self.advmss == observed.advmss)
            && (self.family() == Family::V6
                || self.kind != RouteKind::Unicast
                || (self.scope == observed.scope && self.onlink == observed.onlink))
    }
}

/// A permanent neighbour entry, or a proxy entry that the node answers for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neigh {
    /// The interface.
    pub dev: IfName,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its Ethernet address; `None` for a proxy entry.
    pub mac: Option<Mac>,
    /// A proxy entry (NTF_PROXY).
    pub proxy: bool,
    /// NUD_PERMANENT. Always true in desired state.
    pub permanent: bool,
}

/// A forwarding entry: of a bridge port (`dst` absent, `bridge fdb add … master static`) or of a
/// VXLAN device (`dst` is the peer's underlay address, `… self permanent`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fdb {
    /// The port or the tunnel device.
    pub dev: IfName,
    /// Destination Ethernet address.
    pub mac: Mac,
    /// The VTEP behind which it lives.
    pub dst: Option<IpAddr>,
    /// Static, not learned. Always true in desired state.
    pub permanent: bool,
}
