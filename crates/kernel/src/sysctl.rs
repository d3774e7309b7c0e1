//! Kernel parameters: files below `/proc/sys`. Those of the network belong to the namespace of the
//! thread that opens them.

use std::fs;
use std::io::{self, Write};

use crate::error::Error;

const ROOT: &str = "/proc/sys";
/// The same files by another way. Container runtimes mount `/proc/sys` read-only and let nothing be
/// mounted below it; the DaemonSet has the node's `/proc/sys/net` here.
const WRITABLE_ROOT: &str = "/host/proc/sys";

/// Reads a parameter in the calling thread's namespace, without the newline. `None` when this
/// kernel, or this namespace, does not have it.
///
/// # Errors
/// When the path leads out of `/proc/sys`, or the system refuses to read it.
pub fn read(path: &str) -> Result<Option<String>, Error> {
    match fs::read_to_string(file(path)?) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(refused(path, "cannot be read", &e)),
    }
}

/// Writes a parameter in the calling thread's namespace.
///
/// # Errors
/// When it is not there (the message says what would bring it), or the kernel refuses the value.
pub fn write(path: &str, value: &str) -> Result<(), Error> {
    write_below([ROOT, WRITABLE_ROOT], path, value)
}

/// Writes below the first root, or below the second where the first is mounted read-only.
fn write_below(roots: [&str; 2], path: &str, value: &str) -> Result<(), Error> {
    let clean = checked(path)?;
    let open = |root| fs::OpenOptions::new().write(true).open(format!("{root}/{clean}"));
    let opened = open(roots[0]).or_else(|e| match e.raw_os_error() {
        Some(libc::EROFS) => open(roots[1]).map_err(|_| e),
        _ => Err(e),
    });
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let errno = e.raw_os_error();
            return Err(Error::Sysctl { path: path.to_owned(), why: lacks(path), errno });
        }
        Err(e) => return Err(refused(path, "cannot be written", &e)),
    };
    // One write: the kernel reads each as a whole new value.
    file.write_all(value.as_bytes())
        .map_err(|e| refused(path, &format!("does not take the value {value:?}"), &e))
}

fn file(path: &str) -> Result<String, Error> {
    Ok(format!("{ROOT}/{}", checked(path)?))
}

fn checked(path: &str) -> Result<&str, Error> {
    let clean = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if clean {
        return Ok(path);
    }
    let why = "not a path below /proc/sys, as in net/ipv4/ip_forward".to_owned();
    Err(Error::Sysctl { path: path.to_owned(), why, errno: None })
}

fn refused(path: &str, what: &str, e: &io::Error) -> Error {
    let hint = match e.raw_os_error() {
        Some(libc::EROFS) => {
            "; /proc/sys is mounted read-only here: run with a writable one, or with the node's \
             /proc/sys/net at /host/proc/sys/net"
        }
        Some(libc::EACCES | libc::EPERM) => "; it needs root with CAP_NET_ADMIN",
        _ => "",
    };
    let why = format!("{what}: {e}{hint}");
    Error::Sysctl { path: path.to_owned(), why, errno: e.raw_os_error() }
}

/// What is missing when a parameter is.
fn lacks(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let why = match parts.as_slice() {
        ["net", "ipv6", ..] if read("net/ipv6/conf/all/forwarding").ok().flatten().is_none() => {
            "this kernel has no IPv6 (built without it, or started with ipv6.disable=1)".to_owned()
        }
        ["net", "ipv4" | "ipv6", "conf" | "neigh", dev, ..] if !has_device(&parts[..4]) => {
            format!("there is no interface {dev} in this network namespace")
        }
        ["net", "bridge", ..] => "module br_netfilter is not loaded".to_owned(),
        ["net", "netfilter", name, ..] if name.starts_with("nf_conntrack") => {
            "module nf_conntrack is not loaded".to_owned()
        }
        _ => "this kernel does not have it".to_owned(),
    };
    format!("not there: {why}")
}

fn has_device(dir: &[&str]) -> bool {
    fs::metadata(format!("{ROOT}/{}", dir.join("/"))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for bad in ["", "/net/ipv4/ip_forward", "net/../kernel/hostname", "net//ipv4", "."] {
            assert!(read(bad).is_err(), "{bad:?}");
            assert!(write(bad, "1").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_parameter_says_what_is_missing() {
        let says = |path: &str| write(path, "1").unwrap_err().to_string();
        assert!(says("net/ipv4/conf/cw-none/forwarding").contains("no interface cw-none"));
        assert!(says("net/ipv4/cw_nothing").contains("this kernel does not have it"));
        assert_eq!(read("net/ipv4/cw_nothing").unwrap(), None);
    }

    /// As in a container: `/proc/sys` read-only, and the node's `/proc/sys/net` elsewhere. What is
    /// written there belongs to the writer's namespace all the same.
    #[test]
    fn a_read_only_root_is_gone_round() {
        use rustix::mount::{MountFlags, mount_bind, mount_remount};
        const NAME: &str = "net/ipv4/conf/lo/log_martians";
        let in_a_container = || {
            crate::netns::unshare_for_test().unwrap();
            let other = tempfile::tempdir().unwrap();
            fs::create_dir(other.path().join("net")).unwrap();
            mount_bind("/proc/sys/net", other.path().join("net")).unwrap();
            mount_bind(ROOT, ROOT).unwrap();
            mount_remount(ROOT, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            let none = write_below([ROOT, "/nowhere"], NAME, "1").unwrap_err().to_string();
            assert!(none.contains("read-only") && none.contains("/host/proc/sys/net"), "{none}");
            write_below([ROOT, other.path().to_str().unwrap()], NAME, "1").unwrap();
            assert_eq!(read(NAME).unwrap().as_deref(), Some("1"));
            let _ = rustix::mount::unmount(
                other.path().join("net"),
                rustix::mount::UnmountFlags::DETACH,
            );
        };
        let before = read(NAME).unwrap();
        std::thread::spawn(in_a_container).join().unwrap();
        assert_eq!(read(NAME).unwrap(), before, "this namespace has its own");
    }
}
