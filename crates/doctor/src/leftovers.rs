//! By what the leftovers of other pod networks are told.

/// A pod network that may have been on the node before.
#[derive(Debug)]
pub struct Network {
    /// What it is called on command lines.
    pub word: &'static str,
    /// The finding's id.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Whole names of interfaces.
    pub interfaces: &'static [&'static str],
    /// Beginnings of names of interfaces.
    pub interface_starts: &'static [&'static str],
    /// What the names of the node's ends of pods' interfaces begin with, where they tell whose they are;
    /// hexadecimal digits follow.
    pub pod_starts: &'static [&'static str],
    /// Beginnings of names of chains, of iptables or of nftables.
    pub chain_starts: &'static [&'static str],
    /// Names of its own tables of nftables.
    pub tables: &'static [&'static str],
    /// The bridge that it shares the name of with other networks, ours among them.
    pub bridge: Option<&'static str>,
    /// Files in the directory of CNI configurations.
    pub configurations: &'static [&'static str],
    /// Directories that hold nothing but its state.
    pub state: &'static [&'static str],
}

/// Those that are known.
pub const NETWORKS: &[Network] = &[
    Network {
        word: "flannel",
        id: "leftover-flannel",
        name: "flannel",
        interfaces: &["flannel-wg", "flannel-wg-v6"],
        interface_starts: &["flannel.", "flannel-v6."],
        pod_starts: &[],
        chain_starts: &["FLANNEL-"],
        tables: &["flannel-ipv4", "flannel-ipv6"],
        bridge: Some("cni0"),
        configurations: &["10-flannel.conflist", "10-flannel.conf"],
        state: &["/run/flannel"],
    },
    Network {
        word: "calico",
        id: "leftover-calico",
        name: "Calico",
        interfaces: &["vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali"],
        interface_starts: &[],
        pod_starts: &["cali"],
        chain_starts: &["cali-"],
        tables: &["calico"],
        bridge: None,
        configurations: &["10-calico.conflist", "calico-kubeconfig"],
        state: &["/run/calico", "/var/lib/calico"],
    },
    Network {
        word: "cilium",
        id: "leftover-cilium",
        name: "Cilium",
        interfaces: &["cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve", "cilium_wg0"],
        interface_starts: &["lxc_health"],
        pod_starts: &["lxc"],
        chain_starts: &["CILIUM_", "OLD_CILIUM_"],
        tables: &[],
        bridge: None,
        configurations: &["05-cilium.conflist", "05-cilium.conf"],
        state: &["/run/cilium"],
    },
    Network {
        word: "kube-router",
        id: "leftover-kube-router",
        name: "kube-router",
        interfaces: &["kube-bridge", "kube-dummy-if", "kube-tunnel-if"],
        interface_starts: &[],
        pod_starts: &[],
        chain_starts: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        tables: &[],
        bridge: None,
        configurations: &["10-kuberouter.conflist", "10-kuberouter.conf"],
        state: &[],
    },
];

impl Network {
    /// The one of a word on a command line.
    pub fn named(word: &str) -> Option<&'static Self> {
        NETWORKS.iter().find(|network| network.word == word)
    }

    /// Whether an interface has one of its names.
    pub fn has_interface(&self, name: &str) -> bool {
        self.interfaces.contains(&name) || starts(name, self.interface_starts) || self.has_pod(name)
    }

    /// Whether an interface is the node's end of one of its pods'.
    pub fn has_pod(&self, name: &str) -> bool {
        let hash = self.pod_starts.iter().find_map(|start| name.strip_prefix(start));
        hash.is_some_and(|hash| {
            // Eleven or twelve: the bridge of LXC is called lxcbr0.
            hash.len() > 8 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }

    /// Whether a chain has one of its names.
    pub fn has_chain(&self, name: &str) -> bool {
        starts(name, self.chain_starts)
    }
}

fn starts(name: &str, with: &[&str]) -> bool {
    with.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_programs_are_nobodys_leftovers() {
        let of = |name: &str| -> Vec<&str> {
            NETWORKS.iter().filter(|n| n.has_interface(name)).map(|n| n.word).collect()
        };
        for (name, words) in [
            ("lxc1f0c2d3e4b5a", &["cilium"][..]),
            ("lxc_health", &["cilium"]),
            ("cali0123456789a", &["calico"]),
            ("vxlan.calico", &["calico"]),
            ("flannel.1", &["flannel"]),
            // Of LXC, and of somebody with a taste for short names.
            ("lxcbr0", &[]),
            ("lxc0", &[]),
            ("calib0", &[]),
            ("eth0", &[]),
        ] {
            assert_eq!(of(name), words, "{name}");
        }
    }
}
