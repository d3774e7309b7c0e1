//! From rules as people write them to the kernel's expressions.

use std::net::IpAddr;

use causeway_types::Family;

use super::expr::{CtKey, Expr, MetaKey, PayloadBase, Reg};
use super::{Field, KeyPart, MatchOp, NftFamily, Rhs, Rule, Stmt};

/// NFT_REG_1.
const REG: Reg = 1;
/// NFT_REG32_00: the same bytes as NFT_REG_1.
const REG32: Reg = 8;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub(super) const RANDOM_FULLY: u32 = 16;
pub(super) const ICMPV6: u8 = 58;
const ARPHRD_ETHER: u16 = 1;

/// A test that a field implies and that a rule makes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Implied {
    /// `meta nfproto` (inet) or `meta protocol` (netdev).
    Family(Family),
    /// `meta protocol arp`.
    Arp,
    /// `meta l4proto ipv6-icmp`.
    Icmpv6,
    /// `meta iiftype ether`.
    Ether,
}

/// What a field implies, in order.
pub(super) fn implied(family: NftFamily, field: Field) -> Vec<Implied> {
    match field {
        Field::Saddr(f) | Field::Daddr(f) => vec![Implied::Family(f)],
        Field::ArpSaddrEther | Field::ArpSaddrIp => vec![Implied::Arp],
        Field::Icmpv6Type => match family {
            NftFamily::Inet => vec![Implied::Icmpv6],
            NftFamily::Netdev => vec![Implied::Family(Family::V6), Implied::Icmpv6],
        },
        Field::EtherSaddr => vec![Implied::Ether],
        _ => vec![],
    }
}

/// The two expressions of an implied test.
pub(super) fn test(family: NftFamily, implied: Implied) -> [Expr; 2] {
    let (key, data) = match (implied, family) {
        (Implied::Family(f), NftFamily::Inet) => (MetaKey::Nfproto, vec![nfproto(f)]),
        (Implied::Family(f), NftFamily::Netdev) => {
            (MetaKey::Protocol, ethertype(f).to_be_bytes().to_vec())
        }
        (Implied::Arp, _) => (MetaKey::Protocol, 0x0806u16.to_be_bytes().to_vec()),
        (Implied::Icmpv6, _) => (MetaKey::L4Proto, vec![ICMPV6]),
        (Implied::Ether, _) => (MetaKey::IifType, ARPHRD_ETHER.to_ne_bytes().to_vec()),
    };
    [Expr::Meta { key, dreg: REG }, Expr::Cmp { sreg: REG, ne: false, data }]
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

/// Turns a rule into expressions.
pub fn lower(family: NftFamily, rule: &Rule) -> Vec<Expr> {
    let mut out = Vec::new();
    let mut known: Vec<Implied> = Vec::new();
    for stmt in &rule.stmts {
        match stmt {
            Stmt::Match { fields, op: MatchOp::Eq, rhs: Rhs::Value(KeyPart::Family(f)) }
                if *fields == [Field::Nfproto] =>
            {
                imply(family, Implied::Family(*f), &mut known, &mut out);
            }
            Stmt::Match { fields, op, rhs } => {
                load(family, fields, &mut known, &mut out);
                compare(fields, *op, rhs, &mut out);
            }
            Stmt::Vmap { fields, map } => {
                load(family, fields, &mut known, &mut out);
                out.push(Expr::Lookup {
                    sreg: REG,
                    set: map.clone(),
                    inverted: false,
                    verdict: true,
                });
            }
            Stmt::Counter => out.push(Expr::Counter),
            Stmt::Limit { rate } => out.push(Expr::Limit { rate: *rate }),
            Stmt::Log { group, prefix, snaplen } => {
                let (group, prefix, snaplen) = (*group, prefix.clone(), *snaplen);
                out.push(Expr::Log { group, prefix, snaplen });
            }
            Stmt::Notrack => out.push(Expr::Notrack),
            Stmt::Masquerade { fully_random } => {
                out.push(Expr::Masq { flags: if *fully_random { RANDOM_FULLY } else { 0 } });
            }
            Stmt::Mark { bits } => {
                out.push(Expr::Meta { key: MetaKey::Mark, dreg: REG });
                out.push(Expr::Bitwise {
                    sreg: REG,
                    dreg: REG,
                    mask: (!bits).to_ne_bytes().to_vec(),
                    xor: bits.to_ne_bytes().to_vec(),
                });
                out.push(Expr::SetMark { sreg: REG });
            }
            Stmt::CtMark { mark } => out.extend(set_ct_mark(*mark)),
            Stmt::Dnat { family: to, fields, map } => {
                load(family, fields, &mut known, &mut out);
                out.push(Expr::Map { sreg: REG, map: map.clone(), dreg: REG });
                out.push(dnat(*to));
            }
            Stmt::Verdict(verdict) => out.push(Expr::Immediate(verdict.clone())),
            Stmt::Unknown(name) => out.push(Expr::Unknown(name.clone())),
        }
    }
    out
}

/// The constant comes by way of what it replaces: a rule that loads one as it is, as a rule with a verdict does, has
/// the kernel follow all ways through the table (`nft_immediate_validate`).
pub(super) fn set_ct_mark(mark: u32) -> [Expr; 3] {
    let (mask, xor) = (vec![0; 4], mark.to_ne_bytes().to_vec());
    [
        Expr::Ct { key: CtKey::Mark, dreg: REG },
        Expr::Bitwise { sreg: REG, dreg: REG, mask, xor },
        Expr::SetCtMark { sreg: REG },
    ]
}

fn imply(family: NftFamily, what: Implied, known: &mut Vec<Implied>, out: &mut Vec<Expr>) {
    if !known.contains(&what) {
        out.extend(test(family, what));
        known.push(what);
    }
}

fn load(family: NftFamily, fields: &[Field], known: &mut Vec<Implied>, out: &mut Vec<Expr>) {
    for field in fields {
        for what in implied(family, *field) {
            imply(family, what, known, out);
        }
    }
    let mut at = 0;
    for field in fields {
        out.push(source(*field, register(at)));
        at += width(*field).div_ceil(4);
    }
}

/// The register of a word of a concatenation, by the number under which the kernel shows it.
pub(super) fn register(word: u32) -> Reg {
    if word.is_multiple_of(4) { REG + word / 4 } else { REG32 + word }
}

/// The translation to an address and a port that lie one after the other.
pub(super) fn dnat(family: Family) -> Expr {
    Expr::Dnat { family, addr: REG, port: register(u32::from(family.bits() / 32)) }
}

/// Bytes of a field in a register.
pub(super) fn width(field: Field) -> u32 {
    match field {
        Field::IifName | Field::OifName => 16,
        Field::Protocol | Field::Sport | Field::Dport | Field::CtServerPort => 2,
        Field::EtherSaddr | Field::ArpSaddrEther => 6,
        Field::Saddr(f) | Field::Daddr(f) | Field::CtClient(f) | Field::CtServer(f) => {
            u32::from(f.bits() / 8)
        }
        Field::ArpSaddrIp => 4,
        Field::NdTarget => 16,
        Field::L4Proto
        | Field::Icmpv6Type
        | Field::Nfproto
        | Field::CtDirection
        | Field::CtProtocol
        | Field::TcpFlags => 1,
        Field::FibDaddrType | Field::CtState | Field::Mark | Field::CtMark => 4,
    }
}

/// The expression that loads a field.
pub(super) fn source(field: Field, dreg: Reg) -> Expr {
    let payload = |base, offset| Expr::Payload { base, offset, len: width(field), dreg };
    match field {
        Field::IifName => Expr::Meta { key: MetaKey::IifName, dreg },
        Field::OifName => Expr::Meta { key: MetaKey::OifName, dreg },
        Field::Protocol => Expr::Meta { key: MetaKey::Protocol, dreg },
        Field::L4Proto => Expr::Meta { key: MetaKey::L4Proto, dreg },
        Field::Nfproto => Expr::Meta { key: MetaKey::Nfproto, dreg },
        Field::EtherSaddr => payload(PayloadBase::Link, 6),
        Field::Saddr(Family::V4) => payload(PayloadBase::Network, 12),
        Field::Daddr(Family::V4) => payload(PayloadBase::Network, 16),
        Field::Saddr(Family::V6) => payload(PayloadBase::Network, 8),
        Field::Daddr(Family::V6) => payload(PayloadBase::Network, 24),
        Field::ArpSaddrEther => payload(PayloadBase::Network, 8),
        Field::ArpSaddrIp => payload(PayloadBase::Network, 14),
        Field::Sport => payload(PayloadBase::Transport, 0),
        Field::Dport => payload(PayloadBase::Transport, 2),
        Field::Icmpv6Type => payload(PayloadBase::Transport, 0),
        Field::NdTarget => payload(PayloadBase::Transport, 8),
        Field::FibDaddrType => Expr::FibDaddrType { dreg },
        Field::CtState => Expr::Ct { key: CtKey::State, dreg },
        Field::CtMark => Expr::Ct { key: CtKey::Mark, dreg },
        Field::CtDirection => Expr::Ct { key: CtKey::Direction, dreg },
        Field::CtClient(f) => Expr::Ct { key: CtKey::Client(f), dreg },
        Field::CtServer(f) => Expr::Ct { key: CtKey::Server(f), dreg },
        Field::CtProtocol => Expr::Ct { key: CtKey::Protocol, dreg },
        Field::CtServerPort => Expr::Ct { key: CtKey::ServerPort, dreg },
        Field::TcpFlags => payload(PayloadBase::Transport, 13),
        Field::Mark => Expr::Meta { key: MetaKey::Mark, dreg },
    }
}

/// Bits of a field of at most four bytes, as the kernel has them.
pub(super) fn bits(field: Field, bits: u32) -> Vec<u8> {
    if field == Field::CtMark {
        return bits.to_ne_bytes().to_vec();
    }
    let bytes = bits.to_be_bytes();
    bytes[bytes.len() - width(field).min(4) as usize..].to_vec()
}

fn compare(fields: &[Field], op: MatchOp, rhs: &Rhs, out: &mut Vec<Expr>) {
    let ne = op == MatchOp::Ne;
    match rhs {
        Rhs::Bits { mask, value } => {
            let of = |n| fields.first().map_or_else(Vec::new, |field| bits(*field, n));
            let (mask, data) = (of(*mask), of(*value));
            out.push(Expr::Bitwise { sreg: REG, dreg: REG, xor: vec![0; mask.len()], mask });
            out.push(Expr::Cmp { sreg: REG, ne, data });
        }
        Rhs::Set(set) => {
            out.push(Expr::Lookup { sreg: REG, set: set.clone(), inverted: ne, verdict: false });
        }
        Rhs::Prefix(text) => {
            out.push(Expr::Cmp { sreg: REG, ne, data: text.as_bytes().to_vec() });
        }
        Rhs::Value(KeyPart::CtState(bits)) => {
            let (mask, zero) = (bits.to_ne_bytes().to_vec(), vec![0; 4]);
            out.push(Expr::Bitwise { sreg: REG, dreg: REG, mask, xor: zero.clone() });
            // Any of the bits: the rest is not zero.
            out.push(Expr::Cmp { sreg: REG, ne: !ne, data: zero });
        }
        Rhs::Value(KeyPart::Mark(bits)) => {
            let (bits, zero) = (bits.to_ne_bytes().to_vec(), vec![0; 4]);
            out.push(Expr::Bitwise { sreg: REG, dreg: REG, mask: bits.clone(), xor: zero });
            out.push(Expr::Cmp { sreg: REG, ne, data: bits });
        }
        Rhs::Value(KeyPart::Net(net)) if net.prefix_len() < net.family().bits() => {
            let mask = mask(net.family(), net.prefix_len());
            let xor = vec![0; mask.len()];
            out.push(Expr::Bitwise { sreg: REG, dreg: REG, mask, xor });
            out.push(Expr::Cmp { sreg: REG, ne, data: octets(net.addr()) });
        }
        Rhs::Value(value) => {
            let data = bytes(value);
            out.push(Expr::Cmp { sreg: REG, ne, data });
        }
    }
}

/// A netmask.
pub(super) fn mask(family: Family, prefix_len: u8) -> Vec<u8> {
    let bytes = usize::from(family.bits() / 8);
    let bits = usize::from(prefix_len);
    (0..bytes)
        .map(|i| match bits.saturating_sub(8 * i) {
            n if n >= 8 => 0xff,
            n => !(0xff_u16 >> n) as u8,
        })
        .collect()
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A value as the kernel compares it or keeps it in a set: network order, interface names padded
/// to 16 bytes.
pub fn bytes(value: &KeyPart) -> Vec<u8> {
    match value {
        KeyPart::Net(net) => octets(net.addr()),
        KeyPart::Mac(mac) => mac.0.to_vec(),
        KeyPart::IfName(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
        KeyPart::Proto(n) | KeyPart::Icmpv6(n) | KeyPart::CtDirection(n) => vec![*n],
        KeyPart::Family(f) => vec![nfproto(*f)],
        KeyPart::Port(n) | KeyPart::EtherType(n) | KeyPart::Ports(n, _) => n.to_be_bytes().to_vec(),
        KeyPart::AddrType(n) => u32::from(*n).to_ne_bytes().to_vec(),
        KeyPart::CtState(bits) | KeyPart::Mark(bits) | KeyPart::CtMark(bits) => {
            bits.to_ne_bytes().to_vec()
        }
    }
}
