//! A node of its own for each test: a thread in new network and mount namespaces, with empty
//! `/run` and `/var/lib`, the plugins under all their names, and pods.
#![allow(dead_code, unreachable_pub)]

pub mod chained;
pub mod disk;
pub mod lan;
pub mod limits;
pub mod outside;
pub mod ports;
pub mod programs;
pub mod reference;
pub mod served;
pub mod trace;
pub mod traffic;
pub mod types;
pub mod ways;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use causeway_kernel::{NetNs, netns};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

/// Whether the whole matrix is run (`CAUSEWAY_MATRIX=full`), or a selection.
pub fn whole_matrix() -> bool {
    std::env::var_os("CAUSEWAY_MATRIX").is_some_and(|value| value == "full")
}

/// Points in a plugin's run, numbers of system calls, for a loop that ends by itself: one in `step` in the
/// whole matrix, fewer in the selection, from another one each time.
pub fn points(step: usize) -> impl Iterator<Item = usize> {
    use std::hash::{BuildHasher, RandomState};
    let (first, step) = match (whole_matrix(), step) {
        (true, step) => (1, step),
        // What loops do with every second or third point comes to all of them.
        (false, 1) => (0, 5),
        (false, step) => (0, 2 * step + 1),
    };
    let chance = RandomState::new().hash_one(step) as usize;
    let first = if first == 0 { 1 + chance % step } else { first };
    println!("from system call {first}, one in {step}");
    (first..).step_by(step)
}

/// Does something at such points until it answers that the run was over before one; then at those that
/// were passed over since the last: at its end a plugin lets go of what it holds. Answers the first point
/// that there is none of.
pub fn at_points(step: usize, mut there_is: impl FnMut(usize) -> bool) -> usize {
    let mut last = 0;
    for at in points(step) {
        if !there_is(at) {
            return (last + 1..at).find(|at| !there_is(*at)).unwrap_or(at);
        }
        last = at;
    }
    unreachable!("a plugin ends some day")
}

/// The plugins' names in their directory.
const NAMES: [&str; 13] = [
    "bandwidth",
    "bridge",
    "causeway",
    "firewall",
    "host-device",
    "host-local",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
];
/// Where the node keeps them.
pub const BIN_DIR: &str = "/run/bin";

/// A node.
pub struct Node {
    /// Where plugins are looked for.
    pub bin_dir: String,
}

/// What a plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output as JSON; null when it was empty.
    pub json: Value,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// The result of a call that succeeded.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.json
    }

    /// The error object of a call that failed: code and message with details.
    #[track_caller]
    pub fn err(self) -> (u64, String) {
        assert_eq!(self.code, 1, "{}{}", self.stdout, self.stderr);
        let text = |key: &str| self.json[key].as_str().unwrap_or_default().to_owned();
        (self.json["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")))
    }
}

impl Node {
    /// Moves the calling thread into a node of its own. What the thread starts lives there too.
    pub fn new() -> Self {
        netns::unshare_for_test().expect("tests of the plugins need root");
        for dir in ["/run", "/var/lib"] {
            mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
                .unwrap_or_else(|e| panic!("tmpfs on {dir}: {e}"));
        }
        fs::create_dir_all("/run/netns").unwrap();
        fs::create_dir_all("/run/causeway").unwrap();
        fs::create_dir_all(BIN_DIR).unwrap();
        for name in NAMES {
            std::os::unix::fs::symlink(
                env!("CARGO_BIN_EXE_causeway-cni"),
                format!("{BIN_DIR}/{name}"),
            )
            .unwrap();
        }
        Self { bin_dir: BIN_DIR.to_owned() }
    }

    /// Makes a pod's namespace and returns its path.
    pub fn pod(&self, name: &str) -> String {
        let path = format!("/run/netns/{name}");
        netns::create_named(Path::new(&path)).unwrap();
        path
    }

    /// Removes a pod's namespace.
    pub fn remove_pod(&self, name: &str) {
        netns::delete_named(Path::new(&format!("/run/netns/{name}"))).unwrap();
    }

    /// A call as a runtime makes it, for the pod `container` with `eth0`.
    pub fn call<'a>(&'a self, command: &'a str, container: &'a str, conf: &'a Value) -> Call<'a> {
        Call {
            program: None,
            bin_dir: &self.bin_dir,
            command,
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
            netns: Some(format!("/run/netns/{container}")),
            args: String::new(),
            conf,
        }
    }

    /// ADD that must succeed.
    #[track_caller]
    pub fn add(&self, container: &str, conf: &Value) -> Value {
        self.call("ADD", container, conf).run().ok()
    }

    /// DEL that must succeed.
    #[track_caller]
    pub fn del(&self, container: &str, conf: &Value) {
        self.call("DEL", container, conf).run().ok();
    }

    /// Everything that an attachment may leave on the node, as text: empty when nothing is left.
    pub fn residue(&self) -> String {
        let mut left = String::new();
        for kind in ["veth", "ifb"] {
            left.push_str(&sh(&format!("ip -o link show type {kind}")));
        }
        for dir in ["/var/lib/causeway", "/var/lib/cni"] {
            for file in files_below(Path::new(dir)) {
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                // `.new` is where all leases and their records are written first: one a directory.
                let shared = ["lock", ".new", ".released"].contains(&name.as_str());
                // The address is free; its next pod is to be announced.
                let note = name.starts_with(".other-mac-") || name.starts_with("last_reserved_ip.");
                if !shared && !note {
                    left.push_str(&format!("{}\n", file.display()));
                }
            }
        }
        let rules = sh("nft -s list ruleset");
        for line in rules.lines().map(str::trim) {
            if line.contains("elements =")
                || line.contains("chain cw")
                || line.contains("chain except")
            {
                left.push_str(&format!("{line}\n"));
            }
        }
        for neighbours in ["ip neigh show nud permanent", "ip neigh show proxy"] {
            left.push_str(&sh(neighbours));
            left.push_str(&sh(&neighbours.replace("ip ", "ip -6 ")));
        }
        left.push_str(&sh("ip route show proto 203"));
        left.push_str(&sh("ip -6 route show proto 203"));
        left
    }
}

/// One call of a plugin.
pub struct Call<'a> {
    /// The binary; `None`: the one named by the configuration's type.
    pub program: Option<String>,
    /// CNI_PATH.
    pub bin_dir: &'a str,
    /// CNI_COMMAND.
    pub command: &'a str,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS.
    pub netns: Option<String>,
    /// CNI_ARGS.
    pub args: String,
    /// Configuration.
    pub conf: &'a Value,
}

impl Call<'_> {
    /// Starts the process with its input written.
    pub fn spawn(&self) -> std::process::Child {
        let program = self.program.clone().unwrap_or_else(|| {
            format!("{}/{}", self.bin_dir, self.conf["type"].as_str().unwrap_or("causeway"))
        });
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_IFNAME", &self.ifname)
            .env("CNI_PATH", self.bin_dir)
            .env("CNI_ARGS", &self.args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(netns) = &self.netns {
            command.env("CNI_NETNS", netns);
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let input = match self.conf {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // A plugin that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child
    }

    /// Runs it to its end.
    pub fn run(&self) -> Answer {
        finish(self.spawn())
    }
}

/// Waits for a plugin.
pub fn finish(child: std::process::Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None, "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    Answer {
        code: output.status.code().unwrap(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The configuration of every tutorial.
pub fn tutorial(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "pod-network", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local", "subnet": "10.244.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]
        }
    })
}

/// A shell command's standard output; it must succeed.
#[track_caller]
pub fn sh(command: &str) -> String {
    let (ok, text) = try_sh(command);
    assert!(ok, "{command}: {text}");
    text
}

/// A shell command: did it succeed, and what did it print?
pub fn try_sh(command: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status.success(), text)
}

/// Runs a shell command in a pod; it must succeed.
#[track_caller]
pub fn in_pod(pod: &str, command: &str) -> String {
    sh(&format!("ip netns exec {pod} {command}"))
}

/// Does the pod get an answer to a ping?
pub fn pings(pod: &str, to: &str) -> bool {
    try_sh(&format!("ip netns exec {pod} ping -c 1 -W 3 -n {to}")).0
}

/// Waits until something holds, which must not take long.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60, "waited for a minute until {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// All files below a directory.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// The namespace of a pod.
pub fn netns_of(pod: &str) -> NetNs {
    NetNs::open(Path::new(&format!("/run/netns/{pod}"))).unwrap()
}
