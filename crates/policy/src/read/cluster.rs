//! ClusterNetworkPolicy, `policy.networking.k8s.io/v1alpha2`.
//!
//! A rule with something that is not known fails closed, as the API's documentation asks: one that would
//! accept matches nothing, any other drops everything.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Meta, Notes, Unreadable, of_namespaces, parse};
use crate::labels::{Selector, Text, Written as WrittenSelector};
use crate::ports::{PortSet, Protocol};
use crate::rule::{
    Action, Block, Direction, Namespaces, Peer, Peers, Pods, Policy, PolicyName, PortMatch, Ports,
    Rule, Tier,
};

const KIND: &str = "ClusterNetworkPolicy";
/// Of one direction.
const MOST_RULES: usize = 25;
const HIGHEST: u16 = 1000;

#[derive(Debug, Deserialize)]
struct Written {
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Spec {
    tier: String,
    priority: i64,
    /// What a newer version may have is to be seen.
    subject: Map<String, Value>,
    ingress: Option<Vec<WrittenRule>>,
    egress: Option<Vec<WrittenRule>>,
}

/// Of either direction.
#[derive(Debug, Deserialize)]
struct WrittenRule {
    name: Option<Text>,
    action: String,
    from: Option<Vec<Map<String, Value>>>,
    to: Option<Vec<Map<String, Value>>>,
    protocols: Option<Vec<Map<String, Value>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPod {
    namespace_selector: Option<WrittenSelector>,
    pod_selector: WrittenSelector,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfProtocol {
    destination_port: Option<DestinationPort>,
}

#[derive(Debug, Deserialize)]
struct DestinationPort {
    number: Option<i64>,
    range: Option<PortRange>,
}

#[derive(Debug, Deserialize)]
struct PortRange {
    start: i64,
    end: i64,
}

pub(super) fn read(value: &Value) -> Result<Policy, Unreadable> {
    let meta = Meta::read(KIND, value)?;
    let spec = parse::<Written>(KIND, &meta.name, value)?.spec;
    let wrong = |at: &str, why: String| Unreadable {
        kind: KIND,
        name: meta.name.to_string(),
        at: at.to_owned(),
        why,
    };
    let tier = match spec.tier.as_str() {
        "Admin" => Tier::Admin,
        "Baseline" => Tier::Baseline,
        other => {
            return Err(wrong("spec.tier", format!("{other:?} is neither Admin nor Baseline")));
        }
    };
    let priority =
        u16::try_from(spec.priority).ok().filter(|p| *p <= HIGHEST).ok_or_else(|| {
            wrong("spec.priority", format!("{} is not within 0 and {HIGHEST}", spec.priority))
        })?;
    let mut notes = Notes::default();
    let subject = subject(&mut notes, spec.subject);
    let mut rules = |direction: Direction, rules: Option<Vec<WrittenRule>>| {
        let rules = rules.filter(|rules| !rules.is_empty())?;
        if rules.len() > MOST_RULES {
            let what = format!("{} rules, more than the API takes ({MOST_RULES})", rules.len());
            notes.add(&format!("spec.{direction}"), what);
        }
        let read = |(i, rule)| {
            Reader { notes: &mut notes, at: format!("spec.{direction}[{i}]"), direction }.rule(rule)
        };
        Some(rules.into_iter().enumerate().map(read).collect())
    };
    let ingress = rules(Direction::Ingress, spec.ingress);
    let egress = rules(Direction::Egress, spec.egress);
    let name = PolicyName::Cluster(meta.name.clone());
    Ok(Policy { name, tier, priority, subject, ingress, egress, problems: notes.problems })
}

fn subject(notes: &mut Notes, written: Map<String, Value>) -> Option<Pods> {
    const MEANS: &str = "the policy applies to nobody";
    let mut keys = written.into_iter().filter(|(_, value)| !value.is_null());
    let found = match (keys.next(), keys.next()) {
        (Some((key, value)), None) => pods(notes, "spec.subject", &key, value, MEANS),
        _ => Err(format!("exactly one of namespaces and pods is expected; {MEANS}")),
    };
    found.unwrap_or_else(|what| {
        notes.add("spec.subject", what);
        None
    })
}

/// `namespaces` or `pods`; `None` where what it selects by cannot be understood, which is noted.
///
/// # Errors
/// What to note, where it is something else.
fn pods(
    notes: &mut Notes,
    at: &str,
    key: &str,
    value: Value,
    means: &str,
) -> Result<Option<Pods>, String> {
    let unknown = |e: serde_json::Error| format!("{key}: {e}; {means}");
    match key {
        "namespaces" => {
            let written = serde_json::from_value(value).map_err(unknown)?;
            let selector = notes.selector(&format!("{at}.namespaces"), written, means);
            let pods = Selector::everything();
            Ok(of_namespaces(selector).map(|namespaces| Pods { namespaces, pods }))
        }
        "pods" => {
            let written: NamespacedPod = serde_json::from_value(value).map_err(unknown)?;
            let mut read =
                |key: &str, written| notes.selector(&format!("{at}.pods.{key}"), written, means);
            let namespaces = match written.namespace_selector {
                Some(written) => of_namespaces(read("namespaceSelector", written)),
                None => Some(Namespaces::Selected(Selector::everything())),
            };
            let pods = read("podSelector", written.pod_selector);
            Ok(namespaces.zip(pods).map(|(namespaces, pods)| Pods { namespaces, pods }))
        }
        other => Err(format!("{other} is not known; {means}")),
    }
}

/// Something of a rule that is not known, which has been noted.
struct Unknown;

/// Reads one rule.
struct Reader<'a> {
    notes: &'a mut Notes,
    at: String,
    direction: Direction,
}

impl Reader<'_> {
    fn rule(&mut self, rule: WrittenRule) -> Rule {
        let action = match rule.action.as_str() {
            "Accept" => Action::Accept,
            "Deny" => Action::Deny,
            "Pass" => Action::Pass,
            other => {
                self.note("action", format!("{other:?} is none of Accept, Deny, Pass"));
                return closed(rule.name, Action::Deny);
            }
        };
        let (peers, key) = match self.direction {
            Direction::Ingress => (rule.from, "from"),
            Direction::Egress => (rule.to, "to"),
        };
        let peers = peers.unwrap_or_default();
        if peers.is_empty() {
            self.note(key, "there is nobody in it, which the API does not take".to_owned());
            return closed(rule.name, action);
        }
        let mut known = true;
        let mut all = Vec::new();
        for (i, peer) in peers.into_iter().enumerate() {
            match self.peer(&format!("{key}[{i}]"), action, peer) {
                Ok(mut peers) => all.append(&mut peers),
                Err(Unknown) => known = false,
            }
        }
        let ports = match rule.protocols.filter(|all| !all.is_empty()) {
            None => Ports::All,
            Some(protocols) => {
                let mut ports = Vec::new();
                for (i, protocol) in protocols.into_iter().enumerate() {
                    match self.protocol(&format!("protocols[{i}]"), protocol) {
                        Ok(port) => ports.push(port),
                        Err(Unknown) => known = false,
                    }
                }
                Ports::AnyOf(ports)
            }
        };
        match known {
            true => Rule { name: rule.name, action, peers: Peers::AnyOf(all), ports },
            false => closed(rule.name, action),
        }
    }

    fn note(&mut self, key: &str, what: String) {
        self.notes.add(&format!("{}.{key}", self.at), what);
    }

    fn unknown<T>(&mut self, key: &str, action: Action, what: &str) -> Result<T, Unknown> {
        let means = match action {
            Action::Accept => "the rule matches nothing",
            Action::Deny | Action::Pass => "the rule drops everything",
        };
        self.note(key, format!("{what}; {means}"));
        Err(Unknown)
    }

    /// Networks are several peers in one.
    fn peer(
        &mut self,
        key: &str,
        action: Action,
        peer: Map<String, Value>,
    ) -> Result<Vec<Peer>, Unknown> {
        let mut keys = peer.into_iter().filter(|(_, value)| !value.is_null());
        let (Some((kind, value)), None) = (keys.next(), keys.next()) else {
            return self.unknown(key, action, "exactly one kind of peer is expected");
        };
        let egress = self.direction == Direction::Egress;
        match kind.as_str() {
            "networks" if egress => self.networks(key, action, value),
            "nodes" if egress => {
                let written = serde_json::from_value::<WrittenSelector>(value);
                match written.map_err(|e| e.to_string()).and_then(WrittenSelector::read) {
                    Ok(selector) => Ok(vec![Peer::Nodes(selector)]),
                    Err(why) => self.unknown(key, action, &format!("nodes: {why}")),
                }
            }
            "domainNames" if egress => {
                self.unknown(key, action, "domainNames are not supported yet")
            }
            "namespaces" | "pods" => {
                let at = format!("{}.{key}", self.at);
                match pods(self.notes, &at, &kind, value, "the rule fails closed") {
                    Ok(Some(pods)) => Ok(vec![Peer::Pods(pods)]),
                    Ok(None) => Err(Unknown),
                    Err(what) => self.unknown(key, action, &what),
                }
            }
            other => {
                let what = format!("{other} is no peer of {} rules", self.direction);
                self.unknown(key, action, &what)
            }
        }
    }

    fn networks(&mut self, key: &str, action: Action, value: Value) -> Result<Vec<Peer>, Unknown> {
        let Ok(texts) = serde_json::from_value::<Vec<String>>(value) else {
            return self.unknown(key, action, "networks is no list of texts");
        };
        let mut all = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let at = format!("{}.{key}.networks[{i}]", self.at);
            let cidr = self.notes.cidr(&at, text, "the rule fails closed").ok_or(Unknown)?;
            all.push(Peer::Block(Block { cidr, except: Vec::new() }));
        }
        Ok(all)
    }

    fn protocol(&mut self, key: &str, written: Map<String, Value>) -> Result<PortMatch, Unknown> {
        let closed = "the rule fails closed";
        let mut keys = written.into_iter().filter(|(_, value)| !value.is_null());
        let (Some((kind, value)), None) = (keys.next(), keys.next()) else {
            self.note(key, format!("exactly one protocol is expected; {closed}"));
            return Err(Unknown);
        };
        if kind == "destinationNamedPort"
            && let Some(name) = value.as_str()
        {
            return Ok(PortMatch::Named { protocol: None, name: name.into() });
        }
        let protocol = match kind.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                self.note(key, format!("{other} is not known; {closed}"));
                return Err(Unknown);
            }
        };
        let written = match serde_json::from_value::<OfProtocol>(value) {
            Ok(written) => written,
            Err(e) => {
                self.note(key, format!("{kind}: {e}; {closed}"));
                return Err(Unknown);
            }
        };
        let at = format!("{}.{key}.{kind}.destinationPort", self.at);
        let (from, to) = match written.destination_port {
            None => return Ok(PortMatch::Numbers(PortSet::of(protocol, 0..=u16::MAX))),
            Some(DestinationPort { number: Some(number), range: None }) => (number, number),
            Some(DestinationPort { number: None, range: Some(PortRange { start, end }) }) => {
                (start, end)
            }
            Some(_) => {
                self.notes.add(&at, format!("either number or range is expected; {closed}"));
                return Err(Unknown);
            }
        };
        let ports = self.notes.range(&at, protocol, from, to);
        if ports.is_none() { Err(Unknown) } else { Ok(PortMatch::Numbers(ports)) }
    }
}

/// A rule that is not wholly known.
fn closed(name: Option<Text>, action: Action) -> Rule {
    match action {
        Action::Accept => {
            Rule { name, action, peers: Peers::AnyOf(vec![Peer::Nobody]), ports: Ports::All }
        }
        Action::Deny | Action::Pass => {
            Rule { name, action: Action::Deny, peers: Peers::Everybody, ports: Ports::All }
        }
    }
}
