//! Type `ptp`: a veth pair per pod whose end on the node carries the gateway's address, and routes.
//!
//! For a network that the agent serves the pod's interface is guarded, its neighbours are fixed, and
//! a record is written, as for a routed pod of type `causeway`.

mod conf;
mod objects;

use causeway_cni_spec::{CniError, CniResult};
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Mac, Mtu};

use crate::Plugin;
use crate::attachment::{self, Wiring};
use crate::bridge::add::{DEFAULT_MTU, exceptions, gateways_of, switch_router_advertisements};
use crate::bridge::del::{self, Way};
use crate::bridge::mend;
use crate::call::Call;
use crate::chain;
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::node::Served;
use crate::record::Attachments;
use crate::rollback::Rollback;
use crate::space::Space;
use conf::PtpConf;

/// Type `ptp`.
pub(crate) struct PtpPlugin;

impl Plugin for PtpPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        Rollback::guard(|rollback| attach(call, rollback))
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        del::del(call, &way(call))
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        check(call)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        PtpConf::parse(call).map_err(unavailable)?;
        let served = Served::if_served(call).map_err(unavailable)?;
        let ipam = Ipam::of(call, served.as_ref().map(|s| s.lease_record(call)));
        let mut ipam = ipam.map_err(unavailable)?;
        if let Some(served) = &served {
            served.refuse_others_networks(call, ipam.networks()).map_err(unavailable)?;
            ipam = served.shape(call, ipam).map_err(unavailable)?;
        }
        let records = served.map(|_| Attachments::at(&call.paths).files());
        ipam.status(call, records.unwrap_or_default())
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        del::gc(call, &way(call))
    }
}

/// What ADD refuses must not bar the way of DEL: masquerade that is not there is not missed.
fn way(call: &Call) -> Way {
    let ip_masq = PtpConf::parse(call).map_or(true, |conf| conf.ip_masq);
    // Only pods of a served network are guarded; there is nothing of that to look for at others.
    let attach = if del::is_served(call) { Attach::Routed } else { Attach::Bridge };
    Way { attach, bridge: None, ip_masq, mac_check: false }
}

fn attach(call: &Call, rollback: &mut Rollback) -> Result<CniResult, CniError> {
    let conf = PtpConf::parse(call)?;
    let netns = call.netns()?;
    let mut ends = Derived::of(call)?;
    if let Some(mac) = call.mac()? {
        ends.mac = mac;
    }
    let served = Served::if_served(call)?;
    let mut node = Space::node()?;
    let mut ipam = Ipam::of(call, served.as_ref().map(|s| s.lease_record(call)))?;
    if let Some(served) = &served {
        ipam = served.shape(call, ipam)?;
        attachment::clear_unfinished(call, served, &ipam, &mut node)?;
    }
    let clear = || del::del(call, &way(call));
    let (given, in_flight) =
        attachment::addresses(call, &ipam, &mut node, &ends, &clear, rollback)?;
    let result = conf.complete(given)?;
    if let Some(served) = &served {
        served.refuse_others_networks(call, result.ips.iter().map(|ip| ip.address))?;
    }
    let record = record(call, &conf, ends, netns, served.as_ref(), &result);
    attachment::refuse_existing(&mut node, &record)?;

    forward(&mut node, &record)?;
    let wiring = Wiring {
        host: objects::host(&record, served.is_some(), &result),
        pod: objects::pod(&record, served.is_some(), &result)?,
        vlans: None,
        served: served.as_ref(),
        paired: false,
        announce: true,
    };
    attachment::wire(call, &mut node, &record, &wiring, rollback)?;
    if node.lacked_chains() {
        mend::masquerade(call, &way(call), &ipam, &mut node);
    }
    in_flight.until_exit();
    Ok(attachment::answer(&record, None, result))
}

fn record(
    call: &Call,
    conf: &PtpConf,
    ends: Derived,
    netns: String,
    served: Option<&Served>,
    result: &CniResult,
) -> AttachmentRecord {
    let default = || Mtu::new(DEFAULT_MTU).expect("a valid MTU");
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
    AttachmentRecord {
        container_id: call.env.container_id.clone(),
        ifname: ends.ifname,
        pod: call.pod(),
        netns,
        network: call.conf.name.clone(),
        attach: Attach::Routed,
        pending: true,
        host_ifname: ends.host_ifname,
        mac: ends.mac,
        host_mac: ends.host_mac,
        mtu: conf.mtu.or(served.map(|s| s.file.mtu)).unwrap_or_else(default),
        addresses: addresses.clone(),
        gateways: gateways_of(result),
        bridge: None,
        // On a served network the agent does that for all pods.
        masquerade_except: (conf.ip_masq && served.is_none()).then(|| exceptions(&addresses)),
        boot_id: served.map(|s| s.boot_id.clone()).unwrap_or_default(),
        leaving: None,
    }
}

/// Lets the node forward for its pods. That stays when they go.
fn forward(node: &mut Space, record: &AttachmentRecord) -> Result<(), CniError> {
    let wanted = objects::forwarding(record);
    let keys: Vec<_> = wanted.iter().map(|(key, _)| key.clone()).collect();
    let observed = node.sysctls(&keys)?;
    switch_router_advertisements(node, &wanted, &observed)?;
    node.make(&wanted, &observed).map_err(|e| node.error(&e))
}

fn check(call: &Call) -> Result<(), CniError> {
    let conf = PtpConf::parse(call)?;
    let netns = call.netns()?;
    let ipam = Ipam::of(call, None)?;
    let previous = &ipam.previous(call)?;
    let served = Served::if_served(call)?;
    ipam.check(call)?;

    let mut node = Space::node()?;
    let mut pod = Space::pod(&netns)?;
    let mut own = previous.clone();
    own.ips = chain::own_ips(call, previous).cloned().collect();
    let own = conf.complete(own)?;
    let derived = Derived::of(call)?;
    let ends = ends(call, previous, &mut node, &mut pod)?;
    let others = ends.host_ifname != derived.host_ifname;
    let mut record = record(call, &conf, ends, netns, served.as_ref(), &own);
    if others {
        // Whoever made it masquerades in a way of its own.
        record.masquerade_except = None;
    }
    if conf.mtu.is_none() && served.is_none() {
        // The kernel chose it, or another plugin of the chain.
        record.mtu = node.link(&record.host_ifname)?.and_then(|l| l.mtu).unwrap_or(record.mtu);
    }
    attachment::verify(&mut node, &objects::host(&record, served.is_some(), &own))?;
    let record = attachment::inside_of(&record, previous, &mut pod)?;
    attachment::verify(&mut pod, &objects::pod(&record, served.is_some(), &own)?)
}

/// The two ends as the previous result names them: another plugin may have made them.
fn ends(
    call: &Call,
    previous: &CniResult,
    node: &mut Space,
    pod: &mut Space,
) -> Result<Derived, CniError> {
    let mut ends = Derived::of(call)?;
    if let Some(name) = chain::host_end(call, previous, node, pod)? {
        ends.host_ifname = name;
    }
    for interface in previous.interfaces.iter().filter(|i| !i.mac.is_empty()) {
        let mac = || -> Result<Mac, CniError> {
            let bad = |e| CniError::invalid_config(format!("prevResult: {e}"));
            interface.mac.parse().map_err(bad)
        };
        if interface.sandbox.is_empty() && interface.name == ends.host_ifname.as_str() {
            ends.host_mac = mac()?;
        } else if interface.name == call.env.ifname && !interface.sandbox.is_empty() {
            ends.mac = mac()?;
        }
    }
    Ok(ends)
}
