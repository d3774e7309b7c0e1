//! The files that the agent and the plugins hand to each other.
//!
//! Every file is JSON, written aside and renamed into place, so that a reader sees the old or the
//! new one and never half of one.
//!
//! Versions mix on one node: the plugins are exchanged before the agent, and a version may be taken back.
//! So no file has a version number; each keeps these rules instead.
//!
//! 1. A key that was written once is written for ever, with the same meaning. What is new has a key of its
//!    own, and a default for files without it.
//! 2. Keys that are not known are passed over. Who changes a file of somebody else keeps them.
//! 3. A value that is not known costs the one entry that has it, never the others: it is left alone, named,
//!    and nothing that it may speak of is removed.
//! 4. Whether a pod lives can be told from `bootId` and `netns` alone.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Cidr, Family, IfName, Mac, Mtu, NodeName, PodRef};

/// How a pod's interface is attached to its node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// A veth of its own, a /32 or /128 in the pod, a link-local gateway, a host route.
    #[default]
    Routed,
    /// A port of the node's bridge, the node's subnet on link.
    Bridge,
}

/// What the agent tells the plugins of its node ([`crate::names::NODE_FILE`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// Grows by one each time the content changes.
    pub generation: u64,
    /// The node's own name.
    pub node: NodeName,
    /// This node's pod subnets, at most one a family.
    pub pod_cidrs: Vec<Cidr>,
    /// Ranges that addresses are given out of when the subnet of their family is used up, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_cidrs: Vec<Cidr>,
    /// What of all these is never given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<Cidr>,
    /// For so many seconds an address that was given back is not given out, unless no other is free.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cool_down: u32,
    /// MTU of pod interfaces, in bytes.
    pub mtu: Mtu,
    /// How type `causeway` attaches pods.
    pub attach: Attach,
    /// The bridge that [`Attach::Bridge`] uses.
    pub bridge: IfName,
    /// Destinations that pods reach with their own address: the cluster's pod subnets and the
    /// configured exclusions. Everything else is masqueraded.
    pub no_masquerade: Vec<Cidr>,
    /// Names of networks of type `bridge` that the agent serves: inter-node routes, guards,
    /// isolated ports.
    pub served: Vec<String>,
    /// Namespaces with policies: there a pod may start only after the agent confirmed its policy. `*`: all.
    #[serde(default)]
    pub policy_namespaces: Vec<String>,
}

impl NodeFile {
    /// All that pods of this node get addresses of.
    pub fn ranges(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.pod_cidrs.iter().chain(&self.extra_cidrs).copied()
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One pod interface, as the plugin that made it wrote it down
/// ([`crate::names::ATTACHMENTS_DIR`]). Written before the interface is made, completed after,
/// erased after its removal is confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentRecord {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME: the interface's name inside the pod.
    pub ifname: IfName,
    /// The pod, where the runtime told (CNI_ARGS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// CNI_NETNS: the path of the pod's network namespace.
    pub netns: String,
    /// The network's name in the configuration.
    pub network: String,
    /// How the pod is attached.
    pub attach: Attach,
    /// True while ADD or DEL is under way: the kernel may hold any part of it.
    pub pending: bool,
    /// The node's end of the veth pair.
    pub host_ifname: IfName,
    /// MAC of the pod's end.
    pub mac: Mac,
    /// MAC of the node's end.
    pub host_mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: Mtu,
    /// The pod's addresses with the prefix length that they have inside the pod.
    pub addresses: Vec<IpNet>,
    /// The gateways that the pod uses, at most one a family.
    pub gateways: Vec<IpAddr>,
    /// The bridge that holds the node's end ([`Attach::Bridge`] only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<IfName>,
    /// Masquerade of this pod by the plugin: destinations that are left alone; absent without
    /// masquerade (the agent's own rule covers type `causeway`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade_except: Option<Vec<Cidr>>,
    /// Boot ID under which the interface was made: after a reboot it is gone.
    pub boot_id: String,
    /// DEL was called: what is left of the attachment is to be removed by whoever comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

/// What a removal needs to know beside the attachment itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// The directory of leases, in host-local's layout, that the addresses go back to; absent where
    /// they came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_dir: Option<PathBuf>,
}

/// What is known of a lease beyond its file in host-local's layout
/// ([`crate::names::LEASES_DIR`]): with it a lease that outlived its pod, or the boot, is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRecord {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The pod, where the runtime told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Boot ID under which the lease was given: after a reboot nobody uses it.
    pub boot_id: String,
    /// Another plugin gave the lease, and the boot is that under which it was seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seen: bool,
}

impl AttachmentRecord {
    /// The record's file name: `CONTAINER-IFNAME.json`.
    pub fn file_name(container_id: &str, ifname: &str) -> String {
        format!("{container_id}-{ifname}.json")
    }

    /// Another plugin made the interface, and the node was taken over from its network: it has a name
    /// as the reference gives it, `veth` and hex digits.
    pub fn is_taken_over(&self) -> bool {
        let digits = self.host_ifname.as_str().strip_prefix("veth").unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// The pod's addresses of one family.
    pub fn addrs_of(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().copied().filter(move |a| Family::of(a.addr()) == family)
    }

    /// The pod's name, or the container's where the runtime told no pod.
    pub fn owner_name(&self) -> String {
        match &self.pod {
            Some(pod) => pod.to_string(),
            None => self.container_id.clone(),
        }
    }
}
