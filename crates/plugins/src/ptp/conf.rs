//! The configuration of type `ptp`.

use causeway_cni_spec::{CniError, CniResult, Dns};
use causeway_types::{Family, Mtu};
use serde::Deserialize;

use crate::bridge::conf::{masquerade_backend, mtu};
use crate::call::Call;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PtpConf {
    /// What pods send beyond their subnet gets the node's address.
    pub ip_masq: bool,
    /// MTU of both ends; `None`: the kernel's, or the node's of a served network.
    pub mtu: Option<Mtu>,
    /// Name resolution, in place of the IPAM plugin's; empty: not set.
    pub dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    ip_masq: Option<bool>,
    ip_masq_backend: Option<String>,
    mtu: Option<i64>,
}

impl PtpConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, code 7 for a value that makes no sense.
    pub(crate) fn parse(call: &Call) -> Result<Self, CniError> {
        let raw: Raw = call.conf.fields()?;
        masquerade_backend(raw.ip_masq_backend.as_deref())?;
        if call.conf.ipam.is_none() {
            return Err(CniError::invalid_config(
                "key \"ipam\" is missing: type \"ptp\" needs an address and its gateway; name an IPAM \
                 plugin such as \"host-local\"",
            ));
        }
        Ok(Self {
            ip_masq: raw.ip_masq.unwrap_or(false),
            mtu: mtu(raw.mtu.unwrap_or(0))?,
            dns: call.conf.dns.clone(),
        })
    }

    /// The IPAM plugin's result with what the configuration says in its place.
    ///
    /// # Errors
    /// Code 7 for an address without a gateway of its family: the node's end carries it, and all that
    /// the pod sends goes there.
    pub(crate) fn complete(&self, mut ipam: CniResult) -> Result<CniResult, CniError> {
        let family = |ip| Family::of(ip);
        let alone = ipam.ips.iter().find(|ip| {
            ip.gateway.is_none_or(|gateway| {
                family(gateway) != family(ip.address.addr()) || gateway == ip.address.addr()
            })
        });
        if let Some(ip) = alone {
            return Err(CniError::invalid_config(format!(
                "address {} has no gateway of its own family beside it: type \"ptp\" gives it to the \
                 node's end and routes by it; set \"gateway\" in \"ipam\"",
                ip.address
            )));
        }
        if !self.dns.is_empty() {
            ipam.dns = self.dns.clone();
        }
        Ok(ipam)
    }
}
