//! A false wall clock for one process. The kernel has one wall clock for all namespaces, so the
//! library libfaketime, loaded before the program's own, answers in its place; monotonic time, which
//! waits are counted in, stays true.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Where a node's offset is written.
pub(crate) fn file(node_dir: &Path) -> PathBuf {
    node_dir.join("clock")
}

/// The library for programs of several threads.
fn library() -> Result<PathBuf> {
    let name = "faketime/libfaketimeMT.so.1";
    let lib = Path::new("/usr/lib");
    let arches = std::fs::read_dir(lib).into_iter().flatten().flatten().map(|e| e.path());
    std::iter::once(lib.to_owned())
        .chain(arches)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("no {name} below {}: install the package libfaketime", lib.display())
        })
}

/// The environment of a process that sees the clock of a file.
///
/// # Errors
/// When the library is not installed.
pub(crate) fn environment(file: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    Ok(vec![
        ("LD_PRELOAD", library()?),
        ("FAKETIME_TIMESTAMP_FILE", file.to_owned()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        // The name of the same switch before version 0.9.8.
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ])
}

/// Sets the offset, in seconds from the true time.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn set(file: &Path, seconds: i64) -> Result<()> {
    // In one step: the library reads the file at any moment.
    let aside = file.with_extension("new");
    let write = || {
        std::fs::write(&aside, format!("{seconds:+}\n"))?;
        std::fs::rename(&aside, file)
    };
    write().with_context(|| file.display().to_string())
}

/// Whether a process has the library loaded: a program that is linked statically never does.
///
/// # Errors
/// When it has not after a while.
pub(crate) async fn holds(pid: i32) -> Result<()> {
    for _ in 0..500 {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        if maps.contains("libfaketime") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!(
        "the agent's program does not take a false clock, because it is linked statically: make the \
         lab with one that is not (cargo build)"
    )
}
