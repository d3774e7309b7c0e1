//! `causeway agent`.

use std::path::PathBuf;

use causeway_agent::config::Settings;
use causeway_agent::{Options, Paths};

use crate::words::say;

/// Who this node is, and how the API is reached; a value given here goes before the configuration file's.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
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
}

impl Place {
    /// The agent's options with these.
    pub(crate) fn options(self, paths: Paths, log_level: Option<String>) -> Options {
        Options {
            node_name: self.node_name,
            kubeconfig: self.kubeconfig,
            k8s_service_host: self.k8s_service_host,
            k8s_service_port: self.k8s_service_port,
            log_level,
            paths,
        }
    }
}

/// Options of the agent; a value given here goes before the configuration file's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (YAML); one that is not there leaves everything at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Says whether an agent would start with this configuration, and starts none.
    #[arg(long, value_name = "FILE")]
    check_config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or TARGET=LEVEL,….
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

/// Runs the agent, or checks a configuration.
///
/// # Errors
/// When the agent cannot start; when the configuration is not one, with its file, place and key.
pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    match args.check_config.take() {
        Some(file) => {
            Settings::check_file(&file)?;
            say(&format!("{}: good\n", file.display()))
        }
        None => causeway_agent::run(args.options(), crate::doctor::first),
    }
}

impl Args {
    fn options(self) -> Options {
        let mut paths = Paths::default();
        if let Some(config) = self.config {
            paths.config = config;
        }
        self.place.options(paths, self.log_level)
    }
}
