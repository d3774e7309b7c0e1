//! containerd with runc on our plugins: `ctr run --cni` with a list of three types, dual stack,
//! while containerd is killed in between.
//!
//! `ctr` of containerd 1.6 hands no port mappings over, so that the list has them; and it calls DEL
//! only for a container that it was waiting for.

mod common;

use std::fs;
use std::process::Command;

use common::outside::{EXT, NODE, at, node};
use common::programs::{Daemon, HTTPD, WHO, bring, containerd, rootfs};
use common::traffic::{http, serve, tcp};
use common::ways::gc;
use common::{Node, sh, try_sh, until};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

/// containerd on a node of a test.
struct Containerd {
    daemon: Daemon,
    node: Node,
    before: String,
}

/// The container's addresses, one after the other.
const FIRST: [&str; 2] = ["10.22.0.2", "fd22::2"];
const LIMIT: u64 = 80_000_000;

/// The plugins of the list.
fn plugins() -> Vec<Value> {
    vec![
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd22::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        }),
        json!({
            "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
            ]}
        }),
        json!({
            "type": "bandwidth", "ingressRate": LIMIT, "ingressBurst": LIMIT / 100,
            "egressRate": LIMIT, "egressBurst": LIMIT / 100
        }),
    ]
}

impl Containerd {
    fn new() -> Self {
        let node = node();
        bring(&["containerd", "ctr", "runc", "busybox"]);
        // Where `ctr` looks for plugins and configuration, with no way to say another place.
        mount("tmpfs", "/opt", "tmpfs", MountFlags::empty(), Some(c"mode=0755")).unwrap();
        let done = Command::new(env!("CARGO_BIN_EXE_causeway-cni"))
            .args(["install", "/opt/cni/bin", "--links"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let _ = fs::remove_dir_all("/etc/cni/net.d");
        fs::create_dir_all("/etc/cni/net.d").unwrap();
        let list = json!({"cniVersion": "1.0.0", "name": "ctr", "plugins": plugins()});
        fs::write("/etc/cni/net.d/10-ctr.conflist", list.to_string()).unwrap();
        let before = node.residue();
        let daemon = containerd();
        Self { daemon, node, before }
    }

    /// Kills containerd, which takes no notice of what it runs, and starts another.
    fn kill_and_start(&mut self) {
        self.daemon.kill();
        self.daemon = containerd();
    }

    /// Nothing is left of any container.
    #[track_caller]
    fn holds_nothing(&self) {
        assert_eq!(self.node.residue(), self.before);
        assert_eq!(sh("ip -o link show master cni0"), "");
        assert_eq!(sh("find /var/lib/cni/results -type f"), "", "the runtime's own");
    }

    /// GC of every plugin of the list, as a runtime without any container calls it.
    fn gc(&self) {
        for mut conf in plugins() {
            conf["cniVersion"] = json!("1.1.0");
            conf["name"] = json!("ctr");
            gc(&self.node, &conf, &[]).ok();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = try_sh("for task in $(ctr task ls -q); do ctr task kill -s 9 $task; done");
        // Shims end with their tasks.
        for _ in 0..100 {
            if !try_sh("ctr task ls").1.contains("RUNNING") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = try_sh("for task in $(ctr task ls -q); do ctr task rm $task; done");
    }
}

/// The words that run a container of that name with a network.
fn run(options: &str, name: &str) -> String {
    format!("ctr run {options} --cni --cgroup= --rootfs {} {name} {HTTPD}", rootfs())
}

fn web(from: &str, ip: &str, port: u16) -> String {
    http(from, &at(ip, port), WHO).replace("::ffff:", "").replace(['[', ']'], "")
}

/// A name for the namespace of a container's process.
fn netns(name: &str) -> String {
    let pid = sh(&format!("ctr task ls | awk '$1 == \"{name}\" {{ print $2 }}'"));
    sh(&format!("ip netns attach {name} {}", pid.trim()));
    name.to_owned()
}

/// It is reached in every way, and reaches others, all by both families.
#[track_caller]
fn works(pod: &str, addresses: [&str; 2], port: u16) {
    until("the container serves", || !web("ext", NODE[0], 8080).is_empty());
    for ((own, ext), address) in NODE.into_iter().zip(EXT).zip(addresses) {
        let listed = sh(&format!("ip -n {pod} -o addr show dev eth0"));
        assert!(listed.contains(&format!(" {address}/")), "{listed}");
        assert_eq!(web("ext", own, 8080), format!("web {ext}"));
        assert!(web("", own, 8080).starts_with("web "), "the node by its address {own}");
        assert!(web("", address, 80).starts_with("web "), "the node by the container's");
        assert!(web(pod, own, 8080).starts_with("web "), "itself by the node's address {own}");
        assert_eq!(tcp(pod, &at(ext, port)), format!("ext {own}"), "masqueraded");
    }
    assert!(web("", "127.0.0.1", 8080).starts_with("web "), "localhost");
}

#[test]
fn ctr_runs_and_removes_a_container() {
    let containerd = Containerd::new();
    serve("ext", "[::]:7000");
    let mut foreground = Daemon::start("web", &run("--rm", "web"));
    foreground.ready("ctr task ls | grep -q 'web .*RUNNING'");
    until("it has its network", || !web("ext", NODE[0], 8080).is_empty());
    let pod = netns("web");
    works(&pod, FIRST, 7000);
    let limits = sh("ip -o link show type ifb") + &sh("tc qdisc show");
    assert!(limits.contains("bwp") && limits.matches("rate 80Mbit").count() == 2, "{limits}");
    sh("ip netns del web; ctr task kill -s 9 web");
    foreground.ended();
    containerd.holds_nothing();
    assert_eq!(sh("ctr container ls -q"), "");
}

/// The container and its network go on without containerd. What nobody calls DEL for is no burden:
/// the container can be run again, and GC takes the rest.
#[test]
fn containerd_is_killed() {
    let mut containerd = Containerd::new();
    serve("ext", "[::]:7000");
    sh(&run("-d", "web"));
    let pod = netns("web");
    works(&pod, FIRST, 7000);
    containerd.daemon.kill();
    works(&pod, FIRST, 7000);
    containerd.kill_and_start();
    works(&pod, FIRST, 7000);
    let end = |name: &str| {
        sh(&format!("ip netns del {name}; ctr task kill -s 9 {name}"));
        until("it has ended", || sh("ctr task ls").contains("STOPPED"));
        let _ = try_sh(&format!("ctr task rm {name}"));
        sh(&format!("ctr container rm {name}"));
    };
    end("web");
    assert_ne!(containerd.node.residue(), containerd.before, "ctr has learned to call DEL");
    // The port is held by one that is gone; another, and the same, get it.
    sh(&run("-d", "other"));
    let pod = netns("other");
    works(&pod, ["10.22.0.3", "fd22::3"], 7000);
    end("other");
    sh(&run("-d", "web"));
    let pod = netns("web");
    works(&pod, ["10.22.0.4", "fd22::4"], 7000);
    end("web");
    containerd.gc();
    sh("rm -r /var/lib/cni/results");
    sh("mkdir /var/lib/cni/results");
    containerd.holds_nothing();
}
