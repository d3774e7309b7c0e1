//! The table as it is to be, and what is to be done to the kernel's for that: what changed, not what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use causeway_model::nft::{Chain, Element, ElementKey, KeyPart, NftTable, Set};
use causeway_plan::NftOp;

use crate::frame;

/// Elements that are put into new sets by one transaction: it is in memory twice.
const AT_ONCE: usize = 4096;
/// Of so few steps and elements that are new, what leads to them is part of the same transaction.
const FEW: usize = 1024;

/// Steps that the kernel is to take all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The steps.
    pub ops: Vec<NftOp>,
    /// Nothing leads yet to what it makes: a kernel that finds it too large can be given it bit by bit.
    pub prepares: bool,
}

/// A table with the changes since they were last taken.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    table: NftTable,
    new_sets: BTreeSet<String>,
    new_chains: BTreeSet<String>,
    gone_sets: BTreeMap<String, Set>,
    gone_chains: BTreeSet<String>,
    /// What the kernel's table has still, and nothing leads to any more, until [`Draft::tidy`].
    idle_sets: BTreeMap<String, Set>,
    idle_chains: BTreeSet<String>,
    /// Chains whose rules others changed.
    rewritten: BTreeSet<String>,
    /// What elements of older sets were before.
    elements: BTreeMap<(String, ElementKey), Option<Element>>,
    /// Of them those that go when all else is done.
    late: BTreeSet<(String, ElementKey)>,
    /// The number of the table's state: see [`frame`].
    state: u32,
    /// It is another one than that of the kernel's table.
    other_state: bool,
    /// Connections that were judged are to be judged anew.
    stale: bool,
    /// No table was found or made yet.
    first: bool,
}

impl Draft {
    /// `state`: the number of the table's first state, one that no table before had in the last days.
    pub(crate) fn new(state: u32) -> Self {
        let table = frame::table(frame::mark(state));
        Self {
            new_sets: table.sets.keys().cloned().collect(),
            new_chains: table.chains.keys().cloned().collect(),
            table,
            gone_sets: BTreeMap::new(),
            gone_chains: BTreeSet::new(),
            idle_sets: BTreeMap::new(),
            idle_chains: BTreeSet::new(),
            rewritten: BTreeSet::new(),
            elements: BTreeMap::new(),
            late: BTreeSet::new(),
            state,
            other_state: false,
            stale: true,
            first: true,
        }
    }

    /// What passed before may pass no more when the changes are done.
    pub(crate) fn judge_anew(&mut self) {
        self.stale = true;
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// States go on from that of a table that was found, if it is one of ours.
    fn go_on_from(&mut self, found: &NftTable) {
        let known = found.sets.get(frame::JUDGED).and_then(|set| set.elements.keys().next());
        let Some([KeyPart::CtMark(mark)]) = known.map(|key| &**key) else { return };
        if *mark != frame::mark(*mark) {
            return;
        }
        self.state = *mark;
        let mut own = frame::table(*mark);
        for name in [frame::JUDGE, frame::JUDGED] {
            if let Some(chain) = own.chains.remove(name) {
                self.table.chains.insert(name.to_owned(), chain);
            }
            if let Some(set) = own.sets.remove(name) {
                self.table.sets.insert(name.to_owned(), set);
            }
        }
    }

    /// The table's next state: connections that were judged by an earlier one are judged anew.
    fn advance(&mut self) {
        let old = frame::mark(self.state);
        self.state = self.state.wrapping_add(1);
        let new = frame::mark(self.state);
        self.put(frame::JUDGED, KeyPart::CtMark(old).into(), None);
        self.put(frame::JUDGED, KeyPart::CtMark(new).into(), Some(Element::default()));
        let chain = self.table.chains.get_mut(frame::JUDGE);
        if let Some(last) = chain.and_then(|chain| chain.rules.last_mut()) {
            *last = frame::mark_rule(new);
        }
        self.other_state = true;
    }

    pub(crate) fn table(&self) -> &NftTable {
        &self.table
    }

    /// Adds a set with its elements; one of its name is taken to be the same.
    pub(crate) fn add_set(&mut self, name: String, set: Set) {
        if self.table.sets.contains_key(&name) {
            return;
        }
        match self.gone_sets.remove(&name).or_else(|| self.idle_sets.remove(&name)) {
            None => {
                self.new_sets.insert(name.clone());
                self.table.sets.insert(name, set);
            }
            // It is still in the kernel.
            Some(old) => {
                let wanted = set.elements.clone();
                let stale: Vec<ElementKey> = old.elements.keys().cloned().collect();
                self.table.sets.insert(name.clone(), old);
                for key in stale.into_iter().filter(|key| !wanted.contains_key(key)) {
                    self.put(&name, key, None);
                }
                for (key, element) in wanted {
                    self.put(&name, key, Some(element));
                }
            }
        }
    }

    /// Takes one over that is gone since changes were last taken, and in the kernel is just this one, or has a little more,
    /// which is taken out late. `may`: whether one of this name may be taken, with nothing or with something more. Answers
    /// its name.
    pub(crate) fn adopt(&mut self, set: &Set, may: impl Fn(&str, bool) -> bool) -> Option<String> {
        let count = set.elements.len();
        let has_all = |gone: &Set| {
            let mut wanted = set.elements.iter().peekable();
            for element in &gone.elements {
                wanted.next_if(|wanted| *wanted == element);
            }
            wanted.peek().is_none()
        };
        let more = |gone: &Set| gone.elements.len().checked_sub(count);
        let fits = |(name, gone): &(&String, &Set)| {
            let some = count / 4 + 8;
            more(gone).is_some_and(|n| may(name, n > 0) && (n == 0 || n <= some && !set.interval))
                && set.same_type(gone)
                && has_all(gone)
        };
        let fitting = self.gone_sets.iter().filter(fits);
        let (name, gone) = fitting.min_by_key(|(_, gone)| more(gone))?;
        let keys = gone.elements.keys().filter(|key| !set.elements.contains_key(*key));
        let (name, surplus): (String, Vec<ElementKey>) = (name.clone(), keys.cloned().collect());
        self.take_back(&name, surplus);
        Some(name)
    }

    /// Takes a set over that is gone since changes were last taken, as it is in the kernel. `surplus` is taken out late.
    pub(crate) fn take_back(&mut self, name: &str, surplus: impl IntoIterator<Item = ElementKey>) {
        let Some(set) = self.gone_sets.remove(name) else { return };
        self.table.sets.insert(name.to_owned(), set);
        for key in surplus {
            self.take_out_late(name, key);
        }
    }

    /// Whether the kernel's table has a set that is not to be there any more.
    pub(crate) fn is_gone(&self, set: &str) -> bool {
        self.gone_sets.contains_key(set)
    }

    /// Whether the kernel's set of this name holds what the table's does.
    pub(crate) fn is_as_before(&self, set: &str) -> bool {
        !self.new_sets.contains(set) && self.changed_in(set).next().is_none()
    }

    /// Elements of a set that were changed since changes were last taken.
    fn changed_in(&self, set: &str) -> impl Iterator<Item = &(String, ElementKey)> {
        let first = (set.to_owned(), ElementKey::from([]));
        self.elements.range(first..).map(|(at, _)| at).take_while(move |(of, _)| of == set)
    }

    /// Whether neither the table nor the kernel's has a set of this name.
    pub(crate) fn is_free(&self, set: &str) -> bool {
        let kernel = [&self.gone_sets, &self.idle_sets];
        !self.table.sets.contains_key(set) && !kernel.iter().any(|sets| sets.contains_key(set))
    }

    /// Adds a chain; one of its name is taken to be the same.
    pub(crate) fn add_chain(&mut self, name: String, chain: Chain) {
        if !self.table.chains.contains_key(&name) {
            if !self.gone_chains.remove(&name) && !self.idle_chains.remove(&name) {
                self.new_chains.insert(name.clone());
            }
            self.table.chains.insert(name, chain);
        }
    }

    pub(crate) fn remove_set(&mut self, name: &str) {
        let Some(mut set) = self.table.sets.remove(name) else { return };
        if self.new_sets.remove(name) {
            return;
        }
        // What is in the kernel is what was before the changes.
        let changed: Vec<(String, ElementKey)> = self.changed_in(name).cloned().collect();
        for at in changed {
            let before = self.elements.remove(&at).flatten();
            match before {
                Some(element) => set.elements.insert(at.1, element),
                None => set.elements.remove(&at.1),
            };
        }
        self.gone_sets.insert(name.to_owned(), set);
    }

    pub(crate) fn remove_chain(&mut self, name: &str) {
        if self.table.chains.remove(name).is_some() && !self.new_chains.remove(name) {
            self.gone_chains.insert(name.to_owned());
        }
    }

    /// Puts an element into a set, in place of one of its key, or takes it out.
    pub(crate) fn put(&mut self, set: &str, key: ElementKey, element: Option<Element>) {
        let Some(value) = self.table.sets.get_mut(set) else { return };
        let before = value.elements.get(&key).cloned();
        if before == element {
            return;
        }
        match element {
            Some(element) => value.elements.insert(key.clone(), element),
            None => value.elements.remove(&key),
        };
        if !self.new_sets.contains(set) {
            self.elements.entry((set.to_owned(), key)).or_insert(before);
        }
    }

    /// Takes an element out by a transaction after that of all that was put in: it is on its way to another set, and
    /// a packet that has asked one of the two before and asks the other one behind would find it in none.
    pub(crate) fn take_out_late(&mut self, set: &str, key: ElementKey) {
        self.put(set, key.clone(), None);
        let at = (set.to_owned(), key);
        if self.elements.contains_key(&at) {
            self.late.insert(at);
        }
    }

    /// Whether anything changed since changes were last taken.
    pub(crate) fn has_changes(&self) -> bool {
        let names = [&self.new_sets, &self.new_chains, &self.gone_chains, &self.rewritten];
        let now = |(set, key): &(String, ElementKey)| self.table.sets.get(set)?.elements.get(key);
        self.stale
            || names.into_iter().any(|names| !names.is_empty())
            || !self.gone_sets.is_empty()
            || self.elements.iter().any(|(at, before)| before.as_ref() != now(at))
    }

    /// Hands out what has to be done for the changes, transaction by transaction, until one fails; from now on they
    /// count as done. What is new is there before anything leads to it, unless it is little: the kernel fills sets of
    /// ranges a moment after the transaction, and very many elements are put in bit by bit. What goes stays for
    /// [`Draft::tidy`]: a packet that is on its way through it would find its sets empty.
    pub(crate) fn take<E>(
        &mut self,
        each: impl FnMut(Transaction) -> Result<(), E>,
    ) -> Result<(), E> {
        self.hand_out(Vec::new(), true, each)
    }

    /// Whether the kernel's table has nothing to which nothing leads.
    pub(crate) fn is_tidy(&self) -> bool {
        self.idle_sets.is_empty() && self.idle_chains.is_empty()
    }

    /// Hands out what takes away what nothing leads to; it counts as done.
    pub(crate) fn tidy<E>(
        &mut self,
        each: impl FnOnce(Transaction) -> Result<(), E>,
    ) -> Result<(), E> {
        let (sets, chains) =
            (std::mem::take(&mut self.idle_sets), std::mem::take(&mut self.idle_chains));
        let flush = chains.iter().map(|chain| NftOp::FlushChain { name: chain.clone() });
        let mut ops: Vec<NftOp> = flush.collect();
        ops.extend(sets.into_keys().map(|name| NftOp::DelSet { name }));
        ops.extend(chains.into_iter().map(|name| NftOp::DelChain { name }));
        match ops.is_empty() {
            true => Ok(()),
            false => each(Transaction { ops, prepares: false }),
        }
    }

    /// As [`Draft::take`]. `first`: what the first transaction begins with. `may_join`: what is new, and little, may
    /// come by one transaction with what leads to it.
    fn hand_out<E>(
        &mut self,
        first: Vec<NftOp>,
        may_join: bool,
        mut each: impl FnMut(Transaction) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.stale {
            self.advance();
        }
        let changes = self.changes();
        let mut first = Some(first);
        let mut each = |mut ops: Vec<NftOp>, prepares| match ops.is_empty() {
            true => Ok(()),
            false => {
                ops.splice(0..0, first.take().into_iter().flatten());
                each(Transaction { ops, prepares })
            }
        };
        let Changes { new_sets, new_chains, mut second, third } = changes;
        let table = &self.table;
        let sets = new_sets.iter().filter_map(|name| table.sets.get_key_value(name));
        let chains = new_chains.iter().filter_map(|name| table.chains.get_key_value(name));
        let mut ops = Vec::new();
        let (mut elements, mut at_once) = (0, may_join);
        for (name, set) in sets.clone() {
            elements += set.elements.len();
            at_once &= !set.interval || set.elements.is_empty();
            ops.push(NftOp::AddSet { name: name.clone(), set: frame(set) });
        }
        for (name, chain) in chains.clone().filter(|(_, chain)| chain.base.is_none()) {
            ops.push(NftOp::AddChain { name: name.clone(), base: chain.base.clone() });
        }
        let mut room = AT_ONCE;
        for (name, set) in sets.filter(|(_, set)| !set.elements.is_empty()) {
            let mut rest = set.elements.iter();
            loop {
                let some = rest.by_ref().take(room).map(|(key, e)| (key.clone(), e.clone()));
                let elements: BTreeMap<ElementKey, Element> = some.collect();
                room -= elements.len();
                if !elements.is_empty() {
                    let (set, of) = (name.clone(), frame(set));
                    ops.push(NftOp::AddElements { set, of, elements });
                }
                if room > 0 {
                    break;
                }
                each(std::mem::take(&mut ops), true)?;
                room = AT_ONCE;
            }
        }
        for (name, chain) in chains.filter(|(_, chain)| chain.base.is_none()) {
            ops.extend(rules(name, chain));
        }
        if at_once && ops.len() + elements <= FEW {
            ops.append(&mut second);
        } else {
            each(std::mem::take(&mut ops), true)?;
            ops = second;
        }
        each(ops, false)?;
        each(third, false)
    }

    /// The changes, which count as done from now on.
    fn changes(&mut self) -> Changes {
        let table = &self.table;
        let chains = self.new_chains.iter().filter_map(|name| table.chains.get_key_value(name));
        let mut second = Vec::new();
        // A base chain counts from the moment it is there.
        for (name, chain) in chains.filter(|(_, chain)| chain.base.is_some()) {
            second.push(NftOp::AddChain { name: name.clone(), base: chain.base.clone() });
            second.extend(rules(name, chain));
        }
        let [out, into, late] = self.element_ops();
        second.extend(out);
        second.extend(into);
        second.extend(self.state_op());
        for (name, chain) in self.rewritten.iter().filter_map(|n| table.chains.get_key_value(n)) {
            second.push(NftOp::FlushChain { name: name.clone() });
            second.extend(rules(name, chain));
        }
        let mut third = late;
        if self.stale && !third.is_empty() {
            // What is true of an address may be another thing once it is in one set alone.
            self.elements.clear();
            self.advance();
            let [out, into, _] = self.element_ops();
            third.extend(out);
            third.extend(into);
            third.extend(self.state_op());
        }
        self.idle_sets.append(&mut self.gone_sets);
        self.idle_chains.append(&mut self.gone_chains);
        self.rewritten.clear();
        self.elements.clear();
        self.late.clear();
        (self.other_state, self.stale) = (false, false);
        let (new_sets, new_chains) = (&mut self.new_sets, &mut self.new_chains);
        let (new_sets, new_chains) = (std::mem::take(new_sets), std::mem::take(new_chains));
        Changes { new_sets, new_chains, second, third }
    }

    /// What makes the state that of the kernel's table too, but for elements.
    fn state_op(&self) -> Option<NftOp> {
        let made = |names: &BTreeSet<String>| names.contains(frame::JUDGE);
        let rule = frame::mark_rule(frame::mark(self.state));
        (self.other_state && !made(&self.new_chains) && !made(&self.rewritten))
            .then(|| NftOp::SetLastRule { chain: frame::JUDGE.to_owned(), rule })
    }

    /// Elements to be taken out, to be put in, and to be taken out late, by set.
    fn element_ops(&self) -> [Vec<NftOp>; 3] {
        type Some<'a> = BTreeMap<&'a str, BTreeMap<ElementKey, Element>>;
        let [mut out, mut into, mut late] = [Some::new(), Some::new(), Some::new()];
        for (at, before) in &self.elements {
            let (set, key) = at;
            let now = self.table.sets.get(set).and_then(|s| s.elements.get(key));
            if before.as_ref() == now {
                continue;
            }
            if let Some(before) = before {
                let out =
                    if now.is_none() && self.late.contains(at) { &mut late } else { &mut out };
                out.entry(set).or_default().insert(key.clone(), before.clone());
            }
            if let Some(now) = now {
                into.entry(set).or_default().insert(key.clone(), now.clone());
            }
        }
        let of = |set: &str| self.table.sets.get(set).map(frame);
        let delete = |some: Some<'_>| {
            let some = some.into_iter();
            some.filter_map(|(set, elements)| {
                Some(NftOp::DelElements { set: set.to_owned(), of: of(set)?, elements })
            })
            .collect()
        };
        let (out, late) = (delete(out), delete(late));
        let into = into.into_iter().filter_map(|(set, elements)| {
            Some(NftOp::AddElements { set: set.to_owned(), of: of(set)?, elements })
        });
        [out, into.collect(), late]
    }

    /// Hands out what has to be done to a table that was found so that it comes out as this one, as
    /// [`Draft::take`]; from then on all changes count as done. `None`: there is no table.
    pub(crate) fn repair<E>(
        &mut self,
        found: Option<NftTable>,
        mut each: impl FnMut(Transaction) -> Result<(), E>,
    ) -> Result<(), E> {
        self.elements.clear();
        self.late.clear();
        // What is to go is in what was found.
        self.idle_sets.clear();
        self.idle_chains.clear();
        if let (true, Some(found)) = (std::mem::take(&mut self.first), &found) {
            self.go_on_from(found);
        }
        let Some(found) = found else {
            self.all_new();
            self.stale = true;
            return self.hand_out(vec![NftOp::AddTable], false, each);
        };
        if !self.fits(&found) {
            // By one transaction, so that nothing passes in between; sets of ranges are filled a moment later.
            let mut ops = vec![NftOp::DelTable, NftOp::AddTable];
            self.all_new();
            self.stale = true;
            let all = |some: Transaction| {
                ops.extend(some.ops);
                Ok::<(), Infallible>(())
            };
            let Ok(()) = self.hand_out(Vec::new(), false, all);
            return each(Transaction { ops, prepares: false });
        }
        let table = &self.table;
        let absent = |all: &BTreeSet<String>, name: &String| !all.contains(name);
        let (sets, chains): (BTreeSet<String>, BTreeSet<String>) =
            (found.sets.keys().cloned().collect(), found.chains.keys().cloned().collect());
        self.new_sets = table.sets.keys().filter(|n| absent(&sets, n)).cloned().collect();
        self.new_chains = table.chains.keys().filter(|n| absent(&chains, n)).cloned().collect();
        let gone = found.sets.iter().filter(|(name, _)| !table.sets.contains_key(*name));
        self.gone_sets = gone.map(|(name, set)| (name.clone(), set.clone())).collect();
        self.gone_chains = chains.into_iter().filter(|n| !table.chains.contains_key(n)).collect();
        let differs = |(name, have): &(&String, &Chain)| {
            table.chains.get(*name).is_some_and(|want| want.rules != have.rules)
        };
        let rewritten = found.chains.iter().filter(differs).map(|(name, _)| name.clone());
        self.rewritten = rewritten.collect();
        for (name, have) in &found.sets {
            let Some(want) = table.sets.get(name) else { continue };
            let keys = have.elements.keys().chain(want.elements.keys());
            for key in keys.filter(|key| have.elements.get(*key) != want.elements.get(*key)) {
                let before = have.elements.get(key).cloned();
                self.elements.insert((name.clone(), key.clone()), before);
            }
        }
        // It may be large, and so may be what is done.
        drop(found);
        self.stale = self.has_changes();
        self.hand_out(Vec::new(), false, &mut each)?;
        self.tidy(each)
    }

    fn all_new(&mut self) {
        self.new_sets = self.table.sets.keys().cloned().collect();
        self.new_chains = self.table.chains.keys().cloned().collect();
        self.gone_sets.clear();
        self.gone_chains.clear();
    }

    /// Whether what is there of ours is as we make it, but for what sets hold.
    fn fits(&self, found: &NftTable) -> bool {
        let sets = found
            .sets
            .iter()
            .all(|(name, have)| self.table.sets.get(name).is_none_or(|want| want.same_type(have)));
        let chains = found.chains.iter().all(|(name, have)| match self.table.chains.get(name) {
            Some(want) => want.base == have.base,
            None => have.base.is_none(),
        });
        sets && chains
    }
}

/// What is new, by name, and what is done when that is there.
struct Changes {
    new_sets: BTreeSet<String>,
    new_chains: BTreeSet<String>,
    second: Vec<NftOp>,
    third: Vec<NftOp>,
}

fn rules(name: &str, chain: &Chain) -> impl Iterator<Item = NftOp> {
    let rules = chain.rules.iter();
    rules.map(|rule| NftOp::AddRule { chain: name.to_owned(), rule: rule.clone() })
}

fn frame(set: &Set) -> Set {
    // Not of a clone of the whole: a set may have very many elements.
    Set {
        key: set.key.clone(),
        vmap: set.vmap,
        data: set.data.clone(),
        interval: set.interval,
        elements: BTreeMap::new(),
    }
}
