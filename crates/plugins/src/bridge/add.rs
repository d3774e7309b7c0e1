//! ADD.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, Interface};
use causeway_kernel::vlan::PortVlan;
use causeway_model::{Addr, Desired, Key, Link, LinkKind, Object, Observed, Owner};
use causeway_plan::Op;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Cidr, Family, Mac, Mtu};
use ipnet::IpNet;

use super::conf::BridgeConf;
use super::del::{self, Way};
use super::mend;
use super::objects::{self, Bridge};
use crate::attachment::{self, Wiring};
use crate::call::Call;
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::node::Served;
use crate::record;
use crate::rollback::Rollback;
use crate::space::{Failed, Space};

/// The MTU that the kernel gives bridges and veths (`ETH_DATA_LEN`).
pub(crate) const DEFAULT_MTU: u32 = 1500;
/// How often to look again when somebody else makes the same bridge at the same time.
const TRIES: usize = 5;

pub(super) fn add(call: &Call) -> Result<CniResult, CniError> {
    Rollback::guard(|rollback| attach(call, rollback))
}

fn attach(call: &Call, rollback: &mut Rollback) -> Result<CniResult, CniError> {
    let conf = BridgeConf::parse(call)?;
    let netns = call.netns()?;
    let mut ends = Derived::of(call)?;
    let mac = call.mac()?;
    ends.mac = mac.unwrap_or(ends.mac);
    let served = Served::if_served(call)?;
    if served.is_some() {
        conf.refuse_served()?;
    }
    let mut node = Space::node()?;
    let mut ipam = Ipam::of(call, served.as_ref().map(|s| s.lease_record(call)))?;
    if let Some(served) = &served {
        ipam = served.shape(call, ipam)?;
        attachment::clear_unfinished(call, served, &ipam, &mut node)?;
    }
    // It may need the interface, in order to ask a server for an address (dhcp).
    let early = matches!(ipam, Ipam::Foreign(_)) && served.is_none();
    if early {
        pair(call, &conf, &mut node, &ends, rollback)?;
    }
    let clear = || del::del(call, &Way::of(&conf));
    let (given, in_flight) =
        attachment::addresses(call, &ipam, &mut node, &ends, &clear, rollback)?;
    if mac.is_none() && !early {
        ends.follow(given.ips.iter().map(|ip| ip.address.addr()));
    }
    let result = objects::complete(&conf, given);
    if let Some(served) = &served {
        served.refuse_others_networks(call, result.ips.iter().map(|ip| ip.address))?;
    }
    let record = record(call, &conf, ends, netns, served.as_ref(), &result);
    if !early {
        attachment::refuse_existing(&mut node, &record)?;
    }

    let bridge = ensure_bridge(&mut node, call, &conf, served.as_ref(), &record, &result)?;
    let announce = match &ipam {
        Ipam::HostLocal { .. } => {
            in_flight.had_other_mac() || !is_known(call, &record, bridge.mac)?
        }
        // Where addresses come from others, nobody knows who had them before.
        Ipam::None | Ipam::Static(_) | Ipam::Foreign(_) => true,
    };
    let wiring = Wiring {
        host: objects::host(&conf, &record, served.is_some()),
        pod: objects::pod(conf.inside(), &record, bridge.mac, served.is_some(), &result.routes)?,
        vlans: conf.vlans.as_ref().map(|v| &v.port),
        served: served.as_ref(),
        paired: early,
        announce,
    };
    attachment::wire(call, &mut node, &record, &wiring, rollback)?;
    if node.lacked_chains() {
        mend::masquerade(call, &Way::of(&conf), &ipam, &mut node);
    }
    in_flight.until_exit();
    let mut result = attachment::answer(&record, Some(bridge.mac), result);
    if let Some([_, inside]) = bridge.gateway_pair() {
        let found = node.link(&inside.name)?.and_then(|link| link.mac);
        let mac = found.map(|mac| mac.to_string()).unwrap_or_default();
        let name = inside.name.to_string();
        result.interfaces.push(Interface { name, mac, ..Interface::default() });
    }
    Ok(result)
}

/// Makes the pair and the bridge without addresses, and waits until packets pass.
fn pair(
    call: &Call,
    conf: &BridgeConf,
    node: &mut Space,
    ends: &Derived,
    rollback: &mut Rollback,
) -> Result<(), CniError> {
    let none = CniResult::default();
    let mut record = record(call, conf, ends.clone(), call.netns()?, None, &none);
    // Whose masquerade it would be, its addresses tell.
    record.masquerade_except = None;
    attachment::refuse_existing(node, &record)?;
    let bridge = ensure_bridge(node, call, conf, None, &record, &none)?;
    let wiring = Wiring {
        host: objects::host(conf, &record, false),
        pod: objects::pod(conf.inside(), &record, bridge.mac, false, &[])?,
        vlans: conf.vlans.as_ref().map(|v| &v.port),
        served: None,
        paired: false,
        announce: false,
    };
    attachment::wire(call, node, &record, &wiring, rollback)
}

/// Nobody on the bridge remembers the pod's addresses with another MAC: it is the address's own, and
/// all pods that were ever there were made here, since the bridge was, in this boot. An announcement
/// goes out of every port, which takes as long as there are pods.
fn is_known(call: &Call, record: &AttachmentRecord, bridge: Mac) -> Result<bool, CniError> {
    let own = |ip: &IpNet| record.mac == Mac::of_address(ip.addr());
    if record.bridge.is_none() || !record.addresses.iter().all(own) {
        return Ok(false);
    }
    let boot_id = record::boot_id(&call.paths)?;
    Ok(record.bridge.as_ref().is_some_and(|b| bridge == objects::own_bridge_mac(&boot_id, b)))
}

pub(super) fn record(
    call: &Call,
    conf: &BridgeConf,
    ends: Derived,
    netns: String,
    served: Option<&Served>,
    result: &CniResult,
) -> AttachmentRecord {
    let default = || Mtu::new(DEFAULT_MTU).expect("a valid MTU");
    let mtu = conf.mtu.or(served.map(|s| s.file.mtu)).unwrap_or_else(default);
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    AttachmentRecord {
        container_id: call.env.container_id.clone(),
        ifname: ends.ifname,
        pod: call.pod(),
        netns,
        network: call.conf.name.clone(),
        attach: Attach::Bridge,
        pending: true,
        host_ifname: ends.host_ifname,
        mac: ends.mac,
        host_mac: ends.host_mac,
        mtu,
        addresses: addresses.clone(),
        gateways: gateways_of(result),
        bridge: Some(conf.bridge.clone()),
        // On a served network the agent does that for all pods, and its exceptions follow the
        // cluster: what is written down here would turn nodes that join later into the outside.
        masquerade_except: (conf.ip_masq && served.is_none()).then(|| exceptions(&addresses)),
        boot_id: served.map(|s| s.boot_id.clone()).unwrap_or_default(),
        leaving: None,
    }
}

/// The gateways of a result, the first of each family.
pub(crate) fn gateways_of(result: &CniResult) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
        if !gateways.iter().any(|g| Family::of(*g) == Family::of(gateway)) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// What is not masqueraded: the pods' own networks and multicast.
pub(crate) fn exceptions(addresses: &[IpNet]) -> Vec<Cidr> {
    let multicast = ["224.0.0.0/4", "ff00::/8"].map(|c| c.parse().expect("a valid prefix"));
    let own = addresses.iter().map(|a| Cidr::of(*a));
    let all: BTreeSet<Cidr> = own.chain(multicast).collect();
    all.into_iter().collect()
}

/// Makes the bridge with its gateway addresses, or gives one that is there what it lacks. Others
/// may do the same at the same time.
fn ensure_bridge<'a>(
    node: &mut Space,
    call: &Call,
    conf: &'a BridgeConf,
    served: Option<&Served>,
    record: &AttachmentRecord,
    result: &CniResult,
) -> Result<Bridge<'a>, CniError> {
    for _ in 0..TRIES {
        let found = node.link(&conf.bridge)?;
        let bridge = Bridge {
            conf,
            mac: match found.as_ref().and_then(|link| link.mac) {
                Some(mac) => mac,
                None => new_mac(call, conf, served)?,
            },
            mtu: Some(record.mtu).filter(|_| found.is_none() && conf.mtu.is_some()),
            gateway_dev: conf.gateway_dev()?,
            gateways: objects::gateway_addrs(conf, result),
        };
        let desired = bridge.objects();
        let observed = seen(node, conf, found, &bridge, &desired, served.is_some())?;
        if let Some([port, _]) = bridge.gateway_pair()
            && observed.get(&Key::Link(port.name.clone())).is_none()
        {
            vlan_gateway(node, &bridge, port, &observed)?;
            continue;
        }
        switch_router_advertisements(node, &desired, &observed)?;
        match node.make(&desired, &observed) {
            Err(Failed::Op(e)) if e.is_exists() => continue,
            Err(failed) => return Err(node.error(&failed)),
            Ok(()) => {}
        }
        if let Some(vlans) = &conf.vlans {
            node.separate_vlans(&conf.bridge)?;
            if bridge.gateway_pair().is_some() {
                let port: BTreeSet<PortVlan> =
                    vlans.port.iter().filter(|v| v.untagged).copied().collect();
                node.set_vlans(&objects::gateway_port(&bridge.gateway_dev), &port)?;
                node.wait_running(&bridge.gateway_dev)?;
            }
        }
        if conf.promisc {
            node.set_promisc(&conf.bridge)?;
        }
        return Ok(bridge);
    }
    Err(CniError::try_again(format!(
        "bridge {} changes under our hands: something else makes and removes it",
        conf.bridge
    )))
}

/// Makes the veth pair of a VLAN's gateway on the bridge, which is made first if need be: what comes
/// on the pair comes after that. Others may do the same at the same time.
fn vlan_gateway(
    node: &mut Space,
    bridge: &Bridge<'_>,
    port: Link,
    observed: &Observed,
) -> Result<(), CniError> {
    let mut pair = Desired::default();
    pair.add(Owner::Node, "the gateway of a VLAN is behind a port of its own", Object::Link(port));
    for (desired, observed) in [(bridge.alone(), observed), (pair, &Observed::default())] {
        match node.make(&desired, observed) {
            Err(Failed::Op(e)) if e.is_exists() => {}
            Err(failed) => return Err(node.error(&failed)),
            Ok(()) => node.separate_vlans(&bridge.conf.bridge)?,
        }
    }
    Ok(())
}

fn new_mac(call: &Call, conf: &BridgeConf, served: Option<&Served>) -> Result<Mac, CniError> {
    match served {
        Some(served) => Ok(served.bridge_mac(&conf.bridge)),
        None => Ok(objects::own_bridge_mac(&record::boot_id(&call.paths)?, &conf.bridge)),
    }
}

/// What there is of the desired objects. An address of the same family in the place of a
/// gateway's is removed where that was asked for.
fn seen(
    node: &mut Space,
    conf: &BridgeConf,
    found: Option<Link>,
    bridge: &Bridge<'_>,
    desired: &Desired,
    served: bool,
) -> Result<Observed, CniError> {
    let sysctls = desired.iter().map(|(key, _)| key).filter(|k| match k {
        // Parameters of an interface exist with it.
        Key::Sysctl(path) => found.is_some() || !path.contains(conf.bridge.as_str()),
        _ => false,
    });
    let sysctls: Vec<Key> = sysctls.cloned().collect();
    let mut observed = node.sysctls(&sysctls)?;
    let Some(link) = found else { return Ok(observed) };
    if link.kind != LinkKind::Bridge {
        return Err(CniError::internal(format!(
            "interface {} exists and is no bridge: rename it, or name another one by \"bridge\"",
            conf.bridge
        )));
    }
    let mut first_address = false;
    if !bridge.gateways.is_empty() {
        let present = node.addrs(&bridge.gateway_dev)?;
        for gateway in &bridge.gateways {
            first_address |= !present.contains(gateway);
        }
        for addr in present {
            let addr = Addr::new(bridge.gateway_dev.clone(), addr);
            observed.insert(Object::Addr(addr));
        }
        make_room(node, conf, bridge, &mut observed, served)?;
    }
    // A bridge that got its first address keeps its MAC from now on: written anew, it no longer
    // follows its ports.
    let mac = link.mac.filter(|_| !first_address);
    observed.insert(Object::Link(Link { mac, ..link }));
    for wanted in bridge.gateway_pair().into_iter().flatten() {
        if let Some(link) = node.link(&wanted.name)? {
            observed.insert(Object::Link(link));
        }
    }
    Ok(observed)
}

fn make_room(
    node: &mut Space,
    conf: &BridgeConf,
    bridge: &Bridge<'_>,
    observed: &mut Observed,
    served: bool,
) -> Result<(), CniError> {
    for wanted in &bridge.gateways {
        let in_the_way = observed.iter().filter_map(|(_, object)| match object {
            Object::Addr(a) if objects::excludes(wanted, &a.addr, served) => Some(a.clone()),
            _ => None,
        });
        for addr in in_the_way.collect::<Vec<_>>() {
            if !conf.force_address {
                return Err(CniError::internal(format!(
                    "\"{}\" already has an IP address different from {wanted}: {}; remove it, \
                     choose another bridge, or set \"forceAddress\"",
                    conf.bridge, addr.addr
                )));
            }
            let object = Object::Addr(addr);
            observed.remove(&object.key());
            node.apply(&[Op::Remove(object)]).map_err(|e| node.error(&Failed::Op(e)))?;
        }
    }
    Ok(())
}

/// Where forwarding of IPv6 is about to be turned on, interfaces that live by router
/// advertisements must go on listening (`accept_ra` 2): else the node loses its way out.
pub(crate) fn switch_router_advertisements(
    node: &mut Space,
    desired: &Desired,
    observed: &Observed,
) -> Result<(), CniError> {
    let forwarding = objects::forwarding(Family::V6);
    let key = forwarding.key();
    let wanted = desired.get(&key).is_some();
    if wanted && observed.get(&key) != Some(&forwarding) {
        node.keep_router_advertisements()?;
    }
    Ok(())
}
