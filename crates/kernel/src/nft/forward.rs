//! Chains that send all that comes in by an interface out by another one (`fwd to` of nft).
//!
//! The model knows interfaces by their names, and this statement has an index: so it is no part of
//! it, and what [`Nft::read_table`] shows of it equals nothing.

use causeway_model::nft::{Base, ChainType, Hook, NftFamily, Policy};
use causeway_plan::{NftOp, TableId};
use causeway_types::IfName;

use super::encode::{self, proto};
use super::exprs::attribute;
use super::wire::{Body, be32, comment, msg, text};
use super::{Failure, Nft, TRIES, read};
use crate::error::{Error, Refusal};
use crate::sock::{APPEND, CREATE, Request, attributes};

/// After every other chain of the hook: those after it would not see the packets any more.
const PRIORITY: i32 = 10_000;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;

/// A chain that sends on what comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// By which interface it comes in.
    pub from: IfName,
    /// The index of the one by which it goes out; 0 where the rule for that is missing.
    pub to: u32,
}

impl Nft {
    /// Makes such a chain in a table of family netdev, in place of one of the same name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_forward(
        &mut self,
        table: &str,
        chain: &str,
        forward: &Forward,
        why: &str,
    ) -> Result<(), Error> {
        let base = Base {
            kind: ChainType::Filter,
            hook: Hook::Ingress,
            priority: PRIORITY,
            device: Some(forward.from.clone()),
            policy: Policy::Accept,
        };
        let name = || chain.to_owned();
        let ops = [
            NftOp::AddTable,
            NftOp::AddChain { name: name(), base: Some(base) },
            NftOp::FlushChain { name: name() },
        ];
        let what = "send what comes in by an interface through another one";
        self.change(what, table, &ops, Some(rule(table, chain, forward.to, why)))
    }

    /// The chain of a name; `None` where there is none at an interface.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn forward(&mut self, table: &str, chain: &str) -> Result<Option<Forward>, Error> {
        let family = NftFamily::Netdev;
        let ask = read::request(msg::GETCHAIN, family, |b| {
            b.text(1, table).text(3, chain);
        });
        let device = |reply: crate::sock::Reply<'_>| read::base(family, read::body(&reply))?.device;
        let Some(from) = self.sock.get("look up an nftables chain", ask, device)? else {
            return Ok(None);
        };
        let ask = read::request(msg::GETRULE, family, |b| {
            b.text(1, table).text(2, chain);
        });
        let to = |reply: crate::sock::Reply<'_>| {
            let body = read::body(&reply);
            let ours = text(attribute(body, 1)?) == table && text(attribute(body, 2)?) == chain;
            target(attribute(body, 4).filter(|_| ours)?)
        };
        let found = self.sock.dump("list nftables rules", ask, to)?;
        Ok(Some(Forward { from, to: found.into_iter().next().unwrap_or(0) }))
    }

    /// Removes a chain with its rules; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_chain(&mut self, table: &str, chain: &str) -> Result<(), Error> {
        let name = || chain.to_owned();
        let ops = [NftOp::FlushChain { name: name() }, NftOp::DelChain { name: name() }];
        match self.change("remove an nftables chain", table, &ops, None) {
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => Ok(()),
            other => other,
        }
    }

    fn change(
        &mut self,
        what: &str,
        table: &str,
        ops: &[NftOp],
        last: Option<Request>,
    ) -> Result<(), Error> {
        let table = TableId { family: NftFamily::Netdev, name: table.to_owned() };
        let mut steps: Vec<Vec<Request>> =
            ops.iter().map(|op| encode::step(&table, op, None)).collect();
        steps.extend(last.map(|request| vec![request]));
        let mut refused = Refusal::new(libc::EINTR);
        for _ in 0..TRIES {
            match self.commit_steps(steps.clone(), None) {
                Ok(()) => return Ok(()),
                // Another writer's transaction came in between.
                Err(Failure::Refused { refusal, .. }) if refusal.errno == libc::EINTR => {
                    refused = refusal;
                }
                Err(Failure::Refused { refusal, .. }) => return Err(Error::refused(what, refusal)),
                Err(Failure::Socket(error)) => return Err(error),
            }
        }
        Err(Error::refused(what, refused))
    }
}

/// Index into a register, packet to the interface of the register.
fn rule(table: &str, chain: &str, to: u32, why: &str) -> Request {
    let mut body = Body::new(proto(NftFamily::Netdev));
    body.text(1, table).text(2, chain).nest(4, |list| {
        list.nest(1, |e| {
            e.text(1, "immediate").nest(2, |d| {
                d.u32(1, REGISTER).nest(2, |value| {
                    value.put(1, &to.to_ne_bytes());
                });
            });
        });
        list.nest(1, |e| {
            e.text(1, "fwd").nest(2, |d| {
                d.u32(1, REGISTER);
            });
        });
    });
    body.put(7, &comment(why));
    Request { kind: msg::NEWRULE, flags: CREATE | APPEND, body: body.done() }
}

/// The index that a rule of this form sends to.
fn target(list: &[u8]) -> Option<u32> {
    let mut exprs = attributes(list).map(|(_, e)| e);
    let mut next = |wanted: &str| {
        let e = exprs.next()?;
        (text(attribute(e, 1)?) == wanted).then(|| attribute(e, 2)).flatten()
    };
    let immediate = next("immediate")?;
    let fwd = next("fwd")?;
    let same = be32(attribute(immediate, 1)?)? == be32(attribute(fwd, 1)?)?;
    let value = attribute(attribute(immediate, 2)?, 1)?;
    value.try_into().ok().filter(|_| same).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = rule("t", "c", 0x0102_0304, "why");
        let body = request.body.get(4..).unwrap();
        assert_eq!(target(attribute(body, 4).unwrap()), Some(0x0102_0304));
        for at in 0..body.len() {
            let mut bad = body.to_vec();
            bad[at] ^= 0xff;
            attribute(&bad, 4).and_then(target);
            attribute(&body[..at], 4).and_then(target);
        }
    }
}
