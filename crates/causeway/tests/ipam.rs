//! `causeway ipam list` and `check` only look.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LEASES: &str = "/var/lib/cni/networks/pod-network";

/// Runs the command; whether it succeeded, and what it said.
fn ipam(words: &[&str]) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_causeway")).arg("ipam").args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Everything below a directory: what it is, what it holds, and when it changed last.
fn picture(dir: &Path, all: &mut BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        all.insert(path.clone(), (meta.ino(), meta.ctime(), meta.ctime_nsec(), content));
        if meta.is_dir() {
            picture(&path, all);
        }
    }
}

fn write(path: &str, content: &str) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A lease of a pod that lives (its namespace is there), or not, with both of its records.
fn pod(name: &str, ip: &str, lease: &str, lives: bool) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim();
    let host = causeway_types::names::host_veth(name, "eth0");
    if lives {
        assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
    }
    write(&format!("{LEASES}/{ip}"), lease);
    write(
        &format!("/var/lib/causeway/leases/pod-network/{ip}.json"),
        &format!(r#"{{"containerId": "{name}", "ifname": "eth0", "bootId": "{boot}"}}"#),
    );
    write(
        &format!("/var/lib/causeway/attachments/{name}-eth0.json"),
        &format!(
            r#"{{"containerId": "{name}", "ifname": "eth0", "netns": "/run/netns/{name}",
            "network": "pod-network", "attach": "routed", "pending": false,
            "hostIfname": "{host}", "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02",
            "mtu": 1450, "addresses": ["{ip}/32"], "gateways": [], "bootId": "{boot}"}}"#
        ),
    );
}

#[test]
fn looking_changes_nothing() {
    causeway_lab::isolate().expect("these tests need root");
    pod("whole", "10.244.1.2", "whole\r\neth0", true);
    // What a loss of power leaves of a lease; both records know better.
    pod("torn", "10.244.1.3", "", true);
    pod("fd", "10.244.1.4", "", true);
    fs::remove_file(format!("{LEASES}/10.244.1.4")).unwrap();
    write(&format!("{LEASES}/10.244.1.4"), "f");
    let before = || {
        let mut all = BTreeMap::new();
        picture(Path::new("/var/lib"), &mut all);
        all
    };
    let first = before();
    for words in [&["list"][..], &["list", "--json"], &["check"]] {
        let (ok, said) = ipam(words);
        assert!(ok, "{words:?}: {said}");
        assert!(before() == first, "{words:?} wrote something");
    }
    let (_, said) = ipam(&["list"]);
    for (ip, name) in [("10.244.1.2", "whole"), ("10.244.1.3", "torn"), ("10.244.1.4", "fd")] {
        let line = said.lines().find(|line| line.starts_with(ip)).unwrap_or_default();
        assert!(line.contains("live") && line.contains(name), "{said}");
    }
    pod("gone", "10.244.1.9", "gone\r\neth0", false);
    let first = before();
    let (ok, said) = ipam(&["check"]);
    assert!(!ok && said.contains("1 of 4 leases"), "{said}");
    assert!(before() == first, "check wrote something");
    // A disk that takes nothing more.
    let read_only = "mount -o remount,ro /var/lib";
    assert!(Command::new("sh").args(["-c", read_only]).status().unwrap().success());
    let (ok, said) = ipam(&["list"]);
    assert!(ok && said.contains("10.244.1.9"), "{said}");
}
