//! The configuration of type `portmap`, and the ports that it asks for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use causeway_cni_spec::{CniError, CniResult};
use causeway_types::{Cidr, Family};
use serde::Deserialize;

use super::note::{LOCALHOST, Masquerade, Port};
use crate::call::Call;
use crate::chain::own_ips;

/// `IPPROTO_UDP`.
pub(crate) const UDP: u8 = 17;
/// `IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_SCTP`.
const PROTOCOLS: [(&str, u8); 3] = [("tcp", 6), ("udp", UDP), ("sctp", 132)];
/// The chain of kube-proxy that asks for masquerading: the one external chain whose effect is
/// known.
const KUBE_MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortmapConf {
    /// Connections that could not be answered otherwise get the node's address as their source.
    snat: bool,
    /// All connections do.
    masq_all: bool,
    /// The bit of the packet's mark that asks for it, 0–31.
    bit: u8,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    backend: Option<String>,
    snat: Option<bool>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
    masq_all: Option<bool>,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
}

impl PortmapConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense or cannot be
    /// honoured.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        let bad = |text: String| Err(CniError::invalid_config(text));
        match raw.backend.as_deref() {
            // There is one way to map ports here, and it has the same effect as both.
            None | Some("" | "iptables" | "nftables") => {}
            Some(other) => {
                return bad(format!(
                    "key \"backend\" is {other:?}: expected \"nftables\" (or \"iptables\", which \
                     is done by nftables too)"
                ));
            }
        }
        let conditions =
            [("conditionsV4", &raw.conditions_v4), ("conditionsV6", &raw.conditions_v6)];
        for (key, value) in conditions {
            if let Some(words) = value.as_ref().filter(|words| !words.is_empty()) {
                return bad(format!(
                    "key {key:?} is {words:?}: conditions are in the syntax of iptables, which is \
                     not used here; remove it, and limit who reaches host ports by \"hostIP\" or by \
                     a rule of your own in a chain of hook prerouting with a priority below -100"
                ));
            }
        }
        let external = raw.external_set_mark_chain.as_deref().filter(|chain| !chain.is_empty());
        if let Some(chain) = external {
            if raw.mark_masq_bit.is_some() {
                return bad(
                    "keys \"externalSetMarkChain\" and \"markMasqBit\" are both set: choose one"
                        .to_owned(),
                );
            }
            if chain != KUBE_MARK_MASQ {
                return bad(format!(
                    "key \"externalSetMarkChain\" is {chain:?}: chains of iptables are not called \
                     here, and of others than {KUBE_MARK_MASQ} it is not known what they do; \
                     remove it (\"markMasqBit\" chooses the bit of the mark)"
                ));
            }
        }
        let number = raw.mark_masq_bit.unwrap_or(13);
        let bit = u8::try_from(number).ok().filter(|bit| *bit < 32);
        let Some(bit) = bit else {
            return bad(format!("key \"markMasqBit\" is {number}: must be 0 to 31"));
        };
        let on = |field: Option<bool>, default| field.unwrap_or(default);
        Ok(Self { snat: on(raw.snat, true), masq_all: on(raw.masq_all, false), bit })
    }

    /// Which connections to the ports are masqueraded; `None`: none are.
    pub(crate) fn masquerade(&self, call: &Call, result: &CniResult) -> Option<Masquerade> {
        let subnets = own_ips(call, result).map(|ip| Cidr::of(ip.address)).collect();
        self.snat.then_some(Masquerade { bit: self.bit, all: self.masq_all, subnets })
    }
}

/// The ports of the call, resolved to the first address of each family.
///
/// # Errors
/// Code 7 for a mapping that makes no sense, or one that is there twice.
pub(crate) fn ports(call: &Call, result: &CniResult) -> Result<Vec<Port>, CniError> {
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    let wanted = call.conf.runtime_config.port_mappings.iter().filter(|m| m.host_port != 0);
    for mapping in wanted {
        let name = mapping.protocol();
        let what = format!("hostPort {}/{name}", mapping.host_port);
        let bad = |why: &str| {
            CniError::invalid_config(format!("runtimeConfig.portMappings: {what} {why}"))
        };
        let known = PROTOCOLS.iter().find(|(known, _)| *known == name);
        let protocol = known.ok_or_else(|| bad("has a protocol other than tcp, udp and sctp"))?.1;
        if mapping.container_port == 0 {
            return Err(bad("has containerPort 0: must be 1 to 65535"));
        }
        if mapping.host_ip.is_some_and(|ip| ip.is_multicast()) {
            return Err(bad("has a multicast address as its hostIP"));
        }
        if mapping.host_ip == Some(LOCALHOST.into()) {
            return Err(bad(
                "has hostIP ::1, which the kernel does not forward: choose 127.0.0.1, or another \
                 address of the node",
            ));
        }
        for family in Family::BOTH {
            let foreign = mapping.host_ip.is_some_and(|ip| Family::of(ip) != family);
            let address = own_ips(call, result)
                .map(|ip| ip.address.addr())
                .find(|ip| Family::of(*ip) == family);
            let Some(address) = address.filter(|_| !foreign) else { continue };
            let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
            if !seen.insert((family, protocol, host_ip, mapping.host_port)) {
                return Err(bad("is there twice: remove one of the two"));
            }
            let to = SocketAddr::new(address, mapping.container_port);
            ports.push(Port { protocol, host_ip, host_port: mapping.host_port, to });
        }
    }
    let any = call.conf.runtime_config.port_mappings.iter().any(|m| m.host_port != 0);
    if any && own_ips(call, result).next().is_none() {
        return Err(CniError::invalid_config(format!(
            "ports are to be mapped to {}, but the result of the plugins before has no address on \
             it: chain \"portmap\" behind a plugin that gives one",
            call.env.ifname
        )));
    }
    Ok(ports)
}

/// As the messages name it.
pub(crate) fn protocol_name(number: u8) -> &'static str {
    PROTOCOLS.iter().find(|(_, n)| *n == number).map_or("?", |(name, _)| name)
}

/// True for a packet of UDP, which has no connection that ends.
pub(crate) fn is_udp(port: &Port) -> bool {
    port.protocol == UDP
}

/// The addresses of IPv4 that a packet from the node to itself may have.
pub(crate) fn loopback() -> Cidr {
    Cidr::of(ipnet::IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8))
}
