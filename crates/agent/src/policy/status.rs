//! What is told of what is enforced.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::inbox::Reply;

/// A question about it.
pub(crate) enum Ask {
    /// For all of it.
    Status(Reply<PolicyStatus>),
    /// For how much it is.
    Summary(Reply<PolicySummary>),
}

/// What is enforced on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Everything is known that policies go by.
    pub synced: bool,
    /// What is not known yet, or what the kernel refused.
    pub problem: Option<String>,
    /// Grows by one each time the kernel's table changes.
    pub revision: u64,
    /// When it last did, in seconds of Unix time; 0: not in this process's life.
    pub changed: u64,
    /// Differences to what the table should have been that were repaired.
    pub repairs: u64,
    /// The policies of the cluster, each with the `metadata.resourceVersion` that is enforced.
    pub policies: BTreeMap<String, String>,
    /// The pods that are attached here.
    pub pods: Vec<RealisedPod>,
}

/// What a pod is under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealisedPod {
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The policies for what comes to it; absent: everything may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<String>>,
    /// The policies for what it sends; absent: it may send everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
    /// The cluster does not know it, and policies may apply to it: nothing passes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shut: bool,
}

/// How much is enforced on a node: what may be asked again and again, also where there are very many policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySummary {
    /// Everything is known that policies go by.
    pub synced: bool,
    /// What is not known yet, or what the kernel refused.
    pub problem: Option<String>,
    /// Grows by one each time the kernel's table changes.
    pub revision: u64,
    /// How many policies the cluster has.
    pub policies: usize,
    /// How many pods are attached here.
    pub pods: usize,
}
