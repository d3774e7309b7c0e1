//! Names that are fixed in one place so that nobody invents them twice.

use sha2::{Digest, Sha256, Sha512};

use crate::IfName;

/// Prefix of our labels, annotations and API group.
pub const API_GROUP: &str = "causeway.dev";
/// Annotation of a Node: ranges that its pods get addresses of beside `spec.podCIDRs`, with commas.
pub const EXTRA_POD_CIDRS: &str = "causeway.dev/extra-pod-cidrs";
/// Annotation of a Node that its agent writes: what beside `spec.podCIDRs` its pods have addresses of,
/// or may get. Other nodes send there what is for it.
pub const CLAIMED_POD_CIDRS: &str = "causeway.dev/claimed-pod-cidrs";
/// Annotation of a Node that its agent writes: the MTU of its pods in bytes.
pub const POD_MTU: &str = "causeway.dev/pod-mtu";
/// Annotation of a Pod: the address that it is to have, or one a family, with a comma.
pub const POD_IP: &str = "causeway.dev/ip";
/// The capability by which containerd and CRI-O hand a pod's annotations to plugins.
pub const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
/// The agent's unix socket (mode 0600).
pub const AGENT_SOCKET: &str = "/run/causeway/agent.sock";
/// What the agent tells the plugins about the node, see [`crate::state::NodeFile`].
pub const NODE_FILE: &str = "/run/causeway/node.json";
/// Keys of kernel objects that the agent made; lives as long as the kernel state does.
pub const OWNED_FILE: &str = "/run/causeway/owned.json";
/// The last good view of the cluster, used after a boot while the API does not answer.
pub const LAST_VIEW: &str = "/var/lib/causeway/last-view.json";
/// What `causeway migrate` took over of another network on this node.
pub const TAKEN_OVER: &str = "/var/lib/causeway/taken-over.json";
/// Attachment records, `CONTAINER-IFNAME.json`.
pub const ATTACHMENTS_DIR: &str = "/var/lib/causeway/attachments";
/// Lease records, `NETWORK/ADDRESS.json`.
pub const LEASES_DIR: &str = "/var/lib/causeway/leases";
/// Leases in host-local's layout, `NETWORK/ADDRESS`.
pub const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";
/// The agent's configuration.
pub const CONFIG_FILE: &str = "/etc/causeway/config.yaml";
/// Where container runtimes look for CNI configuration lists.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// The list that the agent writes there when the node is ready.
pub const CNI_CONFLIST: &str = "05-causeway.conflist";
/// Locks of attachments that are being removed.
pub const LOCKS_DIR: &str = "/run/causeway/locks";
/// The kernel's boot ID.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The network's name in the configuration list that the agent writes.
pub const NETWORK: &str = "pod-network";

/// The agent's nft table (`inet`): replaced and audited as a whole.
pub const NFT_AGENT: &str = "causeway";
/// The agent's nft table of policies (`inet`): written element by element, and audited.
pub const NFT_POLICY: &str = "causeway_policy";
/// The plugins' nft tables (`inet` for masquerade, `netdev` for the guards of pod interfaces).
pub const NFT_PLUGINS: &str = "causeway_cni";

/// The VXLAN device.
pub const VXLAN_DEV: &str = "cw-vxlan";
/// A second one, for IPv6 pods over IPv6, on dual stack nodes that have nodes of flannel beside them.
pub const VXLAN6_DEV: &str = "cw-vxlan6";
/// UDP port of VXLAN unless configured.
pub const VXLAN_PORT: u16 = 8472;
/// The bridge unless configured.
pub const BRIDGE: &str = "cni0";
/// The route protocol that marks our routes (free in `linux/rtnetlink.h` and iproute2's table).
pub const ROUTE_PROTOCOL: u8 = 203;

/// The node's end of a pod's veth pair: `cw` and 11 hex digits of a hash of container and
/// interface, so that a fresh process finds it again without a record.
pub fn host_veth(container_id: &str, ifname: &str) -> IfName {
    let digest = Sha256::new()
        .chain_update(container_id.as_bytes())
        .chain_update([0])
        .chain_update(ifname.as_bytes())
        .finalize();
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    IfName::new(format!("cw{}", &hex[..11])).expect("13 bytes of letters and digits")
}

/// The mark of an attachment's elements in nftables, shown there as their comment: container and
/// interface, cut where nft could not show it.
pub fn element_mark(container_id: &str, ifname: &str) -> String {
    let whole = format!("{container_id} {ifname}");
    if whole.len() <= 110 {
        return whole;
    }
    let hash = host_veth(container_id, ifname);
    format!("{} {hash}", container_id.chars().take(80).collect::<String>())
}

/// The device through which all that a container sends goes where its rate is limited: `bwp` and
/// 12 hex digits of a hash of network and container, the same as the reference plugins name it, so
/// that each finds the other's. `also` tells several interfaces of a container apart; empty for the
/// first.
pub fn ifb(network: &str, container_id: &str, also: &str) -> IfName {
    let digest = Sha512::new()
        .chain_update(network.as_bytes())
        .chain_update(container_id.as_bytes())
        .chain_update(also.as_bytes())
        .finalize();
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    IfName::new(format!("bwp{hex}")).expect("15 bytes of letters and digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ifb_has_the_name_that_the_reference_gives_it() {
        assert_eq!(ifb("net", "c1", "").as_str(), "bwp623e1c388032");
        assert_ne!(ifb("net", "c1", "/eth1"), ifb("net", "c1", ""));
    }

    #[test]
    fn host_veth_depends_on_container_and_interface() {
        let a = host_veth("c1", "eth0");
        assert_eq!(a, host_veth("c1", "eth0"));
        assert_ne!(a, host_veth("c1", "eth1"));
        assert_ne!(host_veth("ab", "c"), host_veth("a", "bc"));
        assert_eq!(a.as_str().len(), 13);
    }
}
