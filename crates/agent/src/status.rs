//! What the agent says about itself, as served on its socket and read by the command line.

use serde::{Deserialize, Serialize};

/// The state of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not there yet, and nothing went wrong: it waits for something named in `error`.
    Pending,
    /// The last operation failed; it is tried again.
    Failed,
    /// Somebody else's object is in the way; it is left alone.
    Conflict,
}

impl State {
    /// All states.
    pub const ALL: [State; 4] = [State::Ok, State::Pending, State::Failed, State::Conflict];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Pending => "pending",
            State::Failed => "failed",
            State::Conflict => "conflict",
        }
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The node file and the CNI configuration list are written and true.
    pub ready: bool,
    /// What keeps it from being ready, or is wrong with a part of the network.
    pub problems: Vec<Problem>,
    /// What the desired state is computed from.
    pub inputs: InputsStatus,
    /// Generation of the node file; 0 before the first.
    pub generation: u64,
    /// Rounds of the reconcile loop since the start.
    pub reconciles: u64,
    /// Objects put back after somebody else had removed or changed them.
    pub repairs: u64,
    /// Every object that the node should hold, and what still has to be removed.
    pub objects: Vec<ObjectStatus>,
    /// Objects that carry our mark, and which we neither want nor remember: left alone.
    pub strangers: Vec<String>,
}

/// Something wrong, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Whom it concerns: `node`, `peer NAME`, `pod NAMESPACE/NAME`.
    pub owner: String,
    /// What is wrong and what to do.
    pub message: String,
    /// The node that it is about says it in the API itself; for a thousand nodes to repeat it helps nobody.
    #[serde(skip)]
    pub told_there: bool,
}

impl Problem {
    /// One that this node says.
    pub fn new(owner: impl Into<String>, message: impl Into<String>) -> Self {
        Self { owner: owner.into(), message: message.into(), told_there: false }
    }
}

/// The state of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputsStatus {
    /// Where the view of the cluster comes from: `api`, `last view` or `none`.
    pub view: String,
    /// All inputs are in sync: what nobody wants any more may be removed.
    pub synced: bool,
    /// The watch of Nodes.
    pub nodes: FeedStatus,
    /// The watch of this node's Pods.
    pub pods: FeedStatus,
    /// Watches of kinds that a cluster may not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional: Vec<OptionalStatus>,
    /// Attachment records that count.
    pub attachments: usize,
}

/// The state of the watch of a kind that a cluster may not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OptionalStatus {
    /// `PLURAL.GROUP`.
    pub kind: String,
    /// The API has the kind.
    pub served: bool,
    /// Times that the watch had to be begun anew.
    pub restarts: u64,
    /// The last error, until the watch works again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The state of one watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedStatus {
    /// Listed completely at least once.
    pub synced: bool,
    /// Objects known.
    pub objects: usize,
    /// Times that it had to be begun anew.
    pub restarts: u64,
    /// The last error, until the watch works again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// The object's key in the words of `ip`, `bridge`, `nft` and `sysctl`.
    pub key: String,
    /// Who wants it: `node`, `peer NAME`, `pod NAMESPACE/NAME`; `nobody` when it is to be removed.
    pub owner: String,
    /// Its state.
    pub state: State,
    /// Why it is not ok: the kernel's words, or what is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Since when it has been failing, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Failed attempts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Why it is there.
    pub why: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// What would be changed now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// One line for each operation, in order: `+ route …`, `~ link …`, `- fdb …`.
    pub lines: Vec<String>,
    /// The operations with all their values.
    pub ops: serde_json::Value,
    /// What somebody else's object stands in the way of.
    pub conflicts: Vec<String>,
    /// What waits for a pod interface that is not there.
    pub waiting: Vec<String>,
}

/// What a look for leases that nobody needs any more did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectReport {
    /// Leases released, a line each: address, container, why.
    pub released: Vec<String>,
    /// Leases that look stale for the first time; they are released if they still do next time.
    pub suspects: usize,
    /// What could not be released, or not be read.
    pub failed: Vec<String>,
}
