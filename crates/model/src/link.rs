//! Network interfaces.

use std::net::IpAddr;

use causeway_types::{IfName, Mac, Mtu, Vni};
use serde::Serialize;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its name.
    pub name: IfName,
    /// What kind of device it is.
    pub kind: LinkKind,
    /// Bytes; `None`: whatever it has.
    pub mtu: Option<Mtu>,
    /// Ethernet address; `None`: whatever it has.
    pub mac: Option<Mac>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// The bridge that it is a port of. A desired `None` does not take a port out of a bridge.
    pub master: Option<IfName>,
    /// Flags of a bridge port; `None`: whatever it has.
    pub port: Option<PortFlags>,
}

/// Kinds of devices, with what can only be set at creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A bridge without spanning tree.
    Bridge,
    /// One end of a veth pair. The other end is `peer`, in the namespace at `peer_netns` (a path;
    /// `None`: the same one). Observation does not know the peer: the projection skips it.
    Veth {
        /// Name of the other end.
        peer: Option<IfName>,
        /// Ethernet address of the other end.
        peer_mac: Option<Mac>,
        /// Path of the namespace that holds the other end.
        peer_netns: Option<String>,
    },
    /// A VXLAN tunnel device.
    Vxlan(Vxlan),
    /// Any other kind, by the kernel's name for it (`dummy`), empty for a plain device.
    Other(String),
}

impl LinkKind {
    /// True for devices that bring packets of other nodes out of outer ones: those that a filter has
    /// to close.
    pub fn is_tunnel(&self) -> bool {
        matches!(self, LinkKind::Vxlan(_))
    }
}

/// What makes a VXLAN device (`IFLA_VXLAN_*` in `linux/if_link.h`). A change of any of these
/// needs a new device. Learning is always off: the FDB is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address.
    pub local: IpAddr,
}

/// Flags of a bridge port (`IFLA_BRPORT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PortFlags {
    /// Isolated ports do not talk to each other: their packets go through the node's forwarding.
    pub isolated: bool,
    /// A packet may leave by the port it came from.
    pub hairpin: bool,
    /// Source addresses are learned into the FDB.
    pub learning: bool,
    /// Unknown unicast, multicast and broadcast go out of this port.
    pub flood: bool,
}

impl PortFlags {
    /// What the kernel gives a new port.
    pub const DEFAULT: PortFlags =
        PortFlags { isolated: false, hairpin: false, learning: true, flood: true };
    /// A port of a bridge that the agent serves: isolated, nothing learned, nothing flooded.
    pub const SERVED: PortFlags =
        PortFlags { isolated: true, hairpin: false, learning: false, flood: false };
}

impl Link {
    /// A link that is up, with nothing else asked for.
    pub fn up(name: IfName, kind: LinkKind) -> Self {
        Self { name, kind, mtu: None, mac: None, up: true, master: None, port: None }
    }

    /// True when what can only be set at creation agrees.
    pub fn same_device(&self, observed: &Link) -> bool {
        match (&self.kind, &observed.kind) {
            (LinkKind::Veth { .. }, LinkKind::Veth { .. }) => true,
            (a, b) => a == b,
        }
    }

    /// True when `observed` has everything that this desired link asks for.
    pub fn satisfied_by(&self, observed: &Link) -> bool {
        fn asks<T: PartialEq>(want: &Option<T>, have: &Option<T>) -> bool {
            want.is_none() || want == have
        }
        self.name == observed.name
            && self.same_device(observed)
            && asks(&self.mtu, &observed.mtu)
            && asks(&self.mac, &observed.mac)
            && self.up == observed.up
            && asks(&self.master, &observed.master)
            && asks(&self.port, &observed.port)
    }
}
