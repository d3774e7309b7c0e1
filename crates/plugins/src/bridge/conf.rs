//! The configuration of type `bridge`.

use std::collections::BTreeSet;

use causeway_cni_spec::{CniError, Dns};
use causeway_kernel::vlan::{DEFAULT_VLAN, PortVlan};
use causeway_types::{IfName, Mtu, names};
use serde::Deserialize;

use super::objects::Inside;
use crate::call::Call;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BridgeConf {
    /// The bridge.
    pub bridge: IfName,
    /// The bridge carries the gateway's address.
    pub is_gateway: bool,
    /// The pod's default route leads to it.
    pub is_default_gateway: bool,
    /// Another address of the family on the bridge is replaced.
    pub force_address: bool,
    /// What pods send beyond their subnet gets the node's address.
    pub ip_masq: bool,
    /// MTU of the interfaces made; `None`: the kernel's, or the node's of a served network.
    pub mtu: Option<Mtu>,
    /// A packet may leave by the port it came from.
    pub hairpin: bool,
    /// The bridge takes in every frame.
    pub promisc: bool,
    /// Ports do not talk to each other.
    pub isolated: bool,
    /// What comes from another MAC than the pod's is dropped.
    pub mac_check: bool,
    /// The kernel looks for duplicates of an IPv6 address before it uses it.
    pub dad: bool,
    /// The pod's interface stays down.
    pub disabled: bool,
    /// VLANs of the node's end, where any are asked for.
    pub vlans: Option<Vlans>,
    /// Name resolution, in place of the IPAM plugin's; empty: not set.
    pub dns: Dns,
}

/// The VLANs of a port (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// That of frames without tags, 1–4094; `None`: as the bridge has it.
    pub access: Option<u16>,
    /// All that it is to have.
    pub port: BTreeSet<PortVlan>,
}

/// One entry of `vlanTrunk`: a number, or all from one to another.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct RawTrunk {
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
    id: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    bridge: Option<String>,
    is_gateway: Option<bool>,
    is_default_gateway: Option<bool>,
    force_address: Option<bool>,
    ip_masq: Option<bool>,
    ip_masq_backend: Option<String>,
    mtu: Option<i64>,
    hairpin_mode: Option<bool>,
    promisc_mode: Option<bool>,
    port_isolation: Option<bool>,
    preserve_default_vlan: Option<bool>,
    vlan: Option<i64>,
    vlan_trunk: Option<Vec<RawTrunk>>,
    macspoofchk: Option<bool>,
    enabledad: Option<bool>,
    disable_container_interface: Option<bool>,
}

impl BridgeConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense, code 2 for a
    /// field that is not supported yet.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        masquerade_backend(raw.ip_masq_backend.as_deref())?;
        let on = |field: Option<bool>| field.unwrap_or(false);
        let (hairpin, promisc) = (on(raw.hairpin_mode), on(raw.promisc_mode));
        if hairpin && promisc {
            return Err(CniError::invalid_config(
                "cannot set hairpin mode and promiscuous mode at the same time: choose one of \
                 \"hairpinMode\" and \"promiscMode\"",
            ));
        }
        let disabled = on(raw.disable_container_interface);
        if disabled && call.conf.ipam.is_some() {
            return Err(CniError::invalid_config(
                "cannot use IPAM when \"disableContainerInterface\" is set: an interface that is \
                 down has no address; remove one of the two",
            ));
        }
        let is_default_gateway = on(raw.is_default_gateway);
        Ok(Self {
            bridge: bridge_name(raw.bridge.as_deref())?,
            is_gateway: on(raw.is_gateway) || is_default_gateway,
            is_default_gateway,
            force_address: on(raw.force_address),
            ip_masq: on(raw.ip_masq),
            mtu: mtu(raw.mtu.unwrap_or(0))?,
            hairpin,
            promisc,
            isolated: on(raw.port_isolation),
            mac_check: on(raw.macspoofchk),
            dad: on(raw.enabledad),
            disabled,
            vlans: raw.vlans()?,
            dns: call.conf.dns.clone(),
        })
    }
}

impl BridgeConf {
    /// The interface that carries the gateway's address: the bridge, or with a VLAN one of its ports
    /// in that VLAN, `BRIDGE.VLAN`.
    ///
    /// # Errors
    /// Code 7 where that name is too long for an interface.
    pub(crate) fn gateway_dev(&self) -> Result<IfName, CniError> {
        let Some(access) = self.vlans.as_ref().and_then(|v| v.access) else {
            return Ok(self.bridge.clone());
        };
        IfName::new(format!("{}.{access}", self.bridge)).map_err(|e| {
            CniError::invalid_config(format!(
                "keys \"bridge\" and \"vlan\" make the gateway's interface: {e}; choose a shorter \
                 name for the bridge"
            ))
        })
    }

    /// What is asked for inside the pod.
    pub(crate) fn inside(&self) -> Inside {
        Inside { dad: self.dad, down: self.disabled }
    }

    /// On a bridge that the agent serves, it answers neighbour solicitations for all pods: a pod that
    /// looks for duplicates of its address would find one. It knows no VLANs.
    ///
    /// # Errors
    /// Code 2.
    pub(crate) fn refuse_served(&self) -> Result<(), CniError> {
        if let Some(vlans) = &self.vlans {
            let ids: Vec<String> = vlans.port.iter().map(|v| v.id.to_string()).collect();
            let why = "the agent serves this network, whose ports are kept apart already; remove \
                       \"vlan\" and \"vlanTrunk\", or take a bridge and a network of its own";
            return Err(CniError::unsupported_field("vlan", ids.join(","), why));
        }
        if !self.dad {
            return Ok(());
        }
        let why = "the agent serves this network and answers neighbour solicitations for its pods; \
                   remove it, since the address plan keeps addresses unique";
        Err(CniError::unsupported_field("enabledad", true, why))
    }
}

impl Raw {
    /// The VLANs of a port: the access VLAN and those of the trunk, and the bridge's default one
    /// unless it is to be left.
    fn vlans(&self) -> Result<Option<Vlans>, CniError> {
        let access = match self.vlan {
            None | Some(0) => None,
            Some(id) => Some(vlan_id("vlan", id)?),
        };
        let mut port = BTreeSet::new();
        for entry in self.vlan_trunk.iter().flatten() {
            port.extend(entry.ids()?.map(PortVlan::tagged));
        }
        if access.is_none() && port.is_empty() {
            return Ok(None);
        }
        if self.preserve_default_vlan.unwrap_or(true) {
            port.retain(|v| v.id != DEFAULT_VLAN);
            port.insert(PortVlan { pvid: access.is_none(), ..PortVlan::access(DEFAULT_VLAN) });
        }
        if let Some(id) = access {
            port.retain(|v| v.id != id);
            port.insert(PortVlan::access(id));
        }
        Ok(Some(Vlans { access, port }))
    }
}

/// There is one way to masquerade here, and it has the same effect as both of the reference.
///
/// # Errors
/// Code 7 for what is no backend.
pub(crate) fn masquerade_backend(name: Option<&str>) -> Result<(), CniError> {
    match name {
        None | Some("" | "iptables" | "nftables") => Ok(()),
        Some(other) => Err(CniError::invalid_config(format!(
            "key \"ipMasqBackend\" is {other:?}: expected \"nftables\" (or \"iptables\", which is \
             done by nftables too)"
        ))),
    }
}

impl RawTrunk {
    fn ids(&self) -> Result<std::ops::RangeInclusive<u16>, CniError> {
        let bad = |why: &str| Err(CniError::invalid_config(format!("key \"vlanTrunk\": {why}")));
        match (self.id, self.min_id, self.max_id) {
            (Some(id), None, None) => {
                let id = vlan_id("vlanTrunk.id", id)?;
                Ok(id..=id)
            }
            (None, Some(min), Some(max)) => {
                let min = vlan_id("vlanTrunk.minID", min)?;
                let max = vlan_id("vlanTrunk.maxID", max)?;
                if min > max {
                    return bad(&format!("minID {min} is greater than maxID {max}"));
                }
                Ok(min..=max)
            }
            (None, None, None) => {
                bad("an entry is empty: give it \"id\", or \"minID\" and \"maxID\"")
            }
            (Some(_), ..) => bad("an entry has \"id\" beside \"minID\" or \"maxID\": choose one"),
            _ => bad("an entry has one of \"minID\" and \"maxID\": both are needed"),
        }
    }
}

fn vlan_id(key: &str, id: i64) -> Result<u16, CniError> {
    u16::try_from(id).ok().filter(|id| (1..=4094).contains(id)).ok_or_else(|| {
        CniError::invalid_config(format!("key \"{key}\" is {id}: VLANs have the numbers 1 to 4094"))
    })
}

fn bridge_name(name: Option<&str>) -> Result<IfName, CniError> {
    let name = name.filter(|n| !n.is_empty()).unwrap_or(names::BRIDGE);
    IfName::new(name).map_err(|e| CniError::invalid_config(format!("key \"bridge\": {e}")))
}

/// An MTU in bytes; `None` for 0, the default.
///
/// # Errors
/// Code 7 outside of 68 to 65535.
pub(crate) fn mtu(bytes: i64) -> Result<Option<Mtu>, CniError> {
    if bytes == 0 {
        return Ok(None);
    }
    let checked = u32::try_from(bytes).ok().and_then(|b| Mtu::new(b).ok());
    checked.map(Some).ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"mtu\" is {bytes}: must be 68 to 65535 bytes, or 0 for the default"
        ))
    })
}

#[cfg(test)]
mod tests {
    use causeway_cni_spec::{Command, Env, NetConf, Version};

    use super::*;
    use crate::Paths;

    fn parse(extra: &str) -> Result<BridgeConf, CniError> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"bridge"{extra}}}"#);
        let conf = NetConf::parse(text.as_bytes(), Command::Add, &Version::ALL)?;
        let env = Env::parse(|name| {
            let value = match name {
                "CNI_COMMAND" => "ADD",
                "CNI_CONTAINERID" => "c1",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/nowhere",
                "CNI_PATH" => "/opt/cni/bin",
                _ => return None,
            };
            Some(value.to_owned())
        })?;
        BridgeConf::parse(&Call::new(env, conf, Paths::default())?)
    }

    #[test]
    fn defaults() {
        let conf = parse("").unwrap();
        assert_eq!(conf.bridge.as_str(), "cni0");
        assert!(!conf.is_gateway && !conf.ip_masq && !conf.hairpin && conf.mtu.is_none());
        let conf = parse(r#","isDefaultGateway":true,"mtu":1400"#).unwrap();
        assert!(conf.is_gateway && conf.is_default_gateway);
        assert_eq!(conf.mtu.unwrap().get(), 1400);
    }

    #[test]
    fn bad_values_and_unsupported_fields_are_named() {
        for (extra, code, word) in [
            (r#","mtu":-1"#, 7, "mtu"),
            (r#","mtu":70000"#, 7, "mtu"),
            (r#","mtu":"1500""#, 6, "mtu"),
            (r#","bridge":"a/b""#, 7, "bridge"),
            (r#","bridge":"much-too-long-name""#, 7, "bridge"),
            (r#","hairpinMode":true,"promiscMode":true"#, 7, "hairpin"),
            (r#","isGateway":"yes""#, 6, "isGateway"),
            (r#","ipMasqBackend":"magic""#, 7, "ipMasqBackend"),
            (r#","vlan":4095"#, 7, "vlan"),
            (r#","vlan":-1"#, 7, "vlan"),
            (r#","vlan":"3""#, 6, "vlan"),
            (r#","vlanTrunk":{"id":3}"#, 6, "vlanTrunk"),
            (r#","vlanTrunk":[{}]"#, 7, "empty"),
            (r#","vlanTrunk":[{"id":0}]"#, 7, "vlanTrunk.id"),
            (r#","vlanTrunk":[{"minID":3}]"#, 7, "both"),
            (r#","vlanTrunk":[{"minID":5,"maxID":3}]"#, 7, "greater"),
            (r#","vlanTrunk":[{"id":3,"minID":3,"maxID":4}]"#, 7, "choose one"),
            (r#","macspoofchk":1"#, 6, "macspoofchk"),
            (r#","enabledad":"true""#, 6, "enabledad"),
            (r#","ipam":{"type":"x"},"disableContainerInterface":true"#, 7, "disableContainerInt"),
        ] {
            let err = parse(extra).unwrap_err();
            assert_eq!(err.code, code, "{extra}: {err}");
            assert!(err.msg.contains(word), "{extra}: {err}");
        }
        let vlans = |extra: &str| -> Vec<(u16, bool, bool)> {
            let found = parse(extra).unwrap().vlans.unwrap().port;
            found.iter().map(|v| (v.id, v.pvid, v.untagged)).collect()
        };
        let default = (1, false, true);
        assert_eq!(vlans(r#","vlan":100"#), [default, (100, true, true)]);
        let left = r#","vlan":100,"preserveDefaultVlan":false"#;
        assert_eq!(vlans(left), [(100, true, true)]);
        let trunk = r#","vlanTrunk":[{"id":7},{"minID":3,"maxID":4}]"#;
        let tagged = |id| (id, false, false);
        assert_eq!(vlans(trunk), [(1, true, true), tagged(3), tagged(4), tagged(7)]);
        let alone = parse(r#","preserveDefaultVlan":false"#).unwrap();
        assert_eq!(alone.vlans, None, "without VLANs there is none to leave");
        let long = parse(r#","bridge":"a-long-bridge","vlan":100"#).unwrap();
        assert_eq!(long.gateway_dev().unwrap_err().code, 7);
        let off = r#","vlan":0,"vlanTrunk":[],"macspoofchk":false,"ipMasqBackend":"iptables""#;
        parse(off).unwrap();
    }
}
