//! A kernel that takes transactions of nftables, as far as tables of policies need it.

use causeway_model::nft::{Chain, KeyPart, NftFamily, NftTable, Rhs, Stmt, Verdict};
use causeway_plan::NftOp;

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
            NftOp::SetLastRule { chain, rule } => {
                *table.chains.get_mut(chain).expect(chain).rules.last_mut().expect(chain) =
                    rule.clone();
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

/// The mark that connections get whose packets pass, and that lets them pass from then on.
pub(crate) fn mark(table: &NftTable) -> u32 {
    let last = table.chains["judge"].rules.last().unwrap();
    let [Stmt::CtMark { mark }] = last.stmts[..] else { panic!("{last:?}") };
    let known: Vec<_> = table.sets["judged"].elements.keys().collect();
    assert!(matches!(&known[..], [key] if key[..] == [KeyPart::CtMark(mark)]), "{known:?} {mark}");
    mark
}

/// The table but for that mark, which differs from one enforcer to the other.
pub(crate) fn without_mark(table: &NftTable) -> NftTable {
    let mut table = table.clone();
    table.sets.get_mut("judged").unwrap().elements.clear();
    table.chains.get_mut("judge").unwrap().rules.pop();
    table
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
