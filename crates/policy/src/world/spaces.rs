//! Namespaces, by name and by what they are labelled with: selectors of namespaces are asked with each policy that
//! changes, and there may be very many namespaces.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::labels::{Labels, Selector, Text};

/// The namespaces that are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Spaces {
    all: BTreeMap<Text, Labels>,
    /// Their names, by key and value of each label.
    labelled: HashMap<Text, HashMap<Text, BTreeSet<Text>>>,
}

impl Spaces {
    pub(super) fn get(&self, name: &str) -> Option<&Labels> {
        self.all.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Text, &Labels)> {
        self.all.iter()
    }

    pub(super) fn set(&mut self, name: Text, labels: Labels) {
        self.remove(&name);
        for (key, value) in &labels {
            let values = self.labelled.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(name.clone());
        }
        self.all.insert(name, labels);
    }

    pub(super) fn remove(&mut self, name: &str) {
        for (key, value) in self.all.remove(name).unwrap_or_default() {
            let Some(values) = self.labelled.get_mut(&key) else { continue };
            if let Some(names) = values.get_mut(&value) {
                names.remove(name);
                if names.is_empty() {
                    values.remove(&value);
                }
            }
            if values.is_empty() {
                self.labelled.remove(&key);
            }
        }
    }

    /// The names of those that are selected, each once. It costs what there is of the rarest label that is asked for.
    pub(super) fn selected(&self, selector: &Selector) -> Vec<&Text> {
        let of = |(key, values): (&Text, &BTreeSet<Text>)| -> Vec<&BTreeSet<Text>> {
            let known = self.labelled.get(key);
            known
                .map_or_else(Vec::new, |known| values.iter().filter_map(|v| known.get(v)).collect())
        };
        let some = selector.labels_wanted().map(of);
        let count =
            |names: &Vec<&BTreeSet<Text>>| names.iter().map(|names| names.len()).sum::<usize>();
        match some.min_by_key(count) {
            Some(names) => {
                let names = names.into_iter().flatten();
                names.filter(|name| selector.selects(&self.all[*name])).collect()
            }
            None => {
                let all = self.all.iter().filter(|(_, labels)| selector.selects(labels));
                all.map(|(name, _)| name).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Text> {
        prop::sample::select(vec!["a", "b", "c"]).prop_map(Text::from)
    }

    fn selector() -> impl Strategy<Value = String> {
        let one = prop_oneof![
            (text(), text()).prop_map(|(k, v)| format!("{k}={v}")),
            (text(), text()).prop_map(|(k, v)| format!("{k}!={v}")),
            (text(), text(), text()).prop_map(|(k, v, w)| format!("{k} in ({v},{w})")),
            (text(), text(), text()).prop_map(|(k, v, w)| format!("{k} notin ({v},{w})")),
            text().prop_map(|k| k.to_string()),
            text().prop_map(|k| format!("!{k}")),
        ];
        prop::collection::vec(one, 1..4).prop_map(|all| all.join(","))
    }

    proptest! {
        /// What is found by labels is what is found by looking at all, after any changes.
        #[test]
        fn as_when_all_are_looked_at(
            changes in prop::collection::vec(
                (text(), prop::option::of(prop::collection::btree_map(text(), text(), 0..3))), 0..20),
            selectors in prop::collection::vec(selector(), 1..8),
        ) {
            let mut spaces = Spaces::default();
            for (name, labels) in changes {
                match labels {
                    Some(labels) => spaces.set(name, labels),
                    None => spaces.remove(&name),
                }
            }
            for selector in selectors {
                let selector: Selector = selector.parse().unwrap();
                let mut found = spaces.selected(&selector);
                found.sort();
                let all = spaces.iter().filter(|(_, labels)| selector.selects(labels));
                prop_assert_eq!(found, all.map(|(name, _)| name).collect::<Vec<_>>());
            }
            let names: BTreeSet<&Text> = spaces.labelled.values().flat_map(HashMap::values).flatten().collect();
            prop_assert!(names.iter().all(|name| spaces.get(name).is_some()));
        }
    }
}
