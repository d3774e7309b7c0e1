//! Steps of a transaction as messages.

use std::collections::BTreeMap;

use causeway_model::nft::{
    Base, ChainType, Element, ElementKey, Hook, KeyType, NftFamily, Policy, Rule, Set, lower,
};
use causeway_plan::{NftOp, TableId};
use causeway_types::Family;

use super::elements::{self, width};
use super::exprs;
use super::wire::{Body, comment, msg};
use crate::sock::{APPEND, CREATE, REPLACE, Request};

/// Elements of one message: an attribute's length has 16 bits.
const ELEMENT_BYTES: usize = 48 * 1024;

/// `NFPROTO_*`.
pub(super) fn proto(family: NftFamily) -> u8 {
    match family {
        NftFamily::Inet => 1,
        NftFamily::Netdev => 5,
    }
}

/// The messages of one step. `last`: the number of the chain's last rule, of those that need it.
pub(super) fn step(table: &TableId, op: &NftOp, last: Option<u64>) -> Vec<Request> {
    let mut body = Body::new(proto(table.family));
    body.text(1, &table.name);
    match op {
        NftOp::AddTable => one(msg::NEWTABLE, CREATE, body),
        NftOp::DelTable => one(msg::DELTABLE, 0, body),
        NftOp::AddSet { name, set } => {
            put_set(&mut body, name, set);
            one(msg::NEWSET, CREATE, body)
        }
        NftOp::DelSet { name } => {
            body.text(2, name);
            one(msg::DELSET, 0, body)
        }
        NftOp::AddChain { name, base } => {
            body.text(3, name);
            if let Some(base) = base {
                put_base(&mut body, base);
            }
            one(msg::NEWCHAIN, CREATE, body)
        }
        NftOp::FlushChain { name } => {
            body.text(2, name);
            one(msg::DELRULE, 0, body)
        }
        NftOp::DelChain { name } => {
            body.text(3, name);
            one(msg::DELCHAIN, 0, body)
        }
        NftOp::AddRule { chain, rule } => {
            put_rule(&mut body, table.family, chain, rule);
            one(msg::NEWRULE, CREATE | APPEND, body)
        }
        NftOp::SetLastRule { chain, rule } => {
            put_rule(&mut body, table.family, chain, rule);
            // NFTA_RULE_HANDLE: in whose place it comes.
            body.put(3, &last.unwrap_or(0).to_be_bytes());
            one(msg::NEWRULE, REPLACE, body)
        }
        NftOp::AddElements { set, of, elements } => {
            put_elements(table, msg::NEWSETELEM, CREATE, set, of, elements)
        }
        NftOp::DelElements { set, of, elements } => {
            put_elements(table, msg::DELSETELEM, 0, set, of, elements)
        }
    }
}

fn one(kind: u16, flags: u16, mut body: Body) -> Vec<Request> {
    vec![Request { kind, flags, body: body.done() }]
}

fn put_base(body: &mut Body, base: &Base) {
    let hook = match base.hook {
        Hook::Prerouting | Hook::Ingress => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    body.nest(4, |h| {
        h.u32(1, hook).u32(2, base.priority as u32);
        if let Some(device) = &base.device {
            h.text(3, device.as_str());
        }
    });
    body.u32(
        5,
        match base.policy {
            Policy::Drop => 0,
            Policy::Accept => 1,
        },
    );
    body.text(
        7,
        match base.kind {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        },
    );
}

fn put_rule(body: &mut Body, family: NftFamily, chain: &str, rule: &Rule) {
    body.text(2, chain);
    body.nest(4, |list| {
        for expr in lower(family, rule) {
            exprs::put(list, &expr);
        }
    });
    if let Some(text) = rule.comment.as_ref().filter(|c| !c.is_empty()) {
        body.put(7, &comment(text));
    }
}

/// Numbers by which nft knows types (`enum datatypes` of its library).
fn datatype(kind: KeyType) -> u32 {
    match kind {
        KeyType::Addr(Family::V4) => 7,
        KeyType::Addr(Family::V6) => 8,
        KeyType::EtherAddr => 9,
        KeyType::InetProto => 12,
        KeyType::InetService => 13,
        KeyType::Mark => 19,
        KeyType::IfName => 41,
    }
}

/// The key type that a number means; `None` for what we never write.
pub(super) fn key_types(mut number: u32) -> Option<Vec<KeyType>> {
    let known = [
        KeyType::Addr(Family::V4),
        KeyType::Addr(Family::V6),
        KeyType::EtherAddr,
        KeyType::InetProto,
        KeyType::InetService,
        KeyType::Mark,
        KeyType::IfName,
    ];
    let mut all = Vec::new();
    while number != 0 {
        all.push(*known.iter().find(|k| datatype(**k) == number & 0x3f)?);
        number >>= 6;
    }
    all.reverse();
    Some(all)
}

/// `NFT_SET_INTERVAL`, `NFT_SET_MAP`, `NFT_SET_CONCAT`.
pub(super) const SET_INTERVAL: u32 = 4;
pub(super) const SET_MAP: u32 = 8;
const SET_CONCAT: u32 = 128;
/// `NFT_DATA_VERDICT`.
pub(super) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

fn put_set(body: &mut Body, name: &str, set: &Set) {
    let mut flags = 0;
    flags |= if set.interval { SET_INTERVAL } else { 0 };
    flags |= if set.vmap || !set.data.is_empty() { SET_MAP } else { 0 };
    flags |= if set.interval && set.key.len() > 1 { SET_CONCAT } else { 0 };
    let (number, length) = layout(&set.key);
    body.text(2, name).u32(3, flags).u32(4, number).u32(5, length);
    if set.vmap {
        body.u32(6, DATA_TYPE_VERDICT).u32(7, 16);
    } else if !set.data.is_empty() {
        let (number, length) = layout(&set.data);
        body.u32(6, number).u32(7, length);
    }
    body.u32(10, 1);
    // NFTNL_UDATA_SET_KEYBYTEORDER: nft prints keys by it. Interface names and marks are host order.
    let order: u32 = if matches!(set.key[..], [KeyType::IfName | KeyType::Mark]) { 1 } else { 2 };
    let mut udata = vec![0, 4];
    udata.extend_from_slice(&order.to_ne_bytes());
    if !set.data.is_empty() {
        // NFTNL_UDATA_SET_DATABYTEORDER: network order.
        udata.extend_from_slice(&[1, 4]);
        udata.extend_from_slice(&2u32.to_ne_bytes());
    }
    body.put(13, &udata);
}

/// The number of a concatenation's type, and its length in bytes.
fn layout(kinds: &[KeyType]) -> (u32, u32) {
    let number = kinds.iter().fold(0, |n, kind| n << 6 | datatype(*kind));
    let length: usize = match kinds {
        [kind] => width(*kind),
        many => many.iter().map(|kind| width(*kind).next_multiple_of(4)).sum(),
    };
    (number, length as u32)
}

fn put_elements(
    table: &TableId,
    kind: u16,
    flags: u16,
    name: &str,
    of: &Set,
    all: &BTreeMap<ElementKey, Element>,
) -> Vec<Request> {
    let mut requests = Vec::new();
    let raws = elements::raw(of, all);
    let mut rest = raws.iter().peekable();
    while rest.peek().is_some() {
        let mut body = Body::new(proto(table.family));
        body.text(1, &table.name).text(2, name);
        body.nest(3, |list| {
            while list.len() < ELEMENT_BYTES {
                let Some(raw) = rest.next() else { break };
                elements::put(list, raw);
            }
        });
        requests.extend(one(kind, flags, body));
    }
    requests
}
