//! The tests of the workspace, some programs of them at a time.
//!
//! Tests of the real kernel wait more than they compute, and `cargo test` runs one program after the other: with
//! two cores half of them is idle.

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Those that take longest, by the beginnings of their names: they come first, so that none of them is alone at
/// the end.
const LONG: [&str; 8] = [
    "lab-",
    "corrupt-",
    "causeway_agent-",
    "causeway_plugins-",
    "disk_types-",
    "kill-",
    "disk-",
    "crowd",
];

/// A program with tests.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    /// Where cargo runs it: its crate's directory.
    dir: PathBuf,
}

impl Program {
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

/// Builds and runs the tests of the workspace, `jobs` programs at a time, each with these options.
///
/// # Errors
/// The tests cannot be built, or some fail: their programs are named.
pub fn run(jobs: usize, options: &[&str]) -> Result<()> {
    let mut programs = build()?;
    programs.sort_by_key(|program| {
        LONG.iter().position(|long| program.name().starts_with(long)).unwrap_or(LONG.len())
    });
    let count = programs.len();
    let queue = Mutex::new(VecDeque::from(programs));
    let failed = Mutex::new(Vec::new());
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(program) = next(&queue) {
                    if let Err(error) = run_one(&program, options) {
                        let text = format!("{}: {error:#}", program.name());
                        failed.lock().unwrap_or_else(|e| e.into_inner()).push(text);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(|e| e.into_inner());
    println!("{count} programs of tests in {:.0} s", started.elapsed().as_secs_f64());
    let docs = cargo(&["test", "--workspace", "--locked", "--doc", "-q"]).status()?;
    if !docs.success() {
        failed.push("examples in documentation".to_owned());
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{} of them failed:\n    {}", failed.len(), failed.join("\n    "))
}

fn next(queue: &Mutex<VecDeque<Program>>) -> Option<Program> {
    queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front()
}

fn cargo(words: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(words);
    command
}

fn build() -> Result<Vec<Program>> {
    let words =
        ["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"];
    let output = cargo(&words).stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the tests cannot be built");
    }
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs that cargo tells of.
fn programs(messages: &str) -> Vec<Program> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let path = PathBuf::from(message["executable"].as_str()?);
        let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        (message["profile"]["test"] == true).then_some(Program { path, dir })
    };
    messages.filter_map(program).collect()
}

/// Runs one of them, and shows what it printed when it has ended: others run beside it.
fn run_one(program: &Program, options: &[&str]) -> Result<()> {
    let started = Instant::now();
    let log = program.path.with_extension("log");
    let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let status = Command::new(&program.path)
        .args(options)
        .current_dir(&program.dir)
        .env("CARGO_MANIFEST_DIR", &program.dir)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status();
    let text = fs::read(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    let mut out = std::io::stdout().lock();
    out.write_all(&shown(program.name(), started.elapsed(), &text))?;
    out.flush()?;
    match status? {
        status if status.success() => Ok(()),
        status => bail!("{status}"),
    }
}

fn shown(name: &str, took: Duration, text: &[u8]) -> Vec<u8> {
    let head = format!("     Ran {name} in {:.1} s\n", took.as_secs_f64());
    [head.as_bytes(), text, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_found_in_what_cargo_says() {
        let said = r#"
            {"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","profile":{"test":true},"executable":"/t/a-1"}
            {"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","profile":{"test":false},"executable":"/t/a"}
            {"reason":"compiler-artifact","manifest_path":"/w/b/Cargo.toml","profile":{"test":true},"executable":null}
            no message
            {"reason":"build-finished","success":true}"#;
        let expected = Program { path: "/t/a-1".into(), dir: "/w/a".into() };
        assert_eq!(programs(said), [expected]);
    }

    #[test]
    fn a_program_that_fails_is_told_with_what_it_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("false");
        std::os::unix::fs::symlink("/bin/false", &path).unwrap();
        let program = Program { path, dir: dir.path().to_owned() };
        assert!(run_one(&program, &[]).unwrap_err().to_string().contains("1"));
        let shown = shown("x", Duration::from_millis(1500), b"test a ... FAILED");
        assert_eq!(shown, b"     Ran x in 1.5 s\ntest a ... FAILED\n");
    }
}
