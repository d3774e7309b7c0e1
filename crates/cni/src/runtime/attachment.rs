//! What the runtime knows of the container that it attaches.

use std::path::PathBuf;

use crate::conf::AttachmentId;
use crate::env::{validate_container_id, validate_ifname};
use crate::error::CniError;
use crate::json::Object;

/// A container's interface in a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// Container ID.
    pub container_id: String,
    /// Path of the container's network namespace; for DEL it may be gone.
    pub netns: Option<PathBuf>,
    /// Name of the interface in the container.
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Values for capabilities (`portMappings`, `ips`, …); each plugin gets those that it declares.
    pub capability_args: Object,
}

impl Attachment {
    /// An attachment without arguments.
    pub fn new(
        container_id: impl Into<String>,
        netns: impl Into<PathBuf>,
        ifname: impl Into<String>,
    ) -> Self {
        Self {
            container_id: container_id.into(),
            netns: Some(netns.into()),
            ifname: ifname.into(),
            ..Self::default()
        }
    }

    /// The same with the arguments by which Kubernetes runtimes name the pod.
    #[must_use]
    pub fn for_pod(mut self, namespace: &str, name: &str, uid: &str) -> Self {
        let infra = self.container_id.clone();
        for (key, value) in [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", &infra),
            ("K8S_POD_UID", uid),
        ] {
            self.args.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// The same with a value for a capability.
    #[must_use]
    pub fn with_capability(mut self, name: &str, value: serde_json::Value) -> Self {
        self.capability_args.insert(name.to_owned(), value);
        self
    }

    /// Its name in GC.
    pub fn id(&self) -> AttachmentId {
        AttachmentId { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    pub(super) fn validate(&self) -> Result<(), CniError> {
        validate_container_id(&self.container_id)?;
        validate_ifname(&self.ifname)
    }
}
