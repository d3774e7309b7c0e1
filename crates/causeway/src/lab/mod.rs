//! `causeway lab`: a whole cluster on this machine, made of network namespaces.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use causeway_lab::{Client, Record};
use clap::{Args, Subcommand};

mod agent;
mod copy;
mod fault;
mod look;
mod objects;
mod pod;
mod up;

pub(crate) use copy::{patience, world};
pub(crate) use up::{binaries, check_root};

use crate::words::{say, say_json};

/// Which lab.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Name of the lab: 1 to 12 lower-case letters and digits.
    #[arg(long, default_value = "demo", env = "CAUSEWAY_LAB")]
    name: String,
}

impl Which {
    fn client(&self) -> Result<Client> {
        Client::open(&self.name)
    }

    fn record(&self) -> Result<Record> {
        Record::load(&self.name)
    }
}

/// A whole cluster on this machine, made of network namespaces.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a lab: a control-plane node `cp`, workers `node-1`, `node-2`, …, the network between
    /// them, a Kubernetes API, and an agent in each node. With --from one that is like a cluster.
    Up(up::Args),
    /// Removes a lab and every trace of it.
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// The labs on this machine.
    List,
    /// How the nodes and their agents do.
    Status {
        #[command(flatten)]
        which: Which,
        /// As JSON, complete.
        #[arg(long)]
        json: bool,
    },
    /// Makes, ends and lists pods.
    #[command(subcommand)]
    Pod(pod::Command),
    /// Runs a command in a pod's network.
    Exec {
        #[command(flatten)]
        which: Which,
        /// NAME or NAMESPACE/NAME of the pod.
        pod: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Opens a shell on a node, or runs a command there.
    Shell {
        #[command(flatten)]
        which: Which,
        /// The node.
        node: String,
        /// The command and its arguments, in place of a shell.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Every pod and node asks every pod and the world outside: who reaches whom, and how fast.
    Ping {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sends an echo request from a pod to a pod each interval, and counts those that are lost.
    WatchLoss {
        #[command(flatten)]
        which: Which,
        /// The pod that sends.
        from: String,
        /// The pod that answers.
        to: String,
        /// Time between two packets, such as 1ms.
        #[arg(long, default_value = "1ms", value_parser = duration)]
        interval: Duration,
        /// How long, in seconds.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Fetches a page by plain HTTP, from wherever it is run.
    Fetch {
        /// http://ADDRESS:PORT/PATH
        url: String,
    },
    /// Applies the objects of a manifest.
    Apply(objects::Manifest),
    /// Shows objects.
    Get(objects::Get),
    /// Deletes objects.
    Delete(objects::Delete),
    /// Prints the path of a kubeconfig for kubectl.
    Kubeconfig {
        #[command(flatten)]
        which: Which,
    },
    /// Starts, stops, restarts, kills or upgrades the agent of a node.
    Agent(agent::Args),
    /// Lets something go wrong: `fault list` shows what.
    Fault(fault::Args),
    /// Runs a command inside a node (used by the lab itself).
    #[command(name = "__in", hide = true)]
    In {
        lab: String,
        node: String,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// The process behind a lab (used by the lab itself).
    #[command(name = "__daemon", hide = true)]
    Daemon { lab: String },
    /// What runs in a pod (used by the lab itself).
    #[command(name = "__podserver", hide = true)]
    PodServer { name: String, ports: Vec<u16> },
}

/// Carries a command out.
///
/// # Errors
/// With a line for people.
pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(&args)?,
        Command::Down { which } => {
            causeway_lab::down(&which.name)?;
            say(&format!("lab {} is gone\n", which.name))?;
        }
        Command::List => look::list()?,
        Command::Status { which, json } => return look::status(&which, json),
        Command::Pod(command) => pod::run(&command)?,
        Command::Exec { which, pod, command } => {
            let client = which.client()?;
            let status = causeway_lab::exec_in_pod(&client, &which.name, &pod, &command)?;
            let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(255);
            return Ok(ExitCode::from(code));
        }
        Command::Shell { which, node, command } => shell(&which, &node, command)?,
        Command::Ping { which, json } => return look::ping(&which, json),
        Command::WatchLoss { which, from, to, interval, seconds, json } => {
            let client = which.client()?;
            let from = causeway_lab::find_pod(&client, &from)?;
            let to = causeway_lab::find_pod(&client, &to)?;
            let ip = to.ips.first().with_context(|| format!("pod {} has no address", to.name))?;
            let time = Duration::from_secs(seconds);
            let loss = causeway_lab::watch_loss(&from.netns(&which.name), *ip, interval, time)?;
            if json {
                say_json(&loss)?;
            } else {
                say(&format!(
                    "{} -> {} ({ip}): {} packets sent, {} lost, longest gap between answers {:.1} ms\n",
                    from.label(),
                    to.label(),
                    loss.sent,
                    loss.lost,
                    loss.longest_gap.as_secs_f64() * 1e3
                ))?;
            }
            return Ok(ExitCode::from(u8::from(loss.lost > 0)));
        }
        Command::Fetch { url } => say(&causeway_lab::fetch(&url)?)?,
        Command::Apply(args) => objects::apply(&args)?,
        Command::Get(args) => objects::get(&args)?,
        Command::Delete(args) => objects::delete(&args)?,
        Command::Kubeconfig { which } => {
            which.client()?;
            let path = causeway_lab::Dirs::of(&which.name).kubeconfig();
            say(&format!("{}\n", path.display()))?;
        }
        Command::Agent(args) => agent::run(&args)?,
        Command::Fault(args) => fault::run(&args)?,
        Command::In { lab, node, command } => match causeway_lab::exec(&lab, &node, &command)? {},
        Command::Daemon { lab } => {
            log();
            causeway_lab::run_daemon(&lab)?;
        }
        Command::PodServer { name, ports } => causeway_lab::serve_pod(&name, &ports)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn shell(which: &Which, node: &str, mut command: Vec<OsString>) -> Result<()> {
    let spec = which.record()?.spec;
    spec.check_node(node)?;
    if command.is_empty() {
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        eprintln!("on {node} of lab {}; `exit` leads back", which.name);
        command = vec![shell];
    }
    match causeway_lab::exec(&which.name, node, &command)? {}
}

/// The lab's process writes what it has to say to its standard error, which is a file.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

/// A time such as `1ms`, `0.5s` or `200us`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err("give a number and one of us, ms, s: 1ms".into()),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    let time = Duration::try_from_secs_f64(number * scale).map_err(|e| e.to_string())?;
    if time.is_zero() { Err("must be more than nothing".into()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        for bad in ["1", "ms", "0ms", "-1s", "1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
