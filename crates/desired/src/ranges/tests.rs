//! Ranges of nodes: single cases, and random lives of a cluster.

use std::collections::BTreeMap;

use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Mac, Mtu};
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::input::ClusterView;

fn c(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn name(n: u8) -> NodeName {
    format!("n{n}").parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Node `n` as it registers.
fn node(n: u8) -> NodeInfo {
    NodeInfo {
        addresses: vec![ip(&format!("192.168.1.{n}")), ip(&format!("fd01::{n}"))],
        pod_cidrs: vec![c(&format!("10.0.{n}.0/28")), c(&format!("fd00:{n}::/124"))],
        ..NodeInfo::default()
    }
}

fn attachment(n: usize, address: IpAddr) -> AttachmentRecord {
    AttachmentRecord {
        container_id: format!("c{n}"),
        ifname: "eth0".parse().unwrap(),
        pod: None,
        netns: String::new(),
        network: "pod-network".to_owned(),
        attach: Attach::Routed,
        pending: false,
        host_ifname: format!("cw{n}").parse().unwrap(),
        mac: Mac::of_address(address),
        host_mac: Mac::of_address(address),
        mtu: Mtu::new(1500).unwrap(),
        addresses: vec![IpNet::from(address)],
        gateways: vec![],
        bridge: None,
        masquerade_except: None,
        boot_id: String::new(),
        leaving: None,
    }
}

#[derive(Clone, Debug, Default)]
struct Cluster {
    nodes: BTreeMap<u8, NodeInfo>,
    /// Addresses that pods have, with their nodes.
    held: Vec<(IpAddr, u8)>,
}

impl Cluster {
    fn of(nodes: impl IntoIterator<Item = u8>) -> Self {
        Self { nodes: nodes.into_iter().map(|n| (n, node(n))).collect(), held: Vec::new() }
    }

    fn inputs(&self, n: u8) -> Inputs {
        let nodes = self.nodes.iter().map(|(n, info)| (name(*n), info.clone())).collect();
        let mine = self.held.iter().enumerate().filter(|(_, (_, node))| *node == n);
        Inputs {
            me: Some(name(n)),
            view: ClusterView { nodes, ..ClusterView::default() },
            attachments: mine.map(|(i, (ip, _))| attachment(i, *ip)).collect(),
            ..Inputs::default()
        }
    }

    fn ranges(&self, n: u8) -> Ranges {
        of_node(&self.inputs(n), &name(n), &self.nodes[&n])
    }

    /// Agents write their claims until none has anything to write.
    fn settle(&mut self) {
        for _ in 0..10 {
            let before = self.nodes.clone();
            for n in before.keys() {
                let claims = self.ranges(*n).claims();
                self.nodes.get_mut(n).unwrap().claimed_cidrs = claims;
            }
            if self.nodes == before {
                return;
            }
        }
        panic!("claims come to no end: {self:?}");
    }

    fn usable(&self, n: u8) -> Vec<Cidr> {
        self.ranges(n).usable(&self.nodes[&n])
    }

    fn want(&mut self, n: u8, list: &[&str]) {
        self.nodes.get_mut(&n).unwrap().extra_cidrs = list.iter().map(|t| c(t)).collect();
        self.settle();
    }

    /// Where an observer on another node sends packets to an address: by the longest prefix.
    fn way(&self, to: IpAddr, from: u8) -> Option<u8> {
        let (inputs, own) = (self.inputs(from), &self.nodes[&from]);
        let peers = self.nodes.iter().filter(|(n, _)| **n != from);
        let all = peers.flat_map(|(n, info)| {
            let claims = routed_claims(&inputs, own, info);
            info.pod_cidrs.clone().into_iter().chain(claims).map(|cidr| (cidr, *n))
        });
        let fits = all.filter(|(cidr, _)| cidr.contains(to));
        fits.max_by_key(|(cidr, n)| (cidr.prefix_len(), u8::MAX - *n)).map(|(_, n)| n)
    }

    /// An address that a node would give out, if it has one.
    fn free(&self, n: u8) -> Option<IpAddr> {
        let shut = reserved(&self.inputs(n), &name(n), &self.nodes[&n]);
        let ranges = self.usable(n).into_iter().chain(self.nodes[&n].pod_cidrs.clone());
        ranges
            .flat_map(|cidr| cidr.net().hosts().skip(1).collect::<Vec<_>>())
            .find(|ip| !self.held.contains(&(*ip, n)) && !shut.iter().any(|s| s.contains(*ip)))
    }
}

#[test]
fn a_range_is_used_when_the_claim_stands_and_kept_while_pods_have_addresses_of_it() {
    let mut all = Cluster::of([1, 2]);
    all.nodes.get_mut(&1).unwrap().extra_cidrs = vec![c("10.9.0.0/28"), c("fd00:9::/124")];
    assert_eq!(all.usable(1), []);
    all.settle();
    assert_eq!(all.usable(1), [c("10.9.0.0/28"), c("fd00:9::/124")]);
    all.held.push((ip("10.9.0.2"), 1));
    all.want(1, &[]);
    assert_eq!(all.usable(1), []);
    assert_eq!(all.nodes[&1].claimed_cidrs, [c("10.9.0.0/28")]);
    assert_eq!(all.way(ip("10.9.0.2"), 2), Some(1));
    // Not another's before the last is gone.
    all.want(2, &["10.9.0.0/28"]);
    assert_eq!(all.usable(2), []);
    assert!(all.ranges(2).problems[0].contains("pods of node n1 still have"), "{all:?}");
    all.held.clear();
    all.settle();
    assert_eq!(all.usable(2), [c("10.9.0.0/28")]);
    assert_eq!(all.nodes[&1].claimed_cidrs, []);
}

#[test]
fn what_overlaps_is_refused_on_both_nodes_by_name() {
    for (mine, theirs, mine_says, theirs_says) in [
        ("10.9.0.0/28", Some("10.9.0.0/24"), "10.9.0.0/24 of node n2", "10.9.0.0/28 of node n1"),
        (
            "10.0.2.0/24",
            None,
            "pod CIDR 10.0.2.0/28 of node n2",
            "this node's pod CIDR 10.0.2.0/28",
        ),
        ("192.168.1.0/24", None, "192.168.1.2 of node n2", "this node's address 192.168.1.2"),
        ("fd01::/64", None, "fd01::2 of node n2", "this node's address fd01::2"),
    ] {
        let mut all = Cluster::of([1, 2]);
        all.want(1, &["10.8.0.0/24", mine]);
        if let Some(theirs) = theirs {
            all.want(2, &[theirs]);
        }
        assert_eq!(all.usable(1), [c("10.8.0.0/24")], "the good one counts");
        assert_eq!(all.usable(2), []);
        let (mine, theirs) = (all.ranges(1).problems, all.ranges(2).problems);
        assert!(mine[0].contains(mine_says), "{mine:?}");
        assert!(theirs[0].contains(theirs_says), "{theirs:?}");
    }
}

#[test]
fn what_the_node_cannot_use_is_refused() {
    let mut all = Cluster::of([1]);
    all.nodes.get_mut(&1).unwrap().pod_cidrs.pop();
    all.want(1, &["fd00:9::/64", "10.9.0.0/31", "10.0.1.0/24", "10.9.1.0/24", "10.9.0.0/16"]);
    let problems = all.ranges(1).problems;
    for (problem, word) in
        problems.iter().zip(["no IPv6", "no room", "overlaps 10.0.1.0/28", "10.9.1.0"])
    {
        assert!(problem.contains(word), "{word}: {problem}");
    }
    assert_eq!((problems.len(), all.usable(1)), (4, vec![c("10.9.1.0/24")]));
    let mut inputs = all.inputs(1);
    inputs.config.cluster_cidrs = vec![c("10.0.0.0/8")];
    let refused = of_node(&inputs, &name(1), &all.nodes[&1]);
    assert!(refused.problems.iter().any(|p| p.contains("clusterCIDRs")), "{refused:?}");
    assert_eq!(refused.accepted, []);
}

/// A node comes that has a part of another's range in use for its pod subnet.
#[test]
fn pods_stay_reachable_when_a_pod_subnet_takes_their_range() {
    let mut all = Cluster::of([1, 2]);
    all.want(1, &["10.0.3.0/24"]);
    all.held.extend([(ip("10.0.3.2"), 1), (ip("10.0.3.99"), 1)]);
    all.nodes.insert(3, node(3));
    all.settle();
    assert_eq!(all.nodes[&1].claimed_cidrs, [c("10.0.3.2/32"), c("10.0.3.99/32")]);
    for (to, node) in [("10.0.3.2", 1), ("10.0.3.99", 1), ("10.0.3.3", 3)] {
        assert_eq!(all.way(ip(to), 2), Some(node), "{to}");
    }
    assert_eq!(all.way(ip("10.0.3.2"), 3), Some(1));
    assert_eq!(reserved(&all.inputs(3), &name(3), &all.nodes[&3]), [c("10.0.3.2/32")]);
}

/// The agent whose claim it is may be dead.
#[test]
fn a_pod_subnet_goes_before_a_claim_that_nobody_takes_back() {
    let mut all = Cluster::of([1, 2, 3]);
    all.nodes.get_mut(&1).unwrap().claimed_cidrs = vec![c("10.0.3.0/28"), c("10.0.3.8/29")];
    assert_eq!(all.way(ip("10.0.3.9"), 2), Some(3));
}

#[derive(Clone, Debug)]
enum Step {
    Want(u8, Vec<usize>),
    Give(u8),
    End(prop::sample::Index),
    Join(u8),
}

const RANGES: [&str; 9] = [
    "10.9.0.0/28",
    "10.9.0.0/29",
    "10.9.0.8/29",
    "10.9.0.16/28",
    "10.0.1.0/28",
    "10.0.3.0/29",
    "10.0.4.0/27",
    "fd00:9::/124",
    "fd00:4::/123",
];

fn step() -> impl Strategy<Value = Step> {
    let some = prop::collection::vec(0..RANGES.len(), 0..4);
    prop_oneof![
        2 => (1u8..5, some).prop_map(|(n, list)| Step::Want(n, list)),
        4 => (1u8..5).prop_map(Step::Give),
        3 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => (1u8..5).prop_map(Step::Join),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever administrators write and whichever nodes come: no address is given out twice, none of a
    /// range that another node has a right to, and every pod is reached by all other nodes.
    #[test]
    fn no_address_is_given_twice_and_every_pod_is_reached(steps in prop::collection::vec(step(), 1..60)) {
        let mut all = Cluster::of([1, 2]);
        for step in steps {
            match step {
                Step::Want(n, list) => if let Some(info) = all.nodes.get_mut(&n) {
                    info.extra_cidrs = list.iter().map(|i| c(RANGES[*i])).collect();
                },
                Step::Give(n) => if all.nodes.contains_key(&n) && let Some(ip) = all.free(n) {
                    prop_assert!(all.held.iter().all(|(held, _)| *held != ip), "{ip} twice: {all:?}");
                    all.held.push((ip, n));
                },
                Step::End(which) => if !all.held.is_empty() {
                    let at = which.index(all.held.len());
                    all.held.remove(at);
                },
                Step::Join(n) => drop(all.nodes.entry(n).or_insert_with(|| node(n))),
            }
            all.settle();
            for (ip, n) in &all.held {
                for from in all.nodes.keys().filter(|from| *from != n) {
                    prop_assert_eq!(all.way(*ip, *from), Some(*n), "{} from {}: {:?}", ip, from, all);
                }
            }
            for n in all.nodes.keys() {
                for cidr in all.usable(*n) {
                    for (m, info) in all.nodes.iter().filter(|(m, _)| *m != n) {
                        let theirs = info.pod_cidrs.iter().copied().chain(all.usable(*m));
                        prop_assert!(theirs.into_iter().all(|t| !t.overlaps(cidr)), "{:?}", all);
                    }
                }
            }
        }
    }
}
