//! `Table` answers (`application/json;as=Table;v=v1;g=meta.k8s.io`): what `kubectl get` prints.

use serde_json::{Value, json};

use super::meta::{age, text};

pub(crate) mod cells;
pub(crate) mod columns;

/// One column of a built-in type.
#[derive(Debug)]
pub struct Column {
    /// Heading, for example `Name`.
    pub name: &'static str,
    /// OpenAPI type of the cells.
    pub kind: &'static str,
    /// 0 is always shown, 1 only by `-o wide`.
    pub priority: u8,
    /// The cell of an object.
    pub cell: fn(&Value) -> Value,
}

/// One of `additionalPrinterColumns` of a CustomResourceDefinition.
#[derive(Clone, Debug)]
pub struct CustomColumn {
    definition: Value,
    path: Vec<String>,
    date: bool,
}

impl CustomColumn {
    /// Reads a column; of JSONPath, plain paths with keys and indexes are understood.
    pub fn new(column: &Value) -> Self {
        let mut definition = json!({ "priority": 0, "format": "", "description": "" });
        for key in ["name", "type", "format", "description", "priority"] {
            if let Some(value) = column.get(key) {
                definition[key] = value.clone();
            }
        }
        CustomColumn {
            path: split_path(text(column, "/jsonPath")),
            date: column["type"] == "date",
            definition,
        }
    }

    fn cell(&self, object: &Value) -> Value {
        let step = |value: &'_ Value, key: &String| match value {
            Value::Array(list) => key.parse::<usize>().ok().and_then(|i| list.get(i)).cloned(),
            _ => value.get(key).cloned(),
        };
        let found = self.path.iter().try_fold(object.clone(), |value, key| step(&value, key));
        match found {
            Some(Value::String(date)) if self.date => json!(age(&date)),
            Some(value @ (Value::Array(_) | Value::Object(_))) => json!(value.to_string()),
            found => found.unwrap_or(Value::Null),
        }
    }
}

/// `.spec.list[0].a\.b` as `spec`, `list`, `0`, `a.b`.
fn split_path(path: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut chars = path.trim_start_matches('$').chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => keys.last_mut().map(|k| k.extend(chars.next())).unwrap_or_default(),
            '.' | '[' => keys.push(String::new()),
            ']' | '\'' => {}
            c => keys.last_mut().map(|k| k.push(c)).unwrap_or_default(),
        }
    }
    keys.retain(|k| !k.is_empty());
    keys
}

/// The columns of a type.
#[derive(Clone, Debug)]
pub enum Columns {
    /// Columns written in the lab.
    BuiltIn(&'static [Column]),
    /// Columns of a CustomResourceDefinition, between name and age.
    Custom(Vec<CustomColumn>),
}

impl Columns {
    fn definitions(&self) -> Vec<Value> {
        let built_in = |c: &Column| definition(c.name, c.kind, c.priority);
        match self {
            Columns::BuiltIn(columns) => columns.iter().map(built_in).collect(),
            Columns::Custom(columns) => {
                let mut all = vec![definition("Name", "string", 0)];
                all.extend(columns.iter().map(|c| c.definition.clone()));
                if columns.is_empty() {
                    all.push(definition("Age", "string", 0));
                }
                all
            }
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        match self {
            Columns::BuiltIn(columns) => columns.iter().map(|c| (c.cell)(object)).collect(),
            Columns::Custom(columns) => {
                let mut all = vec![cells::name(object)];
                all.extend(columns.iter().map(|c| c.cell(object)));
                if columns.is_empty() {
                    all.push(cells::age(object));
                }
                all
            }
        }
    }
}

fn definition(name: &str, kind: &str, priority: u8) -> Value {
    let format = if name == "Name" { "name" } else { "" };
    json!({ "name": name, "type": kind, "format": format, "description": "", "priority": priority })
}

/// How much of each object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    /// The metadata (the default).
    #[default]
    Metadata,
    /// Nothing.
    None,
    /// The whole object.
    Object,
}

/// A table of objects with the list's metadata.
pub(crate) fn table<'a>(
    columns: &Columns,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
    metadata: Value,
) -> Value {
    let rows: Vec<Value> = objects.map(|object| row(columns, object, include)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns.definitions(), "rows": rows,
    })
}

fn row(columns: &Columns, object: &Value, include: Include) -> Value {
    let mut row = json!({ "cells": columns.cells(object) });
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = partial(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// Only the metadata of an object, as `PartialObjectMetadata`.
pub(crate) fn partial(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_columns_follow_their_path() {
        let column = CustomColumn::new(
            &json!({ "name": "Peer", "type": "string", "jsonPath": ".spec.peers[1].name" }),
        );
        let object =
            json!({ "metadata": { "name": "a" }, "spec": { "peers": [{}, { "name": "north" }] } });
        let columns = Columns::Custom(vec![column]);
        let table = table(&columns, [&object].into_iter(), Include::None, json!({}));
        assert_eq!(table["rows"][0]["cells"], json!(["a", "north"]));
        assert_eq!(table["columnDefinitions"][1]["name"], "Peer");
        assert_eq!(split_path(r"$.metadata.labels['a\.b']"), ["metadata", "labels", "a.b"]);
    }
}
