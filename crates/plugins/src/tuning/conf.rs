//! The configuration of type `tuning`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use causeway_cni_spec::CniError;
use causeway_kernel::tune::Attributes;
use causeway_types::{Mac, Mtu};
use serde::de::DeserializeOwned;

use super::pattern::Pattern;
use crate::call::Call;
use crate::files;

/// Where values are kept while they are changed.
const DATA_DIR: &str = "/run/cni/tuning";
/// The parameters that an administrator allows, one expression a line; without the file, all.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";
/// Stands for the interface of the call.
const PLACEHOLDER: &str = "IFNAME";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TuningConf {
    /// Paths below `/proc/sys`, and values.
    pub(super) sysctls: BTreeMap<String, String>,
    /// What the interface is to have.
    pub(super) attributes: Attributes,
    /// Where values are kept.
    pub(super) data_dir: PathBuf,
}

/// One key of the configuration or, where it counts more, of `args.cni`.
fn key<T: DeserializeOwned>(call: &Call, key: &str) -> Result<Option<T>, CniError> {
    let own = call.conf.key(key)?;
    Ok(call.conf.args_cni_key(key)?.or(own))
}

impl TuningConf {
    /// Reads and checks the configuration of a call.
    ///
    /// # Errors
    /// Code 6 for wrong types, code 7 for what makes no sense or is not allowed, code 5 when the
    /// list of allowed parameters cannot be read.
    pub(super) fn of(call: &Call) -> Result<Self, CniError> {
        let mut keys: BTreeMap<String, String> = call.conf.key("sysctl")?.unwrap_or_default();
        keys.extend(call.conf.args_cni_key::<BTreeMap<_, _>>("sysctl")?.unwrap_or_default());
        refuse_others(&keys)?;
        let mut sysctls = BTreeMap::new();
        for (key, value) in keys {
            sysctls.insert(path(&key, &call.env.ifname)?, value);
        }
        let attributes = Attributes {
            mac: mac([
                ("args.cni.mac", call.conf.args_cni_key("mac")?),
                ("runtimeConfig.mac", call.conf.runtime_config.mac.clone()),
                ("MAC in CNI_ARGS", call.args.mac.clone()),
                ("key \"mac\"", call.conf.key("mac")?),
            ])?,
            mtu: mtu(key(call, "mtu")?.unwrap_or(0))?,
            // Nobody is made to stop listening.
            promisc: key(call, "promisc")?.filter(|on| *on),
            allmulti: key(call, "allmulti")?,
            tx_queue_len: queue(key(call, "txQLen")?)?,
        };
        Ok(Self { sysctls, attributes, data_dir: data_dir(call)? })
    }
}

/// The directory alone, for commands that must get on whatever else is configured.
///
/// # Errors
/// Code 6 for a wrong type, code 7 for a path that is not absolute.
pub(super) fn data_dir(call: &Call) -> Result<PathBuf, CniError> {
    let named = call.conf.key::<String>("dataDir")?.filter(|d| !d.is_empty());
    let dir = PathBuf::from(named.unwrap_or_else(|| DATA_DIR.to_owned()));
    if dir.is_absolute() {
        return Ok(dir);
    }
    Err(CniError::invalid_config(format!(
        "key \"dataDir\" is {dir:?}: must be an absolute path, such as {DATA_DIR}"
    )))
}

/// The path of a parameter. As with sysctl(8), the first separator of a key is the one that counts,
/// and the other is then part of a name: `net.ipv4.conf.eth0/1.mtu` and `net/ipv4/conf/eth0.1/mtu` are
/// both of `eth0.1`.
fn path(key: &str, ifname: &str) -> Result<String, CniError> {
    let bad = |why: &str| CniError::invalid_config(format!("sysctl {key:?}: {why}"));
    let separator = key.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    let parts = key.split(separator).map(|part| match part {
        PLACEHOLDER => ifname.to_owned(),
        part if separator == '.' => part.replace('/', "."),
        part => part.to_owned(),
    });
    let parts: Vec<String> = parts.collect();
    if parts.iter().any(|p| matches!(p.as_str(), "" | "." | "..") || p.contains(['/', '\0'])) {
        return Err(bad("not the name of a parameter, as net.core.somaxconn"));
    }
    if parts.len() < 2 || parts[0] != "net" {
        return Err(bad(
            "only parameters below net belong to the pod's namespace; all others are the node's",
        ));
    }
    Ok(parts.join("/"))
}

/// The list holds for the keys as they are written, as with the reference.
fn refuse_others(keys: &BTreeMap<String, String>) -> Result<(), CniError> {
    if keys.is_empty() {
        return Ok(());
    }
    let Some(list) = files::read(ALLOWLIST.as_ref())? else { return Ok(()) };
    let mut patterns = Vec::new();
    for line in String::from_utf8_lossy(&list).lines().map(str::trim).filter(|l| !l.is_empty()) {
        patterns.push(Pattern::parse(line).map_err(|why| {
            CniError::invalid_config(format!("cannot understand {line:?} in {ALLOWLIST}: {why}"))
        })?);
    }
    match keys.keys().find(|key| !patterns.iter().any(|p| p.matches(key))) {
        None => Ok(()),
        Some(key) => Err(CniError::invalid_config(format!(
            "sysctl {key:?} is not allowed on this node: no line of {ALLOWLIST} matches it"
        ))),
    }
}

/// The first that is given.
fn mac(asked: [(&str, Option<String>); 4]) -> Result<Option<Mac>, CniError> {
    let given = asked.into_iter().find_map(|(key, v)| Some((key, v.filter(|v| !v.is_empty())?)));
    let Some((key, text)) = given else { return Ok(None) };
    let bad = |why: &str| CniError::invalid_config(format!("{key} is {text:?}: {why}"));
    let mac: Mac = text.parse().map_err(|_| bad("expected six pairs of hex digits, aa:bb:…"))?;
    if mac.is_unicast() {
        Ok(Some(mac))
    } else {
        Err(bad("an interface cannot carry a multicast or zero address"))
    }
}

fn mtu(bytes: i64) -> Result<Option<u32>, CniError> {
    if bytes == 0 {
        return Ok(None);
    }
    let checked = u32::try_from(bytes).ok().and_then(|b| Mtu::new(b).ok());
    checked.map(|mtu| Some(mtu.get())).ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"mtu\" is {bytes}: must be 68 to 65535 bytes, or 0 to leave it"
        ))
    })
}

fn queue(len: Option<i64>) -> Result<Option<u32>, CniError> {
    let Some(len) = len else { return Ok(None) };
    // The kernel's is an int.
    u32::try_from(len).ok().filter(|n| *n <= i32::MAX as u32).map(Some).ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"txQLen\" is {len}: must be 0 to 2147483647 packets"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (key, wanted) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.IFNAME.arp_filter", "net/ipv4/conf/eth0.7/arp_filter"),
            ("net/ipv4/conf/IFNAME/arp_filter", "net/ipv4/conf/eth0.7/arp_filter"),
            ("net.ipv4.conf.eth0/1.arp_filter", "net/ipv4/conf/eth0.1/arp_filter"),
            ("net/ipv4/conf/eth0.1/arp_filter", "net/ipv4/conf/eth0.1/arp_filter"),
        ] {
            assert_eq!(path(key, "eth0.7").unwrap(), wanted, "{key}");
        }
        for key in [
            "",
            "net",
            "net.",
            "kernel.hostname",
            "net/../kernel/hostname",
            "net/./core/somaxconn",
            "net..core",
            "/net/core",
            "net.core.//.x",
            "net.core//../x",
            "net./.x",
        ] {
            assert_eq!(path(key, "eth0").map_err(|e| e.code), Err(7), "{key}");
        }
    }
}
