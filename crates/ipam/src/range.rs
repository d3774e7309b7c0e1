//! Ranges of addresses and sets of them, checked once when they are made.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::num::{from_num, is_ipv4, to_num};

/// Addresses of one network that may be given out, with the network's gateway.
///
/// The first address of the network and, for IPv4, the last (broadcast) are never given out, even
/// where the range is written to include them; nor is the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: u128,
    end: u128,
    gateway: Option<u128>,
}

/// A range or a set of ranges that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The mask leaves no address to give out.
    #[error("network {0} is too small to allocate from: use a prefix of at most /{max}", max = max_prefix(.0))]
    TooSmall(IpNet),
    /// The network has bits set below its mask.
    #[error("network {given} has host bits set: the network of that length is {meant}")]
    HostBits {
        /// As written.
        given: IpNet,
        /// With the host bits cleared.
        meant: IpNet,
    },
    /// A named address is not in the network.
    #[error("{what} {ip} is not in network {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd` or `gateway`.
        what: &'static str,
        /// The address.
        ip: IpAddr,
        /// The network.
        subnet: IpNet,
    },
    /// The range ends before it starts.
    #[error("rangeStart {start} is after rangeEnd {end} in network {subnet}")]
    Reversed {
        /// First address.
        start: IpAddr,
        /// Last address.
        end: IpAddr,
        /// The network.
        subnet: IpNet,
    },
    /// A set without ranges.
    #[error("the range set is empty: give it at least one range with a subnet")]
    Empty,
    /// A set with ranges of both families.
    #[error(
        "mixed address families in one range set ({0} and {1}): put each family into a set of its own"
    )]
    Mixed(IpNet, IpNet),
    /// Two ranges share addresses.
    #[error("ranges {0} and {1} overlap")]
    Overlap(String, String),
}

/// A prefix longer than this leaves fewer than two usable addresses: gateway and one pod.
fn max_prefix(net: &IpNet) -> u8 {
    net.max_prefix_len() - 2
}

impl Range {
    /// A range as host-local reads it: the gateway is the first address of the network unless it
    /// is named, the range starts at the first address and ends at the last but one (IPv4) or
    /// the last (IPv6).
    ///
    /// # Errors
    /// A prefix longer than /30 (IPv6 /126), host bits in `subnet`, a start or an end outside it
    /// or in the wrong order. A gateway may lie outside, as with host-local.
    pub fn new(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Range, RangeError> {
        let mut range = Range::without_gateway(subnet, start, end)?;
        range.gateway = Some(match gateway {
            None => to_num(subnet.network()) + 1,
            Some(ip) if ip.is_ipv4() == is_ipv4(&subnet) => to_num(ip),
            Some(ip) => return Err(RangeError::Outside { what: "gateway", ip, subnet }),
        });
        Ok(range)
    }

    /// The same without a gateway: for attachments whose gateway is not in the network, so that
    /// the first address is a pod's.
    ///
    /// # Errors
    /// As [`Range::new`].
    pub fn without_gateway(
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
    ) -> Result<Range, RangeError> {
        if subnet.prefix_len() > max_prefix(&subnet) {
            return Err(RangeError::TooSmall(subnet));
        }
        if subnet.addr() != subnet.network() {
            return Err(RangeError::HostBits { given: subnet, meant: subnet.trunc() });
        }
        let inside = |what, ip: IpAddr| {
            if subnet.contains(&ip) {
                Ok(to_num(ip))
            } else {
                Err(RangeError::Outside { what, ip, subnet })
            }
        };
        let start = match start {
            Some(ip) => inside("rangeStart", ip)?,
            None => to_num(subnet.network()) + 1,
        };
        let end = match end {
            Some(ip) => inside("rangeEnd", ip)?,
            None => to_num(subnet.broadcast()) - u128::from(is_ipv4(&subnet)),
        };
        let range = Range { subnet, start, end, gateway: None };
        if start > end {
            let (start, end) = (range.start(), range.end());
            return Err(RangeError::Reversed { start, end, subnet });
        }
        Ok(range)
    }

    /// The network.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// First address of the range.
    pub fn start(&self) -> IpAddr {
        from_num(self.start, self.is_ipv4())
    }

    /// Last address of the range.
    pub fn end(&self) -> IpAddr {
        from_num(self.end, self.is_ipv4())
    }

    /// The gateway, if the range has one.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway.map(|g| from_num(g, self.is_ipv4()))
    }

    /// Is the range of IPv4 addresses?
    pub fn is_ipv4(&self) -> bool {
        is_ipv4(&self.subnet)
    }

    /// Does the address lie between start and end, whether or not it may be given out?
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && self.contains_num(to_num(ip))
    }

    pub(crate) fn contains_num(&self, n: u128) -> bool {
        (self.start..=self.end).contains(&n)
    }

    pub(crate) fn bounds(&self) -> (u128, u128) {
        (self.start, self.end)
    }

    /// Network address, and for IPv4 the broadcast address (RFC 1122, 3.2.1.3; for IPv6 the
    /// first address is the subnet-router anycast address, RFC 4291, 2.6.1).
    pub(crate) fn unusable(&self) -> impl Iterator<Item = u128> {
        let broadcast = self.is_ipv4().then(|| to_num(self.subnet.broadcast()));
        std::iter::once(to_num(self.subnet.network())).chain(broadcast)
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.start <= other.end && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start(), self.end())
    }
}

/// Ranges that stand in for each other: an attachment gets one address of each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
    /// Numbers that are not given out beside those of the ranges themselves, from and to.
    reserved: Vec<(u128, u128)>,
    ordered: bool,
    cool_down: u64,
}

impl RangeSet {
    /// A set of at least one range, all of one family, none overlapping.
    ///
    /// # Errors
    /// [`RangeError::Empty`], [`RangeError::Mixed`], [`RangeError::Overlap`].
    pub fn new(ranges: Vec<Range>) -> Result<RangeSet, RangeError> {
        let Some(first) = ranges.first() else { return Err(RangeError::Empty) };
        for (i, range) in ranges.iter().enumerate() {
            if range.is_ipv4() != first.is_ipv4() {
                return Err(RangeError::Mixed(first.subnet, range.subnet));
            }
            if let Some(other) = ranges[..i].iter().find(|other| other.overlaps(range)) {
                return Err(RangeError::Overlap(other.to_string(), range.to_string()));
            }
        }
        Ok(RangeSet { ranges, reserved: Vec::new(), ordered: false, cool_down: 0 })
    }

    /// The same set, from which a range is used only when those before it are used up. Otherwise the
    /// ranges follow each other round and round, as with host-local.
    #[must_use]
    pub fn in_order(mut self) -> RangeSet {
        self.ordered = true;
        self
    }

    /// The same set, from which nothing in these networks is given out.
    #[must_use]
    pub fn without(mut self, networks: impl IntoIterator<Item = IpNet>) -> RangeSet {
        let of_family = networks.into_iter().filter(|net| is_ipv4(net) == self.is_ipv4());
        self.reserved = of_family.map(|n| (to_num(n.network()), to_num(n.broadcast()))).collect();
        self
    }

    /// The same set, from which an address that was given back is not given out for so many seconds,
    /// unless no other is free. Time is the caller's: it notes what cools down in [`crate::State`].
    #[must_use]
    pub fn cooling(mut self, seconds: u64) -> RangeSet {
        self.cool_down = seconds;
        self
    }

    /// How long an address is not given out after it was given back, in seconds.
    pub fn cool_down(&self) -> u64 {
        self.cool_down
    }

    /// Is a range used only when those before it are used up?
    pub(crate) fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Is the address in one of the networks of [`RangeSet::without`]?
    pub fn is_reserved(&self, ip: IpAddr) -> bool {
        let within = |(from, to): &(u128, u128)| (*from..=*to).contains(&to_num(ip));
        ip.is_ipv4() == self.is_ipv4() && self.reserved.iter().any(within)
    }

    /// The ranges in the order in which they are used up.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Is the set of IPv4 addresses?
    pub fn is_ipv4(&self) -> bool {
        self.ranges[0].is_ipv4()
    }

    /// The range that holds an address.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|r| r.contains(ip))
    }

    /// Does any range hold the address?
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.range_of(ip).is_some()
    }

    /// Is this the gateway of any range of the set?
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && self.ranges.iter().any(|r| r.gateway == Some(to_num(ip)))
    }

    /// How many addresses the set can give out when nothing is taken: all of its ranges less
    /// gateways, network and broadcast addresses and what is reserved. Saturates at `u128::MAX`.
    pub fn capacity(&self) -> u128 {
        let closed = self.closed();
        self.ranges.iter().fold(0, |sum: u128, r| {
            let total = (r.end - r.start).saturating_add(1);
            let shut = closed.iter().fold(0u128, |shut, (from, to)| {
                let (from, to) = ((*from).max(r.start), (*to).min(r.end));
                let inside = to.checked_sub(from).map_or(0, |n| n.saturating_add(1));
                shut.saturating_add(inside)
            });
            sum.saturating_add(total.saturating_sub(shut))
        })
    }

    /// Numbers that are never given out, from and to, in order and disjoint.
    pub(crate) fn closed(&self) -> Vec<(u128, u128)> {
        let single = self.ranges.iter().flat_map(|r| r.unusable().chain(r.gateway));
        let mut all: Vec<(u128, u128)> =
            single.map(|n| (n, n)).chain(self.reserved.iter().copied()).collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (from, to) in all {
            match merged.last_mut() {
                Some((_, last)) if from <= *last => *last = (*last).max(to),
                _ => merged.push((from, to)),
            }
        }
        merged
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

/// Are the sets free of addresses that two of them would give out?
///
/// # Errors
/// [`RangeError::Overlap`] with the sets as written.
pub fn check_disjoint(sets: &[RangeSet]) -> Result<(), RangeError> {
    for (i, set) in sets.iter().enumerate() {
        for other in &sets[..i] {
            if set.ranges.iter().any(|a| other.ranges.iter().any(|b| a.overlaps(b))) {
                return Err(RangeError::Overlap(other.to_string(), set.to_string()));
            }
        }
    }
    Ok(())
}
