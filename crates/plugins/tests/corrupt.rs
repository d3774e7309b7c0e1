//! Files of the state that were damaged under a living pod: whatever is in their place, the pod keeps
//! its address for itself, nothing hangs, and in the end nothing is left.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use causeway_plugins::Paths;
use causeway_plugins::collect::{Collector, Network};
use common::served::{Families, addresses};
use common::ways::{Way, check, dual, everywhere, gc, inside, soon};
use common::{Node, sh, try_sh, whole_matrix};
use serde_json::Value;

const LEASES: &str = "/var/lib/cni/networks/pod-network";
/// What a link leads to; it must stay as it is.
const FOREIGN: &str = "/var/lib/foreign";

/// What becomes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Damage {
    Is(&'static str, Vec<u8>),
    Cut(usize),
    Directory,
    FullDirectory,
    Link(&'static str),
    Pipe,
    Socket,
    NoPermissions,
}

use Damage::*;

/// Those that have to do with addresses in both families alike.
fn few() -> Vec<Damage> {
    vec![Cut(0), Cut(1), Is("zeros", vec![0; 64]), Directory, Link(FOREIGN), Pipe]
}

fn damages(path: &Path) -> Vec<Damage> {
    let whole = fs::read(path).unwrap_or_default();
    let is = |name: &'static str, bytes: &[u8]| Is(name, bytes.to_vec());
    let mut all = vec![
        is("zeros", &[0; 64]),
        is("binary", &[0x7f, b'E', 0xff, 0xfe, 0x80, b'\r', b'\n', 0xc3]),
        is("invalid UTF-8", b"p1\xff\r\neth0"),
        Is("huge", vec![b'{'; 10 << 20]),
        Is("more than is ever read", vec![b'x'; 17 << 20]),
        is("a JSON list", b"[1, 2]"),
        is("a JSON number", b"7"),
        is("an empty JSON object", b"{}"),
        is("spaces", b"  \r\n  \n"),
        Directory,
        FullDirectory,
        Link("/var/lib/nowhere"),
        Link("/dev/zero"),
        Link(FOREIGN),
        Pipe,
        Socket,
        NoPermissions,
    ];
    let cuts = if whole_matrix() { 16 } else { 4 };
    all.extend((0..whole.len()).step_by(1.max(whole.len() / cuts)).map(Cut));
    all
}

fn inflict(path: &Path, damage: &Damage) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let whole = fs::read(path).unwrap_or_default();
    if *damage != NoPermissions {
        let _ = fs::remove_file(path);
    }
    match damage {
        Is(_, bytes) => fs::write(path, bytes).unwrap(),
        Cut(length) => fs::write(path, &whole[..whole.len().min(*length)]).unwrap(),
        Directory => fs::create_dir(path).unwrap(),
        FullDirectory => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("x"), "").unwrap();
        }
        Link(to) => symlink(to, path).unwrap(),
        Pipe => drop(sh(&format!("mkfifo {}", path.display()))),
        Socket => drop(UnixListener::bind(path).unwrap()),
        NoPermissions if path.exists() => drop(sh(&format!("chmod 000 {}", path.display()))),
        NoPermissions => {}
    }
}

/// A file that is damaged, and how it is made good by hand.
struct Case<'a> {
    node: &'a Node,
    conf: &'a Value,
    way: Way,
    what: String,
    path: PathBuf,
    /// What must not be given out.
    taken: BTreeSet<String>,
}

impl Case<'_> {
    /// A call may fail if it says where.
    #[track_caller]
    fn clear(&self, answer: common::Answer, codes: &[u64]) -> bool {
        if answer.code == 0 {
            return true;
        }
        let (code, message) = answer.err();
        assert!(codes.contains(&code), "{}: {code} {message}", self.what);
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let ip = name.trim_end_matches(".json");
        let named = message.contains(name) || message.contains(ip) || message.contains("p1");
        assert!(named, "{}: {message}", self.what);
        false
    }

    /// Another pod never gets the address of one that lives.
    #[track_caller]
    fn another(&self, when: &str) {
        from_the_start(&self.path);
        let answer = soon(&self.node.call("ADD", "p3", self.conf));
        if answer.code == 0 {
            for ip in addresses(&answer.json) {
                assert!(!self.taken.contains(&ip), "{}: {ip} twice, {when}", self.what);
            }
        }
        self.clear(answer, &[5]);
        self.clear(soon(&self.node.call("DEL", "p3", self.conf)), &[5]);
    }

    #[track_caller]
    fn lives(&self, when: &str) {
        if self.way.has_interfaces() {
            for ip in &self.taken {
                let (answers, text) = try_sh(&format!("ping -c1 -W2 -n {ip}"));
                assert!(answers, "{}: {ip} after {when}: {text}", self.what);
            }
        }
    }

    fn collect(&self) {
        if self.way.is_served() {
            let name = "pod-network".to_owned();
            let paths = Paths::default();
            let mut collector = Collector::new(Network { paths, name, own: self.way.is_own() });
            for _ in 0..3 {
                let done = collector.observe();
                let said = format!("{done:?}");
                let clear = done.is_ok_and(|d| d.failed.is_empty())
                    || said.contains(self.path.to_str().unwrap());
                assert!(clear, "{}: {said}", self.what);
            }
        }
    }

    fn run(&self, first: &Value) {
        let Case { node, conf, what, .. } = self;
        self.another("at first");
        self.clear(soon(&node.call("STATUS", "", conf)), &[50]);
        self.clear(check(node, "p1", conf, first), &[5, 999]);
        self.lives("STATUS and CHECK");
        self.collect();
        self.lives("the collector");
        self.clear(gc(node, conf, &["p1", "p2"]), &[5, 999]);
        self.lives("GC");
        self.another("after GC");

        let mut with_result = conf.to_owned().clone();
        with_result["prevResult"] = first.clone();
        let gone = self.clear(soon(&node.call("DEL", "p1", &with_result)), &[5]);
        assert!(!inside("p1"), "{what}");
        if !gone {
            // What the error asks for.
            sh(&format!("rm -r {}", self.path.display()));
            node.call("DEL", "p1", &with_result).run().ok();
        }
        node.del("p2", conf);
        let left = node.residue();
        if !left.is_empty() {
            // What stood in the place of a file that no attachment has.
            let foreign = left.lines().all(|l| l.starts_with(self.path.to_str().unwrap()));
            assert!(foreign, "{what}: {left}");
        }
        sh(&format!("rm -rf {}", self.path.display()));
        assert_eq!(fs::read_to_string(FOREIGN).unwrap(), "mine", "{what}");
        assert!(!Path::new("/var/lib/nowhere").exists(), "{what}");
    }
}

/// The next address is looked for from the first on: round robin would pass over all of before.
fn from_the_start(but: &Path) {
    for set in 0..2 {
        let path = PathBuf::from(format!("{LEASES}/last_reserved_ip.{set}"));
        if path != but {
            let _ = fs::remove_file(path);
        }
    }
}

fn each(files: fn(Way, &str) -> Vec<String>) -> impl Fn(&Node, &Value, Way, Families) + Copy {
    move |node, conf, way, families| {
        for pod in ["p1", "p2", "p3"] {
            node.pod(pod);
        }
        fs::write(FOREIGN, "mine").unwrap();
        let mut cases = 0;
        let probe = addresses(&node.add("p1", conf));
        let count = files(way, &probe[0]).len();
        node.del("p1", conf);
        for index in 0..count {
            let first = node.add("p1", conf);
            let path = PathBuf::from(&files(way, &addresses(&first)[0])[index]);
            let most = families == Families::Dual && index < 2;
            let all = if most { damages(&path) } else { few() };
            node.del("p1", conf);
            for damage in all {
                from_the_start(Path::new(""));
                let first = node.add("p1", conf);
                let second = node.add("p2", conf);
                let path = PathBuf::from(&files(way, &addresses(&first)[0])[index]);
                let short = match &damage {
                    Is(name, _) => (*name).to_owned(),
                    other => format!("{other:?}"),
                };
                inflict(&path, &damage);
                let taken = [&first, &second].into_iter().flat_map(addresses).collect();
                let what = format!("{way:?} {families:?}: {} is {short}", path.display());
                Case { node, conf, way, what, path, taken }.run(&first);
                cases += 1;
            }
        }
        println!("{way:?} {families:?}: {cases} damages");
    }
}

#[test]
fn leases() {
    everywhere(each(|_, ip| vec![format!("{LEASES}/{ip}")]));
}

#[test]
fn records() {
    everywhere(each(|way, ip| match way.is_served() {
        true => vec![
            "/var/lib/causeway/attachments/p1-eth0.json".to_owned(),
            format!("/var/lib/causeway/leases/pod-network/{ip}.json"),
        ],
        false => vec![],
    }));
}

/// Files that belong to no attachment.
#[test]
fn what_serves_all() {
    dual(each(|way, _| {
        let mut all = vec![
            format!("{LEASES}/lock"),
            format!("{LEASES}/last_reserved_ip.0"),
            format!("{LEASES}/.new"),
        ];
        if way.is_served() {
            all.push("/var/lib/causeway/leases/pod-network/.new".to_owned());
            all.push("/var/lib/causeway/attachments/.p1-eth0.json.new".to_owned());
        }
        all
    }));
}
