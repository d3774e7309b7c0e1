//! Nodes and Pods cut down to what is looked at.
//!
//! The full types refuse an object in which any one field is of an unexpected form, and one such
//! object would block the whole feed. Here every field that we read is decoded by itself, later,
//! and everything else is passed over without being kept.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

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

/// An object of any kind that policies go by, cut down. One type for all: each one more costs the agent memory. There may
/// be very many objects, most of which is passed over without being kept: what managers own of them, containers, volumes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ruled {
    /// Name, namespace, `uid` and `resourceVersion` alone.
    pub(crate) metadata: ObjectMeta,
    /// By what the kubelet knows a pod that it has from a file, and whose object it made itself: in the API that has
    /// another `metadata.uid`.
    pub(crate) own_uid: Option<String>,
    /// Its `metadata`, `spec` and `status`, each as far as policies go by it.
    pub(crate) said: Map<String, Value>,
}

/// The keys that are kept of an object, and below each of them again; none: all of it.
struct Kept(&'static [(&'static str, Kept)]);

const ALL: Kept = Kept(&[]);
const PORTED: Kept = Kept(&[("ports", ALL), ("restartPolicy", ALL)]);
const MIRROR: &str = "kubernetes.io/config.mirror";
const MIRROR_HASH: &str = "kubernetes.io/config.hash";
const RULED: Kept = Kept(&[
    (
        "metadata",
        Kept(&[
            ("name", ALL),
            ("namespace", ALL),
            ("uid", ALL),
            ("resourceVersion", ALL),
            ("labels", ALL),
            ("annotations", Kept(&[(MIRROR, ALL), (MIRROR_HASH, ALL)])),
        ]),
    ),
    (
        "spec",
        Kept(&[
            // Of pods.
            ("hostNetwork", ALL),
            ("nodeName", ALL),
            ("containers", PORTED),
            ("initContainers", PORTED),
            // Of nodes.
            ("podCIDRs", ALL),
            // Of policies.
            ("podSelector", ALL),
            ("policyTypes", ALL),
            ("ingress", ALL),
            ("egress", ALL),
            ("tier", ALL),
            ("priority", ALL),
            ("subject", ALL),
        ]),
    ),
    // Of pods and nodes.
    ("status", Kept(&[("phase", ALL), ("podIP", ALL), ("podIPs", ALL), ("addresses", ALL)])),
]);

impl<'de> DeserializeSeed<'de> for &Kept {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match self.0.is_empty() {
            true => Value::deserialize(from),
            false => from.deserialize_any(self),
        }
    }
}

/// Of a list each entry is cut down; what is neither list nor object is kept, for its reader to say what is wrong.
impl<'de> Visitor<'de> for &Kept {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = from.next_key_seed(Key(self))? {
            match key {
                Some((name, below)) => {
                    all.insert((*name).to_owned(), from.next_value_seed(below)?);
                }
                None => {
                    from.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(all))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = from.next_element_seed(self)? {
            all.push(one);
        }
        Ok(Value::Array(all))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

/// A key, if it is one of those that are kept: the others are not even copied.
struct Key<'k>(&'k Kept);

impl<'de, 'k> DeserializeSeed<'de> for Key<'k> {
    type Value = Option<&'k (&'static str, Kept)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl<'k> Visitor<'_> for Key<'k> {
    type Value = Option<&'k (&'static str, Kept)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.iter().find(|(name, _)| *name == key))
    }
}

impl<'de> Deserialize<'de> for Ruled {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Value::Object(mut said) = RULED.deserialize(from)? else {
            return Err(D::Error::custom("this is no object"));
        };
        let Some(Value::Object(meta)) = said.get_mut("metadata") else {
            return Err(D::Error::custom("the object has no metadata"));
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let annotations = meta.remove("annotations").unwrap_or_default();
        let mirrors = annotations.get(MIRROR).is_some();
        let own_uid = annotations.get(MIRROR_HASH).filter(|_| mirrors).and_then(text);
        let metadata = ObjectMeta {
            name: meta.get("name").and_then(text),
            namespace: meta.get("namespace").and_then(text),
            uid: meta.remove("uid").as_ref().and_then(text),
            resource_version: meta.remove("resourceVersion").as_ref().and_then(text),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, own_uid, said })
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_policies_go_by_is_kept_and_nothing_else() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u-1", "resourceVersion": "17",
                "labels": {"app": "web"}, "managedFields": [{"manager": "kubelet"}], "generation": 3,
                "annotations": {"kubernetes.io/config.hash": "h-1", "notes": "long"},
            },
            "spec": {
                "nodeName": "node-1", "hostNetwork": false, "volumes": [{"name": "data"}],
                "containers": [
                    {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]},
                    {"name": "log"},
                ],
                "initContainers": "none of the kind",
                "podSelector": {"matchLabels": {"role": "db"}},
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                "conditions": [{"type": "Ready"}]},
        });
        let read = |object: &Value| serde_json::from_str::<Ruled>(&object.to_string());
        let ruled = read(&object).unwrap();
        assert_eq!(
            Value::Object(ruled.said),
            json!({
                "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
                "spec": {
                    "nodeName": "node-1", "hostNetwork": false,
                    "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}, {}],
                    "initContainers": "none of the kind",
                    "podSelector": {"matchLabels": {"role": "db"}},
                },
                "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
            })
        );
        let expected = ObjectMeta {
            name: Some("web".into()),
            namespace: Some("shop".into()),
            uid: Some("u-1".into()),
            resource_version: Some("17".into()),
            ..ObjectMeta::default()
        };
        // The hash is one where there is a mirror.
        assert_eq!((ruled.metadata, ruled.own_uid), (expected, None));
        let mut mirror = object.clone();
        mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("h-1");
        assert_eq!(read(&mirror).unwrap().own_uid.as_deref(), Some("h-1"));
        for odd in
            [json!({"metadata": {"name": 3}}), json!({"metadata": {"name": "a", "labels": 3}})]
        {
            assert!(read(&odd).is_ok(), "{odd} is for its reader to refuse");
        }
        for none in [json!([]), json!({}), json!({"metadata": "a"})] {
            assert!(read(&none).is_err(), "{none}");
        }
    }
}
