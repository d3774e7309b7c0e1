//! `causeway doctor` on machines without an agent: bare, and with the classic bridge of one node.

use std::process::Command;

use serde_json::Value;

/// Runs a shell line; it must succeed.
fn sh(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Exit code and what it said.
fn doctor(options: &[&str]) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_causeway")).arg("doctor").args(options).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// Exit code and ids with their places.
fn findings() -> (i32, Vec<(String, String)>) {
    let (code, text) = doctor(&["--json"]);
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let word = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    (code, all.iter().map(|f| (word(f, "id"), word(f, "where"))).collect())
}

fn ids(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(id, _)| id.as_str()).collect()
}

#[test]
fn a_bare_machine() {
    causeway_lab::isolate().expect("these tests need root");
    assert_eq!(doctor(&[]), (0, "nothing wrong\n".to_owned()));
    assert_eq!(doctor(&["--json"]), (0, "[]\n".to_owned()));
    let (code, facts) = doctor(&["--facts"]);
    assert_eq!(code, 0);
    let facts: causeway_doctor::Facts = serde_json::from_str(&facts).unwrap();
    assert!(!facts.node.served && facts.unread.is_empty(), "{facts:?}");
    // What nobody knows of pods may be fine: no error.
    sh("nft add table inet fw
        nft add chain inet fw f '{ type filter hook forward priority 0; policy drop; }'");
    let (code, text) = doctor(&[]);
    assert_eq!(code, 1, "{text}");
    for words in [
        "warning  foreign-forward-drop: ",
        "  where  table inet fw, chain f\n",
        "nft insert rule inet fw f ip saddr SUBNET accept\n",
        "\n1 warning\n",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(doctor(&["--nonsense"]).0, 2);
    assert!(doctor(&["--help"]).1.contains("Exit code: 0 nothing wrong"));
    let (code, table) = doctor(&["--firewall"]);
    assert!(code == 0 && table.starts_with("ROLE"), "{table}");
    let (code, file) = doctor(&["--print", "networkd"]);
    assert!(code == 0 && file.contains("Unmanaged=yes"), "{file}");
}

#[test]
fn nothing_is_changed() {
    causeway_lab::isolate().expect("these tests need root");
    sh("mkdir -p /var/lib/cni/networks/net /var/lib/causeway/attachments
        printf 'c\\r\\neth0' > /var/lib/cni/networks/net/10.9.0.2
        : > /var/lib/cni/networks/net/10.9.0.3
        echo '{' > /var/lib/causeway/attachments/c-eth0.json");
    let look = || {
        let state = "find /var/lib/cni /var/lib/causeway /run -printf '%p %i %T@ %C@ %s\\n' | sort
            ip -o link; ip rule; nft list ruleset; ls /run/netns";
        let output = Command::new("sh").args(["-ec", state]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let before = look();
    let (_, found) = findings();
    assert!(ids(&found).contains(&"lease-unreadable"), "{found:?}");
    assert!(ids(&found).contains(&"record-unreadable"), "{found:?}");
    assert_eq!(look(), before);
}

/// Whether bridged packets can be made to pass the rules of netfilter: a kernel without the module
/// has no parameter for it.
fn has_bridge_nf() -> bool {
    let there = || std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    let _ = Command::new("modprobe").arg("br_netfilter").output();
    if !there() {
        println!("skipped: bridge-nf-call-off put right: there is no module br_netfilter");
    }
    there()
}

/// The bridge of tutorials, with kube-proxy beside it.
#[test]
fn a_bridge_that_no_agent_serves() {
    causeway_lab::isolate().expect("these tests need root");
    // What sysctls of a new namespace are depends on the machine.
    sh("ip link add cni0 type bridge
        mkdir -p /var/lib/cni/networks/net; printf 'c\\r\\neth0' > /var/lib/cni/networks/net/10.9.0.2
        nft add table ip nat; nft add chain ip nat KUBE-SERVICES
        echo 0 > /proc/sys/net/ipv4/ip_forward");
    let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let bridge_nf = has_bridge_nf();
    if bridge_nf {
        sh(&format!("echo 0 > {switch}"));
    }
    let (code, found) = findings();
    assert_eq!((code, ids(&found)), (2, vec!["forwarding-off", "bridge-nf-call-off"]));
    assert_eq!(found[0].1, "/proc/sys/net/ipv4/ip_forward");
    assert_eq!(found[1].1, switch);
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    if bridge_nf {
        sh(&format!("echo 1 > {switch}"));
        assert_eq!(findings(), (0, Vec::new()));
    } else {
        let (code, found) = findings();
        assert_eq!((code, ids(&found)), (1, vec!["bridge-nf-call-off"]));
        // Where no Service is called, it is no fault.
        sh("nft delete table ip nat");
    }
    // A firewall that drops is an error now: there is a pod.
    sh("iptables -P FORWARD DROP");
    let (code, found) = findings();
    assert_eq!((code, ids(&found)), (2, vec!["foreign-forward-drop"]));
}
