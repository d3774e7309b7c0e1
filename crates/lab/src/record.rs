//! What is known of a lab on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::spec::{Dirs, ROOT, Spec};

/// The record of a lab, written before anything of it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How it looks.
    pub spec: Spec,
    /// The program that its agents and helpers are.
    pub causeway: PathBuf,
    /// The plugin binary.
    pub cni: PathBuf,
}

impl Record {
    /// Reads the record of a lab.
    ///
    /// # Errors
    /// When there is no such lab, or its record cannot be read.
    pub fn load(name: &str) -> Result<Self> {
        let path = Dirs::of(name).record();
        let text = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                anyhow!("there is no lab {name:?}; `causeway lab up --name {name}` makes it")
            }
            _ => anyhow!("{}: {e}", path.display()),
        })?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{}: not readable; `causeway lab down --name {name}` clears it", path.display())
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.spec.dirs().record();
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

/// Names of all labs that have left anything on disk, in order.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(Path::new(ROOT)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
