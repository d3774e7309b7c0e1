//! Programs, groups and sets of ports: what pods are under, kept once for all that are under the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::nft::{Element, ElementKey, KeyPart, KeyType, Set};
use causeway_policy::compile::{Holders, Program};
use causeway_policy::{Direction, PodName, Pods, PolicyName, PortSet, Text, Who};
use causeway_types::Family;

use super::{Done, Enforcer, Kept, Key, Left, To, Touched};
use crate::draft::Draft;
use crate::part::{self, Holds, Lists, Part, Usual};

impl Enforcer {
    /// Compiles programs anew of which a policy changed. Those of policies that are gone go when nobody has them.
    pub(super) fn recompile(&mut self, policies: &BTreeSet<PolicyName>) {
        if policies.is_empty() {
            return;
        }
        for key in self.programs_of(policies) {
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
            match kept.near(&program).filter(|_| name == kept.name) {
                Some(differ) => self.relist_all(&key, program, differ),
                None => {
                    let users = self.forget(&key).map(|kept| kept.users);
                    self.replace(&key, program, users.unwrap_or_default());
                }
            }
        }
    }

    /// The programs of which these policies are a part.
    fn programs_of(&self, policies: &BTreeSet<PolicyName>) -> Vec<Key> {
        let asks = |key: &&Key| key.policies.iter().any(|name| policies.contains(name));
        let spaces: Option<BTreeSet<&Text>> = policies.iter().map(PolicyName::namespace).collect();
        let Some(spaces) = spaces.filter(|_| self.world.cluster_policies().next().is_none()) else {
            return self.programs.keys().filter(asks).cloned().collect();
        };
        // All policies of a program are of one namespace, and programs of a namespace are beside each other.
        let of = |(direction, space): (Direction, &Text)| {
            let name = PolicyName::Network { namespace: space.clone(), name: "".into() };
            let from = Key { direction, policies: vec![name], ports: Vec::new() };
            let of_space = |key: &&Key| {
                let first = key.policies.first().and_then(PolicyName::namespace);
                key.direction == direction && first == Some(space)
            };
            let keys = self.programs.range(from..).map(|(key, _)| key);
            keys.take_while(of_space).filter(asks).cloned().collect::<Vec<Key>>()
        };
        let all = Direction::ALL.into_iter().flat_map(|d| spaces.iter().map(move |s| (d, *s)));
        all.flat_map(of).collect()
    }

    /// Keeps a program in the place of one of its key that was forgotten, and whose it was.
    fn replace(&mut self, key: &Key, program: Program, users: BTreeSet<PodName>) {
        self.keep(key, program, &users.iter().cloned().collect::<Vec<_>>());
        self.lead(key, users);
    }

    /// Leads pods to a program that was put in anew.
    fn lead(&mut self, key: &Key, users: BTreeSet<PodName>) {
        for user in &users {
            self.dispatch(user, key.direction, Some(To::Program(key)));
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
            let anew = |name: &PolicyName| touched.policies.contains(name);
            if !touched.policies.is_empty() && key.policies.iter().any(anew)
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

    /// Takes another program for one that differs in what it lists of these addresses, and for whom, alone.
    fn relist_all(&mut self, key: &Key, other: Program, differ: Vec<IpAddr>) {
        for ip in differ {
            self.list(key, ip, other.peers.get(ip).cloned());
        }
        self.programs.get_mut(key).expect("it is kept").program = other;
        self.ask_what_is_usual(key);
    }

    /// Makes a program anew that lacks a set, or if so many of its listed addresses have unusual sets of ports that it
    /// was made for others, or if a peer is to be in two sets for a moment and not all its pods were under it.
    fn ask_what_is_usual(&mut self, key: &Key) {
        let Some(kept) = self.programs.get(key) else { return };
        let was_here = |user| self.was_under(user, key.direction) == Some(key);
        let lent = self.lent.get(key) == Some(key) && !kept.users.iter().all(was_here);
        let asks = |kept: &&mut Kept| lent || kept.lacks || kept.others > kept.most_others;
        let Some(kept) = self.programs.get_mut(key).filter(asks) else { return };
        let must = lent || kept.lacks;
        if !must && Usual::of(&kept.program, self.sizes.few) == kept.usual {
            kept.most_others = kept.others * 2;
            return;
        }
        let Kept { program, users, .. } = self.forget(key).expect("it is kept");
        self.replace(key, program, users);
    }

    fn list(&mut self, key: &Key, ip: IpAddr, entry: Option<Arc<PortSet>>) {
        let kept = &self.programs[key];
        let by_element = |ports: &PortSet| kept.place(key.direction, ip, ports).1.verdict.is_some();
        if let Some((ports, by_element)) = entry.as_ref().map(|ports| (ports, by_element(ports))) {
            self.use_ports(key.direction, ports, 1, by_element);
        }
        let kept = self.programs.get_mut(key).expect("it is kept");
        let before = kept.program.peers.set(ip, entry.clone());
        let place = |ports: &Arc<PortSet>| kept.place(key.direction, ip, ports);
        let (was, now) = (before.as_ref().map(place), entry.as_ref().map(place));
        let other = |place: &Option<(Option<String>, Element)>| {
            place.as_ref().is_some_and(|(_, element)| element.verdict.is_some())
        };
        let by_element = other(&was);
        kept.others = kept.others + usize::from(other(&now)) - usize::from(by_element);
        kept.lacks |= matches!(now, Some((None, _)));
        let at = ElementKey::from(KeyPart::addr(ip));
        // What has no place is on its way to a program that has one.
        let there = |(set, element): (Option<String>, Element)| Some((set?, element));
        match (was.and_then(there), now.and_then(there)) {
            (Some((was, _)), Some((set, element))) if was != set => {
                self.draft.take_out_late(&was, at.clone());
                self.draft.put(&set, at, Some(element));
                // For a moment it may what it might before, too.
                self.lent.insert(key.clone(), key.clone());
            }
            (_, Some((set, element))) => self.draft.put(&set, at, Some(element)),
            (Some((was, _)), None) => self.draft.put(&was, at, None),
            (None, None) => {}
        }
        if let Some(ports) = before {
            self.leave_ports(key.direction, &ports, 1, by_element);
        }
    }

    /// Puts a program in, to which packets of these pods alone are led at first.
    pub(super) fn keep(&mut self, key: &Key, program: Program, users: &[PodName]) {
        // A set with more than it lists is taken from the one under which all of them are.
        let mut were = users.iter().map(|user| self.was_under(user, key.direction));
        let first = were.next().flatten();
        let from = first.filter(|first| were.all(|key| key == Some(*first))).cloned();
        let from = from.as_ref();
        let usual = Usual::of(&program, self.sizes.few);
        for pods in &program.groups {
            self.use_group(pods);
        }
        for (ports, count, by_elements) in part::ports_of(&program, &usual) {
            self.use_ports(key.direction, ports, count, by_elements);
        }
        let lists = Family::BOTH.map(|family| {
            let each = usual.in_family(family).iter();
            let usual_sets =
                each.map(|ports| self.put_usual(key, &program, (family, ports), from)).collect();
            let others = others(key.direction, &program, &usual, family);
            let mut put =
                |set, holds| self.put_list(key, &program.ranges, (family, holds, set), None, from);
            Lists {
                usual: usual_sets,
                others: (!others.elements.is_empty()).then(|| put(others, Holds::Listed)),
                ranges: part::ranges(key.direction, &program, family)
                    .into_iter()
                    .enumerate()
                    .map(|(number, set)| put(set, Holds::Ranges(number)))
                    .collect(),
            }
        });
        let maps = lists.iter().filter_map(|lists| lists.others.as_ref());
        let others: usize = maps.map(|map| self.table().sets[map].elements.len()).sum();
        let name = part::program_name(key.direction, key, &program, &usual, &lists);
        let most_others = (others * 2).max(self.sizes.few);
        let users = BTreeSet::new();
        let lacks = false;
        let families = Vec::new();
        let kept =
            Kept { name, program, usual, lists, others, most_others, lacks, users, families };
        self.programs.insert(key.clone(), kept);
    }

    /// The chain of a program for a family, which it has from now on.
    pub(super) fn chain(&mut self, key: &Key, family: Family) -> String {
        let kept = self.programs.get_mut(key).expect("it is kept");
        if !kept.families.contains(&family) {
            kept.families.push(family);
            let of = (family, &kept.usual, &kept.lists[number(family)]);
            add(&mut self.draft, part::program(&kept.name, key.direction, &kept.program, of));
        }
        part::program_chain(&kept.name, family)
    }

    /// Puts the set of the listed addresses with some ports into the table: one that another program has left, if it is
    /// the same, or holds a little more. Of that more it is true for a moment what was true before. Answers its name.
    fn put_usual(
        &mut self,
        key: &Key,
        program: &Program,
        (family, ports): (Family, &PortSet),
        from: Option<&Key>,
    ) -> String {
        let addresses = program.peers.with(family, ports);
        let some = addresses.len() / 4 + 8;
        let fits = |(name, left): (&String, &Left)| {
            let had = left.addresses.as_ref()?;
            let more = had.len().checked_sub(addresses.len())?;
            let may = more == 0 || more <= some && left.may_lend(Some(ports), from);
            (may && self.draft.is_gone(name)).then(|| surplus(had, &addresses))?
        };
        let all = self.left.iter().filter_map(|left| Some((fits(left)?, left.0.clone())));
        if let Some((surplus, name)) = all.min_by_key(|(surplus, _)| surplus.len()) {
            if let Some(from) = from.filter(|_| !surplus.is_empty()) {
                self.lent.insert(key.clone(), from.clone());
            }
            self.draft.take_back(&name, surplus.into_iter().map(|ip| KeyPart::addr(ip).into()));
            return name;
        }
        let elements = addresses.iter().map(|ip| (KeyPart::addr(*ip).into(), Element::default()));
        let set = Set { elements: elements.collect(), ..Set::of(KeyType::Addr(family), false) };
        self.put_list(key, &program.ranges, (family, Holds::Listed, set), Some(ports), from)
    }

    /// Puts a set of a program into the table, as [`Self::put_usual`] does: `ports` are those of the set, and in a map
    /// they are said with each address. Answers its name.
    fn put_list(
        &mut self,
        key: &Key,
        ranges: &BTreeMap<IpAddr, PortSet>,
        (family, holds, set): (Family, Holds, Set),
        ports: Option<&PortSet>,
        from: Option<&Key>,
    ) -> String {
        // Groups are not to be taken, and those whose addresses are at hand do not fit.
        let may = |name: &str, more: bool| {
            self.left.get(name).is_some_and(|left| {
                left.addresses.is_none() && (!more || left.may_lend(ports, from))
            })
        };
        if let Some(name) = self.draft.adopt(&set, may) {
            if let Some(from) = from {
                self.lent.insert(key.clone(), from.clone());
            }
            return name;
        }
        let is_free = |name: &str| self.draft.is_free(name);
        let name = part::list_name(key.direction, key, ranges, (family, holds, &set), is_free);
        self.draft.add_set(name.clone(), set);
        name
    }

    /// Sees to it that a program has nothing that is not for a pod which is about to be led there.
    pub(super) fn join(&mut self, key: &Key, pod: &PodName) {
        let lent = self.lent.get(key);
        if lent.is_none_or(|from| self.was_under(pod, key.direction) == Some(from)) {
            return;
        }
        if let Some(Kept { program, users, .. }) = self.forget(key) {
            self.keep(key, program, &[]);
            self.lead(key, users);
        }
    }

    /// Takes a program out, to which nothing may lead when the changes are taken. Answers it.
    pub(super) fn forget(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.programs.remove(key)?;
        self.lent.remove(key);
        for (family, lists) in Family::BOTH.into_iter().zip(&kept.lists) {
            let usual = lists.usual.iter().zip(kept.usual.in_family(family));
            let usual = usual.map(|(name, ports)| (name, Some(ports)));
            let rest = lists.others.iter().chain(&lists.ranges).map(|name| (name, None));
            for (name, ports) in usual.chain(rest) {
                let at_hand = || ports.filter(|_| self.draft.is_as_before(name));
                let left = || Left {
                    of: key.clone(),
                    ports: ports.cloned(),
                    addresses: at_hand().map(|ports| kept.program.peers.with(family, ports)),
                };
                // What it was for first is what the kernel has it for.
                self.left.entry(name.clone()).or_insert_with(left);
            }
        }
        let sets = kept.lists.iter().flat_map(Lists::names);
        sets.for_each(|set| self.draft.remove_set(set));
        let chains = Part::chains_of_program(&kept.name);
        chains.iter().for_each(|chain| self.draft.remove_chain(chain));
        for (ports, count, by_elements) in part::ports_of(&kept.program, &kept.usual) {
            self.leave_ports(key.direction, ports, count, by_elements);
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

    fn use_ports(&mut self, direction: Direction, ports: &PortSet, more: usize, by_element: bool) {
        if ports.is_all() || ports.is_none() {
            return;
        }
        let key = (direction, ports.clone());
        if by_element {
            let count = self.choices.entry(key.clone()).or_default();
            *count += more;
            if *count == more {
                add(&mut self.draft, part::choice(direction, ports));
            }
        }
        let count = self.ports.entry(key).or_default();
        *count += more;
        if *count == more {
            add(&mut self.draft, part::ports(direction, ports));
        }
    }

    fn leave_ports(
        &mut self,
        direction: Direction,
        ports: &PortSet,
        less: usize,
        by_element: bool,
    ) {
        let key = (direction, ports.clone());
        let choices = Some(&mut self.choices).filter(|_| by_element);
        for counts in [Some(&mut self.ports), choices].into_iter().flatten() {
            if let Some(count) = counts.get_mut(&key) {
                *count -= less;
            }
        }
    }

    /// Takes out what nobody needs any more.
    pub(super) fn sweep(&mut self) {
        for key in std::mem::take(&mut self.idle) {
            if self.programs.get(&key).is_some_and(|kept| kept.users.is_empty()) {
                self.forget(&key);
            }
        }
        for pods in unused(&mut self.groups) {
            for family in Family::BOTH {
                self.draft.remove_set(&part::group(&pods, family));
            }
        }
        for (direction, ports) in unused(&mut self.choices) {
            self.draft.remove_chain(&Part::choice_of_ports(direction, &ports));
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

impl Left {
    /// Whether a set with these ports, asked for pods that were all under this program, may be this one with a little
    /// more: of that more it is true for a moment what was true for them before.
    fn may_lend(&self, ports: Option<&PortSet>, to: Option<&Key>) -> bool {
        to == Some(&self.of) && self.ports.as_ref() == ports
    }
}

impl Kept {
    /// The addresses that another program lists otherwise than this one, if those are the lesser part and it has a place
    /// for each of them.
    fn near(&self, other: &Program) -> Option<Vec<IpAddr>> {
        let differ = self.program.peers.differences(&other.peers);
        let has_place = |ip: &IpAddr| {
            let family = Family::of(*ip);
            let usual = || self.usual.in_family(family);
            self.lists[number(family)].others.is_some()
                || other.peers.get(*ip).is_none_or(|ports| usual().contains(ports))
        };
        let near = differ.len() <= self.program.peers.len() / 2 && differ.iter().all(has_place);
        near.then_some(differ)
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

/// A map of the listed addresses of a family that have none of the usual sets of ports.
fn others(direction: Direction, program: &Program, usual: &Usual, family: Family) -> Set {
    let others = program.peers.without(family, usual.in_family(family)).into_iter();
    let elements = others.map(|(ip, ports)| {
        (KeyPart::addr(ip).into(), part::element(part::verdict(direction, ports)))
    });
    Set { elements: elements.collect(), ..Set::vmap(KeyType::Addr(family)) }
}

/// What one of two has more, both ascending; `None` where it lacks something of the other one.
fn surplus(had: &[IpAddr], wanted: &[IpAddr]) -> Option<Vec<IpAddr>> {
    let mut wanted = wanted.iter().peekable();
    let more = had.iter().filter(|ip| wanted.next_if(|wanted| wanted == ip).is_none()).copied();
    let more = more.collect();
    wanted.peek().is_none().then_some(more)
}

/// The place of a family in [`Kept::lists`]: as in [`Family::BOTH`].
fn number(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
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
