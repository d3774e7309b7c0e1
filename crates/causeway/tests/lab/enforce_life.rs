//! Policies while things happen: pods that start, policies that change under connections, tables that others flush,
//! agents that are away.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use causeway_kernel::conntrack::Conntrack;
use causeway_lab::{Pod, Road, inside};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::json;

use crate::enforce::{apply, pod, policies_path, remove, settled, tcp};
use crate::enforce_marks::but_for_mark;
use crate::world::{PATIENCE, REPAIR, World, dual, eventually, with};

/// A SYN each millisecond for a while. How long after the first one a connection came about, if any did.
fn syns(ns: &Path, to: SocketAddr, time: Duration) -> Option<Duration> {
    let knock = || {
        let began = Instant::now();
        let mut open: Vec<(Duration, socket2::Socket)> = Vec::new();
        while began.elapsed() < time {
            let domain = socket2::Domain::for_address(to);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let at = began.elapsed();
            // In progress, or no way there.
            let _ = socket.connect(&to.into());
            open.push((at, socket));
            std::thread::sleep(Duration::from_millis(1));
            if let Some((at, _)) = open.iter().find(|(_, socket)| socket.peer_addr().is_ok()) {
                return Ok(Some(*at));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        Ok(open.iter().find(|(_, s)| s.peer_addr().is_ok()).map(|(at, _)| *at))
    };
    inside(ns, knock).unwrap()
}

/// Waits until a pod's first process is there: its interface is by then.
fn first_instant(ns: &Path) {
    let began = Instant::now();
    loop {
        let here: SocketAddr = ([127, 0, 0, 1], 8080).into();
        let up =
            inside(ns, || Ok(TcpStream::connect_timeout(&here, Duration::from_millis(50)).is_ok()));
        if up.is_ok_and(|up| up) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{} does not begin", ns.display());
        std::thread::sleep(Duration::from_micros(500));
    }
}

pub(crate) fn served(pod: &Pod, family: Family) -> SocketAddr {
    (pod.ip(family).unwrap(), 8080).into()
}

/// Pods `app=new` may reach pods `app=open` at port 8080 alone; waits until plugins know that they have to ask. Answers the
/// selector of those.
fn reaches_open_alone(world: &World) -> serde_json::Value {
    let to = json!({"podSelector": {"matchLabels": {"app": "open"}}});
    let spec = json!({"podSelector": {"matchLabels": {"app": "new"}},
        "policyTypes": ["Egress"], "egress": [{"to": [to], "ports": [{"port": 8080}]}]});
    apply(world, "default", "new", &spec);
    settled(world, 1);
    let file = world.spec.dirs().node("node-1").join("run-causeway/node.json");
    eventually("plugins know that they have to ask", PATIENCE, || {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        let read: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if read["policyNamespaces"] == json!(["default"]) { Ok(()) } else { Err(text) }
    });
    to
}

/// What a pod's policies deny it never reaches, from its first instant on; what they allow it reaches soon.
fn no_gap(attach: Attach) {
    with(dual(2, attach, Road::Vxlan), |world| {
        let open = json!({"app": "open"});
        let servers = ["node-1", "node-2"].map(|node| {
            let n = &node[5..];
            (
                pod(world, &format!("closed-{n}"), node, &json!({"app": "closed"})),
                pod(world, &format!("open-{n}"), node, &open),
            )
        });
        let to = reaches_open_alone(world);
        for n in 0..4 {
            let name = format!("new-{n}");
            let object = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": "new"}},
                "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "lab"}]}});
            world.client.post("/api/v1/namespaces/default/pods", &object).unwrap();
            let ns = world.spec.dirs().pod_netns("node-1", "default", &name);
            first_instant(&ns);
            let family = Family::BOTH[n % 2];
            std::thread::scope(|scope| {
                for (closed, open) in &servers {
                    let (closed, open) = (served(closed, family), served(open, family));
                    let ns = &ns;
                    scope.spawn(move || {
                        let through = syns(ns, closed, Duration::from_millis(500));
                        assert_eq!(through, None, "{closed} is closed to {}", ns.display());
                    });
                    scope.spawn(move || {
                        let through = syns(ns, open, Duration::from_secs(2));
                        println!("{open} after {through:?}");
                        assert!(through.is_some(), "{open} is open to {}", ns.display());
                    });
                }
            });
        }
        // To the new pod, once it runs: what its own policies deny, and what they allow.
        let spec = json!({"podSelector": {"matchLabels": {"app": "late"}},
            "ingress": [{"from": [to]}]});
        apply(world, "default", "late", &spec);
        settled(world, 2);
        for n in 0..4 {
            let late = pod(world, &format!("late-{n}"), "node-1", &json!({"app": "late"}));
            let to = served(&late, Family::BOTH[n % 2]);
            std::thread::scope(|scope| {
                for (closed, open) in &servers {
                    scope.spawn(move || {
                        let through = syns(&world.netns(closed), to, Duration::from_millis(300));
                        assert_eq!(through, None, "{to} from a pod that may not");
                    });
                    scope.spawn(move || {
                        let through = syns(&world.netns(open), to, Duration::from_secs(2));
                        assert!(through.is_some(), "{to} from a pod that may");
                    });
                }
            });
        }
    });
}

#[test]
fn no_gap_at_the_start_of_routed_pods() {
    no_gap(Attach::Routed);
}

#[test]
fn no_gap_at_the_start_of_bridged_pods() {
    no_gap(Attach::Bridge);
}

/// A connection that is asked again and again, each time something else: what comes late is no answer to the next
/// question.
pub(crate) struct Talk {
    stream: TcpStream,
    asked: u8,
}

impl Talk {
    pub(crate) fn open(ns: &Path, to: SocketAddr) -> Self {
        let stream = inside(ns, || Ok(TcpStream::connect_timeout(&to, PATIENCE)?)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        let mut talk = Self { stream, asked: 127 };
        // Its greeting, and whatever else.
        let _ = talk.stream.read(&mut [0; 256]);
        talk
    }

    /// Whether it is answered within a moment.
    pub(crate) fn goes_on(&mut self) -> bool {
        // No byte of the greeting.
        self.asked = 128 | self.asked.wrapping_add(1);
        if self.stream.write_all(&[self.asked]).is_err() {
            return false;
        }
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 && buffer[..n].contains(&self.asked) => return true,
                Ok(n) if n > 0 => {}
                _ => return false,
            }
        }
    }
}

pub(crate) fn change(world: &World, name: &str, spec: &serde_json::Value) {
    let path = format!("{}/{name}", policies_path("default"));
    let mut object = world.client.get(&path).unwrap();
    object["spec"] = spec.clone();
    world.client.put(&path, &object).unwrap();
}

/// A change of policies costs no packet that both the old and the new ones allow, ends what the new ones forbid,
/// and lets it go on when it is allowed again.
fn changes(attach: Attach) {
    with(dual(2, attach, Road::Direct), |world| {
        let server = pod(world, "server", "node-1", &json!({"app": "server"}));
        let near = pod(world, "near", "node-1", &json!({"app": "client", "tier": "a"}));
        let far = pod(world, "far", "node-2", &json!({"app": "client", "tier": "a"}));
        let other = pod(world, "other", "node-2", &json!({"app": "other"}));
        world.whole();
        let select = |labels: serde_json::Value| json!({"podSelector": {"matchLabels": labels}});
        let subject = json!({"matchLabels": {"app": "server"}});
        let from = |peers: serde_json::Value| json!({"podSelector": subject, "ingress": [{"from": peers}]});
        let all = from(json!([select(json!({"app": "client"})), select(json!({"app": "other"}))]));
        apply(world, "default", "p", &all);
        settled(world, 1);
        for family in Family::BOTH {
            let to = served(&server, family);
            let mut talks: Vec<(bool, Talk)> = [(true, &near), (true, &far), (false, &other)]
                .map(|(stays, pod)| (stays, Talk::open(&world.netns(pod), to)))
                .into();
            for (_, talk) in &mut talks {
                assert!(talk.goes_on());
            }
            let going = std::sync::atomic::AtomicBool::new(true);
            let going = &going;
            std::thread::scope(|scope| {
                let watches: Vec<_> = [&near, &far]
                    .map(|pod| {
                        let (ns, to): (_, IpAddr) = (world.netns(pod), to.ip());
                        scope.spawn(move || {
                            let go_on = || going.load(std::sync::atomic::Ordering::Relaxed);
                            let pause = Duration::from_millis(2);
                            causeway_lab::watch_loss_while(&ns, to, pause, go_on).unwrap()
                        })
                    })
                    .into();
                let blocks = ["10.0.0.0/8", "fd00::/8"].map(|b| json!({"ipBlock": {"cidr": b}}));
                for n in 0..12 {
                    let next = match n % 3 {
                        0 => from(json!([select(json!({"app": "client"}))])),
                        1 => from(json!([select(json!({"tier": "a"}))])),
                        _ => json!({"podSelector": subject, "ingress": [{"from": [
                            {"ipBlock": {"cidr": blocks[0]["ipBlock"]["cidr"], "except": [
                                format!("{}/32", other.ip(Family::V4).unwrap())]}},
                            {"ipBlock": {"cidr": blocks[1]["ipBlock"]["cidr"], "except": [
                                format!("{}/128", other.ip(Family::V6).unwrap())]}},
                        ]}]}),
                    };
                    change(world, "p", &next);
                    settled(world, 1);
                    for (stays, talk) in &mut talks {
                        assert_eq!(talk.goes_on(), *stays, "{family}, change {n}");
                    }
                }
                going.store(false, std::sync::atomic::Ordering::Relaxed);
                for watch in watches {
                    let loss = watch.join().unwrap();
                    assert_eq!(loss.lost, 0, "{family}: {loss:?}");
                    assert!(loss.sent > 500, "{loss:?}");
                }
            });
            change(world, "p", &all);
            settled(world, 1);
            // What was held up comes through: it was not forgotten who opened the connection.
            let (_, held) = &mut talks[2];
            eventually("it goes on", PATIENCE, || {
                if held.goes_on() { Ok(()) } else { Err("it does not".to_owned()) }
            });

            // The kernel forgets the connections: those whose client speaks go on, and are judged as before.
            let ips: Vec<IpAddr> =
                [&server, &near, &far, &other].iter().flat_map(|pod| pod.ips.clone()).collect();
            for node in ["node-1", "node-2"] {
                inside(&world.node_ns(node), || {
                    let mut conntrack = Conntrack::open().map_err(|e| anyhow::anyhow!("{e}"))?;
                    let count = conntrack.count().map_err(|e| anyhow::anyhow!("{e}"))?;
                    conntrack.delete_found(&ips, count).map_err(|e| anyhow::anyhow!("{e}"))
                })
                .unwrap();
            }
            for (_, talk) in &mut talks {
                eventually("a forgotten connection goes on", PATIENCE, || {
                    if talk.goes_on() { Ok(()) } else { Err("it does not".to_owned()) }
                });
            }
            change(world, "p", &from(json!([select(json!({"app": "client"}))])));
            settled(world, 1);
            for (stays, talk) in &mut talks {
                assert_eq!(talk.goes_on(), *stays, "{family}, after its entry was lost");
            }
            change(world, "p", &all);
            settled(world, 1);
        }
    });
}

#[test]
fn changes_under_connections_of_routed_pods() {
    changes(Attach::Routed);
}

#[test]
fn changes_under_connections_of_bridged_pods() {
    changes(Attach::Bridge);
}

/// Whatever others do to the table is put right; agents that end, or are killed, leave it in force; while none is
/// there no pod starts that policies may apply to.
#[test]
fn the_table_is_kept() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let server = pod(world, "server", "node-1", &json!({"app": "server"}));
        let client = pod(world, "client", "node-2", &json!({"app": "client"}));
        let other = pod(world, "other", "node-1", &json!({"app": "other"}));
        let spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]},
            {"from": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}]});
        apply(world, "default", "p", &spec);
        settled(world, 1);
        let list = "nft -s list table inet causeway_policy";
        let sorted = |text: String| but_for_mark(&text);
        let before = sorted(world.on("node-1", list));
        let holds = |what: &str| {
            for ip in &server.ips {
                assert!(tcp(&world.netns(&client), (*ip, 8080).into()), "{what}: the client");
                assert!(!tcp(&world.netns(&other), (*ip, 8080).into()), "{what}: another");
            }
        };
        holds("before");
        for damage in [
            "nft delete table inet causeway_policy",
            "nft flush ruleset",
            "nft flush chain inet causeway_policy forward",
            "nft flush set inet causeway_policy isolated4",
            "nft flush map inet causeway_policy in4_t",
            "nft add chain inet causeway_policy stranger",
            "nft insert rule inet causeway_policy forward accept",
        ] {
            world.on("node-1", damage);
            eventually(damage, REPAIR, || {
                let now = sorted(world.try_sh(&world.node_ns("node-1"), list).1);
                if now == before { Ok(()) } else { Err(format!("{now}\ninstead of\n{before}")) }
            });
            holds(damage);
        }

        world.agent("node-1", "kill");
        holds("the agent is killed");
        settled(world, 1);
        assert_eq!(sorted(world.on("node-1", list)), before);
        world.agent("node-1", "stop");
        holds("the agent is stopped");
        assert_eq!(sorted(world.on("node-1", list)), before);
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "late", "labels": {"app": "server"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "lab"}]}});
        world.client.post("/api/v1/namespaces/default/pods", &object).unwrap();
        eventually("the pod has to wait", PATIENCE, || {
            let late = causeway_lab::find_pod(&world.client, "late").unwrap();
            assert_ne!(late.phase, "Running");
            match late.message.contains("namespace default has network policies") {
                true => Ok(()),
                false => Err(late.message),
            }
        });
        // Meanwhile the policy changes, and one comes.
        let closed = json!({"podSelector": {"matchLabels": {"app": "client"}}});
        apply(world, "default", "closed", &closed);
        world.agent("node-1", "start");
        settled(world, 2);
        eventually("the pod runs", PATIENCE, || {
            let late = causeway_lab::find_pod(&world.client, "late").unwrap();
            if late.phase == "Running" { Ok(()) } else { Err(late.message) }
        });
        holds("another agent");
        assert!(!tcp(&world.netns(&server), (client.ips[0], 8080).into()));
        remove(world, "default", "closed");
        remove(world, "default", "p");
        settled(world, 0);
        assert!(tcp(&world.netns(&other), (server.ips[0], 8080).into()));
    });
}

/// A watch that says nothing for a while keeps no pod of a namespace with policies from starting: the API is asked
/// for it. Its policies hold from its first instant on, and it is forgotten when it goes.
#[test]
fn a_silent_watch_keeps_no_pod_waiting() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let open = pod(world, "open", "node-1", &json!({"app": "open"}));
        let closed = pod(world, "closed", "node-1", &json!({"app": "closed"}));
        reaches_open_alone(world);
        let stall = |seconds: u32| {
            let settings = json!({"watchStallSeconds": seconds});
            world.client.put("/causeway.lab/faults", &settings).unwrap();
        };
        stall(600);
        let new = pod(world, "new", "node-1", &json!({"app": "new"}));
        for family in Family::BOTH {
            assert_eq!(
                syns(&world.netns(&new), served(&closed, family), Duration::from_millis(300)),
                None
            );
            assert!(
                syns(&world.netns(&new), served(&open, family), Duration::from_secs(2)).is_some()
            );
        }
        assert!(
            world
                .causeway("node-1", &["policy", "show", "new"])
                .1
                .contains("NetworkPolicy default/new")
        );
        // It goes before any watch has told of it.
        causeway_lab::delete_pod(&world.client, "new", PATIENCE).unwrap();
        eventually("it is forgotten", PATIENCE, || {
            let (found, said) = world.causeway("node-1", &["policy", "show", "new"]);
            if found { Err(said) } else { Ok(()) }
        });
        stall(0);
        let again = pod(world, "new", "node-1", &json!({"app": "new"}));
        assert_eq!(
            syns(&world.netns(&again), served(&closed, Family::V4), Duration::from_millis(300)),
            None
        );
    });
}

/// What a policy that came and went has left in the table is gone in a moment, though nothing waits for it.
#[test]
fn what_a_policy_leaves_goes() {
    with(dual(1, Attach::Routed, Road::Direct), |world| {
        pod(world, "server", "node-1", &json!({"app": "server"}));
        let spec = |port: u16| {
            json!({"podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"ports": [{"port": port}]}]})
        };
        apply(world, "default", "stays", &spec(80));
        settled(world, 1);
        let table = || world.on("node-1", "nft -s list table inet causeway_policy");
        let parts = || ["chain ", "set ", "map "].map(|what| table().matches(what).count());
        eventually("the first policy is there", REPAIR, || match table().contains("dport 80 ") {
            true => Ok(()),
            false => Err(table()),
        });
        let first = parts();
        for port in [81, 82] {
            apply(world, "default", "goes", &spec(port));
            settled(world, 2);
            remove(world, "default", "goes");
            settled(world, 1);
        }
        eventually("nothing is left of the others", REPAIR, || match parts() {
            now if now == first => Ok(()),
            now => Err(format!("{now:?} chains, sets and maps instead of {first:?}: {}", table())),
        });
    });
}
