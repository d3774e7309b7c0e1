//! Type `bandwidth`: limits of rate for a pod, in a chain after the plugin that made its interface.
//!
//! What goes to the pod is limited where it leaves the node's end of the veth pair. What comes from
//! it goes through a device of its own (`ifb`), where it leaves again and can be limited, and comes
//! back from there as if it had just come in, but for one thing: it passes no nftables chain of
//! hook ingress any more.

mod conf;
mod device;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_kernel::tc::{End, Limit, Selection};
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
        let mut rollback = Rollback::new();
        match limit(call, &limits, result, &mut rollback) {
            Ok(result) => {
                rollback.commit();
                Ok(result)
            }
            Err(error) => Err(rollback.fail(error)),
        }
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let mut node = Space::node()?;
        // Most pods have no limit: the way to the device is not looked for then.
        let unlimited = Limits::of(call).is_ok_and(|limits| limits.is_none());
        let host = if unlimited { None } else { what_is_left(call, &mut node)? };
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
    refuse_guarded(call, limits)?;
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
    node.kernel(|k| k.redirect(host, &ifb))?;
    let mac = node.kernel(|k| k.device(&ifb))?.and_then(|d| d.mac);
    let mac = mac.map(|m| m.to_string()).unwrap_or_default();
    Ok(Interface { name: ifb.to_string(), mac, ..Interface::default() })
}

/// Where the pod is kept to its own addresses by a chain at the ingress of its interface, which
/// what comes back from the device would not pass.
fn refuse_guarded(call: &Call, limits: &Limits) -> Result<(), CniError> {
    let records = Attachments::at(&call.paths);
    let record = records.read(&call.env.container_id, &call.env.ifname)?;
    if record.is_none() || limits.from.is_none() {
        return Ok(());
    }
    Err(CniError::invalid_config(format!(
        "egressRate cannot be had on network {}, which the agent serves: the way that limited packets \
         take does not pass the rules that keep a pod to its own addresses; remove egressRate and \
         egressBurst",
        call.conf.name
    )))
}

/// Takes the limits away: first the way to the device, so that the pod goes on sending while it
/// lives, then the device, with which its queue and its chain go.
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
        Some(device) => node.kernel(|k| k.remove_link(device.index)),
        None => Ok(()),
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
    let name = IfName::new(&ifb.name).map_err(|e| CniError::internal(e.to_string()))?;
    if !ifb.up {
        return Err(CniError::internal(format!("interface {name} is down: the pod cannot send")));
    }
    let selection = limits.selection(End::Destination);
    check_limit(&mut node, &name, whole_packets(limit, mtu), selection.as_ref())?;
    if !node.kernel(|k| k.redirects(&host, &name))? {
        return Err(CniError::internal(format!(
            "what the pod sends does not go through {name}: the filter at the ingress of {host} is \
             missing or changed"
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
