//! CHECK.

use causeway_cni_spec::{CniError, CniResult};
use causeway_types::{IfName, Mac, Mtu};

use super::conf::BridgeConf;
use super::objects::{self, Bridge};
use crate::attachment;
use crate::call::Call;
use crate::chain;
use crate::ipam::Ipam;
use crate::names::Derived;
use crate::node::Served;
use crate::space::Space;

pub(super) fn check(call: &Call) -> Result<(), CniError> {
    let conf = BridgeConf::parse(call)?;
    let netns = call.netns()?;
    let ipam = Ipam::of(call, None)?;
    let previous = &ipam.previous(call)?;
    let served = Served::if_served(call)?;
    ipam.check(call)?;

    let mut node = Space::node()?;
    let mut pod = Space::pod(&netns)?;
    let host = chain::host_end(call, previous, &mut node, &mut pod)?;
    let ends = ends(call, host, previous)?;
    let own = own_part(call, previous);
    let mut record = super::add::record(call, &conf, ends, netns, served.as_ref(), &own);
    let bridge = node
        .link(&conf.bridge)?
        .ok_or_else(|| CniError::internal(format!("bridge {} is not there", conf.bridge)))?;
    if conf.mtu.is_none() && served.is_none() {
        // The kernel chose it, and may have followed the bridge.
        record.mtu = node.link(&record.host_ifname)?.and_then(|l| l.mtu).unwrap_or(record.mtu);
    }
    let mac = bridge.mac.unwrap_or(Mac([0; 6]));
    let gateways = objects::gateway_addrs(&conf, &own);
    let gateway_dev = conf.gateway_dev()?;
    let bridge = Bridge { conf: &conf, mac, mtu: None::<Mtu>, gateway_dev, gateways };
    attachment::verify(&mut node, &bridge.objects())?;
    attachment::verify(&mut node, &objects::host(&conf, &record, served.is_some()))?;
    if let Some(vlans) = &conf.vlans {
        node.check_vlans(&record.host_ifname, &vlans.port)?;
    }
    let record = attachment::inside_of(&record, previous, &mut pod)?;
    attachment::verify(
        &mut pod,
        &objects::pod(conf.inside(), &record, mac, served.is_some(), &own.routes)?,
    )
}

/// The two ends as the previous result names them: another plugin may have made them. The node's is
/// the one that is the other end of the pod's: the result may name more interfaces on the node.
fn ends(call: &Call, host: Option<IfName>, previous: &CniResult) -> Result<Derived, CniError> {
    let mut ends = Derived::of(call)?;
    ends.host_ifname = host.unwrap_or(ends.host_ifname);
    let bad = |e: causeway_types::Invalid| CniError::invalid_config(format!("prevResult: {e}"));
    for interface in &previous.interfaces {
        let mac: Option<Mac> = match interface.mac.as_str() {
            "" => None,
            text => Some(text.parse().map_err(bad)?),
        };
        if interface.sandbox.is_empty() && interface.name == ends.host_ifname.as_str() {
            ends.host_mac = mac.unwrap_or(ends.host_mac);
        } else if interface.name == call.env.ifname && !interface.sandbox.is_empty() {
            ends.mac = mac.unwrap_or(ends.mac);
        }
    }
    Ok(ends)
}

/// The addresses of this interface, without those of other plugins in the chain.
fn own_part(call: &Call, previous: &CniResult) -> CniResult {
    let mut own = previous.clone();
    own.ips = chain::own_ips(call, previous).cloned().collect();
    own
}
