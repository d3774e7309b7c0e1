//! Label selectors and field selectors, as query parameters and as objects.

use serde_json::Value;

use super::error::ApiError;

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Greater,
    Less,
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: Vec<String>) -> Self {
        Requirement { key: key.trim().to_string(), operator, values }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        let number =
            |v: &str| Some((v.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Greater => value.and_then(number).is_some_and(|(have, want)| have > want),
            Operator::Less => value.and_then(number).is_some_and(|(have, want)| have < want),
        }
    }
}

/// A label selector; the default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>5`.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let parts = split_outside_parentheses(text);
        let parsed: Option<Vec<_>> = parts.iter().map(|part| requirement(part)).collect();
        parsed.map(LabelSelector).ok_or_else(|| {
            ApiError::bad_request(format!("unable to parse label selector {text:?}"))
        })
    }

    /// Reads `matchLabels` and `matchExpressions` of a selector object (also node selector terms).
    /// An unknown operator makes a selector that selects nothing.
    pub fn from_object(selector: &Value) -> Self {
        let mut all = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            all.push(Requirement::new(
                key,
                Operator::In,
                vec![value.as_str().unwrap_or("").into()],
            ));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            all.push(from_expression(expression));
        }
        LabelSelector(all)
    }

    /// Whether an object with these labels (`metadata.labels`) is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|r| r.matches(labels.get(&r.key).and_then(Value::as_str)))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn from_expression(expression: &Value) -> Requirement {
    let values: Vec<String> = expression["values"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(Into::into))
        .collect();
    let (operator, values) = match expression["operator"].as_str().unwrap_or("") {
        "In" => (Operator::In, values),
        "NotIn" => (Operator::NotIn, values),
        "Exists" => (Operator::Exists, values),
        "DoesNotExist" => (Operator::DoesNotExist, values),
        "Gt" => (Operator::Greater, values),
        "Lt" => (Operator::Less, values),
        _ => (Operator::In, Vec::new()),
    };
    Requirement::new(expression["key"].as_str().unwrap_or(""), operator, values)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return label_key(key).then(|| Requirement::new(key, Operator::DoesNotExist, vec![]));
    }
    if let Some(set) = set_based(part) {
        return set;
    }
    for (sign, operator) in [
        ("!=", Operator::NotIn),
        ("==", Operator::In),
        ("=", Operator::In),
        (">", Operator::Greater),
        ("<", Operator::Less),
    ] {
        if let Some((key, value)) = part.split_once(sign) {
            let value = value.trim();
            let valid = label_key(key) && label_value(value);
            return valid.then(|| Requirement::new(key, operator, vec![value.to_string()]));
        }
    }
    label_key(part).then(|| Requirement::new(part, Operator::Exists, vec![]))
}

/// `key in (a,b)` or `key notin (a,b)`; the outer `None` says that it is no such form.
fn set_based(part: &str) -> Option<Option<Requirement>> {
    let mut words = part.splitn(2, char::is_whitespace);
    let (key, rest) = (words.next()?, words.next()?.trim());
    let (operator, list) = match (rest.strip_prefix("in"), rest.strip_prefix("notin")) {
        (_, Some(list)) => (Operator::NotIn, list),
        (Some(list), None) => (Operator::In, list),
        (None, None) => return None,
    };
    let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
    let values: Vec<String> = list.split(',').map(|v| v.trim().to_string()).collect();
    let valid = label_key(key) && values.iter().all(|v| label_value(v));
    Some(valid.then(|| Requirement::new(key, operator, values)))
}

fn label_key(key: &str) -> bool {
    let key = key.trim();
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

fn label_value(value: &str) -> bool {
    value.len() <= 63 && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A field selector: `metadata.name=a,status.phase!=Running`; the default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Parses the query form.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        text.split(',')
            .filter(|p| !p.is_empty())
            .map(field_term)
            .collect::<Result<_, _>>()
            .map(FieldSelector)
    }

    /// The condition that one field has one value.
    pub fn equals(path: &str, value: &str) -> Self {
        FieldSelector(vec![FieldTerm { path: path.into(), value: value.into(), equal: true }])
    }

    /// Refuses fields that a type does not select by.
    pub fn check(&self, allowed: impl Fn(&str) -> bool) -> Result<(), ApiError> {
        match self.0.iter().find(|term| !allowed(&term.path)) {
            None => Ok(()),
            Some(term) => {
                Err(ApiError::bad_request(format!("field label not supported: {}", term.path)))
            }
        }
    }

    /// Whether an object is selected; a field that is absent counts as empty.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| (field(object, &term.path) == term.value) == term.equal)
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn field_term(part: &str) -> Result<FieldTerm, ApiError> {
    for (sign, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((path, value)) = part.split_once(sign) {
            return Ok(FieldTerm { path: path.trim().into(), value: value.trim().into(), equal });
        }
    }
    Err(ApiError::bad_request(format!(
        "invalid field selector {part:?}; can't understand it, write path=value"
    )))
}

/// The text of a field by its dotted path; numbers and booleans in their JSON form.
fn field(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, key| value.get(key));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        // Booleans that are left out are false, and that is the only other thing selected by.
        _ if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_form_of_label_selector_is_understood() {
        let labels = json!({ "app": "web", "tier": "front", "weight": "7" });
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (api, web),tier notin (back)", true),
            ("app in (api)", false),
            ("missing notin (x)", true),
            ("app,!missing", true),
            ("!app", false),
            ("weight>6,weight<8", true),
            ("weight>7", false),
            ("example.com/a-b_c=", false),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(&labels), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["app in web", "a b", "=x", "a=b c", "app in (", "a=$"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        assert!(FieldSelector::parse("metadata.name").is_err());
    }

    #[test]
    fn fields_select_by_their_text() {
        let pod = json!({ "metadata": { "name": "web" }, "status": { "phase": "Running" }, "spec": { "hostNetwork": true } });
        for (text, expected) in [
            ("metadata.name=web,status.phase!=Failed", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("spec.hostNetwork=true", true),
            ("status.phase==Pending", false),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&pod), expected, "{text}");
        }
        assert!(
            FieldSelector::equals("spec.color", "red").check(|f| f == "metadata.name").is_err()
        );
    }

    #[test]
    fn selector_objects_combine_labels_and_expressions() {
        let selector = LabelSelector::from_object(&json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["back"] }],
        }));
        assert!(selector.matches(&json!({ "app": "web" })));
        assert!(!selector.matches(&json!({ "app": "web", "tier": "back" })));
        let odd = LabelSelector::from_object(
            &json!({ "matchExpressions": [{ "key": "a", "operator": "Like" }] }),
        );
        assert!(!odd.matches(&json!({ "a": "b" })));
    }

    proptest! {
        #[test]
        fn a_requirement_and_its_opposite_never_agree(key in "[a-z]{1,3}", value in "[a-z]{0,2}", have in prop::option::of("[a-z]{0,2}")) {
            let labels = have.map_or(json!({}), |have| json!({ key.clone(): have }));
            for (one, other) in [
                (format!("{key}={value}"), format!("{key}!={value}")),
                (format!("{key} in ({value})"), format!("{key} notin ({value})")),
                (key.clone(), format!("!{key}")),
            ] {
                let matches = |text: &str| LabelSelector::parse(text).unwrap().matches(&labels);
                prop_assert_ne!(matches(&one), matches(&other));
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = (LabelSelector::parse(&text), FieldSelector::parse(&text));
        }
    }
}
