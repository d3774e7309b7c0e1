//! `causeway lab fault`.

use anyhow::Result;
use causeway_lab::{Fault, How};

use super::Which;
use crate::words::say;

/// What goes wrong, and the particulars.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// `list` shows what can go wrong; `clear` ends what lasts.
    fault: String,
    /// The node.
    #[arg(long, default_value = "node-1")]
    node: String,
    /// How long it lasts.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Latency of a slow API in milliseconds.
    #[arg(long, default_value_t = 1000)]
    latency_ms: u64,
    /// The largest packet that a black hole lets through, in bytes.
    #[arg(long, default_value_t = 1400)]
    bytes: u16,
    /// Seconds by which a clock jumps, from the true time.
    #[arg(long, default_value_t = 3600, allow_negative_numbers = true)]
    jump_seconds: i64,
    /// How many plugins are killed.
    #[arg(long, default_value_t = 1)]
    times: u32,
}

/// Carries it out.
///
/// # Errors
/// With a line for people.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut tell = |line: &str| drop(say(&format!("{line}\n")));
    match args.fault.as_str() {
        "list" => {
            let width = Fault::ALL.iter().map(|f| f.name().len()).max().unwrap_or(0);
            for fault in Fault::ALL {
                say(&format!("{:width$}  {}\n", fault.name(), fault.about()))?;
            }
            Ok(())
        }
        "clear" => causeway_lab::clear(&args.which.record()?.spec, &mut tell),
        name => {
            let fault: Fault = name.parse()?;
            let how = How {
                node: args.node.clone(),
                seconds: args.seconds,
                latency_ms: args.latency_ms,
                bytes: args.bytes,
                jump_seconds: args.jump_seconds,
                times: args.times,
            };
            causeway_lab::inflict(&args.which.record()?.spec, fault, &how, &mut tell)
        }
    }
}
