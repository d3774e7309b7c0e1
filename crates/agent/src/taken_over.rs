//! The record of what was taken over of another network ([`causeway_types::names::TAKEN_OVER`]).

use std::io;
use std::path::Path;

use causeway_desired::input::TakenOver;

use crate::files;

/// The end of names of configurations that were moved aside: no runtime loads them.
pub const ASIDE: &str = ".before-causeway";

/// Reads the record; `None` where nothing was taken over.
///
/// # Errors
/// When the file is there and cannot be read: then it is not known what is ours.
pub fn load(path: &Path) -> Result<Option<TakenOver>, String> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let parsed = serde_json::from_slice(&bytes);
            parsed.map(Some).map_err(|e| format!("{}: {e}", path.display()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// Writes the record.
///
/// # Errors
/// Whatever the file system says, with the file named.
pub(crate) fn save(path: &Path, taken: &TakenOver) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec_pretty(taken)?, 0o600)
}
