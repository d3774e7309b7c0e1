//! Masquerade that somebody flushed: what the living attachments of a network had, as their leases
//! tell it, and of other networks as the runtime's results do, is brought back by the ADD that finds
//! the network's chain missing.

use std::net::IpAddr;

use causeway_cni_spec::{CniError, HostLocal};
use causeway_desired::pod::host_objects;
use causeway_ipam::Owner;
use causeway_model::{Desired, Object, Observed};
use causeway_types::IfName;

use super::del::{Way, by_owner, record_of};
use crate::attachment::context;
use crate::call::Call;
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::restore;
use crate::space::{Failed, Space, warn, warn_not_back};
use crate::store::LeaseDir;

/// Brings the masquerade of the network's other attachments back. What fails is said on standard
/// error: it is not the matter of the attachment that is being made.
pub(crate) fn masquerade(call: &Call, way: &Way, ipam: &Ipam, node: &mut Space) {
    by_leases(call, way, ipam, node);
    warn_not_back(&restore::cached(&call.paths, node, Some(&call.owner())));
}

fn by_leases(call: &Call, way: &Way, ipam: &Ipam, node: &mut Space) {
    let Ipam::HostLocal { conf, leases } = ipam else { return };
    if !way.ip_masq {
        return;
    }
    let all = match LeaseDir::open_existing(&leases.dir) {
        Ok(Some(dir)) => dir.load().map(|loaded| {
            let all = loaded.state.leases().map(|(ip, owner)| (ip, owner.clone()));
            by_owner(all.collect())
        }),
        Ok(None) => return,
        Err(e) => Err(e),
    };
    match all {
        Ok(all) => {
            for (owner, ips) in all.iter().filter(|(owner, _)| **owner != call.owner()) {
                if let Err(e) = one(call, way, conf, node, owner, ips) {
                    warn(&not_back(&owner.container_id, &e));
                }
            }
        }
        Err(e) => warn(&not_back("others", &e)),
    }
}

fn not_back(whose: &str, error: &CniError) -> String {
    format!("the masquerade of container {whose} is not brought back: {error}")
}

fn one(
    call: &Call,
    way: &Way,
    ranges: &HostLocal,
    node: &mut Space,
    owner: &Owner,
    ips: &[IpAddr],
) -> Result<(), CniError> {
    // What others made, they masquerade in their own way.
    let Ok(ifname) = IfName::new(&owner.ifname) else { return Ok(()) };
    let end = Derived::new(&owner.container_id, ifname).host_ifname;
    if !is_up(node, &end)? {
        return Ok(());
    }
    let Some(record) = record_of(call, way, ranges, owner, ips) else { return Ok(()) };
    let mut tables = Desired::default();
    for (_, entry) in host_objects(&record, &context(false)).iter() {
        if matches!(entry.object, Object::Table(_)) {
            tables.add(entry.owner.clone(), entry.why.clone(), entry.object.clone());
        }
    }
    node.make(&tables, &Observed::default()).map_err(|e: Failed| node.error(&e))?;
    // DEL sets the interface down, then takes the elements, then the interface: one that went by
    // before they were here has set it down.
    if is_up(node, &end)? { Ok(()) } else { node.unmake(&tables) }
}

/// DEL sets an attachment's end down before it takes anything away.
pub(crate) fn is_up(node: &mut Space, name: &IfName) -> Result<bool, CniError> {
    Ok(node.link(name)?.is_some_and(|link| link.up))
}
