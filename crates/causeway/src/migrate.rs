//! `causeway migrate`: takes this node over from another pod network, with its running pods.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use causeway_agent::Paths;
use causeway_agent::config::Settings;
use causeway_agent::migrate::{self, Options, Report};
use causeway_cluster::Connection;
use causeway_cluster::survey::survey;
use causeway_desired::input::{Former, NodeInfo};
use causeway_types::names::{CNI_CONF_DIR, CONFIG_FILE};

use crate::agent::Place;
use crate::words::say;

/// How long a step on the way to the API may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The network that the node has now.
    #[arg(long, value_name = "NETWORK")]
    from: From,
    /// Do it. Without this it only says what would be done.
    #[arg(long)]
    yes: bool,
    /// Leases whose pod is not found are no obstacle: they stay.
    #[arg(long)]
    keep_leases: bool,
    /// flanneld does not run on this node, which cannot be seen from a container without hostPID.
    #[arg(long)]
    flannel_is_off: bool,
    /// The agent's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Where the container runtime looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
    conf_dir: PathBuf,
    /// Where it keeps results of plugins.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/results")]
    results: PathBuf,
    /// What flanneld tells its plugin.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    subnet_file: PathBuf,
}

/// What a node can be taken over from.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum From {
    /// flannel with the backend vxlan.
    Flannel,
    /// The plugins bridge and host-local, with routes between nodes made by hand.
    Bridge,
}

/// Takes the node over, or says what that would do.
///
/// # Errors
/// With all that is in the way; nothing is changed then.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let paths =
        Paths { conf_dir: args.conf_dir.clone(), config: args.config.clone(), ..Paths::default() };
    let agent = args.place.options(paths.clone(), None);
    let settings = agent.settings()?;
    let own = own(&settings, agent.node(&settings)?.as_str());
    let options = Options {
        from: match args.from {
            From::Flannel => Former::Flannel,
            From::Bridge => Former::Bridge,
        },
        dry_run: !args.yes,
        keep_leases: args.keep_leases,
        flannel_is_off: args.flannel_is_off,
        subnet_file: args.subnet_file.clone(),
        results: args.results.clone(),
    };
    let report = migrate::migrate(&paths, &settings.config, own, &options)?;
    say(&text(&report, args.yes))?;
    Ok(ExitCode::SUCCESS)
}

/// This node's object.
fn own(settings: &Settings, name: &str) -> Result<NodeInfo, String> {
    let connection = Connection {
        kubeconfig: settings.kubeconfig.clone(),
        host: settings.k8s_service_host.clone(),
        port: settings.k8s_service_port,
    };
    let told = survey(&connection, PATIENCE);
    let Some(nodes) = told.nodes else {
        let why = told.failure.map(|(_, why)| why).unwrap_or_default();
        return Err(format!("the API {} cannot be asked: {why}", told.server));
    };
    let own = nodes.into_iter().find(|node| node.name == name);
    own.map(|node| node.info).ok_or_else(|| {
        format!("the API has no Node {name}: give its name by --node-name or NODE_NAME")
    })
}

fn text(report: &Report, done: bool) -> String {
    let mut out = String::new();
    if !report.done.is_empty() {
        out.push_str(if done { "Taken over:\n" } else { "Would be taken over:\n" });
        report.done.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
    }
    report.notes.iter().for_each(|line| out.push_str(&format!("Note: {line}.\n")));
    match (report.done.is_empty(), done) {
        (true, _) => out.push_str("Nothing was changed.\n"),
        (false, false) => out.push_str("Nothing was changed. Say --yes to do it.\n"),
        (false, true) => out.push_str("Now start the agent: it does the rest.\n"),
    }
    out
}
