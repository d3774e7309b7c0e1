//! VLANs of bridges and their ports (`bridge vlan`).

use std::collections::BTreeSet;

use causeway_types::IfName;

use crate::error::{Error, Refusal};
use crate::handle::Handle;
use crate::rtnl::read;
use crate::sock::{Reply, Request, attributes};

/// `struct ifinfomsg`.
const HEADER: usize = 16;
/// Flag of a nested attribute.
const NESTED: u16 = 0x8000;
/// `RTEXT_FILTER_BRVLAN`: dumps of ports tell their VLANs.
const FILTER_VLANS: u32 = 2;
/// `IFLA_BR_VLAN_FILTERING`, `IFLA_BRIDGE_VLAN_INFO`.
const BR_VLAN_FILTERING: u16 = 7;
const BRIDGE_VLAN_INFO: u16 = 2;
/// `BRIDGE_VLAN_INFO_*` (`linux/if_bridge.h`).
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;
/// The VLAN that the kernel gives a new port.
pub const DEFAULT_VLAN: u16 = 1;

/// A VLAN of a port (IEEE 802.1Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortVlan {
    /// Its number, 1–4094.
    pub id: u16,
    /// Frames that come in without a tag belong to it.
    pub pvid: bool,
    /// Its frames go out without a tag.
    pub untagged: bool,
}

impl PortVlan {
    /// The VLAN of frames without tags.
    pub fn access(id: u16) -> Self {
        Self { id, pvid: true, untagged: true }
    }

    /// A VLAN of tagged frames.
    pub fn tagged(id: u16) -> Self {
        Self { id, pvid: false, untagged: false }
    }
}

impl Handle {
    /// Makes a bridge keep its VLANs apart. Ports have VLAN 1 from the beginning, so that nothing
    /// changes for frames without tags.
    ///
    /// # Errors
    /// When there is no such bridge, or the kernel refuses.
    pub fn set_vlan_filtering(&mut self, bridge: &IfName) -> Result<(), Error> {
        let what = "make a bridge keep its VLANs apart";
        let index = self.index_of(bridge)?;
        let mut body = header(libc::AF_UNSPEC, index);
        nest(&mut body, libc::IFLA_LINKINFO, |info| {
            put(info, libc::IFLA_INFO_KIND, b"bridge");
            nest(info, libc::IFLA_INFO_DATA, |data| put(data, BR_VLAN_FILTERING, &[1]));
        });
        self.one(what, Request::new(libc::RTM_NEWLINK, 0, body))
    }

    /// Gives a port of a bridge the VLANs that it lacks, and takes those that it should not have.
    ///
    /// # Errors
    /// When there is no such port, its bridge knows no VLANs, or the kernel refuses.
    pub fn set_port_vlans(
        &mut self,
        port: &IfName,
        wanted: &BTreeSet<PortVlan>,
    ) -> Result<(), Error> {
        let what = "set the VLANs of a bridge's port";
        let index = self.index_of(port)?;
        let have = self.port_vlans(port)?;
        let gone = have.iter().filter(|h| wanted.iter().all(|w| w.id != h.id));
        let mut requests: Vec<Request> =
            runs(gone).into_iter().map(|run| change(libc::RTM_DELLINK, index, run)).collect();
        let missing = wanted.iter().filter(|w| !have.contains(w));
        requests.extend(runs(missing).into_iter().map(|run| change(libc::RTM_SETLINK, index, run)));
        for outcome in self.route.transact(requests)? {
            outcome.map_err(|refusal| refused(what, refusal))?;
        }
        Ok(())
    }

    /// The VLANs of a bridge's port; none when the kernel knows none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn port_vlans(&mut self, port: &IfName) -> Result<BTreeSet<PortVlan>, Error> {
        let index = self.index_of(port)?;
        let mut body = header(libc::AF_BRIDGE, 0);
        put(&mut body, libc::IFLA_EXT_MASK, &FILTER_VLANS.to_ne_bytes());
        let ask = Request::new(libc::RTM_GETLINK, 0, body);
        let found = self.route.dump("read the VLANs of ports", ask, |r| decode(r, index))?;
        Ok(found.into_iter().flatten().collect())
    }

    fn one(&mut self, what: &'static str, request: Request) -> Result<(), Error> {
        for outcome in self.route.transact(vec![request])? {
            outcome.map_err(|refusal| refused(what, refusal))?;
        }
        Ok(())
    }
}

fn refused(what: &str, refusal: Refusal) -> Error {
    let unknown = [libc::EOPNOTSUPP, libc::EINVAL].contains(&refusal.errno);
    let hint = if unknown { " (its kernel may lack BRIDGE_VLAN_FILTERING)" } else { "" };
    Error::refused(format!("{what}{hint}"), refusal)
}

/// Neighbouring numbers with the same flags become one range; a PVID is always alone.
fn runs<'a>(vlans: impl Iterator<Item = &'a PortVlan>) -> Vec<(PortVlan, u16)> {
    let mut runs: Vec<(PortVlan, u16)> = Vec::new();
    for vlan in vlans {
        match runs.last_mut() {
            Some((first, last))
                if *last + 1 == vlan.id
                    && !first.pvid
                    && !vlan.pvid
                    && first.untagged == vlan.untagged =>
            {
                *last = vlan.id;
            }
            _ => runs.push((*vlan, vlan.id)),
        }
    }
    runs
}

fn change(kind: u16, index: u32, (first, last): (PortVlan, u16)) -> Request {
    let mut flags = 0;
    flags |= if first.pvid { PVID } else { 0 };
    flags |= if first.untagged { UNTAGGED } else { 0 };
    let info = |flags: u16, id: u16| [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
    let mut body = header(libc::AF_BRIDGE, index);
    nest(&mut body, libc::IFLA_AF_SPEC, |spec| {
        if first.id == last {
            put(spec, BRIDGE_VLAN_INFO, &info(flags, last));
        } else {
            put(spec, BRIDGE_VLAN_INFO, &info(flags | RANGE_BEGIN, first.id));
            put(spec, BRIDGE_VLAN_INFO, &info(flags | RANGE_END, last));
        }
    });
    Request::new(kind, 0, body)
}

fn decode(reply: Reply<'_>, index: u32) -> Option<Vec<PortVlan>> {
    let body = reply.body.get(HEADER..)?;
    (read::number_at(reply.body, 4)? == index).then_some(())?;
    let (_, spec) = attributes(body).find(|(kind, _)| *kind == libc::IFLA_AF_SPEC)?;
    let vlans = attributes(spec).filter(|(kind, _)| *kind == BRIDGE_VLAN_INFO);
    let vlans = vlans.filter_map(|(_, value)| {
        let half = |at: usize| Some(u16::from_ne_bytes(*value.get(at..)?.first_chunk()?));
        let (flags, id) = (half(0)?, half(2)?);
        Some(PortVlan { id, pvid: flags & PVID != 0, untagged: flags & UNTAGGED != 0 })
    });
    Some(vlans.collect())
}

pub(crate) fn header(family: i32, index: u32) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    body[0] = family as u8;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body
}

pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_ranges() {
        let all = [
            PortVlan::access(5),
            PortVlan::tagged(6),
            PortVlan::tagged(7),
            PortVlan::tagged(9),
            PortVlan { untagged: true, ..PortVlan::tagged(10) },
        ];
        let ends: Vec<(u16, u16)> = runs(all.iter()).iter().map(|(a, b)| (a.id, *b)).collect();
        assert_eq!(ends, [(5, 5), (6, 7), (9, 9), (10, 10)]);
    }

    #[test]
    fn what_is_written_is_read() {
        let request = change(libc::RTM_SETLINK, 7, (PortVlan::access(100), 100));
        let reply = Reply { kind: request.kind, flags: 0, seq: 0, port: 0, body: &request.body };
        assert_eq!(decode(reply, 7), Some(vec![PortVlan::access(100)]));
        assert_eq!(decode(reply, 8), None);
    }
}
