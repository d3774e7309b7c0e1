//! What the reference plugins left in nftables for one attachment, for DEL of ours after an
//! upgrade in place: chains of iptables whose names they derive from network and container, and
//! rules of their own tables that carry the attachment in their comment. Nothing else is touched.
//!
//! Where there is nothing of the kind it costs one question to the kernel.

use causeway_cni_spec::CniError;
use causeway_kernel::nft::foreign::{Change, ForeignRule};
use causeway_model::nft::foreign::{Layer, Place};
use causeway_types::Family;
use sha2::{Digest, Sha512};

use crate::space::Space;

/// Length of a chain's name (iptables takes 28 and a closing zero).
const CHAIN_NAME: usize = 28;

fn hex(text: &str, length: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    hex[..length.min(hex.len())].to_owned()
}

/// A chain of an attachment: a prefix and as much of the SHA-512 of network and container as fits.
fn chain(prefix: &str, network: &str, container_id: &str) -> String {
    let length = CHAIN_NAME - prefix.len();
    format!("{prefix}{}", hex(&format!("{network}{container_id}"), length))
}

/// Removes the port mappings that the reference made for an attachment.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn remove_ports(
    node: &mut Space,
    network: &str,
    container_id: &str,
) -> Result<(), CniError> {
    let mut chains = Vec::new();
    let mut own = Vec::new();
    for layer in [Layer::Ip, Layer::Ip6] {
        for (prefix, from) in [
            ("CNI-DN-", &["CNI-HOSTPORT-DNAT", "PREROUTING", "OUTPUT"][..]),
            ("CNI-SN-", &["CNI-HOSTPORT-SNAT", "POSTROUTING"]),
        ] {
            let name = chain(prefix, network, container_id);
            chains.push((Place::new(layer, "nat", &name), from));
        }
        for name in ["hostports", "hostip_hostports", "masquerading"] {
            own.push(Place::new(layer, "cni_hostport", name));
        }
    }
    let id = container_id.to_owned();
    remove(node, &chains, own, move |comment| comment == id)
}

/// Removes the masquerade that types `bridge` and `ptp` of the reference made for an attachment.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn remove_masquerade(
    node: &mut Space,
    network: &str,
    container_id: &str,
    ifname: &str,
) -> Result<(), CniError> {
    let name = chain("CNI-", network, container_id);
    let place = |layer| (Place::new(layer, "nat", &name), &["POSTROUTING"][..]);
    let own = vec![Place::new(Layer::Inet, "cni_plugins_masquerade", "masq_checks")];
    let start = format!("{}-{}", hex(network, 16), hex(&format!("{ifname}:{container_id}"), 16));
    let chains = [place(Layer::Ip), place(Layer::Ip6)];
    remove(node, &chains, own, move |comment| comment.starts_with(&start))
}

/// Removes the rules of an attachment's addresses that type `firewall` of the reference made.
///
/// # Errors
/// Code 999 when the kernel refuses.
pub(crate) fn remove_forward(
    node: &mut Space,
    addresses: &[std::net::IpAddr],
) -> Result<(), CniError> {
    let place =
        |ip: &std::net::IpAddr| Place::new(Layer::of(Family::of(*ip)), "filter", "CNI-FORWARD");
    let mut places: Vec<Place> = addresses.iter().map(place).collect();
    places.dedup();
    let of = |rule: &ForeignRule| rule.addresses.iter().any(|ip| addresses.contains(ip));
    let Some(there) = existing(node, places)? else { return Ok(()) };
    let mut changes = Vec::new();
    for place in there {
        changes.extend(rules(node, &place, of)?);
    }
    node.kernel(|handle| handle.nft()?.change_foreign(&changes))
}

/// Those that are there; `None` where the kernel has no nftables.
fn existing(node: &mut Space, places: Vec<Place>) -> Result<Option<Vec<Place>>, CniError> {
    use causeway_kernel::Error;
    node.kernel(|handle| match handle.nft()?.existing_chains(places) {
        Err(Error::Refused { .. }) => Ok(None),
        other => other.map(|found| Some(found).filter(|f| !f.is_empty())),
    })
}

fn rules(
    node: &mut Space,
    place: &Place,
    of: impl Fn(&ForeignRule) -> bool,
) -> Result<Vec<Change>, CniError> {
    let all = node.kernel(|handle| handle.nft()?.rules_of(place))?;
    let delete =
        |rule: ForeignRule| Change::DeleteRule { place: place.clone(), handle: rule.handle };
    Ok(all.into_iter().filter(of).map(delete).collect())
}

/// Removes chains with the rules that lead to them from other chains, and of further chains the
/// rules with the attachment's comment.
fn remove(
    node: &mut Space,
    chains: &[(Place, &[&str])],
    own: Vec<Place>,
    is_its: impl Fn(&str) -> bool,
) -> Result<(), CniError> {
    let asked = chains.iter().map(|(place, _)| place.clone()).chain(own).collect();
    let Some(there) = existing(node, asked)? else { return Ok(()) };
    let mut changes = Vec::new();
    for place in there {
        let Some((_, from)) = chains.iter().find(|(chain, _)| *chain == place) else {
            let its = |rule: &ForeignRule| rule.comment.as_deref().is_some_and(&is_its);
            changes.extend(rules(node, &place, its)?);
            continue;
        };
        for caller in *from {
            let caller = Place { chain: (*caller).to_owned(), ..place.clone() };
            changes.extend(rules(node, &caller, |rule| rule.leads_to.contains(&place.chain))?);
        }
        changes.push(Change::DeleteChain { place });
    }
    node.kernel(|handle| handle.nft()?.change_foreign(&changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen with version 1.1.1 for network `net1` and container `cid1`.
    #[test]
    fn names_are_those_of_the_reference() {
        assert_eq!(chain("CNI-", "net1", "cid1"), "CNI-e8f6f419596f7f47b3468487");
        assert_eq!(chain("CNI-DN-", "net1", "cid1"), "CNI-DN-e8f6f419596f7f47b3468");
    }
}
