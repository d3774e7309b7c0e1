//! Links that a pod has without an end on the node (types `macvlan` and `host-device`): the record
//! by which a later process finds them, and what both types do alike.

use std::path::PathBuf;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_ipam::Owner;
use causeway_kernel::device::Device;
use causeway_model::{Desired, Key, Link, Object, Observed};
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{IfName, Mac};
use serde::{Deserialize, Serialize};

use crate::adds::Adds;
use crate::attachment;
use crate::bridge::add::gateways_of;
use crate::bridge::objects::{self, Inside};
use crate::call::Call;
use crate::chain;
use crate::files::{self, Planned};
use crate::host_local::valid_owners;
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::node::Served;
use crate::paths::Paths;
use crate::record;
use crate::space::Space;

/// One link in a pod. Written before it is made or moved there, completed after, erased after it is
/// gone from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkRecord {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: IfName,
    /// The plugin's type.
    pub kind: String,
    /// The network's name.
    pub network: String,
    /// CNI_NETNS.
    pub netns: String,
    /// The address that tells the link from another's in the same place.
    pub mac: Option<Mac>,
    /// The node's device: its name on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<IfName>,
    /// The alias that the node's device had before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub alias: String,
    /// The device is one of hardware, which outlives its namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hardware: bool,
    /// True while ADD or DEL is under way.
    pub pending: bool,
    /// Boot ID: after a reboot it is gone.
    pub boot_id: String,
}

/// The directory of these records.
#[derive(Clone, Debug)]
pub(crate) struct LinkRecords {
    dir: PathBuf,
}

impl LinkRecords {
    /// The records at their place, beside those of attachments.
    pub(crate) fn at(paths: &Paths) -> Self {
        Self { dir: paths.attachments.with_file_name("links") }
    }

    fn path(&self, id: &str, ifname: &str) -> PathBuf {
        self.dir.join(AttachmentRecord::file_name(id, ifname))
    }

    /// The record of an attachment; `None` also for one that cannot be understood.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn read(&self, id: &str, ifname: &str) -> Result<Option<LinkRecord>, CniError> {
        let content = files::read_state(&self.path(id, ifname))?;
        let record: Option<LinkRecord> = content.and_then(|c| serde_json::from_slice(&c).ok());
        Ok(record.filter(|r| r.container_id == id && r.ifname.as_str() == ifname))
    }

    /// Writes a record in place of an older one.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn write(&self, record: &LinkRecord) -> Result<(), CniError> {
        files::make_dir(&self.dir, 0o700)?;
        let text = serde_json::to_vec(record).map_err(|e| CniError::internal(e.to_string()))?;
        files::replace(&self.path(&record.container_id, record.ifname.as_str()), &text)
    }

    /// Writes a record that was read and is to say more now, as [`record::amend`].
    ///
    /// # Errors
    /// Code 5.
    fn amend(&self, record: &LinkRecord) -> Result<(), CniError> {
        record::amend(&self.path(&record.container_id, record.ifname.as_str()), record)
    }

    /// Erases a record; one that is not there is fine.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn remove(&self, id: &str, ifname: &str) -> Result<(), CniError> {
        let path = self.path(id, ifname);
        files::remove(&files::beside(&path))?;
        files::remove(&path)
    }

    /// All records that can be understood.
    pub(crate) fn list(&self) -> Result<Vec<LinkRecord>, CniError> {
        let mut all = Vec::new();
        for name in files::names(&self.dir)? {
            if name.ends_with(".json") && !name.starts_with('.') {
                let content = files::read_state(&self.dir.join(&name))?;
                let record: Option<LinkRecord> =
                    content.and_then(|c| serde_json::from_slice(&c).ok());
                all.extend(record.filter(|r| {
                    name == AttachmentRecord::file_name(&r.container_id, r.ifname.as_str())
                }));
            }
        }
        Ok(all)
    }

    /// The files that a new record needs.
    pub(crate) fn files(&self) -> Vec<Planned> {
        ["new", "next"].map(|name| (self.dir.join(name), true)).to_vec()
    }
}

/// Undoes a failed ADD: the record goes when the link is gone.
pub(crate) fn undo_and_forget(
    paths: &Paths,
    record: &LinkRecord,
    undo: Undo,
) -> Result<(), CniError> {
    undo(record)?;
    LinkRecords::at(paths).remove(&record.container_id, record.ifname.as_str())
}

/// Takes the link of a record out of its pod. Called with a record, or for want of one with what the
/// call tells.
pub(crate) type Undo = fn(&LinkRecord) -> Result<(), CniError>;

/// The agent serves no pods whose link is past their node.
///
/// # Errors
/// Code 7 for a served network; as [`Served::if_served`].
pub(crate) fn refuse_served(call: &Call) -> Result<(), CniError> {
    if Served::if_served(call)?.is_none() {
        return Ok(());
    }
    Err(CniError::invalid_config(format!(
        "network {:?} is served by the agent, which guards and reaches pods by their node; a pod of \
         type {:?} has its link past it: give this network another name",
        call.conf.name, call.conf.plugin_type
    )))
}

/// Before ADD: refuses what these types cannot do, and puts right what an earlier ADD of the same
/// attachment left when it was killed.
///
/// # Errors
/// Code 7 for a served network, code 999 for a second ADD; what could not be undone.
pub(crate) fn begin(call: &Call, ipam: &Ipam, undo: Undo) -> Result<(), CniError> {
    refuse_served(call)?;
    if call.conf.cni_version.is_legacy() && matches!(ipam, Ipam::None) {
        return Err(CniError::invalid_config(format!(
            "key \"ipam\" is missing: results of CNI version {} cannot do without an address; set \
             \"cniVersion\" to 0.3.1 or newer",
            call.conf.cni_version
        )));
    }
    let records = LinkRecords::at(&call.paths);
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    let Some(record) = records.read(id, ifname)? else { return Ok(()) };
    if !record.pending && record.boot_id == record::boot_id(&call.paths)? {
        return Err(CniError::internal(format!(
            "container {id} ({ifname}) has its link of network {} already: duplicate allocation is \
             not allowed; call DEL first",
            record.network
        )));
    }
    undo(&record)?;
    ipam.del(call, &[])?;
    records.remove(id, ifname)
}

/// The record of a call, for a link that is about to be made.
///
/// # Errors
/// Code 5.
pub(crate) fn new_record(call: &Call, kind: &str, ends: &Derived) -> Result<LinkRecord, CniError> {
    Ok(LinkRecord {
        container_id: call.env.container_id.clone(),
        ifname: ends.ifname.clone(),
        kind: kind.to_owned(),
        network: call.conf.name.clone(),
        netns: call.env.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        mac: None,
        device: None,
        alias: String::new(),
        hardware: false,
        pending: true,
        boot_id: record::boot_id(&call.paths)?,
    })
}

/// DEL: the link, the addresses, last the record. What is gone is fine.
///
/// # Errors
/// What stays; the record is kept then.
pub(crate) fn del(call: &Call, kind: &str, undo: Undo) -> Result<(), CniError> {
    let ipam = Ipam::of(call, None)?;
    let records = LinkRecords::at(&call.paths);
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    let noted = records.read(id, ifname)?.filter(|r| r.kind == kind);
    let record = match noted {
        Some(noted) => {
            // So that an ADD after a DEL that was killed goes on by itself.
            let _ = records.amend(&LinkRecord { pending: true, ..noted.clone() });
            match &call.env.netns {
                // The place is sure, and others of the chain may have given what was made there
                // another address.
                Some(path) => {
                    let mac = noted.mac.filter(|_| noted.device.is_some());
                    LinkRecord { netns: path.display().to_string(), mac, ..noted }
                }
                None => noted,
            }
        }
        None => new_record(call, kind, &Derived::of(call)?)?,
    };
    if needs_link(&ipam) {
        // To say goodbye too.
        ipam.del(call, &[])?;
        undo(&record)?;
    } else {
        undo(&record)?;
        ipam.del(call, &[])?;
    }
    records.remove(id, ifname)
}

/// GC: links and leases of attachments of this network that are not valid any more.
///
/// # Errors
/// The first that could not be removed; the others are removed all the same.
pub(crate) fn gc(call: &Call, kind: &str, undo: Undo) -> Result<(), CniError> {
    let ipam = Ipam::of(call, None)?;
    let valid = valid_owners(call)?;
    let (records, adds) = (LinkRecords::at(&call.paths), Adds::at(&call.paths));
    // Without addresses no lease tells of an ADD that was killed while it wrote its record.
    let mut first = adds.sweep(&records.dir).err();
    let all = records.list()?;
    let owner_of = |r: &LinkRecord| Owner::new(&r.container_id, r.ifname.as_str());
    for record in &all {
        let owner = owner_of(record);
        // The path of a namespace that is gone may be another attachment's by now.
        let is_anothers = all.iter().any(|r| {
            (&r.netns, &r.ifname) == (&record.netns, &record.ifname)
                && r.container_id != record.container_id
                && (r.network != call.conf.name || valid.contains(&owner_of(r)))
        });
        let netns = if is_anothers { String::new() } else { record.netns.clone() };
        let record = LinkRecord { netns, ..record.clone() };
        let ours = record.network == call.conf.name && record.kind == kind;
        if ours && !valid.contains(&owner) && !ipam.is_in_flight(&owner)? {
            let Some(_quiet) = adds.keep_out(&owner) else { continue };
            let now = records.read(&record.container_id, record.ifname.as_str())?;
            if now.is_none_or(|now| LinkRecord { netns: record.netns.clone(), ..now } != record) {
                // A DEL has ended, or another ADD of the attachment.
                continue;
            }
            let gone = undo(&record)
                .and_then(|()| match &ipam {
                    Ipam::HostLocal { leases, .. } => leases.release(&owner, &[]),
                    _ => Ok(()),
                })
                .and_then(|()| records.remove(&record.container_id, record.ifname.as_str()));
            first = first.or(gone.err());
        }
    }
    let stale = ipam.stale(&valid)?;
    if let Ipam::HostLocal { leases, .. } = &ipam {
        for (ip, owner) in &stale.leases {
            first = first.or(leases.release_if(*ip, owner).err());
            let named = causeway_cni_spec::env::is_identifier(&owner.container_id)
                && IfName::new(&owner.ifname).is_ok();
            if named
                && !all.iter().any(|r| owner_of(r) == *owner)
                && let Some(_quiet) = adds.keep_out(owner)
            {
                // The trace of an ADD that was killed while it wrote its record.
                first = first.or(records.remove(&owner.container_id, &owner.ifname).err());
            }
        }
        first = first.or(leases.refuse_doubtful(&stale.doubtful).err());
    }
    first = first.or(ipam.gc_foreign(call).err());
    first.map_or(Ok(()), Err)
}

/// A foreign IPAM plugin may need the link to get addresses (DHCP): it is asked when the link is there.
/// The own ones are asked before anything is changed.
pub(crate) fn needs_link(ipam: &Ipam) -> bool {
    matches!(ipam, Ipam::Foreign(_))
}

/// The pod's namespace of a record; `None` when it is gone, and all that was in it.
///
/// # Errors
/// Code 4 when it cannot be opened though it may be there.
pub(crate) fn pod_of(record: &LinkRecord) -> Result<Option<Space>, CniError> {
    if record.netns.is_empty() {
        return Ok(None);
    }
    Space::find(&record.netns)
}

/// A device by its name.
///
/// # Errors
/// Code 999 when the kernel does not say.
pub(crate) fn device(space: &mut Space, name: &str) -> Result<Option<Device>, CniError> {
    space.handle().device(name).map_err(|e| space.unreadable(&e))
}

/// The call's interface, which was made a moment ago.
///
/// # Errors
/// Code 999 when it is not there.
pub(crate) fn present(call: &Call, pod: &mut Space) -> Result<Device, CniError> {
    let ifname = &call.env.ifname;
    let gone = || {
        CniError::internal(format!("interface {ifname} is gone again: something else removes it"))
    };
    device(pod, ifname)?.ok_or_else(gone)
}

/// Refuses to go on when the pod has an interface of the name.
///
/// # Errors
/// Code 999.
pub(crate) fn refuse_taken(pod: &mut Space, call: &Call) -> Result<(), CniError> {
    let ifname = &call.env.ifname;
    if device(pod, ifname)?.is_none() {
        return Ok(());
    }
    Err(CniError::internal(format!(
        "interface {ifname} already exists in the pod: another network made it; choose another \
         CNI_IFNAME"
    )))
}

/// What the pod's namespace holds: the link up, with addresses and routes.
///
/// # Errors
/// As [`objects::pod`].
pub(crate) fn pod_objects(
    call: &Call,
    link: &Link,
    result: &CniResult,
) -> Result<Desired, CniError> {
    let ends = Derived::of(call)?;
    let record = AttachmentRecord {
        container_id: call.env.container_id.clone(),
        ifname: ends.ifname,
        pod: call.pod(),
        netns: String::new(),
        network: call.conf.name.clone(),
        attach: Attach::Routed,
        pending: true,
        host_ifname: ends.host_ifname,
        mac: link.mac.unwrap_or(ends.mac),
        host_mac: ends.host_mac,
        mtu: attachment::any_mtu(),
        addresses: result.ips.iter().map(|ip| ip.address).collect(),
        gateways: gateways_of(result),
        bridge: None,
        masquerade_except: None,
        boot_id: String::new(),
        leaving: None,
    };
    let mut all = Desired::default();
    for (_, entry) in
        objects::pod(Inside::default(), &record, record.host_mac, false, &result.routes)?.iter()
    {
        let mut entry = entry.clone();
        if let Object::Link(of_a_veth) = &mut entry.object {
            *of_a_veth = Link { up: true, master: None, port: None, ..link.clone() };
        }
        all.add(entry.owner, entry.why, entry.object);
    }
    Ok(all)
}

/// Gives a link that is in the pod what is desired of it: addresses first, then up, so that the kernel
/// tells neighbours whose they are now, then routes.
///
/// # Errors
/// Code 999 naming what failed.
pub(crate) fn set_up(pod: &mut Space, present: &Link, desired: &Desired) -> Result<(), CniError> {
    let mut first = Desired::default();
    let mut born = Observed::default();
    born.insert(Object::Link(present.clone()));
    let mut then = born.clone();
    for (key, entry) in desired.iter() {
        if matches!(key, Key::Sysctl(_) | Key::Addr { .. }) {
            first.add(entry.owner.clone(), entry.why.clone(), entry.object.clone());
            then.insert(entry.object.clone());
        }
    }
    pod.make(&first, &born).map_err(|e| pod.error(&e))?;
    pod.make(desired, &then).map_err(|e| pod.error(&e))
}

/// The result: the pod's interface, which holds the addresses.
pub(crate) fn answer(call: &Call, link: &Link, pci_id: &str, mut result: CniResult) -> CniResult {
    result.interfaces = vec![Interface {
        name: call.env.ifname.clone(),
        mac: link.mac.map(|m| m.to_string()).unwrap_or_default(),
        mtu: link.mtu.map(|m| m.get()),
        sandbox: call.env.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        pci_id: pci_id.to_owned(),
        ..Interface::default()
    }];
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    if !call.conf.dns.is_empty() {
        result.dns = call.conf.dns.clone();
    }
    result
}

/// CHECK of what both types have: the interface as the result names it, its addresses and routes.
/// Answers the device for more.
///
/// # Errors
/// Code 999 naming what is missing or changed.
pub(crate) fn check(call: &Call) -> Result<(Space, Device), CniError> {
    let netns = call.netns()?;
    let ipam = Ipam::of(call, None)?;
    let previous = &ipam.previous(call)?;
    ipam.check(call)?;
    let mut pod = Space::pod(&netns)?;
    let ifname = &call.env.ifname;
    let found = device(&mut pod, ifname)?
        .ok_or_else(|| CniError::internal(format!("interface {ifname} is missing in {netns}")))?;
    let named = previous.interfaces.iter().find(|i| i.name == *ifname && !i.sandbox.is_empty());
    let mac = named.filter(|i| !i.mac.is_empty()).map(|i| i.mac.parse::<Mac>());
    let mac = mac.transpose();
    let mac = mac.map_err(|e| CniError::invalid_config(format!("prevResult: {e}")))?;
    let link = Link { mac, mtu: None, ..found.link.clone() };
    let mut own = previous.clone();
    own.ips = chain::own_ips(call, previous).cloned().collect();
    attachment::verify(&mut pod, &pod_objects(call, &link, &own)?)?;
    Ok((pod, found))
}
