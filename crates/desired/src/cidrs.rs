//! Lists of prefixes.

use std::net::IpAddr;

use causeway_types::{Cidr, Family};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The same addresses as disjoint prefixes, in order: those inside another of the list are left
/// out. Elements of an nftables interval set must not overlap. Neighbouring prefixes are not
/// joined, so that a node that comes or goes changes its own element and no other.
pub fn disjoint(cidrs: impl IntoIterator<Item = Cidr>) -> Vec<Cidr> {
    let mut all: Vec<Cidr> = cidrs.into_iter().collect();
    // Sorted by family, address and length, a prefix comes right before all that it covers.
    all.sort_by_key(|c| (c.family(), c.addr(), c.prefix_len()));
    let mut kept: Vec<Cidr> = Vec::new();
    for cidr in all {
        if !kept.last().is_some_and(|last| last.covers(cidr)) {
            kept.push(cidr);
        }
    }
    kept
}

/// The same addresses as disjoint prefixes, as few as possible, in order: neighbours are joined.
pub fn minimal(cidrs: impl IntoIterator<Item = Cidr>) -> Vec<Cidr> {
    let (mut v4, mut v6) = (Vec::<Ipv4Net>::new(), Vec::<Ipv6Net>::new());
    for cidr in cidrs {
        match cidr.net() {
            IpNet::V4(net) => v4.push(net),
            IpNet::V6(net) => v6.push(net),
        }
    }
    let v4 = Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4);
    let v6 = Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6);
    let mut all: Vec<Cidr> = v4.chain(v6).map(Cidr::of).collect();
    all.sort();
    all
}

/// Those of one family.
pub fn of_family(cidrs: &[Cidr], family: Family) -> impl Iterator<Item = Cidr> + '_ {
    cidrs.iter().copied().filter(move |c| c.family() == family)
}

/// All multicast addresses of a family.
pub fn multicast(family: Family) -> Cidr {
    let net = match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        Family::V6 => IpNet::new_assert(IpAddr::from([0xff00u16, 0, 0, 0, 0, 0, 0, 0]), 8),
    };
    Cidr::of(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_prefixes_become_disjoint_ones() {
        let c = |t: &str| t.parse::<Cidr>().unwrap();
        let list = [
            c("10.244.1.0/24"),
            c("10.244.0.0/16"),
            c("10.245.0.0/17"),
            c("10.245.128.0/17"),
            c("fd00::/64"),
            c("fd00::/48"),
        ];
        assert_eq!(minimal(list), [c("10.244.0.0/15"), c("fd00::/48")]);
        let halves = [c("10.245.0.0/17"), c("10.245.128.0/17")];
        assert_eq!(disjoint(list), [c("10.244.0.0/16"), halves[0], halves[1], c("fd00::/48")]);
    }
}
