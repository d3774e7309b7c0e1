//! `causeway policy test --lab`: what is expected of policies, tried with packets in a lab of its own.
//!
//! Every connection is asked for twice: while there are no policies, so that one that is dropped afterwards
//! is dropped by them, and under them. The evaluator is asked the same of the lab: where packets and it do
//! not agree, one of them is wrong.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use causeway_lab::{
    Answers, Ask, Blueprint, Client, Interrupt, Place, Spec, give_outside, reaches, source,
};
use causeway_policy::expect::{Connection, Expectation};
use causeway_policy::{Party, Protocol, Transport, Who, World};
use causeway_types::Family;
use ipnet::IpNet;

use self::report::{Report, Verdict};
use super::source::{Read, Source};
use crate::lab::{binaries, check_root, patience, world};

/// How long packets may take: what is to get there gets more chances than one, for others may keep the
/// machine busy; what is not to get there is waited for once.
const WAITS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(3)];
/// Connections that are tried at once.
const AT_ONCE: usize = 48;
/// Ports that are listened to at once: each is a descriptor, of which a process may have 1024.
const LISTENED: usize = 256;

/// A connection that something is expected of.
pub(super) struct Trial<'a> {
    file: &'a str,
    expectation: &'a Expectation,
    connection: Connection,
}

/// What is asked in the lab.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    /// Where it goes to: questions with one destination are beside each other.
    there: PathBuf,
    ask: Ask,
    to: Party,
    /// From where.
    ns: PathBuf,
    /// By which address; for nodes the one that their kernel chooses.
    from: Party,
}

impl Question {
    fn place(&self) -> Place {
        (self.there.clone(), self.to.address, self.ask)
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    There,
    Dropped,
    /// Somebody else has the port, and need not answer.
    Taken,
}

/// Tries the expectations, with so many nodes and pods at most. The exit code tells whether all are met, by
/// packets too.
///
/// # Errors
/// When there is nothing to try, or no lab can be made.
pub(super) fn test(
    source: &Source,
    json: bool,
    nodes: Option<u8>,
    most_pods: usize,
) -> Result<ExitCode> {
    if source.is_cluster() {
        bail!(
            "name files with expectations (kind PolicyTest), and manifests or `cluster`: --file PATH"
        );
    }
    let objects = source.objects()?;
    let read = objects.read()?;
    if read.expected.is_empty() {
        bail!("the files have no expectations (kind PolicyTest): name some with --file PATH");
    }
    check_root()?;
    let name = format!("pt{}", std::process::id());
    let last = format!("causeway: not all is removed; `causeway lab down --name {name}` does it");
    let interrupt = Interrupt::listen(last)?;
    let blueprint = Blueprint::of(objects.all(), nodes, most_pods);
    let report = run(blueprint, &read, name, &interrupt);
    if interrupt.is_told() {
        eprintln!("causeway: interrupted; the lab is removed");
        return Ok(ExitCode::from(130));
    }
    let report = report?;
    report.say(read.expected.len(), json)?;
    Ok(super::code(report.is_good()))
}

fn run(blueprint: Blueprint, read: &Read, name: String, interrupt: &Interrupt) -> Result<Report> {
    let mut report = Report::default();
    let mut trials = Vec::new();
    for (file, expectation) in &read.expected {
        match expectation.connections(&read.world) {
            Ok(all) => trials.extend(all.into_iter().map(|connection| Trial {
                file,
                expectation,
                connection,
            })),
            Err(why) => report.failed.push(format!("{file}: {why}")),
        }
    }
    report.connections = trials.len();
    if trials.is_empty() {
        return Ok(report);
    }
    let spec =
        Spec { name, nodes: blueprint.workers, families: blueprint.families, ..Spec::default() };
    report.left_out = blueprint.left_out.clone();
    let verdicts = {
        let lab = Lab { spec, blueprint, interrupt };
        lab.verdicts(&read.world, &trials, &mut report.left_out)?
    };
    for (trial, verdict) in trials.iter().zip(verdicts) {
        report.take(trial, &read.world, verdict);
    }
    report.finish();
    Ok(report)
}

/// A lab that goes with this value.
struct Lab<'a> {
    spec: Spec,
    blueprint: Blueprint,
    interrupt: &'a Interrupt,
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        self.tell("is removed");
        if let Err(error) = causeway_lab::down(&self.spec.name) {
            eprintln!("causeway: lab {} is not removed: {error:#}", self.spec.name);
        }
    }
}

impl Lab<'_> {
    fn tell(&self, what: &str) {
        eprintln!("lab {}: {what}", self.spec.name);
    }

    /// Makes the lab and asks everything.
    fn verdicts(
        &self,
        original: &World,
        trials: &[Trial<'_>],
        left_out: &mut Vec<String>,
    ) -> Result<Vec<Verdict>> {
        let go_on = || self.interrupt.check();
        let patience = patience(&self.blueprint);
        let mut tell = |what: &str| self.tell(what);
        causeway_lab::up_while(&self.spec, &binaries()?, &mut tell, &go_on)?;
        let client = Client::open(&self.spec.name)?;
        self.tell("namespaces and pods");
        left_out.extend(self.blueprint.populate(&client, patience, &go_on)?);
        self.furnish_outside(&client, trials)?;
        let questions = self.questions(&client, trials)?;
        let all: Vec<&Question> =
            BTreeSet::from_iter(questions.iter().flatten()).into_iter().collect();
        self.tell(&format!("{} connections, without policies", all.len()));
        let before = self.ask(&all, |_| true)?;
        self.tell("policies");
        left_out.extend(self.blueprint.enact(&self.spec, &client, patience, &go_on)?);
        let here = world(&client)?;
        self.tell(&format!("{} connections, with policies", all.len()));
        let judged = |one: &Question| here.judge(&one.from, &one.to, transport(one.ask));
        let after = self.ask(&all, |one| judged(one).allowed())?;
        let found: BTreeMap<&Question, (Outcome, Outcome)> =
            all.into_iter().zip(before.into_iter().zip(after)).collect();
        let verdicts = trials.iter().zip(&questions).map(|(trial, question)| {
            let question = match question {
                Ok(question) => question,
                Err(why) => return Verdict::NotTried(why.clone()),
            };
            let Connection { from, to, transport } = &trial.connection;
            verdict(original.judge(from, to, *transport), judged(question), found[question])
        });
        Ok(verdicts.collect())
    }

    /// Who is outside in expectations is there in the lab.
    fn furnish_outside(&self, client: &Client, trials: &[Trial<'_>]) -> Result<()> {
        let ends = trials.iter().flat_map(|trial| [&trial.connection.from, &trial.connection.to]);
        let outside =
            ends.filter(|party| party.who == Who::Outside && !self.spec.is_own(party.address));
        let addresses: BTreeSet<IpAddr> = outside.map(|party| party.address).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        let list = client.get("/api/v1/nodes")?;
        let mut subnets: Vec<(String, IpNet)> = Vec::new();
        for node in list["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let cidrs = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
            let cidrs = cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok());
            subnets.extend(cidrs.map(|cidr| (name.to_owned(), cidr)));
        }
        give_outside(&self.spec, &addresses.into_iter().collect::<Vec<_>>(), &subnets)
    }

    /// What is asked in the lab for each connection, or why it cannot be.
    fn questions(
        &self,
        client: &Client,
        trials: &[Trial<'_>],
    ) -> Result<Vec<Result<Question, String>>> {
        let here = world(client)?;
        let pods = causeway_lab::pods(client)?;
        let netns = |party: &Party| -> Option<PathBuf> {
            match &party.who {
                Who::Pod(name) => {
                    let is = |pod: &&causeway_lab::Pod| {
                        *pod.namespace == *name.namespace && *pod.name == *name.name
                    };
                    Some(pods.iter().find(is)?.netns(&self.spec.name))
                }
                Who::Node(name) => Some(self.spec.dirs().netns(name)),
                Who::Outside => Some(self.spec.dirs().netns("outside")),
            }
        };
        let ask = |connection: &Connection| -> Result<Result<Question, String>> {
            let ask = asked(connection.transport);
            let (mut from, to) =
                match (self.party(&connection.from, &here), self.party(&connection.to, &here)) {
                    (Ok(from), Ok(to)) => (from, to),
                    (Err(why), _) | (_, Err(why)) => return Ok(Err(why)),
                };
            let (Some(ns), Some(there)) = (netns(&from), netns(&to)) else {
                return Ok(Err("one of its ends is not in the lab".into()));
            };
            if from.who != Who::Outside {
                match source(&ns, to.address)? {
                    Some(ip) => from.address = ip,
                    None => return Ok(Err(format!("{from} has no way to {to} in the lab"))),
                }
            }
            Ok(Ok(Question { there, ask, to, ns, from }))
        };
        let mut all = Vec::new();
        for trial in trials {
            all.push(ask(&trial.connection).with_context(|| describe(&trial.connection))?);
        }
        Ok(all)
    }

    /// Who plays an end in the lab.
    fn party(&self, original: &Party, here: &World) -> Result<Party, String> {
        let family = Family::of(original.address);
        let of = |ips: &[IpAddr]| ips.iter().copied().find(|ip| Family::of(*ip) == family);
        let (who, address) = match &original.who {
            Who::Pod(name) => {
                let pod = here.pod(name).ok_or_else(|| format!("pod {name} is not in the lab"))?;
                (Who::Pod(name.clone()), of(&pod.addresses))
            }
            Who::Node(name) => {
                let place = self.blueprint.nodes.get(&**name);
                let place = place.ok_or_else(|| format!("node {name} is not in the lab"))?;
                let node =
                    here.node(place).ok_or_else(|| format!("node {name} is not in the lab"))?;
                (Who::Node(place.as_str().into()), of(&node.addresses))
            }
            Who::Outside if self.spec.is_own(original.address) => {
                return Err(format!("{} is an address of the lab's own", original.address));
            }
            Who::Outside if !self.spec.families.list().contains(&family) => (Who::Outside, None),
            Who::Outside => (Who::Outside, Some(original.address)),
        };
        let address =
            address.ok_or_else(|| format!("{original} has no {family} address in the lab"))?;
        Ok(Party { who, address })
    }

    /// What becomes of each; `all` are in order.
    fn ask(
        &self,
        all: &[&Question],
        wanted: impl Fn(&Question) -> bool + Sync,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for some in batches(all) {
            let listened = some.iter().map(|one| one.place()).collect();
            let answers = Answers::open(&listened)?;
            let next = AtomicUsize::new(0);
            let work = || {
                let mut found = Vec::new();
                loop {
                    self.interrupt.check()?;
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = some.get(i) else { return Ok(found) };
                    found.push((i, outcome(one, &answers, wanted(one))?));
                }
            };
            let found: Result<Vec<Vec<(usize, Outcome)>>> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..AT_ONCE.min(some.len())).map(|_| scope.spawn(work)).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            });
            let mut found: Vec<(usize, Outcome)> = found?.into_iter().flatten().collect();
            found.sort_by_key(|(i, _)| *i);
            outcomes.extend(found.into_iter().map(|(_, outcome)| outcome));
        }
        Ok(outcomes)
    }
}

/// Parts with so many destinations that all can be listened to at once.
fn batches<'a, 'q>(all: &'a [&'q Question]) -> Vec<&'a [&'q Question]> {
    let (mut parts, mut begin, mut count) = (Vec::new(), 0, 0);
    for (i, one) in all.iter().enumerate() {
        let new = i == begin || all[i - 1].place() != one.place();
        if new && count == LISTENED {
            parts.push(&all[begin..i]);
            (begin, count) = (i, 0);
        }
        count += usize::from(new);
    }
    parts.push(&all[begin..]);
    parts
}

fn outcome(one: &Question, answers: &Answers, wanted: bool) -> Result<Outcome> {
    // A pod's server answers at all its ports; other programs answer as they like.
    let is_pod = matches!(one.to.who, Who::Pod(_));
    if !is_pod && matches!(one.ask, Ask::Udp(_)) && answers.is_taken(&one.place()) {
        return Ok(Outcome::Taken);
    }
    let waits = if wanted { &WAITS[..] } else { &WAITS[..1] };
    for wait in waits {
        if reaches(&one.ns, Some(one.from.address), one.to.address, one.ask, *wait)? {
            return Ok(Outcome::There);
        }
    }
    Ok(Outcome::Dropped)
}

/// What the lab showed of a connection.
fn verdict(
    there: causeway_policy::judge::Judgement,
    here: causeway_policy::judge::Judgement,
    (before, after): (Outcome, Outcome),
) -> Verdict {
    let word = |allowed: bool| if allowed { "allowed" } else { "dropped" };
    match (before, after) {
        (Outcome::Taken, _) | (_, Outcome::Taken) => {
            Verdict::NotTried("another program has the port there".into())
        }
        _ if there.allowed() != here.allowed() => Verdict::NotTried(format!(
            "in the lab, where addresses and nodes are others, it is {} ({})",
            word(here.allowed()),
            here.reason()
        )),
        (Outcome::Dropped, _) => Verdict::Broken,
        (Outcome::There, after) => {
            let passes = after == Outcome::There;
            if passes == here.allowed() { Verdict::Agrees } else { Verdict::Differs(here.reason()) }
        }
    }
}

fn asked(transport: Transport) -> Ask {
    match transport {
        Transport::Port(Protocol::Tcp, port) => Ask::Tcp(port),
        Transport::Port(Protocol::Udp, port) => Ask::Udp(port),
        Transport::Port(Protocol::Sctp, port) => Ask::Sctp(port),
        Transport::Other => Ask::Echo,
    }
}

fn transport(ask: Ask) -> Transport {
    match ask {
        Ask::Tcp(port) => Transport::Port(Protocol::Tcp, port),
        Ask::Udp(port) => Transport::Port(Protocol::Udp, port),
        Ask::Sctp(port) => Transport::Port(Protocol::Sctp, port),
        Ask::Echo => Transport::Other,
    }
}

fn describe(connection: &Connection) -> String {
    let Connection { from, to, transport } = connection;
    format!("{from} to {to}, {transport}")
}

#[cfg(test)]
mod tests;
