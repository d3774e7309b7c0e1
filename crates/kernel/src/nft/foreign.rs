//! Tables of others: which chains may stop a packet, and single rules put into them or taken out.
//!
//! Nothing here changes more than what it is told by name, handle or comment.

use std::net::IpAddr;

use causeway_model::nft::expr::Expr;
use causeway_model::nft::{Field, KeyPart, NftFamily, Rule, Stmt, Verdict, lower};
use causeway_types::Family;

use super::exprs::{self, attribute, read_all};
use super::wire::{Body, be32, comment, comment_of, msg, text};
use super::{Failure, Nft, TRIES};
use crate::sock::{CREATE, Reply, Request};
use crate::{Error, Refusal};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP` as the policy of a chain.
const DROP: u32 = 0;

/// The family of a foreign table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone: also the tables of iptables.
    Ip,
    /// IPv6 alone: also the tables of ip6tables.
    Ip6,
}

impl Layer {
    /// The tables of iptables for a family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::V4 => Layer::Ip,
            Family::V6 => Layer::Ip6,
        }
    }

    /// As `nft` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Layer::Inet => "inet",
            Layer::Ip => "ip",
            Layer::Ip6 => "ip6",
        }
    }

    /// True when packets of a family come by.
    pub fn sees(self, family: Family) -> bool {
        self == Layer::Inet || self == Layer::of(family)
    }

    /// `NFPROTO_*`.
    fn number(self) -> u8 {
        match self {
            Layer::Inet => 1,
            Layer::Ip => 2,
            Layer::Ip6 => 10,
        }
    }
}

/// A chain by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Family of the table.
    pub layer: Layer,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
}

impl Place {
    /// A chain.
    pub fn new(layer: Layer, table: &str, chain: &str) -> Self {
        Self { layer, table: table.to_owned(), chain: chain.to_owned() }
    }

    fn body(&self, chain_attribute: u16) -> Body {
        let mut body = Body::new(self.layer.number());
        body.text(1, &self.table).text(chain_attribute, &self.chain);
        body
    }
}

/// A rule of a foreign chain, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// Number by which it is deleted.
    pub handle: u64,
    /// Comment in its user data (iptables may keep another in a match of its own).
    pub comment: Option<String>,
    /// Chains that it leads to.
    pub leads_to: Vec<String>,
    /// It may let a packet pass, by itself or by where it leads to.
    pub may_accept: bool,
    /// Addresses that it compares with.
    pub addresses: Vec<IpAddr>,
}

/// What to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts a rule in front of a chain that lets packets of an address pass. iptables lists and
    /// deletes it like one of its own.
    AcceptFirst {
        /// Chain.
        place: Place,
        /// Address.
        ip: IpAddr,
        /// The source's address, not the destination's.
        source: bool,
        /// Comment.
        comment: String,
    },
    /// Deletes a rule.
    DeleteRule {
        /// Chain.
        place: Place,
        /// The rule.
        handle: u64,
    },
    /// Deletes a chain with its rules.
    DeleteChain {
        /// Chain.
        place: Place,
    },
}

fn accept(place: &Place, ip: IpAddr, source: bool) -> Vec<Expr> {
    let family = Family::of(ip);
    let field = if source { Field::Saddr(family) } else { Field::Daddr(family) };
    let stmts =
        vec![Stmt::is(field, KeyPart::addr(ip)), Stmt::Counter, Stmt::Verdict(Verdict::Accept)];
    let mut exprs = lower(NftFamily::Inet, &Rule::new("", stmts));
    if place.layer != Layer::Inet {
        // The test for the family, which these tables do not need.
        exprs.drain(..2);
    }
    exprs
}

fn messages(change: &Change) -> Vec<Request> {
    match change {
        Change::AcceptFirst { place, ip, source, comment: words } => {
            let mut body = place.body(2);
            body.nest(4, |list| {
                for expr in accept(place, *ip, *source) {
                    exprs::put(list, &expr);
                }
            });
            body.put(7, &comment(words));
            vec![Request::new(msg::NEWRULE, CREATE, body.done())]
        }
        Change::DeleteRule { place, handle } => {
            let mut body = place.body(2);
            body.put(3, &handle.to_be_bytes());
            vec![Request::new(msg::DELRULE, 0, body.done())]
        }
        Change::DeleteChain { place } => vec![
            Request::new(msg::DELRULE, 0, place.body(2).done()),
            Request::new(msg::DELCHAIN, 0, place.body(3).done()),
        ],
    }
}

fn rule(reply: &Reply<'_>) -> Option<ForeignRule> {
    let body = reply.body.get(4..)?;
    let exprs = read_all(attribute(body, 4).unwrap_or_default());
    let ip = |data: &[u8]| -> Option<IpAddr> {
        let v4 = <[u8; 4]>::try_from(data).ok().map(IpAddr::from);
        v4.or_else(|| <[u8; 16]>::try_from(data).ok().map(IpAddr::from))
    };
    let addresses = exprs.iter().filter_map(|e| match e {
        Expr::Cmp { ne: false, data, .. } => ip(data),
        _ => None,
    });
    let leads_to = exprs.iter().filter_map(|e| match e {
        Expr::Immediate(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    });
    let may_accept = exprs.iter().any(|e| match e {
        Expr::Immediate(verdict) => !matches!(verdict, Verdict::Drop | Verdict::Return),
        Expr::Lookup { verdict, .. } => *verdict,
        // A target of iptables may be anything; a verdict that cannot be read as well.
        Expr::Unknown(name) => matches!(name.as_str(), "target" | "queue" | "immediate"),
        _ => false,
    });
    Some(ForeignRule {
        handle: u64::from_be_bytes(*attribute(body, 3)?.first_chunk()?),
        comment: attribute(body, 7).and_then(comment_of),
        leads_to: leads_to.collect(),
        may_accept,
        addresses: addresses.collect(),
    })
}

impl Nft {
    /// The base chains of all tables that see forwarded packets and drop those that no rule of
    /// theirs decided.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn dropping_forward_chains(&mut self) -> Result<Vec<Place>, Error> {
        let mut all = Vec::new();
        for layer in [Layer::Inet, Layer::Ip, Layer::Ip6] {
            let ask = Request::new(msg::GETCHAIN, 0, Body::new(layer.number()).done());
            let read = |reply: Reply<'_>| {
                let body = reply.body.get(4..)?;
                let hook = attribute(body, 4)?;
                let forward = attribute(hook, 1).and_then(be32) == Some(FORWARD);
                let drops = attribute(body, 5).and_then(be32) == Some(DROP);
                (forward && drops).then_some(())?;
                let (table, chain) = (text(attribute(body, 1)?), text(attribute(body, 3)?));
                Some(Place { layer, table, chain })
            };
            all.extend(self.sock.dump("list nftables chains", ask, read)?);
        }
        Ok(all)
    }

    /// Which of the chains are there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn existing_chains(&mut self, places: Vec<Place>) -> Result<Vec<Place>, Error> {
        let ask = |place: &Place| Request::new(msg::GETCHAIN, 0, place.body(3).done());
        let requests = places.iter().map(ask).collect();
        let found = self.sock.get_all("look up nftables chains", requests, |_| Some(()))?;
        let pairs = places.into_iter().zip(found);
        Ok(pairs.filter_map(|(place, found)| found.map(|()| place)).collect())
    }

    /// The rules of a chain; none where it is not there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn rules_of(&mut self, place: &Place) -> Result<Vec<ForeignRule>, Error> {
        let ask = Request::new(msg::GETRULE, 0, place.body(2).done());
        let read = |reply: Reply<'_>| {
            // Older kernels answer with the rules of more than was asked for.
            let body = reply.body.get(4..)?;
            let at = |kind| attribute(body, kind).map(text);
            let same = at(1).as_deref() == Some(place.table.as_str())
                && at(2).as_deref() == Some(place.chain.as_str());
            if same { rule(&reply) } else { None }
        };
        match self.sock.dump("list nftables rules", ask, read) {
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Does all changes, or none of them.
    ///
    /// # Errors
    /// The kernel's refusal; nothing has changed then.
    pub fn change_foreign(&mut self, changes: &[Change]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        for attempt in 1.. {
            let requests: Vec<(Option<usize>, Request)> =
                changes.iter().flat_map(messages).map(|request| (None, request)).collect();
            match self.commit(requests) {
                Ok(()) => break,
                Err(Failure::Refused { refusal: Refusal { errno: libc::EINTR, .. }, .. })
                    if attempt < TRIES => {}
                Err(Failure::Refused { refusal, .. }) => {
                    return Err(Error::refused("change a chain of another table", refusal));
                }
                Err(Failure::Socket(error)) => return Err(error),
            }
        }
        Ok(())
    }
}
