//! Type `macvlan`: the pod has an interface of its own on a network of the node, beside the node's.

mod conf;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_kernel::device::{Device, Mode, NewMacvlan};
use causeway_model::{Link, Object};
use causeway_plan::Op;
use causeway_types::Mac;

use crate::Plugin;
use crate::attachment;
use crate::call::Call;
use crate::inside::{self, LinkRecord, LinkRecords};
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::rollback::Rollback;
use crate::space::{Failed, Space};
use conf::MacvlanConf;

/// The type's name.
pub(crate) const KIND: &str = "macvlan";

/// Type `macvlan`.
pub(crate) struct MacvlanPlugin;

impl Plugin for MacvlanPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        Rollback::guard(|rollback| attach(call, rollback))
    }

    /// Works without the device below, which may be gone.
    fn del(&self, call: &Call) -> Result<(), CniError> {
        inside::del(call, KIND, undo)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        let conf = MacvlanConf::parse(call).map_err(unavailable)?;
        inside::refuse_served(call).map_err(unavailable)?;
        if !conf.link_in_container {
            master(&conf, &mut Space::node()?).map_err(unavailable)?;
        }
        let ipam = Ipam::of(call, None).map_err(unavailable)?;
        ipam.status(call, LinkRecords::at(&call.paths).files())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        inside::gc(call, KIND, undo)
    }
}

/// The device below, in the namespace where it is looked for.
fn master(conf: &MacvlanConf, space: &mut Space) -> Result<Device, CniError> {
    let name = match &conf.master {
        Some(name) => name.clone(),
        None => match space.default_device()? {
            Some(name) => name.to_string(),
            None => {
                return Err(CniError::invalid_config(
                    "key \"master\" is missing, and there is no default route whose interface could \
                     be it: name the interface of the network that pods are to join",
                ));
            }
        },
    };
    let place = if conf.link_in_container { "pod" } else { "node" };
    let found = inside::device(space, &name)?.ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"master\" is {name:?}: the {place} has no such interface (link not found); see `ip \
             link`"
        ))
    })?;
    match (conf.mtu, found.link.mtu) {
        (Some(asked), Some(most)) if asked > most => Err(CniError::invalid_config(format!(
            "key \"mtu\" is {}: invalid MTU, must be 0 to {}, which is that of interface {name}",
            asked.get(),
            most.get()
        ))),
        _ => Ok(found),
    }
}

fn attach(call: &Call, rollback: &mut Rollback) -> Result<CniResult, CniError> {
    let conf = MacvlanConf::parse(call)?;
    let ends = Derived::of(call)?;
    let mut node = Space::node()?;
    let mut pod = Space::pod(&call.netns()?)?;
    let ipam = Ipam::of(call, None)?;
    inside::begin(call, &ipam, undo)?;
    let lower = master(&conf, if conf.link_in_container { &mut pod } else { &mut node })?;
    let passthru = conf.properties.mode == Mode::Passthru;
    let asked = call.mac()?;
    let mac = asked.or(Some(ends.mac).filter(|_| !passthru));
    let get = |node: &mut Space, rollback: &mut Rollback| {
        attachment::addresses(call, &ipam, node, &ends, &|| ipam.del(call, &[]), rollback)
    };
    let early = if inside::needs_link(&ipam) { None } else { Some(get(&mut node, rollback)?) };

    inside::refuse_taken(&mut pod, call)?;
    // In mode passthru it is born with that of the device below.
    let born_with = mac.filter(|_| !passthru);
    let record = LinkRecord { mac: born_with, ..inside::new_record(call, KIND, &ends)? };
    let records = LinkRecords::at(&call.paths);
    let (paths, noted) = (call.paths.clone(), record.clone());
    // Refused, it is not there: one that is of another address would be another's.
    rollback.on_failure(move || inside::undo_and_forget(&paths, &noted, undo));
    records.write(&record)?;
    make(&conf, &mut node, &mut pod, &ends, &lower, mac)?;

    let (given, in_flight) = early.map_or_else(|| get(&mut node, rollback), Ok)?;
    let link = settle(call, &mut pod, &lower, asked, &given)?;
    records.write(&LinkRecord { mac: link.mac, pending: false, ..record })?;
    in_flight.until_exit();
    Ok(inside::answer(call, &link, "", given))
}

/// Gives the new device what is asked for and sets it up. Answers what it is then.
fn settle(
    call: &Call,
    pod: &mut Space,
    lower: &Device,
    asked: Option<Mac>,
    given: &CniResult,
) -> Result<Link, CniError> {
    let present = inside::present(call, pod)?;
    let link = Link { mac: asked.or(present.link.mac), ..present.link.clone() };
    let desired = inside::pod_objects(call, &link, given)?;
    inside::set_up(pod, &present.link, &desired)?;
    if lower.running {
        pod.wait_running(&link.name)?;
        let addresses: Vec<_> = given.ips.iter().map(|ip| ip.address.addr()).collect();
        pod.wait_local(&link.name, &addresses)?;
    }
    Ok(link)
}

fn make(
    conf: &MacvlanConf,
    node: &mut Space,
    pod: &mut Space,
    ends: &Derived,
    lower: &Device,
    mac: Option<Mac>,
) -> Result<(), CniError> {
    let target = pod.handle().netns().try_clone();
    let target = target.map_err(|e| CniError::internal(e.to_string()))?;
    let from = if conf.link_in_container { pod } else { node };
    let new = NewMacvlan {
        name: &ends.ifname,
        lower: lower.index,
        netns: &target,
        mac,
        mtu: conf.mtu,
        properties: conf.properties,
    };
    let what = format!("make a macvlan device on {}", lower.link.name);
    let how = "a device in mode \"passthru\" must be the only one, one of another use (a bridge's \
               port, a device with no Ethernet) can carry none, and an address can be there once";
    from.handle().make_macvlan(&new).map_err(|refusal| from.refused(&what, &refusal, how))
}

/// Removes the pod's interface: a macvlan device that has the address that is noted, if one is.
fn undo(record: &LinkRecord) -> Result<(), CniError> {
    let Some(mut pod) = inside::pod_of(record)? else { return Ok(()) };
    let Some(found) = inside::device(&mut pod, record.ifname.as_str())? else { return Ok(()) };
    let is_macvlan = found.macvlan.is_some();
    if !is_macvlan || (record.mac.is_some() && record.mac != found.link.mac) {
        return Ok(());
    }
    pod.apply(&[Op::Remove(Object::Link(found.link))]).map_err(|e| pod.error(&Failed::Op(e)))
}

fn check(call: &Call) -> Result<(), CniError> {
    let conf = MacvlanConf::parse(call)?;
    let (mut pod, found) = inside::check(call)?;
    let changed = |what: String| {
        CniError::internal(format!("interface {} is not as it was made: {what}", call.env.ifname))
    };
    let mut node = Space::node()?;
    let lower = master(&conf, if conf.link_in_container { &mut pod } else { &mut node })?;
    let properties = found.macvlan.ok_or_else(|| changed("no macvlan device".to_owned()))?;
    if properties.mode != conf.properties.mode {
        return Err(changed(format!(
            "mode is {:?}, the configuration says {:?}",
            properties.mode, conf.properties.mode
        )));
    }
    let queue = conf.properties.bc_queue_len;
    if queue.is_some() && queue != properties.bc_queue_len {
        return Err(changed(format!("bcqueuelen is {:?}", properties.bc_queue_len)));
    }
    if found.lower != Some(lower.index) {
        return Err(changed(format!("it is not on {}", lower.link.name)));
    }
    // The one that the result names, which a plugin after this one may have changed.
    let previous = call.conf.require_prev_result()?;
    let own = |i: &&Interface| i.name == call.env.ifname && !i.sandbox.is_empty();
    let told = previous.interfaces.iter().find(own).and_then(|i| i.mtu);
    if told.is_some() && told != found.link.mtu.map(|mtu| mtu.get()) {
        return Err(changed(format!("MTU is {:?}", found.link.mtu.map(|m| m.get()))));
    }
    Ok(())
}
