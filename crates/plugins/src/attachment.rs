//! Putting an attachment into the two namespaces, and taking it out again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_desired::pod::{PodContext, host_objects, mac_check};
use causeway_kernel::vlan::PortVlan;
use causeway_model::{Desired, Key, Link, Object, Observed, Owner};
use causeway_types::state::AttachmentRecord;
use causeway_types::{IfName, Mac, Mtu, names};

use crate::call::Call;
use crate::ipam::Ipam;
use crate::leases::Look;
use crate::leave;
use crate::names::Derived;
use crate::node::Served;
use crate::paths::Paths;
use crate::record::Attachments;
use crate::rollback::Rollback;
use crate::space::Space;
use crate::store::InFlight;

/// What an attachment puts where.
pub(crate) struct Wiring<'a> {
    /// What the node's namespace holds for it.
    pub host: Desired,
    /// What the pod's namespace holds.
    pub pod: Desired,
    /// The VLANs of the node's end; `None`: as its bridge gives them.
    pub vlans: Option<&'a BTreeSet<PortVlan>>,
    /// The node, when a record is to be kept and the agent to be told.
    pub served: Option<&'a Served>,
    /// The pair is there already: all but what goes with addresses is done.
    pub paired: bool,
    /// Neighbours are told whose the addresses are now. On a served network nobody remembers.
    pub announce: bool,
}

/// The node as `causeway-desired` needs to know it.
pub(crate) fn context(served: bool) -> PodContext {
    PodContext { served, hairpin: false, route_protocol: names::ROUTE_PROTOCOL }
}

/// Gets the addresses, with their return noted. Where an earlier attachment of the same name still
/// has some, though its interface is gone (an ADD that was killed, a container without a DEL),
/// `clear` removes what is left of it first.
///
/// # Errors
/// As [`Ipam::add`] and `clear`; code 999 when the IPAM plugin gave none.
pub(crate) fn addresses(
    call: &Call,
    ipam: &Ipam,
    node: &mut Space,
    ends: &Derived,
    clear: &dyn Fn() -> Result<(), CniError>,
    rollback: &mut Rollback,
) -> Result<(CniResult, InFlight), CniError> {
    let known = node.link(&ends.host_ifname)?.is_some();
    let look = if known { Look::Closely } else { Look::ForMarks };
    let given = match obtain(call, ipam, look, rollback) {
        Err(_) if leave::finish_all(&call.paths) => obtain(call, ipam, Look::Closely, rollback)?,
        Err(_) if !ipam.held(call)?.is_empty() && is_abandoned(call, node, ends)? => {
            clear()?;
            obtain(call, ipam, Look::Closely, rollback)?
        }
        other => other?,
    };
    if !matches!(ipam, Ipam::None) && given.0.ips.is_empty() {
        return Err(CniError::internal("the IPAM plugin returned no address"));
    }
    not_the_nodes(call, ipam, node, given, rollback)
}

fn obtain(
    call: &Call,
    ipam: &Ipam,
    look: Look,
    rollback: &mut Rollback,
) -> Result<(CniResult, InFlight), CniError> {
    let given = ipam.add(call, look)?;
    let (call, ipam, result) = (call.clone(), ipam.clone(), given.0.clone());
    rollback.on_failure(move || ipam.give_back(&call, &result));
    Ok(given)
}

/// Passes over addresses that the node itself has, on whatever interface: nobody would reach the
/// pod. The next in turn is asked for, until one comes again.
fn not_the_nodes(
    call: &Call,
    ipam: &Ipam,
    node: &mut Space,
    mut given: (CniResult, InFlight),
    rollback: &mut Rollback,
) -> Result<(CniResult, InFlight), CniError> {
    let addresses = |result: &CniResult| -> Vec<IpAddr> {
        result.ips.iter().map(|ip| ip.address.addr()).collect()
    };
    let mut seen = BTreeSet::new();
    while let Some(ip) = node.first_local(&addresses(&given.0))? {
        if !matches!(ipam, Ipam::HostLocal { .. }) || !seen.insert(ip) {
            return Err(CniError::internal(format!(
                "address {ip} is on an interface of the node already, so that no pod can have it: \
                 remove it there (`ip addr show to {ip}`), or keep it out of the range"
            )));
        }
        ipam.give_back(call, &given.0)?;
        given = obtain(call, ipam, Look::ForMarks, rollback)?;
    }
    Ok(given)
}

/// True when neither end of the attachment exists, under whatever name others give to the node's.
fn is_abandoned(call: &Call, node: &mut Space, ends: &Derived) -> Result<bool, CniError> {
    if node.link(&ends.host_ifname)?.is_some() {
        return Ok(false);
    }
    Ok(Space::pod(&call.netns()?)?.link(&ends.ifname)?.is_none())
}

/// Refuses to go on when the node's end exists: it would be another attachment's, or one that no
/// DEL has removed.
///
/// # Errors
/// Code 999.
pub(crate) fn refuse_existing(node: &mut Space, record: &AttachmentRecord) -> Result<(), CniError> {
    // Nobody made it since its addresses were asked for: no two calls are for one container at a time
    // (CNI 1.1, "Lifecycle & Ordering").
    if !node.has_link(&record.host_ifname)? {
        return Ok(());
    }
    Err(CniError::internal(format!(
        "interface {} of container {} ({}) exists already: call DEL before another ADD",
        record.host_ifname, record.container_id, record.ifname
    )))
}

/// Makes the attachment: the record first, of which the agent is told where the pod has to wait for it,
/// then the node's side with the veth pair, then the pod's side; then the record is completed and the
/// agent's answer waited for.
///
/// # Errors
/// What failed; `rollback` then holds how to undo it.
pub(crate) fn wire(
    call: &Call,
    node: &mut Space,
    record: &AttachmentRecord,
    wiring: &Wiring<'_>,
    rollback: &mut Rollback,
) -> Result<(), CniError> {
    let records = Attachments::at(&call.paths);
    let mut asked = None;
    if let Some(served) = wiring.served {
        note_record(&records, record, rollback)?;
        served.still_has(call, &addresses_of(record))?;
        asked = served.ask(call);
    }
    // Opened first: a path that is no namespace must fail before anything is made.
    let mut pod = Space::pod(&record.netns)?;
    if !wiring.paired {
        refuse_taken_name(&mut pod, record)?;
    }
    let host = wiring.host.clone();
    let addresses = addresses_of(record);
    rollback.on_failure(move || remove(&mut Space::node()?, &host, &addresses));
    let there = if wiring.paired { links(&wiring.host) } else { Observed::default() };
    node.make(&wiring.host, &there).map_err(|e| node.error(&e))?;
    node.expect(&record.host_ifname);
    pod.expect(&record.ifname);
    if let Some(vlans) = wiring.vlans {
        // Before the pod's end is up: no frame of it meets another VLAN.
        node.set_vlans(&record.host_ifname, vlans)?;
    }
    let born = if wiring.paired { links(&wiring.pod) } else { born(&wiring.pod) };
    pod.make(&wiring.pod, &born).map_err(|e| pod.error(&e))?;
    if is_up(&wiring.pod) {
        node.wait_running(&record.host_ifname)?;
        if let Some(bridge) = &record.bridge {
            // With its first port a bridge has a carrier, and takes packets a moment later.
            node.wait_running(bridge)?;
        }
        pod.wait_running(&record.ifname)?;
        pod.wait_local(&record.ifname, &addresses_of(record))?;
    }
    let Some(served) = wiring.served else {
        return if wiring.announce { pod.announce(&record.ifname) } else { Ok(()) };
    };
    records.write(&AttachmentRecord { pending: false, ..record.clone() })?;
    served.confirm(call, asked)
}

fn note_record(
    records: &Attachments,
    record: &AttachmentRecord,
    rollback: &mut Rollback,
) -> Result<(), CniError> {
    let (again, id, ifname) =
        (records.clone(), record.container_id.clone(), record.ifname.to_string());
    rollback.on_failure(move || again.remove(&id, &ifname));
    records.write(record)
}

fn refuse_taken_name(pod: &mut Space, record: &AttachmentRecord) -> Result<(), CniError> {
    if pod.link(&record.ifname)?.is_none() {
        return Ok(());
    }
    Err(CniError::internal(format!(
        "interface {} already exists in {}: another network made it; choose another CNI_IFNAME",
        record.ifname, record.netns
    )))
}

fn is_up(pod: &Desired) -> bool {
    pod.iter().any(|(_, entry)| matches!(&entry.object, Object::Link(link) if link.up))
}

fn links(desired: &Desired) -> Observed {
    let objects = desired.iter().map(|(_, entry)| entry.object.clone());
    objects.filter(|object| matches!(object, Object::Link(_))).collect()
}

/// The pod's end as it is born with the veth pair: everything but up.
fn born(pod: &Desired) -> Observed {
    let links = pod.iter().filter_map(|(_, entry)| match &entry.object {
        Object::Link(link) => Some(Object::Link(Link { up: false, ..link.clone() })),
        _ => None,
    });
    links.collect()
}

/// The pod's addresses without their lengths.
pub(crate) fn addresses_of(record: &AttachmentRecord) -> Vec<IpAddr> {
    record.addresses.iter().map(|a| a.addr()).collect()
}

/// Takes an attachment out of the node's namespace, and with the pair the pod's end out of the
/// pod's: first the link, so that the pod sends no more, then all that was there for it, then the
/// connections of its addresses. What is gone is fine.
///
/// # Errors
/// Code 999 naming what stays; all the rest is removed.
pub(crate) fn remove(
    node: &mut Space,
    host: &Desired,
    addresses: &[IpAddr],
) -> Result<(), CniError> {
    let removed = node.unmake(host);
    removed.and(node.forget_connections(addresses))
}

/// Removes an attachment with everything that is kept of it: interfaces, rules, connections,
/// leases and, last, the record.
///
/// # Errors
/// What stays. The record and the lease are kept then, so that another DEL tries again.
pub(crate) fn detach(
    paths: &Paths,
    node: &mut Space,
    record: &AttachmentRecord,
    kept: Kept,
    release: impl FnOnce() -> Result<(), CniError>,
) -> Result<(), CniError> {
    let records = Attachments::at(paths);
    let (id, ifname) = (&record.container_id, record.ifname.as_str());
    let _lock = if kept.record { records.lock(id, ifname)? } else { None };
    let noted = if kept.record { records.read(id, ifname)? } else { None };
    if kept.record && noted.is_none() {
        // The agent, or another DEL, was quicker.
        return Ok(());
    }
    if kept.leaving && noted.as_ref().is_none_or(|noted| noted.leaving.is_none()) {
        return Ok(());
    }
    if noted.is_some_and(|noted| !noted.pending) {
        // So that an ADD after a DEL that was killed goes on by itself. A disk without room, or one
        // that is read-only, must not keep the interface.
        let _ = records.amend(&AttachmentRecord { pending: true, ..record.clone() });
    }
    let mut host = host_objects(record, &context(kept.served));
    if kept.mac_check {
        host.add(Owner::Pod(record.owner_name()), "it checks the pod's MAC", mac_check(record));
    }
    remove(node, &host, &addresses_of(record))?;
    release()?;
    records.remove(id, ifname)
}

/// What there is of an attachment beside interfaces and leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// A record on disk.
    pub record: bool,
    /// Guards, neighbours and forwarding entries of a served network.
    pub served: bool,
    /// A check of the pod's MAC on a network that is not served.
    pub mac_check: bool,
    /// It is taken away only if its record, when others are kept from it, says that it is leaving: another one of its
    /// name may have come since it was read.
    pub leaving: bool,
}

impl Kept {
    /// What goes with an attachment of a served network.
    pub(crate) const SERVED: Kept =
        Kept { record: true, served: true, mac_check: false, leaving: false };
}

/// What an earlier ADD of the same attachment left when it was killed, or what outlived a boot,
/// is removed: its record says so. A complete record of this boot is a second ADD.
///
/// # Errors
/// Code 999 for a second ADD; what could not be removed.
pub(crate) fn clear_unfinished(
    call: &Call,
    served: &Served,
    ipam: &Ipam,
    node: &mut Space,
) -> Result<(), CniError> {
    let records = Attachments::at(&call.paths);
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    if records.read(id, ifname)?.is_none() {
        return Ok(());
    }
    let _lock = records.lock(id, ifname)?;
    let Some(record) = records.read(id, ifname)? else { return Ok(()) };
    if !record.pending && record.boot_id == served.boot_id {
        return Err(CniError::internal(format!(
            "container {id} ({ifname}) is attached to network {} already, with {:?}: duplicate \
             allocation is not allowed; call DEL first",
            record.network, record.addresses
        )));
    }
    let host = host_objects(&record, &context(true));
    remove(node, &host, &addresses_of(&record))?;
    ipam.del(call, &addresses_of(&record))?;
    records.remove(id, ifname)
}

/// For records that only name what is to be removed: no MTU is looked at then.
pub(crate) fn any_mtu() -> Mtu {
    Mtu::new(Mtu::IPV6_MIN).expect("a valid MTU")
}

/// Is everything there, and as it should be? Kernel parameters are left out: others may have
/// their reasons to change them.
///
/// # Errors
/// Code 999 naming the first object that is missing or different.
pub(crate) fn verify(space: &mut Space, desired: &Desired) -> Result<(), CniError> {
    let entries = desired.iter().filter(|(key, _)| !matches!(key, Key::Sysctl(_)));
    let keys: Vec<Key> = entries.map(|(key, _)| key.clone()).collect();
    let observed = space.observe(&keys)?;
    for key in keys {
        let Some(wanted) = desired.get(&key) else { continue };
        match observed.get(&key) {
            None => return Err(space.broken(&key, &wanted.why, "is missing")),
            Some(have) if !wanted.object.satisfied_by(have) => {
                return Err(space.broken(&key, &wanted.why, "has been changed"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The attachment as CHECK should find the pod's end: with the MTU that the result of the whole chain
/// names, as a plugin after this one may have changed it. Results before version 1.1.0 name none: any is
/// right then.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn inside_of(
    record: &AttachmentRecord,
    result: &CniResult,
    pod: &mut Space,
) -> Result<AttachmentRecord, CniError> {
    let own = |i: &&Interface| i.name == record.ifname.as_str() && !i.sandbox.is_empty();
    let told = result.interfaces.iter().find(own).and_then(|i| i.mtu);
    let mtu = match told.and_then(|mtu| Mtu::new(mtu).ok()) {
        Some(mtu) => Some(mtu),
        None => pod.link(&record.ifname)?.and_then(|link| link.mtu),
    };
    Ok(AttachmentRecord { mtu: mtu.unwrap_or(record.mtu), ..record.clone() })
}

/// The result: the bridge, if there is one, the node's end and the pod's end, which holds the
/// addresses.
pub(crate) fn answer(
    record: &AttachmentRecord,
    bridge_mac: Option<Mac>,
    mut result: CniResult,
) -> CniResult {
    let interface = |name: &IfName, mac: Mac, mtu| Interface {
        name: name.to_string(),
        mac: mac.to_string(),
        mtu,
        ..Interface::default()
    };
    let mtu = Some(record.mtu.get());
    let bridge = record.bridge.as_ref().zip(bridge_mac);
    result.interfaces = bridge.map(|(name, mac)| interface(name, mac, None)).into_iter().collect();
    result.interfaces.push(interface(&record.host_ifname, record.host_mac, mtu));
    let pod = interface(&record.ifname, record.mac, mtu);
    let at = result.interfaces.len() as u32;
    result.interfaces.push(Interface { sandbox: record.netns.clone(), ..pod });
    for ip in &mut result.ips {
        ip.interface = Some(at);
    }
    result
}
