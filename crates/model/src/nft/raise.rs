//! From the kernel's expressions back to rules: the inverse of lowering, for rules that were
//! written by it. Whatever else is found becomes [`Stmt::Unknown`], which equals nothing of ours.

use std::net::IpAddr;

use causeway_types::{Cidr, Family, IfName, Mac};
use ipnet::IpNet;

use super::expr::{Expr, MetaKey, Reg};
use super::lower::{
    ICMPV6, Implied, RANDOM_FULLY, dnat, implied, register, set_ct_mark, source, test, width,
};
use super::{Field, KeyPart, MatchOp, NftFamily, Rhs, Rule, Stmt};

const FIELDS: [Field; 27] = [
    Field::IifName,
    Field::OifName,
    Field::Protocol,
    Field::EtherSaddr,
    Field::Saddr(Family::V4),
    Field::Saddr(Family::V6),
    Field::Daddr(Family::V4),
    Field::Daddr(Family::V6),
    Field::L4Proto,
    Field::Icmpv6Type,
    Field::Sport,
    Field::Dport,
    Field::NdTarget,
    Field::ArpSaddrEther,
    Field::ArpSaddrIp,
    Field::FibDaddrType,
    Field::CtState,
    Field::Mark,
    Field::CtMark,
    Field::CtDirection,
    Field::CtClient(Family::V4),
    Field::CtClient(Family::V6),
    Field::CtServer(Family::V4),
    Field::CtServer(Family::V6),
    Field::CtProtocol,
    Field::CtServerPort,
    Field::TcpFlags,
];

/// Reads expressions as a rule; the comment comes from elsewhere.
pub fn raise(family: NftFamily, exprs: &[Expr]) -> Rule {
    let mut reader =
        Reader { family, rest: exprs, known: Vec::new(), pending: Vec::new(), stmts: Vec::new() };
    while !reader.rest.is_empty() {
        reader.step();
    }
    reader.settle();
    Rule { stmts: reader.stmts, comment: None }
}

struct Reader<'a> {
    family: NftFamily,
    rest: &'a [Expr],
    /// Tests made so far in this rule.
    known: Vec<Implied>,
    /// Tests seen whose field has not come yet.
    pending: Vec<Implied>,
    stmts: Vec<Stmt>,
}

impl Reader<'_> {
    fn step(&mut self) {
        if let Some(what) = self.implied_test() {
            self.known.push(what);
            self.pending.push(what);
            self.rest = &self.rest[2..];
            return;
        }
        if let Some((stmt, used)) = self.marking().or_else(|| self.comparison()) {
            self.stmts.push(stmt);
            self.rest = &self.rest[used..];
            return;
        }
        self.settle();
        let stmt = match &self.rest[0] {
            Expr::Counter => Stmt::Counter,
            Expr::Limit { rate } => Stmt::Limit { rate: *rate },
            Expr::Log { group, prefix, snaplen } => {
                Stmt::Log { group: *group, prefix: prefix.clone(), snaplen: *snaplen }
            }
            Expr::Notrack => Stmt::Notrack,
            Expr::Masq { flags: 0 } => Stmt::Masquerade { fully_random: false },
            Expr::Masq { flags: RANDOM_FULLY } => Stmt::Masquerade { fully_random: true },
            Expr::Immediate(verdict) => Stmt::Verdict(verdict.clone()),
            Expr::Unknown(name) => Stmt::Unknown(name.clone()),
            other => Stmt::Unknown(format!("{other:?}")),
        };
        self.stmts.push(stmt);
        self.rest = &self.rest[1..];
    }

    /// An implied test, when the two expressions ahead are one that was not made yet.
    fn implied_test(&self) -> Option<Implied> {
        let all = [
            Implied::Family(Family::V4),
            Implied::Family(Family::V6),
            Implied::Arp,
            Implied::Icmpv6,
            Implied::Ether,
        ];
        let fresh = all.into_iter().filter(|what| !self.known.contains(what));
        fresh.into_iter().find(|what| self.rest.starts_with(&test(self.family, *what)))
    }

    /// Tests whose field never came were written for their own sake.
    fn settle(&mut self) {
        for what in std::mem::take(&mut self.pending) {
            let stmt = match what {
                Implied::Family(f) if self.family == NftFamily::Netdev => {
                    let ethertype = if f == Family::V4 { 0x0800 } else { 0x86dd };
                    Stmt::is(Field::Protocol, KeyPart::EtherType(ethertype))
                }
                Implied::Arp => Stmt::is(Field::Protocol, KeyPart::EtherType(0x0806)),
                Implied::Icmpv6 => Stmt::is(Field::L4Proto, KeyPart::Proto(ICMPV6)),
                Implied::Family(f) => Stmt::is(Field::Nfproto, KeyPart::Family(f)),
                Implied::Ether => Stmt::Unknown("meta iiftype ether".to_owned()),
            };
            self.stmts.push(stmt);
        }
    }

    /// A mark that is set.
    fn marking(&self) -> Option<(Stmt, usize)> {
        if let [_, Expr::Bitwise { xor, .. }, Expr::SetCtMark { .. }, ..] = self.rest {
            let mark = u32::from_ne_bytes(xor[..].try_into().ok()?);
            let all = self.rest.starts_with(&set_ct_mark(mark));
            return all.then_some((Stmt::CtMark { mark }, 3));
        }
        let [
            Expr::Meta { key: MetaKey::Mark, dreg: 1 },
            Expr::Bitwise { sreg: 1, dreg: 1, mask, xor },
            Expr::SetMark { sreg: 1 },
            ..,
        ] = self.rest
        else {
            return None;
        };
        let bits = u32::from_ne_bytes(xor[..].try_into().ok()?);
        (mask[..] == (!bits).to_ne_bytes()).then_some((Stmt::Mark { bits }, 3))
    }

    /// Loads of one or more fields and what is done with them.
    fn comparison(&mut self) -> Option<(Stmt, usize)> {
        let mut fields = Vec::new();
        let mut at = 0;
        while let Some(field) = self.field(fields.len(), at) {
            at += width(field).div_ceil(4);
            fields.push(field);
        }
        let count = fields.len();
        if count == 0 {
            return None;
        }
        let (stmt, used) = match self.rest.get(count)? {
            Expr::Lookup { sreg: 1, set, verdict: true, .. } => {
                (Stmt::Vmap { fields: fields.clone(), map: set.clone() }, 1)
            }
            Expr::Lookup { sreg: 1, set, inverted, verdict: false } => (
                Stmt::Match {
                    fields: fields.clone(),
                    op: op(*inverted),
                    rhs: Rhs::Set(set.clone()),
                },
                1,
            ),
            Expr::Map { sreg: 1, map, dreg: 1 } => {
                let to = self.rest.get(count + 1)?;
                let family = Family::BOTH.into_iter().find(|f| dnat(*f) == *to)?;
                (Stmt::Dnat { family, fields: fields.clone(), map: map.clone() }, 2)
            }
            _ if count > 1 => return None,
            Expr::Cmp { sreg: 1, ne, data } => {
                let rhs = rhs(fields[0], data)?;
                (Stmt::Match { fields: fields.clone(), op: op(*ne), rhs }, 1)
            }
            Expr::Bitwise { sreg: 1, dreg: 1, mask, xor } if xor.iter().all(|b| *b == 0) => {
                let Expr::Cmp { sreg: 1, ne, data } = self.rest.get(count + 1)? else {
                    return None;
                };
                (masked(fields[0], *ne, mask, data)?, 2)
            }
            _ => return None,
        };
        for what in fields.iter().flat_map(|f| implied(self.family, *f)) {
            self.pending.retain(|p| *p != what);
        }
        // What is still open was written before this, for its own sake.
        if !self.pending.is_empty() {
            self.settle();
        }
        Some((stmt, count + used))
    }

    fn field(&self, number: usize, at: u32) -> Option<Field> {
        let dreg: Reg = register(at);
        let expr = self.rest.get(number)?;
        let fits = |field: &Field| {
            source(*field, dreg) == *expr
                && implied(self.family, *field).iter().all(|what| self.known.contains(what))
        };
        FIELDS.into_iter().find(fits)
    }
}

fn op(ne: bool) -> MatchOp {
    if ne { MatchOp::Ne } else { MatchOp::Eq }
}

fn ip(data: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(data) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(data).ok().map(IpAddr::from)
}

/// A value of a field from the kernel's bytes.
fn rhs(field: Field, data: &[u8]) -> Option<Rhs> {
    let value = match field {
        Field::IifName | Field::OifName => return name(data),
        Field::Protocol => KeyPart::EtherType(u16::from_be_bytes(data.try_into().ok()?)),
        Field::EtherSaddr | Field::ArpSaddrEther => KeyPart::Mac(Mac(data.try_into().ok()?)),
        Field::Saddr(_)
        | Field::Daddr(_)
        | Field::CtClient(_)
        | Field::CtServer(_)
        | Field::NdTarget
        | Field::ArpSaddrIp => KeyPart::addr(ip(data)?),
        Field::L4Proto | Field::CtProtocol => KeyPart::Proto(*data.first()?),
        Field::CtDirection => KeyPart::CtDirection(*data.first()?),
        Field::CtMark => KeyPart::CtMark(u32::from_ne_bytes(data.try_into().ok()?)),
        Field::Sport | Field::Dport | Field::CtServerPort => {
            KeyPart::Port(u16::from_be_bytes(data.try_into().ok()?))
        }
        Field::Icmpv6Type => KeyPart::Icmpv6(*data.first()?),
        Field::FibDaddrType => {
            KeyPart::AddrType(u8::try_from(u32::from_ne_bytes(data.try_into().ok()?)).ok()?)
        }
        Field::CtState | Field::Mark | Field::Nfproto | Field::TcpFlags => return None,
    };
    Some(Rhs::Value(value))
}

fn name(data: &[u8]) -> Option<Rhs> {
    let text = std::str::from_utf8(data.split(|b| *b == 0).next()?).ok()?;
    if data.len() == 16 {
        return IfName::new(text).ok().map(|n| Rhs::Value(KeyPart::IfName(n)));
    }
    Some(Rhs::Prefix(text.to_owned()))
}

fn masked(field: Field, ne: bool, mask: &[u8], data: &[u8]) -> Option<Stmt> {
    match field {
        Field::CtState => {
            let bits = u32::from_ne_bytes(mask.try_into().ok()?);
            let zero = data.iter().all(|b| *b == 0);
            zero.then(|| Stmt::Match {
                fields: vec![field],
                op: op(!ne),
                rhs: Rhs::Value(KeyPart::CtState(bits)),
            })
        }
        Field::Mark => {
            let bits = u32::from_ne_bytes(mask.try_into().ok()?);
            let rhs = Rhs::Value(KeyPart::Mark(bits));
            (mask == data).then(|| Stmt::Match { fields: vec![field], op: op(ne), rhs })
        }
        Field::CtMark => {
            let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
            let rhs = Rhs::Bits { mask: number(mask)?, value: number(data)? };
            Some(Stmt::Match { fields: vec![field], op: op(ne), rhs })
        }
        Field::Sport | Field::Dport | Field::TcpFlags => {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b));
            let rhs = Rhs::Bits { mask: number(mask), value: number(data) };
            Some(Stmt::Match { fields: vec![field], op: op(ne), rhs })
        }
        _ => {
            let length: u32 = mask.iter().map(|b| b.count_ones()).sum();
            let net = IpNet::new(ip(data)?, u8::try_from(length).ok()?).ok()?;
            let straight = super::lower::mask(Family::of(net.addr()), net.prefix_len()) == mask;
            let rhs = Rhs::Value(KeyPart::Net(Cidr::new(net).ok()?));
            straight.then(|| Stmt::Match { fields: vec![field], op: op(ne), rhs })
        }
    }
}

/// A part of a set's key from the kernel's bytes.
pub fn key_part(kind: super::KeyType, data: &[u8]) -> Option<KeyPart> {
    use super::KeyType;
    Some(match kind {
        KeyType::Addr(Family::V4) => KeyPart::addr(ip(data.get(..4)?)?),
        KeyType::Addr(Family::V6) => KeyPart::addr(ip(data.get(..16)?)?),
        KeyType::EtherAddr => KeyPart::Mac(Mac(data.get(..6)?.try_into().ok()?)),
        KeyType::IfName => match name(data.get(..16)?)? {
            Rhs::Value(part) => part,
            _ => return None,
        },
        KeyType::InetProto => KeyPart::Proto(*data.first()?),
        KeyType::InetService => KeyPart::Port(u16::from_be_bytes(data.get(..2)?.try_into().ok()?)),
        KeyType::Mark => KeyPart::CtMark(u32::from_ne_bytes(data.get(..4)?.try_into().ok()?)),
    })
}
