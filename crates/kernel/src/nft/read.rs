//! Tables read back.

use std::collections::BTreeMap;

use causeway_model::nft::{
    Base, Chain, ChainType, Hook, NftFamily, NftTable, Policy, Rule, Set, raise,
};
use causeway_plan::TableId;
use causeway_types::IfName;

use super::elements;
use super::encode::{DATA_TYPE_VERDICT, SET_INTERVAL, SET_MAP, key_types, proto};
use super::exprs::{attribute, read_all};
use super::wire::{Body, be32, comment_of, msg, text};
use crate::Error;
use crate::sock::{Reply, Request, Socket, attributes};

pub(super) fn request(kind: u16, family: NftFamily, fill: impl FnOnce(&mut Body)) -> Request {
    let mut body = Body::new(proto(family));
    fill(&mut body);
    Request { kind, flags: 0, body: body.done() }
}

/// The attributes behind `struct nfgenmsg`.
pub(super) fn body<'a>(reply: &Reply<'a>) -> &'a [u8] {
    reply.body.get(4..).unwrap_or_default()
}

/// Reads one table with all that it holds.
pub(super) fn table(
    sock: &mut Socket,
    family: NftFamily,
    name: &str,
) -> Result<Option<NftTable>, Error> {
    let ask = request(msg::GETTABLE, family, |b| {
        b.text(1, name);
    });
    if sock.get("look up an nftables table", ask, |_| Some(()))?.is_none() {
        return Ok(None);
    }
    let mut table = NftTable::new(family, name, false);
    chains(sock, &mut table)?;
    rules(sock, &mut table, None)?;
    sets(sock, &mut table)?;
    Ok(Some(table))
}

/// Those of the chains and sets of a table that another one names.
pub(super) fn frame(sock: &mut Socket, wanted: &NftTable) -> Result<Option<NftTable>, Error> {
    let mut found = NftTable::new(wanted.family, &wanted.name, wanted.exclusive);
    for name in wanted.chains.keys() {
        let ask = request(msg::GETCHAIN, wanted.family, |b| {
            b.text(1, &wanted.name).text(3, name);
        });
        let read = |reply: Reply<'_>| Some(base(wanted.family, ours(&reply, &wanted.name)?));
        if let Some(base) = sock.get("look up an nftables chain", ask, read)? {
            found.chains.insert(name.clone(), Chain { base, rules: Vec::new() });
        }
    }
    for name in found.chains.keys().cloned().collect::<Vec<_>>() {
        rules(sock, &mut found, Some(&name))?;
    }
    for name in wanted.sets.keys() {
        let ask = request(msg::GETSET, wanted.family, |b| {
            b.text(1, &wanted.name).text(2, name);
        });
        let read = |reply: Reply<'_>| set_frame(ours(&reply, &wanted.name)?);
        if let Some((_, set)) = sock.get("look up an nftables set", ask, read)? {
            found.sets.insert(name.clone(), set);
        }
    }
    Ok((!found.chains.is_empty() || !found.sets.is_empty()).then_some(found))
}

/// `NFTA_CHAIN_USE` counts the rules of a chain and all that leads to it.
pub(super) fn is_chain_used(
    sock: &mut Socket,
    table: &NftTable,
    name: &str,
) -> Result<bool, Error> {
    let mut alone = NftTable::new(table.family, &table.name, table.exclusive);
    alone.chains.insert(name.to_owned(), Chain { base: None, rules: Vec::new() });
    rules(sock, &mut alone, Some(name))?;
    let rules = alone.chains.get(name).map_or(0, |chain| chain.rules.len());
    let ask = request(msg::GETCHAIN, table.family, |b| {
        b.text(1, &table.name).text(3, name);
    });
    let read = |reply: Reply<'_>| attribute(ours(&reply, &table.name)?, 6).and_then(be32);
    let used = sock.get("look up an nftables chain", ask, read)?.unwrap_or(0);
    Ok(used as usize > rules)
}

fn ours<'a>(reply: &Reply<'a>, table: &str) -> Option<&'a [u8]> {
    let body = body(reply);
    (text(attribute(body, 1)?) == table).then_some(body)
}

fn chains(sock: &mut Socket, table: &mut NftTable) -> Result<(), Error> {
    // Older kernels answer with the chains of all tables of the family.
    let ask = request(msg::GETCHAIN, table.family, |_| {});
    let read = |reply: Reply<'_>| {
        let body = ours(&reply, &table.name)?;
        let name = text(attribute(body, 3)?);
        Some((name, Chain { base: base(table.family, body), rules: Vec::new() }))
    };
    let all = sock.dump("list nftables chains", ask, read)?;
    table.chains = all.into_iter().collect();
    Ok(())
}

pub(super) fn base(family: NftFamily, body: &[u8]) -> Option<Base> {
    let hook = attribute(body, 4)?;
    let number = be32(attribute(hook, 1)?)?;
    // NFTA_HOOK_DEV, or the first of NFTA_HOOK_DEVS, which newer kernels give.
    let device =
        attribute(hook, 3).or_else(|| attributes(attribute(hook, 4)?).next().map(|(_, name)| name));
    Some(Base {
        kind: match text(attribute(body, 7)?).as_str() {
            "nat" => ChainType::Nat,
            _ => ChainType::Filter,
        },
        hook: match (family, number) {
            (NftFamily::Netdev, _) => Hook::Ingress,
            (_, 0) => Hook::Prerouting,
            (_, 1) => Hook::Input,
            (_, 2) => Hook::Forward,
            (_, 3) => Hook::Output,
            _ => Hook::Postrouting,
        },
        priority: be32(attribute(hook, 2)?)? as i32,
        device: device.and_then(|d| IfName::new(text(d)).ok()),
        policy: match attribute(body, 5).and_then(be32) {
            Some(0) => Policy::Drop,
            _ => Policy::Accept,
        },
    })
}

/// Reads the rules of all chains, or of one.
fn rules(sock: &mut Socket, table: &mut NftTable, chain: Option<&str>) -> Result<(), Error> {
    let name = table.name.clone();
    let family = table.family;
    let ask = request(msg::GETRULE, family, |b| {
        b.text(1, &name);
        if let Some(chain) = chain {
            b.text(2, chain);
        }
    });
    let read = |reply: Reply<'_>| {
        let body = ours(&reply, &name)?;
        let exprs = read_all(attribute(body, 4).unwrap_or_default());
        let mut rule: Rule = raise(family, &exprs);
        rule.comment = attribute(body, 7).and_then(comment_of);
        Some((text(attribute(body, 2)?), rule))
    };
    for (chain, rule) in sock.dump("list nftables rules", ask, read)? {
        if let Some(chain) = table.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    Ok(())
}

/// The number by which the kernel knows the last rule of a chain (`NFTA_RULE_HANDLE`); `None` where there is none.
pub(super) fn last_rule(
    sock: &mut Socket,
    table: &TableId,
    chain: &str,
) -> Result<Option<u64>, Error> {
    let ask = request(msg::GETRULE, table.family, |b| {
        b.text(1, &table.name).text(2, chain);
    });
    let read = |reply: Reply<'_>| {
        let body = ours(&reply, &table.name)?;
        (text(attribute(body, 2)?) == chain).then_some(())?;
        Some(u64::from_be_bytes(*attribute(body, 3)?.first_chunk()?))
    };
    match sock.dump("list the rules of an nftables chain", ask, read) {
        Ok(all) => Ok(all.last().copied()),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The packets that the rules of a chain have counted, all together; nothing where there is no such chain.
pub(super) fn counted(
    sock: &mut Socket,
    family: NftFamily,
    table: &str,
    chain: &str,
) -> Result<u64, Error> {
    let ask = request(msg::GETRULE, family, |b| {
        b.text(1, table).text(2, chain);
    });
    let read = |reply: Reply<'_>| {
        let body = ours(&reply, table)?;
        (text(attribute(body, 2)?) == chain).then_some(())?;
        let counters = attributes(attribute(body, 4)?).filter_map(|(_, expr)| {
            (text(attribute(expr, 1)?) == "counter").then_some(())?;
            // `NFTA_COUNTER_PACKETS`.
            let packets = attribute(attribute(expr, 2)?, 2)?;
            Some(u64::from_be_bytes(*packets.first_chunk()?))
        });
        Some(counters.sum::<u64>())
    };
    match sock.dump("read the counters of an nftables chain", ask, read) {
        Ok(counts) => Ok(counts.into_iter().sum()),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(0),
        Err(error) => Err(error),
    }
}

fn sets(sock: &mut Socket, table: &mut NftTable) -> Result<(), Error> {
    let name = table.name.clone();
    let ask = request(msg::GETSET, table.family, |b| {
        b.text(1, &name);
    });
    let read = |reply: Reply<'_>| set_frame(ours(&reply, &name)?);
    for (set_name, mut set) in sock.dump("list nftables sets", ask, read)? {
        let ask = request(msg::GETSETELEM, table.family, |b| {
            b.text(1, &name).text(2, &set_name);
        });
        let read = |reply: Reply<'_>| attribute(body(&reply), 3).map(elements::read);
        let raws = sock.dump("list nftables elements", ask, read)?;
        set.elements = elements::meaning(&set, raws.into_iter().flatten().collect());
        table.sets.insert(set_name, set);
    }
    Ok(())
}

/// A set's name, and the set without its elements.
fn set_frame(body: &[u8]) -> Option<(String, Set)> {
    let flags = attribute(body, 3).and_then(be32).unwrap_or(0);
    let data = attribute(body, 6).and_then(be32).filter(|_| flags & SET_MAP != 0);
    let verdicts = data == Some(DATA_TYPE_VERDICT);
    let data = data.filter(|_| !verdicts).and_then(key_types);
    let set = Set {
        // An unknown type is no type: it equals nothing of ours.
        key: key_types(be32(attribute(body, 4)?)?).unwrap_or_default(),
        vmap: verdicts,
        data: data.unwrap_or_default(),
        interval: flags & SET_INTERVAL != 0,
        elements: BTreeMap::new(),
    };
    Some((text(attribute(body, 2)?), set))
}
