//! A pod of the cluster's network, as a kubelet asks for it.

use std::collections::HashMap;

use crate::message::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PortMapping, Protocol,
};

/// An annotation that a kubelet gives every pod (`pkg/kubelet/types/pod_update.go`).
const SOURCE: (&str, &str) = ("kubernetes.io/config.source", "api");

/// A pod with a network of its own.
#[derive(Clone, Debug)]
pub struct Pod {
    config: PodSandboxConfig,
}

impl Pod {
    /// A pod of namespace `default`, with its control groups below another.
    pub fn new(name: &str, cgroup: &str) -> Self {
        let uid = format!("uid-{name}");
        let labels = [("name", name), ("namespace", "default"), ("uid", &uid)];
        let labels = labels.map(|(k, v)| (format!("io.kubernetes.pod.{k}"), v.to_owned()));
        let options = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
        };
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(security),
            ..LinuxPodSandboxConfig::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            labels: HashMap::from(labels),
            annotations: HashMap::from([(SOURCE.0.to_owned(), SOURCE.1.to_owned())]),
            linux: Some(linux),
            ..PodSandboxConfig::default()
        };
        Self { config }
    }

    /// With a port of the node's that leads to one of its own.
    #[must_use]
    pub fn host_port(mut self, protocol: Protocol, host: u16, own: u16) -> Self {
        self.config.port_mappings.push(PortMapping {
            protocol: protocol.into(),
            container_port: own.into(),
            host_port: host.into(),
            host_ip: String::new(),
        });
        self
    }

    /// In the node's own network: no plugin is called for it.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        let security = self.config.linux.as_mut().and_then(|l| l.security_context.as_mut());
        if let Some(options) = security.and_then(|s| s.namespace_options.as_mut()) {
            options.network = NamespaceMode::Node.into();
        }
        // It has the node's name, which the runtime does not set.
        self.config.hostname.clear();
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// For the sandbox of a number: a runtime makes no second of the same number.
    #[must_use]
    pub fn attempt(mut self, number: u32) -> Self {
        if let Some(metadata) = &mut self.config.metadata {
            metadata.attempt = number;
        }
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    /// What its sandbox is asked for with.
    pub fn sandbox(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// A container of it.
    pub fn container(&self, name: &str, image: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            ..ContainerConfig::default()
        }
    }
}
