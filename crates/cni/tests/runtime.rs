//! The runtime's side with plugins that live in memory: order, previous results, capabilities,
//! rollback, cached results, GC.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use causeway_cni_spec::exec::{Exec, Output};
use causeway_cni_spec::runtime::{Attachment, NetworkList, Runtime, load_dir};
use causeway_cni_spec::{AttachmentId, CniError, Version, code};
use serde_json::{Value, json};

/// One call as a plugin sees it.
#[derive(Clone, Debug)]
struct Call {
    plugin: String,
    env: Vec<(String, String)>,
    conf: Value,
}

impl Call {
    fn env(&self, name: &str) -> &str {
        self.env.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v)
    }

    fn title(&self) -> String {
        format!("{} {}", self.env("CNI_COMMAND"), self.plugin)
    }
}

/// Plugins that add an interface of their own name to the previous result, and fail on demand.
#[derive(Default)]
struct Fake {
    calls: RefCell<Vec<Call>>,
    failing: Vec<&'static str>,
}

impl Exec for Fake {
    fn find(&self, plugin_type: &str, _: &[PathBuf]) -> Result<PathBuf, CniError> {
        Ok(plugin_type.into())
    }

    fn run(&self, binary: &Path, env: &[(String, String)], stdin: &[u8]) -> io::Result<Output> {
        let conf: Value = serde_json::from_slice(stdin).unwrap();
        let call = Call { plugin: binary.display().to_string(), env: env.to_vec(), conf };
        self.calls.borrow_mut().push(call.clone());
        let failed = self.failing.contains(&call.title().as_str());
        let stdout = match call.env("CNI_COMMAND") {
            _ if failed => CniError::try_again("not now").to_json(),
            "ADD" => {
                let mut result = call.conf.get("prevResult").cloned().unwrap_or(json!({}));
                let mut names = result["interfaces"].as_array().cloned().unwrap_or_default();
                names.push(json!({"name": call.plugin}));
                result["interfaces"] = names.into();
                result["cniVersion"] = call.conf["cniVersion"].clone();
                result.to_string()
            }
            "VERSION" => json!({"supportedVersions": ["1.0.0", "0.4.0", "9.9.9"]}).to_string(),
            _ => String::new(),
        };
        Ok(Output { success: !failed, stdout: stdout.into_bytes(), ..Output::default() })
    }
}

const LIST: &str = r#"{"cniVersion":"1.1.0","name":"net","plugins":[
    {"type":"one","capabilities":{"portMappings":true,"ips":false},"own":1},
    {"type":"two","cniVersion":"0.1.0","name":"other"},
    {"type":"three","capabilities":{"ips":true}}]}"#;

struct Bench {
    runtime: Runtime<Fake>,
    list: NetworkList,
    dir: tempfile::TempDir,
}

fn bench(list: &str, failing: &[&'static str]) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake { failing: failing.to_vec(), ..Fake::default() };
    let mut runtime = Runtime::new(fake, vec!["/a".into(), "/b".into()], dir.path());
    runtime.search_path = Some("/bin".into());
    Bench { runtime, list: NetworkList::parse(list.as_bytes()).unwrap(), dir }
}

fn pod(id: &str) -> Attachment {
    Attachment::new(id, "/run/netns/x", "eth0")
}

impl Bench {
    fn titles(&self) -> Vec<String> {
        self.runtime.exec.calls.borrow_mut().drain(..).map(|c| c.title()).collect()
    }

    fn calls(&self) -> Vec<Call> {
        self.runtime.exec.calls.borrow_mut().drain(..).collect()
    }
}

#[test]
fn add_goes_forward_with_results_and_del_backward() {
    let b = bench(LIST, &[]);
    let result = b.runtime.add(&b.list, &pod("c1")).unwrap();
    let names: Vec<_> = result.interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    let calls = b.calls();
    assert_eq!(calls.len(), 3);
    assert!(calls[0].conf.get("prevResult").is_none());
    for call in &calls {
        assert_eq!(
            (&call.conf["name"], &call.conf["cniVersion"]),
            (&json!("net"), &json!("1.1.0"))
        );
    }
    assert_eq!(calls[0].conf["own"], 1);
    let prev = json!({"cniVersion":"1.1.0","interfaces":[{"name":"one"},{"name":"two"}]});
    assert_eq!(calls[2].conf["prevResult"], prev);

    b.runtime.check(&b.list, &pod("c1")).unwrap();
    b.runtime.del(&b.list, &pod("c1")).unwrap();
    let calls = b.calls();
    let titles: Vec<_> = calls.iter().map(Call::title).collect();
    let expected = ["CHECK one", "CHECK two", "CHECK three", "DEL three", "DEL two", "DEL one"];
    assert_eq!(titles, expected);
    for call in &calls {
        assert_eq!(call.conf["prevResult"]["interfaces"].as_array().unwrap().len(), 3);
    }

    // What is gone may be deleted again, without a previous result.
    b.runtime.del(&b.list, &pod("c1")).unwrap();
    assert!(b.calls().iter().all(|c| c.conf.get("prevResult").is_none()));
    assert_eq!(b.runtime.check(&b.list, &pod("c1")).unwrap_err().code, code::UNKNOWN_CONTAINER);
}

#[test]
fn the_environment_is_complete_and_nothing_more() {
    let b = bench(LIST, &[]);
    let attachment = pod("c1").for_pod("default", "web", "u-1");
    b.runtime.add(&b.list, &attachment).unwrap();
    let mut env = b.calls()[1].env.clone();
    env.sort();
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1";
    let expected = [
        ("CNI_ARGS", args),
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_PATH", "/a:/b"),
        ("PATH", "/bin"),
    ];
    assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

#[test]
fn capabilities_go_to_those_who_declare_them() {
    let b = bench(LIST, &[]);
    let ports = json!([{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]);
    let attachment = pod("c1")
        .with_capability("portMappings", ports.clone())
        .with_capability("ips", json!(["10.0.0.9"]));
    b.runtime.add(&b.list, &attachment).unwrap();
    let given: Vec<_> = b.calls().iter().map(|c| c.conf.get("runtimeConfig").cloned()).collect();
    let expected = [Some(json!({"portMappings": ports})), None, Some(json!({"ips": ["10.0.0.9"]}))];
    assert_eq!(given, expected);
}

#[test]
fn a_failed_add_is_undone_for_the_whole_list() {
    let b = bench(LIST, &["ADD two", "DEL one"]);
    let error = b.runtime.add(&b.list, &pod("c1")).unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    assert_eq!(error.msg, "ADD in network \"net\": plugin \"two\" failed: not now");
    assert_eq!(error.details, "undoing: DEL in network \"net\": plugin \"one\" failed: not now");
    assert_eq!(b.titles(), ["ADD one", "ADD two", "DEL three", "DEL two", "DEL one"]);
    assert!(b.runtime.attachments(&b.list).unwrap().is_empty());
}

#[test]
fn a_failed_del_keeps_the_result_for_the_next() {
    let b = bench(LIST, &["DEL two"]);
    b.runtime.add(&b.list, &pod("c1")).unwrap();
    b.titles();
    b.runtime.del(&b.list, &pod("c1")).unwrap_err();
    assert_eq!(b.titles(), ["DEL three", "DEL two"]);
    assert_eq!(b.runtime.attachments(&b.list).unwrap().len(), 1);
}

#[test]
fn a_second_add_leaves_the_first_alone() {
    let b = bench(LIST, &[]);
    b.runtime.add(&b.list, &pod("c1")).unwrap();
    b.titles();
    let error = b.runtime.add(&b.list, &pod("c1")).unwrap_err();
    assert_eq!(
        error.msg,
        "container \"c1\" interface \"eth0\" is attached to network \"net\" already: delete that attachment first"
    );
    assert!(b.titles().is_empty());
    assert_eq!(b.runtime.attachments(&b.list).unwrap().len(), 1);
}

#[test]
fn gc_deletes_what_is_not_valid_and_tells_every_plugin() {
    let b = bench(LIST, &["GC one"]);
    for id in ["c1", "c2", "c3"] {
        b.runtime.add(&b.list, &pod(id)).unwrap();
    }
    b.titles();
    let valid = [pod("c2").id(), AttachmentId { container_id: "c9".into(), ifname: "eth0".into() }];
    let error = b.runtime.gc(&b.list, &valid).unwrap_err();
    assert_eq!(error.msg, "GC in network \"net\": plugin \"one\" failed: not now");
    let calls = b.calls();
    let deleted: Vec<_> = calls
        .iter()
        .filter(|c| c.env("CNI_COMMAND") == "DEL")
        .map(|c| c.env("CNI_CONTAINERID").to_owned())
        .collect();
    assert_eq!(deleted, ["c1", "c1", "c1", "c3", "c3", "c3"]);
    let told: Vec<_> = calls.iter().filter(|c| c.env("CNI_COMMAND") == "GC").collect();
    assert_eq!(told.len(), 3, "a failure stops nobody else");
    let expected = json!([
        {"containerID": "c2", "ifname": "eth0"}, {"containerID": "c9", "ifname": "eth0"}]);
    assert_eq!(told[0].conf["cni.dev/valid-attachments"], expected);
    assert_eq!(told[0].conf["cni.dev/attachments"], expected);
    let left = b.runtime.attachments(&b.list).unwrap();
    assert_eq!(left.iter().map(|c| c.attachment.id()).collect::<Vec<_>>(), valid[..1]);
}

#[test]
fn commands_follow_the_version_and_the_switches() {
    let old = LIST.replace("1.1.0", "1.0.0");
    let b = bench(&old, &[]);
    b.runtime.status(&b.list).unwrap();
    b.runtime.gc(&b.list, &[]).unwrap();
    assert!(b.titles().is_empty());
    let b = bench(LIST, &["STATUS two"]);
    assert_eq!(b.runtime.status(&b.list).unwrap_err().code, code::TRY_AGAIN_LATER);
    assert_eq!(b.titles(), ["STATUS one", "STATUS two"]);

    let off = LIST.replacen('{', r#"{"disableCheck":true,"disableGC":"true","#, 1);
    let b = bench(&off, &[]);
    b.runtime.add(&b.list, &pod("c1")).unwrap();
    b.titles();
    b.runtime.check(&b.list, &pod("c1")).unwrap();
    b.runtime.gc(&b.list, &[]).unwrap();
    assert!(b.titles().is_empty());

    let b = bench(&LIST.replace("1.1.0", "0.3.1"), &[]);
    let error = b.runtime.check(&b.list, &pod("c1")).unwrap_err();
    assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
}

#[test]
fn versions_are_asked_and_compared() {
    let b = bench(LIST, &[]);
    assert_eq!(b.runtime.versions("one").unwrap(), [Version::V0_4_0, Version::V1_0_0]);
    assert_eq!(
        b.runtime.validate(&b.list).unwrap_err().msg,
        "plugin \"one\" does not support CNI version 1.1.0 of network \"net\" (it supports 0.4.0, 1.0.0)"
    );
}

#[test]
fn the_newest_common_version_is_taken() {
    let list = |versions: &str, main: &str| {
        let text = format!(
            r#"{{"cniVersion":"{main}","cniVersions":{versions},"name":"n","plugins":[{{"type":"p"}}]}}"#
        );
        NetworkList::parse_for(text.as_bytes(), &Version::ALL[..6]).map(|l| l.cni_version)
    };
    assert_eq!(list(r#"["0.4.0","1.0.0","1.1.0"]"#, "0.4.0").unwrap(), Version::V1_0_0);
    assert_eq!(list(r#"["0.3.1","2.0.0"]"#, "0.4.0").unwrap(), Version::V0_4_0);
    assert_eq!(list("[]", "0.3.0").unwrap(), Version::V0_3_0);
    assert_eq!(list("[]", "").unwrap(), Version::V0_1_0);
    assert_eq!(list(r#"["1.1.0"]"#, "1.1.0").unwrap_err().code, code::INCOMPATIBLE_VERSION);
}

#[test]
fn bad_lists_are_refused_with_the_key() {
    for (text, message) in [
        (
            r#"{"plugins":[]}"#,
            "missing network name: set key \"name\" of the network configuration",
        ),
        (
            r#"{"name":"n","plugins":[]}"#,
            "key \"plugins\" of network \"n\" is empty: list at least one plugin",
        ),
        (
            r#"{"name":"n","plugins":[{"type":"a"},{}]}"#,
            "key \"plugins[1].type\" is missing: name the plugin's binary",
        ),
        (r#"{"name":"n"}"#, "key \"type\" is missing: name the plugin's binary"),
        (
            r#"{"name":"n","plugins":[{"type":"a","capabilities":{"ips":1}}]}"#,
            "plugins[0]: key \"capabilities.ips\" is 1: invalid type: integer `1`, expected a boolean",
        ),
        (
            r#"{"name":"n","type":"a","disableCheck":"yes"}"#,
            "key \"disableCheck\" is \"yes\": expected true or false",
        ),
    ] {
        assert_eq!(NetworkList::parse(text.as_bytes()).unwrap_err().msg, message);
    }
}

#[test]
fn the_first_file_of_a_directory_counts() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(load_dir(&dir.path().join("none")).unwrap().is_none());
    write("00-notes.txt", "hello");
    write(".05-x.conflist.tmp", "{");
    assert!(load_dir(dir.path()).unwrap().is_none());
    write("20-b.conflist", LIST);
    write("10-a.conf", r#"{"cniVersion":"0.3.1","name":"single","type":"bridge"}"#);
    let (path, list) = load_dir(dir.path()).unwrap().unwrap();
    assert_eq!((path, list.name.as_str()), (dir.path().join("10-a.conf"), "single"));
    assert_eq!(list.plugins[0].plugin_type, "bridge");
    write("05-c.conflist", "{");
    let error = load_dir(dir.path()).unwrap_err();
    assert!(error.msg.contains("05-c.conflist: the network configuration is not valid JSON"));
}

/// The file on disk, key by key, as libcni writes it.
#[test]
fn cached_results_have_libcnis_form() {
    let b = bench(LIST, &[]);
    let attachment = pod("c1").with_capability("ips", json!(["10.0.0.9"]));
    let attachment = Attachment { args: vec![("A".into(), "B".into())], ..attachment };
    b.runtime.add(&b.list, &attachment).unwrap();
    let path = b.dir.path().join("results/net-c1-eth0");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(file["config"].as_str().unwrap().starts_with("eyJjbmlWZXJzaW9u"));
    file["config"] = json!("e30=");
    let expected = json!({
        "kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0",
        "networkName": "net", "netns": "/run/netns/x", "cniArgs": [["A", "B"]],
        "capabilityArgs": {"ips": ["10.0.0.9"]},
        "result": {"cniVersion": "1.1.0",
            "interfaces": [{"name": "one"}, {"name": "two"}, {"name": "three"}]},
    });
    assert_eq!(file, expected);
    let cached = b.runtime.cache.load("net", &attachment).unwrap().unwrap();
    assert_eq!(cached.attachment, attachment);
    assert_eq!(cached.config, LIST.as_bytes());

    // Torn files are told apart from missing ones, and do not stand in the way of DEL.
    std::fs::write(&path, "{").unwrap();
    assert_eq!(b.runtime.cache.load("net", &attachment).unwrap_err().code, code::DECODING_FAILURE);
    assert!(b.runtime.attachments(&b.list).unwrap().is_empty());
    b.runtime.del(&b.list, &attachment).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_result_of_another_version_is_converted() {
    let b = bench(LIST, &[]);
    let result = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}});
    b.runtime.cache.store("net", &pod("c1"), b"{}", &result).unwrap();
    b.runtime.check(&b.list, &pod("c1")).unwrap();
    let prev = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]});
    assert_eq!(b.calls()[0].conf["prevResult"], prev);
}

#[test]
fn bad_attachments_reach_no_plugin() {
    let b = bench(LIST, &[]);
    for bad in [pod("../x"), Attachment::new("c1", "/n", "far-too-long-a-name")] {
        assert_eq!(b.runtime.add(&b.list, &bad).unwrap_err().code, code::INVALID_ENVIRONMENT);
        assert_eq!(b.runtime.del(&b.list, &bad).unwrap_err().code, code::INVALID_ENVIRONMENT);
    }
    assert!(b.titles().is_empty());
}
