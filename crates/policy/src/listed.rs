//! Single addresses, each with the set of ports that it goes with. There may be very many addresses in very many of
//! these, with few sets.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_types::Family;

use crate::ports::PortSet;

/// Addresses, each with a set of ports.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Ascending, so those of IPv4 first.
    addresses: Vec<IpAddr>,
    /// For each of them its set, by number.
    which: Vec<u32>,
    /// Each set once, and how many addresses have it. One that none has is left until another takes its place.
    sets: Vec<(Arc<PortSet>, usize)>,
}

impl Listed {
    /// Of these addresses, each once, and each with the number of its set.
    pub(crate) fn of(mut all: Vec<(IpAddr, usize)>, sets: &[Arc<PortSet>]) -> Self {
        all.sort_unstable_by_key(|(ip, _)| *ip);
        let mut listed = Self {
            addresses: Vec::with_capacity(all.len()),
            which: Vec::with_capacity(all.len()),
            sets: sets.iter().map(|set| (set.clone(), 0)).collect(),
        };
        for (ip, set) in all {
            listed.addresses.push(ip);
            listed.which.push(u32::try_from(set).expect("sets of ports are fewer than addresses"));
            listed.sets[set].1 += 1;
        }
        listed.sets.shrink_to_fit();
        listed
    }

    /// How many addresses there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Whether an address is there.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// The set of an address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&Arc<PortSet>> {
        let at = self.addresses.binary_search(&address).ok()?;
        Some(self.set_at(at))
    }

    fn set_at(&self, at: usize) -> &Arc<PortSet> {
        &self.sets[self.which[at] as usize].0
    }

    /// The addresses, ascending, each with its set.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Arc<PortSet>)> {
        (0..self.len()).map(|at| (self.addresses[at], self.set_at(at)))
    }

    /// Each set with how many addresses have it, if any has.
    pub fn counts(&self) -> impl Iterator<Item = (&PortSet, usize)> {
        self.sets.iter().filter(|(_, count)| *count > 0).map(|(set, count)| (&**set, *count))
    }

    /// The same of the addresses of a family.
    #[must_use]
    pub fn counts_in(&self, family: Family) -> Vec<(&PortSet, usize)> {
        let mut counts = vec![0; self.sets.len()];
        self.which[self.in_family(family)].iter().for_each(|set| counts[*set as usize] += 1);
        let counted = self.sets.iter().zip(counts).filter(|(_, count)| *count > 0);
        counted.map(|((set, _), count)| (&**set, count)).collect()
    }

    fn in_family(&self, family: Family) -> std::ops::Range<usize> {
        let v6 = self.addresses.partition_point(IpAddr::is_ipv4);
        match family {
            Family::V4 => 0..v6,
            Family::V6 => v6..self.len(),
        }
    }

    /// The addresses of a family that have a set, ascending.
    #[must_use]
    pub fn with(&self, family: Family, ports: &PortSet) -> Vec<IpAddr> {
        let Some(set) = self.sets.iter().position(|(set, count)| *count > 0 && **set == *ports)
        else {
            return Vec::new();
        };
        let of = |at: &usize| self.which[*at] as usize == set;
        self.in_family(family).filter(of).map(|at| self.addresses[at]).collect()
    }

    /// The addresses of a family that have none of some sets, ascending, each with its own.
    #[must_use]
    pub fn without(&self, family: Family, ports: &[PortSet]) -> Vec<(IpAddr, &Arc<PortSet>)> {
        let left_out: Vec<bool> = self.sets.iter().map(|(set, _)| ports.contains(set)).collect();
        let others = self.in_family(family).filter(|at| !left_out[self.which[*at] as usize]);
        others.map(|at| (self.addresses[at], self.set_at(at))).collect()
    }

    /// Puts an address in with its set, in place of the one that it had, or takes it out. Answers what it had.
    pub fn set(&mut self, address: IpAddr, ports: Option<Arc<PortSet>>) -> Option<Arc<PortSet>> {
        let now = ports.map(|ports| self.number(ports));
        let found = self.addresses.binary_search(&address);
        if let Some(set) = now {
            self.sets[set as usize].1 += 1;
        }
        match (found, now) {
            (Ok(at), _) => {
                let before = self.which[at] as usize;
                match now {
                    Some(set) => self.which[at] = set,
                    None => {
                        self.addresses.remove(at);
                        self.which.remove(at);
                    }
                }
                self.sets[before].1 -= 1;
                Some(self.sets[before].0.clone())
            }
            (Err(at), Some(set)) => {
                self.addresses.insert(at, address);
                self.which.insert(at, set);
                None
            }
            (Err(_), None) => None,
        }
    }

    /// The number of a set, which is put in if it is not there.
    fn number(&mut self, ports: Arc<PortSet>) -> u32 {
        let known = self.sets.iter().position(|(set, _)| *set == ports);
        let at = known.or_else(|| self.sets.iter().position(|(_, count)| *count == 0));
        let at = at.unwrap_or(self.sets.len());
        match self.sets.get_mut(at) {
            Some((set, _)) if known.is_none() => *set = ports,
            Some(_) => {}
            None => self.sets.push((ports, 0)),
        }
        u32::try_from(at).expect("sets of ports are fewer than addresses")
    }

    /// The addresses that are only in one of two, or have another set there, ascending.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<IpAddr> {
        // Of each pair of sets that is met once.
        let mut equal: Vec<Option<(u32, bool)>> = vec![None; self.sets.len()];
        let mut same = |i: usize, j: usize| {
            let (a, b) = (self.which[i], other.which[j]);
            match equal[a as usize] {
                Some((with, same)) if with == b => same,
                _ => {
                    let same = self.set_at(i) == other.set_at(j);
                    equal[a as usize] = Some((b, same));
                    same
                }
            }
        };
        let (mut i, mut j, mut all) = (0, 0, Vec::new());
        loop {
            let (one, two) = (self.addresses.get(i), other.addresses.get(j));
            let order = match (one, two) {
                (Some(one), Some(two)) => one.cmp(two),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return all,
            };
            if order != Ordering::Equal || !same(i, j) {
                all.extend(if order == Ordering::Greater { two } else { one });
            }
            i += usize::from(order != Ordering::Greater);
            j += usize::from(order != Ordering::Less);
        }
    }
}

/// The same addresses with equal sets, whatever numbers these have.
impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.addresses == other.addresses && self.differences(other).is_empty()
    }
}

impl Eq for Listed {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ports::Protocol;

    fn set(n: u16) -> Arc<PortSet> {
        Arc::new(PortSet::of(Protocol::Tcp, n..=n))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = (0u8..20).prop_map(|n| IpAddr::from([10, 0, 0, n]));
        let v6 = (0u16..20).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
        prop_oneof![v4, v6]
    }

    fn check(listed: &Listed, model: &BTreeMap<IpAddr, Arc<PortSet>>) {
        let all: Vec<_> = listed.iter().map(|(ip, set)| (ip, set.clone())).collect();
        assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!((listed.len(), listed.is_empty()), (model.len(), model.is_empty()));
        let sets: Vec<PortSet> = (0..5).map(|n| (*set(n)).clone()).collect();
        for family in Family::BOTH {
            let of = |ip: &&IpAddr| Family::of(**ip) == family;
            for ports in &sets {
                let mine = model.iter().filter(|(ip, set)| of(ip) && ***set == *ports);
                let mine: Vec<IpAddr> = mine.map(|(ip, _)| *ip).collect();
                let counted = listed.counts_in(family).into_iter().find(|(set, _)| *set == ports);
                assert_eq!(counted.map_or(0, |(_, count)| count), mine.len());
                assert_eq!(listed.with(family, ports), mine);
            }
            let others = model.iter().filter(|(ip, set)| of(ip) && !sets[..2].contains(set));
            let others: Vec<_> = others.map(|(ip, set)| (*ip, set)).collect();
            assert_eq!(listed.without(family, &sets[..2]), others);
        }
        assert_eq!(listed.counts().map(|(_, count)| count).sum::<usize>(), model.len());
    }

    proptest! {
        /// As a map of addresses is, however it came about.
        #[test]
        fn as_a_map(
            first in prop::collection::hash_map(address(), 0usize..4, 0..30),
            changes in prop::collection::vec((address(), prop::option::of(0u16..5)), 0..40),
        ) {
            let sets: Vec<_> = (0..4).map(set).collect();
            let mut listed = Listed::of(first.clone().into_iter().collect(), &sets);
            let mut model: BTreeMap<_, _> = first.into_iter().map(|(ip, n)| (ip, sets[n].clone())).collect();
            check(&listed, &model);
            for (ip, to) in changes {
                let (old, before) = (listed.clone(), model.get(&ip).cloned());
                let to = to.map(set);
                prop_assert_eq!(listed.get(ip), before.as_ref());
                prop_assert_eq!(listed.contains(ip), before.is_some());
                prop_assert_eq!(listed.set(ip, to.clone()), before.clone());
                match &to {
                    Some(set) => model.insert(ip, set.clone()),
                    None => model.remove(&ip),
                };
                check(&listed, &model);
                let differ = if before == to { vec![] } else { vec![ip] };
                prop_assert_eq!(old.differences(&listed), differ.clone());
                prop_assert_eq!(listed.differences(&old), differ);
                prop_assert_eq!(old == listed, before == to);
            }
            let sets: Vec<_> = (0..5).rev().map(set).collect();
            let all = model.iter().map(|(ip, set)| (*ip, sets.iter().position(|s| s == set).unwrap()));
            prop_assert_eq!(&Listed::of(all.collect(), &sets), &listed);
        }
    }
}
