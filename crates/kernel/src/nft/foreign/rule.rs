//! What a rule of a foreign chain does, as far as its expressions tell.

use std::net::IpAddr;

use causeway_model::nft::Verdict;
use causeway_model::nft::expr::{Expr, MetaKey, PayloadBase};
use causeway_model::nft::foreign::{Accepted, Layer};
use causeway_types::Family;
use ipnet::IpNet;

use super::super::exprs::{attribute, read_all};
use super::super::wire::{comment_of, text};
use crate::sock::Reply;

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
    /// It accepts packets itself, wherever it may lead to besides.
    pub(super) itself: bool,
    /// Interfaces that it asks for.
    pub(super) interfaces: Vec<String>,
    /// Networks that it asks for, as source or destination, whatever it asks for besides.
    pub(super) nets: Vec<IpNet>,
}

impl ForeignRule {
    /// True for a rule that asks for an interface of Docker.
    pub(super) fn is_dockers(&self) -> bool {
        self.interfaces.iter().any(|i| i == "docker0" || i.starts_with("br-"))
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
                let (family, source) = field(*offset).filter(|(f, _)| Some(*f) == asks.family)?;
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

/// Source or destination by its place in a header: the offsets of the two families differ.
fn field(offset: u32) -> Option<(Family, bool)> {
    match offset {
        12 => Some((Family::V4, true)),
        16 => Some((Family::V4, false)),
        8 => Some((Family::V6, true)),
        24 => Some((Family::V6, false)),
        _ => None,
    }
}

/// The networks that a rule asks for.
fn nets(exprs: &[Expr]) -> Vec<IpNet> {
    let starts = exprs.iter().enumerate().filter_map(|(at, expr)| match expr {
        Expr::Payload { base: PayloadBase::Network, offset, len, .. } => {
            Some((at, field(*offset)?.0, *len))
        }
        _ => None,
    });
    let net = |(at, family, len): (usize, Family, u32)| match exprs.get(at + 1..)? {
        [Expr::Cmp { ne: false, data, .. }, ..] => network(family, data, None, len),
        [Expr::Bitwise { mask, .. }, Expr::Cmp { ne: false, data, .. }, ..] => {
            network(family, data, Some(mask), len)
        }
        _ => None,
    };
    starts.filter_map(net).collect()
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

/// A target of iptables may be anything; a verdict that cannot be read as well.
fn may_be_verdict(expression: &str) -> bool {
    matches!(expression, "target" | "queue" | "immediate")
}

impl ForeignRule {
    /// From the kernel's answer.
    pub(super) fn read(layer: Layer, reply: &Reply<'_>) -> Option<Self> {
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
        let itself = exprs.iter().any(|e| match e {
            Expr::Immediate(verdict) => *verdict == Verdict::Accept,
            Expr::Lookup { verdict, .. } => *verdict,
            Expr::Unknown(name) => may_be_verdict(name),
            _ => false,
        });
        let may_accept = exprs.iter().any(|e| match e {
            Expr::Immediate(verdict) => !matches!(verdict, Verdict::Drop | Verdict::Return),
            Expr::Lookup { verdict, .. } => *verdict,
            Expr::Unknown(name) => may_be_verdict(name),
            _ => false,
        });
        let interfaces = exprs.windows(2).filter_map(|pair| match pair {
            [
                Expr::Meta { key: MetaKey::IifName | MetaKey::OifName, .. },
                Expr::Cmp { ne: false, data, .. },
            ] => Some(text(data)),
            _ => None,
        });
        let interfaces = interfaces.collect();
        let simple = simple(layer, &exprs);
        let accepted = match &simple {
            Some((asks, Verdict::Accept)) => accepts(layer, asks),
            _ => Vec::new(),
        };
        let always =
            |asks: &Asks| asks.net.is_none() && (asks.family.is_none() || layer != Layer::Inet);
        Some(ForeignRule {
            itself,
            interfaces,
            nets: nets(&exprs),
            accepts: accepted,
            always: simple.as_ref().is_some_and(|(asks, _)| always(asks)),
            handle: u64::from_be_bytes(*attribute(body, 3)?.first_chunk()?),
            comment: attribute(body, 7).and_then(comment_of),
            leads_to: leads_to.collect(),
            may_accept,
            addresses: addresses.collect(),
        })
    }
}
