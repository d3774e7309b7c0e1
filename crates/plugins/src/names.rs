//! What is derived from an attachment's name, so that a fresh process finds it again without a
//! record.

use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_types::{IfName, Mac};

use crate::call::Call;

/// Names and addresses that belong to one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Derived {
    /// The interface in the pod.
    pub ifname: IfName,
    /// The node's end of the veth pair.
    pub host_ifname: IfName,
    /// MAC of the pod's end, unless another was asked for.
    pub mac: Mac,
    /// MAC of the node's end.
    pub host_mac: Mac,
}

impl Derived {
    /// For the attachment of a call.
    ///
    /// # Errors
    /// Code 4 for an interface name that the kernel would not take.
    pub(crate) fn of(call: &Call) -> Result<Self, CniError> {
        let ifname = IfName::new(&call.env.ifname)
            .map_err(|e| CniError::environment(format!("CNI_IFNAME: {e}")))?;
        Ok(Self::new(&call.env.container_id, ifname))
    }

    /// The MAC of the pod's end follows the pod's addresses: the first of IPv4, or else the first.
    pub(crate) fn follow(&mut self, addresses: impl Iterator<Item = IpAddr> + Clone) {
        let first = addresses.clone().find(IpAddr::is_ipv4).or(addresses.clone().next());
        self.mac = first.map_or(self.mac, Mac::of_address);
    }

    /// For an attachment by its name.
    pub(crate) fn new(container_id: &str, ifname: IfName) -> Self {
        let mac = |end: &str| Mac::derived(&format!("{end}/{container_id}/{ifname}"));
        Self {
            host_ifname: causeway_types::names::host_veth(container_id, ifname.as_str()),
            mac: mac("pod"),
            host_mac: mac("host"),
            ifname,
        }
    }
}
