//! The devices through which goes what pods send: whose they are.
//!
//! Each has a note of network, container and interface as its alias (`ip link`). It is made with
//! the device and goes with it, so that it never speaks of one that is not there, as a file may
//! after a boot; and a device without one, or with another's, is never taken for ours.

use std::collections::BTreeSet;

use causeway_cni_spec::CniError;
use causeway_ipam::Owner;
use causeway_kernel::device::Device;
use causeway_types::{IfName, names};

use crate::adds::{Adds, short};
use crate::call::Call;
use crate::space::Space;

/// What is noted of the devices of a network.
fn network_note(network: &str) -> String {
    format!("causeway-bandwidth:{}/", short(network))
}

/// What is noted of the device of an attachment.
pub(super) fn note(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{}{}/{ifname}", network_note(network), short(container_id))
}

/// The names that the device of an attachment may have. The reference's does not depend on the
/// interface, so that two interfaces of a container in one network would have the same: the second
/// of them gets the other one.
pub(super) fn candidates(call: &Call) -> [IfName; 2] {
    let (network, id) = (&call.conf.name, &call.env.container_id);
    let also = format!("/{}", call.env.ifname);
    [names::ifb(network, id, ""), names::ifb(network, id, &also)]
}

fn own_note(call: &Call) -> String {
    note(&call.conf.name, &call.env.container_id, &call.env.ifname)
}

/// The device of an attachment: the one with its note, else one of its name without any, which the
/// reference made.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(super) fn find(call: &Call, node: &mut Space) -> Result<Option<Device>, CniError> {
    let (own, [first, second]) = (own_note(call), candidates(call));
    let mut unnoted = None;
    for (name, theirs) in [(&first, true), (&second, false)] {
        let Some(device) = node.kernel(|k| k.device(name.as_str()))?.filter(Device::is_ifb) else {
            continue;
        };
        if device.alias == own {
            return Ok(Some(device));
        }
        if theirs && device.alias.is_empty() {
            unnoted = Some(device);
        }
    }
    Ok(unnoted)
}

/// Makes the device of an attachment; what an ADD that was killed left of one goes first.
///
/// # Errors
/// Code 999 when all its names are taken, or the kernel refuses.
pub(super) fn make(call: &Call, node: &mut Space, mtu: u32) -> Result<IfName, CniError> {
    let (own, candidates) = (own_note(call), candidates(call));
    for name in &candidates {
        match node.kernel(|k| k.device(name.as_str()))? {
            Some(device) if device.is_ifb() && device.alias == own => {
                remove(node, &device)?;
            }
            Some(_) => continue,
            None => {}
        }
        node.kernel(|k| k.create_ifb(name, mtu, &own))?;
        return Ok(name.clone());
    }
    let [first, second] = candidates;
    Err(CniError::internal(format!(
        "interfaces {first} and {second} exist already and are not of container {} ({}): remove one \
         of them",
        call.env.container_id, call.env.ifname
    )))
}

/// Removes a device, after the chain of its name, which leads to it: newer kernels keep chains whose
/// interfaces are gone.
///
/// # Errors
/// Code 999 when one of them stays.
pub(super) fn remove(node: &mut Space, device: &Device) -> Result<(), CniError> {
    let (table, chain) = (names::NFT_PLUGINS, device.link.name.as_str());
    if node.kernel(|k| k.nft()?.forward(table, chain))?.is_some() {
        node.kernel(|k| k.nft()?.remove_chain(table, chain))?;
    }
    node.kernel(|k| k.remove_link(device.index))
}

/// Removes the chains of an attachment whose device somebody else has removed.
///
/// # Errors
/// Code 999 when one of them stays.
pub(super) fn remove_chains(call: &Call, node: &mut Space) -> Result<(), CniError> {
    let host = names::host_veth(&call.env.container_id, &call.env.ifname);
    for name in candidates(call) {
        let (table, chain) = (names::NFT_PLUGINS, name.as_str());
        if node.kernel(|k| k.nft()?.forward(table, chain))?.is_some_and(|c| c.from == host) {
            node.kernel(|k| k.nft()?.remove_chain(table, chain))?;
        }
    }
    Ok(())
}

/// Removes the devices of this network whose attachments are not among the valid ones. Not those of an
/// ADD that has not ended.
///
/// # Errors
/// Code 999 when one of them stays; all others are removed.
pub(super) fn collect(call: &Call, valid: &BTreeSet<Owner>) -> Result<(), CniError> {
    let network = &call.conf.name;
    let kept: BTreeSet<String> =
        valid.iter().map(|o| note(network, &o.container_id, &o.ifname)).collect();
    let mut node = Space::node()?;
    let (prefix, adds) = (network_note(network), Adds::at(&call.paths));
    let mut first = None;
    for device in node.kernel(|k| k.devices())? {
        if !device.is_ifb() || kept.contains(&device.alias) {
            continue;
        }
        let whose = device.alias.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once('/'));
        let Some((id, ifname)) = whose else { continue };
        let Some(_quiet) = adds.keep_out(&Owner::new(id, ifname)) else { continue };
        let name = device.link.name.as_str();
        // Another ADD of the attachment may have made it anew meanwhile.
        let now = node.kernel(|k| k.device(name))?.filter(|now| now.alias == device.alias);
        first = first.or(now.and_then(|now| remove(&mut node, &now).err()));
    }
    first.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit_and_tell_apart() {
        let long = "a".repeat(250);
        let longer = "a".repeat(251);
        assert!(note(&long, &long, "123456789012345").len() < 256);
        assert_ne!(note(&long, "c", "e"), note(&longer, "c", "e"));
        assert_ne!(note("a", "b", "c"), note("ab", "", "c"));
        assert!(note("a", "b", "c").starts_with(&network_note("a")));
        assert!(!note("ab", "b", "c").starts_with(&network_note("a")));
    }
}
