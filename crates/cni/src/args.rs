//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE` (CNI 1.1.0, section 2; superseded by capabilities, yet
//! Kubernetes runtimes still name the pod here).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::error::CniError;

const KNOWN: [&str; 8] = [
    "IgnoreUnknown",
    "IP",
    "MAC",
    "GATEWAY",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
];

/// The parsed pairs. Keys that nobody here knows are refused unless `IgnoreUnknown` says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// All pairs as given, unknown ones included.
    pub pairs: BTreeMap<String, String>,
    /// Addresses asked for by `IP` (several with commas; a prefix length is dropped).
    pub ips: Vec<IpAddr>,
    /// The hardware address asked for by `MAC`, as written.
    pub mac: Option<String>,
}

impl CniArgs {
    /// Parses the variable. Empty parts (a `;` at the end) are passed over.
    ///
    /// # Errors
    /// Code 4: a pair without `=`, an unknown key without `IgnoreUnknown=1`, a bad `IP`.
    pub fn parse(text: &str) -> Result<CniArgs, CniError> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|p| !p.trim().is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(CniError::environment(format!(
                    "invalid pair {pair:?} in CNI_ARGS: expected KEY=VALUE, separated by \";\""
                )));
            };
            pairs.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        let lenient = pairs
            .get("IgnoreUnknown")
            .is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true") || v == "t");
        let unknown: Vec<&str> =
            pairs.keys().map(String::as_str).filter(|k| !KNOWN.contains(k)).collect();
        if !lenient && !unknown.is_empty() {
            return Err(CniError::environment(format!(
                "unknown keys [{}] in CNI_ARGS: remove them or add IgnoreUnknown=1",
                unknown.join(",")
            )));
        }
        let mut ips = Vec::new();
        for ip in pairs.get("IP").map_or("", String::as_str).split(',').filter(|s| !s.is_empty()) {
            ips.push(parse_ip(ip).ok_or_else(|| {
                CniError::environment(format!("invalid address {ip:?} in CNI_ARGS key IP"))
            })?);
        }
        let mac = pairs.get("MAC").filter(|m| !m.is_empty()).cloned();
        Ok(CniArgs { pairs, ips, mac })
    }

    /// The value of a key, if it is there and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Namespace of the Kubernetes pod.
    pub fn pod_namespace(&self) -> Option<&str> {
        self.get("K8S_POD_NAMESPACE")
    }

    /// Name of the Kubernetes pod.
    pub fn pod_name(&self) -> Option<&str> {
        self.get("K8S_POD_NAME")
    }

    /// UID of the Kubernetes pod (not sent by every runtime).
    pub fn pod_uid(&self) -> Option<&str> {
        self.get("K8S_POD_UID")
    }

    /// Container ID of the pod's sandbox; the same as `CNI_CONTAINERID` where it is sent.
    pub fn infra_container_id(&self) -> Option<&str> {
        self.get("K8S_POD_INFRA_CONTAINER_ID")
    }
}

/// An address with or without a prefix length (`10.1.2.3` or `10.1.2.3/24`), an IPv4-mapped
/// IPv6 address as the IPv4 address that it means.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let ip = match text.split_once('/') {
        Some(_) => text.parse::<ipnet::IpNet>().ok()?.addr(),
        None => text.parse().ok()?,
    };
    Some(ip.to_canonical())
}
