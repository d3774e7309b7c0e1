//! Configuration of the IPAM plugin `host-local`, from all the places where it may be written,
//! checked into sets of ranges.

use std::net::IpAddr;
use std::path::PathBuf;

use causeway_ipam::{Range, RangeSet, check_disjoint};
use serde::Deserialize;

use crate::args::{CniArgs, parse_ip};
use crate::conf::NetConf;
use crate::error::CniError;
use crate::result::{Route, null_is_default};
use crate::runtime_config::RangeConf;
use crate::version::Version;

/// Where leases are kept unless `dataDir` says otherwise, one directory per network.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct HostLocal {
    /// Name of the network, which names the directory of its leases.
    pub network: String,
    /// One address of each set goes to an attachment. The index is the number in the name of
    /// the file that remembers the last address (`last_reserved_ip.INDEX`).
    pub sets: Vec<RangeSet>,
    /// Routes to pass on in the result.
    pub routes: Vec<Route>,
    /// Directory above the network's own; [`DEFAULT_DATA_DIR`] if not set.
    pub data_dir: PathBuf,
    /// A file like resolv.conf to read `dns` of the result from.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses asked for, without repetition; each is for the set that contains it, and an ADD
    /// that cannot give all of them fails.
    pub requested: Vec<IpAddr>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    #[serde(deserialize_with = "null_is_default")]
    ranges: Vec<Vec<RangeConf>>,
    #[serde(deserialize_with = "null_is_default")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "null_is_default")]
    data_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    resolv_conf: String,
}

impl HostLocal {
    /// Reads `ipam` of a configuration together with `runtimeConfig` (`ipRanges`, `ips`),
    /// `args.cni.ips` and the `IP` of `CNI_ARGS`. Ranges of the runtime come first, then the old
    /// single range (`subnet`, `rangeStart`, `rangeEnd`, `gateway`), then `ranges`.
    ///
    /// # Errors
    /// Code 6 for keys of the wrong type, code 7 for ranges that make no sense: each names the
    /// key and what would be right.
    pub fn parse(conf: &NetConf, args: &CniArgs) -> Result<HostLocal, CniError> {
        Self::parse_inner(conf, args).map_err(|e| e.in_version(conf.cni_version))
    }

    fn parse_inner(conf: &NetConf, args: &CniArgs) -> Result<HostLocal, CniError> {
        let ipam = conf.ipam.as_ref().ok_or_else(|| {
            CniError::invalid_config("key \"ipam\" is missing: host-local reads its ranges there")
        })?;
        let raw: Raw = ipam.fields()?;
        // Not flattened into Raw: the path of a wrong key would be lost on the way.
        let old: RangeConf = ipam.fields()?;

        let mut sets = Vec::new();
        for (i, set) in conf.runtime_config.ip_ranges.iter().enumerate() {
            sets.push(range_set(set, &format!("runtimeConfig.ipRanges[{i}]"))?);
        }
        if old.subnet.is_some() {
            sets.push(range_set(std::slice::from_ref(&old), "ipam")?);
        }
        for (i, set) in raw.ranges.iter().enumerate() {
            sets.push(range_set(set, &format!("ipam.ranges[{i}]"))?);
        }
        check_sets(&sets, conf.cni_version)?;

        Ok(HostLocal {
            network: conf.name.clone(),
            sets,
            routes: raw.routes,
            data_dir: non_empty(raw.data_dir).unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            resolv_conf: non_empty(raw.resolv_conf),
            requested: requested(conf, args)?,
        })
    }

    /// The directory of the network's leases.
    pub fn lease_dir(&self) -> PathBuf {
        self.data_dir.join(&self.network)
    }
}

fn non_empty(path: String) -> Option<PathBuf> {
    (!path.is_empty()).then(|| PathBuf::from(path))
}

fn range_set(ranges: &[RangeConf], at: &str) -> Result<RangeSet, CniError> {
    let invalid =
        |e: String| CniError::invalid_config(format!("invalid range set at key \"{at}\": {e}"));
    let ranges = ranges
        .iter()
        .map(|r| {
            let subnet = r.subnet.ok_or_else(|| invalid("key \"subnet\" is missing".to_owned()))?;
            Range::new(subnet, r.range_start, r.range_end, r.gateway)
                .map_err(|e| invalid(e.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    RangeSet::new(ranges).map_err(|e| invalid(e.to_string()))
}

fn check_sets(sets: &[RangeSet], version: Version) -> Result<(), CniError> {
    if sets.is_empty() {
        return Err(CniError::invalid_config(
            "no IP ranges specified: set \"ipam.subnet\" or \"ipam.ranges\"",
        ));
    }
    check_disjoint(sets)
        .map_err(|e| CniError::invalid_config(format!("invalid \"ipam\": range sets: {e}")))?;
    let of_ipv4 = sets.iter().filter(|s| s.is_ipv4()).count();
    if version.is_legacy() && (of_ipv4 > 1 || sets.len() - of_ipv4 > 1) {
        return Err(CniError::invalid_config(format!(
            "CNI version {version} does not support more than 1 address per family: use \"cniVersion\" 0.3.0 or newer, or fewer range sets"
        )));
    }
    Ok(())
}

fn requested(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, CniError> {
    let from_args: Vec<String> = conf.args_cni_key("ips")?.unwrap_or_default();
    let mut all = args.ips.clone();
    for (key, list) in
        [("args.cni.ips", &from_args), ("runtimeConfig.ips", &conf.runtime_config.ips)]
    {
        for (i, text) in list.iter().enumerate() {
            all.push(parse_ip(text).ok_or_else(|| {
                CniError::decoding(format!("key \"{key}[{i}]\" is {text:?}: not an IP address"))
            })?);
        }
    }
    let mut unique = Vec::new();
    for ip in all {
        if !unique.contains(&ip) {
            unique.push(ip);
        }
    }
    Ok(unique)
}
