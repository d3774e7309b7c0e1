//! Elements under a pod's addresses in the tables that attachments share. Their mark tells whose they
//! are: an address may have its next pod before the end of the last one.

use std::net::IpAddr;

use causeway_kernel::OpError;
use causeway_kernel::nft::ElementId;
use causeway_model::nft::{Element, KeyPart, NftFamily, NftTable};
use causeway_model::{Desired, Key, Object};
use causeway_plan::{NftOp, TableId};

use super::{Failed, Space};
use crate::owned;

impl Space {
    /// Takes away what an earlier attachment left under the same addresses: what is added to it would
    /// keep its mark, and go with it.
    pub(super) fn displace(&mut self, desired: &Desired) -> Result<(), Failed> {
        for table in shared_tables(desired) {
            let asked = owned::ids(table);
            if asked.is_empty() {
                continue;
            }
            let nft = self.handle.nft().map_err(Failed::Unread)?;
            let of_others =
                |id: &ElementId, have: &Element| mark(table, id) != have.comment.as_deref();
            nft.remove_elements(&TableId::of(table), &asked, of_others).map_err(Failed::Op)?;
        }
        Ok(())
    }

    /// Takes away those elements of what is desired that are still the attachment's own, and notes which
    /// addresses are another's by now.
    pub(super) fn give_up(&mut self, desired: &Desired) -> Result<(), OpError> {
        for table in shared_tables(desired) {
            let asked = owned::ids(table);
            if asked.is_empty() {
                continue;
            }
            let id = TableId::of(table);
            let key = || Key::Table { family: id.family, name: id.name.clone() };
            let nft = self.handle.nft().map_err(|e| OpError::other(key(), "open nftables", &e))?;
            let found = nft.remove_elements(&id, &asked, |id, have| is_own(table, id, have))?;
            for (id, have) in asked.iter().zip(found) {
                if have.is_some_and(|have| !is_own(table, id, &have)) {
                    self.passed_on.extend(id.key.iter().filter_map(address));
                }
            }
        }
        Ok(())
    }
}

/// The tables of what is desired that attachments share.
fn shared_tables(desired: &Desired) -> impl Iterator<Item = &NftTable> {
    desired.iter().filter_map(|(_, entry)| match &entry.object {
        Object::Table(table) if table.family == NftFamily::Inet => Some(table),
        _ => None,
    })
}

fn mark<'a>(table: &'a NftTable, id: &ElementId) -> Option<&'a str> {
    table.sets.get(&id.set)?.elements.get(&id.key)?.comment.as_deref()
}

/// Whether an element that is there is the attachment's whose table is desired: it carries the same
/// mark. Older ones name the container alone, and one that was put there by hand names nobody.
fn is_own(table: &NftTable, id: &ElementId, have: &Element) -> bool {
    let Some(found) = have.comment.as_deref() else { return true };
    let Some(mark) = mark(table, id) else { return false };
    found == mark || mark.split_once(' ').is_some_and(|(container, _)| container == found)
}

fn address(part: &KeyPart) -> Option<IpAddr> {
    match part {
        KeyPart::Net(net) => Some(net.addr()),
        _ => None,
    }
}

/// Whether anything of what is desired carries the attachment's mark.
pub(super) fn has_elements(desired: &Desired) -> bool {
    shared_tables(desired).any(|table| !owned::ids(table).is_empty())
}

/// True for an operation that [`Space::give_up`] does in its own way.
pub(super) fn is_of_elements(ops: &[NftOp]) -> bool {
    ops.iter().all(|op| matches!(op, NftOp::DelElements { .. }))
}
