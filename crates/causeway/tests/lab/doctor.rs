//! `causeway doctor`: silent on nodes in good order, and for each check a fault that it names.
//!
//! Most faults are put in front of the command alone, by mounts that end with it: no agent can put
//! them right before they are seen.

use std::collections::BTreeSet;
use std::process::Command;

use causeway_lab::Road;
use causeway_types::state::Attach;
use serde_json::Value;

use crate::world::{PATIENCE, World, binaries, dual, eventually, with};

/// What doctor said: its exit code, and its findings.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) findings: Vec<Value>,
}

impl Said {
    pub(crate) fn ids(&self) -> BTreeSet<&str> {
        self.findings.iter().map(|f| f["id"].as_str().unwrap()).collect()
    }

    pub(crate) fn one(&self, id: &str) -> &Value {
        let found = self.findings.iter().find(|f| f["id"] == id);
        found.unwrap_or_else(|| panic!("no {id}: {:?}", self.findings))
    }

    /// The commands of a finding, without advice in words.
    fn commands(&self, id: &str) -> Vec<String> {
        let all = self.one(id)["do"].as_array().unwrap().iter();
        let all = all.map(|line| line.as_str().unwrap().to_owned());
        all.filter(|line| !line.starts_with('#')).collect()
    }
}

/// A shell line on a node, in which `$DOCTOR` stands for the command; what it printed.
pub(crate) fn shell(world: &World, node: &str, line: &str) -> (i32, String) {
    let causeway = binaries().causeway;
    let output = Command::new(&causeway)
        .args(["lab", "shell", "--name", &world.spec.name, node, "--", "sh", "-ec", line])
        .env("DOCTOR", format!("{} doctor", causeway.display()))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// What doctor says on node-1 behind a shell line.
pub(crate) fn behind(world: &World, fault: &str, options: &str) -> Said {
    let line = format!("{fault}\nexec $DOCTOR --json {options}");
    let (code, text) = shell(world, "node-1", &line);
    let findings = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{fault}: {e}: {text}"));
    Said { code, findings }
}

pub(crate) fn doctor(world: &World) -> Said {
    behind(world, "", "")
}

/// Distributions differ in what a new namespace has.
const NOT_STRICT: &str = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done";

#[track_caller]
pub(crate) fn silent(world: &World) {
    world.on("node-1", NOT_STRICT);
    eventually("nothing is wrong", PATIENCE, || {
        let said = doctor(world);
        if said.findings.is_empty() { Ok(()) } else { Err(format!("{:?}", said.findings)) }
    });
}

fn ids<const N: usize>(all: [&str; N]) -> BTreeSet<&str> {
    BTreeSet::from(all)
}

#[test]
fn doctor_is_silent_on_nodes_in_good_order() {
    for (attach, road) in [(Attach::Routed, Road::Vxlan), (Attach::Bridge, Road::Auto)] {
        with(dual(2, attach, road), |world| {
            world.pods();
            world.whole();
            for node in world.spec.node_names() {
                // Distributions differ in what a new namespace has.
                world.on(
                    &node,
                    "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done",
                );
                let (code, text) = shell(world, &node, "exec $DOCTOR");
                assert_eq!((code, text.as_str()), (0, "nothing wrong\n"), "{attach:?} {node}");
            }
        });
    }
}

/// A place of a copy over a directory, for the command alone.
const COPY: &str = "copy() { rm -rf /run/copy; cp -a $1 /run/copy; mount --bind /run/copy $1; }\n";

/// Faults that last as long as the command: the ids that are expected, a word of `where` of the
/// first, the shell line, and options.
const FAULTS: &[(&[&str], &str, &str, &str)] = &[
    (
        &["forwarding-off"],
        "net/ipv6/conf/all/forwarding",
        "echo 0 > /run/zero; mount --bind /run/zero /proc/sys/net/ipv6/conf/all/forwarding",
        "",
    ),
    (
        &["neighbour-table-small"],
        "gc_thresh3",
        "mount -t tmpfs t /proc/sys/net/ipv4/neigh; mkdir /proc/sys/net/ipv4/neigh/default
         echo 3 > /proc/sys/net/ipv4/neigh/default/gc_thresh3",
        "",
    ),
    (
        &["conntrack-full"],
        "nf_conntrack_max",
        "cat /proc/sys/net/netfilter/nf_conntrack_max > /run/max
         mount --bind /run/max /proc/sys/net/netfilter/nf_conntrack_count",
        "",
    ),
    (
        &["accept-ra-off"],
        "conf/eth0/accept_ra",
        "ip -6 route add default via fe80::1 dev eth0 proto ra metric 4000
         echo 1 > /run/one; mount --bind /run/one /proc/sys/net/ipv6/conf/eth0/accept_ra",
        "",
    ),
    (
        &["node-file-missing"],
        "/run/causeway/node.json",
        "mkdir -p /run/real; mount --bind /run/causeway /run/real; mount -t tmpfs t /run/causeway
         ln -s /run/real/agent.sock /run/causeway/agent.sock",
        "",
    ),
    (
        &["node-file-unreadable"],
        "/run/causeway/node.json",
        "echo '{' > /run/bad.json; mount --bind /run/bad.json /run/causeway/node.json",
        "",
    ),
    (
        &["node-file-old"],
        "/run/causeway/node.json",
        "cp /run/causeway/node.json /run/old.json; touch -d 2001-01-01 /run/old.json
         mount --bind /run/old.json /run/causeway/node.json",
        "",
    ),
    (
        &["clock-behind"],
        "/run/causeway/node.json",
        "cp /run/causeway/node.json /run/new.json; touch -d '+1 day' /run/new.json
         mount --bind /run/new.json /run/causeway/node.json",
        "",
    ),
    (
        &["conflist-missing"],
        "/etc/cni/net.d/05-causeway.conflist",
        "copy /etc/cni; rm /etc/cni/net.d/05-causeway.conflist",
        "",
    ),
    (
        &["conflist-invalid"],
        "/etc/cni/net.d/05-causeway.conflist",
        "copy /etc/cni; echo '{}' > /etc/cni/net.d/05-causeway.conflist",
        "",
    ),
    (
        &["conflist-shadowed"],
        "/etc/cni/net.d/00-other.conf",
        r#"copy /etc/cni
         echo '{"cniVersion":"1.0.0","name":"o","type":"loopback"}' > /etc/cni/net.d/00-other.conf"#,
        "",
    ),
    (&["plugin-missing"], "/nowhere", "", "--cni-path /nowhere"),
    (
        &["plugin-missing"],
        "/run/bin/causeway",
        "mkdir -p /run/bin; echo x > /run/bin/causeway; chmod 644 /run/bin/causeway",
        "--cni-path /run/bin",
    ),
    (
        &["plugin-foreign"],
        "/run/bin/causeway",
        "mkdir -p /run/bin; echo '#!/bin/sh' > /run/bin/causeway; chmod 755 /run/bin/causeway",
        "--cni-path /run/bin",
    ),
    (
        &["lease-unreadable"],
        "pod-network/10.244.1.77",
        "copy /var/lib/cni; : > /var/lib/cni/networks/pod-network/10.244.1.77",
        "",
    ),
    (
        &["lease-stale"],
        "pod-network/10.244.1.78",
        "copy /var/lib/cni; printf 'gone\\r\\neth0' > /var/lib/cni/networks/pod-network/10.244.1.78",
        "",
    ),
    (
        &["record-unreadable"],
        "/var/lib/causeway/attachments/torn-eth0.json",
        "copy /var/lib/causeway; echo '{' > /var/lib/causeway/attachments/torn-eth0.json",
        "",
    ),
    (
        &["record-dead", "lease-stale"],
        "/var/lib/causeway/attachments/",
        "copy /var/lib/causeway
         sed -i 's/\"bootId\": \".*\"/\"bootId\": \"another\"/' /var/lib/causeway/attachments/*.json",
        "",
    ),
    (
        &["address-twice"],
        "10.244.1.3 of network pod-network",
        "copy /var/lib/causeway
         sed -i 's|10.244.1.4/|10.244.1.3/|' /var/lib/causeway/attachments/*.json",
        "",
    ),
    (
        &["cannot-look"],
        "what the kernel can do",
        "exec setpriv --bounding-set -sys_admin $DOCTOR --json",
        "",
    ),
    (
        &["kernel-lacks"],
        "nf_conntrack",
        // Where the kernel tracks no connections this is not there.
        "mount -t tmpfs t /proc/sys/net",
        "",
    ),
    (
        &["legacy-iptables"],
        "iptables-legacy",
        "mount -t tmpfs t /proc/$$/task/$$/net; echo filter > /proc/$$/task/$$/net/ip_tables_names",
        "",
    ),
];

#[test]
fn doctor_names_faults_that_are_put_before_it() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        world.pod("a", "node-1");
        world.pod("b", "node-1");
        world.whole();
        silent(world);
        for (expected, place, fault, options) in FAULTS {
            let said = behind(world, &format!("{COPY}{fault}"), options);
            let expected: BTreeSet<&str> = expected.iter().copied().collect();
            assert_eq!(said.ids(), expected, "{fault}: {:?}", said.findings);
            assert!(
                said.findings.iter().any(|f| f["where"].as_str().unwrap().contains(place)),
                "{:?}",
                said.findings
            );
            assert!(said.findings.iter().all(|f| !f["do"].as_array().unwrap().is_empty()));
            let errors = said.findings.iter().any(|f| f["severity"] == "error");
            assert_eq!(said.code, if errors { 2 } else { 1 }, "{fault}");
            // What a mount alone does not undo.
            let _ = shell(world, "node-1", "ip -6 route del default via fe80::1 metric 4000");
        }
        silent(world);
    });
}

/// Faults of the node itself, and what undoes them.
const ON_THE_NODE: &[(&str, &str, &str, &str)] = &[
    (
        "rp-filter-strict",
        "conf/cw-vxlan/rp_filter",
        "echo 1 > /proc/sys/net/ipv4/conf/cw-vxlan/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/cw-vxlan/rp_filter",
    ),
    ("leftover-flannel", "flannel.1", "ip link add flannel.1 type bridge", "ip link del flannel.1"),
    (
        "leftover-cilium",
        "cilium_host",
        "ip link add cilium_host type bridge",
        "ip link del cilium_host",
    ),
    (
        "leftover-calico",
        "ip filter cali-FORWARD",
        "nft add table ip filter; nft add chain ip filter cali-FORWARD",
        "nft delete table ip filter",
    ),
    (
        "leftover-kube-router",
        "KUBE-ROUTER-INPUT",
        "nft add table ip6 filter; nft add chain ip6 filter KUBE-ROUTER-INPUT",
        "nft delete table ip6 filter",
    ),
    (
        "mark-overlap",
        "IPv6 routing rule 77",
        "ip -6 rule add fwmark 0x1000/0xffff lookup main priority 77",
        "ip -6 rule del priority 77",
    ),
    (
        "agent-reports",
        "10.244.2.0/24",
        "ip route replace 10.244.2.0/24 dev eth0 proto static",
        "ip route del 10.244.2.0/24 dev eth0 proto static",
    ),
];

#[test]
fn doctor_names_faults_of_the_node() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        world.pod("a", "node-1");
        world.whole();
        silent(world);
        for (id, place, fault, undo) in ON_THE_NODE {
            world.on("node-1", fault);
            // The agent needs a moment to find out what it reports.
            eventually(id, PATIENCE, || {
                let said = doctor(world);
                if said.ids() == ids([*id]) { Ok(()) } else { Err(format!("{:?}", said.findings)) }
            });
            let said = doctor(world);
            let found = said.one(id)["where"].as_str().unwrap();
            assert!(found.contains(place), "{found}");
            world.on("node-1", undo);
            silent(world);
        }
        world.agent("node-1", "stop");
        let said = doctor(world);
        assert_eq!((said.ids(), said.code), (ids(["agent-silent"]), 2));
        world.agent("node-1", "start");
        silent(world);
    });
}

/// Table, chain and policy are named, and the commands that are printed open the way.
#[test]
fn doctor_opens_chains_of_others() {
    with(dual(2, Attach::Routed, Road::Direct), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        world.whole();
        let reach = || {
            causeway_lab::Families::Dual
                .list()
                .iter()
                .all(|f| world.reaches(&world.netns(&a), world.ip(&b, *f), 56))
        };
        for (places, fault, undo) in [
            (
                &["table inet fw, chain forwarded"][..],
                "nft add table inet fw
                 nft add chain inet fw forwarded '{ type filter hook forward priority 0; policy drop; }'",
                "nft delete table inet fw",
            ),
            (
                &["table ip filter, chain FORWARD", "table ip6 filter, chain FORWARD"],
                "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP; \
                 iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER",
                "nft delete table ip filter; nft delete table ip6 filter",
            ),
        ] {
            world.on("node-1", fault);
            assert!(!reach(), "{fault}");
            let said = doctor(world);
            assert_eq!(said.ids(), ids(["foreign-forward-drop"]));
            let found: Vec<&str> =
                said.findings.iter().map(|f| f["where"].as_str().unwrap()).collect();
            assert!(places.iter().all(|place| found.contains(place)), "{found:?}");
            assert!(
                said.findings.iter().all(|f| f["what"].as_str().unwrap().contains("policy drop"))
            );
            for finding in &said.findings {
                let one = Said { code: 0, findings: vec![finding.clone()] };
                one.commands("foreign-forward-drop")
                    .iter()
                    .for_each(|c| drop(world.on("node-1", c)));
            }
            silent(world);
            assert!(reach(), "the commands open the way");
            world.on("node-1", undo);
        }
    });
}

/// Programs that manage interfaces, by their names, and what they are told.
#[test]
fn doctor_names_managers_of_interfaces() {
    with(dual(1, Attach::Routed, Road::Direct), |world| {
        for (program, expected) in [
            ("NetworkManager", ids(["networkmanager-manages"])),
            ("systemd-networkd", ids(["networkd-manages", "networkd-removes-routes"])),
        ] {
            let run = format!(
                "mkdir -p /run/sbin; cp $(command -v sleep) /run/sbin/{program}
                 /run/sbin/{program} 600 & trap \"kill $!\" EXIT\n"
            );
            let (_, text) = shell(world, "node-1", &format!("{run} $DOCTOR --json || true"));
            let findings = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let said = Said { code: 0, findings };
            assert_eq!(said.ids(), expected, "{text}");
            // Nobody can be asked to read its files anew here.
            let told: Vec<String> = expected.iter().flat_map(|id| said.commands(id)).collect();
            let told: Vec<String> =
                told.into_iter().filter(|line| !line.starts_with("systemctl")).collect();
            let told = told.join("\n").replace("causeway doctor", "$DOCTOR");
            let dirs = "mkdir -p /etc/NetworkManager/conf.d /etc/systemd/network";
            let (code, text) = shell(world, "node-1", &format!("{dirs}\n{told}\n{run} $DOCTOR"));
            assert_eq!((code, text.as_str()), (0, "nothing wrong\n"), "{told}");
        }
    });
}
