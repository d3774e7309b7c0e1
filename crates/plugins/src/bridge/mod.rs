//! Type `bridge`: a bridge per node that holds the gateway's address, a veth pair per pod.
//!
//! Without an agent, or for a network that the agent does not serve, it does what the reference
//! plugin does. For a served network the port is isolated and guarded, the node answers for the
//! pod's addresses, and a record is written.

pub(crate) mod add;
mod check;
pub(crate) mod conf;
pub(crate) mod del;
pub(crate) mod mend;
pub(crate) mod objects;

use causeway_cni_spec::{CniError, CniResult};

use crate::Plugin;
use crate::call::Call;
use crate::ipam::Ipam;
use crate::node::Served;
use crate::record::Attachments;

/// Type `bridge`.
pub(crate) struct BridgePlugin;

impl Plugin for BridgePlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        add::add(call)
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        del::del(call, &del::Way::of(&conf::BridgeConf::parse(call)?))
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        check::check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        conf::BridgeConf::parse(call).map_err(unavailable)?;
        let served = Served::if_served(call).map_err(unavailable)?;
        let ipam = Ipam::of(call, served.as_ref().map(|s| s.lease_record(call)));
        let mut ipam = ipam.map_err(unavailable)?;
        if let Some(served) = &served {
            served.refuse_others_networks(call, ipam.networks()).map_err(unavailable)?;
            ipam = served.shape(call, ipam).map_err(unavailable)?;
        }
        let records = served.map(|_| Attachments::at(&call.paths).files());
        ipam.status(call, records.unwrap_or_default())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        del::gc(call, &del::Way::of(&conf::BridgeConf::parse(call)?))
    }
}
