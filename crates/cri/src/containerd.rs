//! containerd on a machine, with the images that the tests need.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::oci::{Entry, Image};

use crate::Client;
use crate::machine::{Machine, UNPACKED, images};
use crate::within;

/// The image of sandboxes.
const PAUSE: &str = "docker.io/library/pause:1";
const DISK: &str = "/var/lib/containerd";
const SOCKET: &str = "/run/containerd/containerd.sock";
const PATIENCE: Duration = Duration::from_secs(30);

const CONFIG: &str = r#"
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "/var/lib/containerd/base.json"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#;

/// Images that every machine takes in, as archives by the names of their files.
#[derive(Debug)]
pub struct Images([(&'static str, Vec<u8>); 2]);

impl Images {
    /// Ours under the name that the manifest has, with the programs of a directory, and one for sandboxes.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn make(dist: &Path, ours: &str) -> Result<Self> {
        let pause = pause()?.build()?.bytes;
        Ok(Self([("causeway.tar", causeway(dist, ours)?), ("pause.tar", pause)]))
    }

    /// Puts them where machines that boot from now on find them.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn put(&self) -> Result<()> {
        let dir = images();
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        for (name, bytes) in &self.0 {
            fs::write(dir.join(name), bytes)
                .with_context(|| dir.join(name).display().to_string())?;
        }
        Ok(())
    }
}

/// As `./dev image` makes it.
fn causeway(dist: &Path, name: &str) -> Result<Vec<u8>> {
    let mut programs = BTreeMap::new();
    for program in xtask::image::PROGRAMS {
        let path = dist.join(program);
        let bytes = fs::read(&path).with_context(|| format!("{}: ./dev build", path.display()))?;
        programs.insert(program.to_owned(), bytes);
    }
    let version = name.rsplit_once(':').with_context(|| format!("{name} has no tag"))?.1;
    let image = xtask::image::image(programs, "amd64", version, 1_700_000_000);
    ensure!(image.name == name, "the image is {}, the manifest's {name}", image.name);
    Ok(image.build()?.bytes)
}

/// What waits in each sandbox.
fn pause() -> Result<Image> {
    let unpacked = format!("{UNPACKED}/usr/bin/busybox");
    let busybox = [unpacked.as_str(), "/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("no busybox (Debian: busybox-static): run ./dev runtimes")?;
    let script = "#!/bin/busybox sh\nexec /bin/busybox sleep 2147483647\n";
    let mut entries = BTreeMap::from([
        ("bin/busybox".to_owned(), Entry::Program(fs::read(busybox)?)),
        ("pause".to_owned(), Entry::Program(script.as_bytes().to_vec())),
    ]);
    for dir in ["bin", "dev", "etc", "proc", "sys"] {
        entries.insert(dir.to_owned(), Entry::Dir);
    }
    Ok(Image {
        entries,
        arch: "amd64".to_owned(),
        entrypoint: "/pause".to_owned(),
        name: PAUSE.to_owned(),
        labels: BTreeMap::new(),
        time: 1_700_000_000,
    })
}

/// Starts containerd and waits until it answers; the first time on a machine it takes the images in.
///
/// # Errors
/// When what `./dev runtimes` unpacks is missing, or containerd does not answer: with what it said.
pub fn start(machine: &Machine) -> Result<Client> {
    for program in ["containerd", "ctr", "runc"] {
        let (found, _) = machine.try_sh(&format!("command -v {program}"))?;
        ensure!(found, "{program} is missing: remove target/runtimes and run ./dev runtimes");
    }
    let disk = machine.path(DISK);
    let fresh = !disk.join("base.json").exists();
    fs::create_dir_all(&disk).with_context(|| disk.display().to_string())?;
    if fresh {
        let mut base: Value = serde_json::from_str(&machine.sh("ctr oci spec")?)?;
        // The machine has a boot ID of its own, also where the runtime mounts /proc anew.
        base["hooks"] = json!({"createContainer": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", HOOK],
        }]});
        fs::write(disk.join("base.json"), base.to_string())?;
        fs::write(disk.join("config.toml"), CONFIG)?;
    }
    machine.sh(&format!(
        "containerd -c {DISK}/config.toml </dev/null >>{DISK}/log 2>&1 & echo $! >/run/containerd.pid"
    ))?;
    let client = Client::new(&machine.path(SOCKET));
    within("containerd answers", PATIENCE, || {
        let version = client.version().with_context(|| said(machine))?;
        ensure!(version.runtime_name == "containerd", "{version:?}");
        let all = client.status().with_context(|| said(machine))?;
        let ready = all.iter().any(|c| c.r#type == "RuntimeReady" && c.status);
        if ready { Ok(()) } else { bail!("{all:?}") }
    })?;
    if fresh {
        let line = "for i in /var/lib/images/*.tar; do ctr -n k8s.io image import $i || exit; done";
        machine.sh(line)?;
    }
    Ok(client)
}

/// The container's root directory stands in the state that runc hands to hooks; they run in the
/// container's mount namespace before it becomes the root.
const HOOK: &str = r#"state=$(cat); bundle=${state#*\"bundle\":\"}; bundle=${bundle%%\"*}
exec mount --bind /proc/sys/kernel/random/boot_id $bundle/rootfs/proc/sys/kernel/random/boot_id"#;

/// Kills containerd, which takes no notice of what it runs.
///
/// # Errors
/// When it does not run.
pub fn kill(machine: &Machine) -> Result<()> {
    machine.sh("kill -9 $(cat /run/containerd.pid)").map(drop)
}

/// The last lines of what it said.
pub fn said(machine: &Machine) -> String {
    let text = fs::read_to_string(machine.path(DISK).join("log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// NetworkReady, and why not.
///
/// # Errors
/// When containerd does not answer.
pub fn network(client: &Client) -> Result<(bool, String)> {
    let all = client.status()?;
    let found = all.iter().find(|c| c.r#type == "NetworkReady").context("no NetworkReady")?;
    Ok((found.status, format!("{}: {}", found.reason, found.message)))
}
