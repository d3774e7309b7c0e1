//! Programs, groups and sets of ports: what pods are under, kept once for all that are under the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::nft::{Element, ElementKey, KeyPart, KeyType, Set};
use causeway_policy::compile::{Holders, Program};
use causeway_policy::{Direction, PodName, Pods, PolicyName, PortSet, Who};
use causeway_types::Family;

use super::{Done, Enforcer, Kept, Key, To, Touched};
use crate::draft::Draft;
use crate::part::{self, Holds, Lists, Part, Usual};

impl Enforcer {
    /// Compiles programs anew of which a policy changed. Those of policies that are gone go when nobody has them.
    pub(super) fn recompile(&mut self, policies: &BTreeSet<PolicyName>) {
        if policies.is_empty() {
            return;
        }
        let asks = |key: &Key| key.policies.iter().any(|name| policies.contains(name));
        let keys: Vec<Key> = self.programs.keys().filter(|key| asks(key)).cloned().collect();
        for key in keys {
            let wanted = Done::Program(key.clone());
            let still = |name: &&PodName| self.wanted(name, key.direction) == wanted;
            let user = self.programs[&key].users.iter().find(still).cloned();
            let compiled = user.and_then(|user| self.compile(&user, key.direction));
            let Some(program) = compiled else {
                // All its pods move to others.
                self.forget(&key);
                continue;
            };
            let kept = &self.programs[&key];
            let (usual, lists) = (&kept.usual, &kept.lists);
            let name = part::program_name(key.direction, &key, &program, usual, lists);
            match name == kept.name && kept.is_near(&program) {
                true => self.relist_all(&key, program),
                false => {
                    let users = self.forget(&key).map(|kept| kept.users);
                    self.replace(&key, program, users.unwrap_or_default());
                }
            }
        }
    }

    /// Keeps a program in the place of one of its key that was forgotten, and whose it was.
    fn replace(&mut self, key: &Key, program: Program, users: BTreeSet<PodName>) {
        self.keep(key, program);
        let to = To::Program(self.programs[key].name.clone());
        for user in &users {
            self.dispatch(user, key.direction, Some(&to));
        }
        self.programs.get_mut(key).expect("it is kept").users = users;
    }

    pub(super) fn compile(&self, user: &PodName, direction: Direction) -> Option<Program> {
        let pod = self.local.get(user)?;
        Program::of(&self.world.subject(pod), direction, self.sizes.many)
    }

    /// Lists addresses in programs as they are to be now.
    pub(super) fn relist(&mut self, touched: &Touched) {
        if touched.addresses.is_empty() {
            return;
        }
        let holders = Holders::of(&self.world, &touched.addresses);
        let mut changes = Vec::new();
        let mut idle = Vec::new();
        for (key, kept) in &self.programs {
            if key.policies.iter().any(|name| touched.policies.contains(name))
                || !kept.program.concerns(&self.world, &holders)
            {
                continue;
            }
            // One that stays: others leave it only later, and their policies are not these any more.
            let stays = |name: &&PodName| {
                !touched.endpoints.contains(*name)
                    || matches!(self.wanted(name, key.direction), Done::Program(of) if of == *key)
            };
            let user = kept.users.iter().find(stays);
            let Some(pod) = user.and_then(|name| self.local.get(name)) else {
                idle.push(key.clone());
                continue;
            };
            let subject = self.world.subject(pod);
            let differ = kept.program.changes(&subject, key.direction, &holders);
            if !differ.is_empty() {
                changes.push((key.clone(), differ));
            }
        }
        for key in idle {
            self.forget(&key);
        }
        for (key, differ) in changes {
            for (ip, entry) in differ {
                self.list(&key, ip, entry);
            }
            self.ask_what_is_usual(&key);
        }
    }

    /// Takes another program for one that differs in what it lists, and for whom, alone.
    fn relist_all(&mut self, key: &Key, other: Program) {
        let now = &self.programs[key].program.peers;
        let all: BTreeSet<IpAddr> = now.keys().chain(other.peers.keys()).copied().collect();
        let differ = all.into_iter().filter(|ip| now.get(ip) != other.peers.get(ip));
        for ip in differ.collect::<Vec<_>>() {
            self.list(key, ip, other.peers.get(&ip).cloned());
        }
        self.programs.get_mut(key).expect("it is kept").program = other;
        self.ask_what_is_usual(key);
    }

    /// Makes a program anew that lacks a set, or if so many of its listed addresses have unusual sets of ports that it
    /// was made for others.
    fn ask_what_is_usual(&mut self, key: &Key) {
        let asks = |kept: &&mut Kept| kept.lacks || kept.others > kept.most_others;
        let Some(kept) = self.programs.get_mut(key).filter(asks) else { return };
        if !kept.lacks && Usual::of(&kept.program, self.sizes.few) == kept.usual {
            kept.most_others = kept.others * 2;
            return;
        }
        let Kept { program, users, .. } = self.forget(key).expect("it is kept");
        self.replace(key, program, users);
    }

    fn list(&mut self, key: &Key, ip: IpAddr, entry: Option<Arc<PortSet>>) {
        if let Some(ports) = &entry {
            self.use_ports(key.direction, ports);
        }
        let kept = self.programs.get_mut(key).expect("it is kept");
        let before = match &entry {
            Some(ports) => kept.program.peers.insert(ip, ports.clone()),
            None => kept.program.peers.remove(&ip),
        };
        let place = |ports: &Arc<PortSet>| kept.place(key.direction, ip, ports);
        let (was, now) = (before.as_ref().map(place), entry.as_ref().map(place));
        let other = |place: &Option<(Option<String>, Element)>| {
            usize::from(place.as_ref().is_some_and(|(_, element)| element.verdict.is_some()))
        };
        kept.others = kept.others + other(&now) - other(&was);
        kept.lacks |= matches!(now, Some((None, _)));
        let at = ElementKey::from(KeyPart::addr(ip));
        // What has no place is on its way to a program that has one.
        let there = |(set, element): (Option<String>, Element)| Some((set?, element));
        match (was.and_then(there), now.and_then(there)) {
            (Some((was, _)), Some((set, element))) if was != set => {
                self.draft.take_out_late(&was, at.clone());
                self.draft.put(&set, at, Some(element));
            }
            (_, Some((set, element))) => self.draft.put(&set, at, Some(element)),
            (Some((was, _)), None) => self.draft.put(&was, at, None),
            (None, None) => {}
        }
        if let Some(ports) = before {
            self.leave_ports(key.direction, &ports);
        }
    }

    pub(super) fn keep(&mut self, key: &Key, program: Program) {
        let usual = Usual::of(&program, self.sizes.few);
        for pods in &program.groups {
            self.use_group(pods);
        }
        for ports in part::fixed_ports(&program, &usual).into_iter().chain(peers(&program)) {
            self.use_ports(key.direction, ports);
        }
        let lists = Family::BOTH.map(|family| {
            let (listed, others) = listed(key.direction, &program, &usual, family);
            let ranges = part::ranges(key.direction, &program, family);
            let mut put = |set, holds, ports| {
                self.put_list(key, &program.ranges, (family, holds, set), ports)
            };
            let listed = listed.into_iter().zip(usual.in_family(family));
            Lists {
                usual: listed.map(|(set, ports)| put(set, Holds::Listed, Some(ports))).collect(),
                others: (!others.elements.is_empty()).then(|| put(others, Holds::Listed, None)),
                ranges: ranges.into_iter().map(|set| put(set, Holds::Ranges, None)).collect(),
            }
        });
        let maps = lists.iter().filter_map(|lists| lists.others.as_ref());
        let others: usize = maps.map(|map| self.table().sets[map].elements.len()).sum();
        let name = part::program_name(key.direction, key, &program, &usual, &lists);
        add(&mut self.draft, part::program(&name, key.direction, &program, &usual, &lists));
        let most_others = (others * 2).max(self.sizes.few);
        let users = BTreeSet::new();
        let lacks = false;
        let kept = Kept { name, program, usual, lists, others, most_others, lacks, users };
        self.programs.insert(key.clone(), kept);
    }

    /// Puts a set of a program into the table: one that another program has left, if it is the same, or holds a little
    /// more. Of that more it is true for a moment what was true before: `ports` are those of the set. Answers its name.
    fn put_list(
        &mut self,
        key: &Key,
        ranges: &BTreeMap<IpAddr, PortSet>,
        (family, holds, set): (Family, Holds, Set),
        ports: Option<&PortSet>,
    ) -> String {
        // In a map ports are said with each address. Groups are not to be taken.
        let may = |name: &str, more: bool| {
            self.left.get(name).is_some_and(|of| !more || of.as_ref() == ports)
        };
        if let Some(name) = self.draft.adopt(&set, may) {
            return name;
        }
        let is_free = |name: &str| self.draft.is_free(name);
        let name = part::list_name(key.direction, key, ranges, (family, holds, &set), is_free);
        self.draft.add_set(name.clone(), set);
        name
    }

    /// Takes a program out, to which nothing may lead when the changes are taken. Answers it.
    pub(super) fn forget(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.programs.remove(key)?;
        for (family, lists) in Family::BOTH.into_iter().zip(&kept.lists) {
            let ports = kept.usual.in_family(family).iter().cloned().map(Some);
            let rest = lists.others.iter().chain(&lists.ranges).map(|name| (name, None));
            // What it was for first is what the kernel has it for.
            for (name, ports) in lists.usual.iter().zip(ports).chain(rest) {
                self.left.entry(name.clone()).or_insert(ports);
            }
        }
        let sets = kept.lists.iter().flat_map(Lists::names);
        sets.for_each(|set| self.draft.remove_set(set));
        let chains = Part::chains_of_program(&kept.name);
        chains.iter().for_each(|chain| self.draft.remove_chain(chain));
        let fixed = part::fixed_ports(&kept.program, &kept.usual).into_iter();
        for ports in fixed.chain(peers(&kept.program)) {
            self.leave_ports(key.direction, ports);
        }
        for pods in &kept.program.groups {
            if let Some(count) = self.groups.get_mut(pods) {
                *count -= 1;
            }
        }
        Some(kept)
    }

    fn use_group(&mut self, pods: &Pods) {
        let count = self.groups.entry(pods.clone()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        for family in Family::BOTH {
            let members = self.world.addresses_of(pods).filter(|ip| Family::of(*ip) == family);
            // One that several have is its first owner's.
            let members = members.filter(|ip| self.selects_at(pods, *ip));
            let elements = members.map(|ip| (KeyPart::addr(ip).into(), Element::default()));
            let elements = elements.collect();
            let set = Set { elements, ..Set::of(KeyType::Addr(family), false) };
            self.draft.add_set(part::group(pods, family), set);
        }
    }

    pub(super) fn selects_at(&self, pods: &Pods, ip: IpAddr) -> bool {
        let pod = match &self.world.at(ip).who {
            Who::Pod(name) => self.world.pod(name),
            Who::Node(_) | Who::Outside => None,
        };
        pod.is_some_and(|pod| self.world.selects(pods, pod))
    }

    fn use_ports(&mut self, direction: Direction, ports: &PortSet) {
        if ports.is_all() || ports.is_none() {
            return;
        }
        let count = self.ports.entry((direction, ports.clone())).or_default();
        *count += 1;
        if *count == 1 {
            add(&mut self.draft, part::ports(direction, ports));
        }
    }

    fn leave_ports(&mut self, direction: Direction, ports: &PortSet) {
        if let Some(count) = self.ports.get_mut(&(direction, ports.clone())) {
            *count -= 1;
        }
    }

    /// Takes out what nobody needs any more.
    pub(super) fn sweep(&mut self) {
        let idle = self.programs.iter().filter(|(_, kept)| kept.users.is_empty());
        for key in idle.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.forget(&key);
        }
        for pods in unused(&mut self.groups) {
            for family in Family::BOTH {
                self.draft.remove_set(&part::group(&pods, family));
            }
        }
        for (direction, ports) in unused(&mut self.ports) {
            for chain in Part::chains_of_ports(direction, &ports) {
                self.draft.remove_chain(&chain);
            }
            let other =
                Direction::ALL.into_iter().any(|d| self.ports.contains_key(&(d, ports.clone())));
            if !other {
                Part::sets_of_ports(&ports).iter().for_each(|set| self.draft.remove_set(set));
            }
        }
    }
}

impl Kept {
    /// Whether another program lists most of its addresses as this one, and has a place for the others here.
    fn is_near(&self, other: &Program) -> bool {
        let now = &self.program.peers;
        let mut differ = now.keys().filter(|ip| !other.peers.contains_key(ip)).count();
        for (ip, ports) in other.peers.iter().filter(|(ip, ports)| now.get(ip) != Some(ports)) {
            differ += 1;
            let family = Family::of(*ip);
            let lists = &self.lists[number(family)];
            if lists.others.is_none() && !self.usual.in_family(family).contains(ports) {
                return false;
            }
        }
        differ <= now.len() / 2
    }

    /// Where an address with a set of ports is listed, if there is such a set, and as what.
    fn place(
        &self,
        direction: Direction,
        ip: IpAddr,
        ports: &PortSet,
    ) -> (Option<String>, Element) {
        let family = Family::of(ip);
        let lists = &self.lists[number(family)];
        let number = self.usual.in_family(family).iter().position(|usual| usual == ports);
        match number {
            Some(number) => (Some(lists.usual[number].clone()), Element::default()),
            None => (lists.others.clone(), part::element(part::verdict(direction, ports))),
        }
    }
}

/// The listed addresses of a family: a set for each usual set of ports, and a map of all others.
fn listed(
    direction: Direction,
    program: &Program,
    usual: &Usual,
    family: Family,
) -> (Vec<Set>, Set) {
    let usual = usual.in_family(family);
    let mut sets = vec![Vec::new(); usual.len()];
    let mut others = Vec::new();
    // There may be very many addresses, with few sets of ports.
    let mut known: HashMap<*const PortSet, (Option<usize>, Element)> = HashMap::new();
    for (ip, ports) in program.peers.iter().filter(|(ip, _)| Family::of(**ip) == family) {
        let (number, element) = known.entry(Arc::as_ptr(ports)).or_insert_with(|| {
            match usual.iter().position(|usual| *usual == **ports) {
                Some(number) => (Some(number), Element::default()),
                None => (None, part::element(part::verdict(direction, ports))),
            }
        });
        let elements = number.map_or(&mut others, |number| &mut sets[number]);
        elements.push((KeyPart::addr(*ip).into(), element.clone()));
    }
    // Made of all at once, trees have no room that is empty.
    let filled = |set: Set, elements: Vec<(ElementKey, Element)>| Set {
        elements: elements.into_iter().collect(),
        ..set
    };
    let plain = |elements| filled(Set::of(KeyType::Addr(family), false), elements);
    let sets = sets.into_iter().map(plain).collect();
    let others = filled(Set::vmap(KeyType::Addr(family)), others);
    (sets, others)
}

/// The place of a family in [`Kept::lists`]: as in [`Family::BOTH`].
fn number(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

fn peers(program: &Program) -> impl Iterator<Item = &PortSet> {
    program.peers.values().map(|ports| &**ports)
}

/// Takes out what is counted to nothing.
fn unused<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>) -> Vec<K> {
    let none: Vec<K> =
        counts.iter().filter(|(_, n)| **n == 0).map(|(key, _)| key.clone()).collect();
    counts.retain(|_, n| *n > 0);
    none
}

/// Adds a part, as far as it is not there.
fn add(draft: &mut Draft, part: Part) {
    part.sets.into_iter().for_each(|(name, set)| draft.add_set(name, set));
    part.chains.into_iter().for_each(|(name, chain)| draft.add_chain(name, chain));
}
