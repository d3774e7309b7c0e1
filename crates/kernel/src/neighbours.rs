//! Neighbours, those that the kernel learned included.

use std::net::IpAddr;

use causeway_model::Neigh;
use causeway_types::{IfName, Mac};

use crate::error::Error;
use crate::handle::Handle;
use crate::rtnl::read::Names;
use crate::rtnl::{link, neigh};
use crate::sock::{Reply, Request};

impl Handle {
    /// The neighbours that the kernel can use at present, learned and permanent: interface, address,
    /// MAC.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn neighbours(&mut self) -> Result<Vec<(IfName, IpAddr, Mac)>, Error> {
        let all = self.usable_neighbours()?.into_iter();
        Ok(all.filter_map(|n| Some((n.dev, n.ip, n.mac?))).collect())
    }

    /// The same, as entries that are permanent or not.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn usable_neighbours(&mut self) -> Result<Vec<Neigh>, Error> {
        let links = self.route.dump("read links", link::dump(), link::decode)?;
        let names: Names = links.into_iter().map(|s| (s.index, s.link.name)).collect();
        let read = |r: Reply<'_>| neigh::decode_usable(r, &names);
        self.route.dump("read neighbours", neigh::dump(false), read)
    }

    /// Puts entries in place of what is known of their addresses. One that is not permanent counts at
    /// once, and the kernel asks about it when it was used.
    ///
    /// # Errors
    /// When an interface is not there, or the kernel refuses.
    pub fn set_neighbours(&mut self, entries: &[Neigh]) -> Result<(), Error> {
        let what = "set a neighbour";
        let mut requests: Vec<Request> = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(index) = self.link_index(&entry.dev)? else {
                return Err(Error::Invalid(format!("cannot {what}: there is no {}", entry.dev)));
            };
            requests.push(neigh::set(entry, index));
        }
        for outcome in self.route.transact(requests)? {
            outcome.map_err(|refusal| Error::refused(what, refusal))?;
        }
        Ok(())
    }
}
