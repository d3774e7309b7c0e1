//! `causeway node`: what the agent of this node says.

use std::path::Path;

use causeway_agent::{cli, client};
use causeway_types::names::AGENT_SOCKET;

use crate::words::{say, say_json};

/// Questions to the agent of this node.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Is the node's network as it should be, and what is not?
    Status {
        /// Every object, not only what is amiss.
        #[arg(long)]
        all: bool,
        /// As JSON, complete.
        #[arg(long)]
        json: bool,
    },
    /// What the agent would change now.
    Plan {
        /// As JSON, with all values.
        #[arg(long)]
        json: bool,
    },
    /// The node's network as a shell script of ip, bridge, sysctl and nft, with the reasons.
    Script {
        /// Without the pods' namespaces, interfaces and routes.
        #[arg(long)]
        no_pods: bool,
        /// As JSON: {"script": …}.
        #[arg(long)]
        json: bool,
    },
}

/// Asks and prints.
///
/// # Errors
/// When no agent answers, or it refuses.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let socket = Path::new(AGENT_SOCKET);
    match command {
        Command::Status { json: true, .. } => say_json(&client::status(socket)?),
        Command::Status { all, .. } => say(&cli::status_table(&client::status(socket)?, *all)),
        Command::Plan { json: true } => say_json(&client::plan(socket)?),
        Command::Plan { .. } => say(&cli::plan_lines(&client::plan(socket)?)),
        Command::Script { no_pods, json } => {
            let script = client::script(socket, !no_pods)?;
            if *json { say_json(&serde_json::json!({ "script": script })) } else { say(&script) }
        }
    }
}
