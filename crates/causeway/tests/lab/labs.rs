//! Labs beside each other, and their end.

use causeway_lab::{Plugin, Record, Spec, down, names, residue, up};
use causeway_types::Family;
use causeway_types::state::Attach;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{World, binaries, isolated};

fn spec(name: &str, attach: Attach) -> Spec {
    Spec { name: name.into(), nodes: 2, attach, ..Spec::default() }
}

#[test]
fn two_at_once_do_not_meet() {
    isolated(|| {
        let one = World::up(spec("one", Attach::Routed), &crate::world::binaries());
        let two = World::up(spec("two", Attach::Bridge), &crate::world::binaries());
        assert_eq!(names(), ["one", "two"]);
        // The same addresses in both, and each answers with its own pods.
        for (world, pod) in [(&one, "first"), (&two, "second")] {
            let p = world.pod(pod, "node-1");
            let q = world.pod("other", "node-2");
            let body = world.fetch(&world.netns(&q), world.ip(&p, Family::V4)).unwrap();
            assert!(body.starts_with(&format!("{pod} on node-1")), "{body}");
        }
        let error = up(&spec("one", Attach::Routed), &binaries(), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("causeway lab down --name one"), "{error:#}");
        drop(one);
        assert_eq!(residue("one"), Vec::<String>::new());
        two.all_reach_all();
        drop(two);
        assert_eq!(residue("two"), Vec::<String>::new());
        assert_eq!(names(), Vec::<String>::new());
        let left = std::fs::read_dir("/run/netns").unwrap().count();
        assert_eq!(left, 0, "names of namespaces");
        for dir in ["/run/causeway", "/run/causeway-lab", "/var/lib/causeway", "/etc/causeway"] {
            assert!(!std::path::Path::new(dir).exists(), "{dir}");
        }
    });
}

#[test]
fn nothing_is_left_after_a_kill() {
    isolated(|| {
        let world = World::up(spec("killed", Attach::Bridge), &crate::world::binaries());
        world.pods();
        let nodes = causeway_lab::nodes(&world.spec).unwrap();
        let agents: Vec<i32> = nodes.iter().filter_map(|n| n.process.pid).collect();
        assert_eq!(agents.len(), 3);
        // The lab's own process: the parent of the agents.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agents[0])).unwrap();
        let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap();
        for pid in [parent.parse().unwrap(), agents[1]] {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        assert!(!residue("killed").is_empty());
        down("killed").unwrap();
        assert_eq!(residue("killed"), Vec::<String>::new());
        down("killed").unwrap();
    });
}

#[test]
fn what_cannot_come_up_is_taken_down_again() {
    isolated(|| {
        let mut broken = binaries();
        broken.causeway = "/bin/false".into();
        let error = up(&spec("broken", Attach::Routed), &broken, &mut |_| {});
        // The lab's process ends at once, and nobody answers.
        assert!(error.is_err());
        assert_eq!(residue("broken"), Vec::<String>::new());
        broken.causeway = "/nonexistent".into();
        let error = up(&spec("broken", Attach::Routed), &broken, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("./dev build"), "{error:#}");
        let bad = Spec { plugin: Plugin::Bridge, ..spec("bad", Attach::Routed) };
        assert!(
            up(&bad, &binaries(), &mut |_| {}).unwrap_err().to_string().contains("--attach bridge")
        );
        let error = Record::load("nothing").unwrap_err().to_string();
        assert!(error.contains("causeway lab up --name nothing"), "{error}");
    });
}

/// Nothing in a lab has a way to the machine's own network.
#[test]
fn a_lab_is_closed() {
    isolated(|| {
        let world = World::up(spec("closed", Attach::Routed), &crate::world::binaries());
        let pod = world.pod("a", "node-1");
        // Neither an address of the machine's own loopback nor any outside of the lab is reached.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for ns in [world.node_ns("cp"), world.node_ns("node-1"), world.netns(&pod)] {
            for to in ["127.0.0.1", "198.51.100.1"] {
                let to = format!("{to}:{port}").parse().unwrap();
                let wait = std::time::Duration::from_millis(500);
                let answer = causeway_lab::inside(&ns, || {
                    Ok(std::net::TcpStream::connect_timeout(&to, wait)?)
                });
                assert!(answer.is_err(), "{} reached {to}", ns.display());
            }
        }
        // The namespace that the test came from holds its loopback interface and nothing else.
        let own = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
        let own = String::from_utf8(own.stdout).unwrap();
        assert_eq!(own.lines().count(), 1, "{own}");
    });
}
