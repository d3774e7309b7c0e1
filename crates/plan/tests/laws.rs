//! The laws of planning, on random nodes and the simulated kernel.

mod common;

use std::collections::BTreeSet;

use causeway_model::{Desired, Key, Object, Observed};
use causeway_plan::sim::SimKernel;
use causeway_plan::{Op, create, plan, withdraw};
use common::{World, foreign, keys, owner, start, world};
use proptest::prelude::*;

/// A kernel on which a world was built, and then some objects were deleted by hand.
fn built(old: &World, deleted: &[prop::sample::Index]) -> (SimKernel, BTreeSet<Key>) {
    let desired = old.desired();
    let mut kernel = SimKernel::holding(start());
    let first = plan(&desired, &kernel.state, &owner(BTreeSet::new(), true));
    assert_eq!(kernel.apply_all(&first.ops), vec![], "{:#?}", first.ops);
    let all: Vec<Key> = keys(&desired).into_iter().collect();
    for index in deleted {
        let key = index.get(&all);
        let op = kernel.state.get(key).cloned();
        match op {
            Some(Object::Sysctl(_)) | None => {}
            Some(Object::Table(_)) => {
                kernel.state.remove(key);
            }
            Some(object) => kernel.apply(&Op::Remove(object)).unwrap(),
        }
    }
    (kernel, keys(&desired))
}

fn holds(state: &Observed, desired: &Desired) -> Result<(), String> {
    for (key, entry) in desired.iter() {
        let have = state.get(key).ok_or_else(|| format!("{key} is missing"))?;
        if !entry.object.satisfied_by(have) {
            return Err(format!("{key}: {:?} instead of {:?}", have, entry.object));
        }
    }
    Ok(())
}

fn untouched(state: &Observed) -> Result<(), String> {
    foreign().iter().try_for_each(|object| match state.get(&object.key()) {
        Some(have) if have == object => Ok(()),
        have => Err(format!("{} of others became {have:?}", object.key())),
    })
}

/// A tunnel device takes packets only behind its filter, and the node forwards only with its
/// tables in place.
fn closed(state: &Observed) -> Result<(), String> {
    let up = |name: &str| {
        let key = Key::Link(common::name(name));
        matches!(state.get(&key), Some(Object::Link(l)) if l.up)
    };
    let sysctl = |path: &str| {
        let key = Key::Sysctl(path.into());
        matches!(state.get(&key), Some(Object::Sysctl(s)) if s.value == "1")
    };
    let filter = state.iter().any(|(_, o)| match o {
        Object::Table(t) => {
            t.name == "causeway" && t.chains.get("tunnel").is_some_and(|c| !c.rules.is_empty())
        }
        _ => false,
    });
    if up("cw-vxlan") && !filter {
        return Err("the tunnel is open".into());
    }
    if (sysctl("net/ipv4/ip_forward") || sysctl("net/ipv6/conf/all/forwarding")) && !filter {
        return Err("forwarding without the table".into());
    }
    Ok(())
}

fn deletions() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    proptest::collection::vec(any::<prop::sample::Index>(), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_node_as_desired_needs_nothing(w in world()) {
        let (kernel, recorded) = built(&w, &[]);
        let again = plan(&w.desired(), &kernel.state, &owner(recorded, true));
        prop_assert_eq!(again.ops, vec![]);
        prop_assert_eq!(again.conflicts, vec![]);
    }

    #[test]
    fn any_state_leads_to_the_desired_one(old in world(), new in world(), del in deletions()) {
        let (mut kernel, mut recorded) = built(&old, &del);
        let desired = new.desired();
        recorded.extend(keys(&desired));
        let p = plan(&desired, &kernel.state, &owner(recorded.clone(), true));
        prop_assert_eq!(kernel.apply_all(&p.ops), vec![], "{:#?}", p.ops);
        prop_assert_eq!(holds(&kernel.state, &desired), Ok(()));
        prop_assert_eq!(untouched(&kernel.state), Ok(()));
        for key in &recorded {
            let stays = matches!(key, Key::Sysctl(_))
                || matches!(key, Key::Table { name, .. } if name == "causeway_cni");
            if !stays && desired.get(key).is_none() {
                prop_assert!(kernel.state.get(key).is_none(), "{} is left over", key);
            }
        }
        let again = plan(&desired, &kernel.state, &owner(recorded, true));
        prop_assert_eq!(again.ops, vec![]);
    }

    #[test]
    fn nothing_is_removed_before_sync(old in world(), new in world()) {
        let (mut kernel, recorded) = built(&old, &[]);
        let before = kernel.state.clone();
        let p = plan(&new.desired(), &kernel.state, &owner(recorded, false));
        // A device with other parameters is made anew: that is a change, not a removal.
        let recreated = |op: &Op| matches!(op, Op::Remove(Object::Link(l)) if l.name.as_str() == "cw-vxlan");
        prop_assert!(p.ops.iter().all(|op| !matches!(op, Op::Remove(_)) || recreated(op)));
        let remade = p.ops.iter().any(recreated);
        kernel.apply_all(&p.ops);
        for (key, _) in before.iter() {
            let by_route = matches!(before.get(key), Some(Object::Route(r))
                if r.dev.as_ref().is_some_and(|d| d.as_str() == "cw-vxlan"));
            let gone_with_device = remade && (by_route || key.to_string().contains("cw-vxlan"));
            prop_assert!(gone_with_device || kernel.state.get(key).is_some(), "{} is gone", key);
        }
    }

    #[test]
    fn any_failed_operation_is_made_good(
        old in world(), new in world(), del in deletions(), at in any::<prop::sample::Index>()
    ) {
        let (mut kernel, mut recorded) = built(&old, &del);
        let desired = new.desired();
        recorded.extend(keys(&desired));
        let own = owner(recorded, true);
        let p = plan(&desired, &kernel.state, &own);
        prop_assume!(!p.ops.is_empty());
        kernel.done = 0;
        kernel.fail_at = Some(at.index(p.ops.len()));
        let failed = kernel.apply_all(&p.ops);
        prop_assert!(!failed.is_empty());
        // What stood on the failed operation may have failed too; another round makes all good.
        let p = plan(&desired, &kernel.state, &own);
        prop_assert_eq!(kernel.apply_all(&p.ops), vec![], "{:#?}", p.ops);
        prop_assert_eq!(holds(&kernel.state, &desired), Ok(()));
        prop_assert_eq!(untouched(&kernel.state), Ok(()));
    }

    #[test]
    fn no_prefix_opens_anything(old in world(), new in world()) {
        let (mut kernel, mut recorded) = built(&old, &[]);
        prop_assert_eq!(closed(&kernel.state), Ok(()));
        let desired = new.desired();
        recorded.extend(keys(&desired));
        let p = plan(&desired, &kernel.state, &owner(recorded, true));
        for op in &p.ops {
            kernel.apply(op).unwrap();
            prop_assert_eq!(closed(&kernel.state), Ok(()), "after {}", op);
        }
        // And from nothing.
        let mut kernel = SimKernel::holding(start());
        for op in plan(&desired, &kernel.state, &owner(BTreeSet::new(), true)).ops {
            kernel.apply(&op).unwrap();
            prop_assert_eq!(closed(&kernel.state), Ok(()), "after {}", op);
        }
    }

    #[test]
    fn withdrawing_takes_back_what_was_made(w in world()) {
        let desired = w.desired();
        let mut kernel = SimKernel::holding(start());
        prop_assert_eq!(kernel.apply_all(&create(&desired)), vec![]);
        kernel.apply_all(&withdraw(&desired));
        for (key, _) in desired.iter() {
            match kernel.state.get(key) {
                None | Some(Object::Sysctl(_)) => {}
                Some(Object::Table(t)) => {
                    prop_assert!(t.chains.values().all(|c| c.base.is_some()), "{:?}", t);
                    prop_assert!(t.sets.values().all(|s| s.elements.is_empty()), "{:?}", t);
                }
                Some(other) => prop_assert!(false, "{:?} is left", other),
            }
        }
        prop_assert_eq!(untouched(&kernel.state), Ok(()));
    }
}
