//! `causeway reset`: a node as it was before Causeway came.

mod foreign;

use std::path::PathBuf;
use std::process::ExitCode;

use causeway_agent::Paths;
use causeway_agent::config::Settings;
use causeway_agent::reset::{self, Options, Report};
use causeway_doctor::leftovers::Network;
use causeway_types::names::CNI_CONF_DIR;

use crate::words::say;

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do it. Without this it only says what would be removed.
    #[arg(long)]
    yes: bool,
    /// Also with pods attached: they lose their network.
    #[arg(long)]
    with_pods: bool,
    /// Where the container runtime looks for CNI plugins.
    #[arg(long = "bin-dir", value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dirs: Vec<PathBuf>,
    /// Where it looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
    conf_dir: PathBuf,
    /// Instead of Causeway, what another pod network left behind: flannel, calico, cilium or
    /// kube-router.
    #[arg(long, value_name = "NETWORK", value_parser = foreign::network)]
    foreign: Option<&'static Network>,
}

/// Resets the node, or says what that would remove.
///
/// # Errors
/// When an agent runs, pods are attached, or the configuration or the kernel cannot be read.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(network) = args.foreign {
        let report = foreign::remove(network, args)?;
        return answer(&report, args.yes, network.name);
    }
    let paths = Paths { conf_dir: args.conf_dir.clone(), ..Paths::default() };
    let settings = Settings::load(&paths.config)?;
    let options =
        Options { with_pods: args.with_pods, dry_run: !args.yes, bin_dirs: args.bin_dirs.clone() };
    let report = reset::reset(&paths, &settings.config, &options)?;
    answer(&report, args.yes, "Causeway")
}

fn answer(report: &Report, done: bool, of: &str) -> anyhow::Result<ExitCode> {
    say(&text(report, done, of))?;
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Report, done: bool, of: &str) -> String {
    let mut out = String::new();
    let mut part = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            out.push_str(title);
            out.push('\n');
            lines.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
        }
    };
    part(if done { "Removed:" } else { "Would be removed:" }, &report.removed);
    part("Could not be removed; call it again, or see to it by hand:", &report.failed);
    part("Left alone:", &report.left);
    if !done {
        out.push_str("Nothing was changed. Say --yes to do it.\n");
    } else if report.failed.is_empty() {
        out.push_str(&format!("Nothing else of {of} is known to be left on this node.\n"));
    }
    out
}
