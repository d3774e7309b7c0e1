//! DEL where an agent runs: it answers when the interface is gone, and the agent does the rest. What
//! the agent does not do, or does too late, the plugin, another ADD or another DEL does.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use causeway_plugins::record::Attachments;
use causeway_plugins::{Paths, leave};
use common::served::{Families, Mode, addresses, conf, serve, write_node_file};
use common::trace::Held;
use common::{Node, points, sh, try_sh};
use serde_json::{Value, json};

const SOCKET: &str = "/run/causeway/agent.sock";
const SOON: Duration = Duration::from_secs(20);

/// What the other side of the socket does when it is asked to remove an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    /// What the real one does.
    Does,
    /// Says that it will, and does nothing.
    Forgets,
    /// An agent that knows no such request.
    Refuses,
    /// Ends in the middle of its answer.
    Dies,
    /// Removes the interface, and the rest when it is told to.
    Halts,
    /// Says that it will, and begins when it is told to.
    Sleeps,
    /// Begins at once on a kernel that takes its time: with the interface, and with the rest, which
    /// ends when it is told to.
    Crawls,
}

/// A stand-in for the agent, on its socket.
struct Stand {
    asked: Arc<AtomicUsize>,
    go: Sender<()>,
    done: Receiver<String>,
}

impl Stand {
    fn listen(what: Agent) -> Self {
        let _ = std::fs::remove_file(SOCKET);
        std::fs::create_dir_all("/run/causeway").unwrap();
        let listener = UnixListener::bind(SOCKET).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (go, told) = channel();
        let (end, done) = channel();
        let (count, told) = (Arc::clone(&asked), Arc::new(Mutex::new(told)));
        // They end with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Some((stream, file)) = request(stream.unwrap()) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let (told, end) = (Arc::clone(&told), end.clone());
                thread::spawn(move || serve_one(what, stream, &file, &told, &end));
            }
        });
        Self { asked, go, done }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Tells it to go on, and waits until it is done.
    #[track_caller]
    fn go(&self) {
        self.go.send(()).unwrap();
        self.done.recv_timeout(SOON).unwrap();
    }
}

/// A request to remove an attachment: the file of its record. Any other is answered.
fn request(mut stream: UnixStream) -> Option<(UnixStream, String)> {
    let mut text = [0; 1024];
    let n = stream.read(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..n]).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default();
    match path.strip_prefix("/v1/attachments/").and_then(|p| p.strip_suffix("/leave")) {
        Some(name) => Some((stream, format!("{name}.json"))),
        None => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            None
        }
    }
}

fn serve_one(
    what: Agent,
    mut stream: UnixStream,
    file: &str,
    told: &Mutex<Receiver<()>>,
    end: &Sender<String>,
) {
    let mut answer = |line: &str| {
        // Whoever asked may be dead.
        let _ =
            stream.write_all(format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").as_bytes());
    };
    match what {
        Agent::Refuses => return answer("404 Not Found"),
        Agent::Dies => return drop(stream.write_all(b"HTTP/1.1 20")),
        _ => answer("202 Accepted"),
    }
    let crawls = what == Agent::Crawls;
    let lock = crawls.then(|| {
        let (id, ifname) = file.trim_end_matches(".json").rsplit_once('-').unwrap();
        Attachments::at(&Paths::default()).lock(id, ifname).unwrap().unwrap()
    });
    if crawls {
        thread::sleep(Duration::from_millis(2500));
    }
    if matches!(what, Agent::Halts | Agent::Crawls) {
        let record = std::fs::read_to_string(format!("/var/lib/causeway/attachments/{file}"));
        let record: Value = serde_json::from_str(&record.unwrap()).unwrap();
        sh(&format!("ip link del {}", record["hostIfname"].as_str().unwrap()));
    }
    if matches!(what, Agent::Halts | Agent::Sleeps | Agent::Crawls) {
        told.lock().unwrap().recv().unwrap();
    }
    drop(lock);
    if what != Agent::Forgets {
        leave::finish(&Paths::default(), file).unwrap();
        let _ = end.send(file.to_owned());
    }
}

#[track_caller]
fn clean(node: &Node, when: &str) {
    let start = Instant::now();
    loop {
        let left = node.residue();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < SOON, "left {when}: {left}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn gone_inside(pod: &str) {
    let (there, _) = try_sh(&format!("ip -n {pod} link show eth0"));
    assert!(!there, "DEL has answered, and eth0 is still in {pod}");
}

#[track_caller]
fn reached(result: &Value) {
    for ip in addresses(result) {
        sh(&format!("ping -c1 -W5 -n {ip}"));
    }
}

#[test]
fn the_interface_is_gone_and_then_all() {
    for mode in Mode::ALL {
        for families in Families::ALL {
            let node = serve(mode, families);
            let conf = conf(mode, families);
            let stand = Stand::listen(Agent::Does);
            node.pod("p1");
            node.pod("p2");
            node.add("p1", &conf);
            let other = node.add("p2", &conf);
            node.del("p1", &conf);
            gone_inside("p1");
            stand.done.recv_timeout(SOON).unwrap();
            reached(&other);
            node.del("p2", &conf);
            clean(&node, &format!("by the agent, {mode:?} {families:?}"));
            node.del("p2", &conf);
            assert_eq!(stand.asked(), 2, "{mode:?} {families:?}");
        }
    }
}

/// It does not wait for leases and records.
#[test]
fn del_answers_while_the_agent_is_at_it() {
    for mode in Mode::ALL {
        let node = serve(mode, Families::Dual);
        let conf = conf(mode, Families::Dual);
        let stand = Stand::listen(Agent::Halts);
        node.pod("p1");
        node.add("p1", &conf);
        node.del("p1", &conf);
        gone_inside("p1");
        assert!(node.residue().contains("/p1-eth0.json"), "{mode:?}: the plugin did all by itself");
        stand.go();
        clean(&node, "by the agent, told to go on");
    }
}

/// A kernel that is busy may hold up the agent for long. Runtimes call DEL more than once.
#[test]
fn del_does_not_wait_for_an_agent_that_is_at_the_rest() {
    for mode in Mode::ALL {
        let node = serve(mode, Families::Dual);
        let conf = conf(mode, Families::Dual);
        let stand = Stand::listen(Agent::Crawls);
        node.pod("p1");
        node.add("p1", &conf);
        for call in ["first", "second"] {
            let start = Instant::now();
            node.del("p1", &conf);
            assert!(start.elapsed() < Duration::from_secs(9), "{mode:?}: the {call} waited");
            gone_inside("p1");
        }
        let left = node.residue();
        assert!(left.contains("/p1-eth0.json"), "{mode:?}: nobody is at it any more: {left}");
        stand.go();
        clean(&node, "by the agent, told to go on");
        node.del("p1", &conf);
    }
}

#[test]
fn an_agent_that_does_not_do_it() {
    for agent in [Agent::Forgets, Agent::Refuses, Agent::Dies] {
        for mode in Mode::ALL {
            let node = serve(mode, Families::Dual);
            let conf = conf(mode, Families::Dual);
            let stand = Stand::listen(agent);
            node.pod("p1");
            node.add("p1", &conf);
            node.del("p1", &conf);
            gone_inside("p1");
            assert_eq!(node.residue(), "", "{agent:?} {mode:?}");
            assert_eq!(stand.asked(), 1, "{agent:?} {mode:?}");
        }
    }
}

/// The address is another pod's by the time that the agent comes to it.
#[test]
fn an_agent_that_is_late_leaves_the_next_pod_alone() {
    for mode in Mode::ALL {
        let (node, conf) = one_address(mode);
        let stand = Stand::listen(Agent::Sleeps);
        node.pod("p1");
        node.pod("p2");
        let first = node.add("p1", &conf);
        node.del("p1", &conf);
        let second = node.add("p2", &conf);
        assert_eq!(addresses(&first), addresses(&second), "{mode:?}");
        stand.go();
        reached(&second);
        stand.go.send(()).unwrap();
        node.del("p2", &conf);
        clean(&node, "at the end");
    }
}

/// The agent has read the record, and waits in line while another DEL ends it all.
#[test]
fn what_another_ended_is_left_alone() {
    for mode in Mode::ALL {
        let (node, conf) = one_address(mode);
        node.pod("p1");
        node.pod("p2");
        node.add("p1", &conf);
        let file = "/var/lib/causeway/attachments/p1-eth0.json";
        let mut record: Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).expect("a record");
        record["pending"] = true.into();
        record["leaving"] = json!({"leaseDir": "/var/lib/cni/networks/pod-network"});
        std::fs::write(file, record.to_string()).unwrap();
        let paths = Paths::default();
        let lock = Attachments::at(&paths).lock("p1", "eth0").unwrap();
        assert!(lock.is_some());
        let late = thread::spawn(move || leave::finish(&paths, "p1-eth0.json"));
        // So that it stands in line; a test that is too quick for that shows less.
        thread::sleep(Duration::from_millis(300));
        std::fs::remove_file(file).unwrap();
        node.del("p1", &conf);
        assert!(!node.residue().contains("10.244.1.2"), "{mode:?}: {}", node.residue());
        let second = node.add("p2", &conf);
        // The kernel writes down that a new link is up a moment after packets pass it.
        let residue = || node.residue().replace("state UNKNOWN", "state UP");
        let before = residue();
        assert!(before.contains("10.244.1.2"), "{mode:?}: {before}");
        drop(lock);
        late.join().unwrap().unwrap();
        assert_eq!(residue(), before, "{mode:?}");
        reached(&second);
    }
}

/// The only address is with a pod whose end the agent did not come to.
#[test]
fn an_add_that_needs_the_address_takes_it() {
    for mode in Mode::ALL {
        let (node, conf) = one_address(mode);
        let stand = Stand::listen(Agent::Halts);
        node.pod("p1");
        node.pod("p2");
        node.add("p1", &conf);
        node.del("p1", &conf);
        let second = node.add("p2", &conf);
        reached(&second);
        stand.go();
        reached(&second);
    }
}

/// A node with a single address for pods, of each family where the configuration tells the range.
fn one_address(mode: Mode) -> (Node, Value) {
    if mode == Mode::Classic {
        let mut conf = conf(mode, Families::Dual);
        let only =
            |subnet: &str, ip: &str| json!([{"subnet": subnet, "rangeStart": ip, "rangeEnd": ip}]);
        conf["ipam"]["ranges"] = json!([
            only("10.244.1.0/24", "10.244.1.2"),
            only("fd00:10:244:1::/64", "fd00:10:244:1::2"),
        ]);
        conf["ipam"].as_object_mut().unwrap().remove("subnet");
        return (serve(mode, Families::Dual), conf);
    }
    let node = serve(mode, Families::V4);
    write_node_file(mode, Families::V4, json!({"podCidrs": ["10.244.1.0/30"]}));
    (node, conf(mode, Families::V4))
}

/// An agent that was not there when the plugin was killed finds the record.
#[test]
fn killed_at_every_system_call() {
    for mode in Mode::ALL {
        let node = serve(mode, Families::Dual);
        let conf = conf(mode, Families::Dual);
        let stand = Stand::listen(Agent::Does);
        node.pod("p1");
        let mut found = 0;
        for at in points(1) {
            let result = node.add("p1", &conf);
            let mut held = Held::start(&node, "DEL", "p1", &conf, "");
            if !held.reach(at) {
                assert_eq!(held.finish().code, 0);
                clean(&node, "by DEL");
                assert!(at > 40, "{mode:?}: {at} system calls are too few to be true");
                break;
            }
            held.kill();
            for file in leave::unfinished(&Paths::default()).unwrap() {
                found += 1;
                leave::finish(&Paths::default(), &file).unwrap();
            }
            if at % 2 == 0 {
                let mut conf = conf.clone();
                conf["prevResult"] = result;
                node.del("p1", &conf);
            } else if Path::new("/var/lib/causeway/attachments/p1-eth0.json").exists() {
                // Nothing was said yet.
                node.del("p1", &conf);
            }
            clean(&node, &format!("after DEL killed at system call {at}, {mode:?}"));
        }
        assert!(found > 2, "{mode:?}: {found} times was there something left to do");
        assert!(stand.asked() > 2);
    }
}
