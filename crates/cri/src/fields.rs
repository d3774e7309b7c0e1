//! Reading an object of Kubernetes to the last field: what nobody asked for is an error.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// The fields of an object that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    at: String,
    left: Map<String, Value>,
}

impl Fields {
    /// Those of an object at a place.
    pub(crate) fn of(value: Value, at: impl Into<String>) -> Result<Self> {
        let at = at.into();
        match value {
            Value::Object(left) => Ok(Self { at, left }),
            other => bail!("{at}: {other} is no object"),
        }
    }

    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// Takes a field that may be missing.
    pub(crate) fn maybe(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name)
    }

    /// Takes a field.
    pub(crate) fn value(&mut self, name: &str) -> Result<Value> {
        self.maybe(name).with_context(|| format!("{}.{name} is missing", self.at))
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<String> {
        match self.value(name)? {
            Value::String(text) => Ok(text),
            other => bail!("{}.{name}: {other} is no text", self.at),
        }
    }

    /// A boolean; false when it is missing.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool> {
        match self.maybe(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => bail!("{}.{name}: {other} is no boolean", self.at),
        }
    }

    /// A number, or what stands for a missing one.
    pub(crate) fn number(&mut self, name: &str, missing: i64) -> Result<i64> {
        match self.maybe(name) {
            None => Ok(missing),
            Some(value) => {
                value.as_i64().with_context(|| format!("{}.{name}: {value} is no number", self.at))
            }
        }
    }

    /// A list; empty when it is missing.
    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        match self.maybe(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => bail!("{}.{name}: {other} is no list", self.at),
        }
    }

    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => bail!("{}.{name}: {other} is no text", self.at),
        };
        let list = match self.left.remove(name) {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => bail!("{}.{name}: {other} is no list", self.at),
        };
        list.into_iter().map(text).collect()
    }

    /// The objects of a list.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Vec<Fields>> {
        let at = format!("{}.{name}", self.at);
        let list = self.list(name)?.into_iter().enumerate();
        list.map(|(i, value)| Fields::of(value, format!("{at}[{i}]"))).collect()
    }

    /// The object in a field.
    pub(crate) fn object(&mut self, name: &str) -> Result<Fields> {
        let value = self.value(name)?;
        Fields::of(value, format!("{}.{name}", self.at))
    }

    /// The object in a field that may be missing.
    pub(crate) fn maybe_object(&mut self, name: &str) -> Result<Option<Fields>> {
        let at = format!("{}.{name}", self.at);
        self.maybe(name).map(|value| Fields::of(value, at)).transpose()
    }

    /// A map of texts; empty when it is missing.
    pub(crate) fn map(&mut self, name: &str) -> Result<std::collections::HashMap<String, String>> {
        let Some(fields) = self.maybe_object(name)? else { return Ok(Default::default()) };
        let text = |(key, value): (String, Value)| match value {
            Value::String(text) => Ok((key, text)),
            other => bail!("{}.{name}.{key}: {other} is no text", self.at),
        };
        fields.left.into_iter().map(text).collect()
    }

    /// A field that must have one certain value, or be missing.
    pub(crate) fn only(&mut self, name: &str, value: &Value) -> Result<()> {
        match self.maybe(name) {
            Some(other) if other != *value => {
                bail!("{}.{name}: {other} cannot be translated; only {value} can", self.at)
            }
            _ => Ok(()),
        }
    }

    /// All was taken.
    pub(crate) fn end(self) -> Result<()> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some((name, value)) => bail!("{}.{name}: {value} is not known here", self.at),
        }
    }
}
