//! Network namespaces on the real kernel.

use std::path::Path;
use std::process::Command;

use causeway_kernel::netns::{self, NetNs};

#[test]
fn named_namespaces_are_those_of_ip() {
    netns::unshare_for_test().unwrap();
    let path = Path::new("/run/netns/cw-one");
    let ns = netns::create_named(path).unwrap();
    assert!(!ns.is_current().unwrap());
    assert!(ns.same_as(&NetNs::open(path).unwrap()).unwrap());
    assert!(netns::create_named(path).is_err(), "the name is taken");

    let home = NetNs::current().unwrap();
    let inside = ns.run(|| NetNs::current().unwrap()).unwrap();
    assert!(inside.same_as(&ns).unwrap());
    {
        let _guard = ns.enter().unwrap();
        assert!(ns.is_current().unwrap());
        netns::loopback_up().unwrap();
    }
    assert!(home.is_current().unwrap());

    let shown = Command::new("ip").args(["-n", "cw-one", "link", "show", "lo"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("LOOPBACK,UP"), "{shown:?}");

    netns::delete_named(path).unwrap();
    netns::delete_named(path).unwrap();
    assert!(!path.exists());
    let err = NetNs::open(path).unwrap_err().to_string();
    assert!(err.contains("cw-one"), "{err}");
}

#[test]
fn a_plain_file_is_not_a_namespace() {
    let err = NetNs::open("/etc/hostname").unwrap_err().to_string();
    assert!(err.contains("not a namespace"), "{err}");
}

/// What cannot be opened for another reason is not taken for gone.
#[test]
fn gone_is_told_from_not_to_be_told() {
    netns::unshare_for_test().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("plain"), "").unwrap();
    let made = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    std::os::unix::fs::symlink("link", path("link")).unwrap();
    for name in ["plain", "pipe", "socket", "link", "nothing", "plain/below", "."] {
        assert!(NetNs::find(path(name)).unwrap().is_none(), "{name}");
    }
    assert!(NetNs::find("").unwrap().is_none());
    let here = "/proc/thread-self/ns/net";
    assert!(NetNs::find(here).unwrap().is_some());
    // Every descriptor is taken.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(3), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let found = NetNs::find(here);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    assert!(found.is_err(), "{found:?}");
}

#[test]
fn a_namespace_made_by_ip_can_be_entered_and_removed() {
    netns::unshare_for_test().unwrap();
    assert!(Command::new("ip").args(["netns", "add", "cw-two"]).status().unwrap().success());
    let ns = NetNs::open("/run/netns/cw-two").unwrap();
    assert!(ns.run(|| ns.is_current().unwrap()).unwrap());
    netns::delete_named(Path::new("/run/netns/cw-two")).unwrap();
}
