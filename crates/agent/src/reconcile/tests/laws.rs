//! What must be true of the kernel at every moment, and what can explain that an object is not there.

use causeway_model::nft::{Field, KeyPart, MatchOp, NftTable, Rhs, Stmt, Verdict};
use causeway_model::{Key, LinkKind, Object, Observed};
use causeway_types::{Family, names};

fn agents_table(state: &Observed) -> Option<&NftTable> {
    state.iter().find_map(|(_, object)| match object {
        Object::Table(table) if table.name == names::NFT_AGENT => Some(table),
        _ => None,
    })
}

/// A tunnel device that is up brings packets of peers' pods only, and takes them from peers only; the
/// node forwards only with its table in place.
pub(super) fn closed(state: &Observed) -> Result<(), String> {
    let table = agents_table(state);
    let rules =
        table.and_then(|t| t.chains.get("tunnel")).map(|c| &c.rules[..]).unwrap_or_default();
    let drops = |test: &dyn Fn(&Stmt) -> bool| {
        rules.iter().any(|r| {
            matches!(r.stmts.last(), Some(Stmt::Verdict(Verdict::Drop))) && r.stmts.iter().any(test)
        })
    };
    for (_, object) in state.iter() {
        match object {
            Object::Link(link) if link.name.as_str() == names::VXLAN_DEV && link.up => {
                let LinkKind::Vxlan(vxlan) = &link.kind else { continue };
                let remote = |family| {
                    let set = match family {
                        Family::V4 => "remote4",
                        Family::V6 => "remote6",
                    };
                    drops(
                        &|stmt| matches!(stmt, Stmt::Match { op: MatchOp::Ne, rhs: Rhs::Set(s), .. } if s == set),
                    )
                };
                if !Family::BOTH.into_iter().all(remote) {
                    return Err("the tunnel brings anything".to_owned());
                }
                let port = Stmt::is(Field::Dport, KeyPart::Port(vxlan.port));
                let nobody = table.is_some_and(|t| {
                    ["remote4", "remote6"].iter().all(|s| t.sets[*s].elements.is_empty())
                });
                if !nobody && !drops(&|stmt| *stmt == port) {
                    return Err(format!("port {} takes packets from anybody", vxlan.port));
                }
            }
            Object::Sysctl(s) if forwards(&s.path) && s.value == "1" && table.is_none() => {
                return Err(format!("{} without the table", s.path));
            }
            _ => {}
        }
    }
    Ok(())
}

fn forwards(path: &str) -> bool {
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].contains(&path)
}

/// True when an object may be away because another one is.
pub(super) fn stands_on(object: &Object, on: &Key) -> bool {
    match on {
        Key::Link(link) => match object {
            Object::Link(l) => l.master.as_ref() == Some(link),
            Object::Sysctl(s) => s.path.split('/').any(|part| part == link.as_str()),
            Object::Addr(a) => &a.dev == link,
            Object::Neigh(n) => &n.dev == link,
            Object::Fdb(f) => &f.dev == link,
            Object::Route(r) => r.dev.as_ref() == Some(link),
            // It closes the new tunnel, and waits until the old one is gone.
            Object::Table(t) if t.name == names::NFT_AGENT => link.as_str() == names::VXLAN_DEV,
            Object::Table(t) => t
                .chains
                .values()
                .any(|c| c.base.as_ref().is_some_and(|b| b.device.as_ref() == Some(link))),
        },
        // A source address, or the gateway's network.
        Key::Addr { addr, .. } => {
            matches!(object, Object::Route(r) if r.src == Some(addr.addr())
                || r.via.is_some_and(|via| addr.contains(&via)))
        }
        Key::Route { dst, .. } => {
            matches!(object, Object::Route(r) if r.via.is_some_and(|via| dst.contains(via)))
        }
        // Nothing opens before the table that closes it.
        Key::Table { name, .. } if name == names::NFT_AGENT => match object {
            Object::Link(l) => l.name.as_str() == names::VXLAN_DEV,
            Object::Sysctl(s) => forwards(&s.path),
            _ => false,
        },
        _ => false,
    }
}
