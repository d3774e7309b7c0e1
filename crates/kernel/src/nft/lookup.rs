//! Single elements, and the elements of one set: what a plugin asks for its own attachment must
//! not cost more where there are many others.

use std::collections::BTreeMap;

use causeway_model::nft::{Element, KeyPart, Set};
use causeway_plan::TableId;

use super::encode::proto;
use super::exprs::attribute;
use super::wire::{Body, msg};
use super::{Nft, elements};
use crate::Error;
use crate::sock::{Reply, Request};

/// Which element of which set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementId {
    /// Name of the set.
    pub set: String,
    /// Its type; its own elements are not looked at.
    pub of: Set,
    /// The key.
    pub key: Vec<KeyPart>,
}

/// `NFTA_SET_ELEM_LIST_ELEMENTS` behind `struct nfgenmsg`.
fn list<'a>(reply: &Reply<'a>) -> Option<&'a [u8]> {
    attribute(reply.body.get(4..)?, 3)
}

impl Nft {
    /// Looks elements of sets that are no interval sets up, one by one; `None` where the element,
    /// its set or its table is not there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn elements(
        &mut self,
        table: &TableId,
        asked: &[ElementId],
    ) -> Result<Vec<Option<Element>>, Error> {
        let request = |id: &ElementId| {
            let key = elements::Raw::of(id.key.as_slice());
            let mut body = Body::new(proto(table.family));
            body.text(1, &table.name).text(2, &id.set);
            body.nest(3, |list| elements::put(list, &key));
            Request::new(msg::GETSETELEM, 0, body.done())
        };
        let read = |reply: Reply<'_>| list(&reply).and_then(|l| elements::read(l).pop());
        let requests = asked.iter().map(request).collect();
        let found = self.sock.get_all("look up nftables elements", requests, read)?;
        let pairs = asked.iter().zip(found);
        Ok(pairs
            .map(|(id, raw)| elements::meaning(&id.of, vec![raw?]).into_values().next())
            .collect())
    }

    /// All elements of a set; none where it is not there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn set_elements(
        &mut self,
        table: &TableId,
        set: &str,
        of: &Set,
    ) -> Result<BTreeMap<Vec<KeyPart>, Element>, Error> {
        let mut body = Body::new(proto(table.family));
        body.text(1, &table.name).text(2, set);
        let ask = Request::new(msg::GETSETELEM, 0, body.done());
        let raws = match self
            .sock
            .dump("list nftables elements", ask, |r| list(&r).map(elements::read))
        {
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => return Ok(BTreeMap::new()),
            other => other?,
        };
        Ok(elements::meaning(of, raws.into_iter().flatten().collect()))
    }
}
