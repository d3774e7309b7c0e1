//! Chains of others that drop forwarded packets. What one chain drops no other can accept, so an
//! accept in our own table does not help there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_kernel::nft::foreign::{Change, ForeignRule, has_legacy_filter};
use causeway_model::nft::foreign::{Dropping, Layer, Legacy, Place};
use causeway_types::Family;

use super::note::{Forward, Inserted};
use crate::space::Space;

/// All of them that packets of some families pass.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn find(node: &mut Space, families: &[Family]) -> Result<Vec<Dropping>, CniError> {
    node.kernel(|handle| handle.nft()?.dropping(families))
}

/// Warnings on tables of the old iptables, into which nobody can look by nftables.
pub(crate) fn legacy(families: &[Family]) -> Vec<String> {
    let there = families.iter().filter(|family| has_legacy_filter(**family));
    there.map(|family| Legacy(*family).describe()).collect()
}

/// The families that chains drop for certain.
pub(crate) fn blocked(chains: &[Dropping]) -> BTreeSet<Family> {
    let certain = || chains.iter().filter(|c| c.all);
    Family::BOTH.into_iter().filter(|f| certain().any(|c| c.place.layer.sees(*f))).collect()
}

/// How comments of inserted rules begin.
const MARK: &str = "causeway ";

/// The comment of inserted rules.
fn comment(note: &Forward) -> String {
    format!("{MARK}{}", note.whose.tag())
}

pub(crate) fn inserted(place: &Place) -> Inserted {
    Inserted {
        family: place.layer.as_str().to_owned(),
        table: place.table.clone(),
        chain: place.chain.clone(),
    }
}

fn place(inserted: &Inserted) -> Place {
    let layer = Layer::ALL.into_iter().find(|l| l.as_str() == inserted.family);
    Place::new(layer.unwrap_or(Layer::Inet), &inserted.table, &inserted.chain)
}

/// The rules that belong into a chain: one for what the pod sends, one for what is sent to it.
fn wanted(note: &Forward, place: &Place) -> Vec<(IpAddr, bool)> {
    let seen = note.addresses.iter().filter(|ip| place.layer.sees(Family::of(**ip)));
    seen.flat_map(|ip| [(*ip, true), (*ip, false)]).collect()
}

/// Puts the rules into the chains that the note names, in place of those that are there. Answers
/// whether one of them held no rule of any attachment: this is the first, or it was made anew.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn insert(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let (mut changes, bare) = removals(node, note)?;
    for place in note.inserted.iter().map(place) {
        for (ip, source) in wanted(note, &place) {
            let comment = comment(note);
            changes.push(Change::AcceptFirst { place: place.clone(), ip, source, comment });
        }
    }
    let changed = node.kernel(|handle| handle.nft()?.change_foreign(&changes));
    changed.map(|()| bare).map_err(|e| {
        let places: Vec<String> =
            note.inserted.iter().map(|i| format!("{} {} {}", i.family, i.table, i.chain)).collect();
        e.with_details(format!(
            "key \"foreignForward\" is \"insert\", chains {}; a table that belongs to a running \
             program (flag owner, as newer firewalld sets it) can be changed by that alone",
            places.join(", ")
        ))
    })
}

fn removals(node: &mut Space, note: &Forward) -> Result<(Vec<Change>, bool), CniError> {
    let (mut changes, mut bare) = (Vec::new(), false);
    for place in note.inserted.iter().map(place) {
        let rules = node.kernel(|handle| handle.nft()?.rules_of(&place))?;
        let ours = |r: &ForeignRule| r.comment.as_deref().is_some_and(|c| c.starts_with(MARK));
        bare |= !rules.iter().any(ours);
        let own = rules.iter().filter(|r| r.comment.as_deref() == Some(&comment(note)));
        changes.extend(
            own.map(|rule| Change::DeleteRule { place: place.clone(), handle: rule.handle }),
        );
    }
    Ok((changes, bare))
}

/// Takes the rules out of the chains that the note names; what is gone is fine. Answers whether all
/// of them were there.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn remove(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let (changes, _) = removals(node, note)?;
    node.kernel(|handle| handle.nft()?.change_foreign(&changes))?;
    let all: usize = note.inserted.iter().map(|i| wanted(note, &place(i)).len()).sum();
    Ok(changes.len() >= all)
}

/// The first chain that lacks a rule for the attachment.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn first_without(
    node: &mut Space,
    note: &Forward,
    chains: &[Dropping],
) -> Result<Option<Place>, CniError> {
    for Dropping { place, .. } in chains {
        let rules = node.kernel(|handle| handle.nft()?.rules_of(place))?;
        let own = rules.iter().filter(|r| r.comment.as_deref() == Some(&comment(note)));
        if own.count() < wanted(note, place).len() {
            return Ok(Some(place.clone()));
        }
    }
    Ok(None)
}
