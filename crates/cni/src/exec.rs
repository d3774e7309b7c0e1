//! Running another plugin's binary: for delegation to a foreign IPAM plugin, and for the
//! runtime's side.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use crate::error::CniError;

/// What a plugin left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// It ended with status 0.
    pub success: bool,
    /// How it ended, for messages (`exit status: 1`, `signal: 9 (SIGKILL)`).
    pub status: String,
    /// Standard output: a result or an error object.
    pub stdout: Vec<u8>,
    /// Standard error: anything, for people.
    pub stderr: Vec<u8>,
}

/// How plugins are run. The lab runs them inside the namespaces of a node, tests in memory.
pub trait Exec {
    /// Finds the binary of a plugin type in the directories of `CNI_PATH`.
    ///
    /// # Errors
    /// Code 7: no such file in any of them, or a type that is no plain file name.
    fn find(&self, plugin_type: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
        find_plugin(plugin_type, path)
    }

    /// Runs a binary with exactly this environment and standard input, and waits for it.
    ///
    /// # Errors
    /// Only if it could not be run; how it ended is in the output.
    fn run(&self, binary: &Path, env: &[(String, String)], stdin: &[u8]) -> io::Result<Output>;
}

/// Runs plugins as child processes of this one.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessExec;

impl Exec for ProcessExec {
    fn run(&self, binary: &Path, env: &[(String, String)], stdin: &[u8]) -> io::Result<Output> {
        let mut process = Process::new(binary);
        process
            .env_clear()
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run_process(&mut process, stdin)
    }
}

/// Runs a prepared process with its three pipes: feeds it, collects both outputs, waits. For
/// implementations of [`Exec`] that wrap the binary in something else.
///
/// # Errors
/// The process could not be started or waited for.
pub fn run_process(process: &mut Process, stdin: &[u8]) -> io::Result<Output> {
    run_watched(process, stdin, |_| {})
}

/// As [`run_process`]; `started` sees the process before anything is waited for, to follow it or to
/// cut it short.
///
/// # Errors
/// As [`run_process`].
pub fn run_watched(
    process: &mut Process,
    stdin: &[u8],
    started: impl FnOnce(&std::process::Child),
) -> io::Result<Output> {
    let mut child = spawn_patiently(process)?;
    started(&child);
    let mut pipe = child.stdin.take();
    // A plugin may print before it has read everything, so both directions must go at once.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A plugin that ends without reading (VERSION) closes the pipe: no failure of ours.
            pipe.take().map(|mut pipe| pipe.write_all(stdin))
        });
        child.wait_with_output()
    })?;
    Ok(Output {
        success: output.status.success(),
        status: output.status.to_string(),
        stdout: output.stdout,
        stderr: output.stderr,
    })
}

/// A binary that is being replaced on disk is "text file busy" for a moment: wait for it.
fn spawn_patiently(process: &mut Process) -> io::Result<std::process::Child> {
    let mut attempts = 0;
    loop {
        match process.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && attempts < 10 => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

/// Finds a plugin's binary: the first regular file of that name in the directories.
///
/// # Errors
/// Code 7 naming the directories that were searched.
pub fn find_plugin(plugin_type: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    if plugin_type.is_empty() || plugin_type.contains('/') || plugin_type.starts_with('.') {
        return Err(CniError::invalid_config(format!(
            "plugin type {plugin_type:?} is not the plain name of a binary"
        )));
    }
    path.iter().map(|dir| dir.join(plugin_type)).find(|p| p.is_file()).ok_or_else(|| {
        let dirs = path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        CniError::invalid_config(format!(
            "plugin \"{plugin_type}\" not found in [{dirs}]: install it there or correct \"type\" or CNI_PATH"
        ))
    })
}

/// What a run means: the standard output of success, or the plugin's own error, with the name
/// of the plugin put before it.
///
/// # Errors
/// The plugin's error object with its code; code 999 if it failed without one.
pub fn judge(plugin_type: &str, output: Output) -> Result<Vec<u8>, CniError> {
    if output.success {
        return Ok(output.stdout);
    }
    let what = format!("plugin \"{plugin_type}\" failed");
    if let Ok(error) = serde_json::from_slice::<CniError>(&output.stdout) {
        return Err(error.context(what));
    }
    let said = [&output.stderr, &output.stdout]
        .into_iter()
        .map(|b| String::from_utf8_lossy(b).trim().replace('\n', "; "))
        .find(|s| !s.is_empty())
        .unwrap_or_else(|| "it printed no error".to_owned());
    Err(CniError::internal(format!("{what} ({}): {said}", output.status)))
}
