//! What an attachment of type `ptp` puts into the two namespaces. Pure.

use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult};
use causeway_desired::pod::host_objects;
use causeway_model::nft::NftFamily;
use causeway_model::{Addr, Desired, Object, Owner, Route, RouteKind, RouteScope};
use causeway_types::state::AttachmentRecord;
use causeway_types::{Cidr, Family, IfName};
use ipnet::IpNet;

use crate::attachment;
use crate::bridge::objects as bridge;

/// `RT_SCOPE_HOST`: what the reference gives routes to its pods.
const SCOPE_HOST: RouteScope = RouteScope::Other(254);

/// What the node's namespace holds: the veth pair with the gateway's address, and the route to the
/// pod. Without an agent nothing more, as with the reference: no guard, and neighbours that are asked.
pub(crate) fn host(record: &AttachmentRecord, served: bool, result: &CniResult) -> Desired {
    let owner = || Owner::Pod(record.owner_name());
    let mut all = Desired::default();
    for (_, entry) in host_objects(record, &attachment::context(served)).iter() {
        let mut entry = entry.clone();
        match &mut entry.object {
            Object::Neigh(_) if !served => continue,
            Object::Table(table) if !served && table.family == NftFamily::Netdev => continue,
            // The agent looks after its routes by their protocol, and these are none of its.
            Object::Route(route) if !served => {
                route.protocol = bridge::PROTO_BOOT;
                if route.family() == Family::V4 {
                    route.scope = SCOPE_HOST;
                }
            }
            _ => {}
        }
        all.add(entry.owner, entry.why, entry.object);
    }
    for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
        let dev = record.host_ifname.clone();
        let addr = Addr::new(dev, IpNet::from(gateway));
        all.add(owner(), "the node is the pod's gateway", Object::Addr(addr));
    }
    if !served && record.addrs_of(Family::V6).next().is_some() {
        // While the kernel looks for duplicates of the link-local address, it solicits no neighbours.
        let dad = bridge::sysctl(Family::V6, &record.host_ifname, "accept_dad", "0");
        all.add(owner(), "the node forwards to the pod at once", dad);
    }
    all
}

/// What the pod's namespace holds: its addresses, a route to each gateway, and by it everything
/// else, the pod's own network included.
///
/// # Errors
/// Code 7 for routes that make no sense, code 2 for what is not supported.
pub(crate) fn pod(
    record: &AttachmentRecord,
    served: bool,
    result: &CniResult,
) -> Result<Desired, CniError> {
    let mut all = Desired::default();
    for (_, entry) in
        bridge::pod(bridge::Inside::default(), record, record.host_mac, served, &result.routes)?
            .iter()
    {
        let mut entry = entry.clone();
        if let Object::Addr(addr) = &mut entry.object {
            // Nobody but the node is on this link.
            addr.noprefixroute = true;
        }
        all.add(entry.owner, entry.why, entry.object);
    }
    let mut add = |why: &str, route| {
        all.add(Owner::Pod(record.owner_name()), why, Object::Route(route));
    };
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let src = ip.address.addr();
        add("the gateway is on the link", route(&record.ifname, Cidr::host(gateway), None, src));
        let network = Cidr::of(ip.address);
        if network != Cidr::host(src) {
            let by = route(&record.ifname, network, Some(gateway), src);
            add("other pods of the network are reached by the node", by);
        }
    }
    Ok(all)
}

fn route(dev: &IfName, dst: Cidr, via: Option<IpAddr>, src: IpAddr) -> Route {
    Route {
        dst,
        table: Route::MAIN,
        metric: Route::default_metric(dst.family()),
        kind: RouteKind::Unicast,
        dev: Some(dev.clone()),
        via,
        onlink: false,
        src: Some(src),
        scope: match (dst.family(), via) {
            (Family::V4, None) => RouteScope::Link,
            _ => RouteScope::Universe,
        },
        protocol: bridge::PROTO_BOOT,
        mtu: None,
        advmss: None,
    }
}

/// The node forwards for its pods.
pub(crate) fn forwarding(record: &AttachmentRecord) -> Desired {
    let mut all = Desired::default();
    let families = Family::BOTH.into_iter().filter(|f| record.addrs_of(*f).next().is_some());
    for family in families {
        all.add(Owner::Node, "the node forwards for its pods", bridge::forwarding(family));
    }
    all
}
