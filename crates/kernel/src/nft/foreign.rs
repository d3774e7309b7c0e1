//! Tables of others: which chains may stop a packet, and single rules put into them or taken out.
//!
//! Nothing here changes more than what it is told by name, handle or comment.

mod rule;

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::nft::expr::Expr;
use causeway_model::nft::foreign::{Dropping, Layer, Place};
use causeway_model::nft::{Field, KeyPart, NftFamily, Rule, Stmt, Verdict, lower};
use causeway_types::{Family, names};

pub use rule::ForeignRule;

use super::exprs::{self, attribute};
use super::wire::{Body, be32, comment, msg, text};
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
    /// Deletes a table with all that is in it.
    DeleteTable {
        /// Family of the table.
        layer: Layer,
        /// Table.
        table: String,
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
        Change::DeleteTable { layer, table } => {
            let mut body = Body::new(layer.number());
            body.text(1, table);
            vec![Request::new(msg::DELTABLE, 0, body.done())]
        }
    }
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
    /// those that no rule of theirs decided. What they accept is left to [`Nft::follow`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn dropping(&mut self, families: &[Family]) -> Result<Vec<Dropping>, Error> {
        let mut places = self.dropping_forward_chains()?;
        places.retain(|p| {
            !matches!(p.table.as_str(), names::NFT_AGENT | names::NFT_PLUGINS | names::NFT_POLICY)
        });
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
                accepted: Vec::new(),
                dockers_alone: false,
                named: Vec::new(),
                place,
            });
        }
        Ok(all)
    }

    /// Finds out what a chain accepts, itself or where it leads to. Costs a dump of each chain on
    /// the way: not for an ADD.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn follow(&mut self, from: &mut Dropping) -> Result<(), Error> {
        let place = &from.place;
        from.accepted.clear();
        from.named.clear();
        from.dockers_alone = true;
        // By name: whether every packet comes there.
        let mut known = BTreeMap::from([(place.chain.clone(), true)]);
        let mut next = vec![(place.chain.clone(), true)];
        while let Some((chain, always)) = next.pop() {
            for rule in self.rules_of(&Place::new(place.layer, &place.table, &chain))? {
                from.dockers_alone &= !rule.itself || rule.is_dockers();
                from.named.extend(rule.nets);
                let there = always && rule.always;
                if always {
                    from.accepted.extend(rule.accepts);
                }
                for target in rule.leads_to {
                    if known.get(&target).is_none_or(|before| there && !before) {
                        known.insert(target.clone(), there);
                        next.push((target, there));
                    }
                }
            }
        }
        Ok(())
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
            if same { ForeignRule::read(place.layer, &reply) } else { None }
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
            match self.commit(requests, None) {
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
