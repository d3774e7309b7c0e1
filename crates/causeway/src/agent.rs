//! `causeway agent`.

use std::path::PathBuf;

use causeway_agent::{Options, Paths};

/// Options of the agent; a value given here goes before the configuration file's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML); one that is not there leaves everything at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name in the cluster; else NODE_NAME or the host's name.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// How the API is reached; else the pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// API server in place of the configured one, for nodes where service addresses lead nowhere yet.
    #[arg(long, value_name = "HOST")]
    k8s_service_host: Option<String>,
    /// Its port.
    #[arg(long, value_name = "PORT")]
    k8s_service_port: Option<u16>,
    /// What is logged: error, warn, info, debug, trace, or TARGET=LEVEL,….
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

impl Args {
    pub(crate) fn options(self) -> Options {
        let mut paths = Paths::default();
        if let Some(config) = self.config {
            paths.config = config;
        }
        Options {
            node_name: self.node_name,
            kubeconfig: self.kubeconfig,
            k8s_service_host: self.k8s_service_host,
            k8s_service_port: self.k8s_service_port,
            log_level: self.log_level,
            paths,
        }
    }
}
