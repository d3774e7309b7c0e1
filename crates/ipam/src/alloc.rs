//! Choosing addresses: round robin after the last one given out, one address per range set.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::num::{from_num, to_num};
use crate::range::{Range, RangeSet};
use crate::state::{Owner, State};

/// An address that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Index of the range set that it came from.
    pub set: usize,
    /// The address, with the length of its network.
    pub address: IpNet,
    /// The gateway of its range.
    pub gateway: Option<IpAddr>,
}

/// Why an address could not be given out. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The attachment holds an address of this set already.
    #[error("{ip} has been allocated to {owner}, duplicate allocation is not allowed")]
    Duplicate {
        /// The address that it holds.
        ip: IpAddr,
        /// The attachment.
        owner: Owner,
    },
    /// All addresses of the set are taken.
    #[error("no IP addresses available in range set: {ranges}: all {capacity} are taken")]
    Exhausted {
        /// The ranges as text, `first-last` with commas.
        ranges: String,
        /// How many addresses the set can give out.
        capacity: u128,
    },
    /// A requested address is held by somebody else.
    #[error("requested IP address {ip} is not available in range set {ranges}: {owner} has it")]
    Taken {
        /// The address.
        ip: IpAddr,
        /// The ranges as text.
        ranges: String,
        /// Who holds it.
        owner: Owner,
    },
    /// A requested address is the gateway of a range.
    #[error("requested ip {0} is subnet's gateway")]
    Gateway(IpAddr),
    /// A requested address is a network's first or broadcast address.
    #[error("requested IP address {0} is the network or broadcast address of its subnet")]
    Unusable(IpAddr),
    /// Requested addresses that no set contains, or several for the same set.
    #[error("failed to allocate all requested IPs: {}: not in any range set, or more than one in the same", list(.0))]
    NotInRanges(Vec<IpAddr>),
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

impl State {
    /// Gives an attachment one address of every range set: a requested one where a set contains
    /// it, else the next free one. All or nothing.
    ///
    /// # Errors
    /// [`AllocError`]; the state is then as before.
    pub fn allocate(
        &mut self,
        sets: &[RangeSet],
        owner: &Owner,
        requested: &[IpAddr],
    ) -> Result<Vec<Lease>, AllocError> {
        let wishes = assign_wishes(sets, requested)?;
        // First choose, then note: choices of different sets cannot collide, since sets are
        // disjoint, and an error leaves the state alone.
        let leases = sets
            .iter()
            .zip(wishes)
            .enumerate()
            .map(|(i, (set, wish))| self.choose(i, set, owner, wish))
            .collect::<Result<Vec<_>, _>>()?;
        for lease in &leases {
            self.insert(lease.address.addr(), owner.clone());
            self.set_last(lease.set, lease.address.addr());
        }
        Ok(leases)
    }

    /// The address that [`State::allocate`] would give from one set, without noting it.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn choose(
        &self,
        index: usize,
        set: &RangeSet,
        owner: &Owner,
        requested: Option<IpAddr>,
    ) -> Result<Lease, AllocError> {
        if let Some(ip) = self.leases_of(owner).into_iter().find(|ip| set.contains(*ip)) {
            return Err(AllocError::Duplicate { ip, owner: owner.clone() });
        }
        let (ip, range) = match requested {
            Some(ip) => (ip, self.check_requested(set, ip)?),
            None => self.next_free(index, set).ok_or_else(|| AllocError::Exhausted {
                ranges: set.to_string(),
                capacity: set.capacity(),
            })?,
        };
        let address = IpNet::new(ip, range.subnet().prefix_len())
            .expect("a subnet's own prefix length fits its family");
        Ok(Lease { set: index, address, gateway: range.gateway() })
    }

    fn check_requested<'a>(&self, set: &'a RangeSet, ip: IpAddr) -> Result<&'a Range, AllocError> {
        let range = set.range_of(ip).ok_or_else(|| AllocError::NotInRanges(vec![ip]))?;
        if set.is_gateway(ip) {
            return Err(AllocError::Gateway(ip));
        }
        if set.excluded().contains(&to_num(ip)) {
            return Err(AllocError::Unusable(ip));
        }
        match self.owner_of(ip) {
            None => Ok(range),
            Some(owner) => {
                let (ranges, owner) = (set.to_string(), owner.clone());
                Err(AllocError::Taken { ip, ranges, owner })
            }
        }
    }

    /// The first free address after the last one given out, going on through the ranges in
    /// their order and around to that address itself.
    fn next_free<'a>(&self, index: usize, set: &'a RangeSet) -> Option<(IpAddr, &'a Range)> {
        let ranges = set.ranges();
        let excluded = set.excluded();
        let last = self
            .last(index)
            .and_then(|ip| ranges.iter().position(|r| r.contains(ip)).map(|at| (at, to_num(ip))));
        let whole = |i: usize| (i, ranges[i].bounds());
        let stretches: Vec<(usize, (u128, u128))> = match last {
            None => (0..ranges.len()).map(whole).collect(),
            Some((at, n)) => {
                let (start, end) = ranges[at].bounds();
                let tail = n.checked_add(1).filter(|next| *next <= end).map(|n| (at, (n, end)));
                tail.into_iter()
                    .chain((at + 1..ranges.len()).chain(0..at).map(whole))
                    .chain([(at, (start, n))])
                    .collect()
            }
        };
        stretches.into_iter().find_map(|(i, (from, to))| {
            let n = self.free_between(from, to, set.is_ipv4(), &excluded)?;
            Some((from_num(n, set.is_ipv4()), &ranges[i]))
        })
    }

    /// The first number in `from..=to` that is neither leased nor excluded. Walks over leases,
    /// never over free addresses, so that a /64 costs what its leases cost.
    fn free_between(
        &self,
        from: u128,
        to: u128,
        ipv4: bool,
        excluded: &BTreeSet<u128>,
    ) -> Option<u128> {
        let mut taken =
            self.taken_between(from_num(from, ipv4), from_num(to, ipv4)).map(to_num).peekable();
        let mut n = from;
        while n <= to {
            // Both are sorted, so a lease that is not `n` lies beyond it.
            let leased = taken.next_if(|t| *t <= n).is_some();
            if !leased && !excluded.contains(&n) {
                return Some(n);
            }
            n = n.checked_add(1)?;
        }
        None
    }
}

/// Which set each requested address is for.
fn assign_wishes(
    sets: &[RangeSet],
    requested: &[IpAddr],
) -> Result<Vec<Option<IpAddr>>, AllocError> {
    let mut wishes = vec![None; sets.len()];
    let mut unmet = Vec::new();
    for ip in requested {
        let fitting = sets.iter().position(|set| set.contains(*ip));
        match fitting.filter(|i| wishes[*i].is_none()) {
            Some(i) => wishes[i] = Some(*ip),
            None => unmet.push(*ip),
        }
    }
    if unmet.is_empty() { Ok(wishes) } else { Err(AllocError::NotInRanges(unmet)) }
}
