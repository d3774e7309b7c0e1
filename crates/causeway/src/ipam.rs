//! `causeway ipam`: the addresses that this node has given out.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use causeway_agent::client;
use causeway_plugins::collect::{Collector, Held, Network, Verdict};
use causeway_plugins::{Paths, record};
use causeway_types::names::{AGENT_SOCKET, NETWORK};

use crate::words::{columns, say, say_json};

/// Longer than a plugin needs from one file to the next.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// A network of this node.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The network's name in the CNI configuration.
    #[arg(long, default_value = NETWORK)]
    network: String,
}

/// The addresses that this node has given out.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Every lease: address, pod, and whether somebody needs it.
    List {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Leases that nobody needs; fails when there are any.
    Check {
        #[command(flatten)]
        which: Which,
    },
    /// Releases leases that nobody needs, after a second look.
    Gc {
        #[command(flatten)]
        which: Which,
    },
}

impl Which {
    /// Other plugins may give out addresses of a network of type `bridge` as well, and of one that
    /// no agent of this node knows: leases without a record are kept there.
    fn network(&self) -> Result<Network> {
        let paths = Paths::default();
        let file = record::node_file(&paths).map_err(|e| anyhow!("{e}"))?;
        let own =
            self.network == NETWORK && file.is_some_and(|f| !f.served.contains(&self.network));
        Ok(Network { paths, name: self.network.clone(), own })
    }

    /// Looks without a change of anything. What seems left behind does so at two looks in a row:
    /// nobody is kept waiting, so that one may fall into the middle of a change.
    fn look(&self) -> Result<Vec<Held>> {
        let network = self.network()?;
        let look = || network.peek().map_err(|e| anyhow!("{e}"));
        let is_stale = |held: &Held| matches!(held.verdict, Verdict::Stale(_));
        let held = look()?;
        if !held.iter().any(is_stale) {
            return Ok(held);
        }
        std::thread::sleep(SECOND_LOOK);
        let mut again = look()?;
        again.retain(|h| !is_stale(h) || held.contains(h));
        Ok(again)
    }
}

/// Carries it out.
///
/// # Errors
/// When the state cannot be read, or `check` finds something.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::List { which, json } => list(which.look()?, *json),
        Command::Check { which } => check(which.look()?),
        Command::Gc { which } => gc(which),
    }
}

fn state(held: &Held) -> (&'static str, &str) {
    match &held.verdict {
        Verdict::Live => ("live", ""),
        Verdict::Stale(why) => ("stale", why),
        Verdict::Kept(why) => ("kept", why),
    }
}

fn list(all: Vec<Held>, json: bool) -> Result<()> {
    let pod = |h: &Held| h.pod.as_ref().map(ToString::to_string).unwrap_or_default();
    if json {
        let rows = all.iter().map(|h| {
            let (state, why) = state(h);
            serde_json::json!({"address": h.ip, "container": h.owner.container_id,
                "ifname": h.owner.ifname, "pod": pod(h), "state": state, "why": why})
        });
        return say_json(&rows.collect::<Vec<_>>());
    }
    let mut rows =
        vec![["ADDRESS", "STATE", "POD", "CONTAINER", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|h| {
        let (state, why) = state(h);
        let container: String = h.owner.container_id.chars().take(12).collect();
        vec![h.ip.to_string(), state.to_owned(), pod(h), container, why.to_owned()]
    }));
    say(&columns(&rows))
}

fn check(all: Vec<Held>) -> Result<()> {
    let count = all.len();
    let stale: Vec<Held> =
        all.into_iter().filter(|h| matches!(h.verdict, Verdict::Stale(_))).collect();
    if stale.is_empty() {
        return say(&format!("{count} leases, none of them left behind\n"));
    }
    let number = stale.len();
    list(stale, false)?;
    bail!("{number} of {count} leases are left behind; `causeway ipam gc` releases them")
}

/// The agent does it where there is one, so that two do not work at the same things.
fn gc(which: &Which) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(2);
    let socket = Path::new(AGENT_SOCKET);
    if which.network == NETWORK && client::status(socket).is_ok() {
        let mut released = client::collect(socket)?.released;
        std::thread::sleep(PAUSE);
        let report = client::collect(socket)?;
        released.extend(report.released);
        return done(&released, &report.failed);
    }
    let mut collector = Collector::new(which.network()?);
    collector.observe().map_err(|e| anyhow!("{e}"))?;
    std::thread::sleep(PAUSE);
    let report = collector.observe().map_err(|e| anyhow!("{e}"))?;
    let line = |(ip, owner, why)| format!("{ip} of container {owner}: {why}");
    done(&report.released.into_iter().map(line).collect::<Vec<_>>(), &report.failed)
}

fn done(released: &[String], failed: &[String]) -> Result<()> {
    for line in released {
        say(&format!("released {line}\n"))?;
    }
    say(&format!("{} leases released\n", released.len()))?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}
