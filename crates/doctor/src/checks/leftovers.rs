//! What other pod networks left behind.

use crate::facts::Facts;
use crate::finding::{Finding, Severity};

use super::some;

use crate::leftovers::{NETWORKS, Network};

impl Network {
    fn finding(&self, facts: &Facts) -> Option<Finding> {
        let interfaces = facts.interfaces.iter().map(|i| i.name.clone());
        let interfaces: Vec<String> = interfaces.filter(|name| self.has_interface(name)).collect();
        let left = |c: &&causeway_model::nft::foreign::Place| {
            self.has_chain(&c.chain) || self.tables.contains(&c.table.as_str())
        };
        let chains = facts.chains.iter().filter(left);
        let chains: Vec<String> =
            chains.map(|c| format!("{} {} {}", c.layer.as_str(), c.table, c.chain)).collect();
        let mut places = Vec::new();
        if !interfaces.is_empty() {
            places.push(format!("interfaces {}", some(&interfaces)));
        }
        if !chains.is_empty() {
            places.push(format!("chains {}", some(&chains)));
        }
        if places.is_empty() {
            return None;
        }
        let todo = vec![
            format!("# if no pod of {} runs here any more:", self.name),
            format!("causeway reset --foreign {} --yes", self.word),
        ];
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
            let word = id.strip_prefix("leftover-").unwrap();
            assert_eq!(found[0].todo[1], format!("causeway reset --foreign {word} --yes"));
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
