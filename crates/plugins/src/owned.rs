//! Elements of the plugins' own table `inet causeway_cni` that belong to one attachment each, which
//! their comment names. Sets and chains are made once and stay; an attachment adds and removes
//! elements only.

use std::collections::BTreeMap;

use causeway_cni_spec::CniError;
use causeway_kernel::OpError;
use causeway_kernel::nft::ElementId;
use causeway_model::nft::foreign::{Layer, Place};
use causeway_model::nft::{Element, ElementKey, KeyPart, NftFamily, NftTable, Set};
use causeway_plan::{NftOp, Op, TableId, table_ops};
use causeway_types::names;

use crate::space::{Failed, Space};

/// Our table.
pub(crate) fn table_id() -> TableId {
    TableId { family: NftFamily::Inet, name: names::NFT_PLUGINS.to_owned() }
}

/// An empty wish for our table.
pub(crate) fn empty() -> NftTable {
    NftTable::new(NftFamily::Inet, names::NFT_PLUGINS, false)
}

/// An element that is wanted, and the one in its place.
pub(crate) struct Pair {
    /// Where.
    pub id: ElementId,
    /// As it should be.
    pub want: Element,
    /// As it is.
    pub have: Option<Element>,
}

impl Pair {
    fn comment(&self) -> Option<&str> {
        self.want.comment.as_deref()
    }

    /// The one that is there is the wanted one.
    pub(crate) fn is_as_wanted(&self) -> bool {
        self.have.as_ref() == Some(&self.want) && self.holder() == self.comment()
    }

    /// The comment of the one that is there.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.have.as_ref()?.comment.as_deref()
    }
}

fn frame(set: &Set) -> Set {
    Set { elements: BTreeMap::new(), ..set.clone() }
}

/// Where the elements of a wish are, in order.
pub(crate) fn ids(table: &NftTable) -> Vec<ElementId> {
    let each = table.sets.iter().flat_map(|(name, set)| {
        let id =
            |key: &ElementKey| ElementId { set: name.clone(), of: frame(set), key: key.clone() };
        set.elements.keys().map(id)
    });
    each.collect()
}

/// Looks the elements of a wish up, one by one.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn look(node: &mut Space, table: &NftTable) -> Result<Vec<Pair>, CniError> {
    let ids = ids(table);
    let wants = table.sets.values().flat_map(|set| set.elements.values().cloned());
    let found = node.kernel(|handle| handle.nft()?.elements(&table_id(), &ids))?;
    let each = ids.into_iter().zip(wants).zip(found);
    Ok(each.map(|((id, want), have)| Pair { id, want, have }).collect())
}

fn grouped<'a>(
    pairs: impl Iterator<Item = (&'a ElementId, Element)>,
    op: impl Fn(String, Set, BTreeMap<ElementKey, Element>) -> NftOp,
) -> Vec<NftOp> {
    let mut sets: BTreeMap<String, (Set, BTreeMap<_, _>)> = BTreeMap::new();
    for (id, element) in pairs {
        let (_, elements) =
            sets.entry(id.set.clone()).or_insert_with(|| (id.of.clone(), BTreeMap::new()));
        elements.insert(id.key.clone(), element);
    }
    sets.into_iter().map(|(name, (of, elements))| op(name, of, elements)).collect()
}

/// What became of a [`put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Put {
    /// The elements are there.
    Done,
    /// Nothing was changed: none of the table's base chains is there. This is the first attachment,
    /// or somebody flushed all rules.
    Lost,
}

/// Puts elements in place of those that are there, in one transaction. Where some sets or chains are
/// missing all of the table's are made, but where nothing is there nothing is done; chains named in
/// `keep` belong to the administrator and are not emptied.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn put(
    node: &mut Space,
    table: &NftTable,
    pairs: &[Pair],
    keep: &[&str],
) -> Result<Put, OpError> {
    let (stale, add) = changes(pairs);
    match node.apply(&[Op::Nft { table: table_id(), ops: [stale, add].concat() }]) {
        Err(e) if e.is_gone() => {}
        other => return other.map(|()| Put::Done),
    }
    if is_lost(node, table) {
        return Ok(Put::Lost);
    }
    put_anew(node, table, pairs, keep).map(|()| Put::Done)
}

/// As [`put`], and [`put_anew`] where nothing is there. Answers whether that was so.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn put_whole(
    node: &mut Space,
    table: &NftTable,
    pairs: &[Pair],
    keep: &[&str],
) -> Result<bool, OpError> {
    match put(node, table, pairs, keep)? {
        Put::Done => Ok(false),
        Put::Lost => put_anew(node, table, pairs, keep).map(|()| true),
    }
}

/// None of a table's base chains is there. When the kernel does not say, they may be.
pub(crate) fn is_lost(node: &mut Space, table: &NftTable) -> bool {
    let based = table.chains.iter().filter(|(_, chain)| chain.base.is_some());
    let places = based.map(|(name, _)| Place::new(Layer::Inet, &table_id().name, name)).collect();
    node.kernel(|handle| handle.nft()?.existing_chains(places)).is_ok_and(|there| there.is_empty())
}

/// As [`put`], with all sets and chains of the table made first.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn put_anew(
    node: &mut Space,
    table: &NftTable,
    pairs: &[Pair],
    keep: &[&str],
) -> Result<(), OpError> {
    let (stale, _) = changes(pairs);
    let ops = stale.into_iter().chain(build(table, keep)).collect();
    match node.apply(&[Op::Nft { table: table_id(), ops }]) {
        // What was to be taken away is gone meanwhile.
        Err(e) if e.is_gone() => {
            node.apply(&[Op::Nft { table: table_id(), ops: build(table, keep) }])
        }
        other => other,
    }
}

/// What takes stale elements away, and what adds those that are wanted.
fn changes(pairs: &[Pair]) -> (Vec<NftOp>, Vec<NftOp>) {
    let others = pairs.iter().filter(|p| !p.is_as_wanted());
    let taken = others.filter_map(|p| Some((&p.id, p.have.clone()?)));
    let stale = grouped(taken, |set, of, elements| NftOp::DelElements { set, of, elements });
    let wanted = pairs.iter().map(|p| (&p.id, p.want.clone()));
    let add = grouped(wanted, |set, of, elements| NftOp::AddElements { set, of, elements });
    (stale, add)
}

/// Makes all sets and chains of a table with their content, whatever is left of them.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn rebuild(node: &mut Space, table: &NftTable) -> Result<(), OpError> {
    node.apply(&[Op::Nft { table: table_id(), ops: build(table, &[]) }])
}

/// The steps that make all sets and chains, which no packet sees half done.
fn build(table: &NftTable, keep: &[&str]) -> Vec<NftOp> {
    let mut ops = Vec::new();
    for op in table_ops(table, None) {
        let flush = match &op {
            NftOp::AddChain { name, .. } if !keep.contains(&name.as_str()) => {
                Some(NftOp::FlushChain { name: name.clone() })
            }
            _ => None,
        };
        ops.push(op);
        ops.extend(flush);
    }
    ops
}

/// Takes the elements of a wish away that carry a mark; those of others stay, also where they come
/// this very moment. Answers whether there were any.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn take(node: &mut Space, table: &NftTable, tag: &str) -> Result<bool, CniError> {
    take_known(node, table, &|_, element| element.comment.as_deref() == Some(tag))
}

fn take_known(
    node: &mut Space,
    table: &NftTable,
    is_its: &dyn Fn(&[KeyPart], &Element) -> bool,
) -> Result<bool, CniError> {
    let ids = ids(table);
    let own = |id: &ElementId, element: &Element| is_its(&id.key, element);
    let removed = node.handle().nft().map(|nft| nft.remove_elements(&table_id(), &ids, own));
    let found =
        removed.map_err(|e| node.unreadable(&e))?.map_err(|e| node.error(&Failed::Op(e)))?;
    Ok(ids.iter().zip(found).any(|(id, have)| have.is_some_and(|have| own(id, &have))))
}

/// As [`take`], where it is not known which elements an attachment has: all sets are read.
///
/// # Errors
/// As [`take`].
pub(crate) fn take_all(node: &mut Space, sets: &NftTable, tag: &str) -> Result<(), CniError> {
    take_where(node, sets, &|_, element| element.comment.as_deref() == Some(tag))
}

/// Takes away all elements of which it is said, by key and value.
///
/// # Errors
/// As [`take`].
pub(crate) fn take_where(
    node: &mut Space,
    sets: &NftTable,
    is_its: &dyn Fn(&[KeyPart], &Element) -> bool,
) -> Result<(), CniError> {
    let mut own = read_all(node, sets)?;
    for set in own.sets.values_mut() {
        set.elements.retain(|key, element| is_its(key, element));
    }
    take_known(node, &own, is_its).map(drop)
}

/// The sets with all the elements that they have.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn read_all(node: &mut Space, sets: &NftTable) -> Result<NftTable, CniError> {
    let mut all = sets.clone();
    for (name, set) in &mut all.sets {
        set.elements =
            node.kernel(|handle| handle.nft()?.set_elements(&table_id(), name, &frame(set)))?;
    }
    Ok(all)
}
