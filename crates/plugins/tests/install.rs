//! The binary and its names are put in place, and taken out again, while pods are being started.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

const PROGRAM: &str = env!("CARGO_BIN_EXE_causeway-cni");

fn call(words: &[&str]) -> Output {
    Command::new(PROGRAM).args(words).env_clear().output().unwrap()
}

#[track_caller]
fn ok(words: &[&str]) -> String {
    let out = call(words);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[track_caller]
fn refused(words: &[&str]) -> String {
    let out = call(words);
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

/// All names, with what is behind them.
fn picture(dir: &Path) -> BTreeMap<String, String> {
    let all = fs::read_dir(dir).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let meta = path.symlink_metadata().unwrap();
        let what = match fs::read_link(&path) {
            Ok(to) => format!("-> {}", to.display()),
            Err(_) if meta.is_dir() => "directory".to_owned(),
            Err(_) if meta.len() > 4096 => "the binary".to_owned(),
            Err(_) => fs::read_to_string(&path).unwrap(),
        };
        (name, what)
    });
    all.collect()
}

/// As a package installs the reference's.
fn reference(dir: &Path) {
    for name in ["bridge", "host-local", "dhcp"] {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\necho reference {name}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("/usr/lib/cni/loopback", dir.join("loopback")).unwrap();
}

#[test]
fn what_is_there_stays_until_told() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("opt/cni/bin");
    fs::create_dir_all(&dir).unwrap();
    reference(&dir);
    let before = picture(&dir);
    let path = dir.to_str().unwrap();

    ok(&["install", path]);
    let mut want = before.clone();
    want.insert("causeway-cni".into(), "the binary".into());
    want.insert("causeway".into(), "-> causeway-cni".into());
    want.insert(".causeway".into(), "directory".into());
    assert_eq!(picture(&dir), want);

    let said = ok(&["install", path, "--links"]);
    assert!(said.contains("bridge: left as it is") && said.contains("loopback: left"), "{said}");
    assert_eq!(picture(&dir)["bridge"], before["bridge"]);

    let said = ok(&["install", path, "--links", "--replace"]);
    assert!(said.contains("bridge: installed; what was there is kept"), "{said}");
    for name in ["bridge", "host-local", "loopback"] {
        assert_eq!(picture(&dir)[name], "-> causeway-cni");
    }
    assert_eq!(picture(&dir)["dhcp"], before["dhcp"], "a type that we have not");
    let about = Command::new(dir.join("bridge")).env_clear().output().unwrap();
    assert!(String::from_utf8_lossy(&about.stderr).contains("causeway"));
    // Once more, as an upgrade does.
    let said = ok(&["install", path, "--links", "--replace"]);
    assert!(said.contains("bridge: is in place"), "{said}");

    ok(&["uninstall", path]);
    assert_eq!(picture(&dir), before, "as if nothing had been");
    let said = ok(&["uninstall", path]);
    assert!(said.contains("nothing of ours"), "{said}");
}

#[test]
fn a_package_that_is_upgraded_meanwhile() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    reference(dir);
    let path = dir.to_str().unwrap();
    ok(&["install", path, "--links", "--replace"]);
    fs::remove_file(dir.join("bridge")).unwrap();
    fs::write(dir.join("bridge"), "the next version").unwrap();
    let said = ok(&["uninstall", path]);
    assert_eq!(picture(dir)["bridge"], "the next version", "{said}");
    assert!(said.contains("others have taken since"), "{said}");
    ok(&["install", path, "--links", "--replace"]);
    ok(&["uninstall", path]);
    assert_eq!(picture(dir)["bridge"], "the next version");
    assert!(!picture(dir).contains_key(".causeway"));
}

#[test]
fn a_binary_of_unknown_origin() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().to_str().unwrap();
    fs::write(tmp.path().join("causeway-cni"), "by hand").unwrap();
    let why = refused(&["install", path]);
    assert!(
        why.contains("was not installed by this command") && why.contains("--replace"),
        "{why}"
    );
    ok(&["install", path, "--links", "--replace"]);
    ok(&["uninstall", path]);
    assert_eq!(picture(tmp.path())["causeway-cni"], "by hand");
}

#[test]
fn words_that_make_no_sense() {
    for words in [
        &["install"][..],
        &["install", "/a", "/b"],
        &["install", "/a", "--force"],
        &["install", "/a", "--replace"],
        &["uninstall", "/a", "--links"],
    ] {
        let why = refused(words);
        assert!(why.contains("usage: causeway-cni install DIR"), "{words:?}: {why}");
    }
    let why = refused(&["install", "/proc/nowhere"]);
    assert!(why.contains("cannot make directory /proc/nowhere"), "{why}");
}

/// A runtime that calls `bridge` all the time never finds none, nor half of one; a call that runs goes
/// on.
#[test]
fn no_moment_without_a_plugin() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    // No script: its interpreter would look for it a second time, by its name.
    fs::copy("/bin/true", dir.join("bridge")).unwrap();
    let path = dir.to_str().unwrap();
    let over = AtomicBool::new(false);
    let (ours, theirs) = std::thread::scope(|scope| {
        let runtime = scope.spawn(|| {
            let (mut ours, mut theirs) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let out = Command::new(dir.join("bridge")).env_clear().output().unwrap();
                assert!(out.status.success(), "{out:?}");
                let is_ours = String::from_utf8_lossy(&out.stderr).contains("causeway");
                *if is_ours { &mut ours } else { &mut theirs } += 1;
            }
            (ours, theirs)
        });
        for _ in 0..25 {
            ok(&["install", path, "--links", "--replace"]);
            ok(&["install", path, "--links", "--replace"]);
            ok(&["uninstall", path]);
        }
        over.store(true, Ordering::Relaxed);
        runtime.join().unwrap()
    });
    assert!(ours > 0 && theirs > 0, "{ours} and {theirs}");
}
