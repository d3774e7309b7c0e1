//! A node of a lab as a machine: processes, mounts and a disk of its own, and a power switch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway_lab::Spec;
use rustix::process::{Pid, Signal, kill_process};

use crate::within;

/// What `./dev runtimes` unpacked.
pub(crate) const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/runtimes");
/// Disks of machines, in a world of its own ([`causeway_lab::isolate`]).
const DISKS: &str = "/var/lib/disks";
/// Seconds that a machine may take for what it does at once otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine that runs. It is switched off when this is dropped.
#[derive(Debug)]
pub struct Machine {
    spec: Spec,
    name: String,
    /// `unshare`, the parent of the machine's first process.
    outer: Child,
    first: u32,
}

/// Makes the machine's own file system, then sits there as the first process and takes the end of
/// those whose parents are gone. `/run` is empty after each boot; `/var/lib`, `/opt` and what lies
/// below `/etc` stay.
const BOOT: &str = r#"
set -e
mkdir -p $disk/run $disk/lib/causeway $disk/lib/cni $disk/lib/images $disk/opt
mount -t tmpfs -o mode=0755 run $disk/run
mkdir -p $disk/run/causeway $disk/run/netns
mount --bind $lab/run-causeway $disk/run/causeway
mount --bind $lab/lib-causeway $disk/lib/causeway
mount --bind $lab/lib-cni $disk/lib/cni
mount --bind $images $disk/lib/images
mount --bind $lab/etc-cni /etc/cni
mount --bind $lab/boot_id /proc/sys/kernel/random/boot_id
mount -t overlay usr -o lowerdir=$unpacked/usr:/usr /usr
mount --bind $disk/opt /opt
# What /run held names namespaces that would live as long as this one names them.
mkdir -p $disk/run/.old
umount -l /run
mount --rbind $disk/run /run
mount --rbind $disk/lib /var/lib
mount --make-rshared /
echo up >/run/booted
trap '' TERM HUP
while :; do sleep 100000 & wait; done
"#;

impl Machine {
    /// Boots a node of a lab. Its network is there.
    ///
    /// # Errors
    /// When what `./dev runtimes` unpacks is missing, or the machine does not come up: with what it said.
    pub fn boot(spec: &Spec, name: &str) -> Result<Self> {
        let unpacked = fs::canonicalize(UNPACKED)
            .with_context(|| format!("{UNPACKED}: run ./dev runtimes, which unpacks it"))?;
        let disk = disk(name);
        for dir in [&disk, &images()] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let ns = spec.dirs().netns(name);
        let outer = Command::new("nsenter")
            .arg(format!("--net={}", ns.display()))
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", BOOT])
            .env("disk", &disk)
            .env("images", images())
            .env("lab", spec.dirs().node(name))
            .env("unpacked", unpacked)
            .stdin(Stdio::null())
            .stderr(fs::File::create(disk.join("boot.log"))?)
            .spawn()
            .context("nsenter and unshare of util-linux")?;
        let mut machine = Self { spec: spec.clone(), name: name.to_owned(), outer, first: 0 };
        within(&format!("{name} boots"), PATIENCE, || {
            if let Some(how) = machine.outer.try_wait()? {
                let said = fs::read_to_string(disk.join("boot.log")).unwrap_or_default();
                bail!("it ended with {how}: {said}");
            }
            machine.first = first_child(machine.outer.id()).context("no process yet")?;
            match machine.path("/run/booted").exists() {
                true => Ok(()),
                false => bail!("not mounted yet"),
            }
        })?;
        Ok(machine)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path of the machine's as others see it; a symbolic link with an absolute target leads astray.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// The node's network namespace.
    pub fn ns(&self) -> PathBuf {
        self.spec.dirs().netns(&self.name)
    }

    /// A command of the machine's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--mount", "--net", "--pid", program]);
        command
    }

    /// Runs a shell line there: whether it succeeded, and what it said.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn try_sh(&self, line: &str) -> Result<(bool, String)> {
        let output = self.run(line)?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Runs a shell line there, and answers what it printed.
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("{}: {line}: {}", self.name, text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    fn run(&self, line: &str) -> Result<Output> {
        self.command("sh").args(["-c", line]).output().context("nsenter of util-linux")
    }

    /// The power goes: every process ends at once.
    fn off(&mut self) -> Result<()> {
        // All others end with the first, and its parent after it.
        match Pid::from_raw(self.first.cast_signed()) {
            Some(first) => drop(kill_process(first, Signal::KILL)),
            None => drop(self.outer.kill()),
        }
        within(&format!("{} is off", self.name), PATIENCE, || match self.outer.try_wait()? {
            Some(_) => Ok(()),
            None => bail!("it runs"),
        })
    }

    /// Switches it off for good: its disk goes, too.
    ///
    /// # Errors
    /// When it stays on, or something holds the disk.
    pub fn scrap(mut self) -> Result<()> {
        self.off()?;
        let disk = disk(&self.name);
        fs::remove_dir_all(&disk).with_context(|| disk.display().to_string())
    }

    /// Switches it off and boots it again; `between` is done while it is off.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn power_cut(&mut self, between: impl FnOnce()) -> Result<()> {
        self.off()?;
        between();
        *self = Self::boot(&self.spec.clone(), &self.name.clone())?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.off() {
            eprintln!("{error:#}");
        }
    }
}

/// Where images for all machines lie.
pub(crate) fn images() -> PathBuf {
    Path::new(DISKS).join("images")
}

fn disk(name: &str) -> PathBuf {
    Path::new(DISKS).join(name)
}

/// The only child of a process.
fn first_child(of: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}
