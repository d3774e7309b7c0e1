//! What an object stands on, and in which stage it is made.

use causeway_model::nft::{Base, NftFamily, NftTable};
use causeway_model::{LinkKind, Object};
use causeway_types::IfName;

/// True when the object cannot be there without the interface.
pub(crate) fn stands_on(object: &Object, link: &IfName) -> bool {
    match object {
        Object::Link(l) => &l.name == link,
        Object::Sysctl(s) => sysctl_link(&s.path) == Some(link.as_str()),
        Object::Addr(a) => &a.dev == link,
        Object::Neigh(n) => &n.dev == link,
        Object::Fdb(f) => &f.dev == link,
        Object::Route(r) => r.dev.as_ref() == Some(link),
        Object::Table(_) => false,
    }
}

/// The interface that a kernel parameter belongs to, as in `net/ipv4/conf/cni0/send_redirects`.
pub(crate) fn sysctl_link(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ipv4" | "ipv6"), Some("conf" | "neigh"), Some(name)) => {
            (name != "all" && name != "default").then_some(name)
        }
        _ => None,
    }
}

/// True for the parameters that turn forwarding on.
pub(crate) fn turns_forwarding_on(path: &str) -> bool {
    matches!(path, "net/ipv4/ip_forward" | "net/ipv6/conf/all/forwarding")
}

/// The table without the ingress chains of an interface.
pub(crate) fn without_device(table: &NftTable, link: &IfName) -> NftTable {
    let on_device = |b: &Option<Base>| b.as_ref().is_some_and(|b| b.device.as_ref() == Some(link));
    let mut table = table.clone();
    table.chains.retain(|_, chain| !on_device(&chain.base));
    table
}

/// The stage of an object: lower is made first and removed last.
pub(crate) fn stage(object: &Object) -> u8 {
    match object {
        Object::Table(t) if t.family == NftFamily::Inet => 0,
        Object::Link(l) => match l.kind {
            LinkKind::Bridge => 1,
            LinkKind::Vxlan(_) | LinkKind::Other(_) => 2,
            LinkKind::Veth { .. } => 3,
        },
        Object::Sysctl(s) if turns_forwarding_on(&s.path) => 9,
        Object::Sysctl(_) => 4,
        Object::Addr(_) => 5,
        Object::Neigh(_) | Object::Fdb(_) => 6,
        Object::Table(_) => 7,
        // A gateway must be reachable by a route that is there before.
        Object::Route(r) if r.via.is_none() => 8,
        Object::Route(_) => 9,
    }
}
