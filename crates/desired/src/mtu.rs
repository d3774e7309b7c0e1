//! How large packets of pods may be.

use std::collections::BTreeMap;

use causeway_model::Owner;
use causeway_types::{Family, IfName, Mtu};

use crate::input::{Inputs, NodeInfo, Road};
use crate::node::Problem;
use crate::roads;

/// Bytes that VXLAN adds: outer IP, UDP and VXLAN headers and the inner Ethernet header.
pub fn vxlan_overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// MTU of the underlay: the least of what the node's own interfaces and the ways to peers have.
pub(crate) fn underlay_mtu(inputs: &Inputs, own: &NodeInfo) -> Option<Mtu> {
    let holds = |dev: &IfName| {
        inputs.facts.addresses.iter().any(|(d, a)| d == dev && own.addresses.contains(&a.addr()))
    };
    let devices = inputs.facts.mtus.iter().filter(|(dev, _)| holds(dev)).map(|(_, mtu)| *mtu);
    let peers = inputs.view.nodes.values().flat_map(|n| n.addresses.iter());
    let paths = peers.filter_map(|a| inputs.facts.paths.get(a)).map(|p| p.mtu);
    devices.chain(paths).min()
}

/// MTU of the node's pods; `None` while it cannot be told.
pub(crate) fn pod_mtu(
    inputs: &Inputs,
    own: &NodeInfo,
    families: &[Family],
    problems: &mut Vec<Problem>,
) -> Option<Mtu> {
    let mut problem = |message: String| problems.push(Problem::new(Owner::Node, message));
    let Some(underlay) = underlay_mtu(inputs, own) else {
        problem("the MTU of the node's interface is not known yet".to_owned());
        return None;
    };
    let overhead = match (inputs.config.road, roads::outer_family(own)) {
        (Road::Direct, _) | (_, None) => 0,
        (Road::Auto | Road::Vxlan, Some(outer)) => vxlan_overhead(outer),
    };
    let fits = match underlay.less(overhead) {
        Ok(mtu) => mtu,
        Err(e) => {
            problem(format!("the underlay's MTU of {underlay} leaves no room for pods: {e}"));
            return None;
        }
    };
    let mtu = inputs.config.mtu.unwrap_or(fits);
    if mtu > fits {
        problem(format!(
            "the configured pod MTU of {mtu} is more than the {fits} bytes that the underlay's \
             {underlay} leave; large packets will be lost: lower mtu in the configuration"
        ));
    }
    if let Some(clash) = other_mtu(inputs, mtu) {
        problem(clash);
    }
    if families.contains(&Family::V6) && mtu.get() < Mtu::IPV6_MIN {
        problem(format!(
            "a pod MTU of {mtu} is less than the 1280 bytes that IPv6 needs; raise the underlay's"
        ));
    }
    Some(mtu)
}

/// Where nodes give their pods different MTUs, those in the minority say so: the fewest Events, and of the
/// nodes that are to be changed.
fn other_mtu(inputs: &Inputs, mine: Mtu) -> Option<String> {
    let others = inputs.view.nodes.iter().filter(|(name, _)| Some(*name) != inputs.me.as_ref());
    let mut by_mtu: BTreeMap<Mtu, usize> = BTreeMap::from([(mine, 1)]);
    for mtu in others.filter_map(|(_, info)| info.pod_mtu) {
        *by_mtu.entry(mtu).or_default() += 1;
    }
    // Of two that are as common the smaller counts: it is safe.
    let (common, _) = by_mtu.iter().rev().max_by_key(|(_, count)| **count)?;
    if *common == mine {
        return None;
    }
    // Without numbers or names of nodes, which change: the same problem is one Event.
    Some(format!(
        "pods of this node have an MTU of {mine}, those of most others {common}: large packets of UDP from the \
         larger to the smaller may be lost without a word; give the nodes' networks the same MTU, or all \
         nodes the smaller one (mtu in the configuration)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_types::NodeName;

    fn clash(mine: u32, others: &[u32]) -> Option<String> {
        let mut inputs = Inputs { me: NodeName::new("me").ok(), ..Inputs::default() };
        for (n, mtu) in others.iter().enumerate() {
            let info = NodeInfo { pod_mtu: Mtu::new(*mtu).ok(), ..NodeInfo::default() };
            inputs.view.nodes.insert(NodeName::new(format!("n{n}")).unwrap(), info);
        }
        // What the node itself said before does not count.
        let own = NodeInfo { pod_mtu: Mtu::new(1300).ok(), ..NodeInfo::default() };
        inputs.view.nodes.insert(NodeName::new("me").unwrap(), own);
        other_mtu(&inputs, Mtu::new(mine).unwrap())
    }

    #[test]
    fn the_minority_says_that_mtus_differ() {
        assert_eq!(clash(1450, &[]), None);
        assert_eq!(clash(1450, &[1450, 0]), None, "one of a version that says nothing");
        assert_eq!(clash(1450, &[8950, 1450]), None);
        let text = clash(1450, &[8950, 8950, 1450, 8950]).expect("two against three");
        assert!(text.contains("MTU of 1450, those of most others 8950"), "{text}");
        // Of two the larger one speaks.
        assert_eq!(clash(1450, &[8950]), None);
        assert!(clash(8950, &[1450]).expect("a clash").contains("those of most others 1450"));
    }
}
