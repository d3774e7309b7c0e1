//! What this kernel can do, by trying it in a network namespace made for that.

use std::net::Ipv4Addr;

use causeway_model::nft::{Base, ChainType, Hook, NftFamily, Policy, Rule, Stmt};
use causeway_model::{Link, LinkKind, Object, Vxlan};
use causeway_plan::{NftOp, Op, TableId};
use causeway_types::{IfName, Vni, names};

use crate::{Conntrack, Error, Handle, NetNs, OpError, sysctl};

/// Of the features that pods need, those that this kernel lacks: names (`veth`, `bridge`, `vxlan`,
/// `nf_tables`, `nf_conntrack`) and the kernel's words. A kernel that loads modules when they are
/// asked for may load them for this.
///
/// # Errors
/// When it cannot be tried, for want of rights or because no namespace can be made.
pub fn lacking() -> Result<Vec<(&'static str, String)>, Error> {
    let ns = NetNs::unnamed()?;
    let mut handle = Handle::open_in(&ns)?;
    let veth = LinkKind::Veth { peer: Some(name("peer")), peer_mac: None, peer_netns: None };
    let local = Ipv4Addr::LOCALHOST.into();
    let vxlan = LinkKind::Vxlan(Vxlan { vni: Vni::DEFAULT, port: names::VXLAN_PORT, local });
    let mut all = Vec::new();
    for (feature, kind) in [("veth", veth), ("bridge", LinkKind::Bridge), ("vxlan", vxlan)] {
        all.extend(without_link(&mut handle, kind)?.map(|why| (feature, why)));
    }
    let nft = match without_nft(&mut handle)? {
        None => {
            without_ingress(&mut handle)?.map(|why| format!("family netdev, hook ingress: {why}"))
        }
        missing => missing,
    };
    all.extend(nft.map(|why| ("nf_tables", why)));
    let tracked = ns.enter().and_then(|_inside| sysctl::read("net/netfilter/nf_conntrack_max"))?;
    if Conntrack::open_in(&ns).is_err() || tracked.is_none() {
        all.push(("nf_conntrack", "connections are not tracked".to_owned()));
    } else if all.iter().all(|(feature, _)| *feature != "nf_tables") {
        let why = without_ct_marks(&mut handle)?;
        let told = |why| format!("connections have no marks (CONFIG_NF_CONNTRACK_MARK): {why}");
        all.extend(why.map(|why| ("nf_conntrack", told(why))));
    }
    Ok(all)
}

/// Why there can be no such interface; `None`: there can.
///
/// # Errors
/// When it must not be tried.
fn without_link(handle: &mut Handle, kind: LinkKind) -> Result<Option<String>, Error> {
    let link = |kind| Object::Link(Link::up(name("try"), kind));
    let missing = attempt(handle.apply(&[Op::Create(link(kind))]));
    // Where it is not there that is fine, and otherwise the next one says so.
    let _ = handle.apply(&[Op::Remove(link(LinkKind::Bridge))]);
    missing
}

/// A table with a base chain that translates addresses: what the plugins' own needs.
fn without_nft(handle: &mut Handle) -> Result<Option<String>, Error> {
    let table = TableId { family: NftFamily::Inet, name: names::NFT_PLUGINS.to_owned() };
    let base = Base {
        kind: ChainType::Nat,
        hook: Hook::Postrouting,
        priority: 100,
        device: None,
        policy: Policy::Accept,
    };
    let rule = Rule::new("", vec![Stmt::Masquerade { fully_random: true }]);
    let ops = vec![
        NftOp::AddTable,
        NftOp::AddChain { name: "try".to_owned(), base: Some(base) },
        NftOp::AddRule { chain: "try".to_owned(), rule },
    ];
    attempt(handle.apply(&[Op::Nft { table, ops }]))
}

/// A rule that marks a connection: what the table of policies needs.
fn without_ct_marks(handle: &mut Handle) -> Result<Option<String>, Error> {
    let table = TableId { family: NftFamily::Inet, name: names::NFT_POLICY.to_owned() };
    let rule = Rule::new("", vec![Stmt::CtMark { mark: 1 }]);
    let ops = vec![
        NftOp::AddTable,
        NftOp::AddChain { name: "try".to_owned(), base: None },
        NftOp::AddRule { chain: "try".to_owned(), rule },
    ];
    attempt(handle.apply(&[Op::Nft { table, ops }]))
}

/// A chain that sees what comes in by one interface: what the guards of pods need.
fn without_ingress(handle: &mut Handle) -> Result<Option<String>, Error> {
    let table = TableId { family: NftFamily::Netdev, name: names::NFT_PLUGINS.to_owned() };
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Ingress,
        priority: 0,
        device: Some(name("lo")),
        policy: Policy::Accept,
    };
    let ops = vec![NftOp::AddTable, NftOp::AddChain { name: "try".to_owned(), base: Some(base) }];
    attempt(handle.apply(&[Op::Nft { table, ops }]))
}

/// What was refused for want of rights was not tried.
fn attempt(outcomes: Vec<Result<(), OpError>>) -> Result<Option<String>, Error> {
    let Some(error) = outcomes.into_iter().find_map(Result::err) else { return Ok(None) };
    match error.errno {
        Some(libc::EPERM | libc::EACCES) => Err(Error::Invalid(error.to_string())),
        _ => Ok(Some(error.message)),
    }
}

fn name(text: &str) -> IfName {
    IfName::new(text).expect("a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_pods_need() {
        assert_eq!(lacking().expect("these tests need root"), []);
    }

    #[test]
    fn a_kind_that_no_kernel_has_is_lacking() {
        let ns = NetNs::unnamed().expect("these tests need root");
        let mut handle = Handle::open_in(&ns).unwrap();
        let kind = LinkKind::Other("cw-nothing".to_owned());
        assert!(without_link(&mut handle, kind).unwrap().is_some());
        // Nothing is left of what was tried.
        assert_eq!(without_link(&mut handle, LinkKind::Bridge).unwrap(), None);
        assert_eq!(handle.devices().unwrap().iter().filter(|d| d.index > 1).count(), 0);
    }
}
