//! Nodes of flannel beside ours, with the backend `vxlan`.
//!
//! flannel's nodes tell each other the ends of their tunnels by annotations of their Nodes. Ours read
//! them, and write their own where a node of flannel, or one that flannel was on, is to find them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_types::{Family, Mac, NodeName, Vni};
use serde_json::Value;

use crate::input::{FlannelEnd, Inputs, NodeInfo, Road};
use crate::tunnels::{Tunnels, vtep_mac};

/// `vxlan`, or another backend.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// VNI and MAC of the device for IPv4, as JSON.
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The same for IPv6.
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// Where packets for the device for IPv4 are sent.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The same for IPv6.
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
/// `true`: flannel passes over Nodes without it.
pub const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// All of them.
pub const KEYS: [&str; 6] =
    [BACKEND_TYPE, BACKEND_DATA, BACKEND_V6_DATA, PUBLIC_IP, PUBLIC_IPV6, MANAGED];

/// Annotations by their keys; `None`: it is not to be there.
pub type Annotations = BTreeMap<String, Option<String>>;

/// The ends of tunnels that a Node's annotations tell. What cannot be read is no end: flannel would not
/// read it either.
pub fn ends<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Vec<FlannelEnd> {
    if annotation(BACKEND_TYPE) != Some("vxlan") {
        return Vec::new();
    }
    let end = |data: &str, address: &str, family: Family| {
        let data: Value = serde_json::from_str(annotation(data)?).ok()?;
        let address: IpAddr = annotation(address)?.parse().ok()?;
        let vni = u32::try_from(data["VNI"].as_u64()?).ok()?;
        let mac: Mac = data["VtepMAC"].as_str()?.parse().ok()?;
        let end = FlannelEnd { vni: Vni::new(vni).ok()?, mac, address };
        (Family::of(address) == family && mac.is_unicast()).then_some(end)
    };
    let v4 = end(BACKEND_DATA, PUBLIC_IP, Family::V4);
    let v6 = end(BACKEND_V6_DATA, PUBLIC_IPV6, Family::V6);
    v4.into_iter().chain(v6).collect()
}

/// Whether a Node tells an end in our network that its agent has not derived from its name: flannel is
/// there, or was.
fn is_flannels(inputs: &Inputs, name: &NodeName, info: &NodeInfo) -> bool {
    let vni = inputs.config.vni;
    info.flannel.iter().any(|end| end.vni == vni && end.mac != vtep_mac(name))
}

/// Whether another node of the cluster goes by flannel's annotations.
pub(crate) fn is_near(inputs: &Inputs, me: &NodeName) -> bool {
    let mut others = inputs.view.nodes.iter().filter(|(name, _)| *name != me);
    inputs.config.road != Road::Direct && others.any(|(name, info)| is_flannels(inputs, name, info))
}

/// What this node's annotations should be, of [`KEYS`]; `None`: it is not ours to say.
///
/// They are written while another node goes by them, and by a node whose device was taken over, as no
/// other node could know its MAC. What we or a network of before wrote for our network identifier is
/// taken away otherwise: it would lead peers astray.
pub(crate) fn announced(
    inputs: &Inputs,
    me: &NodeName,
    own: &NodeInfo,
    tunnels: &Tunnels,
) -> Option<Annotations> {
    if inputs.config.road == Road::Direct {
        return None;
    }
    let taken = inputs.taken.as_ref().is_some_and(|all| !all.tunnels.is_empty());
    let mut all: Annotations = KEYS.iter().map(|key| ((*key).to_owned(), None)).collect();
    if !taken && !is_near(inputs, me) {
        let stale = own.flannel.iter().any(|end| end.vni == inputs.config.vni);
        return stale.then_some(all);
    }
    let mut put = |key: &str, value: String| all.insert(key.to_owned(), Some(value));
    put(BACKEND_TYPE, "vxlan".to_owned());
    put(MANAGED, "true".to_owned());
    for tunnel in &tunnels.0 {
        let (data, address) = match tunnel.outer() {
            Family::V4 => (BACKEND_DATA, PUBLIC_IP),
            Family::V6 => (BACKEND_V6_DATA, PUBLIC_IPV6),
        };
        let (vni, mac) = (inputs.config.vni.get(), tunnel.mac);
        put(data, format!("{{\"VNI\":{vni},\"VtepMAC\":\"{mac}\"}}"));
        put(address, tunnel.local.to_string());
    }
    Some(all)
}

#[cfg(test)]
mod tests;
