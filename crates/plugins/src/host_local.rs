//! Type `host-local`: address management alone, for other plugins that call it.

use std::collections::BTreeSet;

use causeway_cni_spec::{CniError, CniResult};
use causeway_ipam::Owner;

use crate::Plugin;
use crate::call::Call;
use crate::ipam::{HOST_LOCAL, Ipam};
use crate::leases::Look;

/// Type `host-local`.
pub(crate) struct HostLocalPlugin;

impl Plugin for HostLocalPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let (result, in_flight) = own(call)?.add(call, Look::Closely)?;
        in_flight.until_exit();
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        own(call)?.del(call, &[])
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        own(call)?.check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        own(call)?.status(call, Vec::new())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let Ipam::HostLocal { leases, conf } = own(call)? else { return Ok(()) };
        let stale = leases.stale(&valid_owners(call)?, conf.sets.len())?;
        for (ip, owner) in &stale.leases {
            leases.release_if(*ip, owner)?;
        }
        leases.refuse_doubtful(&stale.doubtful)
    }

    fn is_collected(&self) -> bool {
        false
    }
}

/// Called as host-local by whatever name the configuration has for it.
fn own(call: &Call) -> Result<Ipam, CniError> {
    let mut call = call.clone();
    match &mut call.conf.ipam {
        Some(ipam) => HOST_LOCAL.clone_into(&mut ipam.plugin_type),
        None => {
            return Err(CniError::invalid_config(
                "key \"ipam\" is missing: host-local reads its ranges there",
            ));
        }
    }
    Ipam::of(&call, None)
}

/// The attachments that GC must leave alone.
///
/// # Errors
/// Code 7 when the runtime listed none at all, not even an empty list.
pub(crate) fn valid_owners(call: &Call) -> Result<BTreeSet<Owner>, CniError> {
    let valid = call.conf.gc_attachments()?;
    Ok(valid.iter().map(|a| Owner::new(&a.container_id, &a.ifname)).collect())
}
