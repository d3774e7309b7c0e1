//! The loop's view of the kernel: everything that it does to or learns from the node's namespace.
//!
//! The one implementation for use is [`crate::netns_port`]; tests drive the loop with the
//! simulated kernel of crate `plan`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use causeway_desired::input::Path;
use causeway_model::nft::foreign::Dropping;
use causeway_model::{Key, Object, Observed};
use causeway_plan::{Op, TableId};
use causeway_types::state::AttachmentRecord;
use causeway_types::{Family, names};

use crate::redirect::Redirect;

/// Kinds of objects whose last observation may be out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) links: bool,
    pub(crate) addrs: bool,
    pub(crate) routes: bool,
    /// Neighbours and forwarding entries: both come from the same notifications.
    pub(crate) neighs: bool,
    /// The plugins' nft tables, which change with each pod.
    pub(crate) guards: bool,
    /// Other nft tables.
    pub(crate) tables: bool,
    pub(crate) sysctls: bool,
}

impl Stale {
    /// Everything.
    pub(crate) const ALL: Stale = Stale {
        links: true,
        addrs: true,
        routes: true,
        neighs: true,
        guards: true,
        tables: true,
        sysctls: true,
    };

    /// Nothing.
    pub(crate) const NONE: Stale = Stale {
        links: false,
        addrs: false,
        routes: false,
        neighs: false,
        guards: false,
        tables: false,
        sysctls: false,
    };

    /// Takes in another value.
    pub(crate) fn merge(&mut self, other: Stale) {
        self.links |= other.links;
        self.addrs |= other.addrs;
        self.routes |= other.routes;
        self.neighs |= other.neighs;
        self.guards |= other.guards;
        self.tables |= other.tables;
        self.sysctls |= other.sysctls;
    }

    /// True when anything is stale.
    pub(crate) fn any(self) -> bool {
        self != Stale::NONE
    }

    /// What an operation can change. With an interface go its addresses, routes, neighbours,
    /// parameters and ingress chains.
    pub(crate) fn after(op: &Op) -> Stale {
        match op.key() {
            Key::Link(_) => Stale::ALL,
            Key::Sysctl(_) => Stale { sysctls: true, ..Stale::NONE },
            Key::Addr { .. } => Stale { addrs: true, routes: true, ..Stale::NONE },
            Key::Neigh { .. } | Key::Fdb { .. } => Stale { neighs: true, ..Stale::NONE },
            Key::Table { name, .. } => Stale::of_table(&name),
            Key::Route { .. } => Stale { routes: true, ..Stale::NONE },
        }
    }

    /// The tables of this name, in whatever family.
    pub(crate) fn of_table(name: &str) -> Stale {
        match name {
            names::NFT_PLUGINS => Stale { guards: true, ..Stale::NONE },
            _ => Stale { tables: true, ..Stale::NONE },
        }
    }

    /// True when tables of this name are stale.
    pub(crate) fn covers_table(self, name: &str) -> bool {
        if name == names::NFT_PLUGINS { self.guards } else { self.tables }
    }

    /// True when objects of this key's kind are stale.
    pub(crate) fn covers(self, key: &Key) -> bool {
        match key {
            Key::Link(_) => self.links,
            Key::Sysctl(_) => self.sysctls,
            Key::Addr { .. } => self.addrs,
            Key::Neigh { .. } | Key::Fdb { .. } => self.neighs,
            Key::Table { name, .. } => self.covers_table(name),
            Key::Route { .. } => self.routes,
        }
    }
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// Which kinds.
    pub(crate) kinds: Stale,
    /// These tables, if `kinds` has tables of their name.
    pub(crate) tables: BTreeSet<TableId>,
    /// These kernel parameters, if `kinds` has them.
    pub(crate) sysctls: BTreeSet<String>,
}

/// The kernel.
pub(crate) trait Port {
    /// What the namespace holds of the kinds asked for. Complete, or an error.
    fn observe(&mut self, look: &Look) -> Result<Observed, String>;

    /// Does operations in order, going on after one that fails: one result for each.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), String>>;

    /// How a packet to another node's address would leave by the underlay; `None`: not at all.
    fn path(&mut self, to: IpAddr) -> Result<Option<Path>, String>;

    /// A kernel parameter by its path below `/proc/sys`; `None` where there is none.
    fn parameter(&mut self, path: &str) -> Option<String>;

    /// Makes the bridge what pods know of each other. Answers how many entries led past it. Pods that
    /// are gone do not count.
    fn redirect(&mut self, _to: &Redirect, _pods: &[AttachmentRecord]) -> Result<usize, String> {
        Ok(0)
    }

    /// What changed since the last call, by whomever. Never blocks.
    fn changes(&mut self) -> Stale;

    /// Whether [`Port::changes`] told since the last call that the plugins' own table went, or may
    /// have.
    fn take_lost_table(&mut self) -> bool {
        false
    }

    /// By which sockets [`Port::changes`] told since the last call that the table of policies was changed; 0
    /// where news were lost.
    fn take_policy_change(&mut self) -> Option<BTreeSet<u32>> {
        None
    }

    /// Whether [`Port::changes`] told since the last call that tables of others changed, or may have.
    fn take_foreign_change(&mut self) -> bool {
        false
    }

    /// Chains of others that drop forwarded packets of these families, with what they accept.
    fn dropping(&mut self, _: &[Family]) -> Result<Vec<Dropping>, String> {
        Ok(Vec::new())
    }

    /// Becomes readable when [`Port::changes`] has something to say.
    fn changes_fd(&self) -> BorrowedFd<'_>;
}

/// Puts a new observation of some kinds in place of the old one.
pub(crate) fn replace(seen: &mut Observed, look: &Look, fresh: Observed) {
    seen.retain(|key, _| !look.kinds.covers(key) || kept(key, look));
    for (_, object) in fresh.iter() {
        seen.insert(object.clone());
    }
}

/// Tables and parameters that were not asked for stay as they were seen.
fn kept(key: &Key, look: &Look) -> bool {
    match key {
        Key::Table { family, name } => {
            !look.tables.contains(&TableId { family: *family, name: name.clone() })
        }
        Key::Sysctl(path) => !look.sysctls.contains(path),
        _ => false,
    }
}

/// The identity of a table object.
pub(crate) fn table_of(object: &Object) -> Option<TableId> {
    match object {
        Object::Table(table) => Some(TableId::of(table)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use causeway_model::nft::NftFamily;

    use super::*;

    #[test]
    fn a_pods_guard_puts_no_other_table_in_doubt() {
        let key = |name: &str| Key::Table { family: NftFamily::Inet, name: name.to_owned() };
        let (plugins, agent) = (key(names::NFT_PLUGINS), key(names::NFT_AGENT));
        let stale = Stale::of_table(names::NFT_PLUGINS);
        assert!(stale.any() && stale.covers(&plugins) && !stale.covers(&agent));
        let mut other = Stale::of_table(names::NFT_AGENT);
        assert!(!other.covers(&plugins) && other.covers(&agent));
        other.merge(stale);
        assert!([&plugins, &agent].into_iter().all(|key| other.covers(key)));
        assert!([&plugins, &agent].into_iter().all(|key| Stale::ALL.covers(key)));
    }
}
