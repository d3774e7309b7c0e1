//! `runtimeConfig`: what the runtime passes in for the capabilities that a plugin declared
//! (the specification's CONVENTIONS, "Well-known Capabilities").
//!
//! containerd (its library go-cni) names the keys of objects below it as Go names fields, `HostPort`
//! and `IngressRate`: decoders in Go take keys in any case. These names are taken as well.

use std::net::IpAddr;

use crate::result::{ip_or_none, null_is_default};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The well-known capabilities, typed. Others stay in the raw configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Ports of the host to forward to the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub port_mappings: Vec<PortMapping>,
    /// Sets of ranges to allocate from, before those of the configuration.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub ip_ranges: Vec<Vec<RangeConf>>,
    /// Addresses asked for, with or without a prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub ips: Vec<String>,
    /// Hardware address asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Limits of rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Name resolution for the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
    /// Other names of the container in this network.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub aliases: Vec<String>,
    /// Path of the container's control group below the cgroup file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// PCI address or other identifier of a device to use.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// InfiniBand GUID asked for.
    #[serde(rename = "infinibandGUID", skip_serializing_if = "Option::is_none")]
    pub infiniband_guid: Option<String>,
    /// File that describes the device (network plumbing group's device information).
    #[serde(rename = "CNIDeviceInfoFile", skip_serializing_if = "Option::is_none")]
    pub cni_device_info_file: Option<String>,
}

/// One forwarded port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host, 1–65535; absent or 0 asks for none, and the mapping is to be passed over.
    #[serde(default)]
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// Port in the container, 1–65535.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`, in either case; absent or empty means tcp.
    #[serde(default, deserialize_with = "null_is_default")]
    #[serde(alias = "Protocol")]
    pub protocol: String,
    /// Address on the host to listen on; absent means all.
    #[serde(
        rename = "hostIP",
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "ip_or_none"
    )]
    #[serde(alias = "HostIP")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// The protocol in lower case, tcp where none is named.
    pub fn protocol(&self) -> String {
        if self.protocol.is_empty() { "tcp".to_owned() } else { self.protocol.to_ascii_lowercase() }
    }
}

/// Rates in bits per second and bursts in bits; 0 means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bandwidth {
    /// Rate towards the container, bits per second.
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    /// Burst towards the container, bits.
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    /// Rate from the container, bits per second.
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    /// Burst from the container, bits.
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
    /// Networks to which no limit applies.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub unshaped_subnets: Vec<IpNet>,
    /// If set, networks to which alone the limit applies.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub shaped_subnets: Vec<IpNet>,
}

/// Name resolution in the words of the `dns` capability, which differ from those of results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Domains to search.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    #[serde(alias = "Searches")]
    pub searches: Vec<String>,
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    #[serde(alias = "Servers")]
    pub servers: Vec<String>,
    /// Options for the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    #[serde(alias = "Options")]
    pub options: Vec<String>,
}

/// One range as host-local's configuration and the `ipRanges` capability write it, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RangeConf {
    /// The network.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(alias = "Subnet")]
    pub subnet: Option<IpNet>,
    /// First address to give out.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    #[serde(alias = "RangeStart")]
    pub range_start: Option<IpAddr>,
    /// Last address to give out.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    #[serde(alias = "RangeEnd")]
    pub range_end: Option<IpAddr>,
    /// The network's gateway, never given out.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    #[serde(alias = "Gateway")]
    pub gateway: Option<IpAddr>,
}
