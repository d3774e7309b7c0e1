//! Labels, and what selects by them (`metav1.LabelSelector`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

/// A text that many objects have in common.
pub type Text = Arc<str>;

/// The labels of an object.
pub type Labels = BTreeMap<Text, Text>;

/// What an object's labels have to be like: all requirements are met. Without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: Text,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    In(BTreeSet<Text>),
    /// True as well where there is no such label.
    NotIn(BTreeSet<Text>),
    Exists,
    Absent,
}

impl Selector {
    /// Selects everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects what has all these labels.
    #[must_use]
    pub fn labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let is = |(key, value): (&str, &str)| Requirement {
            key: key.into(),
            test: Test::In(BTreeSet::from([value.into()])),
        };
        Self::of(labels.into_iter().map(is).collect())
    }

    /// In one order, whatever the order in which they were written: equal selectors are found to be equal.
    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        requirements.dedup();
        Self { requirements }
    }

    /// Selects everything, whatever labels there are.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Labels that whatever is selected has: by key, one of the values.
    pub(crate) fn labels_wanted(&self) -> impl Iterator<Item = (&Text, &BTreeSet<Text>)> {
        self.requirements.iter().filter_map(|requirement| match &requirement.test {
            Test::In(values) => Some((&requirement.key, values)),
            Test::NotIn(_) | Test::Exists | Test::Absent => None,
        })
    }

    /// Whether an object with such labels is selected.
    #[must_use]
    pub fn selects(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|v| values.contains(v)),
                Test::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

/// As `kubectl --selector` takes it; `everything` for the empty selector.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        for (i, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let list =
                |values: &BTreeSet<Text>| values.iter().map(|v| &**v).collect::<Vec<_>>().join(",");
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Test::In(values) => write!(f, "{key} in ({})", list(values))?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Test::Exists => f.write_str(key)?,
                Test::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// As `kubectl --selector` takes it: `app=web`, `env!=dev`, `tier in (a,b)`, `tier notin (a)`, `canary`,
/// `!canary`, with commas between them.
impl std::str::FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "label selector {text:?}: {part:?} is none of key=value, key!=value, key in (a,b), \
                 key notin (a,b), key, !key"
            )
        };
        let mut all = Vec::new();
        for part in parts(text) {
            let part = part.trim();
            let list = |values: &str| -> Option<BTreeSet<Text>> {
                let inner = values.trim().strip_prefix('(')?.strip_suffix(')')?;
                Some(inner.split(',').map(|v| v.trim().into()).collect())
            };
            let one = |value: &str| BTreeSet::from([Text::from(value.trim())]);
            let (key, test) = if let Some((key, value)) = part.split_once("!=") {
                (key, Test::NotIn(one(value)))
            } else if let Some((key, value)) = part.split_once('=') {
                (key, Test::In(one(value.strip_prefix('=').unwrap_or(value))))
            } else if let Some((key, values)) = part.split_once(" notin ") {
                (key, Test::NotIn(list(values).ok_or_else(|| wrong(part))?))
            } else if let Some((key, values)) = part.split_once(" in ") {
                (key, Test::In(list(values).ok_or_else(|| wrong(part))?))
            } else if let Some(key) = part.strip_prefix('!') {
                (key, Test::Absent)
            } else {
                (part, Test::Exists)
            };
            let key = key.trim();
            let is_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            if key.is_empty() || !key.chars().all(is_key) {
                return Err(wrong(part));
            }
            all.push(Requirement { key: key.into(), test });
        }
        Ok(Self::of(all))
    }
}

/// Splits at commas that are not within parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0u32;
    text.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

/// A selector as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Written {
    match_labels: Option<BTreeMap<Text, Text>>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Expression {
    key: Text,
    operator: String,
    values: Option<Vec<Text>>,
}

impl Written {
    /// # Errors
    /// What makes no sense in it, in words. The API refuses such selectors.
    pub(crate) fn read(self) -> Result<Selector, String> {
        let labels = self.match_labels.unwrap_or_default().into_iter();
        let mut all: Vec<Requirement> = labels
            .map(|(key, value)| Requirement { key, test: Test::In(BTreeSet::from([value])) })
            .collect();
        for Expression { key, operator, values } in self.match_expressions.unwrap_or_default() {
            let values: BTreeSet<Text> = values.unwrap_or_default().into_iter().collect();
            let test = match (operator.as_str(), values.is_empty()) {
                ("In", false) => Test::In(values),
                ("NotIn", false) => Test::NotIn(values),
                ("Exists", true) => Test::Exists,
                ("DoesNotExist", true) => Test::Absent,
                ("In" | "NotIn", true) => return Err(format!("{operator} of {key} wants values")),
                ("Exists" | "DoesNotExist", false) => {
                    return Err(format!("{operator} of {key} takes no values"));
                }
                _ => {
                    return Err(format!(
                        "operator {operator} of {key} is none of In, NotIn, Exists, DoesNotExist"
                    ));
                }
            };
            all.push(Requirement { key, test });
        }
        Ok(Selector::of(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<Selector, String> {
        serde_json::from_value::<Written>(value).unwrap().read()
    }

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn the_four_operators() {
        let (none, dev, prod) =
            (labels(&[]), labels(&[("env", "dev")]), labels(&[("env", "prod")]));
        let cases = [
            (
                json!({"key": "env", "operator": "In", "values": ["dev", "test"]}),
                [false, true, false],
            ),
            (
                json!({"key": "env", "operator": "NotIn", "values": ["dev", "test"]}),
                [true, false, true],
            ),
            (json!({"key": "env", "operator": "Exists"}), [false, true, true]),
            (json!({"key": "env", "operator": "DoesNotExist"}), [true, false, false]),
        ];
        for (expression, want) in cases {
            let selector = read(json!({"matchExpressions": [expression.clone()]})).unwrap();
            assert_eq!([&none, &dev, &prod].map(|l| selector.selects(l)), want, "{expression}");
        }
    }

    #[test]
    fn labels_and_expressions_are_all_to_be_met() {
        let selector = read(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["dev"]}],
        }))
        .unwrap();
        assert!(selector.selects(&labels(&[("app", "web")])));
        assert!(!selector.selects(&labels(&[("app", "web"), ("env", "dev")])));
        assert!(!selector.selects(&labels(&[("env", "prod")])));
        assert_eq!(selector.to_string(), "app=web,env!=dev");
    }

    #[test]
    fn empty_selects_everything() {
        for value in [json!({}), json!({"matchLabels": null, "matchExpressions": null})] {
            let selector = read(value).unwrap();
            assert!(selector.is_everything() && selector.selects(&labels(&[("a", "b")])));
        }
    }

    #[test]
    fn as_people_type_it() {
        for text in [
            "app=web",
            "app!=web",
            "tier in (a,b)",
            "tier notin (a,b)",
            "canary",
            "!canary",
            "a=b,c notin (d,e),example.com/f=",
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        assert_eq!("a == b , c in ( d )".parse::<Selector>().unwrap().to_string(), "a=b,c=d");
        for text in ["", "=b", "a in b", "a b", "a,,b", "!"] {
            assert!(text.parse::<Selector>().unwrap_err().contains("is none of"), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (expression, want) in [
            (json!({"key": "a", "operator": "In", "values": []}), "In of a wants values"),
            (
                json!({"key": "a", "operator": "Exists", "values": ["b"]}),
                "Exists of a takes no values",
            ),
            (json!({"key": "a", "operator": "Like"}), "operator Like of a is none of"),
        ] {
            let error = read(json!({"matchExpressions": [expression]})).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
