//! `causeway lab pod`.

use std::time::Duration;

use anyhow::Result;
use causeway_lab::{create_pod, delete_pod, pods};

use super::Which;
use crate::words::{columns, say, say_json};

/// How long a pod may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a pod: a server that answers TCP, UDP and HTTP with its name.
    Create {
        #[command(flatten)]
        which: Which,
        /// NAME or NAMESPACE/NAME.
        pod: String,
        /// The node; the scheduler chooses unless given.
        #[arg(long)]
        node: Option<String>,
        /// Ports that it answers on; 8080 unless given.
        #[arg(long = "port", default_value = "8080")]
        ports: Vec<u16>,
    },
    /// Ends a pod.
    Delete {
        #[command(flatten)]
        which: Which,
        /// NAME or NAMESPACE/NAME.
        pod: String,
    },
    /// Lists all pods.
    List {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Carries it out.
///
/// # Errors
/// When the lab or its API refuses, or the pod does not get there in time.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Create { which, pod, node, ports } => {
            let made = create_pod(&which.client()?, pod, node.as_deref(), ports, PATIENCE)?;
            let ips: Vec<String> = made.ips.iter().map(ToString::to_string).collect();
            say(&format!("pod {pod} runs on {} with {}\n", made.node, ips.join(", ")))
        }
        Command::Delete { which, pod } => {
            delete_pod(&which.client()?, pod, PATIENCE)?;
            say(&format!("pod {pod} is gone\n"))
        }
        Command::List { which, json } => {
            let all = pods(&which.client()?)?;
            if *json {
                return say_json(&all);
            }
            let mut rows =
                vec![["POD", "NODE", "STATUS", "ADDRESSES", ""].map(str::to_owned).to_vec()];
            rows.extend(all.iter().map(|p| {
                let ips: Vec<String> = p.ips.iter().map(ToString::to_string).collect();
                vec![p.label(), p.node.clone(), p.phase.clone(), ips.join(","), p.message.clone()]
            }));
            say(&columns(&rows))
        }
    }
}
