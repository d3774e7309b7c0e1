//! By what our objects are known.

use causeway_desired::input::{Config, TakenOver};
use causeway_model::nft::NftFamily;
use causeway_model::{Key, Object};
use causeway_plan::TableId;
use causeway_types::{IfName, names};

/// The agent's own table, looked at whether wanted or not.
pub(crate) fn table() -> TableId {
    TableId { family: NftFamily::Inet, name: names::NFT_AGENT.to_owned() }
}

/// True for objects that carry one of our marks: the route protocol number, a device name, a
/// table name, or a place on one of our devices. Tunnel devices that were taken over are ours.
pub(crate) fn ours(object: &Object, config: &Config, taken: Option<&TakenOver>) -> bool {
    // Not `cw` alone: pods' interfaces are the plugins'.
    let device = |name: &IfName| name.as_str().starts_with("cw-") || is_tunnel(taken, name);
    match object {
        Object::Route(r) => r.protocol == config.route_protocol,
        Object::Link(l) => device(&l.name),
        Object::Addr(a) => device(&a.dev),
        Object::Neigh(n) => device(&n.dev),
        Object::Fdb(f) => device(&f.dev),
        Object::Table(t) => TableId::of(t) == table(),
        Object::Sysctl(_) => false,
    }
}

/// True for keys of objects of which a node has some for each pod: to a single address, or on a device that
/// is none of ours alone. Some of peers are among them.
pub(crate) fn may_be_of_a_pod(key: &Key) -> bool {
    match key {
        Key::Route { dst, .. } => dst.net().prefix_len() == dst.net().max_prefix_len(),
        Key::Neigh { dev, .. } | Key::Fdb { dev, .. } => !dev.as_str().starts_with("cw-"),
        Key::Table { family, .. } => *family == NftFamily::Netdev,
        Key::Link(_) | Key::Sysctl(_) | Key::Addr { .. } => false,
    }
}

/// The device that an object is on, and goes with.
pub(crate) fn device(object: &Object) -> Option<&IfName> {
    match object {
        Object::Addr(a) => Some(&a.dev),
        Object::Neigh(n) => Some(&n.dev),
        Object::Fdb(f) => Some(&f.dev),
        Object::Route(r) => r.dev.as_ref(),
        Object::Link(_) | Object::Table(_) | Object::Sysctl(_) => None,
    }
}

/// A tunnel device that was taken over.
pub(crate) fn is_tunnel(taken: Option<&TakenOver>, name: &IfName) -> bool {
    taken.is_some_and(|taken| taken.tunnels.iter().any(|t| t.name == *name))
}

/// The kind of an object in one word, for metrics.
pub(crate) fn kind(key: &Key) -> &'static str {
    match key {
        Key::Link(_) => "link",
        Key::Sysctl(_) => "sysctl",
        Key::Addr { .. } => "addr",
        Key::Neigh { .. } => "neigh",
        Key::Fdb { .. } => "fdb",
        Key::Table { .. } => "table",
        Key::Route { .. } => "route",
    }
}
