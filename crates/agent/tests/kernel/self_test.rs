//! The node tests itself before it is called ready.

use causeway_desired::input::{Config, PluginType};
use causeway_types::state::Attach;

use crate::node::{DEADLINE, Node, SELF_TEST, Stack, eventually, run, with};

const STACKS: [Stack; 3] = [Stack::V4, Stack::V6, Stack::Dual];

fn every_network() -> [Config; 3] {
    let of = |plugin, attach| Config { plugin, attach, ..Config::default() };
    [
        of(PluginType::Causeway, Attach::Routed),
        of(PluginType::Causeway, Attach::Bridge),
        of(PluginType::Bridge, Attach::Bridge),
    ]
}

/// Files in which the container's name stands: leases and records.
fn files_of(container: &str, dir: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            found.extend(files_of(container, &path));
        } else if std::fs::read(&path)
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains(container))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn starts_unready(node: &mut Node) -> String {
    node.sender.send_replace(causeway_cluster::Snapshot::synced_with(node.three()));
    node.start();
    eventually("what is wrong", 3 * DEADLINE, || {
        let problems = node.status().problems;
        let own = problems.into_iter().find(|p| p.message.starts_with("self-test: "));
        own.map(|p| p.message).ok_or_else(|| node.wrong())
    })
}

#[test]
fn a_pod_comes_and_goes_before_the_node_is_ready() {
    for config in every_network() {
        for stack in STACKS {
            with(stack, config.clone(), |node| {
                let before = run("nft list ruleset");
                assert_eq!(before, "");
                node.start_with(node.three());
                // What it made is gone: its table tells that it was there.
                assert!(run("nft list tables").contains("netdev causeway_cni"));
                assert_eq!(run("nft list chains netdev").matches("chain").count(), 0);
                let links = run("ip -o link show type veth");
                assert_eq!(links.lines().count(), 2, "the underlay alone: {links}");
                assert_eq!(files_of(SELF_TEST, node.paths.attachments.parent().unwrap()), [""; 0]);
                assert_eq!(files_of(SELF_TEST, "/var/lib/cni".as_ref()), [""; 0]);
                assert_eq!(node.status().problems.len(), 0, "{}", node.wrong());
                node.assert_whole();
            });
        }
    }
}

/// What is sent to pods is dropped, as by a rule that somebody forgot.
#[test]
fn a_node_that_does_not_reach_its_pods_is_not_ready() {
    for stack in STACKS {
        with(stack, Config::default(), |node| {
            run("nft add table inet forgotten");
            run("nft add chain inet forgotten out { type filter hook output priority 0; }");
            let family = if stack == Stack::V6 {
                "ip6 daddr fd00:10:244:1::/64"
            } else {
                "ip daddr 10.244.1.0/24"
            };
            run(&format!("nft add rule inet forgotten out {family} drop"));
            let said = starts_unready(node);
            assert!(said.contains("does not reach its own pods"), "{said}");
            assert!(said.contains("doctor"), "{said}");
            assert!(!node.status().ready);
            assert!(!node.paths.node_file.exists() && !node.conflist().exists());
            run("nft delete table inet forgotten");
            node.until_ready();
            assert_eq!(node.status().problems.len(), 0, "{}", node.wrong());
        });
    }
}

/// A node's own firewall may well drop what pods send to it: that is told, and pods get their network.
#[test]
fn pods_that_do_not_reach_their_node_are_told_of() {
    for stack in STACKS {
        with(stack, Config::default(), |node| {
            run("nft add table inet strict");
            run("nft add chain inet strict in { type filter hook input priority 10; }");
            run("nft add rule inet strict in iifname cw* ct state new meta l4proto tcp drop");
            let said = starts_unready(node);
            assert!(said.contains("pods do not reach this node at "), "{said}");
            node.until_ready();
            let addresses = node.info(1, true).1.addresses;
            eventually("one for each address", 3 * DEADLINE, || {
                let all = node.status().problems;
                let told =
                    |a: &std::net::IpAddr| all.iter().any(|p| p.message.contains(&a.to_string()));
                addresses.iter().all(told).then_some(()).ok_or_else(|| node.wrong())
            });
        });
    }
}

/// An agent that starts under running pods changes nothing about what they are told.
#[test]
fn an_agent_that_starts_again_tests_nothing() {
    with(Stack::Dual, Config::default(), |node| {
        node.start_with(node.three());
        node.stop();
        run("nft add table inet forgotten");
        run(
            "nft add chain inet forgotten out { type filter hook output priority 0; policy drop; }",
        );
        node.start();
        node.until_ready();
        assert_eq!(node.status().problems.len(), 0, "{}", node.wrong());
    });
}

/// An agent that is killed in the middle of its test leaves a pod behind; the next one removes it.
#[test]
fn what_a_killed_agent_left_goes() {
    for config in every_network() {
        for announced in [true, false] {
            with(Stack::Dual, config.clone(), |node| {
                node.start_with(node.three());
                node.stop();
                let list: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(node.conflist()).unwrap()).unwrap();
                let mut conf = list["plugins"][0].clone();
                for key in ["name", "cniVersion"] {
                    conf[key] = list[key].clone();
                }
                let pod = causeway_kernel::NetNs::unnamed().unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(&pod);
                let netns = format!("/proc/{}/fd/{fd}", std::process::id());
                let env = |name: &str| match name {
                    "CNI_COMMAND" => Some("ADD".to_owned()),
                    "CNI_CONTAINERID" => Some(SELF_TEST.to_owned()),
                    "CNI_IFNAME" => Some("eth0".to_owned()),
                    "CNI_NETNS" => Some(netns.clone()),
                    "CNI_PATH" => Some("/".to_owned()),
                    _ => None,
                };
                let kind = conf["type"].as_str().unwrap().to_owned();
                causeway_plugins::call(
                    &kind,
                    env,
                    conf.to_string().as_bytes(),
                    node.paths.of_plugins(),
                )
                .expect("an ADD");
                assert_eq!(node.records_of(SELF_TEST).len(), 1);
                if !announced {
                    std::fs::remove_file(&node.paths.node_file).unwrap();
                }
                node.start();
                node.until_ready();
                let links = run("ip -o link show type veth");
                assert_eq!(links.lines().count(), 2, "the underlay alone: {links}");
                assert_eq!(files_of(SELF_TEST, node.paths.attachments.parent().unwrap()), [""; 0]);
                assert_eq!(files_of(SELF_TEST, "/var/lib/cni".as_ref()), [""; 0]);
            });
        }
    }
}

/// Without a free address there is no pod to test with; pods that run have their network all the same.
#[test]
fn a_full_node_is_not_tested() {
    with(Stack::V4, Config::default(), |node| {
        let leases = node.paths.leases.join(&node.config.network);
        std::fs::create_dir_all(&leases).unwrap();
        for n in 2..255 {
            std::fs::write(leases.join(format!("10.244.1.{n}")), "c\r\neth0").unwrap();
        }
        run("nft add table inet forgotten");
        run(
            "nft add chain inet forgotten out { type filter hook output priority 0; policy drop; }",
        );
        node.start_with(node.three());
        let problems = node.status().problems;
        assert!(
            problems.iter().any(|p| p.message.contains("addresses of 10.244.1.0/24 are taken"))
        );
    });
}
