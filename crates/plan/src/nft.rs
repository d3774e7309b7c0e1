//! The difference between two nftables tables, as one transaction.

use std::collections::BTreeMap;

use causeway_model::nft::{Chain, NftTable, Set};

use crate::NftOp;

/// The steps that turn the observed table into the desired one; empty when nothing is to do.
///
/// In steady state only elements change. A chain whose rules differ is flushed and written again
/// in the same transaction, so that no packet sees it empty. Where more than that is wrong with a
/// table that is ours alone, the whole of it is replaced, in one transaction as well.
pub fn table_ops(desired: &NftTable, observed: Option<&NftTable>) -> Vec<NftOp> {
    match observed {
        None if desired.exclusive || !is_empty(desired) => build(desired, None),
        None => Vec::new(),
        Some(have) if desired.satisfied_by(have) => Vec::new(),
        Some(have) if desired.exclusive && !same_frame(desired, have) => {
            let mut ops = vec![NftOp::DelTable];
            ops.extend(build(desired, None));
            ops
        }
        Some(have) => build(desired, Some(have)),
    }
}

fn is_empty(table: &NftTable) -> bool {
    table.sets.is_empty() && table.chains.is_empty()
}

/// True when the observed table has nothing to take away but elements and rules.
fn same_frame(desired: &NftTable, observed: &NftTable) -> bool {
    let sets = observed
        .sets
        .iter()
        .all(|(name, have)| desired.sets.get(name).is_some_and(|want| want.same_type(have)));
    let chains = observed
        .chains
        .iter()
        .all(|(name, have)| desired.chains.get(name).is_some_and(|want| want.base == have.base));
    sets && chains
}

/// Steps in an order that never refers to what is not there yet: table, sets, chains, removed
/// elements, flushed chains, elements (which may name chains), rules (which may name sets).
fn build(desired: &NftTable, observed: Option<&NftTable>) -> Vec<NftOp> {
    let no_sets = BTreeMap::new();
    let no_chains = BTreeMap::new();
    let have_sets = observed.map_or(&no_sets, |t| &t.sets);
    let have_chains = observed.map_or(&no_chains, |t| &t.chains);

    let mut ops = Vec::new();
    if observed.is_none() {
        ops.push(NftOp::AddTable);
    }
    for (name, set) in desired.sets.iter().filter(|(name, _)| !have_sets.contains_key(*name)) {
        ops.push(NftOp::AddSet { name: name.clone(), set: frame(set) });
    }
    for (name, chain) in desired.chains.iter().filter(|(n, _)| !have_chains.contains_key(*n)) {
        ops.push(NftOp::AddChain { name: name.clone(), base: chain.base.clone() });
    }
    for (name, set) in &desired.sets {
        ops.extend(stale_elements(name, set, have_sets.get(name), desired.exclusive));
    }
    let rewritten = desired.chains.iter().filter(|(name, chain)| match have_chains.get(*name) {
        Some(have) => have != *chain,
        None => !chain.rules.is_empty(),
    });
    let rewritten: Vec<(&String, &Chain)> = rewritten.collect();
    for (name, chain) in &rewritten {
        match have_chains.get(*name) {
            Some(have) if have.base != chain.base => {
                // A hook cannot be changed: a new chain takes the place of the old one.
                ops.push(NftOp::FlushChain { name: (*name).clone() });
                ops.push(NftOp::DelChain { name: (*name).clone() });
                ops.push(NftOp::AddChain { name: (*name).clone(), base: chain.base.clone() });
            }
            Some(_) => ops.push(NftOp::FlushChain { name: (*name).clone() }),
            None => {}
        }
    }
    for (name, set) in &desired.sets {
        ops.extend(missing_elements(name, set, have_sets.get(name)));
    }
    for (name, chain) in rewritten {
        let rules = chain.rules.iter();
        ops.extend(rules.map(|r| NftOp::AddRule { chain: name.clone(), rule: r.clone() }));
    }
    ops
}

fn frame(set: &Set) -> Set {
    Set { elements: BTreeMap::new(), ..set.clone() }
}

/// Elements to take out: those with another verdict and, in a table of our own, those that
/// nobody wants.
fn stale_elements(name: &str, want: &Set, have: Option<&Set>, exclusive: bool) -> Option<NftOp> {
    let elements: BTreeMap<_, _> = have?
        .elements
        .iter()
        .filter(|(key, element)| match want.elements.get(*key) {
            Some(wanted) => wanted != *element,
            None => exclusive,
        })
        .map(|(key, element)| (key.clone(), element.clone()))
        .collect();
    let of = frame(want);
    (!elements.is_empty()).then(|| NftOp::DelElements { set: name.to_owned(), of, elements })
}

fn missing_elements(name: &str, want: &Set, have: Option<&Set>) -> Option<NftOp> {
    let elements: BTreeMap<_, _> = want
        .elements
        .iter()
        .filter(|(key, element)| have.and_then(|h| h.elements.get(*key)) != Some(*element))
        .map(|(key, element)| (key.clone(), element.clone()))
        .collect();
    let of = frame(want);
    (!elements.is_empty()).then(|| NftOp::AddElements { set: name.to_owned(), of, elements })
}
