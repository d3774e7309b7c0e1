//! Single elements, and the elements of one set: what a plugin asks for its own attachment must
//! not cost more where there are many others.

use std::collections::BTreeMap;

use causeway_model::Key;
use causeway_model::nft::{Element, ElementKey, Set};
use causeway_plan::{NftOp, TableId};

use super::encode::{self, proto};
use super::exprs::attribute;
use super::wire::{Body, be32, msg};
use super::{Failure, Nft, elements, failed};
use crate::error::{Error, OpError, Refusal};
use crate::sock::{Reply, Request};

/// Which element of which set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementId {
    /// Name of the set.
    pub set: String,
    /// Its type; its own elements are not looked at.
    pub of: Set,
    /// The key.
    pub key: ElementKey,
}

/// How often a removal is tried while others change the rule set: with many pods at once on few
/// processors that is most of the time.
const BUSY_TRIES: u32 = 1000;

/// The rule set was another's turn, or is of another generation.
fn is_interrupted(refusal: &Refusal) -> bool {
    [libc::EINTR, libc::ERESTART].contains(&refusal.errno)
}

/// The steps that remove elements, one for each set.
fn removal<'a>(elements: impl Iterator<Item = (&'a ElementId, &'a Element)>) -> Vec<NftOp> {
    let mut sets: BTreeMap<&str, (&Set, BTreeMap<_, _>)> = BTreeMap::new();
    for (id, element) in elements {
        let (_, all) = sets.entry(&id.set).or_insert_with(|| (&id.of, BTreeMap::new()));
        all.insert(id.key.clone(), element.clone());
    }
    let op = |(set, (of, elements)): (&str, (&Set, _))| NftOp::DelElements {
        set: set.to_owned(),
        of: of.clone(),
        elements,
    };
    sets.into_iter().map(op).collect()
}

impl ElementId {
    fn request(&self, table: &TableId) -> Request {
        let key = elements::Raw::of(&self.key);
        let mut body = Body::new(proto(table.family));
        body.text(1, &table.name).text(2, &self.set);
        body.nest(3, |list| elements::put(list, &key));
        Request::new(msg::GETSETELEM, 0, body.done())
    }

    fn meaning(&self, raw: Option<elements::Raw>) -> Option<Element> {
        elements::meaning(&self.of, vec![raw?]).into_values().next()
    }
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
        let read = |reply: Reply<'_>| list(&reply).and_then(|l| elements::read(l).pop());
        let requests = asked.iter().map(|id| id.request(table)).collect();
        let found = self.sock.get_all("look up nftables elements", requests, read)?;
        Ok(asked.iter().zip(found).map(|(id, raw)| id.meaning(raw)).collect())
    }

    /// As [`Nft::elements`], with the generation of the rule set: what is done to that generation
    /// meets what is answered here.
    fn elements_now(
        &mut self,
        table: &TableId,
        asked: &[ElementId],
    ) -> Result<(u32, Vec<Option<Element>>), Error> {
        enum Found {
            Generation(u32),
            Element(elements::Raw),
        }
        let read = |reply: Reply<'_>| match reply.kind {
            msg::NEWGEN => attribute(reply.body.get(4..)?, 1).and_then(be32).map(Found::Generation),
            _ => list(&reply).and_then(|l| elements::read(l).pop()).map(Found::Element),
        };
        let generation = Request::new(msg::GETGEN, 0, Body::new(0).done());
        let requests =
            [generation].into_iter().chain(asked.iter().map(|id| id.request(table))).collect();
        let mut found = self.sock.get_all("look up nftables elements", requests, read)?.into_iter();
        let Some(Some(Found::Generation(generation))) = found.next() else {
            let what = "the kernel does not tell the generation of nftables".to_owned();
            return Err(Error::Invalid(what));
        };
        let raw = found.map(|found| match found {
            Some(Found::Element(raw)) => Some(raw),
            _ => None,
        });
        let each = asked.iter().zip(raw).map(|(id, raw)| id.meaning(raw)).collect();
        Ok((generation, each))
    }

    /// Removes those elements of which `is_own` says so by what they carry, in one transaction, and
    /// answers what was there. The kernel compares keys alone: where anybody changes the rule set
    /// between the look and the removal, it is looked again.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remove_elements(
        &mut self,
        table: &TableId,
        asked: &[ElementId],
        is_own: impl Fn(&ElementId, &Element) -> bool,
    ) -> Result<Vec<Option<Element>>, OpError> {
        let key = || Key::Table { family: table.family, name: table.name.clone() };
        for _ in 0..BUSY_TRIES {
            let (generation, found) = self
                .elements_now(table, asked)
                .map_err(|e| OpError::other(key(), "look up elements", &e))?;
            let there =
                asked.iter().zip(&found).filter_map(|(id, have)| Some((id, have.as_ref()?)));
            let ops = removal(there.filter(|(id, have)| is_own(id, have)));
            if ops.is_empty() {
                return Ok(found);
            }
            let steps = ops.iter().map(|op| encode::step(table, op, None)).collect();
            match self.commit_steps(steps, Some(generation)) {
                Ok(()) => return Ok(found),
                Err(Failure::Refused { refusal, .. }) if is_interrupted(&refusal) => {}
                Err(failure) => return Err(failed(key(), &ops, failure)),
            }
        }
        let error = Error::Interrupted { what: "remove nftables elements", tries: BUSY_TRIES };
        Err(OpError::other(key(), "remove elements", &error))
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
    ) -> Result<BTreeMap<ElementKey, Element>, Error> {
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
