//! The CNI configuration list that the agent writes.

use causeway_types::state::NodeFile;
use causeway_types::{Cidr, Family};
use serde_json::{Value, json};

use crate::input::{Config, PluginType};

/// Renders the list: type `causeway`, or the classic bridge with the node's own subnets.
pub fn render(config: &Config, node: &NodeFile) -> Value {
    let plugin = match config.plugin {
        PluginType::Causeway => {
            json!({"type": "causeway", "capabilities": {"ips": true, "mac": true}})
        }
        PluginType::Bridge => bridge(config, node),
    };
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": config.network,
        "plugins": [plugin],
    })
}

fn bridge(config: &Config, node: &NodeFile) -> Value {
    let routes: Vec<Value> = node
        .pod_cidrs
        .iter()
        .map(|c| match c.family() {
            Family::V4 => json!({"dst": "0.0.0.0/0"}),
            Family::V6 => json!({"dst": "::/0"}),
        })
        .collect();
    let ipam = match &node.pod_cidrs[..] {
        [one] => json!({"type": "host-local", "subnet": one, "routes": routes}),
        many => {
            let range = |c: &Cidr| json!([{"subnet": c}]);
            let ranges: Vec<Value> = many.iter().map(range).collect();
            json!({"type": "host-local", "ranges": ranges, "routes": routes})
        }
    };
    json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "ipMasq": config.masquerade,
        "mtu": node.mtu,
        "ipam": ipam,
    })
}
