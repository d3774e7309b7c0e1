//! Ranges of a node beside its pod subnets: which of them it may use, and what it says of them.
//!
//! What a node is to have (annotation `causeway.dev/extra-pod-cidrs`) and what it has
//! (`causeway.dev/claimed-pod-cidrs`, written by its agent) are told apart. Nothing is given out of a
//! range before the claim to it stands in the API, and the claim stays until no pod has an address of
//! it: other nodes route by claims alone.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use causeway_types::names::EXTRA_POD_CIDRS as ANNOTATION;
use causeway_types::{Cidr, Family, NodeName};

use crate::input::{ClusterView, Inputs, NodeInfo};

/// What no pod can have: this network, loopback, link-local, multicast and class E (RFC 6890), and the
/// same of IPv6 with the addresses that stand for IPv4 ones.
const UNUSABLE: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// A node's ranges beside its pod subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Wanted, and nobody else's.
    pub(crate) accepted: Vec<Cidr>,
    /// Not wanted any more, or not accepted; pods have addresses of them, and nobody else claims any.
    pub(crate) kept: Vec<Cidr>,
    /// Addresses of pods in none of these, nor in a pod subnet.
    pub(crate) strays: Vec<IpAddr>,
    /// Those of them that were in a range of this node: what it may claim (the admission policy lets
    /// agents claim nothing else).
    former: Vec<IpAddr>,
    /// What is wrong with ranges of this node, or with those of others that overlap its own.
    pub(crate) problems: Vec<String>,
}

impl Ranges {
    /// Those that are this node's as a whole.
    pub(crate) fn whole(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.accepted.iter().chain(&self.kept).copied()
    }

    /// What the node should claim, in order.
    pub(crate) fn claims(&self) -> Vec<Cidr> {
        let mut all: Vec<Cidr> =
            self.whole().chain(self.former.iter().map(|ip| Cidr::host(*ip))).collect();
        all.sort();
        all.dedup();
        all
    }

    /// What addresses may be given out of: the claim stands.
    pub(crate) fn usable(&self, own: &NodeInfo) -> Vec<Cidr> {
        self.accepted.iter().copied().filter(|c| own.claimed_cidrs.contains(c)).collect()
    }
}

/// Reads a list with commas. What cannot be used is said, and the rest counts.
pub fn parse(annotation: &str, text: &str) -> (Vec<Cidr>, Vec<String>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for entry in text.split(',').map(str::trim) {
        match entry_of(entry) {
            Ok(cidr) if found.contains(&cidr) => {
                problems.push(format!("annotation {annotation}: {cidr} is there twice"));
            }
            Ok(cidr) => found.push(cidr),
            Err(why) => problems.push(format!(
                "annotation {annotation}: {why}; it is left out, the other entries count"
            )),
        }
    }
    (found, problems)
}

fn entry_of(entry: &str) -> Result<Cidr, String> {
    if entry.is_empty() {
        return Err("an entry is empty: expected ADDRESS/LENGTH,ADDRESS/LENGTH,…".to_owned());
    }
    let cidr: Cidr = entry.parse().map_err(|e: causeway_types::Invalid| e.to_string())?;
    let never = UNUSABLE.iter().filter_map(|u| u.parse().ok()).find(|u: &Cidr| u.overlaps(cidr));
    match never {
        Some(never) => Err(format!("{cidr} shares addresses with {never}, which no pod can have")),
        None => Ok(cidr),
    }
}

/// Judges the ranges of the node `me`. `own` is its Node with the addresses that are on it.
pub(crate) fn of_node(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> Ranges {
    let mut ranges = Ranges { problems: own.range_problems.clone(), ..Ranges::default() };
    for cidr in &own.extra_cidrs {
        match refusal(inputs, me, own, &ranges.accepted, *cidr) {
            None => ranges.accepted.push(*cidr),
            Some(why) => ranges
                .problems
                .push(format!("extra range {cidr} of this node (annotation {ANNOTATION}) {why}")),
        }
    }
    ranges.problems.extend(intruders(inputs, me, own));
    let used = inputs.attachments.iter().flat_map(|a| &a.addresses).map(|a| a.addr());
    for ip in used {
        if own.pod_cidrs.iter().copied().chain(ranges.whole()).any(|c| c.contains(ip)) {
            continue;
        }
        let whole = |c: &&Cidr| c.contains(ip) && !is_host(**c) && !is_contested(inputs, me, **c);
        match own.claimed_cidrs.iter().find(whole) {
            Some(cidr) => ranges.kept.push(*cidr),
            None => {
                ranges.strays.push(ip);
                let mut were = own.claimed_cidrs.iter().chain(&own.extra_cidrs);
                ranges.former.extend(were.any(|c| c.contains(ip)).then_some(ip));
            }
        }
    }
    ranges
}

fn is_host(cidr: Cidr) -> bool {
    cidr.prefix_len() == cidr.family().bits()
}

fn others<'a>(
    inputs: &'a Inputs,
    me: &'a NodeName,
) -> impl Iterator<Item = (&'a NodeName, &'a NodeInfo)> {
    inputs.view.nodes.iter().filter(move |(name, _)| *name != me)
}

/// Another node has a right to addresses of it, or says that its pods have some.
fn is_contested(inputs: &Inputs, me: &NodeName, cidr: Cidr) -> bool {
    let mut theirs =
        others(inputs, me).flat_map(|(_, n)| n.pod_cidrs.iter().chain(&n.claimed_cidrs));
    theirs.any(|c| c.overlaps(cidr))
}

/// Why nothing is given out of a range, if so: the end of a sentence that names it.
fn refusal(
    inputs: &Inputs,
    me: &NodeName,
    own: &NodeInfo,
    before: &[Cidr],
    cidr: Cidr,
) -> Option<String> {
    let family = cidr.family();
    if own.pod_cidr(family).is_none() {
        return Some(format!("is {family}, and this node has no {family} pod CIDR; remove it"));
    }
    if cidr.prefix_len() + 2 > family.bits() {
        let least = family.bits() - 2;
        return Some(format!("has no room for a gateway and pods: give at least a /{least}"));
    }
    let overlaps = |list: &[Cidr]| list.iter().copied().find(|c| c.overlaps(cidr));
    if let Some(other) = overlaps(&own.pod_cidrs).or_else(|| overlaps(before)) {
        return Some(format!("overlaps {other}, which this node has already; remove it"));
    }
    if let Some(other) = overlaps(&inputs.config.cluster_cidrs) {
        return Some(format!(
            "overlaps {other} (clusterCIDRs in the configuration), which nodes get their pod CIDRs \
             from; choose another"
        ));
    }
    if let Some((dev, ip)) = inputs.facts.addresses.iter().find(|(_, a)| cidr.contains(a.addr())) {
        return Some(format!(
            "holds this node's own address {} on {dev}; choose another",
            ip.addr()
        ));
    }
    others(inputs, me).find_map(|(name, info)| refused_by(name, info, cidr))
}

/// Why another node forbids it.
fn refused_by(name: &NodeName, info: &NodeInfo, cidr: Cidr) -> Option<String> {
    let overlaps = |list: &[Cidr]| list.iter().copied().find(|c| c.overlaps(cidr));
    if let Some(other) = overlaps(&info.pod_cidrs) {
        return Some(format!(
            "overlaps pod CIDR {other} of node {name}, which goes first: no address of the range is \
             given out; remove it"
        ));
    }
    if let Some(other) = overlaps(&info.extra_cidrs) {
        return Some(format!(
            "overlaps extra range {other} of node {name}: neither node gives out addresses of it; \
             remove it from one of the two Nodes"
        ));
    }
    if let Some(other) = overlaps(&info.claimed_cidrs) {
        return Some(format!(
            "overlaps {other}, of which pods of node {name} still have addresses: it is used when \
             they are gone"
        ));
    }
    let ip = info.addresses.iter().find(|ip| cidr.contains(**ip))?;
    Some(format!("holds the address {ip} of node {name}; choose another"))
}

/// The same from the other side: ranges of others that overlap what is this node's. Those that
/// overlap its own extra ranges are named where these are refused.
fn intruders(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> Vec<String> {
    let mut all = Vec::new();
    for (name, info) in others(inputs, me) {
        for cidr in &info.extra_cidrs {
            let subnet = own.pod_cidrs.iter().find(|c| c.overlaps(*cidr));
            let address = own.addresses.iter().find(|ip| cidr.contains(**ip));
            let what = match (subnet, address) {
                (Some(subnet), _) => format!("overlaps this node's pod CIDR {subnet}"),
                (None, Some(ip)) => format!("holds this node's address {ip}"),
                (None, None) => continue,
            };
            all.push(format!(
                "extra range {cidr} of node {name} {what}: node {name} gives out no address of it; \
                 remove it from annotation {ANNOTATION} of Node {name}"
            ));
        }
    }
    all
}

/// What of a peer's claims leads there. A pod subnet goes before a range that it covers; single
/// addresses that pods have stay where they are.
pub(crate) fn routed_claims(inputs: &Inputs, own: &NodeInfo, peer: &NodeInfo) -> Vec<Cidr> {
    let served = |f: Family| own.pod_cidr(f).is_some() && peer.pod_cidr(f).is_some();
    let covered = |cidr: Cidr| {
        let mut subnets = inputs.view.nodes.values().flat_map(|n| &n.pod_cidrs);
        subnets.any(|subnet| subnet.covers(cidr))
    };
    let here = |cidr: Cidr| {
        let mut addresses = inputs.attachments.iter().flat_map(|a| &a.addresses);
        addresses.any(|a| cidr.contains(a.addr()))
    };
    let leads =
        |c: &&Cidr| served(c.family()) && if is_host(**c) { !here(**c) } else { !covered(**c) };
    peer.claimed_cidrs.iter().filter(leads).copied().collect()
}

/// What of the node's ranges is not given out: what the configuration says, and addresses that pods of
/// other nodes have.
pub(crate) fn reserved(inputs: &Inputs, me: &NodeName, own: &NodeInfo) -> Vec<Cidr> {
    let theirs = others(inputs, me).flat_map(|(_, n)| &n.claimed_cidrs);
    let theirs = theirs.filter(|c| is_host(**c) && own.pod_cidrs.iter().any(|o| o.covers(**c)));
    crate::cidrs::disjoint(inputs.config.reserved.iter().chain(theirs).copied())
}

/// The nodes with a range that holds an address, by name.
pub fn holders(view: &ClusterView, ip: IpAddr) -> Vec<(NodeName, Cidr)> {
    let mut all = Vec::new();
    for (name, info) in &view.nodes {
        let mut ranges = info.pod_cidrs.iter().chain(&info.extra_cidrs);
        all.extend(ranges.find(|c| c.contains(ip)).map(|c| (name.clone(), *c)));
    }
    all
}
