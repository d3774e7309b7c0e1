//! Nodes and Pods cut down to what is looked at.
//!
//! The full types refuse an object in which any one field is of an unexpected form, and one such
//! object would block the whole feed. Here every field that we read is decoded by itself, later,
//! and everything else is passed over without being kept.

use std::borrow::Cow;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
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
