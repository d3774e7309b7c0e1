//! By what our objects are known.

use causeway_desired::input::Config;
use causeway_model::nft::NftFamily;
use causeway_model::{Key, Object};
use causeway_plan::TableId;
use causeway_types::names;

/// The agent's own table, looked at whether wanted or not.
pub(crate) fn table() -> TableId {
    TableId { family: NftFamily::Inet, name: names::NFT_AGENT.to_owned() }
}

/// True for objects that carry one of our marks: the route protocol number, a device name, a
/// table name, or a place on one of our devices.
pub(crate) fn ours(object: &Object, config: &Config) -> bool {
    // Not `cw` alone: pods' interfaces are the plugins'.
    let device = |name: &str| name.starts_with("cw-");
    match object {
        Object::Route(r) => r.protocol == config.route_protocol,
        Object::Link(l) => device(l.name.as_str()),
        Object::Addr(a) => device(a.dev.as_str()),
        Object::Neigh(n) => device(n.dev.as_str()),
        Object::Fdb(f) => device(f.dev.as_str()),
        Object::Table(t) => TableId::of(t) == table(),
        Object::Sysctl(_) => false,
    }
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
