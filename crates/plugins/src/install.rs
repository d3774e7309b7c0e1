//! `causeway-cni install DIR` and `uninstall DIR`: the binary and its names, put in place while pods
//! are being started.
//!
//! Every name is there at every moment: a file is written aside, synced and renamed into place, and
//! what was there before is kept by a second link to it. What happened can be told from the directory
//! alone, so that a run that was killed, or lost power, is put right by the next.
//!
//! Ours are the binary `causeway-cni`, whose inode is noted beside it, and symbolic links to it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The binary's name in the directory.
const BINARY: &str = "causeway-cni";
/// The type that nobody else has: it is always installed.
const OWN_TYPE: &str = "causeway";
/// Holds what was there before, and the note of what is ours.
const KEPT: &str = ".causeway";
const NOTE: &str = "installed";

/// How to call it.
pub(crate) const USAGE: &str = "usage: causeway-cni install DIR [--links [--replace]]
       causeway-cni uninstall DIR
  install    puts causeway-cni and the type causeway into DIR (such as /opt/cni/bin)
  --links    and the other types (bridge, host-local, …), where no file has their names
  --replace  and where one has: it is kept, and uninstall puts it back
  uninstall  removes what install put there";

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    links: bool,
    replace: bool,
}

/// A call by hand; `None` for words that are none.
///
/// # Errors
/// What failed, where and why, or how to call it.
pub(crate) fn run(words: &[String], types: &[&str]) -> Option<Result<String, String>> {
    let (command, words) = words.split_first()?;
    let (flags, dirs): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| word.starts_with('-'));
    let bad = |why: String| Some(Err(format!("{why}\n{USAGE}")));
    let [dir] = dirs[..] else {
        return match command.as_str() {
            "install" | "uninstall" => bad(format!("{command} takes one directory")),
            _ => None,
        };
    };
    let mut options = Options::default();
    for flag in flags {
        match (command.as_str(), flag) {
            ("install", "--links") => options.links = true,
            ("install", "--replace") => options.replace = true,
            _ => return bad(format!("{command} does not know {flag}")),
        }
    }
    let place = Place { dir: PathBuf::from(dir) };
    match command.as_str() {
        "install" if options.replace && !options.links => {
            bad("--replace goes with --links".to_owned())
        }
        "install" => Some(place.install(Path::new("/proc/self/exe"), types, options)),
        "uninstall" => Some(place.uninstall(types)),
        _ => None,
    }
}

struct Place {
    dir: PathBuf,
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    Others,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => ": run it as root",
        ErrorKind::ReadOnlyFilesystem => ": mount it writable, or choose another directory",
        ErrorKind::StorageFull => ": free space there",
        _ => "",
    };
    format!("cannot {what} {}: {error}{hint}", path.display())
}

impl Place {
    fn install(&self, program: &Path, types: &[&str], options: Options) -> Result<String, String> {
        for dir in [self.dir.clone(), self.dir.join(KEPT)] {
            fs::create_dir_all(&dir).map_err(|e| failed("make directory", &dir, &e))?;
        }
        let mut said = String::new();
        if self.binary()? == Found::Others {
            if !options.replace {
                return Err(format!(
                    "{} is there and was not installed by this command: remove it, or say --links \
                     --replace to keep it aside",
                    self.dir.join(BINARY).display()
                ));
            }
            self.keep(BINARY)?;
        }
        self.put_binary(program)?;
        let _ = writeln!(said, "{BINARY}: installed");
        let others = types.iter().filter(|name| options.links && **name != OWN_TYPE);
        for name in [OWN_TYPE].iter().chain(others) {
            let word = match self.link_at(name)? {
                Found::Ours => "is in place",
                Found::Nothing => {
                    self.put_link(name)?;
                    "installed"
                }
                Found::Others if options.replace => {
                    self.keep(name)?;
                    self.put_link(name)?;
                    "installed; what was there is kept"
                }
                Found::Others => {
                    "left as it is: another file has the name (--replace keeps it aside)"
                }
            };
            let _ = writeln!(said, "{name}: {word}");
        }
        self.sync()?;
        Ok(said)
    }

    fn uninstall(&self, types: &[&str]) -> Result<String, String> {
        let mut said = String::new();
        for name in types {
            if self.link_at(name)? == Found::Ours {
                let _ = writeln!(said, "{name}: {}", self.take_out(name)?);
            }
        }
        // Last: as long as a link leads to it, it works.
        if self.binary()? == Found::Ours {
            let _ = writeln!(said, "{BINARY}: {}", self.take_out(BINARY)?);
        }
        let kept = self.dir.join(KEPT);
        let _ = fs::remove_file(kept.join(NOTE));
        match fs::remove_dir(&kept) {
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {
                let _ = writeln!(
                    said,
                    "{} holds files whose names others have taken since",
                    kept.display()
                );
            }
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(failed("remove directory", &kept, &e));
            }
            _ => {}
        }
        self.sync()?;
        if said.is_empty() {
            let _ = writeln!(said, "nothing of ours is in {}", self.dir.display());
        }
        Ok(said)
    }

    /// The name's old file takes our place, or the name goes.
    fn take_out(&self, name: &str) -> Result<&'static str, String> {
        let (path, old) = (self.dir.join(name), self.dir.join(KEPT).join(name));
        match fs::rename(&old, &path) {
            Ok(()) => Ok("removed; what was there before is back"),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::remove_file(&path).map_err(|e| failed("remove", &path, &e))?;
                Ok("removed")
            }
            Err(e) => Err(failed("put back", &path, &e)),
        }
    }

    /// A second link to a file, before another takes its name.
    fn keep(&self, name: &str) -> Result<(), String> {
        let (path, kept) = (self.dir.join(name), self.dir.join(KEPT).join(name));
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Err(format!("{} is a directory: move it away", path.display()));
        }
        // One that was kept earlier was replaced since, by an upgrade of its package.
        match fs::remove_file(&kept) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("replace", &kept, &e)),
            _ => {}
        }
        fs::hard_link(&path, &kept).map_err(|e| failed("keep a link to", &path, &e))?;
        sync(&self.dir.join(KEPT))
    }

    fn put_link(&self, name: &str) -> Result<(), String> {
        let (path, aside) = (self.dir.join(name), self.aside(name));
        let _ = fs::remove_file(&aside);
        symlink(BINARY, &aside).map_err(|e| failed("make a link at", &aside, &e))?;
        fs::rename(&aside, &path).map_err(|e| failed("put in place", &path, &e))
    }

    fn put_binary(&self, program: &Path) -> Result<(), String> {
        let (path, aside) = (self.dir.join(BINARY), self.aside(BINARY));
        let _ = fs::remove_file(&aside);
        let write = || {
            fs::copy(program, &aside)?;
            fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
            let file = File::open(&aside)?;
            file.sync_all()?;
            file.metadata()
        };
        let new = write().map_err(|e| {
            let _ = fs::remove_file(&aside);
            failed("write", &aside, &e)
        })?;
        // Before it has its name: whoever comes after a kill knows both as ours.
        let inodes = self.noted().into_iter().chain([new.ino()]);
        let now = path.symlink_metadata().map(|m| m.ino()).unwrap_or(0);
        let inodes = inodes.filter(|ino| [now, new.ino()].contains(ino));
        let text: String = inodes.map(|ino| format!("{ino}\n")).collect();
        let (note, next) = (self.dir.join(KEPT).join(NOTE), self.aside(NOTE));
        let noted = fs::write(&next, text)
            .and_then(|()| File::open(&next)?.sync_all())
            .and_then(|()| fs::rename(&next, &note));
        noted.map_err(|e| failed("write", &note, &e))?;
        fs::rename(&aside, &path).map_err(|e| failed("put in place", &path, &e))
    }

    fn aside(&self, name: &str) -> PathBuf {
        self.dir.join(KEPT).join(format!("{name}.new"))
    }

    fn noted(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.dir.join(KEPT).join(NOTE)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn binary(&self) -> Result<Found, String> {
        let path = self.dir.join(BINARY);
        match path.symlink_metadata() {
            Ok(meta) if meta.is_file() && self.noted().contains(&meta.ino()) => Ok(Found::Ours),
            Ok(_) => Ok(Found::Others),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
            Err(e) => Err(failed("look at", &path, &e)),
        }
    }

    fn link_at(&self, name: &str) -> Result<Found, String> {
        let path = self.dir.join(name);
        match fs::read_link(&path) {
            Ok(to) if to == Path::new(BINARY) => Ok(Found::Ours),
            Ok(_) => Ok(Found::Others),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
            // No link.
            Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(Found::Others),
            Err(e) => Err(failed("look at", &path, &e)),
        }
    }

    fn sync(&self) -> Result<(), String> {
        sync(&self.dir)
    }
}

/// New names are on the disk after this.
fn sync(dir: &Path) -> Result<(), String> {
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("sync", dir, &e)),
        _ => Ok(()),
    }
}
