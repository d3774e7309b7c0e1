//! Type `bandwidth`: limits of rate for a pod, in a chain after the plugin that made its interface.
//!
//! What goes to the pod is limited where it leaves the node's end of the veth pair. What comes from
//! it goes through a device of its own (`ifb`), where it leaves again and can be limited, and comes
//! back from there as if it had just come in, but for one thing: it passes no nftables chain of
//! hook ingress any more. On a network that the agent serves such a chain keeps the pod to its own
//! addresses, so there the way to the device begins behind it.

mod conf;
mod device;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_kernel::device::Device;
use causeway_kernel::nft::Forward;
use causeway_kernel::tc::{End, Limit, Selection};
use causeway_types::state::AttachmentRecord;
use causeway_types::{IfName, names};

use self::conf::{Limits, whole_packets};
use crate::Plugin;
use crate::call::Call;
use crate::chain::host_end;
use crate::host_local::valid_owners;
use crate::record::Attachments;
use crate::rollback::Rollback;
use crate::space::Space;

/// Type `bandwidth`.
pub(crate) struct BandwidthPlugin;

impl Plugin for BandwidthPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let limits = Limits::of(call)?;
        let result = call.conf.require_prev_result()?.clone();
        if limits.is_none() {
            return Ok(result);
        }
        Rollback::guard(|rollback| limit(call, &limits, result, rollback))
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let mut node = Space::node()?;
        // Most pods have no limit: the way to the device is not looked for then.
        if Limits::of(call).is_ok_and(|limits| limits.is_none()) {
            let device = device::find(call, &mut node)?;
            return device.map_or(Ok(()), |device| device::remove(&mut node, &device));
        }
        let host = what_is_left(call, &mut node)?;
        unlimit(call, &mut node, host.as_ref())
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let limits = Limits::of(call)?;
        call.conf.require_prev_result()?;
        if limits.is_none() { Ok(()) } else { check(call, &limits) }
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        Limits::of(call).map(drop).map_err(|e| CniError::not_available(e.msg))
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        device::collect(call, &valid_owners(call)?)
    }
}

/// The node's end of the pod's interface: the one that the result names or, where it names none,
/// the one with the name that is derived for it.
fn host_of(
    call: &Call,
    result: &CniResult,
    node: &mut Space,
    pod: &mut Space,
) -> Result<Option<IfName>, CniError> {
    let mut named = result.clone();
    let derived = names::host_veth(&call.env.container_id, &call.env.ifname);
    named.interfaces.push(Interface { name: derived.to_string(), ..Interface::default() });
    host_end(call, &named, node, pod)
}

fn existing_host(call: &Call, node: &mut Space) -> Result<IfName, CniError> {
    let netns = call.netns()?;
    let result = call.conf.require_prev_result()?;
    host_of(call, result, node, &mut Space::pod(&netns)?)?.ok_or_else(|| {
        CniError::invalid_config(format!(
            "prevResult names no interface on the node that is the other end of {} in {netns}: only \
             interfaces with a veth pair can be limited; put \"bandwidth\" after the plugin that \
             makes one, such as \"bridge\" or \"ptp\"",
            call.env.ifname
        ))
    })
}

/// For DEL: `None` when the pair is gone, or not to be found.
fn what_is_left(call: &Call, node: &mut Space) -> Result<Option<IfName>, CniError> {
    let Some(mut pod) = Space::what_is_left(call)? else { return Ok(None) };
    let none = CniResult::default();
    host_of(call, call.conf.prev_result.as_ref().unwrap_or(&none), node, &mut pod)
}

fn limit(
    call: &Call,
    limits: &Limits,
    mut result: CniResult,
    rollback: &mut Rollback,
) -> Result<CniResult, CniError> {
    let mut node = Space::node()?;
    let host = existing_host(call, &mut node)?;
    let link = node.link(&host)?;
    let mtu = link.and_then(|l| l.mtu).map_or(1500, |m| m.get());
    let again = (call.clone(), host.clone());
    refuse_others(&mut node, &host, limits)?;
    rollback.on_failure(move || unlimit(&again.0, &mut Space::node()?, Some(&again.1)));
    // What an ADD left that was killed.
    unlimit(call, &mut node, Some(&host))?;
    if let Some(limit) = limits.towards {
        let selection = limits.selection(End::Source);
        node.kernel(|k| k.set_limit(&host, whole_packets(limit, mtu), selection.as_ref()))?;
    }
    if let Some(limit) = limits.from {
        let interface = detour_through_ifb(call, &mut node, &host, mtu, limits, limit)?;
        result.interfaces.push(interface);
    }
    Ok(result)
}

/// A queue that somebody else has put there is not ours to remove.
fn refuse_others(node: &mut Space, host: &IfName, limits: &Limits) -> Result<(), CniError> {
    if limits.towards.is_none() {
        return Ok(());
    }
    match node.kernel(|k| k.root_queue(host))? {
        Some(root) if !root.is_limit() => Err(CniError::internal(format!(
            "interface {host} has a root queue already, {} {:x}:, that this plugin did not make: \
             remove it (`tc qdisc del dev {host} root`), or the limit towards the pod",
            root.kind,
            root.handle >> 16
        ))),
        _ => Ok(()),
    }
}

/// Everything is there before the first packet takes this way.
fn detour_through_ifb(
    call: &Call,
    node: &mut Space,
    host: &IfName,
    mtu: u32,
    limits: &Limits,
    limit: Limit,
) -> Result<Interface, CniError> {
    let ifb = device::make(call, node, mtu)?;
    let selection = limits.selection(End::Destination);
    node.kernel(|k| k.set_limit(&ifb, whole_packets(limit, mtu), selection.as_ref()))?;
    node.kernel(|k| k.set_up(&ifb))?;
    match guarded(call)? {
        Some(_) => redirect_guarded(node, host, &ifb)?,
        None => node.kernel(|k| k.redirect(host, &ifb))?,
    }
    let mac = node.kernel(|k| k.device(ifb.as_str()))?.and_then(|d| d.link.mac);
    let mac = mac.map(|m| m.to_string()).unwrap_or_default();
    Ok(Interface { name: ifb.to_string(), mac, ..Interface::default() })
}

/// The attachment's record, which there is on a network that the agent serves: there a chain at the
/// ingress of the interface keeps the pod to its own addresses, and what comes back from the device
/// passes none. So nftables does the redirecting, after that chain.
fn guarded(call: &Call) -> Result<Option<AttachmentRecord>, CniError> {
    Attachments::at(&call.paths).read(&call.env.container_id, &call.env.ifname)
}

/// The index of the device, and its name as that of the chain.
fn redirect_guarded(node: &mut Space, host: &IfName, ifb: &IfName) -> Result<(), CniError> {
    let to = node.kernel(|k| k.link_index(ifb))?.unwrap_or(0);
    let forward = Forward { from: host.clone(), to };
    let why = "what the pod sends goes through the device that limits it";
    node.kernel(|k| k.nft()?.add_forward(names::NFT_PLUGINS, ifb.as_str(), &forward, why))
}

fn is_redirected(
    call: &Call,
    node: &mut Space,
    host: &IfName,
    ifb: &Device,
    name: &IfName,
) -> Result<bool, CniError> {
    if guarded(call)?.is_none() {
        return node.kernel(|k| k.redirects(host, name));
    }
    let chain = node.kernel(|k| k.nft()?.forward(names::NFT_PLUGINS, ifb.link.name.as_str()))?;
    Ok(chain == Some(Forward { from: host.clone(), to: ifb.index }))
}

/// Takes the limits away: first the way to the device, so that the pod goes on sending while it
/// lives, then the device, with which its queue goes. It is the last to go, because it is what tells
/// the next DEL or GC that there is something left.
fn unlimit(call: &Call, node: &mut Space, host: Option<&IfName>) -> Result<(), CniError> {
    let device = device::find(call, node)?;
    if let Some(host) = host {
        let through = device.as_ref().map_or(0, |d| d.index);
        node.kernel(|k| k.remove_redirect(host, through))?;
        if node.kernel(|k| k.root_queue(host))?.is_some_and(|root| root.is_limit()) {
            node.kernel(|k| k.remove_root_queue(host))?;
        }
    }
    match device {
        Some(device) => device::remove(node, &device),
        None => device::remove_chains(call, node),
    }
}

fn check(call: &Call, limits: &Limits) -> Result<(), CniError> {
    let mut node = Space::node()?;
    let host = existing_host(call, &mut node)?;
    let mtu = node.link(&host)?.and_then(|l| l.mtu).map_or(1500, |m| m.get());
    if let Some(limit) = limits.towards {
        let selection = limits.selection(End::Source);
        check_limit(&mut node, &host, whole_packets(limit, mtu), selection.as_ref())?;
    }
    let Some(limit) = limits.from else { return Ok(()) };
    let ifb = device::find(call, &mut node)?.ok_or_else(|| {
        let [first, _] = device::candidates(call);
        CniError::internal(format!(
            "interface {first}, which limits what the pod sends, is missing"
        ))
    })?;
    let name = ifb.link.name.clone();
    if !ifb.link.up {
        return Err(CniError::internal(format!("interface {name} is down: the pod cannot send")));
    }
    let selection = limits.selection(End::Destination);
    check_limit(&mut node, &name, whole_packets(limit, mtu), selection.as_ref())?;
    if !is_redirected(call, &mut node, &host, &ifb, &name)? {
        return Err(CniError::internal(format!(
            "what the pod sends does not go through {name}: the filter at the ingress of {host}, or \
             the chain of that name, is missing or changed"
        )));
    }
    Ok(())
}

fn check_limit(
    node: &mut Space,
    dev: &IfName,
    limit: Limit,
    selection: Option<&Selection<'_>>,
) -> Result<(), CniError> {
    let wrong = |what: &str| Err(CniError::internal(format!("interface {dev}: {what}")));
    let Some(root) = node.kernel(|k| k.root_queue(dev))? else {
        return wrong("its limit is missing");
    };
    if !root.is_for(selection.is_some()) {
        return wrong(&format!("its root queue is {} {:x}:", root.kind, root.handle >> 16));
    }
    if !limit.is(&root) {
        return wrong(&format!(
            "its limit is {} bytes a second (burst {} ticks), not {} (burst {} bytes)",
            root.rate, root.buffer, limit.rate, limit.burst
        ));
    }
    if let Some(selection) = selection
        && !node.kernel(|k| k.selects(dev, selection))?
    {
        return wrong("its filters do not select the configured subnets");
    }
    Ok(())
}
