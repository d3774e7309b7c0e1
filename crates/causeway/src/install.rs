//! `causeway install DIR`: for the DaemonSet, whose image has no other program that copies files.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::words::say;

const NAME: &str = "causeway";

/// Copies this program: written aside, synced and renamed into place, so that the name is there at
/// every moment, and whoever runs the old one is not disturbed.
///
/// # Errors
/// When the directory is not there or cannot be written, or holds something else by that name.
pub(crate) fn run(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(NAME);
    if path.is_dir() {
        bail!(
            "{} is a directory: move it away, or choose another one to install into",
            path.display()
        );
    }
    let aside = dir.join(format!(".{NAME}.new"));
    let written = write(Path::new("/proc/self/exe"), &aside).and_then(|()| {
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.with_context(|| format!("cannot install {}", path.display()))?;
    say(&format!("{}: installed\n", path.display()))
}

fn write(program: &Path, to: &Path) -> io::Result<()> {
    // What a former run left could be a link to elsewhere.
    match fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::copy(program, to)?;
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    File::open(to)?.sync_all()
}
