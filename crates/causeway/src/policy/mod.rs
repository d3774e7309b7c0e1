//! `causeway policy`: what network policies say.

mod drops;
mod live;
mod on_lab;
mod output;
pub(crate) mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use causeway_policy::compare::{changes, matrix};
use causeway_policy::lint::{Level, lint};
use causeway_policy::{Ends, PodName, Transport, World, classes};
use causeway_types::Family;
use serde::Serialize;

use self::source::Source;
use crate::words::{columns, say, say_json};

/// What network policies say: of the cluster, or of manifests without one.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Is this connection allowed, by which rule, and what is missing? Fails when it is dropped.
    ///
    /// An end is NAMESPACE/POD, NAMESPACE/LABELS (web/app=front), */LABELS, node:NAME or an address.
    Explain {
        /// From where.
        from: Ends,
        /// To where.
        to: Ends,
        /// By what: 80, udp/53, sctp/132 or icmp.
        port: Transport,
        /// Compare with what this node's kernel has: its tables are asked as it asks them. Fails with 2 when
        /// they do not say the same.
        #[arg(long)]
        live: bool,
        /// Send a real packet, from a pod of this node. Implies --live.
        #[arg(long)]
        probe: bool,
        /// The agent's socket.
        #[arg(long, default_value = causeway_types::names::AGENT_SOCKET, value_name = "FILE")]
        socket: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// What policies dropped on this node: between which pods, and by which policy and rule.
    Drops {
        /// Of this pod alone, at either end: NAMESPACE/NAME.
        pod: Option<String>,
        /// Go on, and tell of what is dropped from now on.
        #[arg(long)]
        follow: bool,
        /// The agent's socket.
        #[arg(long, default_value = causeway_types::names::AGENT_SOCKET, value_name = "FILE")]
        socket: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The policies, with whom they apply to.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// What is probably not meant: selectors that select nothing, rules that do nothing, blocks of pods'
    /// addresses. Fails when there is an error.
    Lint {
        /// Fails when there is a warning, too.
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Which connections become allowed or dropped. Fails with 1 when there are some, as diff does, and with
    /// 2 when it cannot tell.
    Diff {
        /// What is: a directory, a file, or `cluster`.
        before: String,
        /// What is to be: the same. A directory of policies alone is put in the place of those of the first,
        /// for the pods there.
        after: String,
        #[command(flatten)]
        output: Output,
    },
    /// Everything that can reach an end.
    Reach {
        /// To where.
        #[arg(long)]
        to: Ends,
        /// By what: 80, udp/53, sctp/132 or icmp.
        #[arg(long)]
        port: Transport,
        #[command(flatten)]
        output: Output,
    },
    /// Who may connect to whom, and by what.
    Matrix {
        /// Pairs that may not connect at all, too.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
    /// What is enforced on this node: the pods that are attached here and the policies that its kernel has for
    /// them now. Fails while something is not known or the kernel refused something.
    Show {
        /// Of this pod alone: NAMESPACE/NAME.
        pod: Option<String>,
        /// The agent's socket.
        #[arg(long, default_value = causeway_types::names::AGENT_SOCKET, value_name = "FILE")]
        socket: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Are the expectations of files met? (kind PolicyTest; see `docs/policy.md`)
    Test {
        /// With packets, too: in a lab that is made like the cluster of the files, and removed afterwards.
        /// Needs root.
        #[arg(long)]
        lab: bool,
        /// With --lab: so many pods at most, each of which is a process.
        #[arg(long, requires = "lab", default_value_t = causeway_lab::MOST_PODS, value_name = "NUMBER")]
        pods: usize,
        /// With --lab: so many nodes at most, 1 to 200; 16 unless given.
        #[arg(long, requires = "lab", value_parser = clap::value_parser!(u8).range(1..=200))]
        nodes: Option<u8>,
        #[command(flatten)]
        output: Output,
    },
}

/// How it is said, and of what.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    #[command(flatten)]
    source: Source,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it. The exit code is the answer: 0, or 1 for what each command calls failing.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Explain { from, to, port, live, probe, socket, output } => {
            let node = (*live || *probe).then(|| live::Node::read(socket)).transpose()?;
            explain(from, to, *port, node.as_ref(), *probe, output)
        }
        Command::Drops { pod, follow, socket, json } => {
            drops::run(pod.as_deref(), *follow, socket, *json)
        }
        Command::List { output } => list(output),
        Command::Lint { strict, output } => run_lint(*strict, output),
        Command::Diff { before, after, output } => match diff(before, after, output) {
            Ok(code) => Ok(code),
            Err(error) => {
                eprintln!("causeway: {error:#}");
                Ok(ExitCode::from(2))
            }
        },
        Command::Reach { to, port, output } => reach(to, *port, output),
        Command::Matrix { all, output } => run_matrix(*all, output),
        Command::Show { pod, socket, json } => show(pod.as_deref(), socket, *json),
        Command::Test { lab: true, pods, nodes, output } => {
            on_lab::test(&output.source, output.json, *nodes, *pods)
        }
        Command::Test { lab: false, output, .. } => test(output),
    }
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Rows as JSON, or as a table for people.
fn table<T: Serialize>(
    output: &Output,
    head: &[&str],
    rows: &[T],
    cells: impl Fn(&T) -> Vec<String>,
) -> Result<ExitCode> {
    if output.json {
        say_json(&rows)?;
    } else {
        let mut all = vec![head.iter().map(|word| (*word).to_owned()).collect()];
        all.extend(rows.iter().map(cells));
        say(&columns(&all))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the kernel of this node has.
fn show(pod: Option<&str>, socket: &Path, json: bool) -> Result<ExitCode> {
    let mut status = causeway_agent::client::policies(socket)?;
    if let Some(name) = pod {
        let name = if name.contains('/') { name.to_owned() } else { format!("default/{name}") };
        status.pods.retain(|pod| pod.pod == name);
        if status.pods.is_empty() {
            bail!(
                "no pod {name} is attached to this node; `causeway policy show` names those that are"
            );
        }
    }
    let good = status.synced && status.problem.is_none();
    if json {
        say_json(&status)?;
        return Ok(code(good));
    }
    if let Some(problem) = &status.problem {
        say(&format!("problem: {problem}\n"))?;
    }
    let when = match status.changed {
        0 => "found as it should be".to_owned(),
        at => format!("changed {} s ago", unix_now().saturating_sub(at)),
    };
    say(&format!(
        "{} policies, revision {}, {when}, {} repairs\n",
        status.policies.len(),
        status.revision,
        status.repairs
    ))?;
    let mut rows = vec![["POD", "ADDRESSES", "INGRESS", "EGRESS"].map(str::to_owned).to_vec()];
    let of = |policies: &Option<Vec<String>>, shut| match policies {
        _ if shut => "nothing passes: the cluster does not know the pod".to_owned(),
        None => "everything".to_owned(),
        Some(all) => all.join(", "),
    };
    rows.extend(status.pods.iter().map(|pod| {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        let (ingress, egress) = (of(&pod.ingress, pod.shut), of(&pod.egress, pod.shut));
        vec![pod.pod.clone(), addresses.join(" "), ingress, egress]
    }));
    say(&columns(&rows))?;
    Ok(code(good))
}

fn unix_now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

fn explain(
    from: &Ends,
    to: &Ends,
    port: Transport,
    node: Option<&live::Node>,
    probe: bool,
    output: &Output,
) -> Result<ExitCode> {
    let world = output.source.read()?.world;
    let ends = |which: &Ends| world.ends(which).map_err(anyhow::Error::msg);
    let (from_all, to_all) = (ends(from)?, ends(to)?);
    let single = from_all.len() == 1 && to_all.len() == 1;
    let mut all = Vec::new();
    for (a, b) in from_all.iter().flat_map(|a| to_all.iter().map(move |b| (a, b))) {
        if single || a.who != b.who {
            all.extend(a.pairs(b).iter().map(|(from, to)| world.explain(from, to, port)));
        }
    }
    if all.is_empty() {
        bail!("{from} and {to} have no addresses of one family");
    }
    let look = |one| node.map(|node| node.look(&world, one, probe)).transpose();
    let found = all.iter().map(look).collect::<Result<Vec<_>>>()?;
    let told = all.iter().zip(&found);
    if output.json {
        let of = |(one, found)| output::explanation(one, found);
        say_json(&told.map(of).collect::<Result<Vec<_>>>()?)?;
    } else {
        let of = |(one, found): (&_, &Option<live::Found>)| {
            format!("{one}{}", found.as_ref().map(live::Found::text).unwrap_or_default())
        };
        let texts: Vec<String> = told.map(of).collect();
        say(&(texts.join("\n\n") + "\n"))?;
    }
    if found.iter().flatten().any(|found| found.differs) {
        return Ok(ExitCode::from(2));
    }
    Ok(code(all.iter().all(|one| one.judgement.allowed())))
}

fn list(output: &Output) -> Result<ExitCode> {
    let world = output.source.read()?.world;
    let mut policies: Vec<_> = world.policies().collect();
    policies.sort_by_key(|policy| (policy.tier, policy.priority, &policy.name));
    let rows: Vec<_> = policies.iter().map(|policy| output::policy(&world, policy)).collect();
    let head = ["TIER", "PRIORITY", "POLICY", "APPLIES TO", "PODS", "INGRESS", "EGRESS"];
    table(output, &head, &rows, output::PolicyRow::cells)
}

fn run_lint(strict: bool, output: &Output) -> Result<ExitCode> {
    let read = output.source.read()?;
    let found = lint(&read.world, &read.ranges);
    if output.json {
        say_json(&found.iter().map(output::finding).collect::<Vec<_>>())?;
    } else {
        let lines: Vec<String> = found.iter().map(|finding| finding.to_string() + "\n").collect();
        let policies = read.world.policies().count();
        let of = if policies == 1 { "policy" } else { "policies" };
        say(&format!("{}{policies} {of}, {} findings\n", lines.concat(), found.len()))?;
    }
    let worst = if strict { Level::Warning } else { Level::Error };
    Ok(code(found.iter().all(|finding| finding.level > worst)))
}

fn diff(before: &str, after: &str, output: &Output) -> Result<ExitCode> {
    let (before, mut after) =
        (output.source.named(before)?.world, output.source.named(after)?.world);
    if after.pods().next().is_none() {
        // The same pods under other policies.
        let mut world = before.clone();
        let names: Vec<_> = world.policies().map(|policy| policy.name.clone()).collect();
        names.iter().for_each(|name| world.remove_policy(name));
        after.policies().cloned().for_each(|policy| world.set_policy(policy));
        after = world;
    }
    let there = |world: &World| -> BTreeSet<PodName> {
        world.pods().filter(|p| !p.addresses.is_empty()).map(|p| p.name.clone()).collect()
    };
    let (old, new) = (there(&before), there(&after));
    if old.is_disjoint(&new) {
        bail!("no pod is in both, between which a connection could change");
    }
    let alone = old.symmetric_difference(&new).count();
    if alone > 0 {
        eprintln!("causeway: {alone} pods are in one of both alone, and are not compared");
    }
    let found = changes(&before, &after);
    if output.json {
        say_json(&found.iter().map(output::change).collect::<Vec<_>>())?;
    } else if found.is_empty() {
        let count = classes(&[&before, &after]).len();
        say(&format!("no connection changes between {count} kinds of ends\n"))?;
    } else {
        let lines: Vec<String> = found.iter().map(|change| change.to_string() + "\n").collect();
        say(&lines.concat())?;
    }
    Ok(code(found.is_empty()))
}

fn reach(to: &Ends, port: Transport, output: &Output) -> Result<ExitCode> {
    let world = output.source.read()?.world;
    let ends = world.ends(to).map_err(anyhow::Error::msg)?;
    let mut rows = Vec::new();
    let all = classes(&[&world]);
    for end in &ends {
        for from in &all {
            let Some((one, other)) = from.ends_to(end, &world) else { continue };
            let pairs = one.pairs(&other);
            for (a, b) in &pairs {
                let judgement = world.judge(a, b, port);
                if judgement.allowed() {
                    let family = (pairs.len() > 1).then_some(Family::of(a.address));
                    rows.push(output::reached(from, family, end, &judgement));
                }
            }
        }
    }
    output::merge_families(&mut rows);
    table(output, &["FROM", "TO", "BY"], &rows, output::Reached::cells)
}

fn run_matrix(all: bool, output: &Output) -> Result<ExitCode> {
    let world = output.source.read()?.world;
    let cells = matrix(&world);
    let rows: Vec<_> =
        cells.iter().flat_map(output::cells).filter(|c| all || !c.is_nothing()).collect();
    table(output, &["FROM", "TO", "ALLOWED"], &rows, output::Cell::cells)
}

fn test(output: &Output) -> Result<ExitCode> {
    if output.source.is_cluster() {
        bail!("name files with expectations (kind PolicyTest) and manifests: --file PATH");
    }
    let read = output.source.read()?;
    if read.expected.is_empty() {
        bail!("the files have no expectations (kind PolicyTest)");
    }
    let (mut connections, mut failed) = (0, Vec::new());
    for (from, expectation) in &read.expected {
        match expectation.check(&read.world) {
            Ok(outcome) => {
                connections += outcome.connections;
                failed.extend(outcome.surprises.iter().map(|s| format!("{from}: {s}")));
            }
            Err(why) => failed.push(format!("{from}: {why}")),
        }
    }
    if output.json {
        say_json(&serde_json::json!({"connections": connections, "failed": failed}))?;
    } else {
        let lines: Vec<String> = failed.iter().map(|line| format!("{line}\n")).collect();
        let count = read.expected.len();
        let end = match failed.len() {
            0 => "all as expected".to_owned(),
            n => format!("{n} not as expected"),
        };
        say(&format!(
            "{}{count} expectations, {connections} connections: {end}\n",
            lines.concat()
        ))?;
    }
    Ok(code(failed.is_empty()))
}
