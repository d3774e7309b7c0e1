//! DEL and GC.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, HostLocal, Interface};
use causeway_ipam::Owner;
use causeway_model::{Link, LinkKind, Object};
use causeway_plan::Op;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{IfName, Mac};
use ipnet::IpNet;

use super::conf::BridgeConf;
use crate::adds::Adds;
use crate::attachment::{Kept, addresses_of, any_mtu, detach};
use crate::call::Call;
use crate::foreign_chains;
use crate::host_local::valid_owners;
use crate::ipam::Ipam;
use crate::leave;
use crate::names::Derived;
use crate::node::Served;
use crate::record::Attachments;
use crate::space::{Failed, Space};

/// How attachments of a configuration were made, as far as it matters for their end.
pub(crate) struct Way {
    /// To a bridge, or routed.
    pub attach: Attach,
    /// The bridge.
    pub bridge: Option<IfName>,
    /// With masquerade, where no agent does it.
    pub ip_masq: bool,
    /// With a check of the pod's MAC, where no agent guards it.
    pub mac_check: bool,
}

impl Way {
    pub(super) fn of(conf: &BridgeConf) -> Self {
        Self {
            attach: Attach::Bridge,
            bridge: Some(conf.bridge.clone()),
            ip_masq: conf.ip_masq,
            mac_check: conf.mac_check,
        }
    }
}

pub(crate) fn del(call: &Call, way: &Way) -> Result<(), CniError> {
    let ipam = Ipam::of(call, None)?;
    let mut node = Space::node()?;
    let noted = Attachments::at(&call.paths).read(&call.env.container_id, &call.env.ifname)?;
    let served = noted.is_some() || is_served(call);
    let mac_check = way.mac_check && !served;
    let kept = Kept { record: noted.is_some(), served, mac_check, leaving: false };
    let record = match noted {
        Some(record) => record,
        None => remembered(call, way, &ipam)?,
    };
    if !kept.record && !record.addresses.is_empty() {
        ipam.begin_release(call, &other_mac(call, way, &record)?);
    }
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    // Another plugin made it, and the node was taken over from its network.
    let taken_over = kept.record && record.is_taken_over();
    let others = taken_over || !kept.record && node.link(&record.host_ifname)?.is_none();
    if others && !kept.record {
        remove_others(call, &ipam, &record)?;
    }
    if others {
        foreign_chains::remove_masquerade(&mut node, &call.conf.name, id, ifname)?;
        // Type `flannel` keeps there what it handed on to `bridge`.
        let _ = std::fs::remove_file(call.paths.leases.with_file_name("flannel").join(id));
    }
    let lease_dir = match &ipam {
        Ipam::HostLocal { leases, .. } => Some(Some(leases.dir.as_path())),
        Ipam::None | Ipam::Static(_) => Some(None),
        // Only a plugin can ask it.
        Ipam::Foreign(_) => None,
    };
    if let (true, Some(lease_dir)) = (kept.record, lease_dir)
        && leave::hand_over(&call.paths, &mut node, &record, lease_dir)
    {
        return Ok(());
    }
    let named = addresses_of(&record);
    if let (Ipam::Foreign(_), false) = (&ipam, kept.record) {
        // It may need the interface, to tell a server (dhcp). What it refuses does not keep the rest.
        let given_back = ipam.del(call, &named);
        detach(&call.paths, &mut node, &record, kept, || Ok(()))?;
        return given_back;
    }
    detach(&call.paths, &mut node, &record, kept, || ipam.del(call, &named))
}

/// Those of the pod's addresses for which its neighbours on the bridge may remember another MAC than
/// the address's own.
fn other_mac(call: &Call, way: &Way, record: &AttachmentRecord) -> Result<Vec<IpAddr>, CniError> {
    if way.attach != Attach::Bridge {
        return Ok(Vec::new());
    }
    let mac = pod_mac(call)?;
    let other = |ip: &IpAddr| mac != Some(Mac::of_address(*ip));
    Ok(addresses_of(record).into_iter().filter(other).collect())
}

/// The MAC of the pod's end, as the result of ADD or the pod's namespace tells it.
fn pod_mac(call: &Call) -> Result<Option<Mac>, CniError> {
    let inside = |i: &&Interface| !i.sandbox.is_empty() && i.name == call.env.ifname;
    let interfaces = call.conf.prev_result.iter().flat_map(|result| &result.interfaces);
    if let Some(mac) = interfaces.filter(inside).find_map(|i| i.mac.parse().ok()) {
        return Ok(Some(mac));
    }
    let Some(mut pod) = Space::what_is_left(call)? else { return Ok(None) };
    let Ok(ifname) = IfName::new(&call.env.ifname) else { return Ok(None) };
    Ok(pod.link(&ifname)?.and_then(|link| link.mac))
}

/// Without a readable node file it is not known to be served.
pub(crate) fn is_served(call: &Call) -> bool {
    Served::if_served(call).is_ok_and(|s| s.is_some())
}

/// What can be known of an attachment without a record: its names are derived, and the addresses
/// are those of its leases, damaged ones that the result of ADD names included, or, with a foreign
/// IPAM plugin, all of that result.
fn remembered(call: &Call, way: &Way, ipam: &Ipam) -> Result<AttachmentRecord, CniError> {
    let ends = Derived::of(call)?;
    let result = || call.conf.prev_result.iter().flat_map(CniResult::container_ips);
    let addresses = match ipam {
        Ipam::HostLocal { leases, conf } => {
            let named: Vec<IpAddr> = result().map(|ip| ip.address.addr()).collect();
            let held = leases.held_or_named(&call.owner(), &named)?;
            held.into_iter().map(|ip| with_length(ip, conf)).collect()
        }
        Ipam::Static(conf) if !conf.ips.is_empty() => {
            conf.ips.iter().map(|ip| ip.address).collect()
        }
        Ipam::Static(_) | Ipam::Foreign(_) | Ipam::None => result().map(|ip| ip.address).collect(),
    };
    Ok(skeleton(&call.conf.name, way, &call.env.container_id, ends, addresses))
}

fn with_length(ip: IpAddr, conf: &HostLocal) -> IpNet {
    let range = conf.sets.iter().find_map(|set| set.range_of(ip));
    let length = range.map(|r| r.subnet().prefix_len());
    length.and_then(|l| IpNet::new(ip, l).ok()).unwrap_or(IpNet::from(ip))
}

/// A record that names what is to be removed.
pub(crate) fn skeleton(
    network: &str,
    way: &Way,
    container_id: &str,
    ends: Derived,
    addresses: Vec<IpNet>,
) -> AttachmentRecord {
    let except = super::add::exceptions(&addresses);
    AttachmentRecord {
        container_id: container_id.to_owned(),
        ifname: ends.ifname,
        pod: None,
        netns: String::new(),
        network: network.to_owned(),
        attach: way.attach,
        pending: true,
        host_ifname: ends.host_ifname,
        mac: ends.mac,
        host_mac: ends.host_mac,
        mtu: any_mtu(),
        addresses,
        gateways: Vec::new(),
        bridge: way.bridge.clone(),
        masquerade_except: way.ip_masq.then_some(except),
        boot_id: String::new(),
        leaving: None,
    }
}

/// An attachment that the reference plugins made has another name on the node: it goes by its
/// name in the pod. Only where this network is known to have made it: it has a lease, or its addresses
/// are on the interface.
fn remove_others(call: &Call, ipam: &Ipam, record: &AttachmentRecord) -> Result<(), CniError> {
    if record.addresses.is_empty() {
        return Ok(());
    }
    let Some(mut pod) = Space::what_is_left(call)? else { return Ok(()) };
    if !matches!(ipam, Ipam::HostLocal { .. }) {
        let present = pod.addrs(&record.ifname)?;
        if !record.addresses.iter().any(|own| present.contains(own)) {
            return Ok(());
        }
    }
    match pod.link(&record.ifname)? {
        Some(link @ Link { kind: LinkKind::Veth { .. }, .. }) => {
            let op = Op::Remove(Object::Link(link));
            pod.apply(&[op]).map_err(|e| pod.error(&Failed::Op(e)))
        }
        _ => Ok(()),
    }
}

pub(crate) fn gc(call: &Call, way: &Way) -> Result<(), CniError> {
    let ipam = Ipam::of(call, None)?;
    let valid = valid_owners(call)?;
    let mut node = Space::node()?;
    let mut first = None;
    let (records, adds) = (Attachments::at(&call.paths), Adds::at(&call.paths));
    for record in records.list()? {
        let owner = Owner::new(&record.container_id, record.ifname.as_str());
        if record.network == call.conf.name
            && !valid.contains(&owner)
            && !ipam.is_in_flight(&owner)?
            && let Some(_quiet) = adds.keep_out(&owner)
            && let Some(record) = records.read(&owner.container_id, &owner.ifname)?
        {
            let kept = Kept::SERVED;
            let named = addresses_of(&record);
            let release = || release(&ipam, &owner, &named);
            let gone = detach(&call.paths, &mut node, &record, kept, release);
            first = first.or(gone.err());
        }
    }
    let stale = ipam.stale(&valid)?;
    if let Ipam::HostLocal { leases, .. } = &ipam {
        first = first.or(leases.refuse_doubtful(&stale.doubtful).err());
    }
    for (owner, ips) in by_owner(stale.leases) {
        let Some(_quiet) = adds.keep_out(&owner) else { continue };
        let gone = collect(call, way, &ipam, &mut node, &owner, &ips);
        first = first.or(gone.err());
    }
    first = first.or(ipam.gc_foreign(call).err());
    first.map_or(Ok(()), Err)
}

fn release(ipam: &Ipam, owner: &Owner, named: &[IpAddr]) -> Result<(), CniError> {
    match ipam {
        Ipam::HostLocal { leases, .. } => leases.release(owner, named),
        Ipam::Static(_) | Ipam::Foreign(_) | Ipam::None => Ok(()),
    }
}

pub(super) fn by_owner(stale: Vec<(IpAddr, Owner)>) -> BTreeMap<Owner, Vec<IpAddr>> {
    let mut all: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
    for (ip, owner) in stale {
        all.entry(owner).or_default().push(ip);
    }
    all
}

/// Removes what belongs to leases without a record.
fn collect(
    call: &Call,
    way: &Way,
    ipam: &Ipam,
    node: &mut Space,
    owner: &Owner,
    ips: &[IpAddr],
) -> Result<(), CniError> {
    let Ipam::HostLocal { conf: ranges, leases } = ipam else { return Ok(()) };
    if let Some(record) = record_of(call, way, ranges, owner, ips) {
        let served = is_served(call);
        let mac_check = way.mac_check && !served;
        let kept = Kept { record: false, served, mac_check, leaving: false };
        if way.attach == Attach::Bridge {
            // Which MAC it had nobody knows any more.
            leases.forget_macs(ips);
        }
        detach(&call.paths, node, &record, kept, || Ok(()))?;
    }
    ips.iter().try_for_each(|ip| leases.release_if(*ip, owner))
}

/// A record of what leases tell; `None` where they name an interface that there cannot be.
pub(super) fn record_of(
    call: &Call,
    way: &Way,
    ranges: &HostLocal,
    owner: &Owner,
    ips: &[IpAddr],
) -> Option<AttachmentRecord> {
    // The old form of a lease knows no interface: there was one then, and it was this.
    let ifname = if owner.ifname.is_empty() { "eth0" } else { &owner.ifname };
    let ends = Derived::new(&owner.container_id, IfName::new(ifname).ok()?);
    let addresses = ips.iter().map(|ip| with_length(*ip, ranges)).collect();
    Some(skeleton(&call.conf.name, way, &owner.container_id, ends, addresses))
}
