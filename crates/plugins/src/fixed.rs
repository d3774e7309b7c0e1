//! The address that a pod is to have: annotation `causeway.dev/ip`.
//!
//! Runtimes hand a pod's annotations to plugins whose configuration asks for them (containerd and
//! CRI-O do, and the agent's configuration list asks). Then nobody else needs to be heard, and nothing
//! can be out of date. Where the runtime does not, the agent is asked, who watches the node's pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_ipam::{Range, RangeSet};
use causeway_types::{Family, PodRef, names};
use serde_json::Value;

use crate::call::Call;
use crate::notify::{self, Reply};

/// What the agent answers while it has not seen a pod.
const NOT_SEEN: u16 = 404;

/// The addresses that the call's pod is to have; none where it has no wish.
///
/// # Errors
/// Code 7 for an annotation that makes no sense, or asks for what this node cannot give; code 11 while
/// the pod has not been seen.
pub(crate) fn addresses(call: &Call, sets: &[RangeSet]) -> Result<Vec<IpAddr>, CniError> {
    let Some(pod) = call.pod() else { return Ok(Vec::new()) };
    let Some(text) = annotation(call, &pod)? else { return Ok(Vec::new()) };
    let refused = |why: String| {
        CniError::invalid_config(format!(
            "annotation {} of pod {pod} is {text:?}: {why}",
            names::POD_IP
        ))
    };
    let ips = parse(&text).map_err(refused)?;
    for ip in &ips {
        if sets.iter().any(|set| set.contains(*ip)) {
            continue;
        }
        let mut subnets = sets.iter().flat_map(RangeSet::ranges).map(Range::subnet);
        return Err(refused(match subnets.find(|subnet| subnet.contains(ip)) {
            Some(subnet) => format!("that is the network or broadcast address of {subnet}"),
            None => outside(call, sets, *ip),
        }));
    }
    Ok(ips)
}

/// The annotation of the pod as the runtime or the agent tells it.
fn annotation(call: &Call, pod: &PodRef) -> Result<Option<String>, CniError> {
    if let Some(told) = told_by_runtime(call) {
        return Ok(told);
    }
    match notify::wanted_addresses(&call.paths.agent_socket, pod) {
        Reply::Said(200..=299, text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Reply::Said(NOT_SEEN, why) => Err(CniError::try_again(format!(
            "the agent cannot tell yet whether pod {pod} is to have a certain address: {why}"
        ))),
        // Pods start while the agent, or the API behind it, is away.
        Reply::Said(..) | Reply::Nobody | Reply::Failed(_) | Reply::Broken(_) => Ok(None),
    }
}

/// What the runtime says of the pod's annotations, if it hands them on: the inner `None` is a pod
/// without this one. containerd writes `null` for a pod that has none at all.
fn told_by_runtime(call: &Call) -> Option<Option<String>> {
    let all = call.conf.raw.get("runtimeConfig")?.get(names::ANNOTATIONS_CAPABILITY)?;
    Some(all.get(names::POD_IP).and_then(Value::as_str).map(str::to_owned))
}

/// One address, or one a family, with a comma.
fn parse(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut found: BTreeMap<Family, IpAddr> = BTreeMap::new();
    for part in text.split(',').map(str::trim) {
        let ip: IpAddr = part.parse().map_err(|_| {
            format!("{part:?} is no IP address; write one, or one of each family with a comma")
        })?;
        if let Some(first) = found.insert(Family::of(ip), ip) {
            return Err(format!("{first} and {ip} are of the same family; write one of them"));
        }
    }
    Ok(found.into_values().collect())
}

fn outside(call: &Call, sets: &[RangeSet], ip: IpAddr) -> String {
    let family = Family::of(ip);
    let own: Vec<String> = sets
        .iter()
        .filter(|set| set.is_ipv4() == ip.is_ipv4())
        .flat_map(RangeSet::ranges)
        .map(|range| range.subnet().to_string())
        .collect();
    if own.is_empty() {
        return format!("pods of this node have no {family} addresses; remove {ip}");
    }
    let holders = match notify::holders(&call.paths.agent_socket, ip) {
        Some(text) if !text.is_empty() => format!("nodes that could give it out: {text}"),
        Some(_) => "no node has a range with it".to_owned(),
        None => "the agent, who knows the other nodes' ranges, does not answer".to_owned(),
    };
    format!("{ip} is in none of this node's ranges ({}); {holders}", own.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_or_one_of_each_family() {
        let ok =
            |text: &str| parse(text).unwrap().iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(ok("10.244.1.9"), ["10.244.1.9"]);
        assert_eq!(ok(" fd00::9 , 10.244.1.9"), ["10.244.1.9", "fd00::9"]);
        for (bad, word) in [
            ("", "no IP address"),
            ("10.244.1.9/24", "no IP address"),
            ("10.244.1.9,", "no IP address"),
            ("10.244.1.9,10.244.1.10", "same family"),
        ] {
            assert!(parse(bad).unwrap_err().contains(word), "{bad}");
        }
    }
}
