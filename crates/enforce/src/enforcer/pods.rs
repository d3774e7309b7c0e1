//! What pods that are attached here are under, and the ways there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::nft::{Element, KeyPart, Verdict};
use causeway_policy::{Direction, Pod, PodName, Policy, PortMatch, Ports};
use causeway_types::Family;

use super::{Done, Enforcer, Key, To, place};
use crate::frame::{self, Read};
use crate::part;

impl Enforcer {
    /// What is to be done about a pod in a direction.
    pub(super) fn wanted(&self, name: &PodName, direction: Direction) -> Done {
        let [ingress, egress] = self.wanted_of(name, &[direction]);
        match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        }
    }

    /// The same in some directions, and nothing in others.
    fn wanted_of(&self, name: &PodName, directions: &[Direction]) -> [Done; 2] {
        let mut done = [Done::Open, Done::Open];
        let Some(pod) = self.local.get(name) else {
            if self.world.policies_for(&name.namespace).any(|p| p.subject.is_some()) {
                done = [Done::Shut, Done::Shut];
            }
            return done;
        };
        let policies: Vec<&Policy> = self.world.policies_of(pod);
        for direction in directions {
            done[place(*direction)] = under(pod, &policies, *direction);
        }
        done
    }

    /// Brings pods under what they are to be under.
    pub(super) fn apply(&mut self, names: &BTreeSet<PodName>) {
        let mut moves: Vec<(&PodName, Direction, Done)> = Vec::new();
        for name in names {
            let Some(endpoint) = self.endpoints.get(name) else { continue };
            let all = self.wanted_of(name, &Direction::ALL);
            for (direction, wanted) in Direction::ALL.into_iter().zip(all) {
                if endpoint.done[place(direction)] != wanted {
                    moves.push((name, direction, wanted));
                }
            }
        }
        // Those that are left by all go first: others list the same.
        let left: BTreeSet<Key> =
            moves.iter().filter_map(|(name, direction, _)| self.leave(name, *direction)).collect();
        let mut users: BTreeMap<Key, Vec<PodName>> = BTreeMap::new();
        for (name, _, to) in &moves {
            if let Some(key) = to.program() {
                users.entry(key.clone()).or_default().push((*name).clone());
            }
        }
        let stay: BTreeSet<&Key> = moves.iter().filter_map(|(.., to)| to.program()).collect();
        for key in left.iter().filter(|key| !stay.contains(key)) {
            if self.programs.get(key).is_some_and(|kept| kept.users.is_empty()) {
                self.forget(key);
            }
        }
        for (name, direction, wanted) in moves {
            let to = match &wanted {
                Done::Open => None,
                Done::Shut => Some(To::Nothing),
                Done::Program(key) => {
                    if !self.programs.contains_key(key) {
                        let program = self.compile(name, direction);
                        let users = users.get(key).map(Vec::as_slice).unwrap_or_default();
                        self.keep(key, program.expect("policies say something of it"), users);
                    }
                    self.join(key, name);
                    let kept = self.programs.get_mut(key).expect("it is kept");
                    kept.users.insert(name.clone());
                    Some(To::Program(key))
                }
            };
            self.dispatch(name, direction, to);
            self.endpoints.get_mut(name).expect("it is attached").done[place(direction)] = wanted;
            self.isolate(name);
        }
    }

    /// Counts a pod among the users of its program no more. Answers which that is.
    fn leave(&mut self, name: &PodName, direction: Direction) -> Option<Key> {
        let key = self.endpoints.get(name)?.done[place(direction)].program().cloned();
        let before = self.before.entry((name.clone(), direction));
        before.or_insert_with(|| key.clone());
        let key = key?;
        if let Some(kept) = self.programs.get_mut(&key) {
            kept.users.remove(name);
            if kept.users.is_empty() {
                self.idle.insert(key.clone());
            }
        }
        Some(key)
    }

    /// Under which program a pod is in the kernel.
    pub(super) fn was_under(&self, name: &PodName, direction: Direction) -> Option<&Key> {
        if let Some(before) = self.before.get(&(name.clone(), direction)) {
            return before.as_ref();
        }
        self.endpoints.get(name)?.done[place(direction)].program()
    }

    /// Takes a pod out of all maps.
    pub(super) fn withdraw(&mut self, name: &PodName) {
        for direction in Direction::ALL {
            self.dispatch(name, direction, None);
            self.leave(name, direction);
            let Some(endpoint) = self.endpoints.get_mut(name) else { return };
            endpoint.done[place(direction)] = Done::Open;
        }
        self.isolate(name);
    }

    /// The addresses of a pod that is attached here, but those that another one has got since.
    pub(super) fn own(&self, name: &PodName) -> Vec<IpAddr> {
        let Some(endpoint) = self.endpoints.get(name) else { return Vec::new() };
        let own = |ip: &&IpAddr| self.world.holder(**ip).is_none_or(|holder| holder == name);
        endpoint.addresses.iter().filter(own).copied().collect()
    }

    /// Takes an address out of all maps: another pod has it now.
    pub(super) fn clear(&mut self, ip: IpAddr) {
        let (family, key) = (Family::of(ip), KeyPart::addr(ip));
        for direction in Direction::ALL {
            for read in Read::BOTH {
                self.draft.put(&frame::map(direction, family, read), key.clone().into(), None);
            }
        }
        self.draft.put(&frame::isolated(family), key.clone().into(), None);
        self.draft.take_out_late(&frame::itself(family), [key.clone(), key].into());
    }

    /// Leads a pod's packets somewhere, or past all.
    pub(super) fn dispatch(&mut self, name: &PodName, direction: Direction, to: Option<To<'_>>) {
        for ip in self.own(name) {
            let family = Family::of(ip);
            let chain = to.map(|to| match to {
                To::Program(key) => self.chain(key, family),
                To::Nothing => frame::deny(direction),
            });
            for read in Read::BOTH {
                let jump = |chain: &String| part::element(Verdict::Jump(read.side(chain)));
                let (set, element) =
                    (frame::map(direction, family, read), chain.as_ref().map(jump));
                self.draft.put(&set, KeyPart::addr(ip).into(), element);
            }
        }
    }

    /// Counts a pod among those with policies, or not.
    fn isolate(&mut self, name: &PodName) {
        let Some(endpoint) = self.endpoints.get(name) else { return };
        let open = endpoint.done == [Done::Open, Done::Open];
        for ip in self.own(name) {
            let (family, key) = (Family::of(ip), KeyPart::addr(ip));
            let element = (!open).then(Element::default);
            self.draft.put(&frame::isolated(family), key.clone().into(), element.clone());
            let (itself, pair) = (frame::itself(family), [key.clone(), key].into());
            match element {
                // It is asked last: by packets that are in a program which the pod leaves, too.
                None => self.draft.take_out_late(&itself, pair),
                some => self.draft.put(&itself, pair, some),
            }
        }
    }
}

/// What the policies that apply to a pod come to in a direction.
fn under(pod: &Pod, policies: &[&Policy], direction: Direction) -> Done {
    let says = || policies.iter().filter(|policy| policy.rules(direction).is_some());
    if says().next().is_none() {
        return Done::Open;
    }
    let named = |policy: &&Policy| {
        let rules = policy.rules(direction).unwrap_or_default();
        rules.iter().any(|rule| match &rule.ports {
            Ports::AnyOf(all) => all.iter().any(|one| matches!(one, PortMatch::Named { .. })),
            Ports::All => false,
        })
    };
    let mut ports = Vec::new();
    if direction == Direction::Ingress && says().any(named) {
        ports.clone_from(&pod.ports);
        ports.sort();
        ports.dedup();
    }
    let policies = says().map(|policy| policy.name.clone()).collect();
    Done::Program(Key { direction, policies, ports })
}
