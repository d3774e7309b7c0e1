//! Services: defaults, addresses from the configured ranges, node ports.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::api::error::Cause;
use crate::api::meta::{default, items, section_mut, text};
use crate::api::store::State;

/// Node ports that an API server hands out by default.
const NODE_PORTS: std::ops::Range<u64> = 30_000..32_768;

pub(super) fn on_create(state: &State, service: &mut Value) -> Vec<Cause> {
    service["status"] = json!({ "loadBalancer": {} });
    complete(state, service)
}

pub(super) fn on_update(state: &State, old: &Value, new: &mut Value) -> Vec<Cause> {
    let Some(spec) = section_mut(new, "spec") else {
        return vec![Cause::invalid("spec", "has to be an object")];
    };
    if spec.get("type").and_then(Value::as_str) != Some("ExternalName") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let (None, Some(known)) = (spec.get(field), old["spec"].get(field)) {
                spec.insert(field.into(), known.clone());
            }
        }
        let (before, after) = (text(old, "/spec/clusterIP"), text(new, "/spec/clusterIP"));
        if !before.is_empty() && before != after {
            return vec![Cause::invalid(
                "spec.clusterIP",
                format!("\"{after}\": field is immutable"),
            )];
        }
    }
    complete(state, new)
}

fn complete(state: &State, service: &mut Value) -> Vec<Cause> {
    let taken_ports = used_node_ports(state, service);
    let taken = used_addresses(state, service);
    let Some(spec) = section_mut(service, "spec") else {
        return vec![Cause::invalid("spec", "has to be an object")];
    };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    let kind = spec["type"].as_str().unwrap_or("").to_string();
    let external = kind == "ExternalName";
    let headless = spec.get("clusterIP").and_then(Value::as_str) == Some("None");
    if !external
        && !headless
        && spec.get("ports").and_then(Value::as_array).is_none_or(Vec::is_empty)
    {
        return vec![Cause::required("spec.ports", "a service has at least one port")];
    }
    complete_ports(spec, &kind, taken_ports);
    if external {
        ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]
            .iter()
            .for_each(|f| drop(spec.remove(*f)));
        return Vec::new();
    }
    default(spec, "internalTrafficPolicy", "Cluster");
    if kind != "ClusterIP" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    match addresses(&state.config.service_cidrs, spec, headless, &taken) {
        Err(cause) => vec![cause],
        Ok(()) => Vec::new(),
    }
}

fn others<'a>(state: &'a State, service: &Value) -> impl Iterator<Item = &'a Value> {
    let uid = text(service, "/metadata/uid").to_string();
    state
        .objects("services")
        .values()
        .map(AsRef::as_ref)
        .filter(move |s| text(s, "/metadata/uid") != uid)
}

fn used_addresses(state: &State, service: &Value) -> HashSet<IpAddr> {
    let all = others(state, service).flat_map(|s| items(s, "/spec/clusterIPs"));
    all.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn used_node_ports(state: &State, service: &Value) -> HashSet<u64> {
    let all = others(state, service).flat_map(|s| items(s, "/spec/ports"));
    all.filter_map(|port| port["nodePort"].as_u64()).collect()
}

fn complete_ports(spec: &mut Map<String, Value>, kind: &str, mut taken: HashSet<u64>) {
    let exposed = kind == "NodePort" || kind == "LoadBalancer";
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
        match port.get("nodePort").and_then(Value::as_u64) {
            _ if !exposed => drop(port.remove("nodePort")),
            Some(given) if given > 0 => drop(taken.insert(given)),
            _ => {
                if let Some(free) = NODE_PORTS.into_iter().find(|p| !taken.contains(p)) {
                    taken.insert(free);
                    port.insert("nodePort".into(), json!(free));
                }
            }
        }
    }
}

/// Which families the service wants, in order; each index is one of the ranges.
fn wanted(cidrs: &[IpNet], spec: &Map<String, Value>) -> Result<Vec<IpNet>, Cause> {
    let named = |family: &str| {
        let range = cidrs.iter().find(|net| family_name(&net.addr()) == family);
        range.copied().ok_or_else(|| {
            Cause::invalid("spec.ipFamilies", format!("\"{family}\": not configured on cluster"))
        })
    };
    let families: Vec<&str> = spec
        .get("ipFamilies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut chosen = families.into_iter().map(named).collect::<Result<Vec<_>, _>>()?;
    let given =
        spec.get("clusterIP").and_then(Value::as_str).and_then(|ip| ip.parse::<IpAddr>().ok());
    if let (true, Some(ip)) = (chosen.is_empty(), given) {
        chosen.push(named(family_name(&ip))?);
    }
    let policy = spec.get("ipFamilyPolicy").and_then(Value::as_str).unwrap_or("SingleStack");
    if policy == "RequireDualStack" && cidrs.len() < 2 {
        return Err(Cause::invalid(
            "spec.ipFamilyPolicy",
            "RequireDualStack: this cluster is not configured for dual-stack services",
        ));
    }
    let count = if policy == "SingleStack" { chosen.len().max(1) } else { 2 };
    let rest: Vec<IpNet> = cidrs.iter().filter(|net| !chosen.contains(net)).copied().collect();
    chosen.extend(rest.into_iter().take(count.saturating_sub(chosen.len())));
    Ok(chosen)
}

fn family_name(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn addresses(
    cidrs: &[IpNet],
    spec: &mut Map<String, Value>,
    headless: bool,
    taken: &HashSet<IpAddr>,
) -> Result<(), Cause> {
    let ranges = wanted(cidrs, spec)?;
    let given: Vec<Value> = match spec.get("clusterIPs").and_then(Value::as_array) {
        Some(list) => list.clone(),
        None => spec
            .get("clusterIP")
            .filter(|ip| ip.as_str() != Some(""))
            .cloned()
            .into_iter()
            .collect(),
    };
    let families: Vec<&str> = ranges.iter().map(|net| family_name(&net.addr())).collect();
    spec.insert("ipFamilies".into(), json!(families));
    let policy = if families.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    default(spec, "ipFamilyPolicy", policy);
    if headless {
        spec.insert("clusterIPs".into(), json!(["None"]));
        return Ok(());
    }
    let mut all = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        all.push(match given.get(i).and_then(Value::as_str) {
            Some(ip) => reserve(range, ip, taken)?,
            None => allocate(range, taken)?,
        });
    }
    spec.insert("clusterIP".into(), all.first().map_or(Value::Null, |ip| json!(ip)));
    spec.insert("clusterIPs".into(), json!(all));
    Ok(())
}

fn reserve(range: &IpNet, ip: &str, taken: &HashSet<IpAddr>) -> Result<IpAddr, Cause> {
    let refuse = |why: &str| {
        Cause::invalid("spec.clusterIPs", format!("[\"{ip}\"]: failed to allocate IP {ip}: {why}"))
    };
    let address: IpAddr = ip.parse().map_err(|_| refuse("not an IP address"))?;
    if !range.contains(&address) {
        return Err(refuse(&format!("the provided IP is not in the valid range {range}")));
    }
    if taken.contains(&address) {
        Err(refuse("provided IP is already allocated"))
    } else {
        Ok(address)
    }
}

/// The first free address; network and broadcast address are left out.
fn allocate(range: &IpNet, taken: &HashSet<IpAddr>) -> Result<IpAddr, Cause> {
    let (base, last) = (number(range.network()), number(range.broadcast()));
    let mut candidates = (base + 1..last).take(taken.len() + 1).map(|n| address(range, n));
    let free = candidates.find(|ip| !taken.contains(ip));
    free.ok_or_else(|| {
        Cause::invalid(
            "spec.clusterIPs",
            format!("range {range} is full: delete a service or configure a larger range"),
        )
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn address(range: &IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
