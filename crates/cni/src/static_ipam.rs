//! Configuration of the IPAM plugin `static`: addresses that are written down, from all the places
//! where they may be.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::args::CniArgs;
use crate::conf::NetConf;
use crate::error::CniError;
use crate::result::{CniResult, Dns, IpConfig, Route, ip_or_none, null_is_default};

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Static {
    /// The addresses, on no named interface.
    pub ips: Vec<IpConfig>,
    /// Routes to pass on in the result.
    pub routes: Vec<Route>,
    /// Name resolution to pass on in the result.
    pub dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Vec<RawAddress>,
    #[serde(deserialize_with = "null_is_default")]
    routes: Vec<Route>,
    #[serde(deserialize_with = "null_is_default")]
    dns: Dns,
}

#[derive(Deserialize)]
struct RawAddress {
    address: String,
    #[serde(default, deserialize_with = "ip_or_none")]
    gateway: Option<IpAddr>,
}

impl Static {
    /// Reads `ipam` of a configuration together with the `ips` capability, `args.cni.ips` and `IP`
    /// and `GATEWAY` of `CNI_ARGS`. Those of `CNI_ARGS` are added to the configured ones; `ips` of
    /// `args.cni` take the place of all these, and those of the capability the place of all.
    ///
    /// # Errors
    /// Code 6 for keys of the wrong type, code 7 for an address without the length of its network,
    /// and for two of a family where the version has room for one.
    pub fn parse(conf: &NetConf, args: &CniArgs) -> Result<Static, CniError> {
        Self::parse_inner(conf, args).map_err(|e| e.in_version(conf.cni_version))
    }

    fn parse_inner(conf: &NetConf, args: &CniArgs) -> Result<Static, CniError> {
        let ipam = conf.ipam.as_ref().ok_or_else(|| {
            CniError::invalid_config("key \"ipam\" is missing: static reads its addresses there")
        })?;
        let raw: Raw = ipam.fields()?;
        let from_args: Vec<String> = conf.args_cni_key("ips")?.unwrap_or_default();
        let ips = if !conf.runtime_config.ips.is_empty() {
            bare(&conf.runtime_config.ips, "runtimeConfig.ips")?
        } else if !from_args.is_empty() {
            bare(&from_args, "args.cni.ips")?
        } else {
            let mut ips = Vec::new();
            for (i, a) in raw.addresses.iter().enumerate() {
                let address = with_length(&a.address, &format!("ipam.addresses[{i}].address"))?;
                ips.push(IpConfig::new(address, a.gateway));
            }
            ips.extend(of_environment(args)?);
            ips
        };
        if conf.cni_version.is_legacy() {
            one_of_each_family(&ips, conf)?;
        }
        Ok(Static { ips, routes: raw.routes, dns: raw.dns })
    }

    /// What ADD answers.
    pub fn result(&self) -> CniResult {
        let Static { ips, routes, dns } = self.clone();
        CniResult { ips, routes, dns, interfaces: Vec::new() }
    }
}

fn bare(texts: &[String], key: &str) -> Result<Vec<IpConfig>, CniError> {
    texts.iter().map(|text| Ok(IpConfig::new(with_length(text, key)?, None))).collect()
}

/// `IP` and `GATEWAY` of `CNI_ARGS`, with commas: each gateway is that of the address whose network
/// it is in.
fn of_environment(args: &CniArgs) -> Result<Vec<IpConfig>, CniError> {
    let list = |key| args.get(key).unwrap_or_default().split(',').filter(|t| !t.is_empty());
    let mut gateways: Vec<IpAddr> = Vec::new();
    for text in list("GATEWAY") {
        gateways.push(text.trim().parse().map_err(|_| {
            CniError::environment(format!("invalid address {text:?} in CNI_ARGS key GATEWAY"))
        })?);
    }
    list("IP")
        .map(|text| {
            let address = with_length(text.trim(), "IP of CNI_ARGS")?;
            let gateway = gateways.iter().copied().rfind(|g| address.contains(g));
            Ok(IpConfig::new(address, gateway))
        })
        .collect()
}

fn with_length(text: &str, key: &str) -> Result<IpNet, CniError> {
    text.parse().map_err(|_| {
        CniError::invalid_config(format!(
            "{key} is {text:?}: expected an address with the length of its network, as 10.1.0.5/24"
        ))
    })
}

fn one_of_each_family(ips: &[IpConfig], conf: &NetConf) -> Result<(), CniError> {
    let v4 = ips.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if v4 <= 1 && ips.len() - v4 <= 1 {
        return Ok(());
    }
    Err(CniError::invalid_config(format!(
        "key \"ipam.addresses\": results of CNI version {} have room for one address of each \
         family; remove the others, or set \"cniVersion\" to 0.3.1 or newer",
        conf.cni_version
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Version};

    fn parse(extra: &str, args: &str) -> Result<Vec<String>, CniError> {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","type":"static","ipam":{{"type":"static",
            "addresses":[{{"address":"10.5.0.7/24","gateway":"10.5.0.9"}}]}}{extra}}}"#
        );
        let conf = NetConf::parse(text.as_bytes(), Command::Add, &Version::ALL)?;
        let found = Static::parse(&conf, &CniArgs::parse(args)?)?;
        let show = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} via {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        Ok(found.ips.iter().map(show).collect())
    }

    /// As observed of the reference.
    #[test]
    fn sources_in_their_order() {
        let own = "10.5.0.7/24 via 10.5.0.9";
        assert_eq!(parse("", "").unwrap(), [own]);
        let both = parse("", "IP=10.6.0.7/24,fd06::7/64;GATEWAY=10.6.0.1,fd06::1").unwrap();
        assert_eq!(both, [own, "10.6.0.7/24 via 10.6.0.1", "fd06::7/64 via fd06::1"]);
        // A gateway of CNI_ARGS is for addresses of CNI_ARGS alone.
        let foreign = parse("", "IP=10.6.0.7/24;GATEWAY=10.5.0.1").unwrap();
        assert_eq!(foreign, [own, "10.6.0.7/24"]);
        let args = r#","args":{"cni":{"ips":["10.8.0.7/24"]}}"#;
        assert_eq!(parse(args, "IP=10.6.0.7/24").unwrap(), ["10.8.0.7/24"]);
        let all = format!(r#"{args},"runtimeConfig":{{"ips":["10.11.0.7/24","fd11::7/64"]}}"#);
        assert_eq!(parse(&all, "IP=10.6.0.7/24").unwrap(), ["10.11.0.7/24", "fd11::7/64"]);
    }

    #[test]
    fn bad_input_is_named() {
        for (extra, args, code, word) in [
            (r#","runtimeConfig":{"ips":["10.11.0.8"]}"#, "", 7, "runtimeConfig.ips"),
            (r#","args":{"cni":{"ips":["x"]}}"#, "", 7, "args.cni.ips"),
            (r#","args":{"cni":{"ips":7}}"#, "", 6, "args.cni.ips"),
            ("", "IP=10.6.0.7", 7, "CNI_ARGS"),
            ("", "IP=10.6.0.7/24;GATEWAY=y", 4, "GATEWAY"),
        ] {
            let err = parse(extra, args).unwrap_err();
            assert_eq!(err.code, code, "{extra} {args}: {err}");
            assert!(err.msg.contains(word), "{extra} {args}: {err}");
        }
    }
}
