//! The result of ADD in its current form (CNI 1.1.0, section 5, "Success"). Older forms are
//! written and read by [`crate::convert`].

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

/// What an ADD achieved, and what CHECK and DEL are given back as `prevResult`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces made, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    pub ips: Vec<IpConfig>,
    /// Routes made in the container, or to be made, from an IPAM plugin.
    pub routes: Vec<Route>,
    /// Name resolution for the container.
    pub dns: Dns,
}

impl CniResult {
    /// The interface that an address belongs to, if it is named and exists.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(ip.interface? as usize)
    }

    /// Addresses on the container's side: on an interface with a sandbox, or on none at all (as
    /// IPAM plugins and results before 0.3.0 leave it open).
    pub fn container_ips(&self) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(|ip| match ip.interface {
            None => true,
            Some(_) => self.interface_of(ip).is_some_and(|i| !i.sandbox.is_empty()),
        })
    }
}

/// An interface of a result. Empty text and absent numbers are not printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes, since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace path for interfaces in the container, empty for those on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket that serves the interface, since 1.1.0.
    #[serde(rename = "socketPath", default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// PCI address of the device behind it, since 1.1.0.
    #[serde(rename = "pciID", default, skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into the result's interfaces. Absent or negative: not said.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "index_or_none")]
    pub interface: Option<u32>,
    /// The address with the length of its network.
    pub address: IpNet,
    /// The gateway of that network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    pub gateway: Option<IpAddr>,
}

impl IpConfig {
    /// An address on no named interface, as IPAM plugins return it.
    pub fn new(address: IpNet, gateway: Option<IpAddr>) -> Self {
        Self { interface: None, address, gateway }
    }
}

/// A route of a result or a configuration. All but destination and gateway exist since 1.1.0;
/// in a configuration of an older version they are still read, since plugins obeyed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; absent: the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    pub gw: Option<IpAddr>,
    /// MTU of the path in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Number of the routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as in `rt_scope_t` (`linux/rtnetlink.h`): 0 universe, 253 link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with destination and gateway only.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub nameservers: Vec<String>,
    /// Local domain for short names.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub domain: String,
    /// Domains to search, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}

impl Dns {
    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// `null` as Go writes empty lists means the default.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An address; `null` and empty text mean none, as Go prints an unset one.
pub(crate) fn ip_or_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse::<IpAddr>()
            .map(|ip| Some(ip.to_canonical()))
            .map_err(|_| serde::de::Error::custom("expected an IP address without a length")),
    }
}

fn index_or_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    match Option::<i64>::deserialize(d)? {
        None => Ok(None),
        Some(n) if n < 0 => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(serde::de::Error::custom),
    }
}
