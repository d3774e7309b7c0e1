//! The CNI configuration list that the agent writes.

use causeway_types::state::NodeFile;
use causeway_types::{Cidr, Family, names};
use serde_json::{Value, json};

use crate::input::{Config, PluginType};

/// Renders the list: type `causeway`, which does all that runtimes ask for, or the classic bridge with
/// the node's own subnets and, after it, what limits pods and gives them ports of the node.
pub fn render(config: &Config, node: &NodeFile) -> Value {
    let plugins = match config.plugin {
        PluginType::Causeway => {
            vec![json!({"type": "causeway", "capabilities": {
                "portMappings": true, "bandwidth": true, "ips": true, "mac": true,
                names::ANNOTATIONS_CAPABILITY: true,
            }})]
        }
        PluginType::Bridge => vec![
            bridge(config, node),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        ],
    };
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": config.network,
        "plugins": plugins,
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
        [one] if node.extra_cidrs.is_empty() => {
            json!({"type": "host-local", "subnet": one, "routes": routes})
        }
        many => {
            let set = |c: &Cidr| {
                let of_family = node.ranges().filter(|r| r.family() == c.family());
                of_family.map(|r| json!({"subnet": r})).collect::<Value>()
            };
            let ranges: Vec<Value> = many.iter().map(set).collect();
            json!({"type": "host-local", "ranges": ranges, "routes": routes})
        }
    };
    json!({
        "type": "bridge",
        "capabilities": {names::ANNOTATIONS_CAPABILITY: true},
        "bridge": config.bridge,
        "isGateway": true,
        "ipMasq": config.masquerade,
        "mtu": node.mtu,
        "ipam": ipam,
    })
}
