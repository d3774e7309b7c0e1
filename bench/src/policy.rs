//! What policies cost: what a packet pays for them, how soon a change of them counts, and what an agent needs in a
//! cluster that has many.
//!
//! Three parts, each with labs of its own: [`flows`] (connections under policies, beside the bare kernel and
//! beside the same policies as others write them), [`crowd`] (changes, starts and memory in a large cluster) and, in
//! the latter's lab before and after it is filled, [`adds`] (ADD of pods with policies).

pub(crate) mod adds;
mod by_hand;
mod crowd;
mod flows;
mod objects;

use anyhow::{Result, bail};
use causeway_lab::{Binaries, Spec};

use crate::Args;
use crate::report::publish;

/// What there is to measure.
const PARTS: [&str; 2] = ["traffic", "cluster"];
/// Fewer rounds than this are for trying things out: of everything else there is less as well.
const WHOLE: usize = 10;

/// How much there is of everything.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    /// Policies of a cluster.
    pub(crate) policies: usize,
    /// Policies on one pod.
    pub(crate) of_pod: usize,
    /// Blocks in one list.
    pub(crate) blocks: usize,
    /// Namespaces of the large cluster.
    pub(crate) namespaces: usize,
    /// Pods of each of them that other nodes run.
    pub(crate) pods: usize,
    /// Those other nodes.
    pub(crate) nodes: usize,
    /// Namespaces that have pods on the node that is looked at.
    pub(crate) local: usize,
    /// Changes of each kind, at most.
    pub(crate) changes: usize,
    /// Starts of each kind, at most.
    pub(crate) starts: usize,
    /// Pods that are attached of each kind.
    pub(crate) adds: usize,
}

const FULL: Size = Size {
    policies: 10_000,
    of_pod: 1000,
    blocks: 10_000,
    namespaces: 500,
    pods: 200,
    nodes: 200,
    local: 22,
    changes: 60,
    starts: 3,
    adds: 20,
};

const SMALL: Size = Size {
    policies: 500,
    of_pod: 50,
    blocks: 500,
    namespaces: 25,
    pods: 40,
    nodes: 10,
    local: 4,
    changes: 10,
    starts: 1,
    adds: 4,
};

/// Labs, which end with this value, also after a failure.
pub(crate) struct Labs {
    binaries: Binaries,
    names: Vec<String>,
}

impl Labs {
    fn new(args: &Args) -> Self {
        let binaries =
            Binaries { causeway: args.bin.join("causeway"), cni: args.bin.join("causeway-cni") };
        Self { binaries, names: Vec::new() }
    }

    /// Makes one and waits until it is whole.
    pub(crate) fn up(&mut self, spec: &Spec, what: &str) -> Result<()> {
        eprintln!("bench: lab {}: {what}", spec.name);
        self.names.push(spec.name.clone());
        causeway_lab::up(spec, &self.binaries, &mut |_| {})
    }
}

impl Drop for Labs {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = causeway_lab::down(name) {
                eprintln!("bench: lab {name}: {error:#}");
            }
        }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// When a lab cannot be made, or policies are not enforced.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rounds = args.count.unwrap_or(30);
    let size = if rounds < WHOLE { SMALL } else { FULL };
    let part = args.part.as_deref();
    if let Some(other) = part.filter(|part| !PARTS.contains(part)) {
        bail!("no part {other:?}; there are: {}", PARTS.join(", "));
    }
    let wanted = |name| part.is_none_or(|part| part == name);
    causeway_lab::isolate()?;
    let mut labs = Labs::new(args);
    let mut series = Vec::new();
    if wanted(PARTS[0]) {
        series = flows::run(&mut labs, &size, rounds)?;
    }
    drop(labs);
    let mut labs = Labs::new(args);
    let mut crowd = Ok(Vec::new());
    if wanted(PARTS[1]) {
        crowd = crowd::run(args, &mut labs, &size, &mut series);
    }
    drop(labs);
    let mut notes = vec![
        format!(
            "traffic: pods routed, direct, MTU 1500, veth underlay; two pairs of pods beside each other for 400 ms, \
             in turns of 4 ms, {rounds} rounds in another order each; both ends on one processor, before all else \
             that runs there; all contenders up at the same time"
        ),
        "selected: client and server both, in both directions, by policies that name their pods and 32 ports; \
         of many one names them, and the others two pods elsewhere each"
            .to_owned(),
        "by hand: 110 jumps a direction before the policies' chains, what is established passes first; of \
         several policies or blocks the one in the middle allows"
            .to_owned(),
        "a change: from the moment at which the API has it to the kernel's word that the last transaction for it is in \
         force; the API and its writer have one processor, the agent another"
            .to_owned(),
    ];
    // What was measured before is not lost with it.
    let failure = match crowd {
        Ok(said) => {
            notes.extend(said);
            Ok(())
        }
        Err(error) => {
            notes.push(format!("the large cluster failed: {error:#}"));
            Err(error)
        }
    };
    publish("policy", &notes, &series, &args.results)?;
    failure
}
