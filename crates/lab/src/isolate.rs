//! A world of its own for tests and benchmarks.

use std::fs;

use anyhow::{Context, Result, anyhow};
use causeway_kernel::netns;
use rustix::mount::{MountFlags, mount};

/// Moves the calling thread, and all that it starts from now on, into a network of its own and a
/// mount namespace in which `/run`, `/var/lib` and changes below `/etc` are its own: labs made there
/// meet no other, and end with the process. To be called first on a fresh thread.
///
/// # Errors
/// Without root.
pub fn isolate() -> Result<()> {
    netns::unshare_for_test().map_err(|e| anyhow!("{e}"))?;
    for dir in ["/run", "/var/lib"] {
        mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
            .with_context(|| format!("tmpfs on {dir}"))?;
    }
    for dir in ["/run/netns", "/run/etc/upper", "/run/etc/work"] {
        fs::create_dir_all(dir).with_context(|| dir.to_owned())?;
    }
    let layers = c"lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work";
    mount("overlay", "/etc", "overlay", MountFlags::empty(), Some(layers))
        .context("overlay on /etc")
}
