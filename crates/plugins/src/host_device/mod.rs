//! Type `host-device`: an interface of the node moves into the pod, and back.
//!
//! Its name on the node is kept in its alias meanwhile, as the reference keeps it, so that either can
//! bring it back.

mod conf;

use std::time::{Duration, Instant};

use causeway_cni_spec::{CniError, CniResult};
use causeway_kernel::device::Device;
use causeway_model::{Link, LinkKind, Object};
use causeway_plan::Op;
use causeway_types::IfName;

use crate::Plugin;
use crate::attachment;
use crate::call::Call;
use crate::inside::{self, LinkRecord, LinkRecords};
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::rollback::Rollback;
use crate::space::{Failed, Space};
use conf::HostDeviceConf;

/// The type's name.
pub(crate) const KIND: &str = "host-device";
/// How long the kernel may take to bring a device home whose namespace is gone.
const HOME: Duration = Duration::from_secs(2);

/// Type `host-device`.
pub(crate) struct HostDevicePlugin;

impl Plugin for HostDevicePlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        Rollback::guard(|rollback| attach(call, rollback))
    }

    /// Works without the keys that name the device, which the runtime may pass for ADD alone.
    fn del(&self, call: &Call) -> Result<(), CniError> {
        inside::del(call, KIND, bring_home)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        let conf = HostDeviceConf::parse(call).map_err(unavailable)?;
        inside::refuse_served(call).map_err(unavailable)?;
        conf.find(&mut Space::node()?).map_err(unavailable)?;
        let ipam = Ipam::of(call, None).map_err(unavailable)?;
        ipam.status(call, LinkRecords::at(&call.paths).files())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        inside::gc(call, KIND, bring_home)
    }
}

fn attach(call: &Call, rollback: &mut Rollback) -> Result<CniResult, CniError> {
    let conf = HostDeviceConf::parse(call)?;
    let ends = Derived::of(call)?;
    let mut node = Space::node()?;
    let mut pod = Space::pod(&call.netns()?)?;
    let ipam = Ipam::of(call, None)?;
    inside::begin(call, &ipam, bring_home)?;
    let device = conf.find(&mut node)?;
    let get = |node: &mut Space, rollback: &mut Rollback| {
        attachment::addresses(call, &ipam, node, &ends, &|| ipam.del(call, &[]), rollback)
    };
    let early = if inside::needs_link(&ipam) { None } else { Some(get(&mut node, rollback)?) };

    inside::refuse_taken(&mut pod, call)?;
    if let Some((given, _)) = &early {
        // What makes no sense in the configuration must show before the device is moved.
        let link = Link { name: ends.ifname.clone(), ..device.link.clone() };
        inside::pod_objects(call, &link, given)?;
    }
    let record = record(call, &ends, &device)?;
    let records = LinkRecords::at(&call.paths);
    let (paths, noted, was) = (call.paths.clone(), record.clone(), device.link.clone());
    rollback.on_failure(move || {
        inside::undo_and_forget(&paths, &noted, bring_home)?;
        set_up_again(&was)
    });
    records.write(&record)?;
    give(&mut node, &mut pod, &device, &record)?;
    let (given, in_flight) = early.map_or_else(|| get(&mut node, rollback), Ok)?;
    let present = inside::present(call, &mut pod)?;
    let desired = inside::pod_objects(call, &present.link, &given)?;
    inside::set_up(&mut pod, &present.link, &desired)?;
    // A device of hardware may take seconds until it has a carrier, which nobody waits for.
    if inside::present(call, &mut pod)?.running {
        let addresses: Vec<_> = given.ips.iter().map(|ip| ip.address.addr()).collect();
        pod.wait_local(&present.link.name, &addresses)?;
    }
    records.write(&LinkRecord { pending: false, ..record })?;
    in_flight.until_exit();
    let pci_id = conf.bus_id.map(|(_, id)| id).unwrap_or_default();
    Ok(inside::answer(call, &present.link, &pci_id, given))
}

fn record(call: &Call, ends: &Derived, device: &Device) -> Result<LinkRecord, CniError> {
    let name = &device.link.name;
    // The reference leaves the name in the alias.
    let alias = if device.alias == name.as_str() { "" } else { &device.alias };
    Ok(LinkRecord {
        mac: device.link.mac,
        device: Some(name.clone()),
        alias: alias.to_owned(),
        hardware: is_hardware(&device.link),
        ..inside::new_record(call, KIND, ends)?
    })
}

/// Moves the device into the pod under the pod's name for it, its old name in the alias.
fn give(
    node: &mut Space,
    pod: &mut Space,
    device: &Device,
    record: &LinkRecord,
) -> Result<(), CniError> {
    let target = pod.handle().netns().try_clone();
    let target = target.map_err(|e| CniError::internal(e.to_string()))?;
    let name = &device.link.name;
    let given =
        node.handle().give_device(device.index, &target, &record.ifname, name.as_str(), None);
    given.map_err(|refusal| {
        let what = format!("move interface {name} to {}", record.netns);
        node.refused(&what, &refusal, "some kinds (bridges, tunnels) cannot leave the node")
    })
}

/// Sets a device up again that was up before it left the node.
fn set_up_again(was: &Link) -> Result<(), CniError> {
    if !was.up {
        return Ok(());
    }
    let mut node = Space::node()?;
    if inside::device(&mut node, was.name.as_str())?.is_none() {
        // Another pod was faster.
        return Ok(());
    }
    let link = |up| Object::Link(Link { up, mtu: None, mac: None, ..was.clone() });
    let op = Op::Change { from: link(false), to: link(true) };
    node.apply(&[op]).map_err(|e| node.error(&Failed::Op(e)))
}

/// Where the device of an attachment is.
enum Place {
    /// In the pod, still to be moved.
    Pod(Device),
    /// On the node, under a name that is not its own.
    Node(Device, IfName),
    /// On the node under its name, or gone.
    Home,
}

/// Brings the device of a record back under its old name, from wherever it got to. The record of a
/// call that has none names no device: then what is in the pod tells by its alias.
fn bring_home(record: &LinkRecord) -> Result<(), CniError> {
    let mut node = Space::node()?;
    let mut pod = inside::pod_of(record)?;
    let between = causeway_types::names::host_veth(&record.container_id, record.ifname.as_str());
    let name = match find(record, &between, pod.as_mut(), &mut node)? {
        Place::Pod(device) => {
            let name = old_name(&device)?;
            refuse_conflict(&mut node, &name, &device, None)?;
            let Some(pod) = pod.as_mut() else { return Ok(()) };
            let target = node.handle().netns().try_clone();
            let target = target.map_err(|e| CniError::internal(e.to_string()))?;
            pod.handle()
                .give_device(device.index, &target, &name, name.as_str(), Some(&between))
                .map_err(|refusal| {
                let what = format!("move interface {} back as {name}", device.link.name);
                pod.refused(&what, &refusal, "")
            })?;
            name
        }
        Place::Node(device, name) => {
            refuse_conflict(&mut node, &name, &device, Some(device.index))?;
            node.handle().rename_device(device.index, &name).map_err(|refusal| {
                let what = format!("rename interface {} to {name}", device.link.name);
                node.refused(&what, &refusal, "")
            })?;
            name
        }
        Place::Home => match &record.device {
            Some(name) => name.clone(),
            None => return Ok(()),
        },
    };
    // At home its name needs no other place.
    match inside::device(&mut node, name.as_str())? {
        Some(device) if device.alias == name.as_str() => {
            let what = format!("give interface {name} its alias back");
            node.handle()
                .set_device_alias(device.index, &record.alias)
                .map_err(|refusal| node.refused(&what, &refusal, ""))
        }
        _ => Ok(()),
    }
}

fn find(
    record: &LinkRecord,
    between: &IfName,
    pod: Option<&mut Space>,
    node: &mut Space,
) -> Result<Place, CniError> {
    let ours = |device: &Device| match &record.device {
        Some(name) => device.alias == name.as_str(),
        None => !device.alias.is_empty(),
    };
    let pod_is_gone = pod.is_none();
    if let Some(pod) = pod {
        // Under its own name it is where an ADD stopped that found the pod's name taken.
        let names = [Some(&record.ifname), Some(between), record.device.as_ref()];
        for name in names.into_iter().flatten() {
            if let Some(device) = inside::device(pod, name.as_str())?.filter(ours) {
                return Ok(Place::Pod(device));
            }
        }
    }
    if let Some(device) = inside::device(node, between.as_str())?.filter(ours) {
        let name = old_name(&device)?;
        return Ok(Place::Node(device, name));
    }
    let Some(name) = record.device.as_ref().filter(|_| pod_is_gone) else { return Ok(Place::Home) };
    Ok(came_home(record, name, node)?.unwrap_or(Place::Home))
}

/// A namespace that goes gives its devices of hardware back to the first namespace of all, a moment
/// later and under whatever name is free there; others it takes along.
fn came_home(
    record: &LinkRecord,
    name: &IfName,
    node: &mut Space,
) -> Result<Option<Place>, CniError> {
    let start = Instant::now();
    loop {
        let all = node.handle().devices().map_err(|e| node.unreadable(&e))?;
        if all.iter().any(|d| d.link.name == *name && d.link.mac == record.mac) {
            return Ok(None);
        }
        let strayed = all.into_iter().find(|d| {
            d.alias == name.as_str() && (is_hardware(&d.link) || d.link.mac == record.mac)
        });
        if let Some(device) = strayed {
            return Ok(Some(Place::Node(device, name.clone())));
        }
        if !record.hardware || start.elapsed() > HOME {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn old_name(device: &Device) -> Result<IfName, CniError> {
    IfName::new(&device.alias).map_err(|e| {
        CniError::internal(format!(
            "interface {} has the alias {:?}, which should be its name on the node: {e}",
            device.link.name, device.alias
        ))
    })
}

/// `own` is the device's index on the node, where it is there: one of its other names may be this.
fn refuse_conflict(
    node: &mut Space,
    name: &IfName,
    device: &Device,
    own: Option<u32>,
) -> Result<(), CniError> {
    match inside::device(node, name.as_str())? {
        Some(other) if Some(other.index) != own => Err(CniError::internal(format!(
            "interface {} cannot come back to the node under its old name {name}: another \
                 interface has that name now; rename the other (`ip link set {name} name …`), then \
                 DEL again",
            device.link.name
        ))),
        _ => Ok(()),
    }
}

fn check(call: &Call) -> Result<(), CniError> {
    HostDeviceConf::parse(call)?;
    let (_, found) = inside::check(call)?;
    let records = LinkRecords::at(&call.paths);
    let record = records.read(&call.env.container_id, &call.env.ifname)?;
    let wanted = record.and_then(|r| r.device);
    let is_its = match &wanted {
        Some(name) => found.alias == name.as_str(),
        None => !found.alias.is_empty(),
    };
    if is_its {
        return Ok(());
    }
    Err(CniError::internal(format!(
        "the alias of interface {} is {:?}, it should be its name on the node ({}): DEL cannot give \
         it back",
        call.env.ifname,
        found.alias,
        wanted.map_or_else(|| "unknown".to_owned(), |n| n.to_string())
    )))
}

/// A device of hardware, which outlives its namespace.
fn is_hardware(link: &Link) -> bool {
    link.kind == LinkKind::Other(String::new())
}
