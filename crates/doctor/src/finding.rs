//! What a check says.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods do not get their network, or do not reach each other.
    Error,
    /// It works now and may fail later, or fails for some.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name, one of [`crate::IDS`].
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub what: String,
    /// Where: a chain, a file, a parameter, an interface.
    #[serde(rename = "where")]
    pub place: String,
    /// What it does to pods, in one line.
    pub why: String,
    /// What to do: commands to be run as root, or a line in words that begins with `#`.
    #[serde(rename = "do")]
    pub todo: Vec<String>,
}

impl Finding {
    /// A finding of a severity.
    pub(crate) fn new(id: &'static str, severity: Severity, place: impl Into<String>) -> Self {
        let (place, todo) = (place.into(), Vec::new());
        Self { id, severity, what: String::new(), place, why: String::new(), todo }
    }

    /// Says what and why.
    pub(crate) fn says(mut self, what: impl Into<String>, why: impl Into<String>) -> Self {
        (self.what, self.why) = (what.into(), why.into());
        self
    }

    /// Says what to do, a command or a line in words a time.
    pub(crate) fn fix(mut self, todo: impl IntoIterator<Item = String>) -> Self {
        self.todo.extend(todo);
        self
    }
}
