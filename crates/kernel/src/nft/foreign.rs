//! Tables of others: which chains may stop a packet, and single rules put into them or taken out.
//!
//! Nothing here changes more than what it is told by name, handle or comment.

use std::net::IpAddr;

use causeway_model::nft::expr::{Expr, MetaKey, PayloadBase};
use causeway_model::nft::foreign::{Accepted, Dropping, Layer, Place};
use causeway_model::nft::{Field, KeyPart, NftFamily, Rule, Stmt, Verdict, lower};
use causeway_types::{Family, names};
use ipnet::IpNet;

use super::exprs::{self, attribute, read_all};
use super::wire::{Body, be32, comment, comment_of, msg, text};
use super::{Failure, Nft, TRIES};
use crate::sock::{CREATE, Reply, Request};
use crate::{Error, Refusal};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP` as the policy of a chain.
const DROP: u32 = 0;

fn body_of(place: &Place, chain_attribute: u16) -> Body {
    let mut body = Body::new(place.layer.number());
    body.text(1, &place.table).text(chain_attribute, &place.chain);
    body
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
    /// What it accepts, where it asks for nothing but one network, or for nothing at all.
    pub accepts: Vec<Accepted>,
    /// It does what it does with every packet.
    pub always: bool,
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
            let mut body = body_of(place, 2);
            body.nest(4, |list| {
                for expr in accept(place, *ip, *source) {
                    exprs::put(list, &expr);
                }
            });
            body.put(7, &comment(words));
            vec![Request::new(msg::NEWRULE, CREATE, body.done())]
        }
        Change::DeleteRule { place, handle } => {
            let mut body = body_of(place, 2);
            body.put(3, &handle.to_be_bytes());
            vec![Request::new(msg::DELRULE, 0, body.done())]
        }
        Change::DeleteChain { place } => vec![
            Request::new(msg::DELRULE, 0, body_of(place, 2).done()),
            Request::new(msg::DELCHAIN, 0, body_of(place, 3).done()),
        ],
    }
}

/// What a rule asks a packet for, as far as it is told by one network.
#[derive(Default)]
struct Asks {
    family: Option<Family>,
    /// Bytes of the address, and which it is: those that the rule loaded last.
    loaded: Option<(Family, bool, u32)>,
    net: Option<(IpNet, bool)>,
}

/// The network and the verdict of a rule that asks for nothing else; `None` for any other rule.
fn simple(layer: Layer, exprs: &[Expr]) -> Option<(Asks, &Verdict)> {
    let mut asks = Asks {
        family: Family::BOTH.into_iter().find(|f| layer == Layer::of(*f)),
        ..Asks::default()
    };
    let mut mask: Option<&[u8]> = None;
    let mut nfproto = false;
    for expr in exprs {
        match expr {
            Expr::Counter => {}
            Expr::Immediate(verdict) => return Some((asks, verdict)),
            Expr::Meta { key: MetaKey::Nfproto, .. } => nfproto = true,
            Expr::Cmp { ne: false, data, .. } if nfproto => {
                nfproto = false;
                asks.family = match data[..] {
                    [2] => Some(Family::V4),
                    [10] => Some(Family::V6),
                    _ => return None,
                };
            }
            Expr::Payload { base: PayloadBase::Network, offset, len, .. } if asks.net.is_none() => {
                let family = asks.family?;
                // Offsets in the headers of IPv4 and IPv6.
                let source = match (family, offset) {
                    (Family::V4, 12) | (Family::V6, 8) => true,
                    (Family::V4, 16) | (Family::V6, 24) => false,
                    _ => return None,
                };
                asks.loaded = Some((family, source, *len));
            }
            Expr::Bitwise { mask: bits, xor, .. } if xor.iter().all(|b| *b == 0) => {
                mask = Some(bits)
            }
            Expr::Cmp { ne: false, data, .. } => {
                let (family, source, len) = asks.loaded.take()?;
                asks.net = Some((network(family, data, mask.take(), len)?, source));
            }
            _ => return None,
        }
    }
    None
}

/// A network from the first bytes of an address, and the mask that went over them.
fn network(family: Family, data: &[u8], mask: Option<&[u8]>, len: u32) -> Option<IpNet> {
    let bits = match mask {
        // Without a mask whole bytes are compared.
        None => u8::try_from(len.checked_mul(8)?).ok()?,
        Some(mask) => {
            let ones: u32 = mask.iter().map(|b| b.leading_ones()).sum();
            let all: u32 = mask.iter().map(|b| b.count_ones()).sum();
            u8::try_from(ones).ok().filter(|_| ones == all)?
        }
    };
    let mut bytes = [0; 16];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    let ip = match family {
        Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(bytes),
    };
    IpNet::new(ip, bits).ok()
}

fn accepts(layer: Layer, asks: &Asks) -> Vec<Accepted> {
    if let Some((net, source)) = asks.net {
        return vec![Accepted { net, source }];
    }
    let families =
        Family::BOTH.into_iter().filter(|f| asks.family.map_or(layer.sees(*f), |a| a == *f));
    let any = |f: Family| IpNet::new(f.unspecified(), 0).ok();
    let both = |net| [true, false].map(|source| Accepted { net, source });
    families.filter_map(any).flat_map(both).collect()
}

fn rule(layer: Layer, reply: &Reply<'_>) -> Option<ForeignRule> {
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
    let simple = simple(layer, &exprs);
    let accepted = match &simple {
        Some((asks, Verdict::Accept)) => accepts(layer, asks),
        _ => Vec::new(),
    };
    let always =
        |asks: &Asks| asks.net.is_none() && (asks.family.is_none() || layer != Layer::Inet);
    Some(ForeignRule {
        accepts: accepted,
        always: simple.as_ref().is_some_and(|(asks, _)| always(asks)),
        handle: u64::from_be_bytes(*attribute(body, 3)?.first_chunk()?),
        comment: attribute(body, 7).and_then(comment_of),
        leads_to: leads_to.collect(),
        may_accept,
        addresses: addresses.collect(),
    })
}

/// True when the old iptables has a table `filter` for a family in the calling thread's namespace.
/// Nothing tells what is in it but its own program.
pub fn has_legacy_filter(family: Family) -> bool {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    // Not there without the kernel's old iptables.
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    names.is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

impl Nft {
    /// The chains of others through which packets of some families are forwarded, and which drop
    /// those that no rule of theirs decided.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn dropping(&mut self, families: &[Family]) -> Result<Vec<Dropping>, Error> {
        let mut places = self.dropping_forward_chains()?;
        places.retain(|p| !matches!(p.table.as_str(), names::NFT_AGENT | names::NFT_PLUGINS));
        if !places.contains(&Place::firewalld()) {
            places.extend(self.existing_chains(vec![Place::firewalld()])?);
        }
        places.retain(|p| families.iter().any(|f| p.layer.sees(*f)));
        let mut all = Vec::new();
        for place in places {
            let rules = self.rules_of(&place)?;
            let accepts = rules.iter().any(|rule| rule.may_accept);
            all.push(Dropping {
                all: !accepts && place != Place::firewalld(),
                leads_to: rules.iter().flat_map(|rule| rule.leads_to.clone()).collect(),
                accepted: self.accepted(&place)?,
                place,
            });
        }
        Ok(all)
    }

    /// What a chain accepts for certain, itself or where it leads to without condition.
    fn accepted(&mut self, from: &Place) -> Result<Vec<Accepted>, Error> {
        let mut accepted = Vec::new();
        let mut known = vec![from.chain.clone()];
        let mut next = 0;
        while let Some(chain) = known.get(next) {
            let rules = self.rules_of(&Place::new(from.layer, &from.table, chain))?;
            for rule in rules {
                accepted.extend(rule.accepts);
                let new = rule.leads_to.into_iter().filter(|_| rule.always);
                let new: Vec<String> = new.filter(|c| !known.contains(c)).collect();
                known.extend(new);
            }
            next += 1;
        }
        Ok(accepted)
    }

    /// All chains of all tables of these families, also those of iptables.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn chains(&mut self) -> Result<Vec<Place>, Error> {
        self.chains_where(|_| true)
    }

    fn dropping_forward_chains(&mut self) -> Result<Vec<Place>, Error> {
        self.chains_where(|body| {
            let hook = attribute(body, 4).and_then(|hook| attribute(hook, 1));
            let forward = hook.and_then(be32) == Some(FORWARD);
            forward && attribute(body, 5).and_then(be32) == Some(DROP)
        })
    }

    fn chains_where(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Place>, Error> {
        let mut all = Vec::new();
        for layer in Layer::ALL {
            let ask = Request::new(msg::GETCHAIN, 0, Body::new(layer.number()).done());
            let read = |reply: Reply<'_>| {
                let body = reply.body.get(4..).filter(|body| wanted(body))?;
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
        let ask = |place: &Place| Request::new(msg::GETCHAIN, 0, body_of(place, 3).done());
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
        let ask = Request::new(msg::GETRULE, 0, body_of(place, 2).done());
        let read = |reply: Reply<'_>| {
            // Older kernels answer with the rules of more than was asked for.
            let body = reply.body.get(4..)?;
            let at = |kind| attribute(body, kind).map(text);
            let same = at(1).as_deref() == Some(place.table.as_str())
                && at(2).as_deref() == Some(place.chain.as_str());
            if same { rule(place.layer, &reply) } else { None }
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
