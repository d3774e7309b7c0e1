//! The configuration of type `bridge`.

use causeway_cni_spec::{CniError, Dns};
use causeway_types::{IfName, Mtu, names};
use serde::Deserialize;
use serde_json::Value;

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
    /// Name resolution, in place of the IPAM plugin's; empty: not set.
    pub dns: Dns,
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
    #[serde(rename = "preserveDefaultVlan")]
    _preserve_default_vlan: Option<bool>,
    vlan: Option<i64>,
    vlan_trunk: Option<Value>,
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
        raw.refuse_unsupported()?;
        let on = |field: Option<bool>| field.unwrap_or(false);
        let (hairpin, promisc) = (on(raw.hairpin_mode), on(raw.promisc_mode));
        if hairpin && promisc {
            return Err(CniError::invalid_config(
                "cannot set hairpin mode and promiscuous mode at the same time: choose one of \
                 \"hairpinMode\" and \"promiscMode\"",
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
            dns: call.conf.dns.clone(),
        })
    }
}

impl Raw {
    /// A field that would be passed over in silence would leave a network other than the one that
    /// was asked for.
    fn refuse_unsupported(&self) -> Result<(), CniError> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, why: &str| {
            Err(CniError::unsupported_field(key, value, why))
        };
        if let Some(vlan) = self.vlan.filter(|v| *v != 0) {
            return refuse("vlan", &vlan, "remove it: ports without VLAN tags only");
        }
        let no_trunk = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
        if let Some(trunk) = self.vlan_trunk.as_ref().filter(|v| !no_trunk(v)) {
            return refuse("vlanTrunk", trunk, "remove it: ports without VLAN tags only");
        }
        let switches = [
            ("macspoofchk", self.macspoofchk, "remove it; served networks check senders anyway"),
            ("enabledad", self.enabledad, "remove it: the address plan keeps addresses unique"),
            ("disableContainerInterface", self.disable_container_interface, "remove it"),
        ];
        for (key, value, why) in switches {
            if value == Some(true) {
                return refuse(key, &true, why);
            }
        }
        masquerade_backend(self.ip_masq_backend.as_deref())
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
            (r#","vlan":100"#, 2, "vlan"),
            (r#","vlanTrunk":[{"id":3}]"#, 2, "vlanTrunk"),
            (r#","macspoofchk":true"#, 2, "macspoofchk"),
            (r#","enabledad":true"#, 2, "enabledad"),
            (r#","disableContainerInterface":true"#, 2, "disableContainerInterface"),
        ] {
            let err = parse(extra).unwrap_err();
            assert_eq!(err.code, code, "{extra}: {err}");
            assert!(err.msg.contains(word), "{extra}: {err}");
        }
        let off = r#","vlan":0,"vlanTrunk":[],"macspoofchk":false,"ipMasqBackend":"iptables""#;
        parse(off).unwrap();
    }
}
