//! A kernel that takes transactions of nftables and judges packets, as far as tables of policies need it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::nft::{
    Chain, Element, Field, KeyPart, MatchOp, NftFamily, NftTable, Rhs, Stmt, Verdict,
};
use causeway_plan::NftOp;
use causeway_types::Family;

/// A packet of a connection that was seen before or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) client: IpAddr,
    pub(crate) server: IpAddr,
    pub(crate) protocol: u8,
    /// Of the server.
    pub(crate) port: u16,
    /// `NF_CT_STATE_BIT`.
    pub(crate) state: u32,
    /// It goes to the client.
    pub(crate) reply: bool,
    pub(crate) syn: bool,
    pub(crate) client_port: u16,
}

pub(crate) const ESTABLISHED: u32 = 2;
pub(crate) const NEW: u32 = 8;
pub(crate) const INVALID: u32 = 1;
pub(crate) const UNTRACKED: u32 = 64;

impl Packet {
    fn tracked(&self) -> bool {
        self.state & (INVALID | UNTRACKED) == 0
    }

    /// Of the header: from, to, and their ports.
    fn header(&self) -> (IpAddr, IpAddr, u16, u16) {
        match self.reply {
            false => (self.client, self.server, self.client_port, self.port),
            true => (self.server, self.client, self.port, self.client_port),
        }
    }

    /// `None`: the packet has no such field, and the rule ends.
    fn part(&self, field: Field) -> Option<KeyPart> {
        let (from, to, sport, dport) = self.header();
        let ported = [6, 17, 132].contains(&self.protocol);
        let address = |ip: IpAddr, family| (Family::of(ip) == family).then(|| KeyPart::addr(ip));
        match field {
            Field::Saddr(f) => address(from, f),
            Field::Daddr(f) => address(to, f),
            Field::L4Proto => Some(KeyPart::Proto(self.protocol)),
            Field::Sport => ported.then_some(KeyPart::Port(sport)),
            Field::Dport => ported.then_some(KeyPart::Port(dport)),
            Field::CtClient(f) if self.tracked() => address(self.client, f),
            Field::CtServer(f) if self.tracked() => address(self.server, f),
            Field::CtProtocol if self.tracked() => Some(KeyPart::Proto(self.protocol)),
            // Of ICMP the identifier.
            Field::CtServerPort if self.tracked() => Some(KeyPart::Port(self.port)),
            Field::CtDirection if self.tracked() => {
                Some(KeyPart::CtDirection(u8::from(self.reply)))
            }
            Field::CtState => Some(KeyPart::CtState(self.state)),
            Field::TcpFlags => {
                (self.protocol == 6).then_some(KeyPart::Port(if self.syn { 2 } else { 16 }))
            }
            Field::CtClient(_)
            | Field::CtServer(_)
            | Field::CtProtocol
            | Field::CtServerPort
            | Field::CtDirection => None,
            other => panic!("{other:?}"),
        }
    }
}

/// Does a transaction, or panics where the kernel would refuse it.
pub(crate) fn commit(kernel: &mut Option<NftTable>, ops: &[NftOp]) {
    for op in ops {
        if let NftOp::AddTable = op {
            assert!(kernel.is_none(), "there is a table");
            *kernel = Some(NftTable::new(NftFamily::Inet, "causeway_policy", true));
            continue;
        }
        if let NftOp::DelTable = op {
            assert!(kernel.take().is_some(), "there is no table");
            continue;
        }
        let table = kernel.as_mut().expect("there is a table");
        match op {
            NftOp::AddTable | NftOp::DelTable => {}
            NftOp::AddSet { name, set } => {
                assert!(set.elements.is_empty());
                assert!(table.sets.insert(name.clone(), set.clone()).is_none(), "{name} is there");
            }
            NftOp::DelSet { name } => {
                assert!(!asked(table, name), "{name} is asked");
                assert!(table.sets.remove(name).is_some(), "there is no {name}");
            }
            NftOp::AddChain { name, base } => {
                let chain = Chain { base: base.clone(), rules: Vec::new() };
                assert!(table.chains.insert(name.clone(), chain).is_none(), "{name} is there");
            }
            NftOp::FlushChain { name } => table.chains.get_mut(name).expect(name).rules.clear(),
            NftOp::DelChain { name } => {
                assert!(!led_to(table, name), "something leads to {name}");
                let chain = table.chains.remove(name).expect(name);
                assert!(chain.rules.is_empty());
            }
            NftOp::AddRule { chain, rule } => {
                for stmt in &rule.stmts {
                    match stmt {
                        Stmt::Match { rhs: Rhs::Set(set), .. } | Stmt::Vmap { map: set, .. } => {
                            assert!(table.sets.contains_key(set), "there is no {set}");
                        }
                        Stmt::Verdict(verdict) => there(table, verdict),
                        _ => {}
                    }
                }
                table.chains.get_mut(chain).expect(chain).rules.push(rule.clone());
            }
            NftOp::AddElements { set, of, elements } => {
                elements.values().filter_map(|e| e.verdict.as_ref()).for_each(|v| there(table, v));
                let found = table.sets.get_mut(set).unwrap_or_else(|| panic!("there is no {set}"));
                assert!(found.same_type(of));
                for (key, element) in elements {
                    let before = found.elements.insert(key.clone(), element.clone());
                    assert!(before.is_none(), "{key:?} is in {set}");
                }
            }
            NftOp::DelElements { set, elements, .. } => {
                let found = table.sets.get_mut(set).unwrap_or_else(|| panic!("there is no {set}"));
                for key in elements.keys() {
                    assert!(found.elements.remove(key).is_some(), "no {key:?} in {set}");
                }
            }
        }
    }
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

fn there(table: &NftTable, verdict: &Verdict) {
    if let Some(chain) = target(verdict) {
        assert!(table.chains.contains_key(chain), "there is no {chain}");
    }
}

fn asked(table: &NftTable, name: &str) -> bool {
    let stmts = table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.stmts);
    stmts.into_iter().any(|stmt| match stmt {
        Stmt::Match { rhs: Rhs::Set(set), .. } | Stmt::Vmap { map: set, .. } => set == name,
        _ => false,
    })
}

fn led_to(table: &NftTable, name: &str) -> bool {
    let elements = table.sets.values().flat_map(|s| s.elements.values());
    let of_elements = elements.filter_map(|e| e.verdict.as_ref());
    let stmts = table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.stmts);
    let of_rules = stmts.filter_map(|stmt| match stmt {
        Stmt::Verdict(verdict) => Some(verdict),
        _ => None,
    });
    of_elements.chain(of_rules).any(|verdict| target(verdict) == Some(name))
}

enum End {
    Accept,
    Drop,
    /// Back to who called.
    Back,
}

/// What a hook's chain makes of a packet.
pub(crate) fn passes(table: &NftTable, chain: &str, packet: &Packet) -> bool {
    !matches!(walk(table, chain, packet, 0), End::Drop)
}

fn walk(table: &NftTable, chain: &str, packet: &Packet, depth: usize) -> End {
    assert!(depth < 16, "the kernel allows 16 chains");
    'rules: for rule in &table.chains[chain].rules {
        for stmt in &rule.stmts {
            let verdict = match stmt {
                Stmt::Match { fields, op, rhs } => {
                    let parts: Option<Vec<KeyPart>> =
                        fields.iter().map(|f| packet.part(*f)).collect();
                    let Some(parts) = parts else { continue 'rules };
                    if equal(table, &parts, rhs) != (*op == MatchOp::Eq) {
                        continue 'rules;
                    }
                    continue;
                }
                Stmt::Vmap { fields, map } => {
                    let parts: Option<Vec<KeyPart>> =
                        fields.iter().map(|f| packet.part(*f)).collect();
                    let Some(parts) = parts else { continue 'rules };
                    match find(&table.sets[map].elements, &parts).and_then(|e| e.verdict.clone()) {
                        Some(verdict) => verdict,
                        None => continue 'rules,
                    }
                }
                Stmt::Verdict(verdict) => verdict.clone(),
                Stmt::Counter | Stmt::Limit { .. } | Stmt::Log { .. } => continue,
                other => panic!("{other:?}"),
            };
            match verdict {
                Verdict::Accept => return End::Accept,
                Verdict::Drop => return End::Drop,
                Verdict::Return => return End::Back,
                Verdict::Goto(to) => return walk(table, &to, packet, depth),
                Verdict::Jump(to) => match walk(table, &to, packet, depth + 1) {
                    End::Back => continue 'rules,
                    end => return end,
                },
            }
        }
    }
    End::Back
}

fn equal(table: &NftTable, parts: &[KeyPart], rhs: &Rhs) -> bool {
    match (rhs, parts) {
        (Rhs::Set(set), parts) => find(&table.sets[set].elements, parts).is_some(),
        (Rhs::Value(KeyPart::CtState(bits)), [KeyPart::CtState(state)]) => bits & state != 0,
        (Rhs::Value(value), [part]) => part == value,
        (Rhs::Bits { mask, value }, [KeyPart::Port(port)]) => port & mask == *value,
        other => panic!("{other:?}"),
    }
}

fn find<'a>(all: &'a BTreeMap<Vec<KeyPart>, Element>, parts: &[KeyPart]) -> Option<&'a Element> {
    let within = |(key, part): (&KeyPart, &KeyPart)| match (key, part) {
        (KeyPart::Net(net), KeyPart::Net(ip)) => net.contains(ip.addr()),
        (KeyPart::Ports(first, last), KeyPart::Port(port)) => (first..=last).contains(&port),
        (key, part) => key == part,
    };
    let found = all.get(parts);
    found.or_else(|| {
        all.iter().find(|(key, _)| key.iter().zip(parts).all(within)).map(|(_, element)| element)
    })
}
