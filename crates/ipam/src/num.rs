//! Addresses as numbers, the same code for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub(crate) fn to_num(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address of a number. For IPv4 only the low 32 bits are looked at, and numbers come from
/// [`to_num`] and ranges within one network, so no other bits are ever set.
pub(crate) fn from_num(n: u128, ipv4: bool) -> IpAddr {
    if ipv4 { Ipv4Addr::from(n as u32).into() } else { Ipv6Addr::from(n).into() }
}

pub(crate) fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}
