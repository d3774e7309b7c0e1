//! `xtask image`: the image of the DaemonSet, from scratch, with the two programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::oci::{Archive, Entry, Image};

/// No archive may be larger, in bytes.
pub const LIMIT: usize = 20_000_000;

/// The programs of the image, in its root.
pub const PROGRAMS: [&str; 2] = ["causeway", "causeway-cni"];

/// Architectures by their names in images, with their numbers in ELF (`e_machine`).
const ARCHES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];

/// Directories that the DaemonSet mounts something over: they are there already, so that the image
/// also runs where a runtime makes none.
const MOUNTED: [&str; 17] = [
    "dev",
    "etc",
    "etc/causeway",
    "etc/cni",
    "etc/cni/net.d",
    "host",
    "host/opt",
    "host/opt/cni",
    "host/opt/cni/bin",
    "proc",
    "run",
    "run/causeway",
    "run/netns",
    "sys",
    "tmp",
    "var",
    "var/lib",
];

/// Reads the programs and makes the archive `causeway-VERSION-ARCH.oci.tar` in a directory.
///
/// # Errors
/// When a program is missing or not one for an image, and when the archive would be too large.
pub fn run(root: &Path, arch: &str, dist: &Path, out: &Path) -> Result<(PathBuf, Archive)> {
    let version = env!("CARGO_PKG_VERSION");
    let programs = programs(root, arch, dist)?;
    let archive = image(programs, arch, version, source_time(root)?).build()?;
    check_size(archive.bytes.len())?;
    fs::create_dir_all(out)?;
    let path = out.join(format!("causeway-{version}-{arch}.oci.tar"));
    fs::write(&path, &archive.bytes).with_context(|| path.display().to_string())?;
    Ok((path, archive))
}

/// The programs of the image, from where `./dev build` puts them.
///
/// # Errors
/// When one is missing or not one for an image.
pub fn programs(root: &Path, arch: &str, dist: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut programs = BTreeMap::new();
    for name in PROGRAMS {
        let path = dist.join(name);
        let bytes =
            fs::read(&path).with_context(|| format!("{}: run ./dev build", path.display()))?;
        check_program(&bytes, arch).with_context(|| path.display().to_string())?;
        check_paths(&bytes, &host_paths(root)).with_context(|| path.display().to_string())?;
        programs.insert(name.to_owned(), bytes);
    }
    Ok(programs)
}

/// What the image holds.
pub fn image(programs: BTreeMap<String, Vec<u8>>, arch: &str, version: &str, time: u64) -> Image {
    let mut entries: BTreeMap<String, Entry> =
        MOUNTED.iter().map(|dir| ((*dir).to_owned(), Entry::Dir)).collect();
    for dir in ["var/lib/causeway", "var/lib/cni", "var/lib/cni/networks"] {
        entries.insert(dir.to_owned(), Entry::Dir);
    }
    // Runtimes name namespaces by /var/run/netns/…, which is /run/netns on every node.
    entries.insert("var/run".to_owned(), Entry::Link("../run".to_owned()));
    entries.extend(programs.into_iter().map(|(name, bytes)| (name, Entry::Program(bytes))));
    let label =
        |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
    let labels = BTreeMap::from([
        label("title", "causeway"),
        label("description", "Pod networks for Kubernetes from what Linux has"),
        label("version", version),
        label("licenses", "Apache-2.0"),
        label("url", "https://causeway.dev"),
        label("created", &crate::oci::rfc3339(time)),
    ]);
    Image {
        entries,
        arch: arch.to_owned(),
        entrypoint: "/causeway".to_owned(),
        name: format!("docker.io/library/causeway:{version}"),
        labels,
        time,
    }
}

/// SOURCE_DATE_EPOCH, else the time of the commit that is checked out.
fn source_time(root: &Path) -> Result<u64> {
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        return text.parse().context("SOURCE_DATE_EPOCH: expected seconds since 1970");
    }
    let out = Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(root)
        .output()
        .context("run git for the commit's time; or set SOURCE_DATE_EPOCH")?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().context("no commit to take the time of; set SOURCE_DATE_EPOCH")
}

/// A program for the architecture that needs no dynamic loader: the image has none.
///
/// # Errors
/// What it is instead.
pub fn check_program(bytes: &[u8], arch: &str) -> Result<()> {
    let known = ARCHES.iter().find(|(name, _)| *name == arch);
    let (_, machine) =
        known.with_context(|| format!("unknown architecture {arch}: amd64, arm64"))?;
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // ELF, 64 bits, little-endian (elf(5)).
    ensure!(bytes.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]), "not an ELF program of 64 bits");
    let found = u16_at(18).context("cut off")?;
    ensure!(found == *machine, "is for machine {found} and not for {arch} ({machine})");
    let start = usize::try_from(u64_at(32).context("cut off")?)?;
    let (size, count) = (u16_at(54).context("cut off")?, u16_at(56).context("cut off")?);
    for n in 0..usize::from(count) {
        let at = start + n * usize::from(size);
        let kind = bytes.get(at..at + 4).context("cut off")?;
        // PT_INTERP.
        ensure!(kind != 3u32.to_le_bytes(), "needs a dynamic loader: build it with ./dev build");
    }
    Ok(())
}

/// Paths that say where somebody built: the work tree, the home directory and cargo's.
fn host_paths(root: &Path) -> Vec<String> {
    let home = std::env::var("HOME").ok().filter(|home| home.len() > 1);
    let cargo = std::env::var("CARGO_HOME").ok();
    let home =
        home.into_iter().flat_map(|home| [format!("{home}/.cargo/"), format!("{home}/.rustup/")]);
    let fixed = [format!("{}/", root.display())];
    fixed.into_iter().chain(home).chain(cargo.map(|c| format!("{c}/"))).collect()
}

/// # Errors
/// When one of the paths is anywhere in the program.
pub fn check_paths(bytes: &[u8], paths: &[String]) -> Result<()> {
    for path in paths {
        if find(bytes, path.as_bytes()) {
            bail!("holds the path {path} of this machine: build it with ./dev build");
        }
    }
    Ok(())
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some(first) = wanted.first() else { return false };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| b == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// # Errors
/// When an archive of so many bytes is too large.
pub fn check_size(bytes: usize) -> Result<()> {
    ensure!(bytes <= LIMIT, "the archive has {bytes} bytes; {LIMIT} are the most");
    Ok(())
}
