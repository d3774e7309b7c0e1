//! Nodes and Pods cut down to what is looked at.
//!
//! The full types refuse an object in which any one field is of an unexpected form, and one such
//! object would block the whole feed. Here every field that we read is decoded by itself, later,
//! and everything else is passed over without being kept.

use std::borrow::Cow;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A Node, cut down.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct NodeObject {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: NodeSpec,
    #[serde(default)]
    pub(crate) status: NodeStatus,
}

/// Of a Node's spec.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pub(crate) pod_cidr: Value,
    #[serde(default, rename = "podCIDRs")]
    pub(crate) pod_cidrs: Value,
    #[serde(default)]
    pub(crate) taints: Value,
}

/// Of a Node's status.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct NodeStatus {
    #[serde(default)]
    pub(crate) addresses: Value,
    #[serde(default)]
    pub(crate) conditions: Value,
    #[serde(default, rename = "nodeInfo")]
    pub(crate) node_info: Value,
    #[serde(default, rename = "daemonEndpoints")]
    pub(crate) daemon_endpoints: Value,
}

/// A Pod, cut down.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PodObject {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: PodSpec,
    #[serde(default)]
    pub(crate) status: PodStatus,
}

/// Of a Pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PodSpec {
    #[serde(default, rename = "hostNetwork")]
    pub(crate) host_network: Option<bool>,
    #[serde(default, rename = "nodeName")]
    pub(crate) node_name: Option<String>,
}

/// Of a Pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PodStatus {
    #[serde(default)]
    pub(crate) phase: Option<String>,
    #[serde(default, rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(default, rename = "podIPs")]
    pub(crate) pod_ips: Value,
}

/// An object of any kind that policies go by, cut down. One type for all: each one more costs the agent memory.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Ruled {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: RuledSpec,
    #[serde(default)]
    pub(crate) status: RuledStatus,
}

/// Of its spec: of pods, nodes and policies.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuledSpec {
    #[serde(skip_serializing_if = "Value::is_null")]
    host_network: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    node_name: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Ported>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Ported>,
    #[serde(rename = "podCIDRs", skip_serializing_if = "Value::is_null")]
    pod_cidrs: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    pod_selector: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    policy_types: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    ingress: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    egress: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    tier: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    priority: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    subject: Value,
}

/// Of a pod's containers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Ported {
    #[serde(skip_serializing_if = "Value::is_null")]
    ports: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    restart_policy: Value,
}

/// Of its status: of pods and nodes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RuledStatus {
    #[serde(skip_serializing_if = "Value::is_null")]
    phase: Value,
    #[serde(rename = "podIP", skip_serializing_if = "Value::is_null")]
    pod_ip: Value,
    #[serde(rename = "podIPs", skip_serializing_if = "Value::is_null")]
    pod_ips: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    addresses: Value,
}

/// Which of these kinds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuledKind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
}

impl RuledKind {
    pub(crate) const POD: Self = Self::core("Pod", "pods");
    pub(crate) const NODE: Self = Self::core("Node", "nodes");
    pub(crate) const NAMESPACE: Self = Self::core("Namespace", "namespaces");
    pub(crate) const NETWORK_POLICY: Self = Self {
        group: "networking.k8s.io",
        version: "v1",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
    };
    pub(crate) const CLUSTER_POLICY: Self = Self {
        group: "policy.networking.k8s.io",
        version: "v1alpha2",
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
    };
    pub(crate) const DEFINITION: Self = Self {
        group: "apiextensions.k8s.io",
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
    };

    const fn core(kind: &'static str, plural: &'static str) -> Self {
        Self { group: "", version: "v1", kind, plural }
    }
}

impl Resource for Ruled {
    type DynamicType = RuledKind;
    type Scope = kube::core::DynamicResourceScope;
    fn kind(dt: &RuledKind) -> Cow<'_, str> {
        dt.kind.into()
    }
    fn group(dt: &RuledKind) -> Cow<'_, str> {
        dt.group.into()
    }
    fn version(dt: &RuledKind) -> Cow<'_, str> {
        dt.version.into()
    }
    fn plural(dt: &RuledKind) -> Cow<'_, str> {
        dt.plural.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Takes kind, group, version and paths from the full type.
macro_rules! resource_as {
    ($cut:ty, $full:ty) => {
        impl Resource for $cut {
            type DynamicType = ();
            type Scope = <$full as Resource>::Scope;
            fn kind(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::kind(dt)
            }
            fn group(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::group(dt)
            }
            fn version(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::version(dt)
            }
            fn plural(dt: &()) -> Cow<'_, str> {
                <$full as Resource>::plural(dt)
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource_as!(NodeObject, core::Node);
resource_as!(PodObject, core::Pod);
