//! Results in the words of each version.
//!
//! | version | addresses | interfaces | routes | `dns` |
//! |---|---|---|---|---|
//! | 0.1.0, 0.2.0 | `ip4` and `ip6`, one each, routes inside | none | by family | always |
//! | 0.3.0 – 0.4.0 | `ips` with `version` | name, mac, sandbox | dst, gw | always |
//! | 1.0.0 | `ips` without `version` | the same | dst, gw | if not empty |
//! | 1.1.0 | the same | and mtu, socketPath, pciID | and mtu, advmss, priority, table, scope | if not empty |

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::CniError;
use crate::json::{Object, decode, get};
use crate::result::{CniResult, Dns, Interface, IpConfig, Route, ip_or_none, null_is_default};
use crate::version::Version;

/// The current form, key by key. Fields that a version lacks are taken out before printing.
#[derive(Serialize, Deserialize)]
struct Current {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    ips: Vec<IpConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    routes: Vec<Route>,
    #[serde(default, skip_serializing_if = "Dns::is_empty", deserialize_with = "null_is_default")]
    dns: Dns,
}

/// The form of 0.1.0 and 0.2.0.
#[derive(Serialize, Deserialize)]
struct Legacy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    #[serde(default, deserialize_with = "null_is_default")]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    routes: Vec<LegacyRoute>,
}

#[derive(Serialize, Deserialize)]
struct LegacyRoute {
    dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "ip_or_none")]
    gw: Option<IpAddr>,
}

impl CniResult {
    /// The result as the JSON object of a version, `cniVersion` included. What an older form has
    /// no word for is left out, as the specification's own conversions do.
    ///
    /// # Errors
    /// Code 2 where a form before 0.3.0 cannot say it: a result without addresses.
    pub fn to_value(&self, version: Version) -> Result<Value, CniError> {
        let mut value =
            if version.is_legacy() { self.to_legacy(version)? } else { self.to_current(version) };
        value["cniVersion"] = json!(version.as_str());
        Ok(value)
    }

    /// [`CniResult::to_value`] as one line of text, for standard output.
    ///
    /// # Errors
    /// As [`CniResult::to_value`].
    pub fn to_json(&self, version: Version) -> Result<String, CniError> {
        Ok(self.to_value(version)?.to_string())
    }

    /// Reads a result of any version. Its own `cniVersion` decides on the form; without one it
    /// is `default`, the version of the configuration around it. `at` is the key that holds it
    /// (`prevResult`), for messages.
    ///
    /// # Errors
    /// Code 6 naming the key that does not fit, code 1 for an unknown version.
    pub fn from_object(object: &Object, default: Version, at: &str) -> Result<Self, CniError> {
        let version = match get(object, "cniVersion") {
            Some(_) => Version::of_object(object).map_err(|e| e.context(at))?,
            None => default,
        };
        let value = Value::Object(object.clone());
        if version.is_legacy() {
            decode::<Legacy>(&value, at).map(from_legacy)
        } else {
            let c = decode::<Current>(&value, at)?;
            Ok(CniResult { interfaces: c.interfaces, ips: c.ips, routes: c.routes, dns: c.dns })
        }
    }

    /// [`CniResult::from_object`] of text, such as a plugin's standard output.
    ///
    /// # Errors
    /// As [`CniResult::from_object`], and code 6 if the text is no JSON object.
    pub fn from_slice(bytes: &[u8], default: Version) -> Result<Self, CniError> {
        let object = crate::json::object_from_slice(bytes, "the result")?;
        CniResult::from_object(&object, default, "")
    }

    fn to_current(&self, version: Version) -> Value {
        let mut interfaces = self.interfaces.clone();
        let mut routes = self.routes.clone();
        if version < Version::V1_1_0 {
            for interface in &mut interfaces {
                interface.mtu = None;
                interface.socket_path.clear();
                interface.pci_id.clear();
            }
            for route in &mut routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        let current = Current { interfaces, ips: self.ips.clone(), routes, dns: self.dns.clone() };
        let mut value = to_value(&current);
        if version < Version::V1_0_0 {
            value["dns"] = to_value(&self.dns);
            for (ip, printed) in self
                .ips
                .iter()
                .zip(value.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten())
            {
                printed["version"] = json!(if is_ipv4(&ip.address) { "4" } else { "6" });
            }
        }
        value
    }

    fn to_legacy(&self, version: Version) -> Result<Value, CniError> {
        let of_family = |ipv4: bool| {
            let ip = self.ips.iter().find(|ip| is_ipv4(&ip.address) == ipv4)?;
            let routes = self.routes.iter().filter(|r| is_ipv4(&r.dst) == ipv4);
            Some(LegacyIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.map(|r| LegacyRoute { dst: r.dst, gw: r.gw }).collect(),
            })
        };
        let legacy = Legacy { ip4: of_family(true), ip6: of_family(false), dns: self.dns.clone() };
        if legacy.ip4.is_none() && legacy.ip6.is_none() {
            return Err(CniError::unsupported_field(
                "cniVersion",
                version,
                "a result without addresses cannot be written in it; use 0.3.0 or newer",
            ));
        }
        Ok(to_value(&legacy))
    }
}

fn from_legacy(legacy: Legacy) -> CniResult {
    let mut result = CniResult { dns: legacy.dns, ..CniResult::default() };
    for ip in [legacy.ip4, legacy.ip6].into_iter().flatten() {
        result.ips.push(IpConfig::new(ip.ip, ip.gateway));
        result.routes.extend(ip.routes.into_iter().map(|r| Route::new(r.dst, r.gw)));
    }
    result
}

fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain structs with text keys always serialize")
}
