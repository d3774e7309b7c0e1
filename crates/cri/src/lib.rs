//! What a kubelet asks of a container runtime (CRI v1, gRPC over a unix socket), and what it makes of
//! the pod template of a DaemonSet; nodes of a lab as machines with containerd. For tests and
//! benchmarks: nothing that is shipped depends on it.

mod client;
pub mod containerd;
mod daemon_set;
mod fields;
mod groups;
mod kubelet;
mod machine;
pub mod message;
mod pod;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use client::{Client, Failure};
pub use daemon_set::{Node, Plan, PlannedContainer, Probe, Projected, translate};
pub use groups::Groups;
pub use kubelet::{Agent, Manifest, Progress, Running, end};
pub use machine::Machine;
pub use pod::Pod;

/// Waits until something is so.
///
/// # Errors
/// When it does not come: why it was not so at last.
fn within(what: &str, patience: Duration, mut so: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match so() {
            Ok(()) => return Ok(()),
            Err(why) if start.elapsed() > patience => {
                return Err(why).with_context(|| format!("{what}: not within {patience:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
