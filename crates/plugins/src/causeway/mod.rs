//! Type `causeway`: attaches pods as the node file says, routed or to the node's bridge, and does what
//! runtimes ask of `portmap` and `bandwidth` in the same process.

mod conf;

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, Route as CniRoute};
use causeway_desired::pod::{host_objects, pod_objects, routed_gateway};
use causeway_ipam::Owner as LeaseOwner;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Family, Mac};
use ipnet::IpNet;

use crate::Plugin;
use crate::adds::Adds;
use crate::attachment::{self, Kept, Wiring};
use crate::bandwidth::BandwidthPlugin;
use crate::call::Call;
use crate::host_local::valid_owners;
use crate::ipam::Ipam;
use crate::leases::Leases;
use crate::leave;
use crate::names::Derived;
use crate::node::Served;
use crate::paths::Paths;
use crate::portmap::{self, PortmapPlugin};
use crate::record::{Attachments, LeaseRecords};
use crate::rollback::Rollback;
use crate::space::Space;

/// Type `causeway`.
pub(crate) struct CausewayPlugin;

/// What a runtime may ask for beside the interface: by the capabilities `portMappings` and `bandwidth`.
const BESIDE: [&dyn Plugin; 2] = [&PortmapPlugin, &BandwidthPlugin];

impl Plugin for CausewayPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        Rollback::guard(|rollback| {
            let result = attach(call, rollback)?;
            add_beside(call, result, rollback)
        })
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        // As in a chain: last made, first gone.
        BandwidthPlugin.del(call)?;
        if portmap::has_something(call)? {
            PortmapPlugin.del(call)?;
        }
        let owner = call.owner();
        let noted = Attachments::at(&call.paths).read(&owner.container_id, &owner.ifname)?;
        let kept = Kept { record: noted.is_some(), ..Kept::SERVED };
        let leases = leases(call);
        let record = match noted {
            Some(record) => record,
            None => {
                let (ends, held) = (Derived::of(call)?, leases.held(&owner)?);
                remembered(&call.paths, &call.conf.name, ends, &owner, held)
            }
        };
        let mut node = Space::node()?;
        if kept.record && leave::hand_over(&call.paths, &mut node, &record, Some(&leases.dir)) {
            return Ok(());
        }
        let named = attachment::addresses_of(&record);
        let release = || leases.release(&owner, &named);
        attachment::detach(&call.paths, &mut node, &record, kept, release)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        conf::check(call)?;
        let previous = call.conf.require_prev_result()?;
        let served = Served::require(call)?;
        let (id, ifname) = (&call.env.container_id, &call.env.ifname);
        let record = Attachments::at(&call.paths).read(id, ifname)?.ok_or_else(|| {
            CniError::internal(format!(
                "there is no attachment record of container {id} ({ifname})"
            ))
        })?;
        same_addresses(&record, call, previous)?;
        ipam(call, &served)?.check(call)?;
        let mut node = Space::node()?;
        let mac = bridge_mac(&mut node, &record)?;
        attachment::verify(&mut node, &host_objects(&record, &attachment::context(true)))?;
        let mut pod = Space::pod(&call.netns()?)?;
        let inside = attachment::inside_of(&record, previous, &mut pod)?;
        attachment::verify(&mut pod, &pod_objects(&inside, mac))?;
        BESIDE.iter().try_for_each(|plugin| plugin.check(call))
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        conf::check(call).map_err(unavailable)?;
        let served = Served::require(call).map_err(unavailable)?;
        let files = Attachments::at(&call.paths).files();
        ipam(call, &served).map_err(unavailable)?.status(call, files)?;
        BESIDE.iter().try_for_each(|plugin| plugin.status(call))
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let valid = valid_owners(call)?;
        let leases = leases(call);
        let mut node = Space::node()?;
        let mut first = None;
        let (records, adds) = (Attachments::at(&call.paths), Adds::at(&call.paths));
        for record in records.list()? {
            let owner = LeaseOwner::new(&record.container_id, record.ifname.as_str());
            if record.network == call.conf.name
                && !valid.contains(&owner)
                && !leases.is_in_flight(&owner)?
                && let Some(_quiet) = adds.keep_out(&owner)
                && let Some(record) = records.read(&owner.container_id, &owner.ifname)?
            {
                let kept = Kept::SERVED;
                let named = attachment::addresses_of(&record);
                let release = || leases.release(&owner, &named);
                let gone = attachment::detach(&call.paths, &mut node, &record, kept, release);
                first = first.or(gone.err());
            }
        }
        first = first.or(collect(call, &leases, &mut node, &valid).err());
        for plugin in BESIDE {
            first = first.or(plugin.gc(call).err());
        }
        first.map_or(Ok(()), Err)
    }
}

/// Each gets the result so far, as from a runtime with a chain of plugins.
fn add_beside(
    call: &Call,
    mut result: CniResult,
    rollback: &mut Rollback,
) -> Result<CniResult, CniError> {
    for plugin in BESIDE {
        let mut next = call.clone();
        next.conf.prev_result = Some(result);
        result = plugin.add(&next)?;
        rollback.on_failure(move || plugin.del(&next));
    }
    Ok(result)
}

fn leases(call: &Call) -> Leases {
    Leases {
        dir: call.paths.leases.join(&call.conf.name),
        records: LeaseRecords::at(&call.paths, &call.conf.name),
        record: None,
    }
}

fn ipam(call: &Call, served: &Served) -> Result<Ipam, CniError> {
    let conf = conf::host_local(call, &served.file)?;
    let leases = Leases { record: Some(served.lease_record(call)), ..leases(call) };
    served.shape(call, Ipam::HostLocal { conf: Box::new(conf), leases: Box::new(leases) })
}

fn attach(call: &Call, rollback: &mut Rollback) -> Result<CniResult, CniError> {
    conf::check(call)?;
    let netns = call.netns()?;
    let mut ends = Derived::of(call)?;
    if let Some(mac) = call.mac()? {
        ends.mac = mac;
    }
    let served = Served::require(call)?;
    let ipam = ipam(call, &served)?;
    let mut node = Space::node()?;
    attachment::clear_unfinished(call, &served, &ipam, &mut node)?;
    let clear = || ipam.del(call, &[]);
    let (given, in_flight) =
        attachment::addresses(call, &ipam, &mut node, &ends, &clear, rollback)?;
    let record = record(call, &served, ends, netns, &given);
    attachment::refuse_existing(&mut node, &record)?;
    let mac = bridge_mac(&mut node, &record)?;
    let wiring = Wiring {
        host: host_objects(&record, &attachment::context(true)),
        vlans: None,
        pod: pod_objects(&record, mac),
        served: Some(&served),
        paired: false,
        announce: false,
    };
    attachment::wire(call, &mut node, &record, &wiring, rollback)?;
    in_flight.until_exit();
    Ok(attachment::answer(&record, mac, result(call, &record)))
}

fn record(
    call: &Call,
    served: &Served,
    ends: Derived,
    netns: String,
    given: &CniResult,
) -> AttachmentRecord {
    let file = &served.file;
    let routed = file.attach == Attach::Routed;
    let address = |net: IpNet| if routed { IpNet::from(net.addr()) } else { net };
    let gateway = |net: IpNet, gateway: Option<IpAddr>| match routed {
        true => Some(routed_gateway(Family::of(net.addr()))),
        false => gateway,
    };
    AttachmentRecord {
        container_id: call.env.container_id.clone(),
        ifname: ends.ifname,
        pod: call.pod(),
        netns,
        network: call.conf.name.clone(),
        attach: file.attach,
        pending: true,
        host_ifname: ends.host_ifname,
        mac: ends.mac,
        host_mac: ends.host_mac,
        mtu: file.mtu,
        addresses: given.ips.iter().map(|ip| address(ip.address)).collect(),
        gateways: given.ips.iter().filter_map(|ip| gateway(ip.address, ip.gateway)).collect(),
        bridge: (!routed).then(|| file.bridge.clone()),
        masquerade_except: None,
        boot_id: served.boot_id.clone(),
        leaving: None,
    }
}

/// The MAC of the bridge that the attachment goes to, if it goes to one.
fn bridge_mac(node: &mut Space, record: &AttachmentRecord) -> Result<Option<Mac>, CniError> {
    let Some(bridge) = &record.bridge else { return Ok(None) };
    match node.link(bridge)? {
        Some(link) => Ok(link.mac),
        None => Err(CniError::try_again(format!(
            "bridge {bridge} is not there: the agent makes it; see that `causeway agent` runs on \
             this node"
        ))),
    }
}

fn result(call: &Call, record: &AttachmentRecord) -> CniResult {
    let gateway = |family| record.gateways.iter().copied().find(|g| Family::of(*g) == family);
    let families = || Family::BOTH.into_iter().filter(|f| record.addrs_of(*f).next().is_some());
    let ip = |net: &IpNet| causeway_cni_spec::IpConfig::new(*net, gateway(Family::of(net.addr())));
    CniResult {
        ips: record.addresses.iter().map(ip).collect(),
        routes: families().map(|f| CniRoute::new(f.default_route(), gateway(f))).collect(),
        dns: call.conf.dns.clone(),
        interfaces: Vec::new(),
    }
}

/// What can be known of an attachment without a record: derived names, and its leases.
pub(crate) fn remembered(
    paths: &Paths,
    network: &str,
    ends: Derived,
    owner: &LeaseOwner,
    held: Vec<IpAddr>,
) -> AttachmentRecord {
    // Without the node file: what a bridge would hold for the pod is then not looked for.
    let file = crate::record::node_file(paths).ok().flatten();
    let on_bridge = file.as_ref().filter(|f| f.attach == Attach::Bridge);
    AttachmentRecord {
        container_id: owner.container_id.clone(),
        ifname: ends.ifname,
        pod: None,
        netns: String::new(),
        network: network.to_owned(),
        attach: if on_bridge.is_some() { Attach::Bridge } else { Attach::Routed },
        pending: true,
        host_ifname: ends.host_ifname,
        mac: ends.mac,
        host_mac: ends.host_mac,
        mtu: crate::attachment::any_mtu(),
        addresses: held.into_iter().map(IpNet::from).collect(),
        gateways: Vec::new(),
        bridge: on_bridge.map(|f| f.bridge.clone()),
        masquerade_except: None,
        boot_id: String::new(),
        leaving: None,
    }
}

/// Removes what belongs to leases without a valid attachment and without a record.
fn collect(
    call: &Call,
    leases: &Leases,
    node: &mut Space,
    valid: &BTreeSet<LeaseOwner>,
) -> Result<(), CniError> {
    // What records tell is repaired by them, and every attachment of this type has one.
    let stale = leases.stale(valid, 1)?;
    let adds = Adds::at(&call.paths);
    for (ip, owner) in stale.leases {
        let Some(_quiet) = adds.keep_out(&owner) else { continue };
        if let Ok(ifname) = causeway_types::IfName::new(&owner.ifname) {
            let ends = Derived::new(&owner.container_id, ifname);
            let record = remembered(&call.paths, &call.conf.name, ends, &owner, vec![ip]);
            let kept = Kept { record: false, ..Kept::SERVED };
            attachment::detach(&call.paths, node, &record, kept, || Ok(()))?;
        }
        leases.release_if(ip, &owner)?;
    }
    leases.refuse_doubtful(&stale.doubtful)
}

fn same_addresses(
    record: &AttachmentRecord,
    call: &Call,
    previous: &CniResult,
) -> Result<(), CniError> {
    let own = |ip: &&causeway_cni_spec::IpConfig| match previous.interface_of(ip) {
        Some(interface) => interface.name == call.env.ifname,
        None => true,
    };
    let named: BTreeSet<IpAddr> =
        previous.container_ips().filter(own).map(|ip| ip.address.addr()).collect();
    let noted: BTreeSet<IpAddr> = attachment::addresses_of(record).into_iter().collect();
    if named == noted {
        return Ok(());
    }
    Err(CniError::internal(format!(
        "the attachment record of container {} ({}) holds {noted:?}, the result of ADD {named:?}",
        record.container_id, record.ifname
    )))
}
