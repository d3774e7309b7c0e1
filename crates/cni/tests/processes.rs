//! Real processes as plugins: small shell scripts, and, where it is installed, the reference's
//! `host-local`, beside which ours must give out the same addresses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use causeway_cni_spec::delegate::ipam_add;
use causeway_cni_spec::exec::{Exec, ProcessExec, judge};
use causeway_cni_spec::runtime::{Attachment, NetworkList, Runtime};
use causeway_cni_spec::{CniArgs, Command, Env, HostLocal, NetConf, Version, code};
use causeway_ipam::{Owner, State};
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

fn script(dir: &Path, name: &str, body: &str) {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn call(dir: &Path, ipam_type: &str) -> (Env, NetConf) {
    let path = dir.display().to_string();
    let env = Env::parse(|name| {
        let value = match name {
            "CNI_COMMAND" => "ADD",
            "CNI_CONTAINERID" => "c1",
            "CNI_NETNS" => "/run/netns/c1",
            "CNI_IFNAME" => "eth0",
            "CNI_ARGS" => "IgnoreUnknown=1",
            "CNI_PATH" => &path,
            _ => return None,
        };
        Some(value.to_owned())
    });
    let conf = json!({"cniVersion": "0.4.0", "name": "net", "type": "bridge",
        "ipam": {"type": ipam_type, "own": true}});
    let conf = NetConf::parse(conf.to_string().as_bytes(), Command::Add, &Version::ALL);
    (env.unwrap(), conf.unwrap())
}

#[test]
fn delegation_passes_everything_on() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"cat > "$(dirname "$0")/stdin"; env | sort | grep ^CNI > "$(dirname "$0")/env"
echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.9.0.2/24"}],"dns":{}}'"#;
    script(dir.path(), "ipam", body);
    let (env, conf) = call(dir.path(), "ipam");
    let result = ipam_add(&ProcessExec, "ipam", &env, &conf).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.9.0.2/24");
    let stdin: Value =
        serde_json::from_slice(&fs::read(dir.path().join("stdin")).unwrap()).unwrap();
    assert_eq!(stdin, Value::Object(conf.raw));
    let seen = fs::read_to_string(dir.path().join("env")).unwrap();
    let expected = format!(
        "CNI_ARGS=IgnoreUnknown=1\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=/run/netns/c1\nCNI_PATH={}\n",
        dir.path().display()
    );
    assert_eq!(seen, expected);
}

#[test]
fn failures_of_a_delegate_name_it() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "polite", r#"echo '{"code":11,"msg":"later","details":"d"}'; exit 1"#);
    script(dir.path(), "rude", "echo first >&2; echo second >&2; exit 3");
    script(dir.path(), "mute", "exit 1");
    script(dir.path(), "odd", "echo hello");
    let error = |name: &str| {
        let (env, conf) = call(dir.path(), name);
        ipam_add(&ProcessExec, name, &env, &conf).unwrap_err()
    };
    let polite = error("polite");
    assert_eq!((polite.code, polite.cni_version.as_str()), (code::TRY_AGAIN_LATER, "0.4.0"));
    assert_eq!(
        (polite.msg.as_str(), polite.details.as_str()),
        ("plugin \"polite\" failed: later", "d")
    );
    let rude = error("rude");
    assert_eq!(rude.code, code::INTERNAL);
    assert_eq!(rude.msg, "plugin \"rude\" failed (exit status: 3): first; second");
    assert!(error("mute").msg.ends_with("it printed no error"));
    assert_eq!(error("odd").code, code::DECODING_FAILURE);
    assert!(error("none").msg.contains("plugin \"none\" not found in ["));
    assert!(error("../polite").msg.contains("is not the plain name of a binary"));
}

/// A plugin that talks a lot before it listens, and one that never listens.
#[test]
fn full_pipes_do_not_block() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "loud", "head -c 300000 /dev/zero; cat >/dev/null");
    script(dir.path(), "deaf", "exec <&-; echo done");
    let stdin = vec![b' '; 300_000];
    let env = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let loud = ProcessExec.run(&dir.path().join("loud"), &env, &stdin).unwrap();
    assert_eq!(judge("loud", loud).unwrap().len(), 300_000);
    let deaf = ProcessExec.run(&dir.path().join("deaf"), &env, &stdin).unwrap();
    assert_eq!(judge("deaf", deaf).unwrap(), b"done\n");
}

/// The same calls to the reference's host-local and to ours: the same addresses, in the same
/// order, through releases and around the ends of ranges.
#[test]
fn addresses_as_the_reference_gives_them() {
    if !Path::new(REFERENCE).join("host-local").is_file() {
        eprintln!(
            "skipped: {REFERENCE}/host-local is not there; install containernetworking-plugins"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let configurations = [
        json!({"subnet": "10.1.0.0/29"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.13", "gateway": "10.1.0.11"}),
        json!({"ranges": [[{"subnet": "10.2.0.0/30"}, {"subnet": "10.3.0.0/29", "rangeEnd": "10.3.0.4"}],
            [{"subnet": "fd00:1::/125"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00:1::1"}]}),
        json!({"subnet": "fd00:2::/126"}),
    ];
    for (i, mut ipam) in configurations.into_iter().enumerate() {
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(dir.path().join("leases"));
        let conf = json!({"cniVersion": "1.0.0", "name": format!("net{i}"), "type": "host-local", "ipam": ipam});
        side_by_side(conf, dir.path());
    }
}

fn side_by_side(conf: Value, dir: &Path) {
    let text = conf.to_string();
    let list = NetworkList::parse(text.as_bytes()).unwrap();
    let runtime = Runtime::new(ProcessExec, vec![REFERENCE.into()], dir.join("cache"));
    let ours = NetConf::parse(text.as_bytes(), Command::Add, &Version::ALL).unwrap();
    let ours = HostLocal::parse(&ours, &CniArgs::default()).unwrap();
    let mut state = State::new();
    let mut refused = 0;
    // A fixed walk: add at even steps, delete what was added nine steps ago at odd ones, and now
    // and then add what is there already.
    for step in 0u32..60 {
        let number = match step {
            n if n % 10 == 8 => n - 2,
            n if n % 2 == 1 => n.saturating_sub(9),
            n => n,
        };
        let id = format!("c{number}");
        let attachment = Attachment::new(&id, "/run/netns/none", "eth0");
        let owner = Owner::new(&id, "eth0");
        if step % 2 == 1 {
            runtime.del(&list, &attachment).unwrap();
            state.release(&owner);
            continue;
        }
        let reference = runtime.add(&list, &attachment);
        let got = state.allocate(&ours.sets, &owner, &[]);
        match (reference, got) {
            (Ok(reference), Ok(got)) => {
                let theirs: Vec<_> = reference.ips.iter().map(|i| (i.address, i.gateway)).collect();
                let mine: Vec<_> = got.iter().map(|l| (l.address, l.gateway)).collect();
                assert_eq!(mine, theirs, "step {step} of {text}");
                assert_eq!(reference.routes, ours.routes);
            }
            // Full, or added before: neither may change anything.
            (Err(_), Err(_)) => refused += 1,
            (theirs, mine) => panic!("step {step} of {text}: {theirs:?} against {mine:?}"),
        }
    }
    assert!((1..20).contains(&refused), "{refused} of 30 refused: the walk shows little");
}
