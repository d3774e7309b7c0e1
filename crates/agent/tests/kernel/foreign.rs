//! Chains of others that drop what pods send: an operator is told, as soon as the kernel says that rules
//! changed, until they let pods pass.

use std::time::Duration;

use causeway_desired::input::Config;

use crate::node::{DEADLINE, Node, Stack, eventually, run, with};

/// The time between two looks, and a moment.
const LOOK: Duration = Duration::from_secs(7);

fn told(node: &Node) -> Vec<String> {
    let all = node.status().problems.into_iter().map(|p| p.message);
    all.filter(|m| m.contains("packets of pods do not pass this node")).collect()
}

fn is_told(node: &Node, within: Duration, words: &str) -> String {
    eventually(&format!("told: {words}"), within, || {
        let all = told(node);
        match &all[..] {
            [one] if one.contains(words) => Ok(one.clone()),
            _ => Err(format!("{all:?}")),
        }
    })
}

fn is_silent(node: &Node) {
    eventually("silent", LOOK, || {
        let all = told(node);
        if all.is_empty() { Ok(()) } else { Err(format!("{all:?}")) }
    });
}

/// Runs what is told, in place of the operator.
fn follow(told: &str) {
    let (_, commands) = told.split_once("run: ").expect("commands");
    for command in commands.split("; ") {
        run(command);
    }
}

#[test]
fn chains_that_drop_are_told_until_they_let_pods_pass() {
    with(Stack::Dual, Config::default(), |node| {
        node.start_with(node.three());
        assert_eq!(told(node), Vec::<String>::new());
        run("nft add table inet filter");
        run(
            "nft add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }",
        );
        let text = is_told(node, LOOK, "chain forward of table inet filter has policy drop");
        follow(&text);
        is_silent(node);
        run("nft flush chain inet filter forward");
        is_told(node, LOOK, "chain forward");
        run("nft delete table inet filter");
        is_silent(node);
        // A table of iptables, and one that is there before the agent.
        run("iptables -P FORWARD DROP");
        let text = is_told(node, LOOK, "chain FORWARD of table ip filter");
        node.stop();
        node.start_with(node.three());
        assert_eq!(is_told(node, DEADLINE, "chain FORWARD of table ip filter"), text);
        run("iptables -P FORWARD ACCEPT");
        is_silent(node);
        // Nothing of it was changed, and nobody was in the way of the node.
        assert!(run("iptables -S FORWARD").starts_with("-P FORWARD ACCEPT"));
        assert!(node.status().ready);
    });
}

/// Rules that change all the time, as kube-proxy's do, cost no look each.
#[test]
fn a_flood_of_rules_is_gathered() {
    with(Stack::V4, Config::default(), |node| {
        node.start_with(node.three());
        run("nft add table ip busy");
        run("nft add chain ip busy services");
        // The first look is due at once.
        std::thread::sleep(LOOK);
        let before = node.status().reconciles;
        for n in 0..200 {
            run(&format!("nft add rule ip busy services ip daddr 10.96.0.{n} accept"));
        }
        let rounds = node.status().reconciles - before;
        assert!(rounds <= 3, "{rounds} rounds");
    });
}
