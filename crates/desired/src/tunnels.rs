//! The tunnel devices of a node.
//!
//! One carries both families, over IPv4 where the node has it. flannel has one a family, each over its
//! own: a node that flannel was on, or that has nodes of flannel beside it, does as flannel does.

use std::net::IpAddr;

use causeway_model::{Addr, Desired, Link, LinkKind, Object, Owner, Sysctl, Vxlan};
use causeway_types::{Family, IfName, Mac, Mtu, NodeName, names};
use ipnet::IpNet;

use crate::flannel;
use crate::input::{Inputs, NodeInfo};
use crate::roads::outer_family;

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) dev: IfName,
    pub(crate) mac: Mac,
    /// The source of its outer packets.
    pub(crate) local: IpAddr,
    /// flannel made it.
    taken: bool,
}

impl Tunnel {
    pub(crate) fn outer(&self) -> Family {
        Family::of(self.local)
    }
}

/// Those that a node has where any peer is behind a tunnel: the first carries what the others do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tunnels(pub(crate) Vec<Tunnel>);

/// MAC of a node's VXLAN device: known to every node, published by none.
pub(crate) fn vtep_mac(node: &NodeName) -> Mac {
    Mac::derived(&format!("vtep/{node}"))
}

impl Tunnels {
    /// `own` holds only addresses that are on this node's interfaces.
    pub(crate) fn of(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> Self {
        let Some(main) = outer_family(own) else { return Self::default() };
        let taken = |family| inputs.taken.as_ref().and_then(|all| all.tunnel(family));
        let near = flannel::is_near(inputs, me);
        let mut all = Vec::new();
        for family in [main].into_iter().chain(Family::BOTH.into_iter().filter(|f| *f != main)) {
            let wanted = family == main || taken(family).is_some() || near;
            let Some(local) = own.address(family).filter(|_| wanted) else { continue };
            if family != main && own.pod_cidr(family).is_none() {
                continue;
            }
            let name = if family == main { names::VXLAN_DEV } else { names::VXLAN6_DEV };
            let (dev, mac) = match taken(family) {
                Some(device) => (device.name.clone(), device.mac),
                None => (IfName::new(name).expect("a valid name"), vtep_mac(me)),
            };
            all.push(Tunnel { dev, mac, local, taken: taken(family).is_some() });
        }
        Self(all)
    }

    /// The one whose outer packets are of a family.
    pub(crate) fn over(&self, outer: Family) -> Option<&Tunnel> {
        self.0.iter().find(|t| t.outer() == outer)
    }

    /// The one that carries all that has none of its own.
    pub(crate) fn main(&self) -> Option<&Tunnel> {
        self.0.first()
    }

    /// Whether pods' packets of a family go through a tunnel.
    fn carries(&self, tunnel: &Tunnel, inner: Family) -> bool {
        let own = self.over(inner);
        own.or(self.main()).is_some_and(|t| t == tunnel)
    }

    /// All the names that tunnel devices of this node have or may have had.
    pub(crate) fn names(&self) -> Vec<IfName> {
        let usual = IfName::new(names::VXLAN_DEV).expect("a valid name");
        let mut all = vec![usual];
        all.extend(self.0.iter().map(|t| t.dev.clone()));
        all.sort();
        all.dedup();
        all
    }
}

/// The devices with what stands on them. `mtu` is the pods', `fits` what the underlay leaves for inner
/// packets below outer ones of a family.
pub(crate) fn objects(
    d: &mut Desired,
    inputs: &Inputs,
    own: &NodeInfo,
    tunnels: &Tunnels,
    mtu: Mtu,
    fits: impl Fn(Family) -> Option<Mtu>,
) {
    for tunnel in &tunnels.0 {
        let (vni, port) = (inputs.config.vni, inputs.config.vxlan_port);
        let vxlan = Vxlan { vni, port, local: tunnel.local };
        let mut link = Link::up(tunnel.dev.clone(), LinkKind::Vxlan(vxlan));
        link.mac = Some(tunnel.mac);
        // The kernel takes no more than fits where the device was made on an interface, as flannel does.
        let second = tunnels.main() != Some(tunnel);
        let most = fits(tunnel.outer()).filter(|_| second);
        link.mtu = Some(most.map_or(mtu, |most| mtu.min(most)));
        let why = if second {
            "the tunnel to nodes of flannel"
        } else {
            "the tunnel to nodes behind a router"
        };
        d.add(Owner::Node, why, Object::Link(link));
        let families = own.pod_cidrs.iter().map(|c| c.family());
        if families.clone().any(|f| f == Family::V6 && tunnels.carries(tunnel, f)) {
            let path = format!("net/ipv6/conf/{}/accept_ra", tunnel.dev);
            let none = Object::Sysctl(Sysctl { path, value: "0".to_owned() });
            d.add(Owner::Node, "nobody advertises routes in the tunnel", none);
        }
        addresses(d, own, tunnels, tunnel);
    }
}

fn addresses(d: &mut Desired, own: &NodeInfo, tunnels: &Tunnels, tunnel: &Tunnel) {
    // With a bridge too, where it is the gateway's address once more: the kernel masquerades with
    // an address of the outgoing device (kube-proxy does so for the node's own packets to
    // Services), and peers take nothing from the tunnel that is not of our pod subnet.
    for cidr in own.pod_cidrs.iter().filter(|c| tunnels.carries(tunnel, c.family())) {
        let mut add = |ip: IpAddr, why: &str| {
            d.add(Owner::Node, why, Object::Addr(Addr::new(tunnel.dev.clone(), IpNet::from(ip))));
        };
        add(cidr.gateway(), "the node's own address inside the cluster");
        if tunnel.taken {
            add(cidr.addr(), "the node's connections of flannel's time have this address");
        }
    }
}
