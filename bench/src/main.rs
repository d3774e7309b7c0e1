//! Benchmarks: ours, the reference and the bare kernel, side by side in one run.
//!
//! `causeway-bench cni` times whole plugin processes; `causeway-bench net` times traffic between
//! pods; `causeway-bench agent` weighs the agent; `causeway-bench sandbox` has containerd make pods;
//! `causeway-bench ready` times a new cluster until its nodes are ready; `causeway-bench policy` shows what
//! policies cost. Run by `./dev bench`. Results go to `bench/results`.

mod agent;
mod cni;
mod floor;
mod large;
mod machines;
mod net;
mod policy;
mod ready;
mod report;
mod sandbox;
mod served;
mod trace;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// The command line, by hand: three options need no parser.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    /// Directory of `causeway` and `causeway-cni`.
    pub(crate) bin: PathBuf,
    /// Directory of the reference plugins.
    pub(crate) reference: PathBuf,
    /// Pods, or rounds, to measure.
    pub(crate) count: Option<usize>,
    /// Where results are written.
    pub(crate) results: PathBuf,
    /// One part of the benchmark alone, where it has parts.
    pub(crate) part: Option<String>,
}

const NAMES: &str = "cni, net, agent, sandbox, ready, policy";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let name = words.next().with_context(|| format!("which benchmark? there are: {NAMES}"))?;
    if name == "floor" {
        return floor::process(&words.collect::<Vec<_>>());
    }
    if name == "served" {
        return served::process(&words.collect::<Vec<_>>());
    }
    if name == "policy-adds" {
        return policy::adds::process(&words.collect::<Vec<_>>());
    }
    let mut args = Args {
        bin: "target/dist".into(),
        reference: "/usr/lib/cni".into(),
        count: None,
        results: "bench/results".into(),
        part: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--bin" => args.bin = value()?.into(),
            "--reference" => args.reference = value()?.into(),
            "--count" => args.count = Some(value()?.parse().context("--count takes a number")?),
            "--results" => args.results = value()?.into(),
            "--part" => args.part = Some(value()?),
            other => {
                bail!(
                    "unknown option {other}; there are: --bin --reference --count --results --part"
                )
            }
        }
    }
    if args.part.is_some() && name != "policy" {
        bail!("only policy has parts");
    }
    args.bin = args.bin.canonicalize().with_context(|| format!("no {}", args.bin.display()))?;
    match name.as_str() {
        "cni" => cni::run(&args),
        "net" => net::run(&args),
        "agent" => agent::run(&args),
        "sandbox" => sandbox::run(&args),
        "ready" => ready::run(&args),
        "policy" => policy::run(&args),
        other => bail!("no benchmark {other:?}; there are: {NAMES}"),
    }
}
