//! Nodes from the manifest, and pods by the container runtime interface.

use causeway_cri::Running;
use causeway_cri::message::Protocol;
use causeway_lab::Spec;
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::cluster::{Cluster, ask};
use crate::world::{PATIENCE, eventually, isolated};

const OUTSIDE: u16 = causeway_lab::OUTSIDE_PORT;

#[test]
fn pods_of_two_nodes_routed() {
    isolated(|| pods_of_two_nodes("routed", Attach::Routed));
}

#[test]
fn pods_of_two_nodes_on_bridges() {
    isolated(|| pods_of_two_nodes("bridge", Attach::Bridge));
}

/// Two pods on the first node, the first with a port of the node's and a limit, one on the other.
fn pods_of_two_nodes(name: &str, attach: Attach) {
    let cluster = Cluster::up(name, 2, attach);
    confined(&cluster);
    // As kubeadm asks for, where the kernel has it.
    for family in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
        let line = format!("if [ -e {path} ]; then echo 1 >{path}; fi");
        cluster.workers.iter().for_each(|worker| drop(worker.machine.sh(&line).unwrap()));
    }
    let limited = cluster
        .pod("a1")
        .host_port(Protocol::Tcp, 18080, 8080)
        .host_port(Protocol::Udp, 18080, 8080)
        .annotation("kubernetes.io/ingress-bandwidth", "80M")
        .annotation("kubernetes.io/egress-bandwidth", "80M");
    let wanted = [(0, limited), (0, cluster.pod("b1")), (1, cluster.pod("a2"))];
    let pods = wanted.map(|(worker, pod)| {
        let worker = &cluster.workers[worker];
        let made = Running::run(&worker.machine, &worker.client, &pod);
        let made = made.unwrap_or_else(|e| panic!("{e:#}"));
        made.serve(&worker.client, cluster.manifest.image().unwrap()).unwrap();
        made
    });
    for family in Family::BOTH {
        all_reach_all(&cluster, &pods, family);
        host_port(&cluster, &pods, family);
    }
    let line = "tc qdisc show; ip -o link show type ifb";
    let limits = cluster.workers[0].machine.sh(line).unwrap();
    assert!(limits.matches("rate 80Mbit").count() == 2 && limits.contains("bwp"), "{limits}");
    for (pod, worker) in pods.iter().zip([0, 0, 1]) {
        let client = &cluster.workers[worker].client;
        client.stop_sandbox(&pod.id).unwrap();
        // A kubelet asks more than once.
        client.stop_sandbox(&pod.id).unwrap();
        client.remove_sandbox(&pod.id).unwrap();
    }
    for worker in &cluster.workers {
        worker.holds_nothing();
    }
}

/// The agent's process has what the manifest gives and no more.
fn confined(cluster: &Cluster) {
    for worker in &cluster.workers {
        let (machine, pid) = (&worker.machine, worker.agent.pid(&worker.client).unwrap());
        let status = machine.sh(&format!("cat /proc/{pid}/status")).unwrap();
        // CAP_NET_ADMIN is 12, CAP_SYS_ADMIN 21 (linux/capability.h).
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let line = format!("{set}:\t{:016x}", (1u64 << 12) | (1 << 21));
            assert!(status.contains(&line), "{line} is not in {status}");
        }
        assert!(status.contains("Seccomp:\t2"), "{status}");
        let mounts = machine.sh(&format!("cat /proc/{pid}/mountinfo")).unwrap();
        let read_only = |at: &str| mounts.lines().any(|l| l.contains(&format!(" {at} ro")));
        assert!(read_only("/") && read_only("/proc/sys") && !read_only("/host/proc/sys/net"));
        assert!(read_only("/etc/causeway") && !read_only("/etc/cni/net.d"), "{mounts}");
        let id = "proc/sys/kernel/random/boot_id";
        let inside = format!("/proc/{pid}/root");
        let own = machine.sh(&format!("cat {inside}/{id}")).unwrap();
        assert_eq!(own, machine.sh(&format!("cat /{id}")).unwrap());
        let installed = machine.sh("ls -l /opt/cni/bin").unwrap();
        assert!(installed.contains("loopback -> causeway-cni"), "{installed}");
    }
}

/// Pods see each other's own addresses, the world outside sees their node's.
#[track_caller]
fn all_reach_all(cluster: &Cluster, pods: &[Running; 3], family: Family) {
    for (from, node) in pods.iter().zip(["node-1", "node-1", "node-2"]) {
        for to in pods {
            let mut last = Err(String::new());
            eventually("a pod reaches a pod", PATIENCE, || {
                last = ask(&from.ns, to.ip(family).unwrap(), 8080);
                last.clone().map(drop)
            });
            let seen =
                if from.id == to.id { to.ip(family).unwrap() } else { from.ip(family).unwrap() };
            assert_eq!(last, Ok((to.pod.name().to_owned(), seen)), "{family}");
        }
        let outside = ask(&from.ns, Spec::outside(family).0.addr(), OUTSIDE);
        let node = cluster.world.spec.node_addr(node, family).addr();
        assert_eq!(outside, Ok(("outside".to_owned(), node)));
    }
}

/// The first pod is behind a port of its node: for the world outside, a pod of another node, one of
/// the same, itself, and the node.
#[track_caller]
fn host_port(cluster: &Cluster, pods: &[Running; 3], family: Family) {
    let spec = &cluster.world.spec;
    let node = spec.node_addr("node-1", family).addr();
    let outside = spec.dirs().netns("outside");
    let seen = Spec::outside(family).0.addr();
    assert_eq!(ask(&outside, node, 18080), Ok(("a1".to_owned(), seen)), "from outside");
    let own = cluster.workers[0].machine.ns();
    let from = [("a neighbour", &pods[1].ns), ("itself", &pods[0].ns)];
    for (who, from) in
        from.into_iter().chain([("a pod elsewhere", &pods[2].ns), ("the node", &own)])
    {
        let said = ask(from, node, 18080);
        assert!(matches!(&said, Ok((name, _)) if name == "a1"), "{who}, {family}: {said:?}");
    }
}
