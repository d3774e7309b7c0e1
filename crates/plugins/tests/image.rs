//! The image of the DaemonSet in a real containerd with runc: imported by `ctr`, and its agent run with
//! the capabilities and mounts of the DaemonSet and no others.
//!
//! There is no API here: the agent takes the last good view from the disk, as after a boot while the
//! API is away, and makes the node's network by it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::outside::node;
use common::programs::{Daemon, bring, containerd};
use common::{Node, sh, try_sh, until};
use serde_json::{Value, json};

const NAME: &str = "docker.io/library/causeway:0.0.0";
/// What runc gives without other words (containerd's `defaultUnixCaps`).
const USUAL: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The programs that are put into the image: as they are delivered.
fn dist() -> PathBuf {
    match std::env::var_os("CAUSEWAY_BIN").map(PathBuf::from) {
        Some(program) => program.parent().unwrap().to_owned(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist"),
    }
}

/// containerd with the image.
struct Containerd {
    _daemon: Daemon,
    node: Node,
    digest: String,
}

impl Containerd {
    fn new() -> Self {
        let node = node();
        bring(&["containerd", "ctr", "runc"]);
        let daemon = containerd();
        let programs: BTreeMap<String, Vec<u8>> = xtask::image::PROGRAMS
            .iter()
            .map(|name| {
                let path = dist().join(name);
                let read = fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}: ./dev build"));
                ((*name).to_owned(), read)
            })
            .collect();
        let image = xtask::image::image(programs, "amd64", "0.0.0", 1_700_000_000);
        let archive = image.build().unwrap();
        fs::write("/run/image.tar", &archive.bytes).unwrap();
        sh("ctr -n k8s.io image import --snapshotter native /run/image.tar");
        Self { _daemon: daemon, node, digest: archive.digest }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = try_sh(
            "for task in $(ctr -n k8s.io task ls -q); do ctr -n k8s.io task kill -s 9 $task; done",
        );
        for _ in 0..100 {
            if !try_sh("ctr -n k8s.io task ls").1.contains("RUNNING") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ =
            try_sh("for task in $(ctr -n k8s.io task ls -q); do ctr -n k8s.io task rm $task; done");
    }
}

fn ctr_run(options: &str, name: &str, command: &str) -> String {
    format!("ctr -n k8s.io run --snapshotter native --cgroup= {options} {NAME} {name} {command}")
}

#[test]
fn ctr_imports_lists_and_runs_it() {
    let containerd = Containerd::new();
    assert_eq!(sh("ctr -n k8s.io image ls -q").trim(), NAME);
    let listed = sh("ctr -n k8s.io image ls");
    assert!(listed.contains(&containerd.digest) && listed.contains("linux/amd64"), "{listed}");
    let blobs = sh("ctr -n k8s.io image check --snapshotter native");
    assert!(blobs.contains("complete (2/2)"), "{blobs}");
    // Without other words it is the command itself.
    let said = sh(&ctr_run("--rm", "a", "/causeway version"));
    assert!(said.starts_with("causeway "), "{said}");
    assert!(try_sh(&ctr_run("--rm", "b", "")).1.contains("Usage: causeway"));
    // The init containers: no capability, nothing writable but the directory.
    sh("mkdir -p /run/plugins /run/command");
    let none = USUAL.map(|cap| format!("--cap-drop CAP_{cap}")).join(" ");
    let install = |dir: &str, at: &str, words: &str, name: &str| {
        let mount = format!("--mount type=bind,src={dir},dst={at},options=rbind:rw");
        sh(&ctr_run(&format!("--rm --read-only {none} {mount}"), name, words))
    };
    install(
        "/run/plugins",
        "/host/opt/cni/bin",
        "/causeway-cni install /host/opt/cni/bin --links",
        "c",
    );
    install("/run/command", "/host/command", "/causeway install /host/command", "d");
    for (path, of) in
        [("/run/plugins/causeway-cni", "causeway-cni"), ("/run/command/causeway", "causeway")]
    {
        assert!(fs::read(path).unwrap() == fs::read(dist().join(of)).unwrap(), "{path}");
    }
    assert_eq!(fs::read_link("/run/plugins/loopback").unwrap(), Path::new("causeway-cni"));
    assert!(sh("/run/command/causeway version").starts_with("causeway "));
    // The command as it came to the node.
    fs::write("/run/good.yaml", "road: vxlan\n").unwrap();
    fs::write("/run/bad.yaml", "raod: vxlan\n").unwrap();
    let check = |file: &str| try_sh(&format!("/run/command/causeway agent --check-config {file}"));
    assert_eq!(check("/run/good.yaml"), (true, "/run/good.yaml: good\n".to_owned()));
    let (good, said) = check("/run/bad.yaml");
    assert!(!good && said.contains("/run/bad.yaml:1:1: unknown field `raod`"), "{said}");
    assert!(!check("/run/none.yaml").0);
    // Again, over what is there and runs.
    install("/run/command", "/host/command", "/causeway install /host/command", "e");
}

/// The agent's container in the plain manifest.
fn agent() -> (Value, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/causeway.yaml");
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("---\n").find(|d| d.contains("kind: DaemonSet\n")).unwrap();
    let daemon_set: Value = serde_saphyr::from_str(text).unwrap();
    let pod = &daemon_set["spec"]["template"]["spec"];
    (pod["containers"][0].clone(), pod["volumes"].clone())
}

/// Options of `ctr run` that give a container what the manifest does.
fn as_deployed() -> String {
    let (container, volumes) = agent();
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(security["readOnlyRootFilesystem"], true);
    let mut options = "-d --net-host --read-only --seccomp --env NODE_NAME=n1".to_owned();
    let add: Vec<&str> = security["capabilities"]["add"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for cap in USUAL.iter().filter(|cap| !add.contains(cap)) {
        options += &format!(" --cap-drop CAP_{cap}");
    }
    for cap in add {
        options += &format!(" --cap-add CAP_{cap}");
    }
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volume =
            volumes.as_array().unwrap().iter().find(|v| v["name"] == mount["name"]).unwrap();
        // The ConfigMap.
        let from = volume["hostPath"]["path"].as_str().unwrap_or("/run/config");
        let to = mount["mountPath"].as_str().unwrap();
        let how = if mount["readOnly"] == true { "ro" } else { "rw" };
        let propagation = match mount["mountPropagation"].as_str() {
            None => "rprivate",
            Some("HostToContainer") => "rslave",
            Some(other) => panic!("{other}"),
        };
        fs::create_dir_all(from).unwrap();
        options +=
            &format!(" --mount type=bind,src={from},dst={to},options=rbind:{how}:{propagation}");
    }
    options
}

#[test]
fn the_agent_needs_no_more_than_the_manifest_gives() {
    let containerd = Containerd::new();
    let node = &containerd.node;
    let _ = fs::remove_dir_all("/etc/cni/net.d");
    let view = json!({"nodes": {
        "n1": {"addresses": ["192.168.7.1", "fd07::1"], "podCidrs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "n2": {"addresses": ["192.168.7.2", "fd07::2"], "podCidrs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
    }});
    fs::create_dir_all("/var/lib/causeway").unwrap();
    fs::write("/var/lib/causeway/last-view.json", view.to_string()).unwrap();
    fs::create_dir_all("/run/config").unwrap();
    fs::write("/run/config/config.yaml", "road: vxlan\n").unwrap();
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    let (container, _) = agent();
    let command: Vec<&str> =
        container["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let options = as_deployed() + " --log-uri file:///run/agent.log";
    sh(&ctr_run(&options, "agent", &command.join(" ")));
    let pid = sh("ctr -n k8s.io task ls | awk '$1 == \"agent\" { print $2 }'");
    let pid = pid.trim();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // CAP_NET_ADMIN is 12, CAP_SYS_ADMIN 21 (linux/capability.h).
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let line = format!("{set}:\t{:016x}", (1u64 << 12) | (1 << 21));
        assert!(status.contains(&line), "{line} is not in {status}");
    }
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(mounts.lines().any(|l| l.contains(" /proc/sys ro")), "{mounts}");
    let causeway = dist().join("causeway");
    let say = |words: &str| try_sh(&format!("{} {words}", causeway.display())).1;
    let ready = || say("node status").contains("node n1: ready");
    for _ in 0..300 {
        if ready() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(ready(), "{}\n{}", say("node status"), fs::read_to_string("/run/agent.log").unwrap());
    let all = say("node status --json");
    let all: Value = serde_json::from_str(&all).unwrap_or_else(|e| panic!("{e}: {all}"));
    let bad: Vec<&Value> =
        all["objects"].as_array().unwrap().iter().filter(|o| o["state"] != "ok").collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(sh("ip -d link show cw-vxlan").contains("vxlan"));
    assert_eq!(sh("sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding"), "1\n1\n");
    assert!(sh("nft list table inet causeway").contains("masquerade"));
    // A pod that comes after the container, and goes by the agent.
    let list: Value =
        serde_json::from_str(&fs::read_to_string("/etc/cni/net.d/05-causeway.conflist").unwrap())
            .unwrap();
    let mut conf = list["plugins"][0].clone();
    conf["cniVersion"] = json!("1.0.0");
    conf["name"] = list["name"].clone();
    node.pod("p1");
    node.add("p1", &conf);
    until("the agent sees the pod", || say("node status --all").contains("cw"));
    assert!(Path::new("/var/lib/causeway/attachments/p1-eth0.json").exists());
    node.del("p1", &conf);
    until("the agent has removed the rest", || {
        !Path::new("/var/lib/causeway/attachments/p1-eth0.json").exists()
    });
    let leases = sh("find /var/lib/cni/networks -type f -name '[0-9f]*'");
    assert_eq!(leases, "");
    assert!(say("node status").contains(" 0 failed"), "{}", say("node status --all"));
}
