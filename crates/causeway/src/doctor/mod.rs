//! `causeway doctor`: what is wrong with this node, and what to do. What it says is decided in crate
//! `causeway-doctor`; here the facts are gathered, and nothing is changed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use causeway_doctor::{Finding, Severity, judge, text};

use crate::words::{say, say_json};

mod cluster;
mod cni;
mod gather;
mod managers;
mod network;
mod openings;
mod reach;

/// Files for programs that manage interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DropIn {
    /// For /etc/NetworkManager/conf.d/causeway.conf.
    Networkmanager,
    /// For /etc/systemd/network/05-causeway.network.
    Networkd,
    /// For /etc/systemd/networkd.conf.d/causeway.conf.
    NetworkdRoutes,
}

impl DropIn {
    fn text(self) -> &'static str {
        match self {
            DropIn::Networkmanager => {
                include_str!("../../../../deploy/host/networkmanager.conf")
            }
            DropIn::Networkd => include_str!("../../../../deploy/host/networkd.network"),
            DropIn::NetworkdRoutes => include_str!("../../../../deploy/host/networkd-routes.conf"),
        }
    }
}

/// For so long [`first`] says the same.
const KEPT: Duration = Duration::from_secs(5);

/// What the help ends with.
const CODES: &str = "It looks at this node, changes nothing there, and needs neither agent nor API to do so. On a node \
of a cluster it asks the API for nodes and pods, as the agent would, and tries ports of other nodes \
and the tunnels to them (of 16 at most): that takes some seconds where nothing answers.

Exit code: 0 nothing wrong, or notes alone; 1 warnings; 2 errors; 3 it could not do its work.";

/// What to say, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = CODES)]
pub(crate) struct Args {
    /// The findings as JSON.
    #[arg(long)]
    json: bool,
    /// What the findings are judged from, as JSON, in place of the findings.
    #[arg(long, conflicts_with = "json")]
    facts: bool,
    /// Directories of the plugins, separated by colons.
    #[arg(long, env = "CNI_PATH", default_value = "/opt/cni/bin", value_delimiter = ':')]
    cni_path: Vec<PathBuf>,
    /// The API is asked by this kubeconfig in place of the agent's.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Asks neither API nor other nodes.
    #[arg(long, conflicts_with = "kubeconfig")]
    offline: bool,
    /// Prints a file that tells a program to leave our interfaces and routes alone, and nothing else.
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["json", "facts"])]
    print: Option<DropIn>,
    /// Prints what a firewall of a node has to let in, and nothing else: a table unless said otherwise.
    #[arg(long, value_enum, value_name = "FORM", conflicts_with_all = ["json", "facts", "print"])]
    #[arg(num_args = 0..=1, default_missing_value = "table")]
    firewall: Option<openings::Form>,
    /// The node's role, for commands of --firewall.
    #[arg(long, value_enum, default_value = "worker", requires = "firewall")]
    role: openings::Whose,
}

/// Looks and prints.
pub(crate) fn run(args: &Args) -> ExitCode {
    match answer(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("causeway doctor: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn answer(args: &Args) -> Result<ExitCode> {
    if let Some(file) = args.print {
        say(file.text())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(form) = args.firewall {
        openings::print(form, args.role)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ask = match (args.offline, &args.kubeconfig) {
        (true, _) => gather::Ask::Nobody,
        (false, Some(file)) => gather::Ask::By(file.clone()),
        (false, None) => gather::Ask::AsAgent,
    };
    let facts = gather::facts(&args.cni_path, &ask);
    if args.facts {
        say_json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = judge(&facts);
    match args.json {
        true => say_json(&findings)?,
        false => say(&text::render(&findings))?,
    }
    Ok(ExitCode::from(code(&findings)))
}

/// The most likely error of this node, in one line, for those whose pod does not start. Neither API
/// nor other nodes are asked. It is true for some seconds: pods that do not start come in numbers.
pub(crate) fn first() -> Option<String> {
    static LAST: Mutex<Option<(Instant, Option<String>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, line)) = last.as_ref().filter(|(since, _)| since.elapsed() < KEPT) {
        return line.clone();
    }
    let mut facts = gather::facts(&[], &gather::Ask::Nobody);
    // The plugin that asks is there; the agent's pod need not see it.
    facts.cni.plugins.clear();
    let found = judge(&facts).into_iter().next().filter(|f| f.severity == Severity::Error);
    let line = found.map(|f| format!("{}: {} ({})", f.id, f.what, f.place));
    *last = Some((Instant::now(), line.clone()));
    line
}

fn code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|f| f.severity).min() {
        Some(Severity::Error) => 2,
        Some(Severity::Warning) => 1,
        Some(Severity::Note) | None => 0,
    }
}
