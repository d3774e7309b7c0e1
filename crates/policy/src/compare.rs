//! All connections at once: who can reach whom, and what another set of policies would change.

use std::collections::BTreeMap;
use std::fmt;

use causeway_types::Family;

use crate::classes::{Class, classes};
use crate::ports::PortSet;
use crate::world::World;

/// By what one class may connect to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// From which.
    pub from: Class,
    /// To which.
    pub to: Class,
    /// By what, for the families that both have; of both where they do not differ.
    pub ports: Vec<(Option<Family>, PortSet)>,
}

/// What a change of policies does to connections between two classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From these.
    pub from: Vec<Class>,
    /// To this one.
    pub to: Class,
    /// By addresses of this family; `None`: of all that both have.
    pub family: Option<Family>,
    /// What was dropped and is allowed.
    pub allowed: PortSet,
    /// What was allowed and is dropped.
    pub dropped: PortSet,
}

/// Of each pair of classes of which one at least is of pods: by what the one may connect to the other.
#[must_use]
pub fn matrix(world: &World) -> Vec<Cell> {
    let all = classes(&[world]);
    each_pair(world, &all)
        .map(|(from, to, pairs)| {
            let ports = pairs.iter().map(|(a, b)| (Family::of(a.address), world.allowed(a, b)));
            Cell { from: from.clone(), to: to.clone(), ports: merged(ports.collect()) }
        })
        .collect()
}

type Pairs = Vec<(crate::Party, crate::Party)>;

fn each_pair<'a>(
    world: &'a World,
    all: &'a [Class],
) -> impl Iterator<Item = (&'a Class, &'a Class, Pairs)> {
    let apart = all.iter().flat_map(move |from| all.iter().map(move |to| (from, to)));
    apart.filter(|(from, to)| from.is_pods() || to.is_pods()).filter_map(move |(from, to)| {
        let (one, other) = from.ends(to, world)?;
        let pairs = one.pairs(&other);
        (!pairs.is_empty()).then_some((from, to, pairs))
    })
}

/// One entry where the families do not differ.
fn merged<T: PartialEq>(all: Vec<(Family, T)>) -> Vec<(Option<Family>, T)> {
    match all.as_slice() {
        [(_, a), (_, b)] if a == b => all.into_iter().take(1).map(|(_, t)| (None, t)).collect(),
        [_] => all.into_iter().map(|(_, t)| (None, t)).collect(),
        _ => all.into_iter().map(|(family, t)| (Some(family), t)).collect(),
    }
}

/// What becomes of connections when one world takes the place of another: those between ends that are in both.
#[must_use]
pub fn changes(before: &World, after: &World) -> Vec<Change> {
    let all = classes(&[before, after]);
    // By what changes, so that all for whom the same changes stand together.
    let mut found: Vec<Change> = Vec::new();
    let mut places: BTreeMap<(usize, Option<Family>, PortSet, PortSet), usize> = BTreeMap::new();
    for (from, to, pairs) in each_pair(after, &all) {
        let change = pairs.iter().map(|(a, b)| {
            let (was, is) = (before.allowed(a, b), after.allowed(a, b));
            (Family::of(a.address), (is.minus(&was), was.minus(&is)))
        });
        for (family, (allowed, dropped)) in merged(change.collect()) {
            if allowed.is_none() && dropped.is_none() {
                continue;
            }
            let at = all.iter().position(|class| std::ptr::eq(class, to)).unwrap_or_default();
            let key = (at, family, allowed.clone(), dropped.clone());
            match places.get(&key) {
                Some(place) => found[*place].from.push(from.clone()),
                None => {
                    places.insert(key, found.len());
                    let from = vec![from.clone()];
                    found.push(Change { from, to: to.clone(), family, allowed, dropped });
                }
            }
        }
    }
    found.sort_by(|a, b| a.to.members.cmp(&b.to.members));
    found
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        let by = self.family.map_or_else(String::new, |family| format!(" ({family})"));
        let mut first = true;
        for (word, ports) in [("dropped", &self.dropped), ("allowed", &self.allowed)] {
            if ports.is_none() {
                continue;
            }
            if !first {
                f.write_str("\n")?;
            }
            first = false;
            write!(f, "now {word}: {ports}{by} to {} from {}", self.to, from.join("; "))?;
        }
        Ok(())
    }
}
