//! Being inside a node: its network, its own `/run/causeway`, `/var/lib/cni`, … and boot ID.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns;
use causeway_types::names;

use crate::spec::Dirs;

/// Turns this process, which must have one thread, into a command inside a node. Returns only
/// when that fails.
///
/// # Errors
/// When a namespace cannot be entered, a directory cannot be mounted, or the command not run.
pub fn exec(lab: &str, node: &str, command: &[OsString]) -> Result<std::convert::Infallible> {
    let [program, args @ ..] = command else { bail!("no command to run in {node}") };
    let dirs = Dirs::of(lab);
    enter(&dirs, node)?;
    // Where the node's container runtime looks for plugins.
    let error = Command::new(program).args(args).env("CNI_PATH", dirs.bin()).exec();
    Err(error).with_context(|| format!("run {}", Path::new(program).display()))
}

fn enter(dirs: &Dirs, node: &str) -> Result<()> {
    netns::unshare_mounts().map_err(|e| anyhow!("{e}"))?;
    let home = dirs.node(node);
    for (own, fixed) in Dirs::views() {
        bind(&home.join(own), Path::new(fixed))?;
    }
    bind(&home.join("boot_id"), Path::new(names::BOOT_ID))?;
    let ns = netns::NetNs::open(dirs.netns(node)).map_err(|e| anyhow!("{e}"))?;
    // For good: the guard would bring us back.
    std::mem::forget(ns.enter().map_err(|e| anyhow!("{e}"))?);
    Ok(())
}

fn bind(own: &Path, fixed: &Path) -> Result<()> {
    rustix::mount::mount_bind(own, fixed)
        .with_context(|| format!("mount {} over {}", own.display(), fixed.display()))
}

/// The words that run a command inside a node, through this program.
pub(crate) fn wrapper(causeway: &Path, lab: &str, node: &str) -> Command {
    let mut command = Command::new(causeway);
    command.args(["lab", "__in", lab, node, "--"]);
    command
}

/// Makes the directories of a node, and those that they are mounted over. Answers which of the
/// latter were missing on the machine.
pub(crate) fn prepare(dirs: &Dirs, node: &str) -> Result<Vec<PathBuf>> {
    let home = dirs.node(node);
    let mut made = Vec::new();
    for (own, fixed) in Dirs::views() {
        let own = home.join(own);
        std::fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        let fixed = Path::new(fixed);
        if !fixed.exists() {
            std::fs::create_dir(fixed).with_context(|| fixed.display().to_string())?;
            made.push(fixed.to_owned());
        }
    }
    std::fs::create_dir_all(home.join("etc-cni/net.d"))?;
    new_boot(&home)?;
    Ok(made)
}

/// Gives a node a boot ID that it never had. The file stays the same: processes have it mounted.
pub(crate) fn new_boot(home: &Path) -> Result<()> {
    let file = home.join("boot_id");
    std::fs::write(&file, crate::api::random_uid() + "\n")
        .with_context(|| file.display().to_string())
}
