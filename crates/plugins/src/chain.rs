//! What a plugin that follows another in a chain takes from the result before it.

use causeway_cni_spec::{CniError, CniResult, IpConfig};
use causeway_types::IfName;

use crate::call::Call;
use crate::space::Space;

/// The addresses of the call's own interface: those on it, and those on none (as IPAM plugins and
/// results before 0.3.0 leave it open). Other plugins of the chain may have added more interfaces.
pub(crate) fn own_ips<'a>(
    call: &'a Call,
    result: &'a CniResult,
) -> impl Iterator<Item = &'a IpConfig> {
    result.ips.iter().filter(|ip| match result.interface_of(ip) {
        Some(interface) => interface.name == call.env.ifname && !interface.sandbox.is_empty(),
        None => ip.interface.is_none(),
    })
}

/// The node's end of the pod's interface: the one of the result's interfaces on the node that is
/// the other end of its veth pair. `None` when the pod's interface has no other end there.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn host_end(
    call: &Call,
    result: &CniResult,
    node: &mut Space,
    pod: &mut Space,
) -> Result<Option<IfName>, CniError> {
    let Ok(ifname) = IfName::new(&call.env.ifname) else { return Ok(None) };
    let Some(inside) = pod.pair(&ifname)? else { return Ok(None) };
    for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = IfName::new(&interface.name) else { continue };
        if node.pair(&name)?.is_some_and(|outside| outside.is_other_end(inside)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
