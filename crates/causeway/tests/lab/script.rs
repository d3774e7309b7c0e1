//! `causeway node script`: what it prints, run by `sh` on a bare node, builds the same network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_kernel::netns;
use causeway_lab::{Families, Plugin, Pod, Road, Spec, inside, ping};
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::world::{World, isolated};

const CASES: [(Attach, Plugin, Road, Families); 4] = [
    (Attach::Routed, Plugin::Causeway, Road::Vxlan, Families::Dual),
    (Attach::Bridge, Plugin::Bridge, Road::Direct, Families::Dual),
    (Attach::Bridge, Plugin::Causeway, Road::Vxlan, Families::Ipv6),
    (Attach::Routed, Plugin::Causeway, Road::Auto, Families::Ipv4),
];

/// What both nodes must show alike.
const VIEWS: [&str; 11] = [
    "ip -br link show | sort",
    "ip -br addr show | sort",
    "ip route show",
    "ip -6 route show | sort",
    "ip neigh show nud permanent | sort",
    "ip -6 neigh show nud permanent | sort",
    "ip -6 neigh show proxy | sort",
    "bridge fdb show | sort",
    "bridge -d link show | paste - - | sed 's/^[0-9]*: *//' | sort",
    "for t in 'inet causeway' 'netdev causeway_cni'; do nft -s list table $t; done | sort",
    "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
];
const POD_VIEWS: [&str; 4] = [
    "ip -br addr show | sort",
    "ip route show",
    "ip -6 route show | sort",
    "ip neigh show nud permanent | sort",
];

/// A view without what differs from one namespace to the next: numbers of interfaces, and the end of
/// the underlay's cable.
fn view(ns: &Path, line: &str) -> String {
    let run = || {
        let output = std::process::Command::new("sh").args(["-c", line]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = inside(ns, run).unwrap();
    let multicast = |l: &str| l.starts_with("33:33:") || l.starts_with("01:00:5e:");
    let underlay = |l: &str| l.starts_with("eth0@") || l.contains("dev eth0 proto kernel");
    let lines = text.lines().filter(|l| !multicast(l) && !underlay(l) && !l.trim().is_empty());
    let plain = lines.map(|l| {
        let words = l.split_whitespace().map(|w| match w.split_once('@') {
            // `cw0123@if7`, `cw0123@eth0`.
            Some((name, end)) if !name.is_empty() && end != "th,64,128" => name.to_owned(),
            _ => w.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    });
    plain.collect::<Vec<_>>().join("\n")
}

fn views(node: &Path, pods: &[(String, PathBuf)]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> =
        VIEWS.iter().map(|v| (format!("node: {v}"), view(node, v))).collect();
    for (name, ns) in pods {
        // Inside a pod eth0 is what matters.
        all.extend(POD_VIEWS.iter().map(|v| {
            let line = format!("{v} | sed 's/^eth0/pod0/; s/dev eth0/dev pod0/'");
            (format!("pod {name}: {v}"), view(ns, &line))
        }));
    }
    all
}

#[test]
fn builds_the_same_network() {
    for (attach, plugin, road, families) in CASES {
        isolated(move || {
            let spec = Spec { nodes: 2, attach, plugin, road, families, ..Spec::default() };
            let world = World::up(spec.clone(), &crate::world::binaries());
            let pods: Vec<Pod> = ["a", "b"].map(|name| world.pod(name, "node-1")).into();
            world.pod("c", "node-2");
            world.whole();
            let spaces: Vec<(String, PathBuf)> =
                pods.iter().map(|p| (p.name.clone(), world.netns(p))).collect();
            let node = world.node_ns("node-1");
            let original = views(&node, &spaces);
            let script = causeway_agent::client::script(&world.socket("node-1"), true).unwrap();
            drop(world);

            let copy = bare_node(&spec);
            std::fs::write("/run/script.sh", &script).unwrap();
            let run = || Ok(std::process::Command::new("sh").arg("/run/script.sh").output()?);
            let output = inside(&copy, run).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{attach:?} {road:?}: {said}\n{script}");
            for ((what, was), (_, is)) in original.iter().zip(views(&copy, &spaces)) {
                assert_eq!(*was, is, "{attach:?} {plugin:?} {road:?} {families:?}: {what}");
            }
            talk(&copy, &pods, &spaces, families.list());
        });
    }
}

/// A node as the lab makes one, with nothing of Causeway: its end of the underlay and its addresses.
fn bare_node(spec: &Spec) -> PathBuf {
    let ns = PathBuf::from("/run/netns/cw-copy");
    netns::create_named(&ns).unwrap();
    let mut lines = vec![
        "ip link set lo up".to_owned(),
        "ip link add eth0 type veth peer name far".to_owned(),
        "sysctl -qw net.ipv6.conf.eth0.accept_dad=0".to_owned(),
        format!("ip link set far up && ip link set eth0 mtu {} up", spec.mtu),
    ];
    for family in spec.families.list() {
        let router = Spec::router_addr(1, *family).addr();
        let v6 = if *family == Family::V6 { "-6" } else { "" };
        lines.push(format!("ip addr add {} dev eth0", spec.node_addr("node-1", *family)));
        lines.push(format!("ip {v6} route add default via {router} dev eth0 proto static"));
    }
    // The far end is away from the views.
    lines.push(
        "ip netns add cw-far && ip link set far netns cw-far && ip -n cw-far link set far up"
            .into(),
    );
    let line = lines.join(" && ");
    let run = || Ok(std::process::Command::new("sh").args(["-c", &line]).output()?);
    let output = inside(&ns, run).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    ns
}

/// The node and each pod reach each pod.
fn talk(node: &Path, pods: &[Pod], spaces: &[(String, PathBuf)], families: &[Family]) {
    let from = spaces.iter().map(|(_, ns)| ns.as_path()).chain([node]);
    for ns in from {
        for to in pods {
            for family in families {
                let ip = to.ip(*family).unwrap();
                let answers = ping(ns, ip, 1, 56, Duration::from_secs(3)).unwrap();
                assert_eq!(answers.len(), 1, "{} to {ip}", ns.display());
            }
        }
    }
}
