//! The underlay: a namespace for each node, switches and a router, and a world outside. Nothing
//! of it is linked to the machine's own network.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use causeway_kernel::{Handle, netns, sysctl};
use causeway_model::{
    Addr, Desired, Link, LinkKind, Object, Owner, Route, RouteKind, RouteScope, Sysctl,
};
use causeway_types::{Cidr, Family, IfName, Mac, Mtu};
use ipnet::IpNet;

use crate::spec::Spec;

/// What one namespace should hold.
struct Space {
    desired: Desired,
    mtu: Mtu,
}

impl Space {
    fn new(mtu: Mtu) -> Self {
        Self { desired: Desired::default(), mtu }
    }

    fn add(&mut self, object: Object) -> &mut Self {
        self.desired.add(Owner::Node, "", object);
        self
    }

    fn link(&mut self, name: &str, kind: LinkKind, master: Option<&str>) -> &mut Self {
        let mut link = Link::up(ifname(name), kind);
        if name != "lo" {
            link.mtu = Some(self.mtu);
        }
        link.master = master.map(ifname);
        if link.kind == LinkKind::Bridge {
            // A bridge without one takes another each time that its ports change.
            link.mac = Some(Mac::derived(name));
        }
        self.add(Object::Link(link))
    }

    /// An end of a veth pair whose other end is made in the namespace at a path.
    fn cable(&mut self, name: &str, peer_ns: &Path, master: Option<&str>) -> &mut Self {
        let kind = LinkKind::Veth {
            peer: Some(ifname("eth0")),
            // As of a network card: a machine that boots has the one that it had.
            peer_mac: Some(Mac::derived(&peer_ns.to_string_lossy())),
            peer_netns: Some(peer_ns.to_string_lossy().into_owned()),
        };
        self.link(name, kind, master)
    }

    /// The end that the other side made.
    fn plug(&mut self) -> &mut Self {
        let kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
        self.link("eth0", kind, None)
    }

    fn addr(&mut self, dev: &str, addr: IpNet) -> &mut Self {
        self.add(Object::Addr(Addr::new(ifname(dev), addr)))
    }

    fn route(&mut self, dst: Cidr, via: IpAddr) -> &mut Self {
        self.route_by(dst, "eth0", Some(via))
    }

    /// By a gateway, or on the link itself.
    fn route_by(&mut self, dst: Cidr, dev: &str, via: Option<IpAddr>) -> &mut Self {
        let link = via.is_none() && dst.family() == Family::V4;
        self.add(Object::Route(Route {
            dst,
            table: Route::MAIN,
            metric: Route::default_metric(dst.family()),
            kind: RouteKind::Unicast,
            dev: Some(ifname(dev)),
            via,
            onlink: false,
            src: None,
            scope: if link { RouteScope::Link } else { RouteScope::Universe },
            protocol: 4,
            mtu: None,
            advmss: None,
        }))
    }

    fn sysctl(&mut self, path: &str, value: &str) -> &mut Self {
        self.add(Object::Sysctl(Sysctl { path: path.into(), value: value.into() }))
    }

    fn build(&self, ns: &Path) -> Result<()> {
        let ns = netns::NetNs::open(ns).map_err(|e| anyhow!("{e}"))?;
        let mut handle = Handle::open_in(&ns).map_err(|e| anyhow!("{e}"))?;
        netns_loopback(&ns)?;
        let ops = causeway_plan::create(&self.desired);
        for (op, result) in ops.iter().zip(handle.apply(&ops)) {
            result.map_err(|e| anyhow!("{e}")).with_context(|| op.to_string())?;
        }
        Ok(())
    }
}

fn netns_loopback(ns: &netns::NetNs) -> Result<()> {
    ns.run(netns::loopback_up).map_err(|e| anyhow!("{e}"))?.map_err(|e| anyhow!("{e}"))
}

fn ifname(name: &str) -> IfName {
    IfName::new(name).expect("a valid name")
}

/// Makes all namespaces of the lab and joins them.
///
/// # Errors
/// When the kernel refuses; what was made so far is left for `down`.
pub(crate) fn build(spec: &Spec) -> Result<()> {
    let dirs = spec.dirs();
    let nodes = spec.node_names();
    let all = nodes.iter().map(String::as_str).chain(["net", "outside"]);
    for what in all {
        netns::create_named(&dirs.netns(what)).map_err(|e| anyhow!("{e}"))?;
    }
    settle_at_once(&dirs.netns("net"), "default")?;
    underlay(spec, &nodes).build(&dirs.netns("net")).context("the underlay")?;
    settle_at_once(&dirs.netns("outside"), "eth0")?;
    outside(spec).build(&dirs.netns("outside")).context("the outside world")?;
    nodes.iter().try_for_each(|node| furnish(spec, node))
}

/// Gives a node's namespace, in which one end of its cable lies, addresses and routes.
fn furnish(spec: &Spec, node: &str) -> Result<()> {
    let ns = spec.dirs().netns(node);
    settle_at_once(&ns, "eth0")?;
    node_space(spec, node).build(&ns).with_context(|| node.to_owned())
}

/// Makes a node's namespace and cable anew, as they were in the beginning. Those that there are
/// must have no process inside.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn renew(spec: &Spec, node: &str) -> Result<()> {
    let dirs = spec.dirs();
    let net = netns::NetNs::open(dirs.netns("net")).map_err(|e| anyhow!("{e}"))?;
    let mut handle = Handle::open_in(&net).map_err(|e| anyhow!("{e}"))?;
    // The kernel clears a namespace away when it finds time; a cable goes at once, both ends.
    let kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
    let cable = causeway_plan::Op::Remove(Object::Link(Link::up(ifname(node), kind)));
    handle.apply(&[cable]).remove(0).map_err(|e| anyhow!("{e}"))?;
    netns::delete_named(&dirs.netns(node)).map_err(|e| anyhow!("{e}"))?;
    netns::create_named(&dirs.netns(node)).map_err(|e| anyhow!("{e}"))?;
    let mut space = Space::new(spec.mtu);
    plug_in(&mut space, spec, node);
    space.build(&dirs.netns("net")).context("the underlay")?;
    furnish(spec, node)
}

/// A node's cable, from its switch.
fn plug_in(space: &mut Space, spec: &Spec, node: &str) {
    let switch = format!("sw{}", spec.subnet_of(node));
    space.cable(node, &spec.dirs().netns(node), Some(&switch));
}

/// A real node's addresses have long passed their test for duplicates when an agent starts. A
/// link-local address that is still under test (a second or two) sends no neighbour solicitation
/// for packets that are forwarded.
fn settle_at_once(ns: &Path, dev: &str) -> Result<()> {
    let path = format!("net/ipv6/conf/{dev}/accept_dad");
    let ns = netns::NetNs::open(ns).map_err(|e| anyhow!("{e}"))?;
    let set = || match sysctl::read(&path)? {
        Some(_) => sysctl::write(&path, "0"),
        // A kernel without IPv6.
        None => Ok(()),
    };
    ns.run(set).map_err(|e| anyhow!("{e}"))?.map_err(|e| anyhow!("{e}"))
}

/// Switches, and the router that all of them and the outside world hang on.
fn underlay(spec: &Spec, nodes: &[String]) -> Space {
    let dirs = spec.dirs();
    let mut space = Space::new(spec.mtu);
    for subnet in spec.subnets() {
        let switch = format!("sw{subnet}");
        space.link(&switch, LinkKind::Bridge, None);
        for family in spec.families.list() {
            space.addr(&switch, Spec::router_addr(*subnet, *family));
        }
    }
    for node in nodes {
        plug_in(&mut space, spec, node);
    }
    space.cable("outside", &dirs.netns("outside"), None);
    for family in spec.families.list() {
        space.addr("outside", Spec::outside(*family).1);
        match family {
            Family::V4 => space.sysctl("net/ipv4/ip_forward", "1"),
            Family::V6 => space.sysctl("net/ipv6/conf/all/forwarding", "1"),
        };
    }
    space
}

/// It knows the way to the nodes, and none to pods: they are seen by their node's address or not
/// at all.
fn outside(spec: &Spec) -> Space {
    let mut space = Space::new(spec.mtu);
    space.plug();
    for family in spec.families.list() {
        let (server, router) = Spec::outside(*family);
        space.addr("eth0", server);
        for subnet in spec.subnets() {
            space.route(Cidr::of(Spec::router_addr(*subnet, *family)), router.addr());
        }
    }
    space
}

/// Gives the world outside addresses beside its own, and the way to pods, which it has not of itself:
/// `pods` are the subnets of nodes. No address may be one of the lab's own ([`Spec::is_own`]).
///
/// # Errors
/// When the kernel refuses.
pub fn give_outside(spec: &Spec, addresses: &[IpAddr], pods: &[(String, IpNet)]) -> Result<()> {
    let dirs = spec.dirs();
    let (mut outside, mut net) = (Space::new(spec.mtu), Space::new(spec.mtu));
    let has = |family| spec.families.list().contains(&family);
    let new = |ip: &&IpAddr| {
        let family = Family::of(**ip);
        has(family) && **ip != Spec::outside(family).0.addr()
    };
    for ip in addresses.iter().filter(new) {
        let one = IpNet::from(*ip);
        outside.addr("eth0", one);
        net.route_by(Cidr::of(one), "outside", None);
    }
    for (node, subnet) in pods {
        let family = Family::of(subnet.addr());
        outside.route(Cidr::of(*subnet), Spec::outside(family).1.addr());
        let switch = format!("sw{}", spec.subnet_of(node));
        net.route_by(Cidr::of(*subnet), &switch, Some(spec.node_addr(node, family).addr()));
    }
    outside.build(&dirs.netns("outside")).context("the outside world")?;
    net.build(&dirs.netns("net")).context("the underlay")
}

fn node_space(spec: &Spec, node: &str) -> Space {
    let mut space = Space::new(spec.mtu);
    space.plug();
    for family in spec.families.list() {
        let router = Spec::router_addr(spec.subnet_of(node), *family);
        space.addr("eth0", spec.node_addr(node, *family));
        space.route(Cidr::of(family.default_route()), router.addr());
    }
    space
}
