//! Choosing addresses: round robin after the last one given out, one address per range set.

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
    #[error(
        "no IP addresses available in range set: {ranges}: all {capacity} are taken ({held} leases)"
    )]
    Exhausted {
        /// The ranges as text, `first-last` with commas.
        ranges: String,
        /// How many addresses the set can give out.
        capacity: u128,
        /// How many addresses of the ranges are held.
        held: usize,
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
    /// A requested address is kept out of the set.
    #[error("requested IP address {0} is reserved: no container gets it")]
    Reserved(IpAddr),
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
                held: self.held_in(set),
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
        if range.unusable().any(|n| n == to_num(ip)) {
            return Err(AllocError::Unusable(ip));
        }
        if set.is_reserved(ip) {
            return Err(AllocError::Reserved(ip));
        }
        match self.owner_of(ip) {
            None => Ok(range),
            Some(owner) => {
                let (ranges, owner) = (set.to_string(), owner.clone());
                Err(AllocError::Taken { ip, ranges, owner })
            }
        }
    }

    fn held_in(&self, set: &RangeSet) -> usize {
        set.ranges().iter().map(|r| self.taken_between(r.start(), r.end()).count()).sum()
    }

    /// The first free address after the last one given out, going on through the ranges in
    /// their order and around to that address itself; in an ordered set, around each range before
    /// the next. One that cools down only where no other is free, the one that has done so longest.
    fn next_free<'a>(&self, index: usize, set: &'a RangeSet) -> Option<(IpAddr, &'a Range)> {
        let closed = set.closed();
        let stretches = self.stretches(index, set);
        let found = stretches.into_iter().find_map(|(i, (from, to))| {
            let n = self.free_between(from, to, set.is_ipv4(), &closed)?;
            Some((from_num(n, set.is_ipv4()), &set.ranges()[i]))
        });
        found.or_else(|| {
            let free = |ip: &IpAddr| {
                let n = to_num(*ip);
                let shut = |(from, to): &(u128, u128)| (*from..=*to).contains(&n);
                self.owner_of(*ip).is_none() && !closed.iter().any(shut)
            };
            let cooling = self.cooling().filter(|(ip, _)| set.contains(*ip) && free(ip));
            let (ip, _) = cooling.min_by_key(|(_, since)| *since)?;
            Some((ip, set.range_of(ip)?))
        })
    }

    /// The numbers that are looked through, range by range.
    fn stretches(&self, index: usize, set: &RangeSet) -> Vec<(usize, (u128, u128))> {
        let ranges = set.ranges();
        let last = self
            .last(index)
            .and_then(|ip| ranges.iter().position(|r| r.contains(ip)).map(|at| (at, to_num(ip))));
        let whole = |i: usize| (i, ranges[i].bounds());
        let Some((at, n)) = last else { return (0..ranges.len()).map(whole).collect() };
        let (start, end) = ranges[at].bounds();
        let tail = n.checked_add(1).filter(|next| *next <= end).map(|n| (at, (n, end)));
        let (tail, head) = (tail.into_iter(), [(at, (start, n))]);
        match set.is_ordered() {
            true => (0..at)
                .map(whole)
                .chain(tail)
                .chain(head)
                .chain((at + 1..ranges.len()).map(whole))
                .collect(),
            false => {
                let others = (at + 1..ranges.len()).chain(0..at).map(whole);
                tail.chain(others).chain(head).collect()
            }
        }
    }

    /// The first number in `from..=to` that is neither leased, nor closed, nor cooling down. Walks
    /// over leases, never over free addresses, so that a /64 costs what its leases cost.
    fn free_between(
        &self,
        from: u128,
        to: u128,
        ipv4: bool,
        closed: &[(u128, u128)],
    ) -> Option<u128> {
        let mut taken =
            self.taken_between(from_num(from, ipv4), from_num(to, ipv4)).map(to_num).peekable();
        let mut n = from;
        while n <= to {
            // The last that begins at or before it: they are disjoint.
            let at = closed.partition_point(|(begin, _)| *begin <= n);
            if let Some((_, end)) = at.checked_sub(1).map(|i| closed[i]).filter(|(_, e)| *e >= n) {
                n = end.checked_add(1)?;
                continue;
            }
            while taken.next_if(|t| *t < n).is_some() {}
            if taken.peek() != Some(&n) && !self.is_cooling(from_num(n, ipv4)) {
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
