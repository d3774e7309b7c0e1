//! Output.

use std::io::Write;

/// Writes a text to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// When the output cannot be written, for example because a disk is full.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| anyhow::anyhow!("standard output: {e}")),
    }
}

/// Writes a value as JSON for people and programs.
///
/// # Errors
/// As [`say`].
pub(crate) fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&(serde_json::to_string_pretty(value)? + "\n"))
}
