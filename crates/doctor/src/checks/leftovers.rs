//! What other pod networks left behind.

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

use super::some;

/// By what a network's leftovers are told: names of interfaces and chains, or their beginnings.
struct Network {
    id: &'static str,
    name: &'static str,
    /// Whole names.
    interfaces: &'static [&'static str],
    /// Beginnings of names of interfaces.
    interface_starts: &'static [&'static str],
    /// Beginnings of names of chains.
    chain_starts: &'static [&'static str],
}

const NETWORKS: &[Network] = &[
    Network {
        id: "leftover-flannel",
        name: "flannel",
        interfaces: &["flannel-wg", "flannel-wg-v6"],
        interface_starts: &["flannel.", "flannel-v6."],
        chain_starts: &["FLANNEL-"],
    },
    Network {
        id: "leftover-calico",
        name: "Calico",
        interfaces: &["vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali"],
        interface_starts: &["cali"],
        chain_starts: &["cali-"],
    },
    Network {
        id: "leftover-cilium",
        name: "Cilium",
        interfaces: &["cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve", "cilium_wg0"],
        interface_starts: &["lxc_health", "lxc"],
        chain_starts: &["CILIUM_", "OLD_CILIUM_"],
    },
    Network {
        id: "leftover-kube-router",
        name: "kube-router",
        interfaces: &["kube-bridge", "kube-dummy-if", "kube-tunnel-if"],
        interface_starts: &[],
        chain_starts: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
    },
];

impl Network {
    fn has_interface(&self, name: &str) -> bool {
        self.interfaces.contains(&name) || self.interface_starts.iter().any(|s| name.starts_with(s))
    }

    fn finding(&self, facts: &Facts) -> Option<Finding> {
        let interfaces = facts.interfaces.iter().map(|i| i.name.clone());
        let interfaces: Vec<String> = interfaces.filter(|name| self.has_interface(name)).collect();
        let left = |c: &&causeway_model::nft::foreign::Place| {
            self.chain_starts.iter().any(|start| c.chain.starts_with(start))
        };
        let chains = facts.chains.iter().filter(left);
        let chains: Vec<String> =
            chains.map(|c| format!("{} {} {}", c.layer.as_str(), c.table, c.chain)).collect();
        let mut places = Vec::new();
        let mut todo = Vec::new();
        if !interfaces.is_empty() {
            places.push(format!("interfaces {}", some(&interfaces)));
            todo.extend(interfaces.iter().take(4).map(|name| format!("ip link del {name}")));
        }
        if !chains.is_empty() {
            places.push(format!("chains {}", some(&chains)));
            todo.push(format!(
                "# remove its rules by its own means, or start the node anew without {}",
                self.name
            ));
        }
        if places.is_empty() {
            return None;
        }
        let finding = Finding::new(self.id, Severity::Warning, places.join("; "));
        Some(
            finding
                .says(
                    format!("{} has left something behind, or still runs here", self.name),
                    "its routes, rules and tunnels may take packets of pods that are none of its",
                )
                .fix(todo),
        )
    }
}

/// Interfaces and chains of flannel, Calico, Cilium, kube-router.
pub(super) fn of_others(facts: &Facts) -> Vec<Finding> {
    NETWORKS.iter().filter_map(|network| network.finding(facts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Interface;
    use causeway_model::nft::foreign::{Layer, Place};

    #[test]
    fn each_by_its_names() {
        for (name, id) in [
            ("flannel.1", "leftover-flannel"),
            ("cali0123456789a", "leftover-calico"),
            ("vxlan.calico", "leftover-calico"),
            ("cilium_vxlan", "leftover-cilium"),
            ("kube-bridge", "leftover-kube-router"),
        ] {
            let interface = Interface { name: name.into(), ..Interface::default() };
            let found = of_others(&Facts { interfaces: vec![interface], ..Facts::default() });
            assert_eq!(found.iter().map(|f| f.id).collect::<Vec<_>>(), [id], "{name}");
            assert_eq!(found[0].todo[0], format!("ip link del {name}"));
        }
        for (chain, id) in [
            ("FLANNEL-FWD", "leftover-flannel"),
            ("cali-FORWARD", "leftover-calico"),
            ("CILIUM_FORWARD", "leftover-cilium"),
            ("KUBE-ROUTER-INPUT", "leftover-kube-router"),
        ] {
            let chains = vec![Place::new(Layer::Ip, "filter", chain)];
            let found = of_others(&Facts { chains, ..Facts::default() });
            assert_eq!(found.iter().map(|f| f.id).collect::<Vec<_>>(), [id], "{chain}");
        }
    }

    #[test]
    fn kube_proxy_and_ours_are_none() {
        let interfaces = ["cni0", "cw-vxlan", "cw0123456789a", "kube-ipvs0", "eth0", "docker0"];
        let interfaces =
            interfaces.map(|n| Interface { name: n.into(), ..Interface::default() }).to_vec();
        let chains = ["KUBE-SERVICES", "KUBE-FORWARD", "DOCKER", "CNI-FORWARD", "FORWARD"];
        let chains = chains.map(|c| Place::new(Layer::Ip, "filter", c)).to_vec();
        assert_eq!(of_others(&Facts { interfaces, chains, ..Facts::default() }), []);
    }
}
