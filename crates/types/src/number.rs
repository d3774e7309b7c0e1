//! Checked numbers.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use crate::Invalid;

/// A link's MTU in bytes, 68 (the least that IPv4 allows, RFC 791) to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Mtu(u32);

impl Mtu {
    /// The least MTU of a link that carries IPv6 (RFC 8200, section 5).
    pub const IPV6_MIN: u32 = 1280;

    /// Checks and takes a number of bytes.
    ///
    /// # Errors
    /// Outside 68..=65535.
    pub fn new(bytes: u32) -> Result<Self, Invalid> {
        if (68..=65535).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(Invalid::new("mtu", bytes, "must be 68 to 65535 bytes"))
        }
    }

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// What is left for the inner packet under an encapsulation.
    ///
    /// # Errors
    /// When less than 68 bytes would be left.
    pub fn less(self, overhead: u32) -> Result<Self, Invalid> {
        Mtu::new(self.0.saturating_sub(overhead))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> serde::Deserialize<'de> for Mtu {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Mtu::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// A VXLAN or Geneve network identifier: 1 to 2^24 − 1 (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Vni(u32);

impl Vni {
    /// The VNI used unless configured: the first beyond the range of VLAN tags.
    pub const DEFAULT: Vni = Vni(4096);

    /// Checks and takes a number.
    ///
    /// # Errors
    /// Outside 1..2^24.
    pub fn new(vni: u32) -> Result<Self, Invalid> {
        if (1..1 << 24).contains(&vni) {
            Ok(Self(vni))
        } else {
            Err(Invalid::new("vni", vni, "must be 1 to 16777215"))
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> serde::Deserialize<'de> for Vni {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vni::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// A packet mark and the bits of it that are ours. Always set and cleared under the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits to set; none outside the mask.
    pub value: u32,
    /// The bits that belong to us.
    pub mask: u32,
}

impl Mark {
    /// The mark bit used unless configured. Free of kube-proxy (0xC000), portmap (0x2000),
    /// Cilium (0x0f00), Tailscale (0xff0000) and Calico (0xffff0000).
    pub const DEFAULT: Mark = Mark { value: 0x0000_1000, mask: 0x0000_1000 };
}

impl FromStr for Mark {
    type Err = Invalid;
    /// Reads `VALUE` or `VALUE/MASK`, decimal or with `0x`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        fn number(t: &str) -> Result<u32, ParseIntError> {
            match t.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => t.parse(),
            }
        }
        let (value, mask) = text.split_once('/').unwrap_or((text, text));
        let bad = |_| Invalid::new("mark", text, "expected VALUE or VALUE/MASK, as in 0x1000");
        let mark = Mark { value: number(value).map_err(bad)?, mask: number(mask).map_err(bad)? };
        if mark.value == 0 || mark.value & !mark.mask != 0 {
            return Err(Invalid::new(
                "mark",
                text,
                "the value must be non-zero and inside the mask",
            ));
        }
        Ok(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert!(Mtu::new(67).is_err() && Mtu::new(68).is_ok() && Mtu::new(65536).is_err());
        assert_eq!(Mtu::new(1500).unwrap().less(50).unwrap().get(), 1450);
        assert!(Vni::new(0).is_err() && Vni::new(1 << 24).is_err() && Vni::new(1).is_ok());
        assert_eq!("0x1000".parse::<Mark>().unwrap(), Mark::DEFAULT);
        assert!("0x1000/0x2000".parse::<Mark>().is_err());
    }
}
