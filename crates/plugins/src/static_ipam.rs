//! Type `static`: address management alone, for other plugins that call it.

use causeway_cni_spec::{CniError, CniResult};

use crate::Plugin;
use crate::call::Call;
use crate::ipam::{Ipam, STATIC};
use crate::leases::Look;

/// Type `static`.
pub(crate) struct StaticPlugin;

impl Plugin for StaticPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        Ok(own(call)?.add(call, Look::Closely)?.0)
    }

    /// Nothing is kept.
    fn del(&self, _: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        own(call)?.check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        own(call).map(drop).map_err(|e| CniError::not_available(e.msg))
    }

    /// Nothing is kept.
    fn gc(&self, _: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn is_collected(&self) -> bool {
        false
    }
}

/// Called as static by whatever name the configuration has for it.
fn own(call: &Call) -> Result<Ipam, CniError> {
    let mut call = call.clone();
    match &mut call.conf.ipam {
        Some(ipam) => STATIC.clone_into(&mut ipam.plugin_type),
        None => {
            return Err(CniError::invalid_config(
                "key \"ipam\" is missing: static reads its addresses there",
            ));
        }
    }
    Ipam::of(&call, None)
}
