//! What the command line and the environment say, and where everything lies.

use std::path::{Path, PathBuf};

use causeway_types::{NodeName, names};

use crate::config::{ConfigError, Settings};

/// What an agent is started with. A value given here goes before the configuration file's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The node's name.
    pub node_name: Option<String>,
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's host in place of the configured one.
    pub k8s_service_host: Option<String>,
    /// The API server's port beside that host.
    pub k8s_service_port: Option<u16>,
    /// Verbosity, in the form of `tracing`'s filters.
    pub log_level: Option<String>,
    /// Files and directories.
    pub paths: Paths,
}

/// Files and directories of one node. The defaults are the fixed ones of
/// [`causeway_types::names`]; only tests have others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// What the plugins are told.
    pub node_file: PathBuf,
    /// The record of what we made.
    pub owned: PathBuf,
    /// Held locked while an agent runs.
    pub lock: PathBuf,
    /// Attachment records.
    pub attachments: PathBuf,
    /// Where the CNI configuration list goes.
    pub conf_dir: PathBuf,
    /// The unix socket.
    pub socket: PathBuf,
    /// The last good view of the cluster.
    pub last_view: PathBuf,
    /// What was taken over of another network.
    pub taken_over: PathBuf,
    /// The kernel's boot ID.
    pub boot_id: PathBuf,
    /// Leases, a directory a network.
    pub leases: PathBuf,
    /// The records beside them, a directory a network.
    pub lease_records: PathBuf,
    /// Locks of attachments that are being removed.
    pub locks: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            config: names::CONFIG_FILE.into(),
            node_file: names::NODE_FILE.into(),
            owned: names::OWNED_FILE.into(),
            lock: "/run/causeway/agent.lock".into(),
            attachments: names::ATTACHMENTS_DIR.into(),
            conf_dir: names::CNI_CONF_DIR.into(),
            socket: names::AGENT_SOCKET.into(),
            last_view: names::LAST_VIEW.into(),
            taken_over: names::TAKEN_OVER.into(),
            boot_id: names::BOOT_ID.into(),
            leases: names::HOST_LOCAL_DIR.into(),
            lease_records: names::LEASES_DIR.into(),
            locks: names::LOCKS_DIR.into(),
        }
    }
}

impl Paths {
    /// All files below one directory, for tests.
    pub fn below(dir: &Path) -> Self {
        Self {
            config: dir.join("config.yaml"),
            node_file: dir.join("node.json"),
            owned: dir.join("owned.json"),
            lock: dir.join("agent.lock"),
            attachments: dir.join("attachments"),
            conf_dir: dir.join("net.d"),
            socket: dir.join("agent.sock"),
            last_view: dir.join("last-view.json"),
            taken_over: dir.join("taken-over.json"),
            boot_id: names::BOOT_ID.into(),
            leases: dir.join("networks"),
            lease_records: dir.join("leases"),
            locks: dir.join("locks"),
        }
    }

    /// The same files as the plugins know them.
    pub fn of_plugins(&self) -> causeway_plugins::Paths {
        causeway_plugins::Paths {
            node_file: self.node_file.clone(),
            agent_socket: self.socket.clone(),
            attachments: self.attachments.clone(),
            lease_records: self.lease_records.clone(),
            leases: self.leases.clone(),
            boot_id: self.boot_id.clone(),
            locks: self.locks.clone(),
        }
    }

    /// The CNI configuration list.
    pub fn conflist(&self) -> PathBuf {
        self.conf_dir.join(names::CNI_CONFLIST)
    }

    /// This boot's ID.
    ///
    /// # Errors
    /// When it cannot be read: then no record can be told from one of a former boot.
    pub fn read_boot_id(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(&self.boot_id)
            .map_err(|e| anyhow::anyhow!("boot ID: {}: {e}", self.boot_id.display()))?;
        Ok(text.trim().to_owned())
    }
}

impl Options {
    /// Reads the configuration file and puts the options over it.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings::load(&self.paths.config)?;
        settings.kubeconfig = self.kubeconfig.clone().or(settings.kubeconfig);
        settings.k8s_service_host = self.k8s_service_host.clone().or(settings.k8s_service_host);
        settings.k8s_service_port = self.k8s_service_port.or(settings.k8s_service_port);
        settings.log_level = self.log_level.clone().or(settings.log_level);
        Ok(settings)
    }

    /// The node's name: from the option, the configuration, the variable NODE_NAME, or the
    /// host's name, as kubelet takes it: in lower case.
    ///
    /// # Errors
    /// When the name found cannot be a Node's.
    pub fn node(&self, settings: &Settings) -> anyhow::Result<NodeName> {
        let hostname = || rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let (text, origin) = if let Some(name) = &self.node_name {
            (name.clone(), "--node-name")
        } else if let Some(name) = &settings.node_name {
            return Ok(name.clone());
        } else if let Some(name) = std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty()) {
            (name, "variable NODE_NAME")
        } else {
            (hostname(), "host name; set nodeName in the configuration or NODE_NAME")
        };
        NodeName::new(text).map_err(|e| anyhow::anyhow!("{e} (from: {origin})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        std::fs::write(&paths.config, "kubeconfig: /file\nnodeName: of-file\nlogLevel: warn\n")
            .unwrap();
        let mut options =
            Options { kubeconfig: Some("/option".into()), paths, ..Options::default() };
        let settings = options.settings().unwrap();
        assert_eq!(settings.kubeconfig, Some("/option".into()));
        assert_eq!(settings.log_level.as_deref(), Some("warn"));
        assert_eq!(options.node(&settings).unwrap().as_str(), "of-file");
        options.node_name = Some("of-option".into());
        assert_eq!(options.node(&settings).unwrap().as_str(), "of-option");
        options.node_name = Some("Not A Node".into());
        let error = options.node(&settings).unwrap_err().to_string();
        assert!(error.contains("--node-name") && error.contains("Not A Node"), "{error}");
    }
}
