//! The ends of connections as people name them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use causeway_types::Family;

use crate::labels::{Selector, Text};
use crate::world::{Party, PodName, Who, World};

/// One or several ends: `NAMESPACE/POD`, `NAMESPACE/app=db` (all pods with these labels), `*/app=db` (of all
/// namespaces), `NAMESPACE/*`, `node:NAME`, an address. Without a namespace that of the name `default` is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Whoever has an address.
    Address(IpAddr),
    /// A node, by all its addresses.
    Node(Text),
    /// One pod.
    Pod(PodName),
    /// All pods with some labels.
    Pods {
        /// `None`: of all namespaces.
        namespace: Option<Text>,
        /// The labels.
        labels: Selector,
    },
}

impl FromStr for Ends {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if let Some(name) = text.strip_prefix("node:") {
            return Ok(Self::Node(name.into()));
        }
        // A key of a label may have a slash of its own, behind a name with dots, which no namespace has.
        let is_labels = |text: &str| text.contains(['=', '!', ' ']);
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) if !is_labels(namespace) && !namespace.contains('.') => {
                (namespace, rest)
            }
            _ => ("default", text),
        };
        if namespace.is_empty() || rest.is_empty() {
            return Err(format!(
                "{text:?} names no end of a connection: expected NAMESPACE/POD, NAMESPACE/LABELS, \
                 NAMESPACE/*, node:NAME or an address"
            ));
        }
        let all = (namespace != "*").then(|| Text::from(namespace));
        if rest == "*" {
            return Ok(Self::Pods { namespace: all, labels: Selector::everything() });
        }
        match (is_labels(rest), &all) {
            (true, _) => Ok(Self::Pods { namespace: all, labels: rest.parse()? }),
            (false, Some(namespace)) => Ok(Self::Pod(PodName::new(namespace.clone(), rest))),
            (false, None) => Err(format!(
                "{text:?}: a pod is of one namespace; with * labels are expected (*/app={rest})"
            )),
        }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Pod(name) => name.fmt(f),
            Self::Pods { namespace, labels } => {
                f.write_str(namespace.as_deref().unwrap_or("*"))?;
                match labels.is_everything() {
                    true => f.write_str("/*"),
                    false => write!(f, "/{labels}"),
                }
            }
        }
    }
}

/// One end, by all its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who it is.
    pub who: Who,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl End {
    /// The pairs of addresses by which it could connect to another end: one of each family that both
    /// have.
    #[must_use]
    pub fn pairs(&self, to: &End) -> Vec<(Party, Party)> {
        let of = |end: &End, family| {
            let address = end.addresses.iter().copied().find(|ip| Family::of(*ip) == family)?;
            Some(Party { who: end.who.clone(), address })
        };
        let pair = |family| Some((of(self, family)?, of(to, family)?));
        [Family::V4, Family::V6].into_iter().filter_map(pair).collect()
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Pod(name) => name.fmt(f),
            Who::Node(name) => write!(f, "node:{name}"),
            Who::Outside => {
                let all: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
                f.write_str(&all.join(", "))
            }
        }
    }
}

impl World {
    /// The ends that are meant.
    ///
    /// # Errors
    /// Why there are none: no such pod or node, no labels that fit, or no address.
    pub fn ends(&self, which: &Ends) -> Result<Vec<End>, String> {
        let pods: Vec<_> = match which {
            Ends::Address(ip) => {
                return Ok(vec![End { who: self.at(*ip).who, addresses: vec![*ip] }]);
            }
            Ends::Node(name) => {
                let node = self.node(name).ok_or_else(|| {
                    let all: Vec<&str> = self.nodes().map(|(name, _)| &**name).collect();
                    format!("there is no node {name}; there are: {}", all.join(", "))
                })?;
                let addresses = node.addresses.clone();
                return Ok(vec![End { who: Who::Node(name.clone()), addresses }]);
            }
            Ends::Pod(name) => {
                let pod = self.pod(name).ok_or_else(|| self.no_pod(name))?;
                vec![pod]
            }
            Ends::Pods { namespace, labels } => self
                .pods()
                .filter(|pod| {
                    namespace.as_ref().is_none_or(|n| *n == pod.name.namespace)
                        && labels.selects(&pod.labels)
                })
                .collect(),
        };
        let end = |pod: &crate::Pod| {
            let of = |family| self.party(pod, family);
            let parties: Vec<Party> = [Family::V4, Family::V6].into_iter().filter_map(of).collect();
            let who = parties.first()?.who.clone();
            Some(End { who, addresses: parties.into_iter().map(|p| p.address).collect() })
        };
        let ends: Vec<End> = pods.iter().filter_map(|pod| end(pod)).collect();
        if ends.is_empty() {
            return Err(match pods.len() {
                0 => format!("no pod is {which}"),
                _ => format!("{which} has no address (yet, or any more)"),
            });
        }
        Ok(ends)
    }

    fn no_pod(&self, name: &PodName) -> String {
        let others = self.pods().filter(|pod| pod.name.namespace == name.namespace);
        let others: Vec<&str> = others.map(|pod| &*pod.name.name).take(10).collect();
        match others.is_empty() {
            true => {
                format!("there is no pod {name}, and no other pod in namespace {}", name.namespace)
            }
            false => format!(
                "there is no pod {name}; namespace {} has {}",
                name.namespace,
                others.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_name_them() {
        for (text, same) in [
            ("web/a", "web/a"),
            ("a", "default/a"),
            ("web/app=db", "web/app=db"),
            ("app=db", "default/app=db"),
            ("*/app=db", "*/app=db"),
            ("example.com/app=db", "default/example.com/app=db"),
            ("web/example.com/app=db", "web/example.com/app=db"),
            ("web/*", "web/*"),
            ("node:n1", "node:n1"),
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
        ] {
            let ends: Ends = text.parse().unwrap();
            assert_eq!(ends.to_string(), same, "{text}");
        }
        for text in ["", "/a", "a/", "*/a"] {
            text.parse::<Ends>().unwrap_err();
        }
    }
}
