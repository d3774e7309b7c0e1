//! Ethernet addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Invalid, serde_by_text};

/// An Ethernet (MAC) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A unicast, locally administered address derived from a text. The same text gives the same
    /// address on every machine, so that both ends can compute it and nobody has to publish it.
    pub fn derived(seed: &str) -> Self {
        let digest = Sha256::digest(seed.as_bytes());
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Self(bytes)
    }

    /// The address of a pod's interface that follows from the pod's own: `0a:58:` and the four bytes
    /// of IPv4 (the form that kubenet and OVN-Kubernetes use), or a derived one for IPv6. What a
    /// neighbour remembers of a pod is then true of the next pod with its address too.
    pub fn of_address(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                Self([0x0a, 0x58, a, b, c, d])
            }
            IpAddr::V6(ip) => Self::derived(&format!("address/{ip}")),
        }
    }

    /// The link-local address that the kernel derives from it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0.map(u16::from);
        let word = |high: u16, low: u16| high << 8 | low;
        Ipv6Addr::from([0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f)])
    }

    /// True for an address that one interface may carry: not multicast and not all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new("MAC address", text, "expected six pairs of hex digits, aa:bb:…");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

serde_by_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        let mac: Mac = "02:aB:00:10:ff:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:00:10:ff:01");
        for bad in ["", "02:ab", "02:ab:00:10:ff:0", "02:ab:00:10:ff:01:02", "gg:ab:00:10:ff:01"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn of_an_address() {
        let mac = |ip: &str| Mac::of_address(ip.parse().unwrap());
        assert_eq!(mac("10.244.1.7").to_string(), "0a:58:0a:f4:01:07");
        assert_ne!(mac("fd00::2"), mac("fd00::3"));
        assert!(mac("fd00::2").is_unicast() && mac("10.244.1.7").is_unicast());
    }

    #[test]
    fn derived_is_stable_local_and_unicast() {
        let one = Mac::derived("vtep/node-1");
        assert_eq!(one, Mac::derived("vtep/node-1"));
        assert_ne!(one, Mac::derived("vtep/node-2"));
        assert!(one.is_unicast());
        assert_eq!(one.0[0] & 2, 2);
    }
}
