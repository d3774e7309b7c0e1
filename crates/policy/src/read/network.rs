//! NetworkPolicy, `networking.k8s.io/v1`.

use serde::Deserialize;
use serde_json::Value;

use super::{Meta, Notes, Unreadable, of_namespaces, parse};
use crate::labels::{Selector, Text, Written as WrittenSelector};
use crate::ports::{PortSet, Protocol};
use crate::rule::{
    Action, Block, Direction, Namespaces, Peer, Peers, Pods, Policy, PolicyName, PortMatch, Ports,
    Rule, Tier,
};

#[derive(Debug, Deserialize)]
struct Written {
    spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    pod_selector: Option<WrittenSelector>,
    ingress: Option<Vec<WrittenRule>>,
    egress: Option<Vec<WrittenRule>>,
    policy_types: Option<Vec<String>>,
}

/// Of either direction.
#[derive(Debug, Default, Deserialize)]
struct WrittenRule {
    from: Option<Vec<WrittenPeer>>,
    to: Option<Vec<WrittenPeer>>,
    ports: Option<Vec<WrittenPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPeer {
    pod_selector: Option<WrittenSelector>,
    namespace_selector: Option<WrittenSelector>,
    ip_block: Option<IpBlock>,
}

#[derive(Debug, Deserialize)]
struct IpBlock {
    cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPort {
    protocol: Option<String>,
    port: Option<NumberOrName>,
    end_port: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(Text),
}

pub(super) fn read(value: &Value) -> Result<Policy, Unreadable> {
    const KIND: &str = "NetworkPolicy";
    let meta = Meta::read(KIND, value)?;
    let namespace = meta.namespace();
    let written: Written = parse(KIND, &format!("{namespace}/{}", meta.name), value)?;
    let spec = written.spec.unwrap_or_default();
    let mut notes = Notes::default();
    let (ingress, egress) = directions(&spec, &mut notes);
    let means = "the policy applies to nobody";
    let subject = notes.selector("spec.podSelector", spec.pod_selector.unwrap_or_default(), means);
    let named = Namespaces::Named(namespace.clone());
    let mut rules = |covered: bool, direction, rules: Option<Vec<WrittenRule>>| {
        let read = |(i, rule)| {
            let at = format!("spec.{direction}[{i}]");
            read_rule(&mut notes, &at, &namespace, direction, rule)
        };
        covered.then(|| rules.unwrap_or_default().into_iter().enumerate().map(read).collect())
    };
    let ingress = rules(ingress, Direction::Ingress, spec.ingress);
    let egress = rules(egress, Direction::Egress, spec.egress);
    Ok(Policy {
        name: PolicyName::Network { namespace: namespace.clone(), name: meta.name.clone() },
        tier: Tier::Network,
        priority: 0,
        subject: subject.map(|pods| Pods { namespaces: named, pods }),
        ingress,
        egress,
        problems: notes.problems,
    })
}

/// Which directions it covers. Without the list: ingress always, egress where there are rules for it.
fn directions(spec: &Spec, notes: &mut Notes) -> (bool, bool) {
    // An empty list counts as none, as the API's defaults have it.
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    }
    for (i, name) in types.iter().enumerate() {
        if name != "Ingress" && name != "Egress" {
            notes.add(
                &format!("spec.policyTypes[{i}]"),
                format!("{name:?} is neither Ingress nor Egress; it is passed over"),
            );
        }
    }
    let has = |name: &str| types.iter().any(|t| t == name);
    for (covered, rules, key) in
        [(has("Ingress"), &spec.ingress, "ingress"), (has("Egress"), &spec.egress, "egress")]
    {
        if !covered && rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
            let what = "spec.policyTypes does not name this direction; the rules do nothing";
            notes.add(&format!("spec.{key}"), what);
        }
    }
    (has("Ingress"), has("Egress"))
}

fn read_rule(
    notes: &mut Notes,
    at: &str,
    own: &Text,
    direction: Direction,
    rule: WrittenRule,
) -> Rule {
    let (peers, key, other, other_key) = match direction {
        Direction::Ingress => (rule.from, "from", rule.to, "to"),
        Direction::Egress => (rule.to, "to", rule.from, "from"),
    };
    // The rule would allow everybody, which is not what was meant.
    let astray = other.is_some_and(|peers| !peers.is_empty());
    if astray {
        let what = format!("rules of {direction} have no {other_key}; the rule allows nobody");
        notes.add(&format!("{at}.{other_key}"), what);
    }
    let peers = peers.unwrap_or_default();
    let peers = match peers.is_empty() {
        _ if astray => Peers::AnyOf(vec![Peer::Nobody]),
        true => Peers::Everybody,
        false => {
            let read = |(i, peer)| read_peer(notes, &format!("{at}.{key}[{i}]"), own, peer);
            Peers::AnyOf(peers.into_iter().enumerate().map(read).collect())
        }
    };
    let ports = rule.ports.unwrap_or_default();
    let ports = match ports.is_empty() {
        true => Ports::All,
        false => {
            let read = |(i, port)| read_port(notes, &format!("{at}.ports[{i}]"), port);
            Ports::AnyOf(ports.into_iter().enumerate().map(read).collect())
        }
    };
    Rule { name: None, action: Action::Accept, peers, ports }
}

fn read_peer(notes: &mut Notes, at: &str, own: &Text, peer: WrittenPeer) -> Peer {
    const MEANS: &str = "the peer is nobody";
    let WrittenPeer { pod_selector, namespace_selector, ip_block } = peer;
    if let Some(block) = ip_block {
        if pod_selector.is_some() || namespace_selector.is_some() {
            notes.add(at, format!("a block of addresses and selectors in one peer; {MEANS}"));
            return Peer::Nobody;
        }
        return read_block(notes, &format!("{at}.ipBlock"), &block)
            .map_or(Peer::Nobody, Peer::Block);
    }
    let mut read = |key: &str, written: WrittenSelector| {
        notes.selector(&format!("{at}.{key}"), written, MEANS)
    };
    let found = match (namespace_selector, pod_selector) {
        (None, None) => {
            notes.add(at, format!("a peer without anything that is known; {MEANS}"));
            None
        }
        (None, Some(pods)) => {
            let pods = read("podSelector", pods);
            pods.map(|pods| Pods { namespaces: Namespaces::Named(own.clone()), pods })
        }
        (Some(namespaces), pods) => {
            let namespaces = of_namespaces(read("namespaceSelector", namespaces));
            let pods = pods.map_or(Some(Selector::everything()), |pods| read("podSelector", pods));
            namespaces.zip(pods).map(|(namespaces, pods)| Pods { namespaces, pods })
        }
    };
    found.map_or(Peer::Nobody, Peer::Pods)
}

fn read_block(notes: &mut Notes, at: &str, block: &IpBlock) -> Option<Block> {
    let cidr = notes.cidr(&format!("{at}.cidr"), &block.cidr, "the peer is nobody")?;
    let mut except = Vec::new();
    for (i, text) in block.except.iter().flatten().enumerate() {
        let at = format!("{at}.except[{i}]");
        // Without it more would be allowed than was meant.
        let net = notes.cidr(&at, text, "the peer is nobody")?;
        if cidr.contains(&net) || net.contains(&cidr) {
            except.push(net);
        } else {
            notes.add(&at, format!("{net} is not within {cidr}; it excepts nothing"));
        }
    }
    Some(Block { cidr, except })
}

fn read_port(notes: &mut Notes, at: &str, port: WrittenPort) -> PortMatch {
    const NOTHING: PortMatch = PortMatch::Numbers(PortSet::NONE);
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let Some(protocol) = Protocol::named(name) else {
        let what = format!("protocol {name:?} is none of TCP, UDP, SCTP; it matches nothing");
        notes.add(&format!("{at}.protocol"), what);
        return NOTHING;
    };
    let end_at = format!("{at}.endPort");
    match (port.port, port.end_port) {
        (None, None) => PortMatch::Numbers(PortSet::of(protocol, 0..=u16::MAX)),
        (Some(NumberOrName::Number(from)), None) => {
            PortMatch::Numbers(notes.range(&format!("{at}.port"), protocol, from, from))
        }
        (Some(NumberOrName::Number(from)), Some(to)) => {
            PortMatch::Numbers(notes.range(&end_at, protocol, from, to))
        }
        (Some(NumberOrName::Name(name)), None) => {
            PortMatch::Named { protocol: Some(protocol), name }
        }
        (None, Some(_)) => {
            notes.add(&end_at, "there is no port from which it ends a range; it matches nothing");
            NOTHING
        }
        (Some(NumberOrName::Name(name)), Some(_)) => {
            notes.add(&end_at, format!("no range begins at a name ({name}); it matches nothing"));
            NOTHING
        }
    }
}
