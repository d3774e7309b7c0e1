//! Guards that outlived their interfaces.
//!
//! A guard that somebody took away is put back. Where the pod goes at that very moment, it comes back
//! after DEL has removed it, and since Linux 6.16 the kernel takes a chain for an interface that is not
//! there. Nothing else would ever remove it.

use std::time::Instant;

use causeway_model::nft::NftFamily;
use causeway_model::{Key, Object};
use causeway_plan::{NftOp, Op, TableId};
use causeway_types::{IfName, names};

use super::Core;
use crate::port::{Port, Stale};

/// The table of pods' guards.
pub(super) fn table() -> TableId {
    TableId { family: NftFamily::Netdev, name: names::NFT_PLUGINS.to_owned() }
}

impl<P: Port> Core<P> {
    /// Removes guards whose interfaces are gone.
    ///
    /// # Errors
    /// When the interfaces cannot be looked at.
    pub(super) fn sweep_guards(&mut self, now: Instant) -> Result<(), String> {
        if self.orphans().is_empty() {
            return Ok(());
        }
        // An ADD makes the interface first: where the guard was seen, it has been there. A look from
        // now on tells whether it is gone again.
        self.stale.merge(Stale { links: true, ..Stale::NONE });
        self.look()?;
        let remove = |name: IfName| Op::Nft {
            table: table(),
            ops: vec![NftOp::DelChain { name: name.to_string() }],
        };
        let ops: Vec<Op> = self.orphans().into_iter().map(remove).collect();
        // It has gone by itself, or the interface has come.
        let Some(key) = ops.first().map(Op::key) else { return Ok(()) };
        for op in &ops {
            tracing::info!("{op}: its interface is gone");
        }
        // A DEL at work may have been quicker.
        self.apply(&ops, now);
        self.failures.retain(|failed| *failed != key);
        Ok(())
    }

    fn orphans(&self) -> Vec<IfName> {
        let TableId { family, name } = table();
        let Some(Object::Table(guards)) = self.seen.get(&Key::Table { family, name }) else {
            return Vec::new();
        };
        let chains = guards.chains.iter().filter_map(|(name, chain)| {
            let device = chain.base.as_ref()?.device.as_ref()?;
            (name == device.as_str()).then(|| device.clone())
        });
        let gone = |device: &IfName| self.seen.get(&Key::Link(device.clone())).is_none();
        chains.filter(gone).collect()
    }
}
