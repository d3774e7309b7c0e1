//! A lab like a cluster: `causeway lab up --from`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use causeway_lab::{Blueprint, Client, Refusal, Spec};
use causeway_policy::read::Object;
use causeway_policy::{Block, Direction, Peer, Peers, Policy, World};

use crate::policy::source::{Objects, Read};

/// What a lab is made like.
pub(super) struct Original {
    pub(super) blueprint: Blueprint,
    read: Read,
}

impl Original {
    /// Of manifests and of the cluster (`cluster`).
    pub(super) fn read(
        names: &[PathBuf],
        kubeconfig: Option<&Path>,
        workers: Option<u8>,
        most_pods: usize,
    ) -> Result<Self> {
        let objects = Objects::of(names, kubeconfig)?;
        let blueprint = Blueprint::of(objects.all(), workers, most_pods);
        Ok(Self { blueprint, read: objects.read()? })
    }

    /// Puts it into a lab. Answers what came of it, for people: what is there, and a line for each thing that is
    /// not as in the original.
    pub(super) fn copy_to(&self, spec: &Spec, tell: &mut dyn FnMut(&str)) -> Result<String> {
        let client = Client::open(&spec.name)?;
        let always = || Ok(());
        let mut lines = self.blueprint.left_out.clone();
        let patience = patience(&self.blueprint);
        tell("namespaces and pods");
        lines.extend(self.blueprint.populate(&client, patience, &always)?);
        tell("policies");
        lines.extend(self.blueprint.enact(spec, &client, patience, &always)?);
        let lab = world(&client)?;
        lines.extend(blocks(&self.read.world, &lab, &self.blueprint.nodes));
        let (pods, policies) = (lab.pods().count(), lab.policies().count());
        let mut text = format!("{pods} pods and {policies} policies are as in the original");
        for (i, (name, place)) in self.blueprint.nodes.iter().enumerate() {
            let _ = write!(text, "{}{place} plays {name}", if i == 0 { "; " } else { ", " });
        }
        text.push('\n');
        if !lines.is_empty() {
            text.push_str("not as there:\n");
        }
        for line in &lines {
            let _ = writeln!(text, "  {line}");
        }
        Ok(text)
    }
}

/// How long pods and policies of a lab may take.
pub(crate) fn patience(blueprint: &Blueprint) -> Duration {
    let pods = u32::try_from(blueprint.pod_count()).unwrap_or(u32::MAX);
    Duration::from_secs(60) + Duration::from_millis(300).saturating_mul(pods)
}

/// What policies go by, of a lab.
///
/// # Errors
/// When it does not answer.
pub(crate) fn world(client: &Client) -> Result<World> {
    let mut world = World::default();
    for list in crate::policy::source::LISTS {
        let items = match client.get(list.path) {
            Ok(mut answer) => answer["items"].take(),
            Err(error) if list.optional && error.is::<Refusal>() => continue,
            Err(error) => return Err(error),
        };
        for object in items.as_array().into_iter().flatten() {
            let mut object = object.clone();
            // Objects in lists go without.
            object["apiVersion"] = list.api_version.into();
            object["kind"] = list.kind.into();
            let read = Object::read(&object).with_context(|| list.path.to_owned())?;
            if let Some(object) = read {
                object.put(&mut world);
            }
        }
    }
    Ok(world)
}

/// Blocks of addresses mean others in the lab, whose pods and nodes have other addresses: where that is so,
/// a line for each policy.
fn blocks(original: &World, lab: &World, nodes: &BTreeMap<String, String>) -> Vec<String> {
    lab.policies()
        .flat_map(|policy| {
            let mut all: Vec<&Block> = of(policy);
            all.sort();
            all.dedup();
            all.into_iter()
                .filter_map(|block| {
                    let what = meaning(block, original, lab, nodes)?;
                    Some(format!("{}: the block {block} {what}", policy.name))
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The blocks of a policy's rules.
fn of(policy: &Policy) -> Vec<&Block> {
    let rules = [Direction::Ingress, Direction::Egress].into_iter();
    let rules = rules.filter_map(|direction| policy.rules(direction)).flatten();
    let peers = rules.filter_map(|rule| match &rule.peers {
        Peers::AnyOf(peers) => Some(peers),
        Peers::Everybody => None,
    });
    let blocks = peers.flatten().filter_map(|peer| match peer {
        Peer::Block(block) => Some(block),
        _ => None,
    });
    blocks.collect()
}

/// What a block means in the lab that it does not mean in the original, or the other way round.
fn meaning(
    block: &Block,
    original: &World,
    lab: &World,
    nodes: &BTreeMap<String, String>,
) -> Option<String> {
    let inside = |ips: &[IpAddr]| ips.iter().any(|ip| block.contains(*ip));
    let mut ends: Vec<(String, &[IpAddr], &[IpAddr])> = Vec::new();
    for pod in lab.pods().filter(|pod| !pod.host_network) {
        // One that has no address yet has none that a block could mean.
        let there = original.pod(&pod.name).map_or(&[][..], |pod| &pod.addresses);
        ends.push((format!("pod {}", pod.name), there, &pod.addresses));
    }
    for (name, place) in nodes {
        if let (Some(there), Some(here)) = (original.node(name), lab.node(place)) {
            ends.push((format!("node {name}"), &there.addresses, &here.addresses));
        }
    }
    let only = |there: bool| {
        let found = ends.iter().filter(move |(_, a, b)| inside(a) == there && inside(b) != there);
        let names: Vec<&str> = found.map(|(name, ..)| name.as_str()).collect();
        match names.as_slice() {
            [] => None,
            [one] => Some((*one).to_owned()),
            [one, rest @ ..] => Some(format!("{one} and {} more", rest.len())),
        }
    };
    let (lost, found) = (only(true), only(false));
    match (lost, found) {
        (None, None) if ends.iter().any(|(_, a, _)| inside(a)) || block.cidr.prefix_len() == 0 => {
            None
        }
        (None, None) => Some("means addresses outside, which nobody has in the lab".to_owned()),
        (Some(lost), None) => Some(format!("does not mean {lost} in the lab, as in the original")),
        (None, Some(found)) => Some(format!("means {found} in the lab, and not in the original")),
        (Some(lost), Some(found)) => {
            Some(format!("means {found} in the lab, and in the original {lost}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn world(objects: &[Value]) -> World {
        let mut world = World::default();
        for object in objects {
            Object::read(object).unwrap().unwrap().put(&mut world);
        }
        world
    }

    fn pod(name: &str, ip: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "status": {"podIPs": [{"ip": ip}]}})
    }

    fn node(name: &str, ip: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
    }

    fn policy(name: &str, block: Value) -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]}})
    }

    #[test]
    fn blocks_that_mean_others_are_named() {
        let original =
            world(&[pod("a", "10.9.0.5"), pod("b", "10.9.1.5"), node("real", "172.16.0.1")]);
        let nodes = BTreeMap::from([("real".to_owned(), "node-1".to_owned())]);
        let says = |block: Value| {
            let lab = world(&[
                pod("a", "10.244.1.2"),
                pod("b", "10.244.2.2"),
                node("node-1", "192.168.1.11"),
                policy("p", block),
            ]);
            blocks(&original, &lab, &nodes).join("\n")
        };
        let is = |cidr: &str| says(json!({"cidr": cidr}));
        assert_eq!(is("0.0.0.0/0"), "");
        assert_eq!(is("10.0.0.0/8"), "");
        assert!(
            is("192.0.2.0/24").contains("addresses outside, which nobody has"),
            "{}",
            is("192.0.2.0/24")
        );
        let text = is("10.9.1.0/24");
        assert!(
            text.contains(
                "NetworkPolicy default/p: the block 10.9.1.0/24 does not mean pod default/b"
            ),
            "{text}"
        );
        assert!(
            is("10.244.0.0/16").contains("means pod default/a and 1 more in the lab"),
            "{}",
            is("10.244.0.0/16")
        );
        assert!(is("172.16.0.0/12").contains("does not mean node real"), "{}", is("172.16.0.0/12"));
        let text = says(json!({"cidr": "0.0.0.0/0", "except": ["10.9.0.0/24", "10.244.2.0/24"]}));
        assert!(
            text.contains("means pod default/a in the lab, and in the original pod default/b"),
            "{text}"
        );
    }
}
