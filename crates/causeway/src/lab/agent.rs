//! `causeway lab agent`.

use anyhow::{Context, Result};
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
    Upgrade,
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
    /// The program that an upgrade starts in its place.
    #[arg(long, required_if_eq("what", "upgrade"))]
    to: Option<std::path::PathBuf>,
}

/// Carries it out.
///
/// # Errors
/// When there is no such node, or the agent does not come back.
pub(crate) fn run(args: &Args) -> Result<()> {
    let action = match (args.what, args.kill) {
        (Word::Start, _) => "start".to_owned(),
        (Word::Stop, false) => "stop".to_owned(),
        (Word::Stop, true) => "halt".to_owned(),
        (Word::Restart, false) => "restart".to_owned(),
        (Word::Restart, true) => "kill".to_owned(),
        (Word::Upgrade, _) => {
            let to = args.to.as_deref().unwrap_or_else(|| std::path::Path::new("causeway"));
            let to = to.canonicalize().with_context(|| to.display().to_string())?;
            let to = to.to_str().context("the program's path is no UTF-8")?;
            format!("upgrade?to={}", escaped(to))
        }
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
        Word::Upgrade => "is the new program",
    };
    say(&format!("the agent of {} {done}\n", args.node))
}

/// A path in a query (RFC 3986, section 2.1).
fn escaped(path: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(b);
    path.bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
