//! Input that nobody meant, by chance: configurations, environments, leases, records and the node
//! file. The plugins may refuse it, in words; they never panic and never hang.
//!
//! Bounded to a few seconds each; `CAUSEWAY_FUZZ_SECONDS` is how long each test goes on. Every case has
//! a seed, which a failure prints; `CAUSEWAY_FUZZ_SEED` begins with it.

mod common;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use causeway_cni_spec::{CniArgs, Command, Env, HostLocal, NetConf, Version};
use causeway_ipam::Owner;
use causeway_plugins::leases::Leases;
use causeway_plugins::record::{self, Attachments, LeaseRecords};
use causeway_plugins::store::LeaseDir;
use causeway_plugins::{Paths, run};
use common::Node;
use serde_json::{Value, json};

/// Longest that one case may take. The machine may be busy.
const HANGS: Duration = Duration::from_secs(20);
/// How long a test goes on unless told.
const SECONDS: u64 = 4;

/// Numbers that a seed determines (SplitMix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Says which case it was when a test fails.
struct Case<'a>(&'a str, u64);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: CAUSEWAY_FUZZ_SEED={}", self.0, self.1);
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs cases for the time given, each by a seed of its own, and watches that none hangs.
fn cases(what: &str, mut case: impl FnMut(&mut Rng)) {
    let seconds = variable("CAUSEWAY_FUZZ_SECONDS").unwrap_or(SECONDS);
    let first = variable("CAUSEWAY_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let seed = Arc::new(AtomicU64::new(first));
    let over = Arc::new(AtomicBool::new(false));
    let watch = (Arc::clone(&seed), Arc::clone(&over), what.to_owned());
    let watch = std::thread::spawn(move || watch_over(&watch.0, &watch.1, &watch.2));
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < Duration::from_secs(seconds) {
        let now = first.wrapping_add(count);
        seed.store(now, Ordering::Relaxed);
        let _case = Case(what, now);
        case(&mut Rng(now));
        count += 1;
    }
    over.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    println!("{what}: {count} cases from seed {first}");
    assert!(count > 10, "{what}: {count} cases are too few to be true");
}

fn watch_over(seed: &AtomicU64, over: &AtomicBool, what: &str) {
    let (mut last, mut since) = (seed.load(Ordering::Relaxed), Instant::now());
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let now = seed.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > HANGS {
            eprintln!("{what}: hangs: CAUSEWAY_FUZZ_SEED={now}");
            std::process::abort();
        }
    }
}

/// Bytes changed, put in, taken out, doubled or cut off.
fn mangle(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len());
        let to = at + rng.below(bytes.len() - at + 1).min(24);
        match rng.below(7) {
            0 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, *rng.pick(b"{}[]\",:\\0-9e.\0\xff\n /")),
            3 => drop(bytes.drain(at..to)),
            4 => {
                let piece = bytes[at..to].to_vec();
                let place = rng.below(bytes.len());
                bytes.splice(place..place, piece);
            }
            5 if rng.below(4) == 0 => bytes.truncate(at),
            _ => {
                let words: [&[u8]; 9] = [
                    b"null",
                    b"-1",
                    b"1e999",
                    b"18446744073709551616",
                    b"\"\"",
                    b"[[[[",
                    b"\\ud800",
                    b"::/0",
                    b"0.0.0.0/0",
                ];
                bytes.splice(at..to, rng.pick(&words).iter().copied());
            }
        }
    }
}

fn odd_value(rng: &mut Rng) -> Value {
    match rng.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(1.5),
        7 => json!(""),
        8 => json!("x".repeat(rng.below(5000))),
        9 => json!("\u{0}\r\n\u{202e}é\u{10ffff}"),
        10 => json!(*rng.pick(&[
            "0.0.0.0/0",
            "::/0",
            "::ffff:10.0.0.1/96",
            "10.0.0.0/33",
            "fe80::1%1"
        ])),
        11 => {
            json!(*rng.pick(&["../../etc", "/", "lo", "eth0/1", "1e3", "NaN", "ff:ff:ff:ff:ff:ff"]))
        }
        12 => json!([]),
        13 => json!({}),
        14 => json!([{"a": [null, 1]}, "b"]),
        _ => (0..rng.below(100)).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// One value somewhere inside in place of another, or moved, doubled or taken out.
fn twist(rng: &mut Rng, value: &mut Value) {
    match value {
        Value::Object(map) if !map.is_empty() && rng.below(8) != 0 => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = rng.pick(&keys).clone();
            match rng.below(10) {
                0 => drop(map.remove(&key)),
                1 => {
                    let copy = map[&key].clone();
                    let other = rng.pick(&keys).clone();
                    map.insert(other, copy);
                }
                2 => {
                    let odd = odd_value(rng);
                    map.insert(key.to_uppercase(), odd);
                }
                _ => twist(rng, map.get_mut(&key).unwrap()),
            }
        }
        Value::Array(list) if !list.is_empty() && rng.below(8) != 0 => {
            let at = rng.below(list.len());
            match rng.below(10) {
                0 => drop(list.remove(at)),
                1 => {
                    let copy = list[at].clone();
                    list.resize(list.len() + rng.below(40), copy);
                }
                _ => twist(rng, &mut list[at]),
            }
        }
        other => *other = odd_value(rng),
    }
}

/// Text of a value that was twisted and, now and then, mangled.
fn text_of(rng: &mut Rng, sample: &Value) -> Vec<u8> {
    let mut value = sample.clone();
    for _ in 0..rng.below(4) {
        twist(rng, &mut value);
    }
    let mut text = value.to_string().into_bytes();
    if rng.below(3) == 0 {
        mangle(rng, &mut text);
    }
    text
}

/// A configuration of each type with every field.
fn samples() -> Vec<Value> {
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "v", "mac": ""},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/none"}],
        "ips": [{"interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "scope": 0}],
        "dns": {"nameservers": ["10.1.0.1"], "search": ["a"]},
    });
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.9",
            "gateway": "10.1.0.1"}], [{"subnet": "fd00::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dataDir": "/var/lib/cni/networks", "resolvConf": "/etc/resolv.conf",
    });
    let common = |plugin: &str, keys: Value| {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": plugin, "prevResult": result,
            "capabilities": {"bandwidth": true, "mac": true, "ips": true}, "dns": {"domain": "x"},
            "runtimeConfig": {"mac": "02:00:00:00:00:03", "ips": ["10.1.0.5/24"],
                "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000},
                "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}],
                "ipRanges": [[{"subnet": "10.2.0.0/24"}]]},
            "args": {"cni": {"mac": "02:00:00:00:00:04", "ips": ["10.1.0.6"]}},
            "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        });
        for (key, value) in keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    };
    vec![
        common(
            "bandwidth",
            json!({"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000,
                "egressBurst": 8000, "unshapedSubnets": ["10.0.0.0/8", "fd00::/8"], "shapedSubnets": []}),
        ),
        common(
            "tuning",
            json!({"sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
                "mac": "02:00:00:00:00:05", "mtu": 1400, "promisc": true, "allmulti": false,
                "txQLen": 500, "dataDir": "/run/cni/tuning"}),
        ),
        common("sbr", json!({"table": 300, "addSourceHints": false})),
        common(
            "bridge",
            json!({"bridge": "cni0", "isGateway": true, "isDefaultGateway": false, "ipMasq": true,
                "mtu": 1400, "hairpinMode": false, "promiscMode": false, "vlan": 0,
                "forceAddress": false, "ipMasqBackend": "nftables", "ipam": ipam}),
        ),
        common("host-local", json!({"ipam": ipam})),
        common("loopback", json!({})),
        common("causeway", json!({"ipam": {}})),
    ]
}

/// Whole calls that change nothing: STATUS, and ADD and CHECK of a namespace that is not there.
#[test]
fn whole_calls() {
    let _node = Node::new();
    // Whatever directory a configuration names, nothing outside the node is made.
    std::env::set_current_dir("/run").unwrap();
    common::sh("mount -o remount,bind,ro /");
    let samples = samples();
    cases("calls", |rng| {
        let sample = rng.pick(&samples).clone();
        let plugin = sample["type"].as_str().unwrap().to_owned();
        let chained = ["bandwidth", "tuning", "sbr"].contains(&plugin.as_str());
        let command = if chained { *rng.pick(&["ADD", "CHECK", "STATUS"]) } else { "STATUS" };
        let input = text_of(rng, &sample);
        let args =
            *rng.pick(&["", "IgnoreUnknown=1;MAC=02:00:00:00:00:06", "IP=10.1.0.7", "x", "MAC=x"]);
        let env = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => "c1",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/none",
                "CNI_PATH" => "/run/bin",
                "CNI_ARGS" => args,
                _ => return None,
            };
            Some(value.to_owned())
        };
        let mut out = Vec::new();
        let code = run(&plugin, env, input.as_slice(), &mut out, Vec::new());
        let shown = || format!("{command} {plugin} {}", String::from_utf8_lossy(&input));
        if code == 0 {
            return;
        }
        let answer: Value =
            serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {}", shown()));
        assert!(answer["code"].as_u64().is_some_and(|c| c > 0), "{answer}: {}", shown());
        assert!(answer["cniVersion"].is_string(), "{answer}: {}", shown());
        let said = answer["msg"].as_str().unwrap_or_default();
        assert!(!said.is_empty() && !said.contains('\n'), "{answer}: {}", shown());
    });
}

/// The readers of configurations and environments for every command, result and version.
#[test]
fn configurations_and_environments() {
    let samples = samples();
    let mut understood = 0;
    let commands = [Command::Add, Command::Del, Command::Check, Command::Status, Command::Gc];
    cases("configurations", |rng| {
        let sample = rng.pick(&samples);
        let input = text_of(rng, sample);
        let command = *rng.pick(&commands);
        let _ = causeway_cni_spec::version::reply(&input, &Version::ALL);
        let mut args =
            b"IgnoreUnknown=1;K8S_POD_NAME=a;MAC=02:00:00:00:00:01;IP=10.0.0.1,fd00::1/64".to_vec();
        mangle(rng, &mut args);
        let args = CniArgs::parse(&String::from_utf8_lossy(&args));
        if let Ok(conf) = NetConf::parse(&input, command, &Version::ALL) {
            let _ = HostLocal::parse(&conf, &args.unwrap_or_default());
            understood += 1;
            let _ = conf.gc_attachments();
            if let Some(result) = &conf.prev_result {
                for version in Version::ALL {
                    let _ = result.to_json(version);
                }
            }
        }
        let values = ["ADD", "c1", "eth0", "/run/netns/x", "/opt/cni/bin", "A=b", "1"].map(|v| {
            let mut bytes = v.as_bytes().to_vec();
            if rng.below(3) == 0 {
                mangle(rng, &mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let names = [
            "CNI_COMMAND",
            "CNI_CONTAINERID",
            "CNI_IFNAME",
            "CNI_NETNS",
            "CNI_PATH",
            "CNI_ARGS",
            "CNI_NETNS_OVERRIDE",
        ];
        let _ = Env::parse(|name| {
            let at = names.iter().position(|n| *n == name)?;
            Some(values[at].clone())
        });
    });
    assert!(understood > 0, "no configuration was ever whole");
}

fn file_name(rng: &mut Rng) -> String {
    let names = [
        "10.1.0.2",
        "10.1.0.3",
        "fd00::2",
        "fd00:0:0::3",
        "::ffff:10.1.0.4",
        "lock",
        "last_reserved_ip.0",
        "last_reserved_ip.x",
        ".new",
        "10.1.0.999",
        "junk",
        "0.0.0.0",
    ];
    (*rng.pick(&names)).to_owned()
}

/// A directory of leases in which anything may be.
#[test]
fn leases() {
    let place = tempfile::tempdir().unwrap();
    let paths = Paths {
        attachments: place.path().join("attachments"),
        lease_records: place.path().join("records"),
        ..Paths::default()
    };
    let owner = Owner::new("c1", "eth0");
    let mut count = 0;
    cases("leases", |rng| {
        count += 1;
        let dir = place.path().join(format!("net{count}"));
        fs::create_dir(&dir).unwrap();
        let mut valid = Vec::new();
        for _ in 0..rng.below(6) {
            let file = dir.join(file_name(rng));
            let mut content = rng
                .pick::<&[u8]>(&[
                    b"c1\r\neth0" as &[u8],
                    b"c2\r\neth0",
                    b"c1",
                    b"10.1.0.5",
                    b"",
                    b"c1\neth0\r\n",
                ])
                .to_vec();
            if rng.below(2) == 0 {
                mangle(rng, &mut content);
            }
            if rng.below(10) == 0 {
                let _ = fs::create_dir(&file);
            } else if fs::write(&file, &content).is_ok() {
                valid.retain(|v| v != &file);
                if content == b"c2\r\neth0" {
                    valid.push(file);
                }
            }
        }
        let leases =
            Leases { dir: dir.clone(), records: LeaseRecords::at(&paths, "net"), record: None };
        if let Ok(locked) = LeaseDir::open(&dir) {
            let _ = locked.load();
        }
        let named: Vec<IpAddr> = vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let _ = leases.held(&owner);
        let _ = leases.held_or_named(&owner, &named);
        let _ = leases.stale(&[owner.clone(), Owner::new("c2", "eth0")].into(), 2);
        let _ = leases.release(&owner, &named);
        // What is plainly another's is never given back.
        for file in valid.iter().filter(|f| is_lease(f)) {
            assert!(file.exists(), "{file:?} was the lease of c2");
        }
        fs::remove_dir_all(&dir).unwrap();
    });
}

fn is_lease(file: &Path) -> bool {
    let name = file.file_name().unwrap().to_string_lossy();
    name.parse::<IpAddr>().is_ok_and(|ip| ip.to_string() == name)
}

/// Records of attachments and leases, and the node file.
#[test]
fn records() {
    let place = tempfile::tempdir().unwrap();
    let paths = Paths {
        node_file: place.path().join("node.json"),
        attachments: place.path().join("attachments"),
        lease_records: place.path().join("records"),
        ..Paths::default()
    };
    fs::create_dir(&paths.attachments).unwrap();
    fs::create_dir_all(paths.lease_records.join("net")).unwrap();
    let attachment = json!({
        "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/x", "network": "net",
        "attach": "bridge", "pending": false,
        "hostIfname": causeway_types::names::host_veth("c1", "eth0").to_string(),
        "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1450,
        "addresses": ["10.1.0.2/24", "fd00::2/64"], "gateways": ["10.1.0.1"], "bridge": "cni0",
        "masqueradeExcept": ["10.1.0.0/24"], "bootId": "b",
        "pod": {"namespace": "a", "name": "b", "uid": "c"},
    });
    let lease = json!({"containerId": "c1", "ifname": "eth0", "bootId": "b", "pod": null});
    let node = json!({
        "generation": 1, "node": "n", "podCidrs": ["10.1.0.0/24"], "mtu": 1450, "attach": "routed",
        "bridge": "cni0", "noMasquerade": ["10.0.0.0/8"], "served": ["net"],
    });
    let ip: IpAddr = "10.1.0.2".parse().unwrap();
    let mut understood = 0;
    cases("records", |rng| {
        let name = *rng.pick(&["c1-eth0.json", "c2-eth0.json", ".json", "x.json"]);
        let attachment_file = paths.attachments.join(name);
        fs::write(&attachment_file, text_of(rng, &attachment)).unwrap();
        fs::write(paths.lease_records.join("net/10.1.0.2.json"), text_of(rng, &lease)).unwrap();
        fs::write(&paths.node_file, text_of(rng, &node)).unwrap();
        let records = Attachments::at(&paths);
        let _ = records.read("c1", "eth0");
        // What names another attachment than its file does leads to no interface.
        for record in records.list().unwrap() {
            understood += 1;
            assert_eq!(
                record.host_ifname,
                causeway_types::names::host_veth(&record.container_id, record.ifname.as_str())
            );
        }
        let leases = LeaseRecords::at(&paths, "net");
        let _ = (leases.read(ip), leases.witness(ip), record::node_file(&paths));
        fs::remove_file(&attachment_file).unwrap();
    });
    assert!(understood > 0, "no record was ever whole");
}
