//! `causeway lab agent`.

use anyhow::Result;
use causeway_lab::wait_until_whole;
use clap::ValueEnum;
use std::time::Duration;

use super::Which;
use crate::words::say;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Word {
    Start,
    Stop,
    Restart,
}

/// Which agent, and what about it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// What to do.
    #[arg(value_enum)]
    what: Word,
    /// The node.
    node: String,
    /// End it at once (SIGKILL), not in good order.
    #[arg(long)]
    kill: bool,
}

/// Carries it out.
///
/// # Errors
/// When there is no such node, or the agent does not come back.
pub(crate) fn run(args: &Args) -> Result<()> {
    let action = match (args.what, args.kill) {
        (Word::Start, _) => "start",
        (Word::Stop, _) => "stop",
        (Word::Restart, false) => "restart",
        (Word::Restart, true) => "kill",
    };
    let client = args.which.client()?;
    client.control(http::Method::POST, &format!("/agents/{}/{action}", args.node))?;
    if args.what != Word::Stop {
        wait_until_whole(&args.which.record()?.spec, Duration::from_secs(30))?;
    }
    let done = match args.what {
        Word::Start => "runs",
        Word::Stop => "is stopped",
        Word::Restart => "runs again",
    };
    say(&format!("the agent of {} {done}\n", args.node))
}
