//! podman with its CNI backend on our plugins: published ports, networks of both families, an
//! upgrade from the reference under running containers, and nothing left behind.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::outside::{EXT, NODE, at, node};
use common::programs::{HTTPD, WHO, bring, rootfs};
use common::reference::REFERENCE;
use common::traffic::{http, serve, tcp, udp};
use common::{Node, sh, try_sh, until};

/// Where podman looks for plugins here.
const PLUGINS: &str = "/run/plugins";
/// The network of these tests.
const NETWORK: &str = "web";

/// podman on a node of a test. What still runs ends with it.
struct Podman {
    cgroup: String,
    node: Node,
    before: String,
}

impl Podman {
    /// podman with the plugins in [`PLUGINS`], and a network of both families.
    fn new() -> Self {
        let node = node();
        bring(&["podman", "conmon", "runc", "busybox", "iptables"]);
        fs::create_dir_all("/etc/containers").unwrap();
        fs::create_dir_all(PLUGINS).unwrap();
        let containers = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             apparmor_profile = \"unconfined\"\n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             runtime = \"runc\"\n\
             [network]\n\
             network_backend = \"cni\"\n\
             cni_plugin_dirs = [\"{PLUGINS}\"]\n\
             network_config_dir = \"/run/net.d\"\n"
        );
        fs::write("/etc/containers/containers.conf", containers).unwrap();
        let storage = "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\n\
             graphroot = \"/var/lib/containers/storage\"\n";
        fs::write("/etc/containers/storage.conf", storage).unwrap();
        fs::write(
            "/etc/containers/policy.json",
            "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}",
        )
        .unwrap();
        let unique = format!("cw-podman-{}-{:?}", std::process::id(), std::thread::current().id());
        let cgroup = unique.replace(['(', ')'], "");
        let before = node.residue();
        let podman = Self { cgroup, node, before };
        let backend = podman.ok("info --format {{.Host.NetworkBackend}}");
        assert_eq!(
            backend.trim(),
            "cni",
            "these tests need podman 4 with CNI, as Debian 12 has it"
        );
        podman
    }

    /// The same with our plugins installed and a network made.
    fn with_ours() -> Self {
        let podman = Self::new();
        install("--links");
        podman.make_network();
        podman
    }

    fn make_network(&self) {
        self.ok(&format!(
            "network create --ipv6 --subnet 10.89.0.0/24 --subnet fd89::/64 {NETWORK}"
        ));
    }

    /// A command of podman; it must succeed.
    #[track_caller]
    fn ok(&self, words: &str) -> String {
        sh(&format!("podman {words}"))
    }

    /// Starts a container that runs `program`, and answers the name of its namespace.
    #[track_caller]
    fn run(&self, name: &str, options: &str, program: &str) -> String {
        let (cgroup, root) = (&self.cgroup, rootfs());
        self.ok(&format!(
            "run -d --name {name} --cgroup-parent /{cgroup} --network {NETWORK} {options} \
             --rootfs {root} {program}"
        ));
        self.netns(name)
    }

    /// A container that serves HTTP on port 8080 of the node.
    fn run_web(&self, name: &str, port: u16) -> String {
        self.run(name, &format!("-p {port}:80"), HTTPD)
    }

    /// The name of a container's namespace.
    #[track_caller]
    fn netns(&self, name: &str) -> String {
        let path = self.ok(&format!("inspect --format {{{{.NetworkSettings.SandboxKey}}}} {name}"));
        Path::new(path.trim()).file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// A container's addresses: IPv4, IPv6.
    fn addresses(&self, name: &str) -> [String; 2] {
        ["IPAddress", "GlobalIPv6Address"].map(|key| {
            let format = format!("{{{{.NetworkSettings.Networks.{NETWORK}.{key}}}}}");
            self.ok(&format!("inspect --format {format} {name}")).trim().to_owned()
        })
    }

    /// Removes all containers and the network; nothing of them may be left.
    #[track_caller]
    fn leaves_nothing(&self) {
        self.ok("rm -f -t 0 -a");
        assert_eq!(self.node.residue(), self.before);
        self.ok(&format!("network rm {NETWORK}"));
        assert_eq!(sh("ip -o link show type bridge"), "");
        let records = sh("find /var/lib/causeway /var/lib/cni -type f ! -name lock \
             ! -name '.new' ! -name 'last_reserved_ip.*' ! -name '.other-mac-*'");
        assert_eq!(records, "");
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = try_sh("podman rm -f -t 0 -a");
        // Nobody removes these.
        let ours = format!("-depth -type d -path '*/{}*'", self.cgroup);
        let remove = || try_sh(&format!("find /sys/fs/cgroup {ours} -exec rmdir {{}} +"));
        for _ in 0..100 {
            if remove().0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Puts our plugins where podman looks for them, as the documentation says.
fn install(options: &str) {
    let program = env!("CARGO_BIN_EXE_causeway-cni");
    let mut words = vec!["install", PLUGINS];
    words.extend(options.split_whitespace());
    let done = Command::new(program).args(words).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Who the container says asked it.
fn web(from: &str, ip: &str, port: u16) -> String {
    http(from, &at(ip, port), WHO).replace("::ffff:", "").replace(['[', ']'], "")
}

/// Waits until the container's server is up.
#[track_caller]
fn is_served(from: &str, port: u16) {
    until("the container serves", || !web(from, NODE[0], port).is_empty());
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let podman = Podman::with_ours();
    let list = sh("cat /run/net.d/*");
    for plugin in ["bridge", "portmap", "firewall", "tuning"] {
        assert!(list.contains(&format!("\"type\": \"{plugin}\"")), "{list}");
    }
    let pod = podman.run_web("web", 8080);
    is_served("ext", 8080);
    let names = podman.run("names", "-p 5353:53/udp", "/bin/busybox sleep 3600");
    serve(&names, "[::]:53");
    for (family, (own, ext)) in NODE.into_iter().zip(EXT).enumerate() {
        let address = &podman.addresses("web")[family];
        // From outside, as whom it is; from the node; from the other container.
        assert_eq!(web("ext", own, 8080), format!("web {ext}"));
        assert!(web("", own, 8080).starts_with("web "), "the node by its address {own}");
        assert!(web("", address, 80).starts_with("web "), "the node by the container's");
        let other = &podman.addresses("names")[family];
        assert_eq!(web(&names, address, 80), format!("web {other}"));
        assert!(web(&names, own, 8080).starts_with("web "), "a container by the node's address");
        // From itself.
        assert!(web(&pod, own, 8080).starts_with("web "), "itself by the node's address {own}");
        // UDP.
        assert_eq!(udp("ext", &at(own, 5353)), format!("{names} {ext}"));
        assert!(udp("", &at(own, 5353)).starts_with(&names), "UDP from the node");
        assert!(udp(&names, &at(own, 5353)).starts_with(&names), "UDP from itself");
        assert_eq!(udp(&pod, &at(other, 53)), format!("{names} {address}"));
        // To the outside with the node's address.
        serve("ext", &at(ext, 7000 + family as u16));
        assert_eq!(tcp(&pod, &at(ext, 7000 + family as u16)), format!("ext {own}"));
    }
    assert!(web("", "127.0.0.1", 8080).starts_with("web "), "localhost");
    assert!(udp("", "127.0.0.1:5353").starts_with(&names), "localhost by UDP");
    // Taken: podman says by whom.
    let (done, said) = try_sh(&format!(
        "podman run -d --cgroup-parent /{} --network {NETWORK} -p 8080:80 --rootfs {} {HTTPD}",
        podman.cgroup,
        rootfs()
    ));
    assert!(!done && said.contains("hostPort 8080/tcp") && said.contains("is held by"), "{said}");
    podman.ok("restart -t 0 web");
    is_served("ext", 8080);
    podman.ok("stop -t 0 web");
    assert_eq!(web("ext", NODE[0], 8080), "");
    podman.leaves_nothing();
}

/// What podman's users do after something flushed all rules.
#[test]
fn a_reload_of_the_network_restores_what_a_flush_took() {
    let podman = Podman::with_ours();
    podman.run_web("web", 8080);
    is_served("ext", 8080);
    sh("nft flush ruleset");
    assert_eq!(web("ext", NODE[0], 8080), "");
    podman.ok("network reload -a");
    let pod = podman.netns("web");
    for (family, (own, ext)) in NODE.into_iter().zip(EXT).enumerate() {
        assert_eq!(web("ext", own, 8080), format!("web {ext}"));
        serve("ext", &at(ext, 7000 + family as u16));
        assert_eq!(tcp(&pod, &at(ext, 7000 + family as u16)), format!("ext {own}"));
    }
    podman.leaves_nothing();
}

/// Containers that the reference attached go on, and are stopped and started with ours.
#[test]
fn plugins_are_exchanged_under_running_containers() {
    assert!(
        Path::new(REFERENCE).join("portmap").is_file(),
        "no reference plugins in {REFERENCE}: apt-get install containernetworking-plugins"
    );
    let podman = Podman::new();
    sh(&format!("cp -rL {REFERENCE}/. {PLUGINS}"));
    podman.make_network();
    for (name, port) in [("stays", 8080), ("again", 8081), ("goes", 8082)] {
        podman.run_web(name, port);
        is_served("ext", port);
    }
    let chains = |name: &str| {
        let id = podman.ok(&format!("inspect --format {{{{.Id}}}} {name}"));
        let rules = sh("iptables-save; ip6tables-save");
        rules.lines().filter(|line| line.contains(id.trim())).count()
    };
    for name in ["stays", "again", "goes"] {
        assert!(chains(name) > 0, "the reference does not name {name} in its rules");
    }
    install("--links --replace");
    for (port, own) in [(8080, NODE[0]), (8081, NODE[1])] {
        assert!(web("ext", own, port).starts_with("web "), "nobody may notice");
    }
    podman.ok("restart -t 0 again");
    is_served("ext", 8081);
    assert_eq!(chains("again"), 0);
    assert!(sh("nft list table inet causeway_cni").contains("tcp . 8081"));
    podman.ok("rm -f -t 0 goes");
    assert_eq!(web("ext", NODE[0], 8082), "");
    for own in NODE {
        assert!(web("ext", own, 8080).starts_with("web "), "the others stay");
        assert!(web("ext", own, 8081).starts_with("web "), "the others stay");
    }
    podman.leaves_nothing();
    let rules = sh("iptables-save; ip6tables-save");
    let prefixes = ["CNI-DN-", "CNI-SN-", "10.89.0.", "fd89::"];
    let left: Vec<&str> =
        rules.lines().filter(|line| prefixes.iter().any(|p| line.contains(p))).collect();
    assert_eq!(left, Vec::<&str>::new());
}
