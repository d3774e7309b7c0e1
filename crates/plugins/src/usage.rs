//! How many addresses of a node's ranges are taken and free.

use std::net::IpAddr;

use causeway_cni_spec::CniError;
use causeway_ipam::{Range, RangeSet};
use causeway_types::state::NodeFile;
use causeway_types::{Cidr, Family};

use crate::files;
use crate::node::shaped;
use crate::paths::Paths;
use crate::store;

/// How it stands with one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The range.
    pub range: Cidr,
    /// Leases of it, be their pods gone or not.
    pub used: u64,
    /// Addresses that a pod could get now.
    pub free: u64,
    /// Addresses that are not given out: the configuration says so, or pods of other nodes have them.
    pub reserved: u64,
}

impl Usage {
    /// How many pods the range is for.
    pub fn capacity(&self) -> u64 {
        self.used.saturating_add(self.free)
    }
}

/// The usage of each range, in the order in which they are used up.
///
/// # Errors
/// Code 5 when the directory of leases cannot be read.
pub fn usage(paths: &Paths, network: &str, file: &NodeFile) -> Result<Vec<Usage>, CniError> {
    let names = files::names(&paths.leases.join(network))?;
    let leased: Vec<IpAddr> = names.iter().filter_map(|name| store::address_of(name)).collect();
    Ok(file.ranges().filter_map(|range| of_range(range, file, &leased)).collect())
}

fn of_range(cidr: Cidr, file: &NodeFile, leased: &[IpAddr]) -> Option<Usage> {
    let set = || RangeSet::new(vec![Range::new(cidr.net(), None, None, None).ok()?]).ok();
    let all = set()?.capacity();
    let set = shaped(file, set()?);
    let open = set.capacity();
    let inside = |ip: &&IpAddr| cidr.contains(**ip);
    let used = leased.iter().filter(inside).count() as u128;
    let takes = |ip: &&IpAddr| inside(ip) && !set.is_reserved(**ip);
    let taken = leased.iter().filter(takes).count() as u128;
    let number = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Some(Usage {
        range: cidr,
        used: number(used),
        free: number(open.saturating_sub(taken)),
        reserved: number(all.saturating_sub(open)),
    })
}

/// What there is to say where a family has no address left, a sentence each. It stays the same for as
/// long as that is so.
pub fn exhausted(usage: &[Usage]) -> Vec<String> {
    let of = |family| move |u: &&Usage| u.range.family() == family;
    let sentence = |family: Family| {
        let of_family: Vec<&Usage> = usage.iter().filter(of(family)).collect();
        if of_family.is_empty() || of_family.iter().any(|u| u.free > 0) {
            return None;
        }
        let ranges: Vec<String> = of_family.iter().map(|u| u.range.to_string()).collect();
        let all: u64 = of_family.iter().map(|u| u.capacity()).sum();
        Some(format!(
            "all {all} {family} addresses of {} are taken: new pods cannot start on this node; look for \
             leases of pods that are gone (`causeway ipam list`), move pods elsewhere, or give the Node \
             another range (annotation {})",
            ranges.join(", "),
            causeway_types::names::EXTRA_POD_CIDRS
        ))
    };
    Family::BOTH.into_iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> NodeFile {
        serde_json::from_value(serde_json::json!({
            "generation": 1, "node": "n", "podCidrs": ["10.244.1.0/29", "fd00:1::/64"],
            "extraCidrs": ["10.250.0.0/30"], "reserved": ["10.244.1.0/30"], "mtu": 1500,
            "attach": "routed", "bridge": "cni0", "noMasquerade": [], "served": [],
        }))
        .unwrap()
    }

    #[test]
    fn every_range_is_counted_and_what_is_used_up_is_said() {
        let tmp = tempfile::tempdir().unwrap();
        let paths = Paths { leases: tmp.path().to_owned(), ..Paths::default() };
        let look = || usage(&paths, "net", &file()).unwrap();
        let numbers = |u: &Usage| (u.range.to_string(), u.used, u.free, u.reserved);
        let all = look();
        // .4, .5 and .6 of eight: network, gateway and what is reserved of the first half are not.
        assert_eq!(numbers(&all[0]), ("10.244.1.0/29".into(), 0, 3, 2));
        assert_eq!(numbers(&all[1]).2, u64::MAX - 1);
        assert_eq!(numbers(&all[2]), ("10.250.0.0/30".into(), 0, 1, 0));
        assert!(exhausted(&all).is_empty());
        std::fs::create_dir(tmp.path().join("net")).unwrap();
        for name in ["10.244.1.2", "10.244.1.4", "10.244.1.5", "10.244.1.6", "lock", "fd00:1::7"] {
            std::fs::write(tmp.path().join("net").join(name), "c").unwrap();
        }
        assert_eq!(numbers(&look()[0]), ("10.244.1.0/29".into(), 4, 0, 2));
        assert!(exhausted(&look()).is_empty(), "the extra range has one left");
        std::fs::write(tmp.path().join("net/10.250.0.2"), "c").unwrap();
        let said = exhausted(&look());
        assert_eq!(said.len(), 1);
        for word in ["all 5 IPv4", "10.244.1.0/29, 10.250.0.0/30", "extra-pod-cidrs"] {
            assert!(said[0].contains(word), "{said:?}");
        }
    }
}
