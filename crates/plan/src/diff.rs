//! The comparison.

use std::collections::BTreeSet;

use causeway_model::nft::{NftTable, Verdict};
use causeway_model::{Desired, Key, LinkKind, Object, Observed};
use causeway_types::IfName;

use crate::dependency::{stage, stands_on, without_device};
use crate::nft::table_ops;
use crate::{NftOp, Op, Ownership, TableId};

/// What to do, and what cannot be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Operations in order.
    pub ops: Vec<Op>,
    /// Wishes that somebody else's object stands in the way of.
    pub conflicts: Vec<Conflict>,
    /// Wishes that wait for a pod interface which is not there.
    pub waiting: Vec<Key>,
    /// Wishes that somebody else's object already fulfils: a static route that leads the same way.
    pub fulfilled_by_others: Vec<Key>,
}

/// A wish that cannot be fulfilled without touching what is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is wanted.
    pub key: Key,
    /// What is in the way, and what to do about it.
    pub why: String,
}

/// Plans the way from what is to what should be.
///
/// Laws: the plan of a state that is already as desired is empty; applying the plan gives the
/// desired objects and leaves all that is not ours alone; planning again after any operation
/// failed leads to the same end.
pub fn plan(desired: &Desired, observed: &Observed, own: &Ownership) -> Plan {
    let mut plan = Plan::default();
    let mut observed = observed.clone();
    let absent = absent_veths(desired, &observed, own);
    let mut made: Vec<(u8, Op)> = recreate(desired, &mut observed, own);

    for (key, entry) in desired.iter() {
        let want = &entry.object;
        if absent.iter().any(|link| stands_on(want, link)) {
            plan.waiting.push(key.clone());
            continue;
        }
        if let Object::Table(table) = want {
            let table = absent.iter().fold(table.clone(), |t, link| without_device(&t, link));
            let have = match observed.get(key) {
                Some(Object::Table(have)) => Some(have),
                _ => None,
            };
            let ops = table_ops(&table, have);
            if !ops.is_empty() {
                made.push((stage(want), Op::Nft { table: TableId::of(&table), ops }));
            }
            continue;
        }
        match observed.get(key) {
            None => made.push((stage(want), Op::Create(want.clone()))),
            Some(have) if want.satisfied_by(have) => {}
            Some(have) => match own.foreign(want, have) {
                None => {
                    made.push((stage(want), Op::Change { from: have.clone(), to: want.clone() }))
                }
                Some(_) if leads_same_way(want, have) => {
                    plan.fulfilled_by_others.push(key.clone());
                }
                Some(why) => plan.conflicts.push(Conflict { key: key.clone(), why }),
            },
        }
    }
    made.sort_by_key(|(stage, op)| (*stage, !matches!(op, Op::Remove(_))));
    plan.ops = made.into_iter().map(|(_, op)| op).collect();
    plan.ops.extend(removals(desired, &observed, own));
    plan
}

/// The operations that make everything from nothing, in order.
pub fn create(desired: &Desired) -> Vec<Op> {
    plan(desired, &Observed::default(), &Ownership::plugin(causeway_types::names::ROUTE_PROTOCOL))
        .ops
}

/// The operations that take back what [`create`] of the same value made, in the reverse order:
/// what a plugin does on DEL. Kernel parameters stay; of shared tables, the ingress chains, the
/// elements and the plain chains named here go (each in a transaction of its own, because each
/// may be gone already, and a plain chain may still be in use by others).
pub fn withdraw(desired: &Desired) -> Vec<Op> {
    let mut ops: Vec<(u8, Op)> = Vec::new();
    for (_, entry) in desired.iter() {
        let at = stage(&entry.object);
        match &entry.object {
            Object::Sysctl(_) => {}
            Object::Table(table) => {
                ops.extend(withdraw_from(table).into_iter().map(|op| (at, op)));
            }
            object => ops.push((at, Op::Remove(object.clone()))),
        }
    }
    ops.sort_by_key(|(stage, _)| std::cmp::Reverse(*stage));
    ops.into_iter().map(|(_, op)| op).collect()
}

fn withdraw_from(table: &NftTable) -> Vec<Op> {
    let op = |ops| Op::Nft { table: TableId::of(table), ops };
    let elements =
        table.sets.iter().filter(|(_, set)| !set.elements.is_empty()).map(|(name, set)| {
            let mut of = set.clone();
            let elements = std::mem::take(&mut of.elements);
            op(vec![NftOp::DelElements { set: name.clone(), of, elements }])
        });
    let chains = table.chains.iter().filter(|(_, chain)| match &chain.base {
        None => true,
        Some(base) => base.device.is_some(),
    });
    let chains = chains.map(|(name, _)| {
        let name = name.clone();
        op(vec![NftOp::FlushChain { name: name.clone() }, NftOp::DelChain { name }])
    });
    elements.chain(chains).collect()
}

fn leads_same_way(want: &Object, have: &Object) -> bool {
    matches!((want, have), (Object::Route(want), Object::Route(have)) if want.leads_as(have))
}

/// Pod interfaces that are wanted, are not there, and are not ours to make.
fn absent_veths(desired: &Desired, observed: &Observed, own: &Ownership) -> BTreeSet<IfName> {
    let veth = |object: &Object| match object {
        Object::Link(l) if matches!(l.kind, LinkKind::Veth { .. }) => Some(l.name.clone()),
        _ => None,
    };
    desired
        .iter()
        .filter(|(key, _)| !own.makes_veths && observed.get(key).is_none())
        .filter_map(|(_, entry)| veth(&entry.object))
        .collect()
}

/// Removes devices of ours whose kind or fixed parameters are wrong. What stands on them goes
/// with them, so it is taken out of the observed state and comes back by the comparison.
fn recreate(desired: &Desired, observed: &mut Observed, own: &Ownership) -> Vec<(u8, Op)> {
    let mut ops = Vec::new();
    for (key, entry) in desired.iter() {
        let (Object::Link(want), Some(Object::Link(have))) = (&entry.object, observed.get(key))
        else {
            continue;
        };
        let have = Object::Link(have.clone());
        let wrong = matches!(&have, Object::Link(have) if !want.same_device(have));
        let makeable = own.makes_veths || !matches!(want.kind, LinkKind::Veth { .. });
        if wrong && makeable && own.foreign(&entry.object, &have).is_none() {
            let name = want.name.clone();
            observed.retain(|_, object| !stands_on(object, &name));
            // A tunnel goes before the table, which closes the new one and not the old one.
            let tunnel = matches!(&have, Object::Link(l) if l.kind.is_tunnel());
            ops.push((if tunnel { 0 } else { stage(&entry.object) }, Op::Remove(have)));
        }
    }
    ops
}

fn removals(desired: &Desired, observed: &Observed, own: &Ownership) -> Vec<Op> {
    let mut gone: Vec<(u8, Op)> = own
        .recorded
        .iter()
        .filter(|key| desired.get(key).is_none())
        .filter_map(|key| observed.get(key).map(|have| (key, have)))
        .filter(|(key, have)| own.removable(key, have, observed))
        .map(|(_, have)| {
            let op = match have {
                Object::Table(t) => Op::Nft { table: TableId::of(t), ops: vec![NftOp::DelTable] },
                object => Op::Remove(object.clone()),
            };
            (stage(have), op)
        })
        .collect();
    gone.sort_by_key(|(stage, _)| std::cmp::Reverse(*stage));
    gone.into_iter().map(|(_, op)| op).collect()
}

/// Names of the chains that a verdict leads to.
pub(crate) fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}
