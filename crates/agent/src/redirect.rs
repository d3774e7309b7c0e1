//! Neighbours inside pods that were bridged to each other.
//!
//! Such a pod knows others of its node by their own MACs. As soon as two ports are isolated, no frame
//! goes from one to the other: before that, what a pod knows of its neighbours has to be the bridge,
//! which routes between them.

use std::net::IpAddr;

use causeway_kernel::{Handle, NetNs};
use causeway_model::Neigh;
use causeway_types::state::AttachmentRecord;
use causeway_types::{Cidr, Mac};

/// What pods are to know.
#[derive(Clone, Debug)]
pub(crate) struct Redirect {
    /// The networks that they share with other pods of the node.
    pub(crate) nets: Vec<Cidr>,
    /// The bridge's MAC.
    pub(crate) mac: Mac,
    /// Nothing that they hear changes it again. Without, what was held before is let go, and the kernel
    /// asks about it as about any neighbour.
    pub(crate) hold: bool,
}

impl Redirect {
    /// Sets the entries of one pod. Answers how many led past the bridge. A pod that is gone has none.
    ///
    /// # Errors
    /// When its namespace cannot be looked at, or the kernel refuses.
    pub(crate) fn apply(&self, record: &AttachmentRecord) -> Result<usize, String> {
        let of = |e: causeway_kernel::Error| format!("neighbours of {}: {e}", record.owner_name());
        let Some(ns) = NetNs::find(&record.netns).map_err(of)? else { return Ok(0) };
        let mut pod = Handle::open_in(&ns).map_err(of)?;
        let present = pod.addresses(&record.ifname).map_err(of)?;
        if !record.addresses.iter().all(|own| present.contains(own)) {
            return Ok(0);
        }
        let (mut past, mut entries) = (0, Vec::new());
        for entry in pod.usable_neighbours().map_err(of)? {
            if entry.dev != record.ifname || !self.is_pods(entry.ip, record) {
                continue;
            }
            let other = entry.mac != Some(self.mac);
            past += usize::from(other);
            if other || (entry.permanent && !self.hold) {
                entries.push(Neigh { mac: Some(self.mac), permanent: self.hold, ..entry });
            }
        }
        pod.set_neighbours(&entries).map_err(of)?;
        Ok(past)
    }

    /// An address that another pod may have.
    fn is_pods(&self, ip: IpAddr, record: &AttachmentRecord) -> bool {
        let gateway = |net: &Cidr| net.gateway() == ip;
        self.nets.iter().any(|net| net.contains(ip) && !gateway(net))
            && !record.gateways.contains(&ip)
    }
}
