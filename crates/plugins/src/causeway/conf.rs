//! The configuration of type `causeway`: next to nothing, because the node file says the rest.

use causeway_cni_spec::{CniError, HostLocal, conf};
use causeway_types::state::NodeFile;
use serde_json::{Value, json};

use crate::call::Call;

/// Refuses what type `causeway` would otherwise pass over.
///
/// # Errors
/// Code 7 for an `ipam` part, code 2 for capabilities that are not supported yet.
pub(crate) fn check(call: &Call) -> Result<(), CniError> {
    if let Some(ipam) = &call.conf.ipam {
        return Err(CniError::invalid_config(format!(
            "key \"ipam\" (type {:?}) is given, but type \"causeway\" takes addresses from the \
             node's pod subnets: remove it, or use type \"bridge\"",
            ipam.plugin_type
        )));
    }
    let runtime = &call.conf.runtime_config;
    if let Some(mapping) = runtime.port_mappings.iter().find(|m| m.host_port != 0) {
        let value = format!("{}:{}", mapping.host_port, mapping.container_port);
        let why = "remove the host port, or chain the plugin \"portmap\" after this one";
        return Err(CniError::unsupported_field("runtimeConfig.portMappings", value, why));
    }
    let limited = runtime.bandwidth.as_ref().filter(|b| b.ingress_rate > 0 || b.egress_rate > 0);
    if let Some(limit) = limited {
        let value = format!("{} in, {} out", limit.ingress_rate, limit.egress_rate);
        let why = "remove the limit, or chain the plugin \"bandwidth\" after this one";
        return Err(CniError::unsupported_field("runtimeConfig.bandwidth", value, why));
    }
    if !runtime.ip_ranges.is_empty() {
        let why = "the node's pod subnets decide; remove it";
        return Err(CniError::unsupported_field("runtimeConfig.ipRanges", "…", why));
    }
    Ok(())
}

/// Address management from the node's pod subnets: one address of each, the gateway (the subnet's
/// first address, which is the node's own) left out.
///
/// # Errors
/// Code 11 while the node has no pod subnet, code 7 for a bad request for addresses.
pub(crate) fn host_local(call: &Call, node: &NodeFile) -> Result<HostLocal, CniError> {
    if node.pod_cidrs.is_empty() {
        return Err(CniError::try_again(format!(
            "node {} has no pod subnet in {}; see `causeway status`",
            node.node,
            call.paths.node_file.display()
        )));
    }
    let ranges: Vec<Value> = node.pod_cidrs.iter().map(|c| json!([{"subnet": c}])).collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "dataDir": call.paths.leases});
    let Value::Object(raw) = ipam else { return Err(CniError::internal("not an object")) };
    let mut conf = call.conf.clone();
    conf.ipam = Some(conf::Ipam { plugin_type: "host-local".to_owned(), raw });
    HostLocal::parse(&conf, &call.args)
}
