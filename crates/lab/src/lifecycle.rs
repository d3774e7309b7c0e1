//! A lab from its beginning to its end.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns;
use rustix::fs::{FlockOperation, flock};

use crate::record::Record;
use crate::spec::{Dirs, ROOT, Spec};
use crate::{daemon, procs, status, topology};

/// The programs that a lab runs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `causeway`: the agents, the lab's own process, the pods' servers.
    pub causeway: PathBuf,
    /// `causeway-cni`: the plugins.
    pub cni: PathBuf,
}

/// How long a lab may take until it is whole, beside a little for each node.
const PATIENCE: Duration = Duration::from_secs(60);

/// The names of the plugins in CNI_PATH.
const PLUGINS: [&str; 13] = [
    "bandwidth",
    "bridge",
    "causeway",
    "firewall",
    "host-device",
    "host-local",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
];

/// Makes a lab and waits until it is whole; `tell` hears of each step. What failed half-way is
/// taken down again.
///
/// # Errors
/// When the lab exists, a program is missing, the kernel refuses, or an agent does not get ready
/// in time: then with what it says is wrong.
pub fn up(spec: &Spec, binaries: &Binaries, tell: &mut dyn FnMut(&str)) -> Result<()> {
    up_while(spec, binaries, tell, &|| Ok(()))
}

/// As [`up`], as long as `go_on` does not fail.
///
/// # Errors
/// As [`up`], and that of `go_on`.
pub fn up_while(
    spec: &Spec,
    binaries: &Binaries,
    tell: &mut dyn FnMut(&str),
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    spec.check()?;
    for program in [&binaries.causeway, &binaries.cni] {
        if !program.is_file() {
            bail!("{} is missing; build both programs with `./dev build`", program.display());
        }
    }
    let dirs = spec.dirs();
    let left = residue(&spec.name);
    if dirs.root().exists() || !left.is_empty() {
        bail!(
            "lab {} is there already ({}); `causeway lab down --name {}` removes it",
            spec.name,
            left.first().cloned().unwrap_or_else(|| dirs.root().display().to_string()),
            spec.name
        );
    }
    let record = Record {
        spec: spec.clone(),
        causeway: binaries.causeway.clone(),
        cni: binaries.cni.clone(),
    };
    let result = make(&record, tell, go_on);
    if let Err(error) = result {
        let log = fs::read_to_string(dirs.log()).unwrap_or_default();
        let log: Vec<&str> = log.lines().rev().take(5).collect();
        let said = log.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        let error =
            if said.is_empty() { error } else { error.context(format!("the lab says:\n  {said}")) };
        if let Err(more) = down(&spec.name) {
            return Err(error.context(format!("and it could not be taken down: {more:#}")));
        }
        return Err(error);
    }
    Ok(())
}

fn make(record: &Record, tell: &mut dyn FnMut(&str), go_on: &dyn Fn() -> Result<()>) -> Result<()> {
    let spec = &record.spec;
    let dirs = spec.dirs();
    {
        let _lock = lock()?;
        fs::create_dir_all(dirs.root()).with_context(|| dirs.root().display().to_string())?;
        record.save()?;
        let mut made = Vec::new();
        for node in spec.node_names() {
            made.extend(daemon::prepare_node(record, &node)?);
        }
        note_made(&made)?;
        fs::create_dir_all(dirs.bin())?;
        for name in PLUGINS {
            symlink(&record.cni, dirs.bin().join(name))?;
        }
    }
    tell("nodes and the network between them");
    topology::build(spec)?;
    go_on()?;
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on the loopback address")?;
    tell("Kubernetes API, kubelets, agents");
    let mut process = daemon::start(record, &listener)?;
    drop(listener);
    tell("waiting for the agents");
    let patience = PATIENCE + Duration::from_millis(500) * u32::from(spec.nodes);
    wait(spec, patience, &mut || match process.try_wait() {
        Ok(Some(how)) => bail!("the lab's process ended ({how})"),
        _ => go_on(),
    })
}

/// Waits until every node is ready and every agent has done all it wants to do.
///
/// # Errors
/// When that takes too long: with what is missing.
pub fn wait_until_whole(spec: &Spec, patience: Duration) -> Result<()> {
    wait(spec, patience, &mut || Ok(()))
}

fn wait(spec: &Spec, patience: Duration, go_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        let missing = status::missing(spec);
        if missing.is_empty() {
            return Ok(());
        }
        go_on()?;
        if start.elapsed() > patience {
            bail!("not whole after {patience:?}:\n  {}", missing.join("\n  "));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes every trace of a lab: processes, namespaces, files. Succeeds when there is nothing.
/// Works after any of its processes was killed, and when it was made only in part.
///
/// # Errors
/// With everything that could not be removed.
pub fn down(name: &str) -> Result<()> {
    Spec { name: name.to_owned(), ..Spec::default() }.check()?;
    let dirs = Dirs::of(name);
    let mut errors: Vec<String> = Vec::new();
    // Twice: a process that was about to make a namespace may have finished that meanwhile.
    for _ in 0..2 {
        let namespaces = procs::namespaces(&dirs.ns_prefix());
        procs::end_all(&namespaces);
        for path in &namespaces {
            if let Err(e) = netns::delete_named(path) {
                errors.push(e.to_string());
            }
        }
    }
    let _lock = lock()?;
    match fs::remove_dir_all(dirs.root()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            errors.push(format!("{}: {e}", dirs.root().display()));
        }
        _ => {}
    }
    if crate::record::names().is_empty() {
        remove_made();
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("{}", errors.join("; "))) }
}

/// What is there of a lab: namespaces, processes, files. Empty after `down`.
pub fn residue(name: &str) -> Vec<String> {
    let dirs = Dirs::of(name);
    let namespaces = procs::namespaces(&dirs.ns_prefix());
    let mut left: Vec<String> =
        namespaces.iter().map(|n| format!("namespace {}", n.display())).collect();
    left.extend(
        procs::inside(&namespaces).iter().map(|p| format!("process {}", p.as_raw_nonzero())),
    );
    if dirs.root().exists() {
        left.push(format!("directory {}", dirs.root().display()));
    }
    left
}

/// Held while directories that all labs share are made or removed.
fn lock() -> Result<fs::File> {
    fs::create_dir_all(ROOT).with_context(|| ROOT.to_owned())?;
    let dir = fs::File::open(ROOT).with_context(|| ROOT.to_owned())?;
    flock(&dir, FlockOperation::LockExclusive).with_context(|| format!("lock {ROOT}"))?;
    Ok(dir)
}

/// The directories of this machine that were made because nodes mount theirs over them. Another
/// lab's nodes use them too, so that they go with the last lab.
fn made_file() -> PathBuf {
    Path::new(ROOT).join(".made")
}

fn note_made(made: &[PathBuf]) -> Result<()> {
    let mut all = fs::read_to_string(made_file()).unwrap_or_default();
    for path in made {
        all.push_str(&format!("{}\n", path.display()));
    }
    if all.is_empty() {
        return Ok(());
    }
    fs::write(made_file(), all).with_context(|| made_file().display().to_string())
}

/// Only while they are empty: somebody else may have begun to use them.
fn remove_made() {
    let all = fs::read_to_string(made_file()).unwrap_or_default();
    for path in all.lines().rev() {
        let _ = fs::remove_dir(path);
    }
    let _ = fs::remove_file(made_file());
    let _ = fs::remove_dir(ROOT);
}
