//! Programs that manage interfaces: whether they run in this node's network, and what they are told.

use std::fs;
use std::path::{Path, PathBuf};

use causeway_doctor::facts::Managers;

/// Where configuration lies, the one that counts least first.
const ROOTS: [&str; 4] = ["/usr/lib", "/lib", "/run", "/etc"];

/// Looks at the processes and at the files.
pub(super) fn look() -> Managers {
    let running = running();
    let runs = |name: &str| running.iter().any(|r| r == name);
    let nm = |root: &str| {
        let dir = Path::new(root).join("NetworkManager");
        [dir_files(&dir.join("conf.d"), "conf"), vec![dir.join("NetworkManager.conf")]].concat()
    };
    let networkd = |root: &str| {
        let dir = Path::new(root).join("systemd");
        [dir_files(&dir.join("networkd.conf.d"), "conf"), vec![dir.join("networkd.conf")]].concat()
    };
    let networks = |root: &str| dir_files(&Path::new(root).join("systemd/network"), "network");
    Managers {
        network_manager: runs("NetworkManager"),
        network_manager_told: any(nm, leaves_unmanaged),
        // The kernel cuts names of processes at 15 bytes.
        networkd: runs("systemd-network"),
        networkd_told: any(networks, is_unmanaged),
        networkd_keeps_routes: any(networkd, keeps_routes),
    }
}

/// Names of the processes in this network namespace.
fn running() -> Vec<String> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|e| {
        let name = e.file_name();
        name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    });
    // A process that ends meanwhile is none.
    let here =
        processes.filter(|e| own.is_some() && fs::read_link(e.path().join("ns/net")).ok() == own);
    let names = here.filter_map(|e| fs::read_to_string(e.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

fn dir_files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

fn any(files: impl Fn(&str) -> Vec<PathBuf>, says: impl Fn(&str) -> bool) -> bool {
    let all = ROOTS.iter().flat_map(|root| files(root));
    all.filter_map(|path| fs::read_to_string(path).ok()).any(|text| says(&text))
}

/// Keys and values of a file in the form of NetworkManager and systemd.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';']));
    lines.filter_map(|l| l.split_once('=')).map(|(key, value)| (key.trim(), value.trim()))
}

/// NetworkManager leaves interfaces that begin with `cw` alone.
fn leaves_unmanaged(text: &str) -> bool {
    pairs(text).any(|(key, value)| {
        let key = key.trim_end_matches('+').trim();
        let listed = key == "unmanaged-devices" || key == "match-device";
        listed && value.split([';', ',']).any(|item| item.trim() == "interface-name:cw*")
    })
}

/// systemd-networkd leaves interfaces that begin with `cw` alone.
fn is_unmanaged(text: &str) -> bool {
    let named = |(key, value): (&str, &str)| {
        key == "Name" && value.split_whitespace().any(|name| name == "cw*")
    };
    pairs(text).any(named) && pairs(text).any(|(key, value)| key == "Unmanaged" && is_yes(value))
}

/// systemd-networkd keeps routes that it did not make.
fn keeps_routes(text: &str) -> bool {
    pairs(text).any(|(key, value)| key == "ManageForeignRoutes" && is_no(value))
}

fn is_yes(value: &str) -> bool {
    ["1", "yes", "true", "on"].contains(&value.to_ascii_lowercase().as_str())
}

fn is_no(value: &str) -> bool {
    ["0", "no", "false", "off"].contains(&value.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_print_is_understood() {
        assert!(leaves_unmanaged(include_str!("../../../../deploy/host/networkmanager.conf")));
        assert!(is_unmanaged(include_str!("../../../../deploy/host/networkd.network")));
        assert!(keeps_routes(include_str!("../../../../deploy/host/networkd-routes.conf")));
    }

    #[test]
    fn other_words() {
        assert!(leaves_unmanaged("[device-cw]\nmatch-device = interface-name:cw*\nmanaged=0\n"));
        assert!(!leaves_unmanaged("#unmanaged-devices=interface-name:cw*\n"));
        assert!(!leaves_unmanaged("unmanaged-devices=interface-name:cali*\n"));
        assert!(!is_unmanaged("[Match]\nName=cw*\n[Link]\nUnmanaged=no\n"));
        assert!(!is_unmanaged("[Match]\nName=eth*\n[Link]\nUnmanaged=yes\n"));
        assert!(!keeps_routes("ManageForeignRoutes=yes\n"));
    }
}
