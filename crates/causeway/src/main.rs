//! The command `causeway`: the node agent, questions to it, and the lab.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod agent;
mod cni;
mod doctor;
mod install;
mod ipam;
mod lab;
mod migrate;
mod node;
mod policy;
mod reset;
mod words;

/// Pod networks for Kubernetes from what Linux has.
#[derive(Debug, Parser)]
#[command(name = "causeway", version, disable_version_flag = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the node agent: keeps this node's pod network as the cluster's state asks for.
    Agent(agent::Args),
    /// Asks the agent of this node.
    #[command(subcommand)]
    Node(node::Command),
    /// What a container runtime does, by hand: add, del, check, status, gc.
    #[command(subcommand)]
    Cni(cni::Command),
    /// The addresses that this node has given out.
    #[command(subcommand)]
    Ipam(ipam::Command),
    /// Says what is wrong with this node and what to do.
    Doctor(doctor::Args),
    /// Puts this program into a directory, such as /usr/local/bin.
    Install {
        /// The directory.
        dir: std::path::PathBuf,
    },
    /// What network policies say: of the cluster, or of manifests without one.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Takes this node over from another pod network, with its running pods.
    Migrate(migrate::Args),
    /// Takes everything of Causeway off this node.
    Reset(reset::Args),
    /// A whole cluster on this machine, made of network namespaces.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    // A container runtime that finds this binary under a plugin's name must hear what is wrong. It
    // gives no arguments; the lab runs plugins through this program, and does.
    if std::env::var_os("CNI_COMMAND").is_some() && std::env::args_os().len() <= 1 {
        return refuse_as_plugin();
    }
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("causeway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(args) => agent::run(args)?,
        Command::Node(command) => node::run(&command)?,
        Command::Cni(command) => cni::run(&command)?,
        Command::Ipam(command) => ipam::run(&command)?,
        Command::Doctor(args) => return Ok(doctor::run(&args)),
        Command::Install { dir } => install::run(&dir)?,
        Command::Policy(command) => return policy::run(&command),
        Command::Migrate(args) => return migrate::run(args),
        Command::Reset(args) => return reset::run(&args),
        Command::Lab(command) => return lab::run(command),
        Command::Version => words::say(&format!("causeway {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The error object of the CNI specification (section 5, "Error"), code 4: the environment is not
/// one for this program.
fn refuse_as_plugin() -> ExitCode {
    let error = serde_json::json!({
        "cniVersion": "1.0.0",
        "code": 4,
        "msg": "CNI_COMMAND is set, but `causeway` is no CNI plugin: install `causeway-cni` under the \
                plugins' names (causeway, bridge, host-local, loopback) in CNI_PATH",
    });
    println!("{error}");
    ExitCode::FAILURE
}
