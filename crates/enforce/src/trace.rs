//! What a table as the kernel has it makes of a packet: the rules one after the other, as far as they decide over
//! connections of pods.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use causeway_model::nft::{
    Element, ElementKey, Field, Hook, KeyPart, MatchOp, NftTable, Rhs, Stmt, Verdict, text,
};
use causeway_types::Family;

use crate::frame::UNTRACKED;

/// As deep as the kernel lets chains lead to others (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
/// `NF_CT_STATE_BIT`: out of place in its connection.
pub const INVALID: u32 = 1;
/// `NF_CT_STATE_BIT`: of a connection that both ends have taken part in.
pub const ESTABLISHED: u32 = 2;
/// `NF_CT_STATE_BIT`: the first of a connection.
pub const NEW: u32 = 8;
/// `NF_CT_STATE_BIT`: kept out of connection tracking.
pub const NO_CONNECTION: u32 = UNTRACKED;

/// A packet, and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who opened the connection.
    pub client: IpAddr,
    /// Who answers.
    pub server: IpAddr,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// The port of who answers.
    pub port: u16,
    /// The port of the client.
    pub client_port: u16,
    /// The state of the connection: one of the constants of this module.
    pub state: u32,
    /// It goes to the client.
    pub reply: bool,
    /// Of TCP: it asks for a connection.
    pub syn: bool,
}

impl Packet {
    fn tracked(&self) -> bool {
        self.state & (INVALID | NO_CONNECTION) == 0
    }

    /// Of the header: from, to, and their ports.
    fn header(&self) -> (IpAddr, IpAddr, u16, u16) {
        match self.reply {
            false => (self.client, self.server, self.client_port, self.port),
            true => (self.server, self.client, self.port, self.client_port),
        }
    }

    /// `Ok(None)`: the packet has no such field, and the rule ends.
    fn part(&self, field: Field) -> Result<Option<KeyPart>, Unknown> {
        let (from, to, sport, dport) = self.header();
        let ported = matches!(self.protocol, 6 | 17 | 132);
        let address = |ip: IpAddr, family| (Family::of(ip) == family).then(|| KeyPart::addr(ip));
        Ok(match field {
            Field::Saddr(f) => address(from, f),
            Field::Daddr(f) => address(to, f),
            Field::L4Proto => Some(KeyPart::Proto(self.protocol)),
            Field::Sport => ported.then_some(KeyPart::Port(sport)),
            Field::Dport => ported.then_some(KeyPart::Port(dport)),
            Field::TcpFlags => {
                (self.protocol == 6).then_some(KeyPart::Port(if self.syn { 2 } else { 16 }))
            }
            Field::CtState => Some(KeyPart::CtState(self.state)),
            // The first packet since the last change: all others of its connection pass as it does.
            Field::CtMark if self.tracked() => Some(KeyPart::CtMark(0)),
            Field::CtMark => None,
            Field::CtClient(_)
            | Field::CtServer(_)
            | Field::CtProtocol
            | Field::CtServerPort
            | Field::CtDirection
                if !self.tracked() =>
            {
                None
            }
            Field::CtClient(f) => address(self.client, f),
            Field::CtServer(f) => address(self.server, f),
            Field::CtProtocol => Some(KeyPart::Proto(self.protocol)),
            // Of ICMP the identifier.
            Field::CtServerPort => Some(KeyPart::Port(self.port)),
            Field::CtDirection => Some(KeyPart::CtDirection(u8::from(self.reply))),
            other => return Err(Unknown(format!("{other:?}"))),
        })
    }

    fn parts(&self, fields: &[Field]) -> Result<Option<Vec<KeyPart>>, Unknown> {
        let mut all = Vec::new();
        for field in fields {
            let Some(part) = self.part(*field)? else { return Ok(None) };
            all.push(part);
        }
        Ok(Some(all))
    }
}

/// Something in a table of which is not known here what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the table has something that Causeway does not put there: {}", self.0)
    }
}

impl std::error::Error for Unknown {}

/// What became of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// It was dropped.
    pub dropped: bool,
    /// The chains that it went through, with the rules and elements that led on.
    pub steps: Vec<String>,
}

enum End {
    Accept,
    Drop,
    /// Back to who called.
    Back,
}

/// What the chains of a hook make of a packet.
///
/// # Errors
/// When the table has something that is not known here.
pub fn trace(table: &NftTable, hook: Hook, packet: &Packet) -> Result<Trace, Unknown> {
    let mut steps = Vec::new();
    let dropped = walk(table, hook, packet, Some(&mut steps))?;
    Ok(Trace { dropped, steps })
}

/// Whether the chains of a hook let a packet pass.
///
/// # Errors
/// As [`trace`].
pub fn passes(table: &NftTable, hook: Hook, packet: &Packet) -> Result<bool, Unknown> {
    Ok(!walk(table, hook, packet, None)?)
}

/// As [`passes`], for a packet in whose time a transaction comes: it goes by the chains of `before`, and from the
/// look-up of this number on (0: the first) it finds the sets of `after`.
///
/// # Errors
/// As [`trace`].
pub fn passes_while(
    before: &NftTable,
    after: &NftTable,
    number: usize,
    hook: Hook,
    packet: &Packet,
) -> Result<bool, Unknown> {
    let mut walk = Walk { table: before, later: Some((after, number)), packet, steps: None };
    Ok(!walk.hook(hook)?)
}

/// Whether it is dropped.
fn walk(
    table: &NftTable,
    hook: Hook,
    packet: &Packet,
    steps: Option<&mut Vec<String>>,
) -> Result<bool, Unknown> {
    Walk { table, later: None, packet, steps }.hook(hook)
}

struct Walk<'a> {
    table: &'a NftTable,
    /// The table whose sets are asked after so many look-ups.
    later: Option<(&'a NftTable, usize)>,
    packet: &'a Packet,
    steps: Option<&'a mut Vec<String>>,
}

impl<'a> Walk<'a> {
    /// Whether the packet is dropped at a hook.
    fn hook(&mut self, hook: Hook) -> Result<bool, Unknown> {
        let of_hook = |base: &causeway_model::nft::Base| base.hook == hook;
        let chains = self.table.chains.iter();
        let mut chains: Vec<_> =
            chains.filter(|(_, c)| c.base.as_ref().is_some_and(of_hook)).collect();
        chains.sort_by_key(|(_, chain)| chain.base.as_ref().map(|base| base.priority));
        for (name, _) in chains {
            if let End::Drop = self.chain(name, 0)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn chain(&mut self, name: &str, depth: usize) -> Result<End, Unknown> {
        if depth >= DEEPEST {
            return Err(Unknown(format!("chains more than {DEEPEST} deep, at {name}")));
        }
        let table = self.table;
        let later = self.later.and_then(|(later, _)| later.chains.get(name));
        let chain = table.chains.get(name).or(later);
        let chain = chain.ok_or_else(|| Unknown(format!("no chain {name}")))?;
        'rules: for rule in &chain.rules {
            for stmt in &rule.stmts {
                let (verdict, element) = match stmt {
                    Stmt::Match { fields, op, rhs } => {
                        let Some(parts) = self.packet.parts(fields)? else { continue 'rules };
                        if self.equal(&parts, rhs)? != (*op == MatchOp::Eq) {
                            continue 'rules;
                        }
                        continue;
                    }
                    Stmt::Vmap { fields, map } => {
                        let Some(parts) = self.packet.parts(fields)? else { continue 'rules };
                        let found = find(self.elements(map)?, &parts);
                        match found.and_then(|(key, e)| Some((key, e, e.verdict.as_ref()?))) {
                            Some((key, e, verdict)) => (verdict, Some((map, key, e))),
                            None => continue 'rules,
                        }
                    }
                    Stmt::Verdict(verdict) => (verdict, None),
                    Stmt::Counter | Stmt::Limit { .. } | Stmt::Log { .. } | Stmt::CtMark { .. } => {
                        continue;
                    }
                    other => return Err(Unknown(format!("{other:?} in the chain {name}"))),
                };
                if let Some(steps) = &mut self.steps {
                    steps.push(match element {
                        Some((map, key, e)) => {
                            format!("{name}: {map} {{ {} }}", text::element(key, e))
                        }
                        None => format!("{name}: {}", text::rule(rule)),
                    });
                }
                match verdict {
                    Verdict::Accept => return Ok(End::Accept),
                    Verdict::Drop => return Ok(End::Drop),
                    Verdict::Return => return Ok(End::Back),
                    Verdict::Goto(to) => return self.chain(to, depth),
                    Verdict::Jump(to) => match self.chain(to, depth + 1)? {
                        End::Back => continue 'rules,
                        end => return Ok(end),
                    },
                }
            }
        }
        Ok(End::Back)
    }

    fn elements(&mut self, set: &str) -> Result<&'a BTreeMap<ElementKey, Element>, Unknown> {
        let table = match &mut self.later {
            Some((later, 0)) => later,
            Some((_, left)) => {
                *left -= 1;
                self.table
            }
            None => self.table,
        };
        let found = table.sets.get(set);
        found.map(|set| &set.elements).ok_or_else(|| Unknown(format!("no set {set}")))
    }

    fn equal(&mut self, parts: &[KeyPart], rhs: &Rhs) -> Result<bool, Unknown> {
        Ok(match (rhs, parts) {
            (Rhs::Set(set), parts) => find(self.elements(set)?, parts).is_some(),
            (Rhs::Value(KeyPart::CtState(bits)), [KeyPart::CtState(state)]) => bits & state != 0,
            (Rhs::Value(value), [part]) => part == value,
            (Rhs::Bits { mask, value }, [KeyPart::Port(port)]) => u32::from(*port) & mask == *value,
            (Rhs::Bits { mask, value }, [KeyPart::CtMark(mark)]) => mark & mask == *value,
            other => return Err(Unknown(format!("{other:?}"))),
        })
    }
}

fn find<'a>(
    all: &'a BTreeMap<ElementKey, Element>,
    parts: &[KeyPart],
) -> Option<(&'a ElementKey, &'a Element)> {
    let within = |(key, part): (&KeyPart, &KeyPart)| match (key, part) {
        (KeyPart::Net(net), KeyPart::Net(ip)) => net.contains(ip.addr()),
        (KeyPart::Ports(first, last), KeyPart::Port(port)) => (first..=last).contains(&port),
        (key, part) => key == part,
    };
    let found = all.get_key_value(parts);
    found.or_else(|| all.iter().find(|(key, _)| key.iter().zip(parts).all(within)))
}
