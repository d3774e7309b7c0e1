//! Nodes of a lab with a container runtime, for benchmarks.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_cri::containerd::{self, Images};
use causeway_cri::{Agent, Client, Machine, Manifest};
use causeway_lab::{Binaries, Spec};
use rustix::net::sockopt;

use crate::Args;

/// Whatever takes longer does not work at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A node with containerd, and with our agent's pod where it has one.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) client: Client,
    /// containerd's process.
    pub(crate) runtime: u32,
    pub(crate) agent: Option<Agent>,
}

impl Node {
    /// Boots one and starts containerd; there is no network for pods yet.
    pub(crate) fn boot(spec: &Spec, name: &str) -> Result<Self> {
        let machine = Machine::boot(spec, name)?;
        let client = containerd::start(&machine)?;
        let runtime = listener(client.socket())?;
        Ok(Self { machine, client, runtime, agent: None })
    }

    /// Waits until containerd has a network for pods.
    pub(crate) fn has_network(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let (ready, why) = containerd::network(&self.client)?;
            if ready {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("{}: no network after {PATIENCE:?}: {why}", self.machine.name());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Who listens on a socket.
fn listener(socket: &Path) -> Result<u32> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let peer = sockopt::socket_peercred(&stream).context("who listens")?;
    Ok(peer.pid.as_raw_nonzero().get().cast_unsigned())
}

/// A lab whose workers are bare, with the images for them. It is taken down when this is dropped.
pub(crate) struct Lab {
    pub(crate) spec: Spec,
}

impl Lab {
    /// In a world of its own: see [`causeway_lab::isolate`].
    pub(crate) fn up(args: &Args, spec: Spec) -> Result<Self> {
        let spec = Spec { bare: true, ..spec };
        let binaries =
            Binaries { causeway: args.bin.join("causeway"), cni: args.bin.join("causeway-cni") };
        causeway_lab::up(&spec, &binaries, &mut |_| {})?;
        let lab = Self { spec };
        Images::make(&args.bin, Manifest::load(&[])?.image()?)?.put()?;
        Ok(lab)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = causeway_lab::down(&self.spec.name) {
            eprintln!("{error:#}");
        }
    }
}
