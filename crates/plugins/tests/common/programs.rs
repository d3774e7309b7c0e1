//! Programs of others (container runtimes, firewalls) on a node of a test: as `./dev runtimes`
//! unpacked them, laid over the machine's own `/usr` and `/etc` for this node alone.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{sh, try_sh};

/// Where `./dev runtimes` puts them.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/runtimes");
/// The server of [`rootfs`] answers here.
pub const WHO: &str = "/cgi-bin/who";

/// Lays the unpacked programs over the node's, so that each is where its package puts it. What is
/// written below `/etc` stays with the node.
///
/// # Panics
/// When one of `programs` is nowhere.
#[track_caller]
pub fn bring(programs: &[&str]) {
    let unpacked = fs::canonicalize(UNPACKED)
        .unwrap_or_else(|e| panic!("{UNPACKED}: {e}: run ./dev runtimes, which unpacks it"));
    let unpacked = unpacked.display();
    fs::create_dir_all("/run/etc/new").unwrap();
    fs::create_dir_all("/run/etc/work").unwrap();
    sh(&format!("mount -t overlay cw -o lowerdir={unpacked}/usr:/usr /usr"));
    sh(&format!(
        "mount -t overlay cw -o \
         lowerdir={unpacked}/etc:/etc,upperdir=/run/etc/new,workdir=/run/etc/work /etc"
    ));
    for program in programs {
        let (found, _) = try_sh(&format!("command -v {program}"));
        assert!(found, "{program} is missing: remove target/runtimes and run ./dev runtimes");
    }
}

/// A file system for containers at `/run/rootfs`: busybox, and a CGI program that says `web` and
/// who asks.
pub fn rootfs() -> &'static str {
    use std::os::unix::fs::PermissionsExt;
    const DIR: &str = "/run/rootfs";
    if Path::new(DIR).exists() {
        return DIR;
    }
    for dir in ["bin", "proc", "sys", "dev", "etc", "run", "tmp", "www/cgi-bin"] {
        fs::create_dir_all(format!("{DIR}/{dir}")).unwrap();
    }
    fs::copy(which("busybox"), format!("{DIR}/bin/busybox")).unwrap();
    let who = format!("{DIR}/www{WHO}");
    let script = "#!/bin/busybox sh\necho; echo web $REMOTE_ADDR\n";
    fs::write(&who, script).unwrap();
    fs::set_permissions(&who, fs::Permissions::from_mode(0o755)).unwrap();
    let probe = format!("chroot {DIR} /bin/busybox true");
    let (is_static, said) = try_sh(&probe);
    assert!(is_static, "busybox must be static (Debian: busybox-static): {said}");
    DIR
}

/// What a container of [`rootfs`] runs to serve on port 80, all families.
pub const HTTPD: &str = "/bin/busybox httpd -f -p 80 -h /www";

fn which(program: &str) -> PathBuf {
    PathBuf::from(sh(&format!("command -v {program}")).trim())
}

/// A program that runs for the rest of the test, with what it says in `/run/NAME.log`.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` (words between blanks).
    #[track_caller]
    pub fn start(name: &str, command: &str) -> Self {
        let log = Path::new("/run").join(format!("{name}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        Self { child, log }
    }

    /// Waits until `probe` succeeds.
    #[track_caller]
    pub fn ready(&mut self, probe: &str) {
        super::until(&format!("{probe} succeeds"), || {
            let over = self.child.try_wait().unwrap();
            assert_eq!(over, None, "it ended: {}", self.said());
            try_sh(probe).0
        });
    }

    /// Everything that it said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) {
        super::until("it ends", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A containerd that is ready, on nothing but what lies below `/var/lib/containerd` already.
#[track_caller]
pub fn containerd() -> Daemon {
    fs::write(
        "/run/containerd.toml",
        "version = 2\nroot = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"/run/containerd/containerd.sock\"\n",
    )
    .unwrap();
    let mut daemon = Daemon::start("containerd", "containerd -c /run/containerd.toml");
    daemon.ready("ctr version");
    daemon
}
