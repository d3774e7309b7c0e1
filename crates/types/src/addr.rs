//! Address families and prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::{Invalid, serde_by_text};

/// An address family. Code takes it as a parameter and is never written twice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Family {
        match addr {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bits in an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The whole address space: `0.0.0.0/0` or `::/0`.
    pub fn default_route(self) -> IpNet {
        IpNet::new_assert(self.unspecified(), 0)
    }

    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The directory of this family below `/proc/sys/net`: `ipv4` or `ipv6`.
    pub fn sysctl_dir(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A network prefix without host bits, such as `10.244.1.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

impl Cidr {
    /// Takes a prefix as it is.
    ///
    /// # Errors
    /// When bits below the prefix length are set.
    pub fn new(net: IpNet) -> Result<Self, Invalid> {
        if net.trunc() == net {
            Ok(Self(net))
        } else {
            let why =
                format!("has bits set below /{}; did you mean {}?", net.prefix_len(), net.trunc());
            Err(Invalid::new("cidr", net, why))
        }
    }

    /// The network that holds an address with a prefix length, its host bits cleared.
    pub fn of(net: IpNet) -> Self {
        Self(net.trunc())
    }

    /// The prefix of exactly one address: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNet::from(addr))
    }

    /// The prefix in the form other libraries take.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// The address family.
    pub fn family(self) -> Family {
        Family::of(self.0.addr())
    }

    /// Prefix length in bits.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// The first address of the prefix.
    pub fn addr(self) -> IpAddr {
        self.0.addr()
    }

    /// True when the address lies inside.
    pub fn contains(self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }

    /// True when the two prefixes share an address.
    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other.addr()) || other.contains(self.addr())
    }

    /// True when every address of `other` lies inside.
    pub fn covers(self, other: Cidr) -> bool {
        self.prefix_len() <= other.prefix_len() && self.contains(other.addr())
    }

    /// The gateway of a node's subnet: its first address after the network address
    /// (`10.244.1.1` of `10.244.1.0/24`). In a prefix of one address, that address.
    pub fn gateway(self) -> IpAddr {
        if self.prefix_len() == self.family().bits() {
            return self.addr();
        }
        match self.addr() {
            IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() + 1).into(),
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() + 1).into(),
        }
    }

    /// The gateway address with this prefix's length, as an interface carries it.
    pub fn gateway_net(self) -> IpNet {
        IpNet::new_assert(self.gateway(), self.prefix_len())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid::new("cidr", text, "expected ADDRESS/LENGTH, for example 10.244.1.0/24")
        })?;
        Cidr::new(net)
    }
}

serde_by_text!(Cidr);

/// Reads an interface address with its prefix length, such as `10.244.1.2/24`.
///
/// # Errors
/// When the text is not of the form ADDRESS/LENGTH.
pub fn parse_if_addr(text: &str) -> Result<IpNet, Invalid> {
    text.parse().map_err(|_| {
        Invalid::new("interface address", text, "expected ADDRESS/LENGTH, as in 10.244.1.2/24")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_and_the_fix_is_named() {
        let err = "10.244.1.5/24".parse::<Cidr>().unwrap_err().to_string();
        assert!(err.contains("did you mean 10.244.1.0/24"), "{err}");
        assert!("fd00::1/64".parse::<Cidr>().is_err());
        assert!("10.244.1.0".parse::<Cidr>().is_err());
    }

    #[test]
    fn gateway_is_the_first_host_address() {
        let gw = |t: &str| t.parse::<Cidr>().unwrap().gateway().to_string();
        assert_eq!(gw("10.244.1.0/24"), "10.244.1.1");
        assert_eq!(gw("fd00:10:244:1::/64"), "fd00:10:244:1::1");
        assert_eq!(gw("10.244.1.7/32"), "10.244.1.7");
    }

    #[test]
    fn overlap_and_cover() {
        let c = |t: &str| t.parse::<Cidr>().unwrap();
        assert!(c("10.244.0.0/16").overlaps(c("10.244.3.0/24")));
        assert!(c("10.244.3.0/24").overlaps(c("10.244.0.0/16")));
        assert!(!c("10.244.3.0/24").overlaps(c("10.244.4.0/24")));
        assert!(!c("10.0.0.0/8").overlaps(c("fd00::/8")));
        assert!(c("10.244.0.0/16").covers(c("10.244.3.0/24")));
        assert!(!c("10.244.3.0/24").covers(c("10.244.0.0/16")));
    }
}
