//! `causeway cni` by hand, with the real plugins, on a bare machine.

use std::path::PathBuf;
use std::process::Command;

/// Runs the command; whether it succeeded, and what it said.
fn causeway(words: &str) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["cni"])
        .args(words.split_whitespace())
        .args(["--cni-path", "/run/bin"])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{line}: {text}");
    text
}

#[test]
fn from_add_to_gc() {
    causeway_lab::isolate().expect("these tests need root");
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_causeway")).with_file_name("causeway-cni");
    let cni = std::env::var_os("CAUSEWAY_CNI_BIN").map_or(beside, PathBuf::from);
    std::fs::create_dir_all("/run/bin").unwrap();
    for name in ["bridge", "host-local"] {
        std::os::unix::fs::symlink(&cni, format!("/run/bin/{name}")).unwrap();
    }
    let list = "/run/net.conflist";
    std::fs::write(
        list,
        r#"{"cniVersion": "1.1.0", "name": "by-hand", "plugins": [{"type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}"#,
    )
    .unwrap();
    assert_eq!(causeway(&format!("status {list}")), (true, "ready\n".to_owned()));
    for pod in ["one", "two"] {
        sh(&format!("ip netns add {pod}"));
        let (ok, said) = causeway(&format!("add {list} {pod}"));
        assert!(ok && said.contains("10.9.0."), "{said}");
    }
    sh("ip netns exec one ping -c1 -W3 10.9.0.3");
    assert!(causeway(&format!("check {list} one")).0);
    let (ok, said) = causeway(&format!("add {list} one"));
    assert!(!ok && said.contains("already"), "{said}");
    sh("ip -n one addr flush dev eth0");
    let (ok, said) = causeway(&format!("check {list} one"));
    assert!(!ok && said.contains("10.9.0.2"), "{said}");
    // A namespace that is gone without DEL.
    sh("ip netns del two");
    let (ok, said) = causeway(&format!("gc {list}"));
    assert!(ok && said.contains("1 attachments are valid, 1 were not"), "{said}");
    let leases = sh("ls /var/lib/cni/networks/by-hand");
    assert!(leases.contains("10.9.0.2") && !leases.contains("10.9.0.3"), "{leases}");
    assert!(causeway(&format!("del {list} one")).0);
    let (ok, said) = causeway(&format!("gc {list}"));
    assert!(!ok && said.contains("--cache"), "{said}");
    let (ok, said) = causeway("status /run/none.conflist");
    assert!(!ok && said.contains("/run/none.conflist"), "{said}");
}
