//! The whole process: lock, sockets, health, and its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use causeway_agent::{Options, Paths, client};
use causeway_types::state::AttachmentRecord;
use rustix::process::{Pid, Signal, kill_process};

use crate::node::{DEADLINE, Node, Stack, eventually, run, with};

/// Set for the process that is to be an agent.
const DIR: &str = "CW_TEST_AGENT_DIR";

/// Not a test by itself: with the variable set it is the agent that the tests below start.
#[test]
fn agent_process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let options = Options {
        node_name: Some("node-1".into()),
        kubeconfig: Some("/nonexistent/kubeconfig".into()),
        paths: Paths::below(dir.as_ref()),
        ..Options::default()
    };
    if let Err(error) = causeway_agent::run(options, || None) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn spawn(node: &Node) -> Agent {
    let dir = node.paths.socket.parent().expect("a directory");
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "process::agent_process", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    Agent(Some(child))
}

/// Ends with the test, also when that fails.
struct Agent(Option<Child>);

impl Agent {
    fn tell(&self, signal: Signal) {
        let id = self.0.as_ref().expect("runs").id();
        let pid = Pid::from_raw(id.try_into().expect("a process ID")).expect("not 0");
        kill_process(pid, signal).expect("ours");
    }

    /// Exit code and what it wrote to standard error.
    fn wait(mut self) -> (Option<i32>, String) {
        let out = self.0.take().expect("runs").wait_with_output().expect("ends");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn get(path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect("127.0.0.1:9470").map_err(|e| e.to_string())?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    Ok(answer)
}

#[test]
fn from_start_to_end() {
    with(Stack::Dual, <_>::default(), |node| {
        // An agent before left its view, its network and its socket.
        node.start_with(node.three());
        node.stop();
        drop(std::os::unix::net::UnixListener::bind(&node.paths.socket).unwrap());
        let agent = spawn(node);
        eventually("ready from the last view", DEADLINE, || {
            let answer = get("/readyz")?;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        });
        assert!(get("/healthz").unwrap().starts_with("HTTP/1.1 200"));
        let metrics = get("/metrics").unwrap();
        for name in ["causeway_ready 1", "causeway_reconciles_total", "causeway_build_info"] {
            assert!(metrics.contains(name), "{name} in {metrics}");
        }
        let mode = std::fs::metadata(&node.paths.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let status = client::status(&node.paths.socket).expect("a status");
        assert_eq!((status.node.as_str(), status.ready), ("node-1", true));
        assert!(status.inputs.nodes.error.as_ref().unwrap().contains("/nonexistent/kubeconfig"));
        assert_eq!(client::plan(&node.paths.socket).expect("a plan").lines, Vec::<String>::new());
        let script = client::script(&node.paths.socket, false).expect("a script");
        assert!(script.contains("cw-vxlan"), "{script}");
        client::reconcile(&node.paths.socket).expect("a round");
        let none = client::request(&node.paths.socket, "POST", "/v1/attachments/none-eth0");
        assert!(none.unwrap_err().to_string().contains("no record none-eth0.json"));
        let record = crate::pods::record(node, "c1");
        let record = AttachmentRecord { pending: true, ..record };
        crate::pods::write(node, &record);
        // Plugins are answered before a round, which one is for all of them.
        const PLUGINS: u64 = 50;
        let rounds = || -> u64 {
            let metrics = get("/metrics").unwrap();
            let line = metrics.lines().find(|l| l.starts_with("causeway_reconciles_total "));
            line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).expect("a number of rounds")
        };
        let before = rounds();
        for _ in 0..PLUGINS {
            client::request(&node.paths.socket, "POST", "/v1/attachments/c1-eth0").expect("known");
        }
        let ran = rounds() - before;
        assert!(ran < PLUGINS / 2, "{ran} rounds for {PLUGINS} plugins");
        // Over TCP there is nothing but health and metrics.
        assert!(get("/v1/status").unwrap().starts_with("HTTP/1.1 404"));

        let (code, words) = spawn(node).wait();
        assert_eq!(code, Some(1));
        assert!(words.contains("an agent runs on this node already"), "{words}");

        let before = (run("ip -4 route"), run("ip -6 route"), run("nft -s list ruleset"));
        agent.tell(Signal::TERM);
        let began = Instant::now();
        let (code, words) = agent.wait();
        println!("end: {:?}", began.elapsed());
        assert_eq!(code, Some(0), "{words}");
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!((run("ip -4 route"), run("ip -6 route"), run("nft -s list ruleset")), before);
        assert!(node.conflist().exists() && node.paths.node_file.exists());
    });
}

#[test]
fn what_keeps_it_from_starting_is_named() {
    with(Stack::V4, <_>::default(), |node| {
        let taken = std::net::TcpListener::bind("127.0.0.1:9470").unwrap();
        let (code, words) = spawn(node).wait();
        assert_eq!(code, Some(1));
        assert!(words.contains("127.0.0.1:9470") && words.contains("healthAddress"), "{words}");
        drop(taken);
        std::fs::write(&node.paths.config, "raod: auto\n").unwrap();
        let (code, words) = spawn(node).wait();
        assert_eq!(code, Some(1));
        assert!(words.contains("config.yaml:1:1: unknown field `raod`"), "{words}");
    });
}
