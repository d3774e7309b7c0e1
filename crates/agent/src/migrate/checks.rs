//! Whether a node can be taken over, beside its pods: what the former network says of itself, the Node
//! object, the kernel and the configuration of the agent must be of one mind.

use std::collections::BTreeSet;

use causeway_desired::input::{Config, Former, NodeInfo, PluginType, Road};
use causeway_model::{Link, LinkKind, Object, Observed};
use causeway_types::state::Attach;
use causeway_types::{Cidr, Family, IfName};
use ipnet::IpNet;

use super::Options;
use super::former::{self, Lists};

/// What is looked at.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a Options,
    pub(super) lists: &'a Lists,
    pub(super) own: Result<&'a NodeInfo, &'a String>,
    pub(super) seen: &'a Observed,
    /// The node was taken over in this boot already, and the run may have been cut off.
    pub(super) again: bool,
}

/// All that is in the way, a line each: what, where, and what to do.
pub(super) fn reasons(ground: &Ground<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    configuration(ground, &mut reasons);
    if ground.options.from == Former::Flannel {
        daemon(ground.options, &mut reasons);
        if !ground.again {
            flannel(ground, &mut reasons);
        }
    }
    match ground.own {
        Ok(own) => node(ground, own, &mut reasons),
        Err(why) => reasons.push(format!("the Node object of this node is not known: {why}")),
    }
    reasons
}

fn configuration(ground: &Ground<'_>, reasons: &mut Vec<String>) {
    let config = ground.config;
    let mut want = |ok: bool, key: &str, value: &str| {
        if !ok {
            reasons.push(format!("the agent's configuration needs `{key}: {value}`"));
        }
    };
    want(config.plugin == PluginType::Bridge, "plugin", "bridge");
    want(config.attach == Attach::Bridge, "attach", "bridge");
    match ground.options.from {
        Former::Flannel => want(config.road == Road::Vxlan, "road", "vxlan"),
        Former::Bridge => want(config.road != Road::Vxlan, "road", "direct"),
    }
    for network in &ground.lists.networks {
        want(*network == config.network, "network", network);
    }
    for bridge in &ground.lists.bridges {
        want(*bridge == config.bridge.as_str(), "bridge", bridge);
    }
}

fn daemon(options: &Options, reasons: &mut Vec<String>) {
    match former::flanneld() {
        Some(None) => {}
        Some(Some(pid)) => reasons.push(format!(
            "flanneld runs on this node (process {pid}): keep its DaemonSet off the node, by a label that \
             its affinity excludes"
        )),
        None if options.flannel_is_off => {}
        None => reasons.push(
            "whether flanneld runs cannot be seen from here, where not all processes are: say \
             --flannel-is-off, or run this with hostPID"
                .to_owned(),
        ),
    }
}

fn flannel(ground: &Ground<'_>, reasons: &mut Vec<String>) {
    let config = ground.config;
    let tunnels: Vec<(Family, &Link)> = former::tunnels(ground.seen, config).collect();
    if tunnels.is_empty() {
        let other = ground.seen.iter().find_map(|(_, o)| match o {
            Object::Link(l) if l.name.as_str().starts_with("flannel") => Some(l.name.to_string()),
            _ => None,
        });
        let vni = config.vni.get();
        reasons.push(match other {
            Some(name) => format!(
                "flannel's device is {name}, and the agent's configuration has `vni: {vni}`: the number in \
                 the name is the VNI"
            ),
            None => format!("there is no device flannel.{vni} or flannel-v6.{vni}: only the backend vxlan \
                             can be taken over"),
        });
    }
    for (family, link) in &tunnels {
        match &link.kind {
            LinkKind::Vxlan(vxlan) if vxlan.port != config.vxlan_port => reasons.push(format!(
                "device {} has UDP port {}: the agent's configuration needs `vxlanPort: {}`",
                link.name, vxlan.port, vxlan.port
            )),
            LinkKind::Vxlan(vxlan) if Family::of(vxlan.local) == *family => {}
            _ => reasons.push(format!(
                "device {} is not as flannel makes it (vxlan over {family}, nolearning, with a local \
                 address); `ip -d link show {}`",
                link.name, link.name
            )),
        }
    }
    subnet_file(ground, reasons);
}

/// What flanneld wrote must be on the bridge.
fn subnet_file(ground: &Ground<'_>, reasons: &mut Vec<String>) {
    let path = ground.options.subnet_file.display();
    let said = match former::subnet_file(&ground.options.subnet_file) {
        Ok(said) => said,
        Err(e) => {
            return reasons.push(format!("{path}: {e}; flanneld has not been here since the boot"));
        }
    };
    let present = addresses(ground.seen, &ground.config.bridge);
    for (key, value) in said.iter().filter(|(key, _)| key.ends_with("SUBNET")) {
        match value.parse::<IpNet>() {
            Ok(net) if present.contains(&net) => {}
            _ => reasons.push(format!(
                "{path} has {key}={value}, and bridge {} has {}: pods are of an older subnet; drain the \
                 node and reboot it",
                ground.config.bridge,
                list(&present)
            )),
        }
    }
}

fn addresses(seen: &Observed, dev: &IfName) -> BTreeSet<IpNet> {
    let link_local = |net: &IpNet| matches!(net, IpNet::V6(n) if n.addr().is_unicast_link_local());
    let all = seen.iter().filter_map(|(_, object)| match object {
        Object::Addr(addr) if addr.dev == *dev => Some(addr.addr),
        _ => None,
    });
    all.filter(|net| !link_local(net)).collect()
}

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// The Node object and the bridge, and the addresses of tunnels.
fn node(ground: &Ground<'_>, own: &NodeInfo, reasons: &mut Vec<String>) {
    let bridge = &ground.config.bridge;
    match former::link(ground.seen, bridge) {
        Some(link) if link.kind == LinkKind::Bridge => {}
        _ => {
            return reasons.push(format!("there is no bridge {bridge}: no pod of it has run here"));
        }
    }
    let present = addresses(ground.seen, bridge);
    let wanted: BTreeSet<IpNet> = own.pod_cidrs.iter().copied().map(Cidr::gateway_net).collect();
    let extra: BTreeSet<IpNet> = own.claimed_cidrs.iter().copied().map(Cidr::gateway_net).collect();
    let same = if ground.again {
        wanted.is_subset(&present)
    } else {
        wanted == present.difference(&extra).copied().collect()
    };
    if !same {
        reasons.push(format!(
            "bridge {bridge} has {}, and by the Node's pod CIDRs it should have {}: pods must have \
             addresses of these",
            list(&present),
            list(&wanted)
        ));
    }
    if ground.options.from != Former::Flannel {
        return;
    }
    for (family, link) in former::tunnels(ground.seen, ground.config) {
        let LinkKind::Vxlan(vxlan) = &link.kind else { continue };
        if own.address(family) != Some(vxlan.local) {
            reasons.push(format!(
                "device {} sends from {}, and the Node's first {family} InternalIP is {}: with an interface \
                 of flannel's own (--iface, public-ip-overwrite) the node cannot be taken over",
                link.name,
                vxlan.local,
                list(own.address(family))
            ));
        }
    }
}
