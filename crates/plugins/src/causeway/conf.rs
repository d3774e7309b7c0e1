//! The configuration of type `causeway`: next to nothing, because the node file says the rest.

use causeway_cni_spec::{CniError, HostLocal, conf};
use causeway_types::Cidr;
use causeway_types::state::NodeFile;
use serde_json::{Value, json};

use crate::call::Call;

/// Refuses what type `causeway` would otherwise pass over.
///
/// # Errors
/// Code 7 for an `ipam` part, code 2 for the capability `ipRanges`.
pub(crate) fn check(call: &Call) -> Result<(), CniError> {
    if let Some(ipam) = &call.conf.ipam {
        return Err(CniError::invalid_config(format!(
            "key \"ipam\" (type {:?}) is given, but type \"causeway\" takes addresses from the \
             node's pod subnets: remove it, or use type \"bridge\"",
            ipam.plugin_type
        )));
    }
    let runtime = &call.conf.runtime_config;
    if !runtime.ip_ranges.is_empty() {
        let why = "the node's pod subnets decide; remove it";
        return Err(CniError::unsupported_field("runtimeConfig.ipRanges", "…", why));
    }
    Ok(())
}

/// Address management from the node's pod subnets: one address of each, or of the extra ranges of its
/// family, the gateway (the first address of each, which is the node's own) left out.
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
    let set = |cidr: &Cidr| {
        let of_family = node.ranges().filter(|c| c.family() == cidr.family());
        of_family.map(|c| json!({"subnet": c})).collect::<Value>()
    };
    let ranges: Vec<Value> = node.pod_cidrs.iter().map(set).collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "dataDir": call.paths.leases});
    let Value::Object(raw) = ipam else { return Err(CniError::internal("not an object")) };
    let mut conf = call.conf.clone();
    conf.ipam = Some(conf::Ipam { plugin_type: "host-local".to_owned(), raw });
    HostLocal::parse(&conf, &call.args)
}
