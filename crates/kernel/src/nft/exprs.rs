//! Expressions as attributes, and back.

use causeway_model::nft::Verdict;
use causeway_model::nft::expr::{CtKey, Expr, MetaKey, PayloadBase};
use causeway_types::Family;

use super::wire::{Body, be32, text};
use crate::sock::attributes;

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const META_KEYS: [(MetaKey, u32); 7] = [
    (MetaKey::Protocol, 1),
    (MetaKey::Mark, META_MARK),
    (MetaKey::IifName, 6),
    (MetaKey::OifName, 7),
    (MetaKey::IifType, 8),
    (MetaKey::Nfproto, 15),
    (MetaKey::L4Proto, 16),
];
/// `NFT_META_MARK`.
const META_MARK: u32 = 3;
/// `NFT_NAT_DNAT`.
const NAT_DNAT: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED`: the kernel sets them by itself.
const NAT_GIVEN: u32 = 3;
/// `NFT_CT_*`, with `IP_CT_DIR_*` of those that are asked of a direction.
const CT_KEYS: [(CtKey, u32, Option<u8>); 9] = [
    (CtKey::State, 0, None),
    (CtKey::Direction, 1, None),
    (CtKey::Mark, CT_MARK, None),
    (CtKey::Protocol, 10, None),
    (CtKey::ServerPort, 11, Some(1)),
    (CtKey::Client(Family::V4), 19, Some(0)),
    (CtKey::Server(Family::V4), 19, Some(1)),
    (CtKey::Client(Family::V6), 21, Some(0)),
    (CtKey::Server(Family::V6), 21, Some(1)),
];
/// `NFT_CT_MARK`.
const CT_MARK: u32 = 3;
/// `NFT_LIMIT_PKTS`, and its unit: a second.
const LIMIT_PACKETS: u32 = 0;
const SECOND: u64 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`.
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;

fn base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Link => 0,
        PayloadBase::Network => 1,
        PayloadBase::Transport => 2,
    }
}

/// Writes `NFTA_LIST_ELEM` of one expression.
pub(super) fn put(list: &mut Body, expr: &Expr) {
    list.nest(1, |e| {
        e.text(EXPR_NAME, name(expr));
        e.nest(EXPR_DATA, |d| data(d, expr));
    });
}

fn name(expr: &Expr) -> &str {
    match expr {
        Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Lookup { .. } | Expr::Map { .. } => "lookup",
        Expr::Dnat { .. } => "nat",
        Expr::Immediate(_) => "immediate",
        Expr::Counter => "counter",
        Expr::Notrack => "notrack",
        Expr::Masq { .. } => "masq",
        Expr::FibDaddrType { .. } => "fib",
        Expr::Ct { .. } | Expr::SetCtMark { .. } => "ct",
        Expr::Limit { .. } => "limit",
        Expr::Log { .. } => "log",
        Expr::Unknown(name) => name,
    }
}

fn data(d: &mut Body, expr: &Expr) {
    match expr {
        Expr::Meta { key, dreg } => {
            let number = META_KEYS.iter().find(|(k, _)| k == key).map_or(0, |(_, n)| *n);
            d.u32(1, *dreg).u32(2, number);
        }
        Expr::Payload { base: b, offset, len, dreg } => {
            d.u32(1, *dreg).u32(2, base(*b)).u32(3, *offset).u32(4, *len);
        }
        Expr::Cmp { sreg, ne, data } => {
            d.u32(1, *sreg).u32(2, u32::from(*ne));
            d.nest(3, |v| {
                v.put(DATA_VALUE, data);
            });
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            d.u32(1, *sreg).u32(2, *dreg).u32(3, mask.len() as u32);
            for (kind, bytes) in [(4, mask), (5, xor)] {
                d.nest(kind, |v| {
                    v.put(DATA_VALUE, bytes);
                });
            }
        }
        Expr::Lookup { sreg, set, inverted, verdict } => {
            d.text(1, set).u32(2, *sreg);
            if *verdict {
                d.u32(3, 0);
            }
            if *inverted {
                d.u32(5, 1);
            }
        }
        Expr::Map { sreg, map, dreg } => {
            d.text(1, map).u32(2, *sreg).u32(3, *dreg);
        }
        Expr::SetMark { sreg } => {
            d.u32(2, META_MARK).u32(3, *sreg);
        }
        Expr::Dnat { family, addr, port } => {
            d.u32(1, NAT_DNAT).u32(2, nfproto(*family)).u32(3, *addr).u32(5, *port);
        }
        Expr::Immediate(v) => {
            d.u32(1, 0).nest(2, |data| put_verdict(data, v));
        }
        Expr::Counter => {
            d.put(1, &[0; 8]).put(2, &[0; 8]);
        }
        Expr::Masq { flags } if *flags != 0 => {
            d.u32(1, *flags);
        }
        Expr::FibDaddrType { dreg } => {
            d.u32(1, *dreg).u32(2, FIB_ADDRTYPE).u32(3, FIB_DADDR);
        }
        Expr::Ct { key, dreg } => {
            let (_, number, direction) =
                CT_KEYS.iter().find(|(k, ..)| k == key).expect("every key is in the table");
            d.u32(1, *dreg).u32(2, *number);
            if let Some(direction) = direction {
                d.put(3, &[*direction]);
            }
        }
        Expr::SetCtMark { sreg } => {
            d.u32(2, CT_MARK).u32(4, *sreg);
        }
        Expr::Limit { rate } => {
            d.put(1, &u64::from(*rate).to_be_bytes()).put(2, &SECOND.to_be_bytes());
            d.u32(3, *rate).u32(4, LIMIT_PACKETS);
        }
        Expr::Log { group, prefix, snaplen } => {
            d.put(1, &group.to_be_bytes()).text(2, prefix).u32(3, *snaplen);
        }
        Expr::Masq { .. } | Expr::Notrack | Expr::Unknown(_) => {}
    }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn nfproto(family: Family) -> u32 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Writes `NFTA_DATA_VERDICT`.
pub(super) fn put_verdict(data: &mut Body, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    data.nest(DATA_VERDICT, |v| {
        v.u32(VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            v.text(VERDICT_CHAIN, chain);
        }
    });
}

/// Reads `NFTA_DATA_VERDICT`'s content.
pub(super) fn verdict(value: &[u8]) -> Option<Verdict> {
    let chain = || attribute(value, VERDICT_CHAIN).map(text);
    Some(match be32(attribute(value, VERDICT_CODE)?)? as i32 {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    })
}

/// The value of the first attribute of a type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// Reads the content of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn read_all(list: &[u8]) -> Vec<Expr> {
    attributes(list)
        .map(|(_, e)| {
            let name = attribute(e, EXPR_NAME).map(text).unwrap_or_default();
            let data = attribute(e, EXPR_DATA).unwrap_or_default();
            read(&name, data).unwrap_or(Expr::Unknown(name))
        })
        .collect()
}

fn read(name: &str, d: &[u8]) -> Option<Expr> {
    let number = |kind| attribute(d, kind).and_then(be32);
    let value = |kind| Some(attribute(attribute(d, kind)?, DATA_VALUE)?.to_vec());
    Some(match name {
        "meta" if number(1).is_none() && number(2)? == META_MARK => {
            Expr::SetMark { sreg: number(3)? }
        }
        "meta" => {
            let key = number(2)?;
            let (key, _) = META_KEYS.iter().find(|(_, n)| *n == key)?;
            Expr::Meta { key: *key, dreg: number(1)? }
        }
        "payload" => Expr::Payload {
            base: [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport]
                .into_iter()
                .find(|b| Some(base(*b)) == number(2))?,
            offset: number(3)?,
            len: number(4)?,
            dreg: number(1)?,
        },
        "cmp" => Expr::Cmp {
            sreg: number(1)?,
            ne: match number(2)? {
                0 => false,
                1 => true,
                _ => return None,
            },
            data: value(3)?,
        },
        "bitwise" if number(6).unwrap_or(0) == 0 => {
            Expr::Bitwise { sreg: number(1)?, dreg: number(2)?, mask: value(4)?, xor: value(5)? }
        }
        "lookup" if number(3).is_some_and(|dreg| dreg != 0) => {
            Expr::Map { map: text(attribute(d, 1)?), sreg: number(2)?, dreg: number(3)? }
        }
        "nat"
            if number(1)? == NAT_DNAT
                && number(7).unwrap_or(0) & !NAT_GIVEN == 0
                && number(4).is_none_or(|max| Some(max) == number(3))
                && number(6).is_none_or(|max| Some(max) == number(5)) =>
        {
            let family = Family::BOTH.into_iter().find(|f| Some(nfproto(*f)) == number(2))?;
            Expr::Dnat { family, addr: number(3)?, port: number(5)? }
        }
        "lookup" => Expr::Lookup {
            set: text(attribute(d, 1)?),
            sreg: number(2)?,
            verdict: match number(3) {
                None => false,
                Some(0) => true,
                Some(_) => return None,
            },
            inverted: number(5).unwrap_or(0) & 1 != 0,
        },
        "immediate" if number(1)? == 0 => {
            Expr::Immediate(verdict(attribute(attribute(d, 2)?, DATA_VERDICT)?)?)
        }
        "counter" => Expr::Counter,
        "notrack" => Expr::Notrack,
        // A range of ports would be registers in further attributes.
        "masq" if number(2).is_none() => Expr::Masq { flags: number(1).unwrap_or(0) },
        "fib" if number(2)? == FIB_ADDRTYPE && number(3)? == FIB_DADDR => {
            Expr::FibDaddrType { dreg: number(1)? }
        }
        "ct" if number(1).is_none() && number(2)? == CT_MARK => {
            Expr::SetCtMark { sreg: number(4)? }
        }
        "ct" => {
            let (of, direction) = (number(2)?, attribute(d, 3).and_then(|d| d.first().copied()));
            let known = CT_KEYS.iter().find(|(_, n, dir)| *n == of && *dir == direction)?;
            Expr::Ct { key: known.0, dreg: number(1)? }
        }
        "limit" if number(4).unwrap_or(LIMIT_PACKETS) == LIMIT_PACKETS => {
            let long = |kind| Some(u64::from_be_bytes(attribute(d, kind)?.try_into().ok()?));
            let rate = u32::try_from(long(1)?).ok()?;
            let plain = long(2)? == SECOND && number(3)? == rate && number(5).unwrap_or(0) == 0;
            plain.then_some(Expr::Limit { rate })?
        }
        "log" => Expr::Log {
            group: u16::from_be_bytes(attribute(d, 1)?.try_into().ok()?),
            prefix: attribute(d, 2).map(text).unwrap_or_default(),
            snaplen: number(3).unwrap_or(0),
        },
        _ => return None,
    })
}
