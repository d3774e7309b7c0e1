//! The agents of a lab's nodes: one real process each, kept running as a DaemonSet keeps it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::enter::wrapper;
use crate::spec::Dirs;

/// What is done with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Started, if it does not run.
    Start,
    /// Ended in good order (SIGTERM), and not started again.
    Stop,
    /// Ended in good order, then started again.
    Restart,
    /// Ended at once (SIGKILL), then started again.
    Kill,
}

/// How an agent does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u64,
    /// How it ended the last time.
    pub ended: Option<String>,
}

/// An order, and whom to tell that it is carried out.
type Order = (Action, oneshot::Sender<()>);

struct Handle {
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    state: watch::Receiver<AgentState>,
}

/// All agents of a lab.
pub(crate) struct Agents {
    all: BTreeMap<String, Handle>,
}

/// An agent that ends by itself waits this long before its next start, doubled each time up to
/// [`LONGEST`]; one that ran for a while begins anew.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long a good end may take.
const GRACE: Duration = Duration::from_secs(5);

impl Agents {
    /// Starts the agents of all nodes.
    pub(crate) fn start(causeway: &Path, lab: &str, nodes: &[String]) -> Self {
        let all = nodes.iter().map(|node| {
            let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
            let (tx, state) = watch::channel(AgentState::default());
            let agent = Agent {
                causeway: causeway.to_owned(),
                lab: lab.to_owned(),
                node: node.clone(),
                state: tx,
            };
            tokio::spawn(agent.keep(inbox));
            (node.clone(), Handle { orders, state })
        });
        Self { all: all.collect() }
    }

    /// Carries out an action on one node's agent and waits until it is done.
    pub(crate) async fn act(&self, node: &str, action: Action) -> Result<AgentState> {
        let handle = self.all.get(node).with_context(|| {
            let names: Vec<&str> = self.all.keys().map(String::as_str).collect();
            format!("there is no node {node:?}; there are: {}", names.join(", "))
        })?;
        let (tx, done) = oneshot::channel();
        handle.orders.send((action, tx)).map_err(|_| anyhow!("the lab is ending"))?;
        done.await.map_err(|_| anyhow!("the lab is ending"))?;
        Ok(handle.state.borrow().clone())
    }

    /// How they all do.
    pub(crate) fn states(&self) -> BTreeMap<String, AgentState> {
        self.all.iter().map(|(n, h)| (n.clone(), h.state.borrow().clone())).collect()
    }
}

struct Agent {
    causeway: PathBuf,
    lab: String,
    node: String,
    state: watch::Sender<AgentState>,
}

/// Why an agent's process ended.
enum End {
    /// By itself.
    Itself,
    /// As asked; the order is answered when the next state is reached.
    Asked(Order),
}

impl Agent {
    async fn keep(self, mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>) {
        let mut pause = FIRST;
        loop {
            let began = std::time::Instant::now();
            let end = match self.spawn() {
                Ok(child) => self.run(child, &mut orders).await,
                Err(error) => {
                    tracing::error!("{}: the agent cannot be started: {error:#}", self.node);
                    self.state.send_modify(|s| s.ended = Some(format!("{error:#}")));
                    Some(End::Itself)
                }
            };
            match end {
                None => return,
                Some(End::Itself) => {
                    if began.elapsed() > LONGEST {
                        pause = FIRST;
                    }
                    tracing::warn!("{}: the agent ended; it starts again in {pause:?}", self.node);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST);
                }
                Some(End::Asked((Action::Stop, done))) => {
                    let _ = done.send(());
                    if self.wait_for_start(&mut orders).await.is_none() {
                        return;
                    }
                }
                // The order is answered before the next process is there: whoever gave it asks
                // for the agent's status next, and waits for that.
                Some(End::Asked((_, done))) => drop(done.send(())),
            }
        }
    }

    async fn wait_for_start(
        &self,
        orders: &mut tokio::sync::mpsc::UnboundedReceiver<Order>,
    ) -> Option<()> {
        loop {
            let (action, done) = orders.recv().await?;
            let _ = done.send(());
            if action != Action::Stop {
                return Some(());
            }
        }
    }

    fn spawn(&self) -> Result<tokio::process::Child> {
        let dirs = Dirs::of(&self.lab);
        let path = dirs.node(&self.node).join("agent.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        let mut command = wrapper(&self.causeway, &self.lab, &self.node);
        command.arg(&self.causeway).args(["agent", "--node-name", &self.node]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = tokio::process::Command::from(command).spawn()?;
        self.state.send_modify(|s| {
            s.pid = child.id().and_then(|id| i32::try_from(id).ok());
            s.starts += 1;
        });
        Ok(child)
    }

    /// Waits for the end of the process; `None` when the lab ends.
    async fn run(
        &self,
        mut child: tokio::process::Child,
        orders: &mut tokio::sync::mpsc::UnboundedReceiver<Order>,
    ) -> Option<End> {
        let end = loop {
            let order = tokio::select! {
                _ = child.wait() => break End::Itself,
                order = orders.recv() => order?,
            };
            if order.0 == Action::Start {
                let _ = order.1.send(());
                continue;
            }
            if order.0 != Action::Kill {
                send(&child, Signal::TERM);
                if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
                    break End::Asked(order);
                }
                tracing::warn!("{}: the agent does not end; it is killed", self.node);
            }
            send(&child, Signal::KILL);
            break End::Asked(order);
        };
        let how = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
        self.state.send_modify(|s| {
            s.pid = None;
            s.ended = Some(how);
        });
        Some(end)
    }
}

/// Signals a child that has not been waited for, so that its number is still its own.
fn send(child: &tokio::process::Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}
