//! The floor: the least that any plugin must ask of the kernel, as a process of its own.
//!
//! One veth pair with its far end in the pod, up, a port of a bridge that is there, an address and
//! a default route. No configuration to read, no lease, no masquerade, no result.

use anyhow::{Context, Result, anyhow};
use causeway_kernel::Handle;
use causeway_kernel::netns::NetNs;
use causeway_model::{
    Addr, Desired, Link, LinkKind, Object, Owner, PortFlags, Route, RouteKind, RouteScope,
};
use causeway_types::{Family, IfName};
use ipnet::IpNet;

/// `floor add NETNS HOSTIF BRIDGE ADDRESS GATEWAY` or `floor del HOSTIF`.
///
/// # Errors
/// When the words are wrong or the kernel refuses.
pub(crate) fn process(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["add", netns, host, bridge, addr, gateway] => add(netns, host, bridge, addr, gateway),
        ["del", host] => del(host),
        _ => Err(anyhow!("floor add NETNS HOSTIF BRIDGE ADDRESS GATEWAY | floor del HOSTIF")),
    }
}

fn veth(host: &str, netns: Option<&str>) -> Result<Link> {
    let kind = LinkKind::Veth {
        peer: Some(IfName::new("eth0")?),
        peer_mac: None,
        peer_netns: netns.map(str::to_owned),
    };
    Ok(Link::up(IfName::new(host)?, kind))
}

fn add(netns: &str, host: &str, bridge: &str, addr: &str, gateway: &str) -> Result<()> {
    let mut link = veth(host, Some(netns))?;
    link.master = Some(IfName::new(bridge)?);
    link.port = Some(PortFlags::DEFAULT);
    let mut node = Desired::default();
    node.add(Owner::Node, "", Object::Link(link));
    apply(&mut Handle::open().map_err(|e| anyhow!("{e}"))?, &node)?;

    let dev = IfName::new("eth0")?;
    let addr: IpNet = addr.parse().context("the address")?;
    let dst = Family::of(addr.addr()).default_route();
    let mut pod = Desired::default();
    pod.add(Owner::Node, "", Object::Link(Link::up(dev.clone(), veth(host, None)?.kind)));
    pod.add(Owner::Node, "", Object::Addr(Addr::new(dev.clone(), addr)));
    let route = Route {
        dst: causeway_types::Cidr::of(dst),
        table: Route::MAIN,
        metric: Route::default_metric(Family::of(addr.addr())),
        kind: RouteKind::Unicast,
        dev: Some(dev),
        via: Some(gateway.parse().context("the gateway")?),
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: 4,
        mtu: None,
        advmss: None,
    };
    pod.add(Owner::Node, "", Object::Route(route));
    let ns = NetNs::open(netns).map_err(|e| anyhow!("{e}"))?;
    let mut ops = causeway_plan::create(&pod);
    // The far end is there already: it is brought up, not made.
    for op in &mut ops {
        if let causeway_plan::Op::Create(object @ Object::Link(_)) = op {
            let to = object.clone();
            let mut from = to.clone();
            if let Object::Link(link) = &mut from {
                link.up = false;
            }
            *op = causeway_plan::Op::Change { from, to };
        }
    }
    run(&mut Handle::open_in(&ns).map_err(|e| anyhow!("{e}"))?, &ops)
}

fn del(host: &str) -> Result<()> {
    let mut handle = Handle::open().map_err(|e| anyhow!("{e}"))?;
    run(&mut handle, &[causeway_plan::Op::Remove(Object::Link(veth(host, None)?))])
}

fn apply(handle: &mut Handle, desired: &Desired) -> Result<()> {
    run(handle, &causeway_plan::create(desired))
}

fn run(handle: &mut Handle, ops: &[causeway_plan::Op]) -> Result<()> {
    handle.apply(ops).into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| anyhow!("{e}"))?;
    Ok(())
}
