//! Which observed objects may be changed or removed.

use std::collections::BTreeSet;

use causeway_model::{Key, LinkKind, Object, Observed, Route};
use causeway_types::{IfName, names};

/// What the planner knows of ownership.
#[derive(Clone, Debug)]
pub struct Ownership {
    /// Keys of the objects that we made, written down before they were made.
    pub recorded: BTreeSet<Key>,
    /// The route protocol number that marks our routes.
    pub route_protocol: u8,
    /// False until every input is in sync: nothing is removed before.
    pub allow_removals: bool,
    /// True for a plugin, which makes pods' veth pairs. The agent cannot: a missing pod interface
    /// is reported, and what depends on it waits.
    pub makes_veths: bool,
    /// Devices that were taken over from another network: routes over them are ours.
    pub taken: BTreeSet<IfName>,
}

impl Ownership {
    /// Nothing recorded, nothing removed, veth pairs made: what a plugin plans with.
    pub fn plugin(route_protocol: u8) -> Self {
        Self {
            recorded: BTreeSet::new(),
            route_protocol,
            allow_removals: false,
            makes_veths: true,
            taken: BTreeSet::new(),
        }
    }

    /// Why an observed object under a key that we want cannot be touched, or `None` when it can.
    pub(crate) fn foreign(&self, want: &Object, have: &Object) -> Option<String> {
        match (want, have) {
            (Object::Route(_), Object::Route(r)) if !self.is_ours(r) => Some(format!(
                "a route of protocol {} made by somebody else leads elsewhere; remove it, or \
                     take the prefix out of the cluster's",
                r.protocol
            )),
            (Object::Link(want), Object::Link(have)) if !want.same_device(have) => {
                let ours = self.recorded.contains(&Object::Link(have.clone()).key())
                    || have.name.as_str().starts_with("cw");
                (!ours).then(|| {
                    format!(
                        "an interface of this name exists and is of another kind ({}); rename it \
                         or configure another name",
                        kind(&have.kind)
                    )
                })
            }
            _ => None,
        }
    }

    /// A route with our mark, or over a device that is ours by now.
    fn is_ours(&self, route: &Route) -> bool {
        let taken = route.dev.as_ref().is_some_and(|dev| self.taken.contains(dev));
        route.protocol == self.route_protocol || taken
    }

    /// True when an observed object that nobody wants any more is ours to remove.
    pub(crate) fn removable(&self, key: &Key, have: &Object, observed: &Observed) -> bool {
        self.allow_removals
            && self.recorded.contains(key)
            && match have {
                Object::Route(route) => self.is_ours(route),
                Object::Table(t) => t.name == names::NFT_AGENT,
                // Pods may hang on it: their interfaces go first, by the plugin.
                Object::Link(link) => {
                    let port = |o: &Object| matches!(o, Object::Link(l) if l.master.as_ref() == Some(&link.name));
                    !observed.iter().any(|(_, o)| port(o))
                }
                Object::Sysctl(_) => false,
                Object::Addr(_) | Object::Neigh(_) | Object::Fdb(_) => true,
            }
    }
}

fn kind(kind: &LinkKind) -> &str {
    match kind {
        LinkKind::Bridge => "bridge",
        LinkKind::Veth { .. } => "veth",
        LinkKind::Vxlan(_) => "vxlan with other parameters",
        LinkKind::Other(name) if name.is_empty() => "a plain device",
        LinkKind::Other(name) => name,
    }
}
